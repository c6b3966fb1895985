package main

import (
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

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/outbound/probe"
	"tunroute/tun/route"
)

// page returns a page of docs.
func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestRunPageHasThePlan: what docs/run.md says is done to a host is what is done
// to such a host.
func TestRunPageHasThePlan(t *testing.T) {
	cfg := config.Default()
	addrs, err := engine.AddrsOf(cfg)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := route.New(routeOptions(cfg, cfg.TUN.Name, addrs), route.Host{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.2")}})
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for line := range strings.Lines(plan.String()) {
		want.WriteString("    " + line)
	}
	if !strings.Contains(page(t, "run.md"), "\n\n"+want.String()+"\n") {
		t.Errorf("docs/run.md does not have what is done:\n%s", &want)
	}
}

// firstColumn returns the first column of a table, without its marks: the table
// whose first column is headed by head.
func firstColumn(text, head string) []string {
	_, text, _ = strings.Cut(text, "| "+head+" | |")
	var keys []string
	for line := range strings.Lines(text) {
		if m := regexp.MustCompile("^\\| `([^|`]*)` \\|").FindStringSubmatch(line); m != nil {
			keys = append(keys, m[1])
		} else if len(keys) > 0 {
			break
		}
	}
	return keys
}

// TestLogPage: docs/log.md has the keys that a flow's record is logged with, in
// their order, and the ends that there are.
func TestLogPage(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root(t), "router/record.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var keys, ends []string
	text := func(e ast.Expr) string {
		l, ok := e.(*ast.BasicLit)
		if !ok {
			return ""
		}
		s, _ := strconv.Unquote(l.Value)
		return s
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr: // slog.String("net", ...)
			if f, ok := n.Fun.(*ast.SelectorExpr); ok {
				if p, ok := f.X.(*ast.Ident); ok && p.Name == "slog" && len(n.Args) == 2 {
					keys = append(keys, text(n.Args[0]))
				}
			}
		case *ast.ValueSpec: // EndEOF End = "eof"
			if typ, ok := n.Type.(*ast.Ident); ok && typ.Name == "End" {
				ends = append(ends, text(n.Values[0]))
			}
		}
		return true
	})
	// "rule" is said in two ways.
	i := slices.Index(keys, "rule") + 1
	keys = append(keys[:i:i], slices.DeleteFunc(slices.Clone(keys[i:]), func(k string) bool { return k == "rule" })...)
	if got := firstColumn(page(t, "log.md"), "key"); !slices.Equal(got, keys) {
		t.Errorf("docs/log.md has the keys %q, a record %q", got, keys)
	}
	if got := firstColumn(page(t, "log.md"), "`end`"); !slices.Equal(got, ends) {
		t.Errorf("docs/log.md has the ends %q, there are %q", got, ends)
	}
}

// TestProbePage: docs/probe.md has the rows and the verdicts of a report, and the fields
// of its JSON.
func TestProbePage(t *testing.T) {
	text := page(t, "probe.md")
	if got := firstColumn(text, "probe"); !slices.Equal(got, probe.IDs()) {
		t.Errorf("docs/probe.md has the probes %q, there are %q", got, probe.IDs())
	}
	var fields []string
	for _, v := range []any{probeJSON{}, probeRowJSON{}, adviceJSON{}} {
		for i := range reflect.TypeOf(v).NumField() {
			name, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
			fields = append(fields, name)
		}
	}
	if got := firstColumn(text, "field"); !slices.Equal(got, fields) {
		t.Errorf("docs/probe.md has the fields %q, the JSON %q", got, fields)
	}
	verdicts := []string{string(probe.OK), string(probe.No), string(probe.Odd), string(probe.Bad), string(probe.Unknown)}
	if got := firstColumn(text, "verdict"); !slices.Equal(got, verdicts) {
		t.Errorf("docs/probe.md has the verdicts %q, there are %q", got, verdicts)
	}
}

// TestDeployConfigs: the configs in deploy are in order, and the commands there are
// ours.
func TestDeployConfigs(t *testing.T) {
	t.Setenv("PROXY_USER", "pod")
	t.Setenv("PROXY_PASSWORD", "opensesame")
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join("deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	_, inPod, ok := strings.Cut(read("pod.yaml"), "  tunroute.yaml: |\n")
	if !ok {
		t.Fatal("deploy/pod.yaml has no tunroute.yaml")
	}
	inPod, _, _ = strings.Cut(inPod, "\n---\n")
	for name, text := range map[string]string{
		"tunroute.yaml": read("tunroute.yaml"),
		"pod.yaml":      strings.ReplaceAll("\n"+inPod, "\n    ", "\n"),
	} {
		cfg, err := config.Parse(name, []byte(text))
		if err != nil {
			t.Errorf("deploy/%s: %v", name, err)
			continue
		}
		if len(cfg.Warnings) > 0 {
			t.Errorf("deploy/%s: %v", name, cfg.Warnings)
		}
		if err := engine.Check(cfg); len(err) > 0 {
			t.Errorf("deploy/%s: %v", name, err)
		}
	}
	addrs, err := engine.AddrsOf(config.Default())
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"tunroute.service": "\nExecStart=/usr/local/bin/tunroute run -c /etc/tunroute/tunroute.yaml\n",
		"compose.yaml":     "    command: [run, -c, /etc/tunroute/tunroute.yaml]\n",
		"pod.yaml":         "      args: [run, -c, /etc/tunroute/tunroute.yaml]\n",
		"resolv.conf":      "\nnameserver " + addrs.Resolver4.String() + "\n",
	} {
		if !strings.Contains(read(name), want) {
			t.Errorf("deploy/%s does not have %q", name, want)
		}
	}
}

// TestUnit: what run writes to where a config says nothing, systemd lets it: with
// ProtectSystem=strict all else is read-only.
func TestUnit(t *testing.T) {
	text, err := os.ReadFile("deploy/tunroute.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"RuntimeDirectory=tunroute", // /run/tunroute/tunroute0.sock: config.AdminSocket
		"RuntimeDirectoryMode=0700",
		"StateDirectory=tunroute", // /var/lib/tunroute/tunroute0.leases: leaseFile
		"StateDirectoryMode=0700",
		"LogsDirectory=tunroute", // docs/log.md
	} {
		if !strings.Contains(string(text), "\n"+want+"\n") {
			t.Errorf("tunroute.service has no line %s", want)
		}
	}
}
