package probe

import (
	"context"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"tunroute/router/flow"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// dialer returns a Dial to at.
func dialer(at string) func(context.Context) (outbound.Conn, error) {
	return func(ctx context.Context) (outbound.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", at)
		if err != nil {
			return nil, err
		}
		return c.(*net.TCPConn), nil
	}
}

// scripted is a server that does the same with each connection. The words of the script
// are "r", a read of what is there, "w" and bytes in hexadecimal, "hang", until the
// client has gone; behind the last word it closes the connection.
func scripted(t *testing.T, script string) string {
	return outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		for word := range strings.FieldsSeq(script) {
			switch {
			case word == "hang":
				io.Copy(io.Discard, c)
			case word == "r":
				if _, err := c.Read(make([]byte, 1024)); err != nil {
					return
				}
			default:
				b, err := hex.DecodeString(word[1:])
				if err != nil {
					panic(err)
				}
				c.Write(b)
			}
		}
	}).String()
}

// one runs one row against a server, to which we are at 127.0.0.1 if it reaches us.
func one(t *testing.T, id, at string, limit time.Duration, reached bool) Row {
	t.Helper()
	p := &prober{Options: Options{Dial: dialer(at), Limit: limit}, openTCP: openTCP, openUDP: openUDP,
		pause: time.Millisecond, server: loopback, self4: loopback}
	if reached {
		p.reached4 = loopback
	}
	for _, x := range rows {
		if x.id == id {
			return p.probe(t.Context(), x)
		}
	}
	t.Fatalf("no row %s", id)
	return Row{}
}

// What servers say, and the verdict. The servers of the first lines do what the RFC has
// in TestRunOfAServerInOrder; here are those that do not.
func TestVerdicts(t *testing.T) {
	const (
		longLimit = 30 * time.Second
		shortOne  = time.Second // where the answer is silence
		zeros     = "00000000000000"
		ok        = "r w0500 r w05000001000000000000"
	)
	for _, c := range []struct {
		id, script string
		limit      time.Duration
		answer     string
		verdict    Verdict
	}{
		{"method-none", "r", longLimit, closed, Odd},
		{"method-none", "hang", shortOne, silence, Bad},
		{"method-none", "r w0502", longLimit, "method 2", Bad},
		{"method-none", "r w05ff", longLimit, "no method", No},
		{"method-none", "r w485454502f312e31203430300d0a", longLimit, other, Odd},
		{"method-none", "r w05", longLimit, other, Odd},
		{"method-user", "r w0500", longLimit, "method 0", Bad},
		{"method-user", "r w0502", longLimit, "method 2", OK},
		{"method-both", "r w0502", longLimit, "method 2", OK},
		{"method-unknown", "r w05fd", longLimit, "method 253", Bad},
		{"method-unknown", "r", longLimit, closed, Odd},

		// A success behind which there is nobody.
		{"ipv4", ok, longLimit, success, Unknown},
		{"ipv4", "r w0500 r w05010001000000000000", longLimit, "reply 1", No},
		{"ipv4", "r w0500 r w05080001", longLimit, "reply 8", No},
		{"ipv4", "r", longLimit, closed, Unknown},
		{"name-literal", ok, longLimit, success, Bad},
		{"name-empty", ok, longLimit, success, Bad},
		{"name-empty", "r w0500 r", longLimit, closed, Odd},
		{"name-nul", ok, longLimit, success, Bad},
		{"name-unknown", "r w0500 r w05010001000000000000", longLimit, "reply 1", Odd},
		{"refused", ok, longLimit, success, Bad},
		{"refused", "r w0500 r w05010001000000000000", longLimit, "reply 1", Odd},
		{"refused", "r w0500 r w0505", longLimit, "reply 5", OK}, // two bytes of it are enough
		{"host-down", "r w0500 r hang", shortOne, silence, Unknown},
		{"no-route", "r w0500 r w0403", longLimit, other, Odd},
		{"port-0", ok, longLimit, success, Bad},
		{"bad-type", "r w0500 r w05070001000000000000", longLimit, "reply 7", Odd},
		{"bad-command", "r w0500 r w05080001000000000000", longLimit, "reply 8", Odd},
		{"rsv", "r w0500 r w05010001000000000000", longLimit, "reply 1", OK},
		{"rsv", "r w0500 r hang", shortOne, silence, Bad},
		{"bound", "r w0500 r w0500000302616200ff", longLimit, "address", OK},
		{"bound", "r w0500 r w05000009", longLimit, other, Unknown},
		{"bind", "r w0500 r w05070001000000000000", longLimit, "reply 7", No},
		{"bind", "r w0500 r w050000010102030400ff", longLimit, success, OK}, // not the server's address
		{"udp", "r w0500 r", longLimit, closed, No},
		{"udp", "r w0500 r hang", shortOne, silence, Bad},
		{"udp-address", "r w0500 r w05000001000000000035 hang", longLimit, "shared port", Odd},
		{"udp-address", "r w0500 r w050000010102030400ff hang", longLimit, "shared port", Odd},
		{"udp-address", "r w0500 r w05000001000000000000 hang", longLimit, "shared port", Bad},
		{"udp-echo", "r w0500 r w050000010102030400ff hang", longLimit, "", Unknown},
		{"split", "r w05ff", longLimit, "no method", Bad},
		{"pipeline", "r w0500 hang", shortOne, silence, Bad},
		{"pipeline", ok, shortOne, silence, Bad}, // it waits for a second message
		{"early-data", ok, longLimit, "lost", Bad},
		{"half-close", ok, longLimit, "lost", Bad},
		{"socks4", "r w005a" + zeros[:12], longLimit, "granted", Bad},
		{"socks4", "r w005b" + zeros[:12], longLimit, "reply 91", No},
		{"socks4", "r w05ff", longLimit, other, No},
		{"socks4", "r w0001", longLimit, other, No},
		{"http", "r w05ff", longLimit, "no method", OK},
		{"http", "hang", shortOne, silence, Odd},
	} {
		t.Run(c.id+" "+c.script, func(t *testing.T) {
			t.Parallel()
			got := one(t, c.id, scripted(t, c.script), c.limit, true)
			if got.Answer != c.answer || got.Verdict != c.verdict {
				t.Errorf("%q (%s), %s: %s; want %q, %s", got.Answer, got.Detail, got.Verdict, got.Note, c.answer, c.verdict)
			}
		})
	}
}

// Whether a server takes a message in parts, or several at once, can be seen of a refusal
// as well, if it does not reach us.
func TestRefusalsAreEnough(t *testing.T) {
	at := outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		io.ReadFull(c, make([]byte, 3))
		c.Write([]byte{5, 0})
		io.ReadFull(c, make([]byte, 10))
		c.Write([]byte{5, 1, 0, 1, 0, 0, 0, 0, 0, 0})
	}).String()
	for _, id := range []string{"split", "pipeline", "rsv"} {
		if got := one(t, id, at, 30*time.Second, false); got.Answer != "reply 1" || got.Verdict != OK {
			t.Errorf("%s: %q, %s: %s; want reply 1, ok", id, got.Answer, got.Verdict, got.Note)
		}
	}
	for _, id := range []string{"half-close", "early-data", "bound", "name-literal"} {
		if got := one(t, id, at, 30*time.Second, false); got.Verdict != Unknown || !strings.Contains(got.Note, "--target") {
			t.Errorf("%s: %s: %s; want unknown and the way out", id, got.Verdict, got.Note)
		}
	}
}

// options are those of a run against a server; nobody is asked outside of this machine.
func options(s *outboundtest.Server) Options {
	return Options{Dial: dialer(s.Target().String()), Down: loopback, Limit: 30 * time.Second}
}

// A server that does all as the RFC has it.
func TestRunOfAServerInOrder(t *testing.T) {
	names := outboundtest.Names{"127.0.0.1": {loopback}, "a.test": {loopback}, "a.test.": {loopback}}
	for _, login := range []string{"", "ann"} {
		t.Run("user "+login, func(t *testing.T) {
			s := outboundtest.StartServer(t, outboundtest.ServerOptions{Resolver: names, User: login, Password: login})
			o := options(s)
			o.User, o.Password = login, login
			o.Target = flow.Target{Name: "a.test", Port: outboundtest.Serve(t, loopback, func(c *net.TCPConn) { io.Copy(c, c) }).Port()}
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if len(r.Rows) != len(rows) {
				t.Errorf("%d rows, want %d", len(r.Rows), len(rows))
			}
			not := map[string]Verdict{
				"method-user": No,                // not offered
				"host-down":   Odd,               // it is up, and refuses
				"bad-type":    OK, "socks4a": OK, // a literal is a name that it knows
			}
			if login != "" {
				not["method-user"], not["method-none"] = OK, No
				not["socks4"] = OK
			}
			for _, row := range r.Rows {
				want, ok := not[row.ID]
				if !ok {
					want = OK
				}
				if row.Verdict != want && !(row.ID == "ipv6" && row.Verdict == Unknown) { // a machine without
					t.Errorf("%s: %q (%s), %s: %s; want %s", row.ID, row.Answer, row.Detail, row.Verdict, row.Note, want)
				}
			}
			if want := (Advice{Version: 5, Names: true, Pipeline: true, UDP: true}); r.Advice != want {
				t.Errorf("advice %+v, want %+v", r.Advice, want)
			}
		})
	}
}

// Why a server cannot be asked for more is told, and SOCKS4 does not suffer from it.
func TestWhyNot(t *testing.T) {
	for _, c := range []struct {
		name           string
		server         outboundtest.ServerOptions
		user, password string
		want           string
	}{
		{"no credentials", outboundtest.ServerOptions{User: "ann", Password: "secret"}, "", "", "the server wants a user and a password: give them in the URL"},
		{"wrong ones", outboundtest.ServerOptions{User: "ann", Password: "secret"}, "ann", "wrong", "user and password are refused"},
		{"not wanted", outboundtest.ServerOptions{}, "ann", "secret", "the server takes no user and password: leave them out"},
		{"HTTP", outboundtest.ServerOptions{HTTP: true}, "", "", "the server does not speak SOCKS5"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(outboundtest.StartServer(t, c.server))
			o.User, o.Password, o.Limit = c.user, c.password, 3*time.Second
			r, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Advice{}); c.password != "" && r.Advice != want {
				t.Errorf("advice %+v for wrong credentials", r.Advice)
			}
			if r.Refused != c.want || r.Row("pipeline").Note != c.want || r.Row("pipeline").Verdict != Unknown {
				t.Errorf("refused %q, a row says %q; want %q", r.Refused, r.Row("pipeline").Note, c.want)
			}
		})
	}
}

// A server that has SOCKS4 only, with a user ID.
func TestRunOfSOCKS4(t *testing.T) {
	at := outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
		req := make([]byte, 8)
		if _, err := io.ReadFull(c, req); err != nil || req[0] != 4 {
			return
		}
		user, err := io.ReadAll(io.LimitReader(c, 4))
		if err != nil || string(user) != "ann\x00" || req[4] != 127 {
			c.Write([]byte{0, 93, 0, 0, 0, 0, 0, 0})
			return
		}
		up, err := net.DialTCP("tcp", nil, &net.TCPAddr{IP: req[4:8], Port: int(req[2])<<8 | int(req[3])})
		if err != nil {
			return
		}
		defer up.Close()
		c.Write([]byte{0, 90, 0, 0, 0, 0, 0, 0})
		go func() {
			io.Copy(up, c)
			up.CloseWrite()
		}()
		io.Copy(c, up)
	}).String()
	r, err := Run(t.Context(), Options{Dial: dialer(at), User: "ann", Limit: 5 * time.Second, Down: loopback})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Advice{Version: 4}); r.Advice != want || r.Refused != noSocks5 {
		t.Errorf("advice %+v, %q, want %+v\n%+v", r.Advice, r.Refused, want, r.Rows)
	}
}

func TestRunEnds(t *testing.T) {
	at := scripted(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	dial := dialer(at)
	_, err := Run(ctx, Options{Limit: time.Hour, Dial: func(ctx context.Context) (outbound.Conn, error) {
		cancel() // when it has begun
		return dial(context.WithoutCancel(ctx))
	}})
	if err != context.Canceled {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	if _, err := Run(t.Context(), Options{Dial: dialer(outboundtest.ClosedPort(t, loopback).String())}); err == nil {
		t.Error("no error of a server that is not there")
	}
	if _, err := Run(t.Context(), Options{User: strings.Repeat("x", 256)}); err == nil {
		t.Error("no error of a user that is too long")
	}
}
