package ui

import (
	"context"
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
)

// The keys of log lines. Whoever reads logs by program can rely on them; a new
// one is written down here first.
//
//	net       tcp or udp
//	src, dst  the client, and where the flow goes: a name where there is one
//	in, user  the listener that it came by, and whose it is
//	rule      the number of the rule that decided, or "default"
//	line      its line in the config
//	out       the outbound; hops, where it has several, nearest first
//	up, down  payload bytes from and to the client
//	took      duration
//	end       how the flow ended: eof idle half-close client upstream canceled
//	          refused failed rejected orphan limit
//	err       what went wrong, with the hop and its reply
const keyEnd = "end"

// Options say how to log.
type Options struct {
	Level    slog.Leveler // nil: info
	JSON     bool
	Terminal bool // whether the writer is one: colours, and the time of day only
	// Quiet leaves out flows that went well.
	Quiet bool
}

// NewLogger returns a logger that writes whole lines to w.
func NewLogger(w io.Writer, o Options) *slog.Logger { return slog.New(NewHandler(w, o)) }

// NewHandler returns what NewLogger logs to.
func NewHandler(w io.Writer, o Options) slog.Handler {
	var h slog.Handler
	switch {
	case o.JSON:
		h = slog.NewJSONHandler(w, &slog.HandlerOptions{Level: o.Level})
	case o.Terminal:
		h = tint.NewTextHandler(w, &tint.Options{Level: o.Level, TimeFormat: time.TimeOnly})
	default:
		h = slog.NewTextHandler(w, &slog.HandlerOptions{Level: o.Level})
	}
	if o.Quiet {
		h = quiet{h}
	}
	return h
}

// quiet passes on what is more than the life of a flow, and flows that failed.
type quiet struct{ slog.Handler }

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	if r.Level <= slog.LevelInfo && !failed(r) {
		return nil
	}
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(as []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(as)} }
func (q quiet) WithGroup(name string) slog.Handler    { return quiet{q.Handler.WithGroup(name)} }

// failed says whether r is a flow that did not reach its target.
func failed(r slog.Record) bool {
	found := false
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == keyEnd {
			switch a.Value.String() {
			case "refused", "failed", "rejected", "orphan", "limit":
				found = true
			}
		}
		return !found
	})
	return found
}
