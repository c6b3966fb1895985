package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// inMachine is set in the environment of the process that TestNoQuestionLeaks starts.
const inMachine = "TUNROUTE_TEST_LEAK"

// TestNoQuestionLeaks has programs with resolvers of every kind reach a site, of which
// nobody but the far end knows, by name through exec and a SOCKS server, on a machine
// of their own with a resolver next door:
//
//	namespace of exec       the machine                        the far end
//	program ── tun ──► tunroute ── lo ──► SOCKS server ──► the site, a DNS server
//	                        └─ d0 ──► 192.0.2.53, which /etc/resolv.conf names
//
// No packet of DNS may pass any interface of the machine, and in the namespace none but
// to tunroute's own resolver. The site's HTTPS record offers HTTP/3 and has an address,
// which is not to be seen either.
func TestNoQuestionLeaks(t *testing.T) {
	if os.Getenv(inMachine) != "" {
		t.Run("inside", noQuestionLeaks)
		return
	}
	if testing.Short() {
		t.Skip("browsers take their time")
	}
	if why := whyNoExec(); why != "" {
		missing(t, why)
	}
	if os.Geteuid() != 0 {
		missing(t, "a machine of its own takes root")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestNoQuestionLeaks$", "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), inMachine+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

const siteName = "site.secret.test"

func noQuestionLeaks(t *testing.T) {
	dir := t.TempDir()
	resolvConf := filepath.Join(dir, "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("nameserver 192.0.2.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(resolvConf, "/etc/resolv.conf", "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range []string{
		"link set lo up", "link add d0 type veth peer name d1", "link set d0 up", "link set d1 up", "addr add 192.0.2.2/24 dev d0",
		"addr add 2001:db8::2/64 dev d0 nodad", "route add default via 192.0.2.1", "route add default via 2001:db8::1",
		"neigh add 192.0.2.53 lladdr 02:00:00:00:00:01 dev d0",
	} {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v\n%s", line, err, out)
		}
	}

	// The far end: the SOCKS server has no names but the site's, and no UDP.
	certificate, _, _ := outboundtest.Certificate(t)
	page := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Alt-Svc", `h3=":443"; ma=86400`)
			fmt.Fprintf(w, "<html><body>the site was reached as %s</body></html>", r.Host)
		}),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
		ErrorLog:  log.New(io.Discard, "", 0), // some hang up after the connect
	}
	site := newConnListener()
	served := make(chan struct{})
	go func() { defer close(served); page.ServeTLS(site, "", "") }()
	defer func() { page.Close(); <-served }()
	far := enginetest.NewDNS(map[string]netip.Addr{siteName: netip.MustParseAddr("192.0.2.80")})
	far.SetHTTPS(siteName,
		dnsmessage.SVCParam{Key: dnsmessage.SVCParamALPN, Value: []byte("\x02h3\x02h2")},
		dnsmessage.SVCParam{Key: dnsmessage.SVCParamIPv4Hint, Value: []byte("\xc0\x00\x02\x50")})
	server := enginetest.StartScripted(t, func(r socks.Request) enginetest.Script {
		switch {
		case r.Command == socks.UDPAssociate:
			return enginetest.Script{Reply: socks.ReplyCommand}
		case r.Addr.String() == "203.0.113.9:53":
			return enginetest.Script{Serve: far.ServeTCP}
		case r.Addr.String() == siteName+":443":
			return enginetest.Script{Serve: site.serve}
		}
		return enginetest.Script{Reply: socks.ReplyHostUnreachable} // where browsers call home
	})
	config := filepath.Join(dir, "tunroute.yaml")
	text := fmt.Sprintf("upstreams: {far: 'socks5h://%s'}\nrules: [{via: far}]\ndns: {remote-resolvers: [203.0.113.9]}\n", server)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	machine := sniff(t, "/proc/self/ns/net")
	machine.seesDNS(t)
	for _, p := range programs(t, dir) {
		t.Run(p.name, func(t *testing.T) {
			if p.why != "" {
				missing(t, p.why)
			}
			asked := far.Asked(siteName)
			out, inside := runWatched(t, config, p.argv, p.env)
			if !strings.Contains(out, p.want) {
				t.Errorf("it did not get there:\n%s", out)
			}
			if strings.Contains(out, "192.0.2.80") {
				t.Errorf("it took the address in the HTTPS record:\n%s", out)
			}
			questions := 0
			for _, to := range inside.questions() {
				if to == "198.18.0.1:53" || to == "[fd74:756e:726f::1]:53" {
					questions++
					continue
				}
				t.Errorf("it asked %s", to)
			}
			if questions == 0 {
				t.Error("it asked nobody")
			}
			if leaked := machine.questions(); len(leaked) > 0 {
				t.Errorf("questions left the machine, to %q", leaked)
			}
			if p.https && far.Asked(siteName) == asked {
				t.Error("the far end was not asked for the HTTPS record")
			}
		})
	}
}

// program is what reaches the site, in a way of its own.
type program struct {
	name, why string // why it cannot be run
	argv, env []string
	want      string // what it prints
	https     bool   // it asks for the HTTPS record
}

func programs(t *testing.T, dir string) []program {
	const reached = "the site was reached as " + siteName
	url := "https://" + siteName + "/"
	have := func(p program, debian string) program {
		if _, err := exec.LookPath(p.argv[0]); err != nil {
			p.why = fmt.Sprintf("%s is missing: install the Debian package %s", p.argv[0], debian)
		}
		return p
	}
	browser := func(name string, args ...string) program {
		argv := append([]string{"chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
			"--disable-background-networking", "--ignore-certificate-errors", "--user-data-dir=" + filepath.Join(dir, name), "--dump-dom"}, args...)
		return have(program{name: name, argv: append(argv, url), env: []string{"HOME=" + dir}, want: reached, https: true}, "chromium")
	}
	all := []program{
		have(program{name: "glibc", argv: []string{"getent", "ahosts", siteName}, want: "198.1"}, "libc-bin"),
		have(program{name: "curl", argv: []string{"curl", "-sSk", "--max-time", "60", "--http1.1", url}, want: reached}, "curl"),
		have(program{name: "curl-http2", argv: []string{"curl", "-sSk", "--max-time", "60", "--http2", url}, want: reached}, "curl"),
		{name: "go", argv: []string{"dial", "tcp", siteName + ":443"}, env: []string{"GODEBUG=netdns=go"}, want: "connected"},
		have(program{name: "musl", argv: []string{filepath.Join(dir, "reach"), siteName, "443"}, want: "connected"}, "musl-tools"),
		browser("chromium", "--disable-quic"),
		browser("chromium-http3", "--enable-quic"),
		// Which takes nothing but QUIC for an answer, and has to be told that there
		// is none.
		browser("chromium-quic", "--enable-quic", "--origin-to-force-quic-on="+siteName+":443"),
	}
	all[len(all)-1].want = "net=udp"
	if out, _ := exec.Command("curl", "-V").Output(); strings.Contains(string(out), "HTTP3") {
		all = append(all, program{name: "curl-http3", argv: []string{"curl", "-sSk", "--max-time", "60", "--http3", url}, want: reached})
	}
	source := filepath.Join(dir, "reach.c")
	if err := os.WriteFile(source, []byte(reachSource), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("musl-gcc", "-static", "-o", filepath.Join(dir, "reach"), source).CombinedOutput()
	for i := range all {
		if all[i].name != "musl" {
			continue
		}
		all[i].why = ""
		if err != nil {
			all[i].why = fmt.Sprintf("musl-gcc does not work here: install the Debian package musl-tools: %v\n%s", err, out)
		}
	}
	return all
}

// reachSource connects to the first address of a name that works.
const reachSource = `
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>
int main(int argc, char **argv) {
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
	int err = getaddrinfo(argv[1], argv[2], &hints, &list);
	if (err) {
		printf("getaddrinfo: %s\n", gai_strerror(err));
		return 1;
	}
	for (; list; list = list->ai_next) {
		int s = socket(list->ai_family, SOCK_STREAM, 0);
		if (s >= 0 && !connect(s, list->ai_addr, list->ai_addrlen)) {
			puts("connected");
			return 0;
		}
		perror("connect");
	}
	return 1;
}
`

// runWatched runs a program in exec, watched from before it starts, and returns what
// it and tunroute print, and the capture.
func runWatched(t *testing.T, config string, argv, env []string) (string, *capture) {
	t.Helper()
	bin := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "dial")); err != nil {
		t.Fatal(err)
	}
	script := `echo watch me; read go; exec "$@"`
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // it ends by itself long before
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"exec", "-v", "-c", config, "--", "sh", "-c", script, "sh"}, argv...)...)
	cmd.Args[0] = "tunroute"
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GORACE=atexit_sleep_ms=10")
	cmd.Env = append(cmd.Env, env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "the shell starts", func() bool { return strings.Contains(out.String(), "watch me") })
	inside := sniff(t, fmt.Sprintf("/proc/%d/ns/net", elsewhere(cmd.Process.Pid)))
	io.WriteString(stdin, "\n")
	stdin.Close()
	err = cmd.Wait()
	return fmt.Sprintf("%s\n%v", out.String(), err), inside
}

// elsewhere returns a descendant of a process that is in another network namespace than
// this one, in which the router stays; 0 where there is none.
func elsewhere(pid int) int {
	here, _ := os.Readlink("/proc/thread-self/ns/net")                      // the first thread may be where sniff went
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // of each thread its own
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for _, word := range strings.Fields(string(b)) {
			child, _ := strconv.Atoi(word)
			if there, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", child)); err == nil && there != here {
				return child
			}
			if found := elsewhere(child); found != 0 {
				return found
			}
		}
	}
	return 0
}

// syncBuffer is a buffer for a process that writes and a test that reads.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// capture is what passes all interfaces of a network namespace.
type capture struct {
	raw syscall.RawConn

	mu  sync.Mutex // guards what follows
	to  []string   // where packets of DNS were going
	buf [1 << 16]byte
}

// dnsPorts are those of DNS, of DNS over TLS and QUIC, of mDNS and of LLMNR.
var dnsPorts = []uint16{53, 853, 5353, 5355}

// sniff captures in the namespace of a file until the end of the test.
func sniff(t *testing.T, namespace string) *capture {
	t.Helper()
	opened := make(chan int)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		f, err := os.Open(namespace)
		if err != nil {
			failed <- err
			return
		}
		defer f.Close()
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			failed <- fmt.Errorf("setns: %w", err)
			return
		}
		const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all&0xffff)
		if err != nil {
			failed <- fmt.Errorf("socket: %w", err)
			return
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		opened <- fd
	}()
	var fd int
	select {
	case err := <-failed:
		t.Fatal(err)
	case fd = <-opened:
	}
	f := os.NewFile(uintptr(fd), "capture")
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{raw: raw}
	done := make(chan struct{})
	t.Cleanup(func() { f.Close(); <-done })
	go func() {
		defer close(done)
		_ = raw.Read(func(fd uintptr) bool { c.take(int(fd)); return false }) // until it is closed
	}()
	return c
}

// take takes in all that has come.
func (c *capture) take(fd int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for failed := 0; failed < 8; {
		n, _, err := unix.Recvfrom(fd, c.buf[:], unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return
		}
		if err != nil { // as that an interface has gone: told once, before what came by it
			failed++
			continue
		}
		if to, ok := dnsPacket(c.buf[:n]); ok {
			c.to = append(c.to, to)
		}
	}
}

// dnsPacket returns where a packet of DNS is going.
func dnsPacket(p []byte) (string, bool) {
	var to netip.Addr
	var proto byte
	var rest []byte
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && len(p) >= int(p[0]&0xf)*4:
		proto, rest = p[9], p[int(p[0]&0xf)*4:]
		to = netip.AddrFrom4([4]byte(p[16:20]))
	case len(p) >= 40 && p[0]>>4 == 6:
		proto, rest = p[6], p[40:]
		to = netip.AddrFrom16([16]byte(p[24:40]))
	default:
		return "", false
	}
	if proto != unix.IPPROTO_UDP && proto != unix.IPPROTO_TCP || len(rest) < 4 {
		return "", false
	}
	port := binary.BigEndian.Uint16(rest[2:])
	return netip.AddrPortFrom(to, port).String(), slices.Contains(dnsPorts, port)
}

// questions returns where packets of DNS were going so far, each once: those of a program
// that has ended are all among them.
func (c *capture) questions() []string {
	_ = c.raw.Control(func(fd uintptr) { c.take(int(fd)) })
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(c.to)))
}

// seesDNS sends a question next door, waits until it is seen, and forgets it.
func (c *capture) seesDNS(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("udp", "192.0.2.53:53")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("leak")); err != nil {
		t.Fatal(err)
	}
	enginetest.Eventually(t, "a question is seen", func() bool { return len(c.questions()) > 0 })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.to = nil
}

// connListener is a net.Listener of connections that somebody has already.
type connListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newConnListener() *connListener {
	return &connListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// serve has a connection accepted and returns when it is closed.
func (l *connListener) serve(c net.Conn) {
	closed := make(chan struct{})
	select {
	case l.conns <- &toldConn{Conn: c, told: closed}:
	case <-l.done:
		return
	}
	select {
	case <-closed:
	case <-l.done:
	}
}

func (l *connListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *connListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *connListener) Addr() net.Addr { return &net.TCPAddr{} }

// toldConn tells of its Close.
type toldConn struct {
	net.Conn
	once sync.Once
	told chan struct{}
}

func (c *toldConn) Close() error {
	c.once.Do(func() { close(c.told) })
	return c.Conn.Close()
}
