package flow

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Template is a text with variables, which stand for what differs from flow to flow:
//
//	{rule}    the number of the rule that sent it, from 1; 0 for none
//	{source}  the address that it comes from, with "-" for the colons of IPv6
//	{target}  the name that it wants to go to, or the address, written so too
//	{port}    the port that it wants to go to
//
// "{{" stands for a brace. A Template is immutable.
type Template struct {
	parts []string // by turns a text and a variable, a text first and last
}

var variables = []string{"rule", "source", "target", "port"}

// ParseTemplate parses text. The error says what is wrong with it and continues a
// sentence that begins with it; it has at most a word of text in it.
func ParseTemplate(text string) (*Template, error) {
	t := &Template{}
	var literal strings.Builder
	for {
		before, after, found := strings.Cut(text, "{")
		literal.WriteString(before)
		if !found {
			t.parts = append(t.parts, literal.String())
			return t, nil
		}
		if rest, ok := strings.CutPrefix(after, "{"); ok {
			literal.WriteByte('{')
			text = rest
			continue
		}
		name, rest, closed := strings.Cut(after, "}")
		if !closed {
			return nil, errors.New(`has a "{" without a "}"`)
		}
		known := false
		for _, v := range variables {
			known = known || v == name
		}
		if !known {
			// A word is fit to be shown. Anything else may be what somebody
			// put into the place of a user by mistake.
			if name == "" || len(name) > 16 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") != "" {
				return nil, errors.New("has something in braces that is no variable")
			}
			return nil, fmt.Errorf("has an unknown variable {%s}", name)
		}
		t.parts = append(t.parts, literal.String(), name)
		literal.Reset()
		text = rest
	}
}

// Variables returns the names of the variables, as a hint.
func Variables() string { return "{" + strings.Join(variables, "}, {") + "}" }

// Fixed tells whether there is no variable, so that all flows have the same text.
func (t *Template) Fixed() bool { return len(t.parts) == 1 }

// Text returns the text for a flow that the rule with the number sent, 0 for none. f
// may be nil where there is no flow, as with a probe: its variables are "-" then.
func (t *Template) Text(f *Flow, rule int) string {
	var b strings.Builder
	for i, part := range t.parts {
		switch {
		case i%2 == 0:
			b.WriteString(part)
		case f == nil:
			b.WriteByte('-')
		case part == "rule":
			b.WriteString(strconv.Itoa(rule))
		case part == "source":
			b.WriteString(dashed(f.Source.Addr().Unmap().String()))
		case part == "target":
			b.WriteString(dashed(f.Target.Host()))
		case part == "port":
			b.WriteString(strconv.Itoa(int(f.Target.Port)))
		}
	}
	return b.String()
}

// dashed is for HTTP, where a colon ends the user.
func dashed(s string) string { return strings.ReplaceAll(s, ":", "-") }
