package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v4"
)

var update = flag.Bool("update", false, "write what the tests got as what they want")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// dashes part the YAML of a case from what is expected of it.
var dashes = regexp.MustCompile(`(?m)^-{10,}\n`)

// cases calls f with the YAML of each case in testdata/dir, and compares what it
// returns with what the case expects.
func cases(t *testing.T, dir string, f func(t *testing.T, data []byte) string) {
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in testdata/%s: %v", dir, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			data, want := text, ""
			if cut := dashes.FindIndex(text); cut != nil {
				data, want = text[:cut[0]], string(text[cut[1]:])
			}
			got := f(t, data)
			if *update {
				text := fmt.Appendf(bytes.Clone(data), "%s\n%s", strings.Repeat("-", 40), got)
				if err := os.WriteFile(file, text, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestGood(t *testing.T) {
	t.Setenv("TUNROUTE_TEST_PASSWORD", "from the environment")
	cases(t, "good", func(t *testing.T, data []byte) string {
		c, err := Parse("tunroute.yaml", data)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Table(); err != nil {
			t.Errorf("Table: %v", err)
		}
		checkRoundTrip(t, c)
		var out strings.Builder
		out.WriteString(notDefault(t, c))
		for _, w := range c.Warnings {
			fmt.Fprintf(&out, "\nwarning: %v\n", w)
		}
		return out.String()
	})
}

func TestBad(t *testing.T) {
	cases(t, "bad", func(t *testing.T, data []byte) string {
		_, err := Parse("tunroute.yaml", data)
		es, ok := err.(Errors)
		if !ok || len(es) == 0 {
			t.Fatalf("got error %v, want Errors", err)
		}
		for _, e := range es {
			if e.File != "tunroute.yaml" || e.Msg == "" || e.Hint == "" {
				t.Errorf("poor error %v", e)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the message has a password in it:\n%v", err)
		}
		return err.Error() + "\n"
	})
}

// notDefault returns the sections of a config that are not as Default has them.
func notDefault(t *testing.T, c *Config) string {
	t.Helper()
	sections := func(c *Config) (names []string, texts map[string]string) {
		var doc yaml.Node
		if err := yaml.Load(dump(t, c), &doc); err != nil {
			t.Fatal(err)
		}
		texts = make(map[string]string)
		root := doc.Content[0]
		for i := 0; i < len(root.Content); i += 2 {
			one := yaml.Node{Kind: yaml.MappingNode, Content: root.Content[i : i+2]}
			text, err := yaml.Dump(&one, yaml.WithLineWidth(-1))
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, root.Content[i].Value)
			texts[root.Content[i].Value] = string(text)
		}
		return names, texts
	}
	_, defaults := sections(Default())
	names, texts := sections(c)
	var out strings.Builder
	for _, name := range names {
		if texts[name] != defaults[name] {
			out.WriteString(texts[name])
		}
	}
	return out.String()
}

// dump returns a file that says what a config says, with all defaults and with
// "[secret]" for passwords.
func dump(t *testing.T, c *Config) []byte {
	t.Helper()
	text, err := yaml.Dump(c, yaml.WithFlowSimpleCollections(), yaml.WithLineWidth(-1))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// checkRoundTrip writes a config, reads what it wrote and writes that.
func checkRoundTrip(t *testing.T, c *Config) {
	t.Helper()
	first := dump(t, c)
	// Beside the first, for the files that it names.
	back, err := Parse(filepath.Join(filepath.Dir(c.File), "round.yaml"), first)
	if err != nil {
		t.Fatalf("what was written cannot be read: %v\n%s", err, first)
	}
	if diff := cmp.Diff(string(first), string(dump(t, back))); diff != "" {
		t.Errorf("round trip: -first +second\n%s", diff)
	}
}

// TestInstances: what daemons name after themselves differs where they do.
func TestInstances(t *testing.T) {
	const off = "tun: off\nlisten: {socks: 127.0.0.1}\nrules: [{via: direct}]\n"
	name := func(file, text string) string {
		c, err := Parse(file, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return c.Instance()
	}
	one, two := name("/etc/one.yaml", off), name("/etc/two.yaml", off)
	if one == two || one == "tunroute0" {
		t.Errorf("two daemons without an interface: %s and %s", one, two)
	}
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if rel, abs := name("one.yaml", off), name(filepath.Join(dir, "one.yaml"), off); rel != abs {
		t.Errorf("one file, by a short path and the whole: %s and %s", rel, abs)
	}
	if got := name("one.yaml", "tun: {name: office0}\nrules: [{via: direct}]\n"); got != "office0" {
		t.Errorf("with an interface: %s, want office0", got)
	}
}
