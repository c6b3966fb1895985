package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Error is something wrong, or questionable, at one place of a config.
type Error struct {
	File         string
	Line, Column int    // from 1, the column in characters; 0 where there is no place in a file
	Msg          string // what is wrong
	Hint         string // what to do; "" where nothing suggests itself
	Source       string // the line, without its passwords; "" where there is none

	caret int // where Column is in Source, from 0
}

// Error returns the message with its place, the line and the hint:
//
//	tunroute.yaml:14:10: rule 3 goes via "tokyo", which is not an upstream
//	   14 |     via: tokyo
//	      |          ^ did you mean "tokio"?
func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
		}
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	if e.Line > 0 {
		line, indent := window(e.Source, e.caret)
		fmt.Fprintf(&b, "\n%5d | %s\n      | %s^", e.Line, line, indent)
		if e.Hint != "" {
			b.WriteString(" " + e.Hint)
		}
	} else if e.Hint != "" {
		b.WriteString("\n      " + e.Hint)
	}
	return b.String()
}

// Errors is a list of errors in the order of their places.
type Errors []*Error

// Error returns the errors one below the other.
func (es Errors) Error() string {
	var b strings.Builder
	for i, e := range es {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(e.Error())
	}
	return b.String()
}

// Unwrap lets errors.As find the single errors.
func (es Errors) Unwrap() []error {
	list := make([]error, len(es))
	for i, e := range es {
		list[i] = e
	}
	return list
}

// sorted returns the errors by place, each said once: an alias makes the same
// error at the same place as often as it is used.
func (es Errors) sorted() Errors {
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return slices.CompactFunc(es, func(a, b *Error) bool {
		return a.Line == b.Line && a.Column == b.Column && a.Msg == b.Msg
	})
}

// window returns the part of a line around the caret that fits on a terminal,
// and the blanks that put a caret below the right character.
func window(line string, caret int) (part, indent string) {
	const before, width = 60, 100
	runes := []rune(line)
	caret = min(max(caret, 0), len(runes))
	head, tail := "", ""
	if start := caret - before; start > 0 && len(runes) > width {
		runes, caret, head = runes[start:], before, "..."
	}
	if len(runes) > width {
		runes, tail = runes[:width], "..."
	}
	var blanks strings.Builder
	for _, r := range runes[:caret] {
		if r == '\t' { // as wide as the tab above it
			blanks.WriteByte('\t')
		} else {
			blanks.WriteByte(' ')
		}
	}
	return head + string(runes) + tail, strings.Repeat(" ", len(head)) + blanks.String()
}

// place is where something stands in a file; the zero place is nowhere.
type place struct{ line, column int }

// source is the text of a config file, for messages.
type source struct {
	file    string
	lines   []string
	secrets []string // what was read as one, so that no message shows it
}

func newSource(file string, data []byte) *source {
	text := strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(string(data))
	return &source{file: file, lines: strings.Split(text, "\n")}
}

// keepSecret remembers a text that no message may show. What is shorter than
// four bytes is in every other line by chance; it is found by its key only.
func (s *source) keepSecret(text string) {
	if len(text) >= 4 {
		s.secrets = append(s.secrets, text)
	}
}

// newError makes an Error at a place. Its line is added by finish, when all
// secrets are known.
func (s *source) newError(at place, msg, hint string) *Error {
	return &Error{File: s.file, Line: at.line, Column: at.column, Msg: msg, Hint: hint}
}

// finish sorts the errors and gives them their lines.
func (s *source) finish(es Errors) Errors {
	es = es.sorted()
	for _, e := range es {
		// An alias of a password may have been taken for something else.
		for _, secret := range s.secrets {
			e.Msg = strings.ReplaceAll(e.Msg, secret, secretText)
			e.Hint = strings.ReplaceAll(e.Hint, secret, secretText)
		}
		if e.Line < 1 || e.Line > len(s.lines) {
			continue
		}
		e.Source, e.caret = s.show(e.Line-1, e.Column-1)
	}
	return es
}

// show returns a line with its secrets struck out, and where in it column has
// got to.
func (s *source) show(line, column int) (string, int) {
	// What a terminal would act on is not sent there.
	text := strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\t' {
			return utf8.RuneError
		}
		return r
	}, strings.TrimRight(s.lines[line], " \t\r"))
	runes := []rune(text)
	column = min(max(column, 0), len(runes))
	// Of a file without line ends, what is near enough to matter.
	const near = 16 << 10
	if first := column - near; first > 0 {
		runes, column = runes[first:], near
	}
	runes = runes[:min(len(runes), column+near)]
	text = string(runes)
	// The caret's place in bytes, which cutting keeps track of.
	caret := len(string(runes[:column]))
	for _, cut := range s.secretSpans(line, text) {
		switch {
		case caret >= cut.end:
			caret += len(secretText) - (cut.end - cut.start)
		case caret > cut.start:
			caret = cut.start
		}
		text = text[:cut.start] + secretText + text[cut.end:]
	}
	return text, utf8.RuneCountInString(text[:caret])
}
