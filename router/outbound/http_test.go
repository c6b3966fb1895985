package outbound_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/httpconnect"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/relay"
)

const connected = "HTTP/1.1 200 Connection established\r\n\r\n"

// scriptedHTTP returns the outbound through a proxy that follows a script.
func scriptedHTTP(t *testing.T, o outbound.HTTPOptions, script func(*net.TCPConn)) *outbound.HTTP {
	t.Helper()
	o.Name = "liar"
	o.Server = flow.AddrTarget(outboundtest.Serve(t, loopback, script))
	o.Via = newDirect(t, nil)
	return newHTTP(t, o)
}

// Proxies that refuse, lie or break off: the step that fails, the error and what
// the client is told. The heads are those of squid 5.7 and tinyproxy 1.11.1, cut.
func TestHTTPBadServers(t *testing.T) {
	status := func(line, headers string) func(*net.TCPConn) {
		return say(hangUp, one("HTTP/1.1 "+line+"\r\n"+headers+"\r\n"))
	}
	code := func(n int) any { return &httpconnect.StatusError{Code: n} }
	tests := []struct {
		name   string
		script func(*net.TCPConn)
		op     string
		err    any // an error, or a StatusError with its Code
		errno  syscall.Errno
	}{
		{"wrong password", status("407 Proxy Authentication Required", "Proxy-Authenticate: Basic realm=\"x\"\r\n"), "authenticate", code(407), 0},
		{"wrong password, tinyproxy", status("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n"), "authenticate", code(401), 0},
		{"forbidden", status("403 Forbidden", "X-Squid-Error: ERR_ACCESS_DENIED 0\r\n"), "request", code(403), syscall.EACCES},
		{"tinyproxy, anything", status("500 Unable to connect", "Server: tinyproxy/1.11.1\r\n"), "request", code(500), 0},
		{"bad gateway", status("502 Bad Gateway", ""), "request", code(502), 0},
		{"unavailable", status("503 Service Unavailable", ""), "request", code(503), 0},
		{"timeout", status("504 Gateway Timeout", ""), "request", code(504), 0},
		{"squid, refused", status("503 Service Unavailable", "X-Squid-Error: ERR_CONNECT_FAIL 111\r\n"), "request", code(503), syscall.ECONNREFUSED},
		{"squid on FreeBSD, refused", status("503 Service Unavailable", "X-Squid-Error: ERR_CONNECT_FAIL 61\r\n"), "request", code(503), syscall.ECONNREFUSED},
		{"squid, no network", status("503 Service Unavailable", "X-Squid-Error: ERR_CONNECT_FAIL 101\r\n"), "request", code(503), syscall.ENETUNREACH},
		{"squid, no host", status("503 Service Unavailable", "X-Squid-Error: ERR_CONNECT_FAIL 113\r\n"), "request", code(503), 0},
		{"squid, no name", status("500 Internal Server Error", "X-Squid-Error: ERR_CANNOT_FORWARD 0\r\n"), "request", code(500), 0},
		{"Proxy-Status, refused", status("502 Bad Gateway", "Proxy-Status: edge; error=connection_refused\r\n"), "request", code(502), syscall.ECONNREFUSED},
		{"Proxy-Status, no route", status("502 Bad Gateway", "Proxy-Status: edge; error=destination_ip_unroutable\r\n"), "request", code(502), syscall.ENETUNREACH},
		{"Proxy-Status, prohibited", status("502 Bad Gateway", "Proxy-Status: edge; error=destination_ip_prohibited\r\n"), "request", code(502), syscall.EACCES},
		{"a page instead", status("302 Found", "Location: http://login.test/\r\n"), "request", code(302), 0},
		{"refused, byte by byte", say(hangUp, bytewise("HTTP/1.1 403 Forbidden\r\n\r\n")), "request", code(403), syscall.EACCES},
		{"refused, and no end", say(wait, one("HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n")), "request", code(403), syscall.EACCES},
		{"a SOCKS server", say(wait, one("\x05\xff")), "negotiate", httpconnect.ErrProtocol, 0},
		{"a head without end", say(wait, one("HTTP/1.1 200 OK\r\n"+strings.Repeat("X: y\r\n", 4000))), "negotiate", httpconnect.ErrProtocol, 0},
		{"hangs up", say(hangUp, one("")), "request", io.EOF, 0},
		{"hangs up in the head", say(hangUp, one("HTTP/1.1 200 OK\r\n")), "request", io.ErrUnexpectedEOF, 0},
		{"resets", say(reset, one("HTTP/1.1 200 OK\r\n")), "request", syscall.ECONNRESET, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ended := make(chan struct{})
			conn, err := scriptedHTTP(t, outbound.HTTPOptions{Request: never}, func(c *net.TCPConn) {
				tt.script(c)
				close(ended)
			}).DialTCP(t.Context(), where)
			if conn != nil {
				t.Fatal("DialTCP succeeded")
			}
			select {
			case <-ended: // a script that waits does so until we close
			case <-time.After(soonEnough):
				t.Error("the connection is still open")
			}
			want, _ := tt.err.(error)
			var status *httpconnect.StatusError
			if s, ok := tt.err.(*httpconnect.StatusError); ok {
				if !errors.As(err, &status) || status.Code != s.Code {
					t.Fatalf("got %v, want status %d", err, s.Code)
				}
				want = status
			}
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: tt.op, Err: want})
			errno := tt.errno
			if errno == 0 {
				errno = syscall.EHOSTUNREACH
			}
			if got := outbound.Errno(err); got != errno {
				t.Errorf("Errno of %q is %v, want %v", err, got, errno)
			}
		})
	}
}

// A connection is the plain socket, unless payload has come with the reply; then
// that comes first, and nothing else is different.
func TestHTTPPayloadBehindTheReply(t *testing.T) {
	const payload = "220 welcome\r\n"
	for _, tt := range []struct {
		name   string
		answer []string
		script func(*net.TCPConn)
		plain  bool
	}{
		{"none", one(connected), wait, true},
		{"in one segment", one(connected + payload), hangUp, false},
		{"in single bytes", bytewise(connected + payload), hangUp, false},
		{"with a length that means nothing", one("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n" + payload), hangUp, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := must(scriptedHTTP(t, outbound.HTTPOptions{}, say(tt.script, tt.answer)).DialTCP(t.Context(), where))(t)
			defer conn.Close()
			if _, ok := conn.(*net.TCPConn); tt.plain {
				if !ok {
					t.Errorf("the connection is a %T, want a *net.TCPConn", conn)
				}
				return
			}
			if b, err := io.ReadAll(conn); err != nil || string(b) != payload {
				t.Errorf("got %q, %v, want %q", b, err, payload)
			}
		})
	}

	ended := make(chan error, 1)
	conn := must(scriptedHTTP(t, outbound.HTTPOptions{}, say(func(c *net.TCPConn) {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}, one(connected+payload))).DialTCP(t.Context(), where))(t)
	relay.Reset(conn)
	select {
	case err := <-ended:
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("after a reset the server saw %v, want ECONNRESET", err)
		}
	case <-time.After(soonEnough):
		t.Error("the server saw nothing of the reset")
	}
}

// One segment, with a name where there is one, and credentials from the first on.
func TestHTTPWhatIsAsked(t *testing.T) {
	for _, tt := range []struct {
		target flow.Target
		user   string
		want   string
	}{
		{flow.Target{Name: "target.test", Addr: where.Addr, Port: 80}, "", "CONNECT target.test:80 HTTP/1.1\r\nHost: target.test:80\r\n\r\n"},
		{where, "", "CONNECT 192.0.2.80:80 HTTP/1.1\r\nHost: 192.0.2.80:80\r\n\r\n"},
		{flow.Target{Name: "::ffff:192.0.2.80", Port: 80}, "", "CONNECT 192.0.2.80:80 HTTP/1.1\r\nHost: 192.0.2.80:80\r\n\r\n"},
		{where, "ann", "CONNECT 192.0.2.80:80 HTTP/1.1\r\nHost: 192.0.2.80:80\r\nProxy-Authorization: Basic YW5uOm5uYQ==\r\n\r\n"},
	} {
		got := make(chan string, 1)
		o := outbound.HTTPOptions{User: tt.user, Password: password(tt.user)}
		conn := must(scriptedHTTP(t, o, func(c *net.TCPConn) {
			buf := make([]byte, 1024)
			n, _ := c.Read(buf)
			got <- string(buf[:n])
			io.WriteString(c, connected)
		}).DialTCP(t.Context(), tt.target))(t)
		conn.Close()
		if got := <-got; got != tt.want {
			t.Errorf("%v: asked %q, want %q", tt.target, got, tt.want)
		}
	}
}

// What a proxy must not be asked for costs no connection.
func TestHTTPDoesNotAsk(t *testing.T) {
	server := outboundtest.Serve(t, loopback, func(*net.TCPConn) { t.Error("the proxy was connected to") })
	h := newHTTP(t, outbound.HTTPOptions{
		Name: "h", Server: flow.AddrTarget(server), Via: newDirect(t, nil),
		Deny: func(a netip.Addr) bool { return a == where.Addr },
	})
	for _, tt := range []struct {
		target flow.Target
		want   error
	}{
		{where, outbound.ErrDenied},
		{flow.Target{Name: "192.0.2.80", Port: 80}, outbound.ErrDenied},
		{flow.Target{Name: "a\r\nX: y", Port: 80}, httpconnect.ErrHost},
		{flow.Target{Port: 80}, httpconnect.ErrHost},
	} {
		if conn, err := h.DialTCP(t.Context(), tt.target); conn != nil || !errors.Is(err, tt.want) {
			t.Errorf("%v: got %v, %v, want %v", tt.target, conn, err, tt.want)
		}
	}
	if _, err := outbound.NewHTTP(outbound.HTTPOptions{Name: "h", Server: where, Via: newDirect(t, nil), User: "sec:ret"}); !errors.Is(err, httpconnect.ErrCredentials) {
		t.Errorf("NewHTTP with a colon in the user: %v", err)
	}
}

func TestHTTPSilenceAndCancel(t *testing.T) {
	_, err := scriptedHTTP(t, outbound.HTTPOptions{Request: 50 * time.Millisecond}, wait).DialTCP(t.Context(), where)
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "request", Err: os.ErrDeadlineExceeded})

	ctx, cancel := context.WithCancelCause(t.Context())
	_, err = scriptedHTTP(t, outbound.HTTPOptions{Request: never}, func(c *net.TCPConn) {
		c.Read(make([]byte, 1))
		cancel(errors.New("the client left"))
		wait(c)
	}).DialTCP(ctx, where)
	checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: "request", Err: context.Cause(ctx)})
}

// A refusal of a proxy in the middle is about the way, whatever it says.
func TestHTTPInAChain(t *testing.T) {
	refuses := scriptedHTTP(t, outbound.HTTPOptions{}, say(hangUp, one("HTTP/1.1 503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\n\r\n")))
	d := newSocks(t, link{scheme: "socks5h"}.options("b", where, refuses, nil))
	_, err := d.DialTCP(t.Context(), where)
	var hop *outbound.HopError
	if !errors.As(err, &hop) || hop.Hop != 2 || hop.Op != "connect" || outbound.Errno(err) != syscall.EHOSTUNREACH {
		t.Errorf("got %v (%v), want hop 2, connect and EHOSTUNREACH", err, outbound.Errno(err))
	}
	if _, err := d.OpenUDP(t.Context()); !errors.Is(err, outbound.ErrNoUDP) {
		t.Errorf("OpenUDP: %v, want ErrNoUDP", err)
	} else {
		checkHop(t, err, outbound.HopError{Hop: 1, Hops: 2, Upstream: "liar", Op: "request", Err: outbound.ErrNoUDP})
	}
}
