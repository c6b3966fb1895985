package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"tunroute/bench/load"
	"tunroute/bench/netlab"
	"tunroute/bench/report"
	"tunroute/bench/rig"
)

const usage = `usage: bench [flags]          measure routers
       bench soak [flags]     send random data through them and compare it

Builds network namespaces, runs each router between a client and a SOCKS5 server,
and tells how fast that is. bench/README.md has it all; the cells are

`

// Exit statuses.
const (
	statusOK    = 0
	statusWrong = 1 // bytes were wrong, or there is no report
	statusUsage = 2
)

func run(args []string) (status int) {
	if len(args) > 0 {
		// The rig runs itself again on its hosts.
		switch args[0] {
		case load.RoleArg:
			if err := load.Serve(args[1:]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return statusWrong
			}
			return statusOK
		case netlab.GuardArg:
			return netlab.Guard(args[1:])
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := measure(ctx, args, os.Stdout, os.Stderr)
	var wrongUse *usageError
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, flag.ErrHelp):
		return statusOK
	case errors.As(err, &wrongUse):
		fmt.Fprintln(os.Stderr, "bench:", err)
		return statusUsage
	}
	fmt.Fprintln(os.Stderr, "bench:", err)
	return statusWrong
}

// usageError is one in how the rig was called.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// list is a flag that can be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// settings are what the flags say.
type settings struct {
	rig.Options
	cells, with, mtus        string
	programs, routers, files list
	servers                  list
	json, svg, markdown      string
	volume                   string
}

// parse reads the flags.
func parse(args []string, stderr io.Writer) (*settings, error) {
	s := &settings{Options: rig.Options{Progress: stderr}}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.Topology, "topology", rig.Sidecar, "`sidecar` or gateway: the client on the router's host, or behind it")
	f.StringVar(&s.cells, "cells", ".*", "cells to measure: an `expression` that matches their whole names")
	f.StringVar(&s.with, "with", "none,socks,redirect,tunroute", "built-in `routers`: none, socks, redirect, tunroute, tunroute-direct, tunroute-server")
	f.StringVar(&s.mtus, "mtu", "1500,default", "`MTUs` of tunroute's TUN")
	f.Var(&s.programs, "tunroute", "`NAME=FILE` of a tunroute to measure, instead of one that is built from here; again for others")
	f.Var(&s.routers, "router", "`NAME[@MTU]=COMMAND` of another router, a template; again for others")
	f.Var(&s.servers, "server", "`NAME=COMMAND` of a SOCKS5 server that is measured itself, a template; again for others")
	f.Var(&s.files, "routers", "`FILE` in JSON with other routers; again for others")
	f.IntVar(&s.Rounds, "rounds", 5, "how often each figure is taken; the median is shown")
	f.DurationVar(&s.Time, "time", 3*time.Second, "of most cells")
	f.DurationVar(&s.Long, "long", 10*time.Second, "of cells with 512 streams")
	f.Int64Var(&s.Connects, "connects", 0, "connections in the cell connect, instead of as many as fit into -time")
	f.IntVar(&s.Idle, "idle", 9500, "idle connections in the cell memory")
	f.DurationVar(&s.Settle, "settle", 30*time.Second, "from the last connection, and from the close of all, to a figure of memory")
	f.Uint64Var(&s.Seed, "seed", rand.Uint64(), "of the bytes that are sent; a random one unless given")
	f.Float64Var(&s.Others, "others", 100, "most `percent` of the machine that others may take during a run; with more it is done again")
	f.StringVar(&s.json, "json", "", "`FILE` for all values")
	f.StringVar(&s.svg, "svg", "", "`FILE` for a chart")
	f.StringVar(&s.markdown, "markdown", "", "`FILE` for a page with the tables and how they came about")
	f.StringVar(&s.volume, "bytes", "1G", "soak: how much to send through each router, as in 100G")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(stderr, usage)
			for _, c := range rig.Cells() {
				fmt.Fprintf(stderr, "  %-13s %s\n", c.Name, c.What)
			}
			fmt.Fprintln(stderr, "\nFlags:")
			f.SetOutput(stderr)
			f.PrintDefaults()
			return nil, err
		}
		return nil, &usageError{err}
	}
	if f.NArg() > 0 {
		return nil, &usageError{fmt.Errorf("%q is not a flag; -help tells what there is", f.Arg(0))}
	}
	if s.Topology != rig.Sidecar && s.Topology != rig.Gateway {
		return nil, &usageError{fmt.Errorf("-topology %s: there are %s and %s", s.Topology, rig.Sidecar, rig.Gateway)}
	}
	if s.Rounds < 1 || s.Time <= 0 || s.Long <= 0 || s.Idle < 1 {
		return nil, &usageError{errors.New("-rounds, -time, -long and -idle must be more than 0")}
	}
	var err error
	if s.Cells, err = rig.SelectCells(s.cells); err != nil {
		return nil, &usageError{fmt.Errorf("-cells: %w", err)}
	}
	if len(s.Cells) == 0 {
		return nil, &usageError{fmt.Errorf("-cells %s: there is no such cell; -help tells what there is", s.cells)}
	}
	return s, nil
}

// measure does what the arguments say.
func measure(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	soak := len(args) > 0 && args[0] == "soak"
	if soak {
		args = args[1:]
	}
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if err := possible(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "tunroute-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if s.Routers, err = s.chosen(ctx, dir); err != nil {
		return err
	}
	if soak {
		volume, err := parseBytes(s.volume)
		if err != nil {
			return &usageError{fmt.Errorf("-bytes: %w", err)}
		}
		return rig.Soak(ctx, s.Options, volume, stdout)
	}
	rep, err := rig.Run(ctx, s.Options)
	if rep == nil {
		return err
	}
	rep.Command = append([]string{"go", "run", "./bench"}, args...)
	return errors.Join(err, s.write(rep, stdout))
}

// possible says what the machine lacks.
func possible() error {
	if os.Geteuid() != 0 {
		return errors.New("the rig makes network namespaces and needs root: sudo go run ./bench")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return errors.New("the ip command is missing (Debian: iproute2)")
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("there are no TUN interfaces: %w", err)
	}
	return f.Close()
}

// chosen returns the routers that the flags name.
func (s *settings) chosen(ctx context.Context, dir string) ([]rig.Router, error) {
	var all []rig.Router
	for name := range strings.SplitSeq(s.with, ",") {
		switch name {
		case "":
		case "none":
			all = append(all, rig.None())
		case "socks":
			all = append(all, rig.SOCKS())
		case "redirect":
			all = append(all, rig.Redirect())
		case "tunroute", "tunroute-direct", "tunroute-server":
			ours, err := s.ours(ctx, dir, name)
			if err != nil {
				return nil, err
			}
			all = append(all, ours...)
		default:
			return nil, &usageError{fmt.Errorf("-with: %q is not built in; -router takes commands", name)}
		}
	}
	for _, text := range s.routers {
		name, command, ok := strings.Cut(text, "=")
		if !ok {
			return nil, &usageError{fmt.Errorf("-router %q: want NAME=COMMAND", text)}
		}
		r := rig.Router{Name: name, MTU: 1500, Run: command}
		if _, mtu, ok := strings.Cut(name, "@"); ok {
			var err error
			if r.MTU, err = strconv.Atoi(mtu); err != nil {
				return nil, &usageError{fmt.Errorf("-router %q: the MTU is not a number", text)}
			}
		}
		all = append(all, r)
	}
	for _, text := range s.servers {
		name, command, ok := strings.Cut(text, "=")
		if !ok {
			return nil, &usageError{fmt.Errorf("-server %q: want NAME=COMMAND", text)}
		}
		all = append(all, rig.Router{Name: name, Run: command, Serves: true, NoTUN: true, Direct: true})
	}
	for _, name := range s.files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		more, err := rig.ReadRouters(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, more...)
	}
	if len(all) == 0 {
		return nil, &usageError{errors.New("no router to measure: name some by -with, -router, -server or -routers")}
	}
	return all, nil
}

// ours returns tunroute with each MTU, and each program of it.
func (s *settings) ours(ctx context.Context, dir, name string) ([]rig.Router, error) {
	programs := s.programs
	if len(programs) == 0 {
		file, err := build(ctx, dir)
		if err != nil {
			return nil, err
		}
		programs = list{"tunroute=" + file}
	}
	var all []rig.Router
	for _, p := range programs {
		called, file, ok := strings.Cut(p, "=")
		if !ok {
			return nil, &usageError{fmt.Errorf("-tunroute %q: want NAME=FILE", p)}
		}
		file, err := filepath.Abs(file)
		if err != nil {
			return nil, err
		}
		if name != "tunroute" {
			called += strings.TrimPrefix(name, "tunroute")
		}
		if name == "tunroute-server" {
			all = append(all, rig.Server(called, file))
			continue
		}
		for text := range strings.SplitSeq(s.mtus, ",") {
			mtu := 0
			if text != "default" {
				if mtu, err = strconv.Atoi(text); err != nil || mtu <= 0 {
					return nil, &usageError{fmt.Errorf("-mtu %q: want numbers, or default", text)}
				}
			}
			all = append(all, rig.Tunroute(called, file, mtu, name != "tunroute"))
		}
	}
	return all, nil
}

// build builds tunroute, as it is released.
func build(ctx context.Context, dir string) (file string, err error) {
	file = filepath.Join(dir, "tunroute")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", file, "tunroute/cmd/tunroute")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build tunroute: %w\n%s", err, out)
	}
	return file, nil
}

// write writes the report in all forms that are asked for.
func (s *settings) write(rep *report.Report, stdout io.Writer) error {
	err := rep.WriteTable(stdout)
	for _, form := range []struct {
		name  string
		write func(io.Writer) error
	}{{s.json, rep.WriteJSON}, {s.svg, rep.WriteSVG}, {s.markdown, rep.WriteMarkdown}} {
		if form.name == "" {
			continue
		}
		f, openErr := os.Create(form.name)
		if openErr == nil {
			openErr = errors.Join(form.write(f), f.Close())
		}
		err = errors.Join(err, openErr)
	}
	return err
}

// parseBytes reads a number of bytes, with K, M, G or T for powers of 1024.
func parseBytes(s string) (int64, error) {
	digits, shift := s, 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte("KMGT", s[n-1]); i >= 0 {
			digits, shift = s[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)>>shift {
		return 0, fmt.Errorf("%q is not a number of bytes, as in 100G", s)
	}
	return n << shift, nil
}
