package outbound_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// never is a limit that no test reaches: what ends before it ended for another
// reason.
const never = time.Hour

// soonEnough is what anything that should happen at once may take on a machine
// that is busy.
const soonEnough = 10 * time.Second

// hangUp is the end of a script that closes the connection, wait of one that
// keeps it open and silent until the client closes it, reset of one that sends
// an RST.
var (
	hangUp = func(*net.TCPConn) {}
	wait   = func(c *net.TCPConn) { io.Copy(io.Discard, c) }
	reset  = func(c *net.TCPConn) { c.SetLinger(0) }
)

// say is what a scripted server does: for each message that it gets in one
// segment it sends an answer, and then comes the end. An answer of several
// parts is sent in as many segments.
func say(end func(*net.TCPConn), answers ...[]string) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		buf := make([]byte, 1024) // microsocks: a single recv(1024) for each state
		for _, a := range answers {
			if _, err := c.Read(buf); err != nil {
				return
			}
			for _, part := range a {
				io.WriteString(c, part)
			}
		}
		end(c)
	}
}

// bytewise splits text into single bytes.
func bytewise(text string) []string { return strings.Split(text, "") }

func one(text string) []string { return []string{text} }

const (
	takesNone = "\x05\x00"
	takesUser = "\x05\x02"
	userOK    = "\x01\x00"
	granted   = "\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
	granted4  = "\x00\x5a\x00\x00\x00\x00\x00\x00"
)

// scripted returns the outbound through a server that follows a script.
func scripted(t *testing.T, o outbound.SocksOptions, script func(*net.TCPConn)) *outbound.Socks {
	t.Helper()
	o.Name = "liar"
	o.Server = flow.AddrTarget(outboundtest.Serve(t, loopback, script))
	o.Via = newDirect(t, nil)
	return newSocks(t, o)
}

var (
	v5     = outbound.SocksOptions{Version: socks.Version5}
	v5user = outbound.SocksOptions{Version: socks.Version5, User: "ann", Password: "secret"}
	v4     = outbound.SocksOptions{Version: socks.Version4}
	piped  = func(o outbound.SocksOptions) outbound.SocksOptions { o.Pipeline = true; return o }
	where  = flow.Target{Addr: netip.MustParseAddr("192.0.2.80"), Port: 80}
)

// Servers that lie, break off or answer in odd ways: the step that fails, the
// error and what the client is told.
func TestSocksBadServers(t *testing.T) {
	name255 := strings.Repeat("a", 255)
	reply := func(code byte) string { return "\x05" + string([]byte{code}) + "\x00\x01\x00\x00\x00\x00\x00\x00" }
	tests := []struct {
		name   string
		opts   outbound.SocksOptions
		script func(*net.TCPConn)
		op     string
		err    error
		errno  syscall.Errno
	}{
		{"an HTTP server", v5, say(hangUp, one("HTTP/1.1 501 Tor is not an HTTP Proxy\r\n")), "negotiate", socks.ErrProtocol, 0},
		{"a SOCKS4 server", v5, say(hangUp, one("\x00\x5b\x00\x00\x00\x00\x00\x00")), "negotiate", socks.ErrProtocol, 0},
		{"a method not offered", v5, say(wait, one(takesUser)), "negotiate", socks.ErrProtocol, 0},
		{"none, not offered", v5user, say(wait, one(takesNone)), "negotiate", socks.ErrProtocol, 0},
		{"no method", v5, say(wait, one("\x05\xff")), "authenticate", socks.ErrNoMethod, 0},
		{"wrong password", v5user, say(hangUp, one(takesUser), one("\x01\x01")), "authenticate", socks.ErrAuth, 0},
		{"wrong password, odd status", v5user, say(wait, one(takesUser), one("\x01\x02")), "authenticate", socks.ErrAuth, 0},
		{"wrong password, status of version 5", v5user, say(hangUp, one(takesUser), one("\x05\x01")), "authenticate", socks.ErrAuth, 0},
		{"status of version 4", v5user, say(wait, one(takesUser), one("\x04\x00")), "negotiate", socks.ErrProtocol, 0},
		{"hangs up instead of a status", v5user, say(hangUp, one(takesUser), one("")), "authenticate", io.EOF, 0},
		{"reply of version 4", v5, say(wait, one(takesNone), one("\x04\x00\x00\x01")), "negotiate", socks.ErrProtocol, 0},
		{"success with an unknown address type", v5, say(wait, one(takesNone), one("\x05\x00\x00\x09")), "negotiate", socks.ErrProtocol, 0},

		{"general failure", v5, say(hangUp, one(takesNone), one(reply(1))), "request", socks.ReplyGeneral, 0},
		{"ruleset", v5, say(hangUp, one(takesNone), one(reply(2))), "request", socks.ReplyRuleset, syscall.EACCES},
		{"net unreachable", v5, say(hangUp, one(takesNone), one(reply(3))), "request", socks.ReplyNetUnreachable, syscall.ENETUNREACH},
		{"host unreachable", v5, say(hangUp, one(takesNone), one(reply(4))), "request", socks.ReplyHostUnreachable, 0},
		{"refused", v5, say(hangUp, one(takesNone), one(reply(5))), "request", socks.ReplyRefused, syscall.ECONNREFUSED},
		{"TTL", v5, say(hangUp, one(takesNone), one(reply(6))), "request", socks.ReplyTTL, 0},
		{"command", v5, say(hangUp, one(takesNone), one(reply(7))), "request", socks.ReplyCommand, 0},
		{"address type", v5, say(hangUp, one(takesNone), one(reply(8))), "request", socks.ReplyAddressType, syscall.ENETUNREACH},
		{"a code of nobody", v5, say(hangUp, one(takesNone), one(reply(99))), "request", socks.ReplyError(99), 0},
		{"refused, with the name of the request", v5, say(hangUp, one(takesNone), one("\x05\x05\x00\x03\xff"+name255+"\x00\x50")), "request", socks.ReplyRefused, syscall.ECONNREFUSED},
		{"refused, byte by byte", v5, say(hangUp, bytewise(takesNone), bytewise(reply(5))), "request", socks.ReplyRefused, syscall.ECONNREFUSED},
		{"refused in 4 bytes", v5, say(hangUp, one(takesNone), one("\x05\x05\x00\x01")), "request", socks.ReplyRefused, syscall.ECONNREFUSED},
		{"refused in 2 bytes, and no end", v5, say(wait, one(takesNone), one("\x05\x05")), "request", socks.ReplyRefused, syscall.ECONNREFUSED},

		{"SOCKS4 refusal", v4, say(hangUp, one("\x00\x5b\x00\x00\x00\x00\x00\x00")), "request", socks.Reply4Rejected, 0},
		{"SOCKS4 refusal, byte by byte", v4, say(hangUp, bytewise("\x00\x5c\x00\x00\x00\x00\x00\x00")), "request", socks.Reply4NoIdent, 0},
		{"SOCKS4 user refused", v4, say(wait, one("\x00\x5d")), "request", socks.Reply4UserMismatch, 0},
		{"SOCKS4 of a SOCKS5 server", v4, say(hangUp, one("\x05\xff")), "negotiate", socks.ErrProtocol, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Negotiate, tt.opts.Request = never, never
			ended := make(chan struct{})
			conn, err := scripted(t, tt.opts, func(c *net.TCPConn) {
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
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: tt.op, Err: tt.err})
			want := tt.errno
			if want == 0 {
				want = syscall.EHOSTUNREACH
			}
			if got := outbound.Errno(err); got != want {
				t.Errorf("Errno of %q is %v, want %v", err, got, want)
			}
		})
	}
}

// checkHop checks that err is a HopError like want, whose Err is or wraps that
// of want.
func checkHop(t *testing.T, err error, want outbound.HopError) {
	t.Helper()
	var hop *outbound.HopError
	if !errors.As(err, &hop) {
		t.Fatalf("error %v, want a HopError", err)
	}
	got := *hop
	got.Err = want.Err
	if got != want || !errors.Is(hop.Err, want.Err) {
		t.Errorf("error %q, want %q", hop, &want)
	}
}

// Success in every form that a reply has, and the payload that comes with it.
func TestSocksPayloadBehindTheReply(t *testing.T) {
	long := "\x05\x00\x00\x03\xff" + strings.Repeat("a", 255) + "\x00\x50"
	const payload = "220 welcome\r\n"
	tests := []struct {
		name   string
		opts   outbound.SocksOptions
		script func(*net.TCPConn)
	}{
		{"in one segment", v5, say(hangUp, one(takesNone), one(granted+payload))},
		{"a reply with an IPv6 address", v5, say(hangUp, one(takesNone), one("\x05\x00\x00\x04"+strings.Repeat("\x00", 18)+payload))},
		{"a reply of 262 bytes", v5, say(hangUp, one(takesNone), one(long+payload))},
		{"a reply of 262 single bytes", v5, say(hangUp, bytewise(takesNone), bytewise(long+payload))},
		{"with a user", v5user, say(hangUp, one(takesUser), one(userOK), one(granted+payload))},
		{"with a status of version 5", v5user, say(hangUp, one(takesUser), one("\x05\x00"), one(granted+payload))},
		{"pipelined", piped(v5), say(hangUp, one(takesNone+granted+payload))},
		{"pipelined with a user", piped(v5user), say(hangUp, one(takesUser+userOK+granted+payload))},
		{"pipelined, in single bytes", piped(v5user), say(hangUp, bytewise(takesUser+userOK+granted+payload))},
		{"all in single bytes", v5user, say(hangUp, bytewise(takesUser), bytewise(userOK), bytewise(granted+payload))},
		{"SOCKS4", v4, say(hangUp, one(granted4+payload))},
		{"SOCKS4 in single bytes", v4, say(hangUp, bytewise(granted4+payload))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn := must(scripted(t, tt.opts, tt.script).DialTCP(t.Context(), where))(t)
			defer conn.Close()
			if b, err := io.ReadAll(conn); err != nil || string(b) != payload {
				t.Errorf("got %q, %v, want %q", b, err, payload)
			}
		})
	}
}

// A server may end the connection anywhere, with FIN or RST.
func TestSocksServerBreaksOff(t *testing.T) {
	tests := []struct {
		name    string
		opts    outbound.SocksOptions
		answers []string
		ops     []string // of the answers
	}{
		{"SOCKS5", v5, []string{takesNone, granted}, []string{"negotiate", "request"}},
		{"SOCKS5 with a user", v5user, []string{takesUser, userOK, granted}, []string{"negotiate", "authenticate", "request"}},
		{"SOCKS4", v4, []string{granted4}, []string{"request"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for i, answer := range tt.answers {
				for n := range answer {
					var script [][]string
					for _, whole := range tt.answers[:i] {
						script = append(script, one(whole))
					}
					script = append(script, one(answer[:n]))
					for end, f := range map[string]func(*net.TCPConn){"FIN": hangUp, "RST": reset} {
						_, err := scripted(t, tt.opts, say(f, script...)).DialTCP(t.Context(), where)
						var hop *outbound.HopError
						if !errors.As(err, &hop) || hop.Op != tt.ops[i] {
							t.Errorf("%s after %d bytes of answer %d: error %v, want one of %s", end, n, i, err, tt.ops[i])
						}
						if end == "FIN" && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
							t.Errorf("FIN after %d bytes of answer %d: error %v, want an EOF", n, i, err)
						}
					}
				}
			}
		})
	}
}

// What a server does after its reply is no affair of the dial.
func TestSocksSuccessThenReset(t *testing.T) {
	conn := must(scripted(t, v5, say(reset, one(takesNone), one(granted))).DialTCP(t.Context(), where))(t)
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Read: %d, %v, want ECONNRESET", n, err)
	}
}

// A server that says success before it knows: what ends without a byte has broken,
// unless it was we who ended it first; what has said something has ended.
func TestSocksEarlyReply(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply string
		early bool
		ended bool // by us, before
		want  error
	}{
		{"nothing came", granted, true, false, syscall.ECONNRESET},
		{"something came", granted + "x", true, false, nil},
		{"we ended it", granted, true, true, nil},
		{"from a server that knows", granted, false, false, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := v5
			o.EarlyReply = tt.early
			s := scripted(t, o, say(func(c *net.TCPConn) {
				if tt.ended {
					wait(c)
				}
			}, one(takesNone), one(tt.reply)))
			conn := must(s.DialTCP(t.Context(), where))(t)
			defer conn.Close()
			if tt.ended {
				conn.CloseWrite()
			}
			if _, err := io.ReadAll(conn); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if _, plain := conn.(*net.TCPConn); plain == tt.early {
				t.Errorf("the connection is a %T", conn)
			}
		})
	}
}

// Each message leaves in one segment, and the next not before the answer; with
// credentials nothing but user and password is offered.
func TestSocksMessages(t *testing.T) {
	ip := flow.Target{Addr: netip.MustParseAddr("192.0.2.80"), Port: 80}
	name := flow.Target{Name: "example.org", Port: 443}
	remote := func(o outbound.SocksOptions) outbound.SocksOptions { o.RemoteNames = true; return o }
	with := func(user, password string) outbound.SocksOptions {
		o := v5
		o.User, o.Password = user, password
		return o
	}
	longest := strings.Repeat("u", 255)
	fred := v4
	fred.User = "fred"
	tests := []struct {
		name    string
		opts    outbound.SocksOptions
		target  flow.Target
		answers []string
		want    []string
	}{
		{"SOCKS5", v5, ip, []string{takesNone, granted},
			[]string{"\x05\x01\x00", "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 with a user", v5user, ip, []string{takesUser, userOK, granted},
			[]string{"\x05\x01\x02", "\x01\x03ann\x06secret", "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 with an empty password", with("ann", ""), ip, []string{takesUser, userOK, granted},
			[]string{"\x05\x01\x02", "\x01\x03ann\x00", "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 with an empty user", with("", "secret"), ip, []string{takesUser, userOK, granted},
			[]string{"\x05\x01\x02", "\x01\x00\x06secret", "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 with the longest", with(longest, longest), ip, []string{takesUser, userOK, granted},
			[]string{"\x05\x01\x02", "\x01\xff" + longest + "\xff" + longest, "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 pipelined", piped(v5), ip, []string{takesNone + granted},
			[]string{"\x05\x01\x00" + "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 pipelined with a user", piped(v5user), ip, []string{takesUser + userOK + granted},
			[]string{"\x05\x01\x02" + "\x01\x03ann\x06secret" + "\x05\x01\x00\x01\xc0\x00\x02\x50\x00\x50"}},
		{"SOCKS5 with a name", remote(v5), name, []string{takesNone, granted},
			[]string{"\x05\x01\x00", "\x05\x01\x00\x03\x0bexample.org\x01\xbb"}},
		{"SOCKS4", v4, ip, []string{granted4},
			[]string{"\x04\x01\x00\x50\xc0\x00\x02\x50\x00"}},
		{"SOCKS4 with a user", fred, ip, []string{granted4},
			[]string{"\x04\x01\x00\x50\xc0\x00\x02\x50fred\x00"}},
		{"SOCKS4a with a name", remote(fred), name, []string{granted4},
			[]string{"\x04\x01\x01\xbb\x00\x00\x00\x01fred\x00example.org\x00"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := make(chan string, len(tt.answers)+1)
			s := scripted(t, tt.opts, func(c *net.TCPConn) {
				buf := make([]byte, 1024)
				for _, a := range tt.answers {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					got <- string(buf[:n])
					io.WriteString(c, a)
				}
				b, _ := io.ReadAll(c)
				got <- string(b)
			})
			conn := must(s.DialTCP(t.Context(), tt.target))(t)
			io.WriteString(conn, "payload")
			conn.Close()
			for i, want := range append(tt.want, "payload") {
				if g := <-got; g != want {
					t.Errorf("message %d is %q, want %q", i, g, want)
				}
			}
		})
	}
}

// Every step has its own limit, and silence in it ends then.
func TestSocksSilence(t *testing.T) {
	const soon = 2 * time.Second // what is no silence takes less on any machine
	tests := []struct {
		name               string
		opts               outbound.SocksOptions
		script             func(*net.TCPConn)
		negotiate, request time.Duration
		op                 string
	}{
		{"after the greeting", v5, wait, soon, never, "negotiate"},
		{"after half an answer", v5, say(wait, one("\x05")), soon, never, "negotiate"},
		{"after user and password", v5user, say(wait, one(takesUser)), soon, never, "authenticate"},
		{"after the request", v5, say(wait, one(takesNone)), never, soon, "request"},
		{"after half a reply", v5, say(wait, one(takesNone), one(granted[:7])), never, soon, "request"},
		{"after the request of SOCKS4", v4, wait, never, soon, "request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.opts.Negotiate, tt.opts.Request = tt.negotiate, tt.request
			s := scripted(t, tt.opts, tt.script)
			start := time.Now()
			_, err := s.DialTCP(t.Context(), where)
			if took := time.Since(start); took < soon || took > never/2 {
				t.Errorf("took %v, want %v", took, soon)
			}
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: tt.op, Err: os.ErrDeadlineExceeded})
			if !strings.Contains(err.Error(), "no answer within 2s") {
				t.Errorf("error %q does not say the limit", err)
			}
		})
	}

	t.Run("of the machine", func(t *testing.T) {
		t.Parallel()
		full, _ := outboundtest.FullPort(t)
		s := newSocks(t, outbound.SocksOptions{
			Name: "mute", Version: socks.Version5, Server: flow.AddrTarget(full), Via: newDirect(t, nil),
			Connect: soon, Negotiate: never, Request: never,
		})
		_, err := s.DialTCP(t.Context(), where)
		var hop *outbound.HopError
		if !errors.As(err, &hop) || hop.Op != "connect" || outbound.Errno(err) != syscall.EHOSTUNREACH {
			t.Errorf("error %v, want a connect that timed out", err)
		}
	})

	// A limit that is over does not cut the flow.
	t.Run("after success", func(t *testing.T) {
		t.Parallel()
		o := v5
		o.Negotiate, o.Request = soon, soon
		release := make(chan struct{})
		s := scripted(t, o, say(func(c *net.TCPConn) { <-release; io.WriteString(c, "late") }, one(takesNone), one(granted)))
		conn := must(s.DialTCP(t.Context(), where))(t)
		defer conn.Close()
		time.AfterFunc(soon+soon/2, func() { close(release) })
		if b, err := io.ReadAll(conn); err != nil || string(b) != "late" {
			t.Errorf("got %q, %v, want the late bytes", b, err)
		}
	})
}

// The end of the context closes the connection at once, in every step.
func TestSocksCancelInEveryStep(t *testing.T) {
	tests := []struct {
		name    string
		opts    outbound.SocksOptions
		answers []string
		op      string
	}{
		{"greeting", v5, nil, "negotiate"},
		{"user and password", v5user, []string{takesUser}, "authenticate"},
		{"request", v5user, []string{takesUser, userOK}, "request"},
		{"SOCKS4 request", v4, nil, "request"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.opts.Negotiate, tt.opts.Request = 2*soonEnough, 2*soonEnough
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			gone := errors.New("the client is gone")
			closed := make(chan error, 1)
			s := scripted(t, tt.opts, func(c *net.TCPConn) {
				buf := make([]byte, 1024)
				for _, a := range tt.answers {
					c.Read(buf)
					io.WriteString(c, a)
				}
				c.Read(buf) // the message of the step has come
				cancel(gone)
				n, err := c.Read(buf)
				closed <- fmt.Errorf("%d bytes and %w", n, err)
			})
			start := time.Now()
			_, err := s.DialTCP(ctx, where)
			if took := time.Since(start); took > soonEnough {
				t.Errorf("took %v", took)
			}
			checkHop(t, err, outbound.HopError{Hop: 1, Hops: 1, Upstream: "liar", Op: tt.op, Err: gone})
			if err := <-closed; !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the server read %v, want the end of the connection", err)
			}
		})
	}
}

// What servers are asked for: names as names only where they are to be resolved
// there, addresses never as names, the names of servers by the hop before.
func TestSocksWhatIsAsked(t *testing.T) {
	addr := netip.MustParseAddr("127.0.0.1")
	tests := []struct {
		name   string
		links  []link
		target func(port uint16) flow.Target
		want   socks.Addr // without the port
	}{
		{"socks5 resolves here", []link{{"socks5", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "localhost", Port: p} }, socks.Addr{IP: addr}},
		{"socks5h sends the name", []link{{"socks5h", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "localhost", Port: p} }, socks.Addr{Name: "localhost"}},
		{"socks4 resolves here", []link{{"socks4", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "localhost", Port: p} }, socks.Addr{IP: addr}},
		{"socks4a sends the name", []link{{"socks4a", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "localhost", Port: p} }, socks.Addr{Name: "localhost"}},
		{"a name with an address, socks5", []link{{"socks5", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "other", Addr: addr, Port: p} }, socks.Addr{IP: addr}},
		{"a name with an address, socks5h", []link{{"socks5h", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "localhost", Addr: where.Addr, Port: p} }, socks.Addr{Name: "localhost"}},
		{"a literal, socks5h", []link{{"socks5h", ""}}, func(p uint16) flow.Target { return flow.Target{Addr: addr, Port: p} }, socks.Addr{IP: addr}},
		{"a literal that calls itself a name", []link{{"socks5h", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "127.0.0.1", Port: p} }, socks.Addr{IP: addr}},
		{"a literal that calls itself a name, socks4a", []link{{"socks4a", ""}}, func(p uint16) flow.Target { return flow.Target{Name: "::ffff:127.0.0.1", Port: p} }, socks.Addr{IP: addr}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			port := outboundtest.Serve(t, loopback, tellPeer).Port()
			names := outboundtest.Names{"localhost": {addr}}
			server := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names})
			s := newSocks(t, tt.links[0].options("s", server.Target(), newDirect(t, nil), names))
			conn := must(s.DialTCP(t.Context(), tt.target(port)))(t)
			conn.Close()
			tt.want.Port = port
			if got := server.Requests(); len(got) != 1 || got[0].Addr != tt.want {
				t.Errorf("the server was asked for %v, want %v", got, tt.want)
			}
		})
	}

	t.Run("chain", func(t *testing.T) {
		port := outboundtest.Serve(t, loopback, tellPeer).Port()
		// Each hop knows the next one's name only, the last the target's.
		last := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: outboundtest.Names{"target.test": {addr}}})
		middle := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: outboundtest.Names{"last.test": {addr}}})
		first := outboundtest.StartServer(t, outboundtest.ServerOptions{})
		a := newSocks(t, outbound.SocksOptions{
			Name: "a", Version: socks.Version5, Server: flow.Target{Name: "first.test", Port: first.Target().Port},
			Via:      newDirect(t, outboundtest.Names{"first.test": {addr}}),
			Resolver: outboundtest.Names{"middle.test": {addr}},
		})
		b := newSocks(t, outbound.SocksOptions{
			Name: "b", Version: socks.Version4, RemoteNames: true, Via: a,
			Server: flow.Target{Name: "middle.test", Port: middle.Target().Port},
		})
		c := newSocks(t, outbound.SocksOptions{
			Name: "c", Version: socks.Version5, RemoteNames: true, Via: b,
			Server: flow.Target{Name: "last.test", Port: last.Target().Port},
		})
		if got, want := c.Hops(), []string{"a", "b", "c"}; !slices.Equal(got, want) {
			t.Errorf("Hops: %v, want %v", got, want)
		}
		conn := must(c.DialTCP(t.Context(), flow.Target{Name: "target.test", Port: port}))(t)
		conn.Close()
		for _, tt := range []struct {
			server *outboundtest.Server
			want   socks.Addr
		}{
			{first, socks.Addr{IP: addr, Port: middle.Target().Port}},
			{middle, socks.Addr{Name: "last.test", Port: last.Target().Port}},
			{last, socks.Addr{Name: "target.test", Port: port}},
		} {
			if got := tt.server.Requests(); len(got) != 1 || got[0].Addr != tt.want {
				t.Errorf("a server was asked for %v, want %v", got, tt.want)
			}
		}
	})
}

// Of a name that is resolved here, the next address is asked for as long as the
// answer is about the address.
func TestSocksTriesTheNextAddress(t *testing.T) {
	var addrs []netip.Addr
	for i := range 10 {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
	}
	code := func(c socks.ReplyError) string { return string(socks.AppendReply(nil, c, netip.AddrPort{})) }
	tests := []struct {
		name    string
		replies []string // "" hangs up
		asked   int
		want    error // nil: success
	}{
		{"success", []string{granted}, 1, nil},
		{"refused, success", []string{code(socks.ReplyRefused), granted}, 2, nil},
		{"unreachable, unreachable, success", []string{code(socks.ReplyNetUnreachable), code(socks.ReplyHostUnreachable), granted}, 3, nil},
		{"family, general, TTL, success", []string{code(socks.ReplyAddressType), code(socks.ReplyGeneral), code(socks.ReplyTTL), granted}, 4, nil},
		{"hung up, success", []string{"", granted}, 2, nil},
		{"ruleset", []string{code(socks.ReplyRuleset), granted}, 1, socks.ReplyRuleset},
		{"command", []string{code(socks.ReplyCommand), granted}, 1, socks.ReplyCommand},
		{"not SOCKS", []string{"HTTP/1.1", granted}, 1, socks.ErrProtocol},
		{"unreachable, refused, unreachable, ruleset", []string{code(socks.ReplyNetUnreachable), code(socks.ReplyRefused), code(socks.ReplyHostUnreachable), code(socks.ReplyRuleset)}, 4, socks.ReplyRefused},
		{"refused all along", slices.Repeat([]string{code(socks.ReplyRefused)}, 10), 6, socks.ReplyRefused},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := make(chan socks.Addr, len(addrs))
			next := make(chan string, len(tt.replies))
			for _, r := range tt.replies {
				next <- r
			}
			o := v5
			o.Resolver = outboundtest.Names{"name.test": addrs}
			s := scripted(t, o, func(c *net.TCPConn) {
				c.Read(make([]byte, 1024))
				io.WriteString(c, takesNone)
				req, err := socks.ReadRequest(c)
				if err == nil {
					asked <- req.Addr
					io.WriteString(c, <-next)
				}
			})
			conn, err := s.DialTCP(t.Context(), flow.Target{Name: "name.test", Port: 80})
			if conn != nil {
				conn.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("error %v, want %v", err, tt.want)
			}
			if len(asked) != tt.asked {
				t.Errorf("the server was asked %d times, want %d", len(asked), tt.asked)
			}
			for i := range len(asked) {
				if got, want := <-asked, (socks.Addr{IP: addrs[i], Port: 80}); got != want {
					t.Errorf("request %d was for %v, want %v", i, got, want)
				}
			}
		})
	}

	t.Run("SOCKS4", func(t *testing.T) {
		asked := make(chan socks.Addr, 3)
		next := make(chan socks.ReplyError4, 2)
		next <- socks.Reply4Rejected
		next <- socks.Reply4Granted
		o := v4
		o.Resolver = outboundtest.Names{"name.test": {netip.IPv6Loopback(), addrs[0], addrs[1]}}
		s := scripted(t, o, func(c *net.TCPConn) {
			socks.ReadVersion(c)
			req, _ := socks.ReadRequest4(c)
			asked <- req.Addr
			c.Write(socks.AppendReply4(nil, <-next, netip.AddrPort{}))
		})
		conn := must(s.DialTCP(t.Context(), flow.Target{Name: "name.test", Port: 80}))(t)
		conn.Close()
		got := []socks.Addr{<-asked, <-asked}
		if want := []socks.Addr{{IP: addrs[0], Port: 80}, {IP: addrs[1], Port: 80}}; !slices.Equal(got, want) {
			t.Errorf("the server was asked for %v, want %v: IPv4 only", got, want)
		}
	})

	t.Run("the context ends", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := v5
		o.Resolver = outboundtest.Names{"name.test": addrs}
		s := scripted(t, o, func(c *net.TCPConn) {
			c.Read(make([]byte, 1024))
			cancel()
			c.Read(make([]byte, 1024))
		})
		if _, err := s.DialTCP(ctx, flow.Target{Name: "name.test", Port: 80}); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
}

// An address that means nothing outside is in no request.
func TestSocksDeny(t *testing.T) {
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	fake := netip.MustParseAddr("198.18.0.7")
	for _, scheme := range []string{"socks4", "socks4a", "socks5", "socks5h"} {
		o := link{scheme: scheme}.options("s", server.Target(), newDirect(t, nil), outboundtest.Names{"name.test": {fake}})
		o.Deny = func(a netip.Addr) bool { return a == fake }
		s := newSocks(t, o)
		mapped := netip.AddrFrom16(fake.As16())
		targets := []flow.Target{{Addr: fake, Port: 80}, {Addr: mapped, Port: 80}, {Name: fake.String(), Port: 80}}
		if !o.RemoteNames {
			targets = append(targets, flow.Target{Name: "name.test", Port: 80})
		}
		for _, target := range targets {
			if conn, err := s.DialTCP(t.Context(), target); !errors.Is(err, outbound.ErrDenied) {
				t.Errorf("%s: DialTCP %v: %v, %v, want ErrDenied", scheme, target, conn, err)
			}
		}
	}
	if got := server.Requests(); len(got) != 0 {
		t.Errorf("the server was asked for %v", got)
	}
}

// What a server cannot be asked for costs no connection.
func TestSocksBadTargets(t *testing.T) {
	server := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	for _, name := range []string{"", "a\x00b", "a b", strings.Repeat("a", 256)} {
		for _, scheme := range []string{"socks4a", "socks5h"} {
			s := newSocks(t, link{scheme: scheme}.options("s", server.Target(), newDirect(t, nil), nil))
			if conn, err := s.DialTCP(t.Context(), flow.Target{Name: name, Port: 80}); err == nil {
				t.Errorf("%s: DialTCP to the name %q: %v", scheme, name, conn)
			}
		}
	}
	if got := server.Requests(); len(got) != 0 {
		t.Errorf("the server was asked for %v", got)
	}
}

func TestNewSocksRefuses(t *testing.T) {
	good := outbound.SocksOptions{
		Name: "p1", Version: socks.Version5, Via: newDirect(t, nil),
		Server: flow.Target{Name: "p1.test", Port: 1080}, User: "ann", Password: "secret",
	}
	if _, err := outbound.NewSocks(good); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("secret", 50)
	for name, change := range map[string]func(*outbound.SocksOptions){
		"no way":            func(o *outbound.SocksOptions) { o.Via = nil },
		"no version":        func(o *outbound.SocksOptions) { o.Version = 0 },
		"no server":         func(o *outbound.SocksOptions) { o.Server = flow.Target{Port: 1080} },
		"no port":           func(o *outbound.SocksOptions) { o.Server.Port = 0 },
		"SOCKS4 password":   func(o *outbound.SocksOptions) { o.Version = socks.Version4 },
		"a long user":       func(o *outbound.SocksOptions) { o.User = long },
		"a long password":   func(o *outbound.SocksOptions) { o.Password = long },
		"SOCKS4 pipelined":  func(o *outbound.SocksOptions) { o.Version, o.Password, o.Pipeline = socks.Version4, "", true },
		"a NUL in the user": func(o *outbound.SocksOptions) { o.Version, o.Password, o.User = socks.Version4, "", "secret\x00" },
	} {
		o := good
		change(&o)
		if _, err := outbound.NewSocks(o); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: error %v, want one without the credentials", name, err)
		}
	}
}

// Where in a chain of three each thing goes wrong.
func TestHopOfAnError(t *testing.T) {
	names := outboundtest.Names{"localhost": {loopback}}
	notSocks := flow.AddrTarget(outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		c.Read(make([]byte, 100))
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
	}))
	mute := flow.AddrTarget(outboundtest.Serve(t, loopback, say(wait, one(takesNone))))
	closed := flow.AddrTarget(outboundtest.ClosedPort(t, loopback))
	open := func(o outboundtest.ServerOptions) flow.Target {
		o.Resolver = names
		return outboundtest.StartServer(t, o).Target()
	}
	free := open(outboundtest.ServerOptions{})
	locked := open(outboundtest.ServerOptions{User: "ann", Password: "nna"})
	target := flow.AddrTarget(outboundtest.Serve(t, loopback, tellPeer))

	tests := []struct {
		name    string
		servers [3]flow.Target
		users   [3]string
		target  flow.Target
		want    outbound.HopError
		errno   syscall.Errno
	}{
		{"hop 1 is down", [3]flow.Target{closed, free, free}, [3]string{}, target,
			outbound.HopError{Hop: 1, Upstream: "a", Op: "connect", Err: syscall.ECONNREFUSED}, 0},
		{"hop 1 is not SOCKS", [3]flow.Target{notSocks, free, free}, [3]string{}, target,
			outbound.HopError{Hop: 1, Upstream: "a", Op: "negotiate", Err: socks.ErrProtocol}, 0},
		{"hop 1 wants a password", [3]flow.Target{locked, free, free}, [3]string{}, target,
			outbound.HopError{Hop: 1, Upstream: "a", Op: "authenticate", Err: socks.ErrNoMethod}, 0},
		{"hop 1 cannot reach hop 2", [3]flow.Target{free, closed, free}, [3]string{}, target,
			outbound.HopError{Hop: 2, Upstream: "b", Op: "connect", Err: socks.ReplyRefused}, 0},
		{"hop 1 does not say whether it reaches hop 2", [3]flow.Target{mute, free, free}, [3]string{}, target,
			outbound.HopError{Hop: 2, Upstream: "b", Op: "connect", Err: os.ErrDeadlineExceeded}, 0},
		{"hop 2 is not SOCKS", [3]flow.Target{free, notSocks, free}, [3]string{}, target,
			outbound.HopError{Hop: 2, Upstream: "b", Op: "negotiate", Err: socks.ErrProtocol}, 0},
		{"hop 2 has another password", [3]flow.Target{free, locked, free}, [3]string{"", "bob", ""}, target,
			outbound.HopError{Hop: 2, Upstream: "b", Op: "authenticate", Err: socks.ErrAuth}, 0},
		{"hop 2 cannot reach hop 3", [3]flow.Target{free, free, closed}, [3]string{}, target,
			outbound.HopError{Hop: 3, Upstream: "c", Op: "connect", Err: socks.ReplyRefused}, 0},
		{"hop 3 wants a password", [3]flow.Target{free, free, locked}, [3]string{}, target,
			outbound.HopError{Hop: 3, Upstream: "c", Op: "authenticate", Err: socks.ErrNoMethod}, 0},
		{"hop 3 is mute", [3]flow.Target{free, free, mute}, [3]string{}, target,
			outbound.HopError{Hop: 3, Upstream: "c", Op: "request", Err: os.ErrDeadlineExceeded}, 0},
		{"the target refuses", [3]flow.Target{free, locked, free}, [3]string{"", "ann", ""}, closed,
			outbound.HopError{Hop: 3, Upstream: "c", Op: "request", Err: socks.ReplyRefused}, syscall.ECONNREFUSED},
		{"the target's name is unknown", [3]flow.Target{free, free, free}, [3]string{}, flow.Target{Name: "nowhere.test", Port: 80},
			outbound.HopError{Hop: 3, Upstream: "c", Op: "request", Err: socks.ReplyHostUnreachable}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d outbound.Dialer = newDirect(t, nil)
			for i, server := range tt.servers {
				o := link{scheme: "socks5h", user: tt.users[i]}.options(string(rune('a'+i)), server, d, nil)
				o.Request = never
				if server == mute {
					o.Request = 200 * time.Millisecond
				}
				d = newSocks(t, o)
			}
			conn, err := d.DialTCP(t.Context(), tt.target)
			if conn != nil {
				t.Fatal("DialTCP succeeded")
			}
			tt.want.Hops = 3
			checkHop(t, err, tt.want)
			want := tt.errno
			if want == 0 {
				want = syscall.EHOSTUNREACH
			}
			if got := outbound.Errno(err); got != want {
				t.Errorf("Errno of %q is %v, want %v", err, got, want)
			}
		})
	}

	t.Run("SOCKS4 in the middle", func(t *testing.T) {
		a := newSocks(t, link{scheme: "socks4"}.options("a", notSocks, newDirect(t, nil), nil))
		b := newSocks(t, link{scheme: "socks5"}.options("b", free, a, nil))
		_, err := b.DialTCP(t.Context(), target)
		checkHop(t, err, outbound.HopError{Hop: 1, Hops: 2, Upstream: "a", Op: "negotiate", Err: socks.ErrProtocol})
		if got, want := err.Error(), "hop 1 of 2 (a): negotiate: not the SOCKS protocol: version 72 where 0 belongs"; got != want {
			t.Errorf("error %q, want %q", got, want)
		}
	})
}

// Many dials at once through one outbound to a server that answers late and in
// another order.
func TestSocksDialsDoNotMix(t *testing.T) {
	const n = 50
	all := make(chan struct{}) // closed when all requests are in
	in := make(chan struct{}, n)
	s := scripted(t, v5, func(c *net.TCPConn) {
		c.Read(make([]byte, 3))
		io.WriteString(c, takesNone)
		req, err := socks.ReadRequest(c)
		if err != nil {
			return
		}
		in <- struct{}{}
		<-all
		io.WriteString(c, granted+req.Addr.String())
	})
	done := make(chan error, n)
	for i := range n {
		go func() {
			target := flow.Target{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Port: uint16(i + 1)}
			conn, err := s.DialTCP(t.Context(), target)
			if err == nil {
				var b []byte
				b, err = io.ReadAll(conn)
				conn.Close()
				if err == nil && !bytes.Equal(b, []byte(target.String())) {
					err = fmt.Errorf("the flow to %v got the reply for %s", target, b)
				}
			}
			done <- err
		}()
	}
	for range n {
		<-in
	}
	close(all)
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
