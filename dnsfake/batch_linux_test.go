package dnsfake

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestAnswersComeFromWhereTheyWereAsked: also where a socket has all addresses, and
// whoever asks would not take an answer from another.
func TestAnswersComeFromWhereTheyWereAsked(t *testing.T) {
	for _, tt := range []struct {
		listen string
		ask    []string
	}{
		{"0.0.0.0:0", []string{"127.0.0.1", "127.0.0.53", "127.8.8.8"}},
		{"[::]:0", []string{"127.0.0.1", "127.0.0.53", "::1"}},
		{"127.0.0.2:0", []string{"127.0.0.2"}},
		{"[::1]:0", []string{"::1"}},
	} {
		pc, err := net.ListenPacket("udp", tt.listen)
		if err != nil && os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		if err != nil {
			t.Skipf("%s: %v", tt.listen, err) // a machine without IPv6
		}
		s := newServer(t, Options{Policy: policy(bySuffix, zone(t, "www.local.test. 300 IN A 192.0.2.1"))})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Serve(ctx, []net.PacketConn{pc}, nil) }()
		port := pc.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		for _, addr := range tt.ask {
			// A connected socket: it hears nobody else.
			to := netip.AddrPortFrom(netip.MustParseAddr(addr), port).String()
			for _, name := range []string{"www.test.", "www.local.test."} { // now, and later
				client := dns.Client{Timeout: 30 * time.Second}
				m, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), to)
				if err != nil || len(m.Answer) != 1 {
					t.Errorf("%s of %s at %s: %v, %v", name, to, tt.listen, m, err)
				}
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve at %s: %v", tt.listen, err)
		}
	}
}

// TestManyQuestionsAtOnce: of many clients at once each gets the answers to its own
// questions, in whatever lengths they come, with what is ignored between them.
func TestManyQuestionsAtOnce(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, Options{Policy: policy(bySuffix, zone(t, "www.local.test. 300 IN A 192.0.2.1"))})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Serve(ctx, []net.PacketConn{pc}, nil) }()
	var clients sync.WaitGroup
	for c := range 4 {
		clients.Go(func() {
			conn, err := net.Dial("udp", pc.LocalAddr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			const burst, bursts = 10, 50 // what fits in a small buffer
			for range bursts {
				want := make(map[uint16]string)
				for i := range burst {
					name := fmt.Sprintf("host%d.client%d.test.", i, c)
					switch i {
					case 1:
						name = "www.local.test."
					case 2:
						conn.Write([]byte("ignored"))
					case 4:
						long := question(t, name, dns.TypeA, func(m *dns.Msg) { m.Id = uint16(1000 + i) }, edns(1232, false))
						conn.Write(append(long, make([]byte, 2*maxQuery)...)) // which is cut behind what counts
						want[uint16(1000+i)] = name
					}
					want[uint16(i)] = name
					conn.Write(question(t, name, dns.TypeA, func(m *dns.Msg) { m.Id = uint16(i) }))
				}
				buf := make([]byte, 4096)
				for len(want) > 0 {
					n, err := conn.Read(buf)
					if err != nil {
						t.Errorf("%d answers are missing: %v", len(want), err)
						return
					}
					m := unpack(t, buf[:n])
					if name := want[m.Id]; len(m.Question) != 1 || m.Question[0].Name != name || len(m.Answer) != 1 {
						t.Errorf("id %d, which is %q: %v", m.Id, name, m)
					}
					delete(want, m.Id)
				}
			}
		})
	}
	clients.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// TestServeUDPEndsWithItsSocket: a socket that somebody else closes is an error.
func TestServeUDPEndsWithItsSocket(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- newServer(t, Options{}).Serve(t.Context(), []net.PacketConn{pc}, nil) }()
	pc.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v, want %v", err, net.ErrClosed)
	}
}
