package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// example is a report with what reports can have.
func example() *Report {
	r := &Report{
		When:     time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC),
		Command:  []string{"go", "run", "./bench", "-router", "a=b {{.Tun}}"},
		Machine:  Machine{Kernel: "6.18", CPU: "some", Go: "go1.26", Cores: 2, MemoryBytes: 8 << 30, Congestion: "cubic"},
		Topology: "sidecar", Rounds: 3,
		Routers: []Router{{Name: "none"}, {Name: "a<b", MTU: 1500, Command: "x | y", Files: map[string][]string{"a.conf": {"one", "two"}}}, {Name: "gone", Skipped: "not here"}},
	}
	// Rounds are interleaved: the order is not that of the routers.
	for _, v := range []float64{2, 9, 4} {
		r.Result("up1", "a<b").Add("rate", "Gbit/s", v)
		r.Result("up1", "a<b").Add("router", "s/GB", v/10)
		r.Result("up1", "none").Add("rate", "Gbit/s", 10*v)
	}
	r.Result("memory", "a<b").Failures = []string{"it has\ntwo lines"}
	r.Result("memory", "a<b").Add("idle", "KB", 12345.6)
	r.Result("memory", "none").Failures = []string{"none"}
	return r
}

func TestMedianAndSpread(t *testing.T) {
	for _, c := range []struct {
		values           []float64
		median, min, max float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{3, 1, 2}, 2, 1, 3},
		{[]float64{4, 1, 2, 3}, 2.5, 1, 4},
	} {
		f := &Figure{Values: c.values}
		if f.Median() != c.median || f.Min() != c.min || f.Max() != c.max {
			t.Errorf("%v: %v (%v–%v), want %v (%v–%v)", c.values, f.Median(), f.Min(), f.Max(), c.median, c.min, c.max)
		}
	}
	if m := (&Figure{}).Median(); !math.IsNaN(m) {
		t.Errorf("the median of nothing is %v", m)
	}
}

func TestFairness(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{5, 5, 5, 5}, 1},
		{[]float64{5, 0, 0, 0}, 0.25},
		{[]float64{1, 2, 3}, 36. / 42},
		{[]float64{0, 0}, 0},
		{nil, 0},
	} {
		if got := Jain(c.values); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("Jain(%v) = %v, want %v", c.values, got, c.want)
		}
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 1: "1.00", 0.9996: "1.00", 9.999: "10.0", 12.34: "12.3", 123.4: "123", 999.7: "1000", 1234: "1234",
		12345.6: "12,346", 1234567: "1,234,567", 0.01234: "0.0123", -12345: "-12,345", -0.5: "-0.500",
	} {
		if got := number(v); got != want {
			t.Errorf("number(%v) = %q, want %q", v, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var b strings.Builder
	if err := example().WriteTable(&b); err != nil {
		t.Fatal(err)
	}
	want := `up1   rate Gbit/s       router s/GB
none  40.0 (20.0–90.0)  -
a<b   4.00 (2.00–9.00)  0.400 (0.200–0.900)

memory  idle KB
none    -        1 failed
a<b     12,346   1 failed

gone was not measured: not here
memory, a<b failed: it has
    two lines
memory, none failed: none
`
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestJSONHasEverything(t *testing.T) {
	var b bytes.Buffer
	want := example()
	if err := want.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	got := new(Report)
	if err := json.Unmarshal(b.Bytes(), got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

func TestMarkdown(t *testing.T) {
	var b strings.Builder
	if err := example().WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# 2026-11-23, sidecar\n",
		"Linux 6.18, 2 cores (some), 8.0 GiB of memory, go1.26,",
		"go run ./bench -router 'a=b {{.Tun}}'\n",
		"| a<b | 1500 |  | `x \\| y` |  |\n",
		"| up1 | rate Gbit/s | router s/GB |\n|---|---|---|\n| none | 40.0 (20.0–90.0) | - |\n",
		"memory, a<b failed: it has\n",
		"a<b, a.conf:\n\n```text\none\ntwo\n```\n",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("there is no %q in\n%s", want, b.String())
		}
	}
}

func TestChart(t *testing.T) {
	var b bytes.Buffer
	if err := example().WriteSVG(&b); err != nil {
		t.Fatal(err)
	}
	var bars int
	var texts []string
	d := xml.NewDecoder(&b)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			if token.Name.Local == "rect" {
				bars++
			}
		case xml.CharData:
			if s := strings.TrimSpace(string(token)); s != "" {
				texts = append(texts, s)
			}
		}
	}
	want := []string{
		"up1: rate, Gbit/s", "none", "40.0 (20.0–90.0)", "a<b", "4.00 (2.00–9.00)",
		"memory: idle, KB", "none", "failed", "a<b", "12,346",
	}
	if d := cmp.Diff(want, texts); d != "" || bars != 1+3 {
		t.Errorf("%d bars, want 3 and the paper; texts (-want +got)\n%s", bars, d)
	}
}
