package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"
)

// What a config may cost; doc.go names them.
const (
	maxFile   = 16 << 20  // a rule with 100,000 names has 3 MB
	maxDepth  = 32        // ours has five
	maxNodes  = 1_000_000 // with all aliases written out; 1 GB at most
	maxErrors = 100       // beyond, the file is no config
)

// parseYAML returns the root of the one document in data. Its error is an Errors.
func (s *source) parseYAML(data []byte) (*yaml.Node, error) {
	one := func(at place, msg, hint string) (*yaml.Node, error) {
		return nil, s.finish(Errors{s.newError(at, msg, hint)})
	}
	if len(data) > maxFile {
		return one(place{}, fmt.Sprintf("the file is larger than %d MiB", maxFile>>20), "is it a config?")
	}
	if line, column, reason := badText(data); reason != "" {
		return one(place{line, column}, reason, "a config is text in UTF-8")
	}
	loader, err := yaml.NewLoader(bytes.NewReader(data),
		yaml.WithPlugin(loaderlimits.New(loaderlimits.DepthValue(maxDepth))))
	if err != nil {
		return one(place{}, err.Error(), "")
	}
	var doc, second yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return one(place{}, "there is nothing in the file", "the least is a line with rules: [{via: direct}]")
	} else if err != nil {
		return one(s.yamlError(err))
	}
	if err := loader.Load(&second); err == nil {
		return one(at(&second), "a second document begins here", "a config is one document; leave out the line ---")
	} else if !errors.Is(err, io.EOF) {
		return one(s.yamlError(err))
	}
	root := &doc
	if root.Kind == yaml.DocumentNode && len(root.Content) == 1 {
		root = root.Content[0]
	}
	if e := s.checkAliases(root); e != nil {
		return nil, s.finish(Errors{e})
	}
	return root, nil
}

// badText finds the first thing that no text file has.
func badText(data []byte) (line, column int, reason string) {
	line, column = 1, 1
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return line, column, fmt.Sprintf("byte %#x is not UTF-8", data[i])
		case r == '\n', r == '\r' && !bytes.HasPrefix(data[i:], []byte("\r\n")):
			line, column = line+1, 0
		case r < ' ' && r != '\t' && r != '\r', 0x7f <= r && r < 0xa0 && r != 0x85, r == 0xfffe, r == 0xffff:
			return line, column, fmt.Sprintf("control character %#x", r)
		}
		i += size
		column++
	}
	return 0, 0, ""
}

// yamlError turns an error of the YAML parser into a message of ours.
func (s *source) yamlError(err error) (place, string, string) {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		return place{}, err.Error(), ""
	}
	p := place{le.Mark.Line, le.Mark.Column}
	if le.Mark.Line == 0 && le.ContextMark.Line > 0 {
		p = place{le.ContextMark.Line, le.ContextMark.Column}
	}
	msg, hint := le.Message, "look at the line above it as well"
	switch {
	case strings.Contains(msg, "cannot start any token"):
		switch c := s.char(p); c {
		case '\t':
			msg, hint = "a tab where blanks are wanted", "indent with blanks"
		case 0:
		default:
			msg, hint = fmt.Sprintf("a value cannot begin with %q", c), "put the value in quotes"
		}
	case strings.Contains(msg, "mapping values are not allowed"):
		msg, hint = `a ":" where no key can be`, `put a value that has ": " in it in quotes; keys of one mapping stand below each other`
	case strings.Contains(msg, "unknown anchor"):
		// Without its name, which may be a password.
		msg, hint = "an alias of an anchor that is not there", `a value that begins with "*" is put in quotes`
	case strings.Contains(msg, "found unexpected end of stream"):
		msg, hint = "this quote is not closed", "close it, or take the quotes away"
		if le.ContextMark.Line > 0 {
			p = place{le.ContextMark.Line, le.ContextMark.Column}
		}
	case strings.HasPrefix(msg, "did not find expected ',' or"):
		msg, hint = "this bracket is not closed, or a comma is missing in it", "write [a, b] or {key: value, key: value}"
		if le.ContextMark.Line > 0 {
			p = place{le.ContextMark.Line, le.ContextMark.Column}
		}
	case strings.Contains(msg, "did not find expected key"), strings.Contains(msg, "did not find expected '-' indicator"), strings.Contains(msg, "could not find expected ':'"):
		msg, hint = "this line is not where its neighbours are", "the keys of a mapping, and the dashes of a list, stand below each other; behind a key comes a colon and a blank"
	case strings.Contains(msg, "exceeded max depth"):
		msg, hint = fmt.Sprintf("nested deeper than %d", maxDepth), "is it a config?"
	}
	return p, "not YAML: " + msg, hint
}

// char returns the character at a place, 0 where there is none.
func (s *source) char(p place) rune {
	if p.line < 1 || p.line > len(s.lines) {
		return 0
	}
	runes := []rune(s.lines[p.line-1])
	if p.column < 1 || p.column > len(runes) {
		return 0
	}
	return runes[p.column-1]
}

// checkAliases refuses what would not end, or hardly, when followed: an alias
// of something that it is part of, and aliases of aliases of aliases that come
// to more than maxNodes nodes.
func (s *source) checkAliases(root *yaml.Node) *Error {
	sizes := make(map[*yaml.Node]int) // -1 while being counted
	var failed *Error
	var size func(n *yaml.Node) int
	size = func(n *yaml.Node) int {
		if n == nil || failed != nil {
			return 0
		}
		if n.Kind == yaml.AliasNode {
			switch known := sizes[n.Alias]; {
			case known < 0:
				failed = s.newError(at(n), "an alias is part of what it stands for", "write out what is meant")
				return 0
			case known > 0:
				return known
			}
			return size(n.Alias)
		}
		if len(n.Content) == 0 {
			return 1
		}
		sizes[n] = -1
		total := 1
		for _, c := range n.Content {
			if total += size(c); total > maxNodes && failed == nil {
				failed = s.newError(at(c), fmt.Sprintf("with all its aliases written out the config has more than %d values", maxNodes), "use fewer aliases of aliases")
			}
		}
		sizes[n] = total
		return total
	}
	size(root)
	return failed
}

// checkTags refuses what other programs mean by tags. Ignored, the variable's
// name in "password: !env OFFICE" would be the password. A tag is not quoted: in
// "password: !secret" it is the password itself.
func (d *decoder) checkTags(n *yaml.Node) {
	if n.Style&yaml.TaggedStyle != 0 && !strings.HasPrefix(n.Tag, "!!") {
		d.errorf(n, "leave it out; a user or password can be {file: PATH} or {env: VARIABLE}, and one that begins with \"!\" is put in quotes", "a tag has no meaning here")
	}
	for _, c := range n.Content {
		d.checkTags(c)
	}
}

// follow returns what a node stands for. checkAliases has seen to it that there
// is an end to it.
func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}
