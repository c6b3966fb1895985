package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"tunroute/cmd/tunroute/admin"
	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
)

var _ admin.Daemon = (*daemon)(nil)

// Reload implements admin.Daemon; SIGHUP does the same. What came of it is logged. The
// files of the log are opened anew in any case.
func (d *daemon) Reload() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.log.reopen(); err != nil {
		d.log.Error("the log goes on in the file from before", "err", err)
	}
	cfg, err := config.Load(d.file)
	if err == nil && !adminIsSame(d.cfg, cfg) {
		err = errors.New("admin has changed, which takes a new start")
	}
	if err == nil {
		err = d.engine.Reload(cfg)
	}
	if err != nil {
		d.log.Error("the config stays as it was", "err", err)
		return fmt.Errorf("the config stays as it was: %w", err)
	}
	d.log.level.Set(slog.Level(cfg.Log.Level))
	for _, w := range cfg.Warnings {
		d.log.Warn(w.Error())
	}
	d.reloaded = time.Now()
	d.log.Info("reloaded", "file", d.file, "upstreams", len(cfg.Upstreams), "rules", len(cfg.Rules))
	return nil
}

func adminIsSame(was, is *config.Config) bool {
	return was.Admin.Socket == is.Admin.Socket && slices.Equal(was.Admin.Metrics, is.Admin.Metrics)
}

// Stats implements admin.Daemon.
func (d *daemon) Stats() engine.Stats { return d.engine.Stats() }

// Status implements admin.Daemon.
func (d *daemon) Status() admin.Status {
	s := d.engine.Stats()
	d.mu.Lock()
	reloaded := d.reloaded
	d.mu.Unlock()
	status := admin.Status{
		Version: version(), PID: os.Getpid(), Config: d.file,
		Started: d.started, Reloaded: reloaded, Device: d.device,
		Flows: s.Router.Flows, Sessions: s.Router.Sessions,
		TCP: s.Router.TCP, UDP: s.Router.UDP, Failed: s.Router.Failed, Rejected: s.Router.Rejected,
		Orphans: s.Router.Orphans, Limited: s.Router.Limited, Dropped: s.Router.UDPLimited, Up: s.Router.Up, Down: s.Router.Down,
		Leases: s.Pool.Leases, Capacity: s.Pool.Capacity, NotKept: s.Pool.Failing,
	}
	for name, members := range d.engine.Groups() {
		g := admin.Group{Name: name}
		for _, m := range members {
			member := admin.Member{Name: m.Member, Network: m.Network.String(), Bad: m.Bad, Cause: m.Cause.String(), Since: m.Since, Took: m.Took}
			if m.Err != nil {
				member.Err = m.Err.Error()
			}
			g.Members = append(g.Members, member)
		}
		status.Groups = append(status.Groups, g)
	}
	slices.SortFunc(status.Groups, func(a, b admin.Group) int { return strings.Compare(a.Name, b.Name) })
	return status
}

// Flows implements admin.Daemon.
func (d *daemon) Flows() []admin.Flow {
	open := d.engine.Flows()
	flows := make([]admin.Flow, len(open))
	for i, f := range open {
		flows[i] = admin.Flow{
			Network: f.Flow.Network.String(), Source: f.Flow.Source, Target: f.Flow.Target.String(), User: f.Flow.User, Inbound: f.Flow.Inbound,
			Rule: f.Verdict.Index + 1, Line: f.Verdict.Line, Out: f.Outbound,
			Start: f.Start, Up: f.Up, Down: f.Down,
		}
	}
	return flows
}

// Ask implements admin.Daemon.
func (d *daemon) Ask(ctx context.Context, name, qtype string) (admin.Answer, error) {
	told, verdicts, err := d.engine.ExplainName(ctx, name, qtype)
	if err != nil {
		return admin.Answer{}, err
	}
	a := admin.Answer{
		Name: told.Name, Type: told.Type, Rcode: told.Rcode, Records: told.Answers, Reason: told.Reason,
		Mode: told.Mode.String(), Source: told.Source,
	}
	for _, v := range verdicts {
		a.Rules = append(a.Rules, admin.Rule{Rule: v.Index + 1, Line: v.Line, Via: v.Via})
	}
	return a, nil
}

// Leases implements admin.Daemon.
func (d *daemon) Leases() []admin.Lease {
	leases := d.engine.Leases()
	all := make([]admin.Lease, len(leases))
	for i, l := range leases {
		all[i] = admin.Lease(l)
	}
	return all
}

// FindLease implements admin.Daemon.
func (d *daemon) FindLease(of string) (admin.Lease, error) {
	l, ok := d.engine.FindLease(of)
	if !ok {
		return admin.Lease{}, fmt.Errorf("%s has no lease", of)
	}
	return admin.Lease(l), nil
}

// DropLease implements admin.Daemon.
func (d *daemon) DropLease(of string) (admin.Lease, error) {
	l, err := d.FindLease(of)
	if err == nil && !d.engine.DropLease(l.Name) {
		err = fmt.Errorf("%s has been dropped already", of)
	}
	return l, err
}

// adminListeners are where the daemon can be asked.
type adminListeners struct {
	socket  net.Listener // nil for none
	metrics []net.Listener
}

func (l adminListeners) close() {
	if l.socket != nil {
		l.socket.Close()
	}
	for _, m := range l.metrics {
		m.Close()
	}
}

// listenAdmin opens the socket and the listeners of the metrics. A daemon that can
// do without a socket, because nobody has asked for one, does.
func (d *daemon) listenAdmin() (l adminListeners, err error) {
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if path := d.cfg.AdminSocket(); path != "" {
		l.socket, err = admin.Listen(path)
		if err != nil && d.cfg.Admin.Socket != "" {
			return l, fmt.Errorf("admin.socket: %w", err)
		}
		if err != nil {
			d.log.Warn("no socket for status, flows and reload; admin.socket gives it another place", "err", err)
			err = nil
		}
	}
	for _, at := range d.cfg.Admin.Metrics {
		m, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPort(at)))
		if err != nil {
			return l, fmt.Errorf("admin.metrics %v: %w", at, err)
		}
		l.metrics = append(l.metrics, m)
	}
	return l, nil
}

// serveAdmin answers until ctx ends.
func (d *daemon) serveAdmin(ctx context.Context, l adminListeners) {
	var all sync.WaitGroup
	serve := func(l net.Listener, h http.Handler) {
		all.Go(func() {
			if err := admin.Serve(ctx, l, h); err != nil {
				d.log.Error("admin", "at", l.Addr(), "err", err)
			}
		})
	}
	if l.socket != nil {
		serve(l.socket, admin.NewHandler(d, d.cfg.AbsFile()))
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", admin.NewMetrics(d))
	for _, m := range l.metrics {
		serve(m, mux)
	}
	all.Wait()
}
