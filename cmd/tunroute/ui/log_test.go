package ui

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestQuietShowsOnlyWhatFailed(t *testing.T) {
	var b bytes.Buffer
	log := NewLogger(&b, Options{Level: slog.LevelInfo, Quiet: true})
	log.Info("flow", "dst", "fine.test:80", "end", "eof")
	log.Info("flow", "dst", "broken.test:80", "end", "failed")
	log.With("x", 1).Info("flow", "dst", "no.test:80", "end", "rejected")
	log.Info("started")
	log.Warn("look at this")
	got := b.String()
	for _, s := range []string{"broken.test", "no.test", "look at this"} {
		if !strings.Contains(got, s) {
			t.Errorf("%q is missing in\n%s", s, got)
		}
	}
	for _, s := range []string{"fine.test", "started"} {
		if strings.Contains(got, s) {
			t.Errorf("%q should not be in\n%s", s, got)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{}, "level=INFO msg=flow end=eof\n"},
		{Options{JSON: true}, `"level":"INFO","msg":"flow","end":"eof"}` + "\n"},
		{Options{Terminal: true}, "INF"},
		{Options{Level: slog.LevelWarn}, ""},
	} {
		var b bytes.Buffer
		NewLogger(&b, c.o).Info("flow", "end", "eof")
		if got := b.String(); !strings.Contains(got, c.want) || (c.want == "") != (got == "") {
			t.Errorf("%+v wrote %q, want it to contain %q", c.o, got, c.want)
		}
	}
}
