package netns

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"tunroute/tun"
	"tunroute/tun/nstest"
)

// The test binary plays all the parts: the first argument says which.
//
//	test ── in namespaces of its own, which play the host
//	└── parent CMD ──┬── router    198.18.0.2, fd00:74::2: answers DNS and ping
//	                 └── inside ── CMD, which may be a probe
//
// The router answers every DNS question for known.test, whatever the address it
// is sent to.

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		args := os.Args[2:]
		switch os.Args[1] {
		case "parent":
			parentMain(args)
		case "router":
			routerMain()
		case "inside":
			insideMain(args)
		case "shell":
			shellMain(args)
		case "count-signals":
			countSignals()
		case "ping-sockets":
			pingSockets()
		case "end-by":
			n, _ := strconv.Atoi(args[0])
			signalStatus(syscall.Signal(n)).Exit()
		}
	}
	// Whoever runs the tests may have left some open. Those of a fuzz worker
	// are for the one that started it.
	if !slices.Contains(os.Args, "-test.fuzzworker") {
		CloseInherited()
	}
	nstest.Enter()
	if err := nstest.OpenTUN(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	unignore()
	goleak.VerifyTestMain(m)
}

// unignore has what the tests start begin with all signals as they are by default,
// whoever runs the tests: nohup, or a script that has them in the background. A
// program starts with those ignored that its parent ignores, but not with those that
// it handles.
func unignore() {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGINT} { // all that Go leaves ignored
		if signal.Ignored(sig) {
			signal.Notify(make(chan os.Signal, 1), sig)
		}
	}
}

func die(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(exitFailed)
}

func insideConfig() Config {
	return Config{
		Device: "tun0", MTU: 1400,
		Addresses:   []netip.Prefix{netip.MustParsePrefix("198.18.0.1/32"), netip.MustParsePrefix("fd00:74::1/128")},
		Nameservers: []netip.Addr{netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd00:74::2")},
	}
}

// parentMain is P as a command would be.
func parentMain(args []string) {
	near, far, err := Pair()
	if err != nil {
		die(err)
	}
	router := exec.Command("/proc/self/exe", "router")
	router.ExtraFiles = []*os.File{near}
	router.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := router.Start(); err != nil {
		die(err)
	}
	near.Close()
	inside, err := Start(append([]string{"inside"}, args...), far)
	if err != nil {
		die(err)
	}
	status, err := inside.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if !status.Alive {
		router.Wait()
	}
	status.Exit()
}

func insideMain(args []string) {
	c, err := Enter()
	if err != nil {
		die(err)
	}
	config := insideConfig()
	device, warnings, err := Setup(config)
	if err != nil {
		c.Fail(err)
		os.Exit(exitFailed)
	}
	for _, w := range warnings {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
	if err = c.Router.SendFD(device, config.MTU); err == nil {
		device.Close()
		err = c.Router.AwaitReady()
	}
	if err != nil {
		c.Fail(err)
		os.Exit(exitFailed)
	}
	if c.Run(args) != nil {
		os.Exit(exitFailed)
	}
	os.Exit(0)
}

// In the environment of the parts.
const (
	// routerLife names a fifo that R holds open for writing as long as it
	// lives, and to which it writes its process id when it has the TUN.
	routerLife = "NETNS_TEST_ROUTER_LIFE"
	// routerDoes is what R does instead of its work: "fail" or "hang".
	routerDoes = "NETNS_TEST_ROUTER_DOES"
)

func routerMain() {
	conn, err := NewConn(os.NewFile(3, "router"))
	if err != nil {
		die(err)
	}
	CloseInherited()
	fd, mtu, err := conn.RecvFD()
	if err != nil {
		die(err)
	}
	d, err := tun.FromFD(fd, tun.Config{MTU: mtu})
	if err != nil {
		die(err)
	}
	if path := os.Getenv(routerLife); path != "" {
		life, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			die(err)
		}
		fmt.Fprintln(life, os.Getpid())
	}
	switch os.Getenv(routerDoes) {
	case "fail":
		conn.SendReady(errors.New("no route to the upstream"))
	case "hang":
	default:
		go answer(d)
		conn.SendReady(nil)
	}
	conn.Done()
	os.Exit(0)
}

func answer(d tun.Device) {
	bufs := make([][]byte, d.BatchSize())
	for i := range bufs {
		bufs[i] = make([]byte, tun.Headroom+d.MTU())
	}
	sizes := make([]int, len(bufs))
	for {
		n, err := d.Read(bufs, sizes, tun.Headroom)
		if err != nil {
			return
		}
		for i := range n {
			if reply := replyTo(bufs[i][tun.Headroom : tun.Headroom+sizes[i]]); reply != nil {
				d.Write([][]byte{append(make([]byte, tun.Headroom), reply...)}, tun.Headroom)
			}
		}
	}
}

// replyTo returns the packet that answers p, or nil.
func replyTo(p []byte) []byte {
	var proto byte
	var header, src, dst int // lengths and places
	switch {
	case len(p) >= 28 && p[0] == 0x45:
		proto, header, src, dst = p[9], 20, 12, 16
	case len(p) >= 48 && p[0]>>4 == 6:
		proto, header, src, dst = p[6], 40, 8, 24
	default:
		return nil
	}
	size := dst - src
	reply := append([]byte(nil), p[:header]...)
	copy(reply[src:dst], p[dst:dst+size])
	copy(reply[dst:dst+size], p[src:dst])
	body := append([]byte(nil), p[header:]...)
	place := 2 // of the checksum
	switch {
	case proto == unix.IPPROTO_ICMP && body[0] == 8:
		body[0] = 0
	case proto == unix.IPPROTO_ICMPV6 && body[0] == 128:
		body[0] = 129
	case proto == unix.IPPROTO_UDP && binary.BigEndian.Uint16(body[2:]) == 53:
		message := dnsAnswer(body[8:])
		if message == nil {
			return nil
		}
		copy(body[0:2], p[header+2:])
		copy(body[2:4], p[header:])
		body = append(body[:8], message...)
		binary.BigEndian.PutUint16(body[4:], uint16(len(body)))
		place = 6
	default:
		return nil
	}
	var pseudo uint32
	if proto != unix.IPPROTO_ICMP {
		pseudo = uint32(sum(reply[src:dst+size], uint32(proto)+uint32(len(body))))
	}
	binary.BigEndian.PutUint16(body[place:], 0)
	binary.BigEndian.PutUint16(body[place:], ^sum(body, pseudo))
	if header == 20 {
		binary.BigEndian.PutUint16(reply[2:], uint16(header+len(body)))
		binary.BigEndian.PutUint16(reply[10:], 0)
		binary.BigEndian.PutUint16(reply[10:], ^sum(reply, 0))
	} else {
		binary.BigEndian.PutUint16(reply[4:], uint16(len(body)))
	}
	return append(reply, body...)
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte, s uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func dnsAnswer(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	m = dnsmessage.Message{Header: dnsmessage.Header{ID: m.ID, Response: true}, Questions: m.Questions}
	h := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
	switch {
	case q.Name.String() != "known.test.":
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AResource{A: [4]byte{198, 18, 5, 5}}}}
	case q.Type == dnsmessage.TypeAAAA:
		a := netip.MustParseAddr("fd00:74::5").As16()
		m.Answers = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a}}}
	}
	b, err := m.Pack()
	if err != nil {
		return nil
	}
	return b
}

// countSignals is a command that prints the signals and lines it gets. SIGUSR2
// or the line "quit" ends it.
func countSignals() {
	signals := make(chan os.Signal, 100)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2)
	lines := make(chan string)
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			lines <- in.Text()
		}
		os.Exit(1) // the test has gone
	}()
	fmt.Println("ready", os.Getpid(), unix.Getpgrp())
	for {
		select {
		case sig := <-signals:
			fmt.Println(sig)
			if sig == syscall.SIGUSR2 {
				os.Exit(0)
			}
		case line := <-lines:
			fmt.Println("line", line)
			if line == "quit" {
				os.Exit(0)
			}
		}
	}
}

// pingSockets opens the sockets that an unprivileged ping does.
func pingSockets() {
	for name, s := range map[string][2]int{
		"icmp":   {unix.AF_INET, unix.IPPROTO_ICMP},
		"icmpv6": {unix.AF_INET6, unix.IPPROTO_ICMPV6},
	} {
		if _, err := unix.Socket(s[0], unix.SOCK_DGRAM, s[1]); err != nil {
			fmt.Println(name, err)
			os.Exit(1)
		}
	}
	os.Exit(0)
}

// shellMain is a shell with job control and one job: args, in the foreground of
// the terminal that is its standard input. It tells on file 3 when the job stops
// and ends, and continues it when file 4 says so.
func shellMain(args []string) {
	signal.Ignore(syscall.SIGTTOU)
	say, told := os.NewFile(3, "say"), bufio.NewReader(os.NewFile(4, "told"))
	unix.CloseOnExec(3)
	unix.CloseOnExec(4)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Foreground: true, Ctty: 0}
	if err := cmd.Start(); err != nil {
		die(err)
	}
	pid := cmd.Process.Pid
	for {
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			die(err)
		}
		if !ws.Stopped() {
			fmt.Fprintln(say, "ended", shellStatus(syscall.WaitStatus(ws)))
			os.Exit(0)
		}
		unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, unix.Getpgrp())
		fmt.Fprintln(say, "stopped", ws.StopSignal())
		if _, err := told.ReadString('\n'); err != nil {
			die(err)
		}
		unix.IoctlSetPointerInt(0, unix.TIOCSPGRP, pid)
		unix.Kill(-pid, unix.SIGCONT)
		fmt.Fprintln(say, "continued")
	}
}
