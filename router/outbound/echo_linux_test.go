package outbound

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

func TestEchoAsksTheHost(t *testing.T) {
	d, err := NewDirect(DirectOptions{Deny: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.9") }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		for _, size := range []int{0, 1, 56, 3001} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(i)
			}
			err := d.Echo(ctx, netip.MustParseAddr(host), data)
			if errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.EPERM) {
				if os.Getenv("CI") == "true" {
					t.Fatalf("no ICMP socket: %v", err)
				}
				t.Skipf("no ICMP socket: %v (net.ipv4.ping_group_range)", err)
			}
			if err != nil {
				t.Errorf("echo of %d bytes to %s: %v", size, host, err)
			}
		}
	}
	if err := d.Echo(ctx, netip.MustParseAddr("127.0.0.9"), nil); !errors.Is(err, ErrDenied) {
		t.Errorf("echo to a denied address: %v, want ErrDenied", err)
	}
}

func TestEchoEndsWithItsContext(t *testing.T) {
	d, err := NewDirect(DirectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Even where the host would answer.
	if err := d.Echo(ctx, netip.MustParseAddr("127.0.0.1"), make([]byte, 8)); err == nil {
		t.Log("the reply was faster than the deadline, which is allowed")
	} else if !errors.Is(err, context.Canceled) && !errors.Is(err, syscall.EACCES) {
		t.Errorf("echo with a context that has ended: %v", err)
	}
}

func TestInternetChecksum(t *testing.T) {
	// The example of RFC 1071 §3: the sum of these is ddf2.
	if got := internetChecksum([]byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}); got != ^uint16(0xddf2) {
		t.Errorf("got %#x, want %#x", got, ^uint16(0xddf2))
	}
}
