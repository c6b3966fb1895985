package inbound_test

import (
	"errors"
	"io"
	"net/netip"
	"testing"

	"tunroute/router/gssapi"
	"tunroute/router/gssapi/gssapitest"
	"tunroute/router/inbound"
)

// toyMethod takes alice's tickets.
func toyMethod(allow gssapi.Protections) inbound.GSSAPI {
	return inbound.GSSAPI{Allow: allow, Accept: func() gssapi.Context {
		_, s := gssapitest.Pair("alice@R", "us")
		return s
	}}
}

// TestGSSAPI: who has a ticket is let in under its name, and all that follows is
// protected as was agreed, what comes along with the last word too.
func TestGSSAPI(t *testing.T) {
	all := gssapi.Set(gssapi.None, gssapi.Integrity, gssapi.Confidentiality)
	for _, tt := range []struct {
		name      string
		want, got gssapi.Protection
		allow     gssapi.Protections
	}{
		{"none", gssapi.None, gssapi.None, all},
		{"integrity", gssapi.Integrity, gssapi.Integrity, all},
		{"confidentiality", gssapi.Confidentiality, gssapi.Confidentiality, all},
		{"more than wanted", gssapi.None, gssapi.Confidentiality, gssapi.Set(gssapi.Confidentiality)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, requests, _ := start(t, inbound.Options{}, toyMethod(tt.allow))
			c := dial(t, addr)
			io.WriteString(c, hello(1))
			if b := make([]byte, 2); mustRead(t, c, b) != "\x05\x01" {
				t.Fatalf("the server chose %x", b)
			}
			toy, _ := gssapitest.Pair("alice@R", "us")
			got, err := gssapi.Initiate(c, toy, tt.want, false)
			if err != nil || got != tt.got {
				t.Fatalf("%v, %v, want %v", got, err, tt.got)
			}
			var conn interface {
				io.ReadWriter
				CloseWrite() error
			} = c
			if got != gssapi.None {
				conn = gssapi.NewConn(c, toy, got)
			}
			io.WriteString(conn, connect4+"early")
			q := <-requests
			if q.User != "alice@R" || q.Target.String() != "192.0.2.7:80" {
				t.Errorf("%q asks for %v", q.User, q.Target)
			}
			far, early, err := q.call.Accept(netip.MustParseAddrPort("203.0.113.5:1234"))
			if err != nil {
				t.Fatal(err)
			}
			rest := make([]byte, len("early")-len(early))
			if _, err := io.ReadFull(far, rest); err != nil || string(early)+string(rest) != "early" {
				t.Errorf("behind the request %q and %q, %v", early, rest, err)
			}
			io.WriteString(far, "hello")
			far.CloseWrite()
			if b, err := io.ReadAll(conn); err != nil || string(b) != granted+"hello" {
				t.Errorf("heard %q, %v", b, err)
			}
			conn.CloseWrite()
			if _, err := far.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("behind the end: %v", err)
			}
			far.Close()
		})
	}
}

func mustRead(t *testing.T, r io.Reader, b []byte) string {
	t.Helper()
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestGSSAPIRefusals: the client learns that it is refused, and by a FIN, so that what it
// was told arrives.
func TestGSSAPIRefusals(t *testing.T) {
	for _, tt := range []struct {
		name  string
		who   string
		allow gssapi.Protections
		nec   bool
		err   error
	}{
		{"another's ticket", "bob@R", gssapi.Set(gssapi.Integrity), false, gssapitest.ErrToy},
		{"less than is wanted", "alice@R", gssapi.Set(gssapi.None), false, gssapi.ErrProtection},
		{"NEC's variant", "alice@R", gssapi.Set(gssapi.Integrity), true, gssapi.ErrRefused},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr, _, _ := start(t, inbound.Options{}, toyMethod(tt.allow))
			c := dial(t, addr)
			io.WriteString(c, hello(1))
			mustRead(t, c, make([]byte, 2))
			toy, _ := gssapitest.Pair(tt.who, "us")
			if _, err := gssapi.Initiate(c, toy, gssapi.Integrity, tt.nec); !errors.Is(err, tt.err) {
				t.Errorf("%v, want %v", err, tt.err)
			}
			if tt.err != gssapi.ErrProtection { // else it is we who go
				if b, err := io.ReadAll(c); err != nil || len(b) > 4 {
					t.Errorf("then %x, %v, want an end", b, err)
				}
			}
			c.Close()
		})
	}
}
