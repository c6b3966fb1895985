package probe

import (
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"tunroute/router/outbound/outboundtest"
	"tunroute/router/socks"
)

// A relay that takes everything from everybody, or gives nothing back.
func TestUDPVerdicts(t *testing.T) {
	serve := func(answers bool) string {
		outer, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		var client atomic.Pointer[netip.AddrPort] // who came last
		relay := outboundtest.ServeUDP(t, loopback, func(_ *net.UDPConn, from netip.AddrPort, b []byte) {
			client.Store(&from)
			if h, payload, err := socks.ParseUDP(b); err == nil {
				outer.WriteToUDPAddrPort(payload, h.Addr)
			}
		})
		back, err := net.ListenUDP("udp4", nil)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan bool)
		go func() {
			defer close(done)
			b := make([]byte, 2048)
			for {
				n, from, err := outer.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				to := client.Load()
				if !answers || to == nil {
					continue
				}
				header, _ := socks.AppendUDPHeader(nil, socks.Addr{Name: "somebody", Port: from.Port()})
				back.WriteToUDPAddrPort(append(header, b[:n]...), *to)
			}
		}()
		t.Cleanup(func() {
			outer.Close()
			back.Close()
			<-done
		})
		return outboundtest.Serve(t, loopback, func(c *net.TCPConn) {
			io.ReadFull(c, make([]byte, 3))
			c.Write([]byte{5, 0})
			io.ReadFull(c, make([]byte, 10))
			c.Write(socks.AppendReply(nil, socks.ReplySucceeded, relay))
			io.Copy(io.Discard, c)
		}).String()
	}
	all, nothing := serve(true), serve(false)
	for _, c := range []struct {
		id, at  string
		limit   time.Duration
		answer  string
		verdict Verdict
	}{
		{"udp-echo", all, 30 * time.Second, "answered", Odd}, // and gives a name for the sender
		{"udp-source", all, 30 * time.Second, "relayed", Odd},
		{"udp-fragment", all, 30 * time.Second, "relayed", Bad},
		{"udp-close", all, 3 * time.Second, "relayed", Odd},
		{"udp-echo", nothing, time.Second, "lost", Bad},
		{"udp-close", nothing, time.Second, "", Unknown},
	} {
		got := one(t, c.id, c.at, c.limit, true)
		if got.Answer != c.answer || got.Verdict != c.verdict || strings.Contains(got.Detail, "somebody") {
			t.Errorf("%s: %q (%s), %s: %s; want %q, %s", c.id, got.Answer, got.Detail, got.Verdict, got.Note, c.answer, c.verdict)
		}
	}
}
