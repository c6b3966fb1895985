package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The law of the house (the map is in README.md): which package may import
// which. A package of ours may import those of ours that its line names, below
// the folders that it names, and outside libraries that no line of outside keeps
// for another.
//
//	floor 4   cmd/tunroute            bench
//	floor 3   cmd/tunroute/engine  ─► all of floor 2 (the only meeting place)
//	floor 2   tun     stack     dnsfake     router        never sideways
//	floor 1   route   netns     resolve     flow socks httpconnect ident gssapi ftp relay pace
var floors = map[string][]string{
	"tun":                 {"tun"},
	"stack":               {"stack"},
	"dnsfake":             {"dnsfake"},
	"router":              {"router"},
	"router/flow":         {},
	"router/socks":        {},
	"router/relay":        {"router/pace"},
	"router/httpconnect":  {},
	"router/ident":        {},
	"router/ftp":          {"router/relay"},
	"router/gssapi":       {"router/relay"},
	"router/gssapi/krb5":  {"router/gssapi"},
	"router/rule":         {"router/flow"},
	"router/limit":        {"router/flow", "router/pace"},
	"router/pace":         {},
	"router/outbound":     {"router/flow", "router/socks", "router/httpconnect", "router/gssapi", "router/relay", "router/outbound", "router/interop/servers"},
	"router/inbound":      {"router/flow", "router/gssapi", "router/socks", "router/httpconnect", "router/ident", "router/relay", "router/outbound"},
	"router/udpnat":       {"router/flow", "router/outbound", "router/pace"},
	"router/interop":      {"router/interop", "router/socks"},
	"cmd/tunroute":        {"cmd/tunroute", "tun", "router/rule", "router/flow", "router/outbound/probe", "router/inbound/users"},
	"cmd/tunroute/ui":     {"cmd/tunroute/ui"},
	"cmd/tunroute/demo":   {"tun"}, // it knows tunroute as a program only
	"cmd/tunroute/config": {"router/rule", "router/flow"},
	"cmd/tunroute/engine": {"cmd/tunroute/config", "cmd/tunroute/engine", "tun", "stack", "dnsfake", "router"},
	"bench":               {"cmd/tunroute", "tun", "stack", "dnsfake", "router", "bench"},

	// What the command passwd needs of the router knows no flow.
	"router/inbound/users": {"router/inbound"},

	// What tests are made of may know what it tests.
	"router/gssapi/gssapitest":       {"router/gssapi"},
	"cmd/tunroute/engine/enginetest": {"cmd/tunroute/engine", "cmd/tunroute/config", "stack", "router"},
}

// outside says where libraries may be imported.
var outside = map[string][]string{
	"gvisor.dev/gvisor":          {"stack"},
	"github.com/miekg/dns":       {"dnsfake"},
	"golang.zx2c4.com/wireguard": {"tun"},
	"github.com/vishvananda/":    {"tun"},
	"github.com/spf13/cobra":     {"cmd/tunroute"},
	"github.com/KimMachineGun/":  {"cmd/tunroute"},
	"go.yaml.in/yaml":            {"cmd/tunroute/config"},
	"github.com/lmittmann/tint":  {"cmd/tunroute/ui"},
	"github.com/gaissmai/bart":   {"router/rule"},
	"golang.org/x/crypto/argon2": {"router/inbound/users"},
	"golang.org/x/crypto/bcrypt": {"router/inbound/users"},
	"github.com/prometheus/":     {"cmd/tunroute/admin"},
	"github.com/jcmturner/":      {"router/gssapi/krb5"},
}

// leaves import the standard library only, beside what floors has of ours.
var leaves = []string{"router/flow", "router/socks", "router/relay", "router/httpconnect", "router/ident", "router/gssapi", "router/ftp", "router/pace"}

const module = "tunroute"

type pkg struct {
	ImportPath   string
	Dir          string
	Doc          string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
}

// packages lists our packages on each system that we build for: their imports
// are not the same.
func packages(t *testing.T) map[string][]pkg {
	t.Helper()
	all := make(map[string][]pkg)
	for _, goos := range []string{"linux", "darwin", "windows", "freebsd"} {
		cmd := exec.Command("go", "list", "-json=ImportPath,Dir,Doc,Imports,TestImports,XTestImports,GoFiles", "./...")
		cmd.Dir = root(t)
		cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list on %s: %v\n%s", goos, err, &stderr)
		}
		d := json.NewDecoder(bytes.NewReader(out))
		for {
			var p pkg
			if err := d.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			all[goos] = append(all[goos], p)
		}
	}
	return all
}

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// below says whether path is dir or below it.
func below(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// lawOf returns the longest line of floors that path is below.
func lawOf(path string) (dir string, ok bool) {
	for d := range floors {
		if below(path, d) && len(d) > len(dir) {
			dir, ok = d, true
		}
	}
	return dir, ok
}

func TestImportsKeepTheFloors(t *testing.T) {
	for goos, list := range packages(t) {
		for _, p := range list {
			path := strings.TrimPrefix(p.ImportPath, module+"/")
			law, ok := lawOf(path)
			if !ok {
				t.Errorf("%s is not a room of the house: add it to floors, with the reason in the commit", path)
				continue
			}
			for _, imp := range p.Imports {
				if ours, ok := strings.CutPrefix(imp, module+"/"); ok {
					allowed := slices.ContainsFunc(floors[law], func(d string) bool { return below(ours, d) })
					if !allowed && !below(ours, path) {
						t.Errorf("%s: %s imports %s, which its floor does not allow", goos, path, ours)
					}
					continue
				}
				if slices.Contains(leaves, path) && isOutside(imp) {
					t.Errorf("%s: %s is a leaf and imports %s", goos, path, imp)
				}
			}
			// Tests may look over the fence, but libraries stay in their rooms.
			for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
				for lib, rooms := range outside {
					if strings.HasPrefix(imp, lib) && !slices.ContainsFunc(rooms, func(r string) bool { return below(path, r) }) {
						t.Errorf("%s: %s imports %s, which belongs in %v", goos, path, imp, rooms)
					}
				}
			}
		}
	}
}

// isOutside says that a package is neither ours nor of the standard library.
func isOutside(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return strings.Contains(first, ".")
}

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t)["linux"] {
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
		if slices.Contains(p.GoFiles, "main.go") {
			continue
		}
		if _, err := os.Stat(filepath.Join(p.Dir, "doc.go")); err != nil && len(p.GoFiles) > 0 {
			t.Errorf("%s has no doc.go", p.ImportPath)
		}
	}
}

// TestNothingHappensAtImport: no init, so that a package costs nothing until it
// is used and nothing depends on the order of imports.
func TestNothingHappensAtImport(t *testing.T) {
	for _, p := range packages(t)["linux"] {
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s/%s has an init function", p.ImportPath, name)
				}
			}
		}
	}
}

// Nothing calls methods by names that the linker cannot know: it would keep every method
// of every type then, and the program was a quarter larger when one line did so (a template
// of text/template, for --version). Cobra's own templates are left alone for this reason.
func TestUnusedMethodsAreLeftOut(t *testing.T) {
	out, err := exec.Command("go", "build", "-o", os.DevNull, "-ldflags=-dumpdep", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("main.main -> ")) {
		t.Fatalf("the linker does not tell what needs what:\n%.1000s", out)
	}
	for line := range bytes.Lines(out) {
		if who, _, ok := bytes.Cut(line, []byte(" <ReflectMethod> -> ")); ok {
			t.Fatalf("%s calls methods by names that nobody knows before", who)
		}
	}
}

func TestTopLevelIsAsAskedFor(t *testing.T) {
	want := []string{"tun", "stack", "dnsfake", "router", "cmd", "bench", "go.mod", "go.sum", "README.md"}
	cmd := exec.Command("git", "ls-tree", "--name-only", "HEAD")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		missing(t, "not a git checkout, or no git: "+err.Error()) // a source archive has no more than what was committed
	}
	for name := range strings.FieldsSeq(string(out)) {
		if !strings.HasPrefix(name, ".") && !slices.Contains(want, name) {
			t.Errorf("%s stands at the top level; only %v may", name, want)
		}
	}
}
