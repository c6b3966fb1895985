package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"tunroute/router/rule"
)

// decoder turns the nodes of a file into a Config and collects what is wrong
// with them.
type decoder struct {
	*source
	errs Errors // at most maxErrors

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
	d.errorAt(at(n), hint, format, args...)
}

// errorAt is errorf for a place.
func (d *decoder) errorAt(p place, hint, format string, args ...any) {
	if len(d.errs) < maxErrors {
		d.errs = append(d.errs, d.newError(p, fmt.Sprintf(format, args...), hint))
	}
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
	switch own := v.Addr().Interface().(type) {
	case nodeDecoder:
		own.decodeNode(d, n)
		return
	case *Secret:
		own.decode(d, n, name)
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
		if len(d.errs) == before || e.Type() == reflect.TypeFor[Rule]() {
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
	for i := range v.NumField() {
		if key := yamlKey(v.Type().Field(i)); key != "" {
			fields[key] = i
		}
	}
	for _, p := range list {
		key := p.key.Value
		i, ok := fields[key]
		if !ok {
			d.errorf(p.key, unknownKeyHint(key, yamlKeys(v.Type())), "%s has no key %q", name, short(key))
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

// yamlKey returns the key that a field is the value of; "" for none.
func yamlKey(f reflect.StructField) string {
	key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
	if key == "-" {
		return ""
	}
	return key
}

// yamlKeys returns the keys of a struct, in its order.
func yamlKeys(t reflect.Type) (keys []string) {
	for i := range t.NumField() {
		if key := yamlKey(t.Field(i)); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// elsewhere are keys of other tools (sing-box, Clash, Dante, tun2socks), and what comes
// nearest to them here.
var elsewhere = map[string]string{
	"outbounds": "upstreams", "proxies": "upstreams", "proxy-groups": "upstreams", "proxy": "upstreams", "servers": "upstreams",
	"inbounds": "listen", "internal": "listen", "route": "rules", "device": "tun", "resolvers": "dns", "nameserver": "dns",
	"domain": "to", "domain-suffix": "to", "ip-cidr": "to", "source-ip-cidr": "from", "network": "proto", "outbound": "via",
	"username": "user", "auth-user": "user", "server": "url", "detour": "via",
}

// unknownKeyHint names the key that was meant, or all that there are.
func unknownKeyHint(key string, known []string) string {
	switch ours := elsewhere[strings.ReplaceAll(strings.ToLower(key), "_", "-")]; {
	case key == "final" && slices.Contains(known, "rules"):
		return "write a last rule without conditions, as in {via: direct}"
	case slices.Contains(known, ours):
		return fmt.Sprintf("here it is %q", ours)
	}
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

// nodeAt returns the node that keys and indices lead to from n, as far as there is one.
func nodeAt(n *yaml.Node, path []any) *yaml.Node {
	for _, step := range path {
		n = follow(n)
		next := n
		switch step := step.(type) {
		case string:
			next = valueAt(n, step)
		case int:
			if n.Kind == yaml.SequenceNode && step < len(n.Content) {
				next = n.Content[step]
			}
		}
		n = next
	}
	return n
}

// checkRange notes an error where a number is not within its bounds.
func (d *decoder) checkRange(n *yaml.Node, key string, value, low, high int) {
	if value < low || value > high {
		d.errorf(valueAt(n, key), fmt.Sprintf("write a number from %d to %d", low, high), "%s cannot be %d", key, value)
	}
}
