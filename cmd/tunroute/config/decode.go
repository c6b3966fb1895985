package config

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"
	"go.yaml.in/yaml/v4/plugin/loaderlimits"

	"tunroute/router/rule"
)

// What a config may cost; doc.go names them.
const (
	maxFile   = 16 << 20  // a rule with 100,000 names has 3 MB
	maxDepth  = 32        // ours has five
	maxNodes  = 1_000_000 // with all aliases written out; 1 GB at most
	maxErrors = 100       // beyond, the file is no config
)

// decoder turns the nodes of a file into a Config and collects what is wrong
// with them.
type decoder struct {
	*source
	errs Errors

	env func(string) (string, bool)

	// inline is where the first password stands in the file itself.
	inline place
	// secretFiles are the files of secrets that others may read.
	secretFiles []finding
}

// finding is a text and where it is from.
type finding struct {
	at   place
	text string
}

func at(n *yaml.Node) place { return place{n.Line, n.Column} }

// errorf notes an error at a node. It must not be given what may be a secret.
func (d *decoder) errorf(n *yaml.Node, hint, format string, args ...any) {
	d.errs = append(d.errs, d.newError(at(n), fmt.Sprintf(format, args...), hint))
}

// error notes an error that a parser of texts has returned.
func (d *decoder) error(n *yaml.Node, err error) {
	var pe *rule.ParseError
	if errors.As(err, &pe) {
		d.errorf(n, pe.Hint, "%s", pe.Error())
		return
	}
	d.errorf(n, "", "%v", err)
}

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
	loader, err := yaml.NewLoader(strings.NewReader(string(data)),
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
		case r == '\n':
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
		hint = `a value that begins with "*" is put in quotes`
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
				failed = s.newError(at(n), fmt.Sprintf("alias %q is part of what it stands for", n.Value), "write out what is meant")
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

// follow returns what a node stands for. checkAliases has seen to it that there
// is an end to it.
func follow(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

// nodeDecoder is a part of a Config with a syntax of its own.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node)
}

// decode puts the value of n into v, which can be set. Where n is wrong it
// leaves v as it is and notes an error; name is what the value is, for messages.
func (d *decoder) decode(n *yaml.Node, v reflect.Value, name string) {
	n = follow(n)
	if len(d.errs) >= maxErrors {
		return
	}
	parse, single := parsers[v.Type()]
	if isNull(n) && (single || v.Kind() != reflect.Struct) {
		d.errorf(n, "write one, or leave the key out", "%s has no value", name)
		return
	}
	if nd, ok := v.Addr().Interface().(nodeDecoder); ok {
		nd.decodeNode(d, n)
		return
	}
	switch {
	case v.Kind() == reflect.Slice:
		d.list(n, v, name)
	case single:
		text, ok := d.scalar(n, name)
		if !ok {
			return
		}
		value, err := parse(text)
		if err != nil {
			d.error(n, err)
			return
		}
		v.Set(reflect.ValueOf(value).Convert(v.Type()))
	case v.Kind() == reflect.Struct:
		d.fields(n, v, name)
	default:
		panic(fmt.Sprintf("config: no way to decode a %s", v.Type()))
	}
}

// isNull tells whether a node is a value that has been left out.
func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// scalar returns the text of a node that is a single value.
func (d *decoder) scalar(n *yaml.Node, name string) (string, bool) {
	switch n.Kind {
	case yaml.ScalarNode:
		return n.Value, true
	case yaml.SequenceNode:
		d.errorf(n, "leave out the brackets or the dash", "%s is one value, not a list", name)
	default:
		d.errorf(n, "write the value alone", "%s is one value, not a mapping", name)
	}
	return "", false
}

// list decodes a list, or a single value as a list of one.
func (d *decoder) list(n *yaml.Node, v reflect.Value, name string) {
	nodes := []*yaml.Node{n}
	if n.Kind == yaml.SequenceNode {
		nodes = n.Content
	}
	list := reflect.MakeSlice(v.Type(), 0, len(nodes))
	for _, item := range nodes {
		if item = follow(item); isNull(item) {
			d.errorf(item, "write one, or leave the entry out", "an entry of %s has no value", name)
			continue
		}
		// A text may be several values: "80,443".
		if parse, ok := parsers[v.Type()]; ok {
			if text, ok := d.scalar(item, name); ok {
				if several, err := parse(text); err != nil {
					d.error(item, err)
				} else {
					list = reflect.AppendSlice(list, reflect.ValueOf(several))
				}
			}
			continue
		}
		e := reflect.New(v.Type().Elem()).Elem()
		before := len(d.errs)
		d.decode(item, e, name)
		// A rule with an error has other parts to be checked.
		if len(d.errs) == before || e.Kind() == reflect.Struct {
			list = reflect.Append(list, e)
		}
	}
	v.Set(list)
}

// pair is a key of a mapping and its value.
type pair struct{ key, value *yaml.Node }

// pairs returns the entries of a mapping. Keys that are no texts, or that come
// twice, are errors and left out.
func (d *decoder) pairs(n *yaml.Node, name string) ([]pair, bool) {
	if n.Kind != yaml.MappingNode {
		what := "a single value"
		if n.Kind == yaml.SequenceNode {
			what = "a list"
		}
		d.errorf(n, "write its keys below it, each with a colon and a value", "%s is a mapping, not %s", name, what)
		return nil, false
	}
	seen := make(map[string]*yaml.Node)
	var list []pair
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		text := follow(key)
		switch {
		case text.Kind != yaml.ScalarNode:
			d.errorf(key, "write a word, a colon and the value", "a key is a single word")
			continue
		case text.Value == "<<" && text.ShortTag() == "!!merge":
			d.errorf(key, "write the keys out; an alias can stand for a whole value", "merging with << is not supported")
			continue
		case seen[text.Value] != nil:
			d.errorf(key, "leave one of them out; several values of one key are a list: [a, b]", "key %q is there twice; the first is in line %d", short(text.Value), seen[text.Value].Line)
			continue
		}
		seen[text.Value] = key
		list = append(list, pair{text, value})
	}
	return list, true
}

// short bounds what of a bad text gets into a message.
func short(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "..."
	}
	return s
}

// later are keys that a later release will have, by struct and key.
var later = map[string]string{
	"Config.listen":       "listening for SOCKS clients",
	"Upstream.group":      "a group of upstreams",
	"Upstream.policy":     "a group of upstreams",
	"Timeouts.tcp-idle":   "ending idle TCP connections",
	"Timeouts.half-close": "ending half-closed TCP connections",
}

// fields decodes a mapping into the fields of a struct with its keys as tags.
func (d *decoder) fields(n *yaml.Node, v reflect.Value, name string) {
	if isNull(n) {
		return // a section of which everything is commented out
	}
	list, ok := d.pairs(n, name)
	if !ok {
		return
	}
	fields := make(map[string]int)
	var known []string
	for i := range v.NumField() {
		tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if tag != "" && tag != "-" {
			fields[tag] = i
			known = append(known, tag)
		}
	}
	for _, p := range list {
		key := p.key.Value
		i, ok := fields[key]
		if !ok {
			if what := later[v.Type().Name()+"."+key]; what != "" {
				d.errorf(p.key, "leave it out", "%s is not supported yet: %s", key, what)
			} else {
				d.errorf(p.key, unknownKeyHint(key, known), "%s has no key %q", name, short(key))
			}
			continue
		}
		if v.Type().Field(i).Tag.Get("secret") == "reference" {
			if text, _, ok := d.text(p.value, key); ok {
				v.Field(i).SetString(text)
			}
			continue
		}
		d.decode(p.value, v.Field(i), key)
	}
}

// unknownKeyHint names the key that was meant, or all that there are.
func unknownKeyHint(key string, known []string) string {
	if near := closest(key, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	return "its keys are " + strings.Join(known, ", ")
}

// valueAt returns the value of a key of a mapping, or the mapping itself where
// it has no such key.
func valueAt(n *yaml.Node, key string) *yaml.Node {
	n = follow(n)
	for i := 0; i+1 < len(n.Content) && n.Kind == yaml.MappingNode; i += 2 {
		if follow(n.Content[i]).Value == key {
			return follow(n.Content[i+1])
		}
	}
	return n
}

// parsers read the single values, by type. A value of a slice type is what one
// text stands for.
var parsers = map[reflect.Type]func(string) (any, error){
	reflect.TypeFor[string]():           func(s string) (any, error) { return s, nil },
	reflect.TypeFor[bool]():             func(s string) (any, error) { return parseBool(s) },
	reflect.TypeFor[int]():              func(s string) (any, error) { return parseInt(s) },
	reflect.TypeFor[uint32]():           func(s string) (any, error) { return parseUint32(s) },
	reflect.TypeFor[time.Duration]():    func(s string) (any, error) { return parseDuration(s) },
	reflect.TypeFor[netip.Addr]():       func(s string) (any, error) { return parseAddr(s) },
	reflect.TypeFor[netip.AddrPort]():   func(s string) (any, error) { return parseAddrPort(s) },
	reflect.TypeFor[netip.Prefix]():     func(s string) (any, error) { return rule.ParseFrom(s) },
	reflect.TypeFor[rule.Dest]():        func(s string) (any, error) { return rule.ParseDest(s) },
	reflect.TypeFor[[]rule.PortRange](): func(s string) (any, error) { return parsePorts(s) },
	reflect.TypeFor[Proto]():            func(s string) (any, error) { return parseEnum("protocol", protos, s) },
	reflect.TypeFor[Mode]():             func(s string) (any, error) { return parseEnum("mode", modes, s) },
	reflect.TypeFor[Format]():           func(s string) (any, error) { return parseEnum("format", formats, s) },
	reflect.TypeFor[Level]():            func(s string) (any, error) { return parseLevel(s) },
	reflect.TypeFor[Mark]():             func(s string) (any, error) { return parseMark(s) },
	reflect.TypeFor[Resolver]():         func(s string) (any, error) { return parseResolver(s) },
}

func parseError(s, reason, hint string) error {
	return &rule.ParseError{Text: s, Reason: reason, Hint: hint}
}

func parseEnum(what string, e enum, s string) (int, error) {
	i, hint := e.parse(s)
	if i < 0 {
		return 0, parseError(s, "is not a "+what, hint)
	}
	return i, nil
}

func parseLevel(s string) (Level, error) {
	i, err := parseEnum("level", levels, s)
	return Level(levelValues[i]), err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	hint := "write true or false"
	switch strings.ToLower(s) {
	case "yes", "on", "y", "true":
		hint = "write true"
	case "no", "off", "n", "false":
		hint = "write false"
	}
	return false, parseError(s, "is neither true nor false", hint)
}

func parseInt(s string) (int, error) {
	n, err := strconv.Atoi(s)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, parseError(s, "is too large", "write a smaller number")
	case err != nil:
		return 0, parseError(s, "is not a whole number", "write digits only, as in 1500")
	}
	return n, nil
}

func parseUint32(s string) (uint32, error) {
	digits, base := s, 10 // a zero in front does not make a number octal
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, parseError(s, "does not fit into 32 bits", "write a smaller number")
	case err != nil:
		return 0, parseError(s, "is not a number", "write digits, or 0x and hexadecimal digits")
	}
	return uint32(n), nil
}

func parseMark(s string) (Mark, error) {
	value, mask, masked := strings.Cut(s, "/")
	m := Mark{Mask: ^uint32(0)}
	var err error
	if m.Value, err = parseUint32(strings.TrimSpace(value)); err != nil {
		return m, err
	}
	if masked {
		if m.Mask, err = parseUint32(strings.TrimSpace(mask)); err != nil {
			return m, err
		}
	}
	switch {
	case m.Value == 0:
		return m, parseError(s, "is no mark: every packet without one has it", "set a bit, as in 0x10/0x10")
	case m.Value&^m.Mask != 0:
		return m, parseError(s, "has bits outside its mask", fmt.Sprintf("write %#x/%#x", m.Value, m.Value|m.Mask))
	}
	return m, nil
}

func parseDuration(s string) (time.Duration, error) {
	t, err := time.ParseDuration(s)
	if err != nil {
		hint := "write a number and its unit, as in 500ms, 10s, 2m or 1h"
		if _, err := strconv.ParseFloat(s, 64); err == nil {
			return 0, parseError(s, "has no unit", "write "+s+"s for seconds, "+s+"ms for milliseconds")
		}
		return 0, parseError(s, "is not a duration", hint)
	}
	if t <= 0 {
		return 0, parseError(s, "is not a time to wait", "write a duration above zero")
	}
	return t, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		hint := "write an address, as in 192.0.2.1; an interface is named with interface"
		if strings.Contains(s, "/") {
			hint = "leave out the slash and what follows"
		}
		return a, parseError(s, "is not an address", hint)
	case a.IsUnspecified(), a.IsMulticast():
		return a, parseError(s, "is not an address of a machine", "write one of this machine's, or leave the key out")
	}
	return a.Unmap(), nil
}

// parseAddrPort parses the address of a DNS server.
func parseAddrPort(s string) (netip.AddrPort, error) {
	const dns = 53
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), dns), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		hint := "write an address, as in 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53"
		return ap, parseError(s, "is not an address with or without a port", hint)
	}
	if ap.Port() == 0 {
		return ap, parseError(s, "has port 0, which nobody can be at", "leave the port out for 53")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func parseResolver(s string) (Resolver, error) {
	if s == "system" {
		return Resolver{System: true}, nil
	}
	ap, err := parseAddrPort(s)
	if err != nil {
		hint := "write system, or an address as in 192.0.2.1 or [2001:db8::1]:53"
		if near := closest(s, []string{"system"}); near != "" {
			hint = `did you mean "system"?`
		}
		return Resolver{}, parseError(s, "is not a resolver", hint)
	}
	if ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
		return Resolver{}, parseError(s, "is not an address of a machine", "write system, or the address of a DNS server")
	}
	return Resolver{Addr: ap}, nil
}

func parsePorts(s string) ([]rule.PortRange, error) {
	ranges, err := rule.ParsePorts(s)
	var pe *rule.ParseError
	if errors.As(err, &pe) {
		if near := closest(pe.Text, rule.Services()); near != "" && !strings.ContainsAny(pe.Text, "0123456789") {
			pe.Hint = fmt.Sprintf("did you mean %q?", near)
		}
	}
	return ranges, err
}

// checkRange notes an error where a number is not within its bounds.
func (d *decoder) checkRange(n *yaml.Node, key string, value, low, high int) {
	if value < low || value > high {
		d.errorf(valueAt(n, key), fmt.Sprintf("write a number from %d to %d", low, high), "%s cannot be %d", key, value)
	}
}
