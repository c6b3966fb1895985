package mmsg

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestThereAndBack: a connected socket and one that is not, on IPv4 and IPv6.
func TestThereAndBack(t *testing.T) {
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		t.Run(loopback, func(t *testing.T) {
			server, err := Listen(netip.AddrPortFrom(netip.MustParseAddr(loopback), 0))
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			client, err := Dial(server.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			end := time.Now().Add(10 * time.Second)
			server.SetDeadline(end)
			client.SetDeadline(end)

			const count = 10
			w, err := NewWriter(client, count, false)
			if err != nil {
				t.Fatal(err)
			}
			for i := range count {
				if more := w.Add(fmt.Appendf(nil, "datagram %d", i), netip.AddrPort{}); more != (i < count-1) {
					t.Errorf("after %d: more is %t", i, more)
				}
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			r, err := NewReader(server, 4, MaxSize, false)
			if err != nil {
				t.Fatal(err)
			}
			back, err := NewWriter(server, 4, false)
			if err != nil {
				t.Fatal(err)
			}
			for got := 0; got < count; {
				n, err := r.Read()
				if err != nil {
					t.Fatal(err)
				}
				for i := range n {
					for p := range r.Datagrams(i) {
						if want := fmt.Sprintf("datagram %d", got); string(p) != want {
							t.Errorf("got %q, want %q", p, want)
						}
						back.Add(p, r.From(i))
						got++
					}
				}
				if err := back.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			answers, err := NewReader(client, 1, 8, false)
			if err != nil {
				t.Fatal(err)
			}
			for range count {
				n, err := answers.Read()
				if n != 1 || err != nil {
					t.Fatalf("%d datagrams, %v", n, err)
				}
				for p := range answers.Datagrams(0) { // cut
					if string(p) != "datagram" {
						t.Errorf("got %q", p)
					}
				}
			}
		})
	}
}

// TestWhoIsNotThereIsNoError: what ICMP says of earlier datagrams ends nothing.
func TestWhoIsNotThereIsNoError(t *testing.T) {
	gone, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Dial(gone.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	gone.Close()
	w, err := NewWriter(c, 1, false)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		w.Add([]byte("x"), netip.AddrPort{})
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoAllocations(t *testing.T) {
	server, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	to := server.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	r, err := NewReader(server, 4, 100, false)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(server, 4, false)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte("payload")
	if n := testing.AllocsPerRun(100, func() {
		w.Add(payload, to)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestMergedDatagramsKeepTheirBorders: sizes and destinations that change, empty
// ones, and more than fit into a message.
func TestMergedDatagramsKeepTheirBorders(t *testing.T) {
	server, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	server.SetDeadline(time.Now().Add(10 * time.Second))
	to := server.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort()
	client, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	r, err := NewReader(server, 8, MaxSize, true)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for i := range 300 {
		size := 64
		switch i % 97 {
		case 20:
			size = 10
		case 40:
			size = 0
		case 41:
			size = 65
		case 90:
			size = 30000
		}
		want = append(want, strings.Repeat(string(rune('a'+i%26)), size))
	}
	w, err := NewWriter(client, len(want), true)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range want {
		w.Add([]byte(p), to)
	}
	if w.messages >= len(want)/10 {
		t.Errorf("%d datagrams are %d messages", len(want), w.messages)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for len(got) < len(want) {
		n, err := r.Read()
		if err != nil {
			t.Fatalf("after %d of %d: %v", len(got), len(want), err)
		}
		for i := range n {
			for p := range r.Datagrams(i) {
				got = append(got, string(p))
			}
		}
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("datagram %d is %.20q of %d bytes, want %.20q of %d", i, got[i], len(got[i]), want[i], len(want[i]))
		}
	}
}
