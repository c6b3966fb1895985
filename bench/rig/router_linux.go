package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"tunroute/bench/load"
	"tunroute/bench/netlab"
)

// Router is what is measured. Its texts are templates with the fields of
// [Fields].
type Router struct {
	Name string
	MTU  int // of the TUN
	// Run is the command that runs it, for sh; an empty one is for what
	// needs no program.
	Run string
	// Files are written into its directory, {{.Dir}}, before it starts: the
	// lines of each, by name.
	Files map[string][]string
	// Before are commands for sh that run on the router's host before it is
	// started, Setup those that run when its TUN is there; nil is
	// DefaultSetup.
	Before, Setup []string
	// NoTUN is for a router without one: nothing waits for it, and Setup has
	// no default.
	NoTUN bool
	// NoIPv6 is for a router that does not carry it.
	NoIPv6 bool
	// Direct gives the router's host a way to the targets without a SOCKS
	// server.
	Direct bool
	// SOCKS has the client speak to the SOCKS server itself.
	SOCKS bool
	// Serves is for a router that is a SOCKS5 server at {{.Listen}}, to which the
	// client speaks. It has neither a TUN nor a SOCKS server behind it.
	Serves bool
	// DNS is the address and port at which the router answers DNS questions
	// of clients, empty if it does not.
	DNS string
	// Version is a command for sh that prints its version; a program in Go
	// has it in its file.
	Version string
	// Skip says why it cannot be measured here.
	Skip string
}

// Fields are what templates of a router can name.
type Fields struct {
	Tun        string // name that the TUN is to have
	Tun4, Tun6 string // addresses for it, with their prefix lengths
	MTU        int
	Socks      string // SOCKS5 server, HOST:PORT
	SocksHost  string
	SocksPort  uint16
	Dir        string // directory of the router, with its files
	Wire       string // interface to the SOCKS server
	Target4    string // prefix that has the targets
	Lan        string // interface to the client; empty where that is on the same host
	Listen     string // where a router that serves has to listen, HOST:PORT
	ListenHost string
}

// DefaultSetup is how a TUN is set up where a router does not say.
var DefaultSetup = []string{
	"ip link set {{.Tun}} mtu {{.MTU}} up",
	"ip addr replace {{.Tun4}} dev {{.Tun}}",
	"ip addr replace {{.Tun6}} dev {{.Tun}} nodad",
	"ip route replace default dev {{.Tun}}",
	"ip -6 route replace default dev {{.Tun}}",
}

// ReadRouters reads a list of routers in JSON. Keys are the names of the fields
// in any case.
func ReadRouters(r io.Reader) ([]Router, error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	var list []Router
	if err := d.Decode(&list); err != nil {
		return nil, err
	}
	return list, nil
}

// tunName is the name of every router's TUN.
const tunName = "rig0"

// readyTime is how long a router may take until it carries the first connection.
const readyTime = 15 * time.Second

// running is a router that runs.
type running struct {
	*netlab.Process
	dir    string
	output *netlab.Tail
}

// check says what is wrong with a router that can be found without it running.
func (r *Router) check() error {
	if r.Name == "" {
		return errors.New("a router has no name")
	}
	texts := slices.Concat([]string{r.Run, r.DNS}, r.Before, r.Setup)
	for _, lines := range r.Files {
		texts = append(texts, lines...)
	}
	for _, text := range texts {
		if _, err := expand(text, Fields{}); err != nil {
			return fmt.Errorf("router %s: %w", r.Name, err)
		}
	}
	if r.Serves && (!r.NoTUN || !r.Direct || r.SOCKS) {
		return fmt.Errorf("router %s: one that serves has notun and direct, and not socks", r.Name)
	}
	if r.DNS != "" {
		if _, err := netip.ParseAddrPort(r.DNS); err != nil {
			return fmt.Errorf("router %s: dns: %w", r.Name, err)
		}
	}
	return nil
}

// start starts the router in a lab, and waits until a connection gets through.
// Without a command there is nothing to start: it returns nil.
func (r *Router) start(ctx context.Context, l *lab, way load.Way) (run *running, err error) {
	fields := Fields{
		Tun: tunName, Tun4: tun4.String(), Tun6: tun6.String(), MTU: r.MTU,
		Socks: socksAddr.String(), SocksHost: socksAddr.Addr().String(), SocksPort: socksAddr.Port(),
		Wire: wireName, Target4: netip.PrefixFrom(target4(0), 24).Masked().String(),
	}
	if l.client != l.router {
		fields.Lan = "lan0"
	}
	listen := l.listen(false)
	fields.Listen, fields.ListenHost = listen.String(), listen.Addr().String()
	if r.Run != "" {
		run = &running{output: new(netlab.Tail)}
		defer func() {
			if err != nil {
				err = fmt.Errorf("%w%s", err, run.said())
				run.stop()
				run = nil
			}
		}()
		if run.dir, err = r.files(&fields); err != nil {
			return run, err
		}
	}
	if err := commands(ctx, l.router, r.Before, fields); err != nil {
		return run, err
	}
	if run != nil {
		command, err := expand(r.Run, fields)
		if err != nil {
			return run, err
		}
		if run.Process, err = l.router.Start(netlab.Program{
			Args: []string{"sh", "-c", command}, Dir: run.dir, Guarded: true,
			Stdout: run.output, Stderr: run.output,
		}); err != nil {
			return run, err
		}
		if err := r.setUp(ctx, l, run, fields); err != nil {
			return run, err
		}
	}
	return run, r.probe(ctx, l, run, way)
}

// files writes the router's files into a new directory.
func (r *Router) files(fields *Fields) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "tunroute-bench-"); err != nil {
		return "", err
	}
	fields.Dir = dir
	for name, lines := range r.Files {
		text, err := expand(strings.Join(lines, "\n")+"\n", *fields)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)
		}
		if err != nil {
			return dir, err
		}
	}
	return dir, nil
}

// setUp waits for the TUN and sets it up.
func (r *Router) setUp(ctx context.Context, l *lab, run *running, fields Fields) error {
	setup := r.Setup
	if !r.NoTUN {
		if err := run.wait(ctx, "no interface "+tunName, func() error {
			return l.router.IP("link show dev " + tunName)
		}); err != nil {
			return err
		}
		if setup == nil {
			setup = DefaultSetup
		}
	}
	return commands(ctx, l.router, setup, fields)
}

// probe waits until a message goes through the router and back.
func (r *Router) probe(ctx context.Context, l *lab, run *running, way load.Way) error {
	return run.wait(ctx, "no connection gets through it", func() error {
		t, err := l.load.Echo(load.RequestArgs{Way: way, Workers: 1, Count: 1, Key: 1})
		if err == nil && t.Count == 0 {
			err = errors.New(t.Error)
		}
		return err
	})
}

// wait tries something until it succeeds, the router has ended, or has had its
// time.
func (run *running) wait(ctx context.Context, what string, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	var ended <-chan struct{}
	if run != nil {
		ended = run.Ended()
	}
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			if run.Err() == nil {
				return errors.New("it ended at once with status 0")
			}
			return fmt.Errorf("it ended at once: %w", run.Err())
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the router and removes its directory.
func (run *running) stop() {
	if run == nil {
		return
	}
	if run.Process != nil {
		run.Stop()
	}
	if run.dir != "" {
		os.RemoveAll(run.dir)
	}
}

// said is what the router has printed, for an error.
func (run *running) said() string {
	if s := run.output.String(); s != "" {
		return "\n" + s
	}
	return ""
}

// commands runs commands for sh on a host.
func commands(ctx context.Context, h *netlab.Host, list []string, fields Fields) error {
	for _, text := range list {
		line, err := expand(text, fields)
		if err != nil {
			return err
		}
		if _, err := h.Run(ctx, "sh", "-c", line); err != nil {
			return err
		}
	}
	return nil
}

// expand fills in a template.
func expand(text string, fields Fields) (string, error) {
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, fields)
	return b.String(), err
}
