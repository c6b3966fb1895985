package stack_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"syscall"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"tunroute/stack"
	"tunroute/stack/stacktest"
)

func TestPing(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		host, _ := onHost(t, &handler{})
		for _, size := range []int{0, 56, 3000, 60_000} {
			if err := host.Ping(within(t), fam.server.Addr(), size); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
		}
	})
}

// TestEchoReply looks at the packets: the reply has what the request has, and
// comes from whoever was asked, in fragments where it must.
func TestEchoReply(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		w, _ := onWire(t, &handler{}, stack.Options{}, nil)
		client, server := fam.client.Addr(), fam.server.Addr()
		request := stacktest.Echo(client, server, 0x1234, 0x5678, []byte("data"))
		kinds := [][]byte{request, withOptions(fam, request)}
		for _, r := range kinds {
			send(t, w, r)
			p := next(t, w)
			if p.src != server || p.dst != client || len(p.ip) > 40 {
				t.Errorf("from %s to %s, want from %s to %s", p.src, p.dst, server, client)
			}
			want := []byte{0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 'd', 'a', 't', 'a'}
			if !fam.is4() {
				want[0] = 129
			}
			copy(want[2:], p.rest[2:4]) // parse has checked the checksum
			if !bytes.Equal(p.rest, want) {
				t.Errorf("reply % x, want % x", p.rest, want)
			}
		}

		data := pattern(3000)
		send(t, w, stacktest.Fragments(stacktest.Echo(client, server, 1, 2, data), 77, 1500)...)
		var message []byte
		for len(message) < 8+len(data) {
			p := next(t, w)
			if !p.fragment {
				t.Fatal("a reply that is not in fragments")
			}
			if !fam.is4() {
				p.rest = p.rest[8:] // the fragment header
			}
			message = append(message, p.rest...) // they come in order
		}
		if !bytes.Equal(message[8:], data) {
			t.Error("the reply's data is different")
		}
		silent(t, w, fam)
	})
}

func withOptions(fam family, p []byte) []byte {
	if fam.is4() {
		return withOptions4(p)
	}
	return withHopByHop(p)
}

// TestEchoIsAnsweredLater: a request can be kept.
func TestEchoIsAnsweredLater(t *testing.T) {
	fam := families()[0]
	kept := make(chan *stack.EchoRequest, 1)
	host, _ := onHost(t, &handler{echo: func(_ context.Context, r *stack.EchoRequest) { kept <- r }})
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	errs := make(chan error, 1)
	go func() { errs <- host.Ping(ctx, fam.server.Addr(), 5) }()
	r := receive(t, "request", kept)
	if r.Source() != fam.client.Addr() || r.Destination() != fam.server.Addr() || !bytes.Equal(r.Data(), []byte{0, 1, 2, 3, 4}) {
		t.Errorf("request from %s to %s with % x", r.Source(), r.Destination(), r.Data())
	}
	r.Reply()
	if err := receive(t, "end of Ping", errs); err != nil {
		t.Error(err)
	}

	// Neither is an answer, too.
	go func() { errs <- host.Ping(ctx, fam.server.Addr(), 5) }()
	receive(t, "request", kept)
	cancel()
	if err := receive(t, "end of Ping", errs); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestEchoRefuse(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		for _, row := range refusals() {
			w, _ := onWire(t, &handler{echo: func(_ context.Context, r *stack.EchoRequest) { r.Refuse(row.errno) }}, stack.Options{}, nil)
			client, server := fam.client.Addr(), fam.server.Addr()
			request := withOptions(fam, stacktest.Echo(client, server, 0x1234, 0x5678, []byte("data")))
			// Behind the second request there is nothing of the first any more.
			send(t, w, request, stacktest.Datagram(fam.client, fam.server, nil))
			p := next(t, w)
			if row.quiet {
				unreachable(t, fam, p, 0)
				continue
			}
			code, want := row.code4, uint8(3)
			if !fam.is4() {
				code, want = row.code6, 1
			}
			if row.isReset { // which ICMP has no word for
				code = 1
				if !fam.is4() {
					code = 3
				}
			}
			if p.src != server || p.dst != client || p.rest[0] != want || p.rest[1] != code {
				t.Errorf("%v: from %s to %s type %d code %d, want code %d", row.errno, p.src, p.dst, p.rest[0], p.rest[1], code)
			}
			quoted := p.rest[8:]
			if src, dst := quotedAddrs(quoted); src != client || dst != server {
				t.Errorf("%v: quoted packet from %s to %s", row.errno, src, dst)
			}
			if fam.is4() {
				quoted = quoted[header.IPv4(quoted).HeaderLength():]
			} else {
				if quoted[6] != uint8(header.ICMPv6ProtocolNumber) {
					t.Errorf("quoted IPv6 header says that protocol %d follows", quoted[6])
				}
				quoted = quoted[header.IPv6MinimumSize:]
			}
			if !bytes.HasSuffix(request, quoted) || len(quoted) < 8 {
				t.Errorf("%v: quoted message % x", row.errno, quoted)
			}
		}
	})
}

// TestBadEcho: requests that are no echo requests do not reach the handler.
func TestBadEcho(t *testing.T) {
	eachFamily(t, func(t *testing.T, fam family) {
		isProbe := func(r *stack.EchoRequest) bool { return len(r.Data()) == 0 } // of silent
		w, _ := onWire(t, &handler{echo: func(_ context.Context, r *stack.EchoRequest) {
			if !isProbe(r) {
				t.Errorf("got an echo request from %s to %s", r.Source(), r.Destination())
			}
			r.Reply()
		}}, stack.Options{}, nil)
		client, server := fam.client.Addr(), fam.server.Addr()
		wrongSum := stacktest.Echo(client, server, 1, 1, []byte("x"))
		wrongSum[len(wrongSum)-1]++
		multicast, proto, message := netip.MustParseAddr("224.0.0.1"), header.ICMPv4ProtocolNumber, []byte{8, 0, 0xf7, 0xff}
		if !fam.is4() {
			multicast, proto, message = netip.MustParseAddr("ff02::1"), header.ICMPv6ProtocolNumber, []byte{128, 0, 0, 0}
		}
		short := stacktest.IP(client, server, uint8(proto), message)
		send(t, w, wrongSum, stacktest.Echo(client, multicast, 1, 1, []byte("x")), short)
		silent(t, w, fam)
	})
}

// TestRefuseAfterEnd: an answer that comes too late goes nowhere.
func TestRefuseAfterEnd(t *testing.T) {
	fam := families()[0]
	kept := make(chan *stack.EchoRequest, 2)
	w := stacktest.NewWire(1500)
	_, stop := start(t, stack.Options{Device: w, Handler: &handler{echo: func(_ context.Context, r *stack.EchoRequest) { kept <- r }}}, nil)
	request := stacktest.Echo(fam.client.Addr(), fam.server.Addr(), 1, 1, nil)
	send(t, w, request, request)
	r1, r2 := receive(t, "request", kept), receive(t, "request", kept)
	stop()
	r1.Reply()
	r2.Refuse(syscall.EHOSTUNREACH)
	if _, err := w.Recv(within(t)); err == nil {
		t.Error("a packet after the end")
	}
}
