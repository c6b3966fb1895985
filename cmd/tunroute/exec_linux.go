package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/demo"
	"tunroute/cmd/tunroute/engine"
	"tunroute/cmd/tunroute/ui"
	"tunroute/tun"
	"tunroute/tun/netns"
)

// Exec is three processes of this executable; package netns draws them. P is the
// one that was called, R the router and C the one in the namespace. P and R have
// two pipes besides: R's standard error, which P copies to its own, and the
// leash. R ends when the leash is let go without a word, which is P's death; the
// word says that the program has ended in order and that R serves what it has
// left running.
const (
	stageRouter = "exec-router"
	stageInside = "exec-inside"
)

// The files that R is started with.
const (
	routerSocket = 3 + iota // one end of a netns.Pair
	routerSpec              // a spec, as JSON
	routerLeash
)

// released is the word on the leash.
const released = 'r'

// lastWords is how long R goes on logging to P when the program has ended but
// something that it left running has not: the records of the program's own flows
// come within milliseconds.
const lastWords = 100 * time.Millisecond

// runStage runs this process as R or C, or as a part of demo, where it has been started
// as one.
func runStage(args []string) (status int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	switch args[0] {
	case stageRouter:
		return runRouter(), true
	case stageInside:
		return runInside(args[1:]), true
	case demo.StageCompany:
		configs, err := companyConfigs()
		if err != nil {
			panic(err) // they are in the binary
		}
		return demo.Company(args[1:], configs), true
	case demo.StageClient:
		return demo.Client(), true
	}
	return 0, false
}

// insideSpec is what C is told, as JSON: nothing that ps(1) may not show.
type insideSpec struct {
	netns.Config
	Verbose bool // whether to tell of what is missing but not necessary
}

// runExec is P. It does not return if the program was ended by a signal.
func runExec(s spec, cfg *config.Config, args []string) error {
	outliveReaders() // the status is the program's, also where nobody reads the log
	addrs, err := engine.AddrsOf(cfg)
	if err != nil {
		return err
	}
	inside, err := json.Marshal(insideSpec{
		Config: netns.Config{
			Device: cfg.TUN.Name,
			MTU:    cfg.TUN.MTU,
			Addresses: []netip.Prefix{
				netip.PrefixFrom(addrs.Device4, addrs.Device4.BitLen()),
				netip.PrefixFrom(addrs.Device6, addrs.Device6.BitLen()),
			},
			Nameservers: []netip.Addr{addrs.Resolver4, addrs.Resolver6},
		},
		Verbose: s.Verbose > 0,
	})
	if err != nil {
		return err
	}
	forRouter, forInside, err := netns.Pair()
	if err != nil {
		return err
	}
	s.Terminal = term.IsTerminal(int(os.Stderr.Fd()))
	r, err := startRouter(s, forRouter)
	forRouter.Close()
	if err != nil {
		forInside.Close()
		return err
	}
	// Only now: R may find a password there.
	if taken := takeProxies(); s.Verbose > 0 && len(taken) > 0 {
		fmt.Fprintf(os.Stderr, "tunroute: exec: the program does not see %s: its connections go by the config\n", strings.Join(taken, ", "))
	}
	c, err := netns.Start(append([]string{stageInside, string(inside)}, args...), forInside)
	if err != nil {
		r.release() // it sees that there is no C, and ends
		return err
	}
	status, err := c.Wait()
	r.release()
	if err != nil {
		// Of a program that there is not, package os/exec says "exec: ..." as well.
		fmt.Fprintf(os.Stderr, "tunroute: exec: %s\n", strings.TrimPrefix(err.Error(), "exec: "))
	}
	status.Exit()
	panic("unreachable")
}

// router is R as P sees it.
type router struct {
	leash *os.File
	log   sync.WaitGroup // copies R's log until R closes it
}

// startRouter starts R with one end of a netns.Pair, which stays the caller's.
func startRouter(s spec, socket *os.File) (*router, error) {
	text, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	specOut, specIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer specOut.Close()
	defer specIn.Close()
	leashOut, leashIn, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer leashOut.Close()
	logOut, logIn, err := os.Pipe()
	if err != nil {
		leashIn.Close()
		return nil, err
	}
	defer logIn.Close()

	cmd := exec.Command("/proc/self/exe", stageRouter)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = logIn
	cmd.ExtraFiles = []*os.File{socket, specOut, leashOut}
	// What the terminal sends is for the program.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		leashIn.Close()
		logOut.Close()
		return nil, fmt.Errorf("start the router: %w", err)
	}
	// Nothing secret goes by argv. A spec may be longer than a pipe, so R has to be the
	// only one that reads it, or it would be waited for when it is gone.
	specOut.Close()
	if _, err := specIn.Write(text); err != nil {
		leashIn.Close()
		logOut.Close()
		return nil, fmt.Errorf("tell the router its task: %w", err)
	}
	r := &router{leash: leashIn}
	r.log.Go(func() {
		defer logOut.Close()
		io.Copy(os.Stderr, logOut)
	})
	return r, nil
}

// release lets R go, and waits for its last words.
func (r *router) release() {
	r.leash.Write([]byte{released})
	r.leash.Close()
	r.log.Wait()
}

// runRouter is R.
func runRouter() int {
	outliveReaders() // P's end of our standard error may close before we are done
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "tunroute: exec: %v\n", err)
		return int(exitFailed)
	}
	conn, err := netns.NewConn(os.NewFile(routerSocket, "router"))
	if err != nil {
		return fail(err)
	}
	defer conn.Close()
	leash, err := ownFile(routerLeash)
	if err != nil {
		return fail(err)
	}
	defer leash.Close()
	specFile, err := ownFile(routerSpec)
	if err != nil {
		return fail(err)
	}
	// Somebody may wait for the end of a pipe that P was started with.
	if err := netns.CloseInherited(); err != nil {
		return fail(err)
	}
	var s spec
	err = json.NewDecoder(specFile).Decode(&s)
	specFile.Close()
	if err != nil {
		return fail(fmt.Errorf("read the task: %w", err))
	}
	fd, mtu, err := conn.RecvFD()
	if err != nil {
		return 0 // C has failed, and tells P why
	}
	e, err := newExecEngine(s, fd, mtu)
	if err := errors.Join(err, conn.SendReady(err)); err != nil {
		return int(exitFailed) // C has been told
	}

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		conn.Done()
		drain(ctx, e)
		cancel()
	}()
	go func() {
		if n, _ := leash.Read(make([]byte, 1)); n == 0 {
			cancel() // P was killed: what is inside has no way out any more
			return
		}
		time.Sleep(lastWords) // unless we end before
		closeLog()
	}()
	if err := serve(ctx, e); err != nil {
		return fail(err)
	}
	return 0
}

// lastFlows is how long flows may take to end when nobody is left inside.
const lastFlows = 10 * time.Second

// drain waits until what has been said inside is delivered: a program may write,
// close and end, and the kernel sends the rest. Our hold on the TUN keeps the
// namespace, and so its closed sockets, for as long.
func drain(ctx context.Context, e *engine.Engine) {
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	late := time.After(lastFlows)
	for e.Stats().Router.Flows > 0 {
		select {
		case <-again.C:
		case <-late:
			return
		case <-ctx.Done():
			return
		}
	}
}

// newExecEngine makes the engine of R on the device that C has sent.
func newExecEngine(s spec, fd, mtu int) (*engine.Engine, error) {
	dev, err := tun.FromFD(fd, tun.Config{MTU: mtu})
	if err != nil {
		return nil, err
	}
	cfg, err := s.load()
	if err != nil {
		dev.Close()
		return nil, err
	}
	level, quiet := s.logLevel(cfg)
	e, err := engine.New(cfg, engine.Options{
		Device: dev,
		Logger: ui.NewLogger(os.Stderr, ui.Options{
			Level:    level,
			JSON:     s.Config != "" && cfg.Log.Format == config.JSON,
			Terminal: s.Terminal,
			Quiet:    quiet,
		}),
	})
	if err != nil {
		dev.Close()
		return nil, err
	}
	return e, nil
}

// ownFile returns a file that this process was started with, such that it is
// inherited no further.
func ownFile(fd int) (*os.File, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("file descriptor %d: this process is started by another of ours and cannot be run by hand: %w", fd, err)
	}
	return os.NewFile(uintptr(own), "own"), nil
}

// closeLog gives up standard error, for whose end P waits.
func closeLog() {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		slog.Error("give up the log", "err", err)
		return
	}
	defer null.Close()
	unix.Dup3(int(null.Fd()), int(os.Stderr.Fd()), 0)
}

// runInside is C: args are an insideSpec and the program.
func runInside(args []string) int {
	c, err := netns.Enter()
	if err != nil {
		fmt.Fprintf(os.Stderr, "tunroute: exec: %v\n", err)
		return int(exitFailed)
	}
	if err := prepare(c, args[0]); err != nil {
		c.Fail(err)
		return int(exitFailed)
	}
	if err := c.Run(args[1:]); err != nil {
		return int(exitFailed) // P has been told
	}
	return 0
}

// prepare sets the namespace up and hands its TUN to R.
func prepare(c *netns.Child, text string) error {
	var s insideSpec
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	tunFile, warnings, err := netns.Setup(s.Config)
	if err != nil {
		return err
	}
	defer tunFile.Close()
	if s.Verbose {
		for _, w := range warnings {
			fmt.Fprintf(os.Stderr, "tunroute: exec: %s\n", w)
		}
	}
	if err := c.Router.SendFD(tunFile, s.MTU); err != nil {
		return err
	}
	return c.Router.AwaitReady()
}
