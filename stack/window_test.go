package stack

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A client stays near for a minute, whatever its handshakes take then, and another
// address learns nothing of it.
func TestNeighbors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
		var n neighbors
		check := func(client netip.Addr, handshake time.Duration, want bool) {
			t.Helper()
			if got := n.near(client, handshake); got != want {
				t.Errorf("%v after a handshake of %v: near %v, want %v", client, handshake, got, want)
			}
		}
		check(here, farFrom, false)
		check(here, farFrom-time.Nanosecond, true)
		check(there, farFrom, false)
		time.Sleep(staysNear - time.Nanosecond)
		check(here, time.Second, true)
		time.Sleep(time.Nanosecond)
		check(here, time.Second, false)
	})
}

func TestNeighborsAreBounded(t *testing.T) {
	var n neighbors
	for i := range uint32(3 * maxNeighbors) {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], i)
		if !n.near(netip.AddrFrom4(a), 0) {
			t.Fatal("it is near")
		}
		if len(n.seen) > maxNeighbors {
			t.Fatalf("%d are kept, want %d at the most", len(n.seen), maxNeighbors)
		}
	}
}
