package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"sync"

	"golang.org/x/term"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/ui"
	"tunroute/cmd/tunroute/ui/sink"
)

// logs is the log of run, and what keeps it.
type logs struct {
	*slog.Logger
	level   slog.LevelVar // the general one
	files   []*sink.File
	senders []*sink.Sender
}

// openLogs opens what cfg logs to. Start must run for what is sent to be sent.
func openLogs(cfg *config.Config) (*logs, error) {
	l := new(logs)
	l.level.Set(slog.Level(cfg.Log.Level))
	outside, err := engine.Outside(cfg, cfg.TUN.Mark.Value)
	if err != nil {
		return nil, err
	}
	var handlers []slog.Handler
	for _, to := range cfg.Log.To {
		h, err := l.open(cfg, to, outside)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("log.to: %w", err)
		}
		handlers = append(handlers, h)
	}
	l.Logger = slog.New(slog.NewMultiHandler(handlers...))
	return l, nil
}

// open returns what logs to one place.
func (l *logs) open(cfg *config.Config, to config.LogTo, outside sink.Dial) (slog.Handler, error) {
	json := cfg.Log.Format == config.JSON
	if to.Format != nil {
		json = *to.Format == config.JSON
	}
	level := slog.Leveler(&l.level)
	if to.Level != nil {
		level = higher{&l.level, slog.Level(*to.Level)}
	}
	text := func(w io.Writer, terminal bool) (slog.Handler, error) {
		return ui.NewHandler(w, ui.Options{Level: level, JSON: json, Terminal: terminal}), nil
	}
	switch to.Kind {
	case config.LogStdout:
		return text(os.Stdout, term.IsTerminal(int(os.Stdout.Fd())))
	case config.LogFile:
		f, err := sink.NewFile(cfg.Path(to), complain)
		if err != nil {
			return nil, err
		}
		l.files = append(l.files, f)
		return text(f, false)
	case config.LogSyslog:
		o := sink.SyslogOptions{
			Socket: to.Socket, Server: to.Server, Facility: int(to.Facility), Old: to.RFC3164,
			JSON: json, Level: level, Complain: complain,
		}
		if to.Server != (netip.AddrPort{}) {
			o.Dial = outside // or each message would be a flow with a record of its own
		}
		s := sink.NewSyslog(o)
		l.senders = append(l.senders, s.Sender)
		return s, nil
	case config.LogJournald:
		j := sink.NewJournal(sink.JournalOptions{JSON: json, Level: level, Complain: complain})
		l.senders = append(l.senders, j.Sender)
		return j, nil
	}
	return text(os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
}

// complain tells what is wrong with a log where every daemon can tell it.
func complain(err error) { fmt.Fprintf(os.Stderr, "tunroute: log: %v\n", err) }

// higher is the higher of two levels.
type higher struct {
	general slog.Leveler
	own     slog.Level
}

func (h higher) Level() slog.Level { return max(h.general.Level(), h.own) }

// start sends what is logged until stop is called, which returns when the rest has been
// sent, or has waited for long enough.
func (l *logs) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, s := range l.senders {
		running.Go(func() { s.Run(ctx) })
	}
	return func() {
		cancel()
		running.Wait()
		l.close()
	}
}

// reopen opens the files anew.
func (l *logs) reopen() error {
	var errs []error
	for _, f := range l.files {
		errs = append(errs, f.Reopen())
	}
	return errors.Join(errs...)
}

func (l *logs) close() {
	for _, f := range l.files {
		f.Close()
	}
}
