package rig

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// What needs a lab is tested in bench: the rig runs its program again on its
// hosts, and this one is another.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSelectCells(t *testing.T) {
	for expr, want := range map[string]string{
		"up1":           "up1",
		"up.*|echo":     "up1 up8 up512 echo",
		"u":             "",
		"(up|down)[18]": "up1 up8 down1 down8",
	} {
		cells, err := SelectCells(expr)
		var names []string
		for _, c := range cells {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", expr, got, err, want)
		}
	}
	if _, err := SelectCells("("); err == nil {
		t.Error("no error for half an expression")
	}
}

func TestReadRouters(t *testing.T) {
	const text = `[{"name": "a@9000", "mtu": 9000, "run": "a {{.Dir}}/a.conf {{.Socks}}",
		"files": {"a.conf": ["tun {{.Tun}}", "mtu {{.MTU}}"]}, "setup": [], "dns": "192.0.2.53:53"}]`
	got, err := ReadRouters(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []Router{{
		Name: "a@9000", MTU: 9000, Run: "a {{.Dir}}/a.conf {{.Socks}}",
		Files: map[string][]string{"a.conf": {"tun {{.Tun}}", "mtu {{.MTU}}"}}, Setup: []string{}, DNS: "192.0.2.53:53",
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if err := got[0].check(); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"", "{}", `[{"nam": "a"}]`, `[{"name": 1}]`} {
		if got, err := ReadRouters(strings.NewReader(text)); err == nil {
			t.Errorf("%s: %+v, want an error", text, got)
		}
	}
}

func TestRoutersThatCannotBeRight(t *testing.T) {
	for _, r := range []Router{
		{},
		{Name: "a", Run: "a {{.Tunn}}"},
		{Name: "a", Run: "a {{"},
		{Name: "a", Setup: []string{"ip {{.Nothing}}"}},
		{Name: "a", Files: map[string][]string{"f": {"{{.Nothing}}"}}},
		{Name: "a", DNS: "192.0.2.1"},
	} {
		if r.check() == nil {
			t.Errorf("%+v: no error", r)
		}
	}
	for _, r := range []Router{None(), SOCKS(), Redirect(), Tunroute("t", "/bin/t", 1500, true)} {
		if err := r.check(); err != nil {
			t.Error(err)
		}
	}
}

func TestTheLadderGoesUp(t *testing.T) {
	for i := 1; i < len(ladder); i++ {
		if ladder[i] <= ladder[i-1] {
			t.Errorf("%d comes behind %d", ladder[i], ladder[i-1])
		}
	}
}
