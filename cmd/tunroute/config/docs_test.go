package config

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v4"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// generated parts what is written by hand in a page from what tests write.
const generated = "<!-- What follows is written by go test ./cmd/tunroute/config -update, from the comments in config.go. -->\n"

// TestReferenceIsUpToDate compares docs/config.md with the comments of the
// structs that a config is decoded into.
func TestReferenceIsUpToDate(t *testing.T) {
	const page = "../docs/config.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, old, ok := strings.Cut(string(text), generated)
	if !ok {
		t.Fatalf("%s has no line %q", page, generated)
	}
	want := writeReference(t)
	if *update {
		if err := os.WriteFile(page, []byte(head+generated+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, old); diff != "" {
		t.Errorf("%s is stale; run go test ./cmd/tunroute/config -update\n-want +got\n%s", page, diff)
	}
}

// structs returns the types of config.go that are structs, by name.
func structs(t *testing.T) map[string]*ast.GenDecl {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "config.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[string]*ast.GenDecl)
	for _, d := range file.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
			if s := g.Specs[0].(*ast.TypeSpec); isStruct(s) {
				types[s.Name.Name] = g
			}
		}
	}
	return types
}

func isStruct(s *ast.TypeSpec) bool {
	_, ok := s.Type.(*ast.StructType)
	return ok
}

func fieldsOf(g *ast.GenDecl) []*ast.Field {
	return g.Specs[0].(*ast.TypeSpec).Type.(*ast.StructType).Fields.List
}

func keyOf(f *ast.Field) string {
	if f.Tag == nil {
		return ""
	}
	tag, _ := strconv.Unquote(f.Tag.Value)
	key, _, _ := strings.Cut(reflect.StructTag(tag).Get("yaml"), ",")
	return strings.TrimPrefix(key, "-")
}

// writeReference returns the reference: a section for each key of the top.
func writeReference(t *testing.T) string {
	t.Helper()
	types := structs(t)
	defaults := defaultTexts(t)
	// The section's keys are the fields of this type.
	sectionType := map[string]string{"upstreams": "Upstream", "rules": "Rule", "tun": "TUN", "dns": "DNS"}
	// Whose items are described below the keys.
	items := map[string]string{"listen": "Listener"}
	var b strings.Builder
	for _, section := range fieldsOf(types["Config"]) {
		key := keyOf(section)
		if key == "" {
			continue
		}
		name := sectionType[key]
		if name == "" {
			name = section.Names[0].Name
		}
		if types[name] == nil || section.Doc == nil {
			t.Fatalf("section %s has no struct %s or no comment", key, name)
		}
		text := section.Doc.Text()
		// The first paragraph of the type is for Go programmers.
		if _, more, ok := strings.Cut(types[name].Doc.Text(), "\n\n"); ok {
			text += "\n" + more
		}
		fmt.Fprintf(&b, "\n## %s\n", key)
		for p := range strings.SplitSeq(text, "\n\n") {
			fmt.Fprintf(&b, "\n%s\n", wrap(p, ""))
		}
		b.WriteString("\n")
		fields := fieldsOf(types[name])
		if items[key] != "" {
			fields = slices.Concat(fields, fieldsOf(types[items[key]]))
		}
		for _, f := range fields {
			k := keyOf(f)
			if k == "" {
				continue
			}
			if f.Doc == nil {
				t.Fatalf("key %s.%s has no comment", key, k)
			}
			what := valueWords[typeName(f.Type)]
			if words, ok := valueWords[name+" "+typeName(f.Type)]; ok {
				what = words
			}
			if what == "" {
				t.Fatalf("key %s.%s: no words for the type %s", key, k, typeName(f.Type))
			}
			if d := defaults[key+"."+k]; d != "" && d != "[]" {
				what += "; default `" + d + "`"
			}
			fmt.Fprintf(&b, "- %s\n", wrap(fmt.Sprintf("**`%s`** (%s). %s", k, what, f.Doc.Text()), "  "))
		}
	}
	return b.String()
}

// valueWords says what to write for a field of a Go type.
var valueWords = map[string]string{
	"string":           "text",
	"Secret":           "text",
	"bool":             "`true` or `false`",
	"int":              "number",
	"uint32":           "number",
	"time.Duration":    "duration",
	"netip.Addr":       "address",
	"[]netip.Addr":     "address, or a list",
	"netip.Prefix":     "prefix",
	"[]netip.Prefix":   "address or prefix, or a list",
	"[]netip.AddrPort": "address with or without port, or a list",
	"[]Endpoint":       "address with port, or a list",
	"[]rule.Dest":      "name or address, or a list",
	"[]rule.PortRange": "port, or a list",
	"[]Proto":          "word, or a list",
	"[]Resolver":       "URL, mapping or `system`, or a list",
	"Strategy":         "word",
	"[]Listener":       "address or mapping, or a list",
	"ListenAt":         "address with or without port, or `unix:PATH`",
	"[]Auth":           "word, or a list",
	"[]Protection":     "word, or a list",
	"[]Command":        "word, or a list",
	"ListenTLS":        "`{cert: FILE, key: FILE}`",
	"ListenUDP":        "`{ports: FIRST-LAST, announce: ADDRESS}`",
	"FileMode":         "octal digits",
	"Authenticate":     "`{command: [PROGRAM, ARGUMENT...]}`",
	"Mode":             "mode",
	"[]string":         "name, or a list",
	"Policy":           "word",
	"Auth":             "word",
	"Protection":       "word",
	"Compatibility":    "word",
	"HashBy":           "word",
	"Weights":          "numbers by name",
	"Probe":            "word or target",
	"Mark":             "number, or number and mask",
	"Level":            "word",
	"Format":           "word",
	"Helper":           "word",
	"[]LogEvent":       "word, or a list",
	"Bandwidth":        "bandwidth, or mapping",
	"RuleLimits":       "mapping",
	"Rate":             "rate",
	"[]Forward":        "mapping, or a list",
	"Endpoint":         "address with port",
	"ForwardTo":        "address with port, or port",
	"[]LogTo":          "word or mapping, or a list",
	"HTTPS":            "word",
	"ECH":              "word",
	"Rejected":         "word",
	"Answer":           "word",

	"Names []rule.Dest": "name, or a list",
	"DNS []rule.Dest":   "name, or a list",
	"DNS []string":      "path or `system`, or a list",
}

func typeName(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return typeName(e.X) + "." + e.Sel.Name
	case *ast.ArrayType:
		return "[]" + typeName(e.Elt)
	}
	return fmt.Sprintf("%T", e)
}

// defaultTexts returns the defaults as a config would have them, by section and
// key.
func defaultTexts(t *testing.T) map[string]string {
	t.Helper()
	var doc yaml.Node
	if err := yaml.Load(dump(t, Default()), &doc); err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	top := doc.Content[0].Content
	for i := 0; i < len(top); i += 2 {
		section := top[i+1].Content
		for j := 0; top[i+1].Kind == yaml.MappingNode && j < len(section); j += 2 {
			value := section[j+1].Value
			if section[j+1].Kind == yaml.SequenceNode {
				var list []string
				for _, item := range section[j+1].Content {
					list = append(list, item.Value)
				}
				value = "[" + strings.Join(list, ", ") + "]"
			}
			value = regexp.MustCompile(`^(\d+m)0s$`).ReplaceAllString(value, "$1")
			texts[top[i].Value+"."+section[j].Value] = value
		}
	}
	return texts
}

// blocks returns the parts of a page between ```yaml and ```, each with what
// follows it up to the next.
func blocks(t *testing.T, page string) [][2]string {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(string(text), "```yaml\n")
	var list [][2]string
	for _, p := range parts[1:] {
		code, after, ok := strings.Cut(p, "```\n")
		if !ok {
			t.Fatalf("%s has a block that does not end", page)
		}
		list = append(list, [2]string{code, after})
	}
	if len(list) == 0 {
		t.Fatalf("%s has no examples", page)
	}
	return list
}

var flowRow = regexp.MustCompile(`(?m)^\| (tcp|udp) (\S+) -> (\S+) \| (\d+|none) \| (\S+) \|$`)

// TestRulesPage runs the tables of flows in docs/rules.md against the rules
// above them.
func TestRulesPage(t *testing.T) {
	rows := 0
	for _, block := range blocks(t, "../docs/rules.md") {
		c := mustParse(t, block[0])
		table, err := c.Table()
		if err != nil {
			t.Fatal(err)
		}
		rows += checkFlows(t, table, block)
	}
	if rows < 10 {
		t.Errorf("only %d rows", rows)
	}
}

// checkFlows looks at what a table does with the flows below a block, and returns how
// many there are.
func checkFlows(t *testing.T, table *rule.Table, block [2]string) int {
	t.Helper()
	found := flowRow.FindAllStringSubmatch(block[1], -1)
	if n := strings.Count(block[1], "\n| tcp ") + strings.Count(block[1], "\n| udp "); n != len(found) || n == 0 {
		t.Errorf("%d rows of flows, of which %d can be read, below\n%s", n, len(found), block[0])
	}
	for _, row := range found {
		target, err := flow.ParseTarget(row[3])
		if err != nil {
			t.Fatal(err)
		}
		f := &flow.Flow{Network: flow.TCP, Source: netip.AddrPortFrom(netip.MustParseAddr(row[2]), 40000), Target: target}
		if row[1] == "udp" {
			f.Network = flow.UDP
		}
		want := rule.Verdict{Index: -1, Via: row[5]}
		if row[4] != "none" {
			if want.Index, err = strconv.Atoi(row[4]); err != nil {
				t.Fatal(err)
			}
			want.Index--
		}
		got := table.Match(f)
		got.Line = 0
		if got != want {
			t.Errorf("%s\ngot %+v, want %+v; the rules are\n%s", row[0], got, want, block[0])
		}
	}
	return len(found)
}

// TestCompanyPage compares docs/company.md with the example that it explains, and
// looks at what becomes of its flows.
func TestCompanyPage(t *testing.T) {
	example, err := os.ReadFile("../examples/company.yaml")
	if err != nil {
		t.Fatal(err)
	}
	block := blocks(t, "../docs/company.md")[0]
	if _, text, _ := strings.Cut(string(example), "\nupstreams:"); "upstreams:"+text != block[0] {
		t.Errorf("docs/company.md shows\n%s\nthe example is\n%s", block[0], example)
	}
	dir := t.TempDir()
	for _, name := range []string{"internet.user", "internet.secret"} {
		write(t, filepath.Join(dir, name), "hunter2\n", 0o600)
	}
	path := filepath.Join(dir, "company.yaml")
	write(t, path, block[0], 0o644)
	c, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	table, err := c.Table()
	if err != nil {
		t.Fatal(err)
	}
	checkFlows(t, table, block)
}

// TestServicesAreListed keeps the list of services in docs/rules.md.
func TestServicesAreListed(t *testing.T) {
	const page = "../docs/rules.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "`/etc/services` is not read.\n\n", "\n\n## What is warned about"
	head, rest, ok1 := strings.Cut(string(text), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the services", page)
	}
	var items []string
	for _, name := range rule.Services() {
		ports, err := rule.ParsePorts(name)
		if err != nil {
			t.Fatal(err)
		}
		items = append(items, fmt.Sprintf("`%s %s`", name, ports[0]))
	}
	want := wrap(strings.Join(items, ", ")+".", "")
	if *update {
		if err := os.WriteFile(page, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(want, old); diff != "" {
		t.Errorf("%s is stale; run go test ./cmd/tunroute/config -update\n-want +got\n%s", page, diff)
	}
}

// wrap fills lines of at most 80 characters, of which all but the first begin
// with indent. It breaks at blanks outside of `code`.
func wrap(s, indent string) string {
	var lines []string
	line := ""
	for _, word := range regexp.MustCompile("(?:`[^`]*`|[^\\s`])+").FindAllString(s, -1) {
		if line != "" && len(indent)+len(line)+1+len(word) > 80 {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return strings.Join(append(lines, line), "\n"+indent)
}

// TestConfigPages reads the examples of docs/dns.md, docs/groups.md, docs/listen.md, docs/log.md, docs/limits.md,
// docs/coming.md and of the part of
// docs/config.md that is written by hand, and compares the error that it shows with
// the real one.
func TestConfigPages(t *testing.T) {
	t.Setenv("OFFICE_PASSWORD", "hunter2")
	t.Setenv("PROXY_PASSWORD", "hunter2")
	for _, block := range slices.Concat(blocks(t, "../docs/config.md"), blocks(t, "../docs/dns.md"), blocks(t, "../docs/groups.md"), blocks(t, "../docs/listen.md"), blocks(t, "../docs/log.md"), blocks(t, "../docs/limits.md"), blocks(t, "../docs/coming.md")) {
		_, shown, hasError := strings.Cut(block[1], "```text\ntunroute.yaml:")
		c, err := Parse("tunroute.yaml", []byte(block[0]))
		switch {
		case hasError:
			shown, _, _ = strings.Cut(shown, "```\n")
			shown = "tunroute.yaml:" + shown
			if err == nil || err.Error()+"\n" != shown {
				t.Errorf("the page shows\n%s\nwhat comes is\n%v", shown, err)
			}
		case err != nil:
			t.Errorf("%v\nin\n%s", err, block[0])
		case len(c.Warnings) > 0:
			t.Errorf("%v\nin\n%s", c.Warnings, block[0])
		}
	}
}

// TestExamples loads the examples as they are, with files for their secrets and
// certificates.
func TestExamples(t *testing.T) {
	t.Setenv("PROXY_USER", "pod")
	t.Setenv("PROXY_PASSWORD", "hunter2")
	files, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	secret := regexp.MustCompile(`\{file: ([\w.]+)\}`)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			for _, m := range secret.FindAllStringSubmatch(string(text), -1) {
				write(t, filepath.Join(dir, m[1]), "hunter2\n", 0o600)
			}
			for _, m := range regexp.MustCompile(`ca: ([\w.]+)`).FindAllStringSubmatch(string(text), -1) {
				write(t, filepath.Join(dir, m[1]), string(certificate(t)), 0o644)
			}
			path := filepath.Join(dir, filepath.Base(file))
			write(t, path, string(text), 0o644)
			c, err := Load(path)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Warnings) > 0 {
				t.Errorf("warnings:\n%v", c.Warnings)
			}
			if _, err := c.Table(); err != nil {
				t.Error(err)
			}
			checkRoundTrip(t, c)
		})
	}
}
