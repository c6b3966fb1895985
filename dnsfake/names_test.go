package dnsfake

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestReverseAddrIsTheInverseOfReverseNames(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		addr := netip.AddrFrom16(b)
		if rnd.IntN(2) == 0 {
			addr = netip.AddrFrom4([4]byte(b[:4]))
		}
		name, err := dns.ReverseAddr(addr.String())
		if err != nil {
			t.Fatal(err)
		}
		name = strings.TrimSuffix(name, ".")
		if got, ok := reverseAddr(name); !ok || got != addr {
			t.Fatalf("reverseAddr(%q) = %v, %v, want %v", name, got, ok, addr)
		}
	}
}

func TestReverseAddrRefuses(t *testing.T) {
	v6 := strings.Repeat("0.", 32) + "ip6.arpa"
	if _, ok := reverseAddr(v6); !ok {
		t.Fatalf("%q is refused", v6)
	}
	for _, name := range []string{
		".", "arpa", "in-addr.arpa", ".in-addr.arpa", "ip6.arpa", "1.0.0.127", "2.0.0.127.in-addr.arpa.example",
		"0.0.127.in-addr.arpa", "0.1.0.0.127.in-addr.arpa", "..0.127.in-addr.arpa", "256.0.0.127.in-addr.arpa",
		"0001.0.0.127.in-addr.arpa", "01.0.0.127.in-addr.arpa", "+1.0.0.127.in-addr.arpa", "1x.0.0.127.in-addr.arpa",
		"0/25.0.0.10.in-addr.arpa",
		v6[2:], "0." + v6, "g" + v6[1:], "0x" + v6[2:], "00" + v6[2:],
	} {
		if a, ok := reverseAddr(name); ok {
			t.Errorf("reverseAddr(%q) = %v", name, a)
		}
	}
}

func TestUnder(t *testing.T) {
	for _, tt := range []struct {
		name string
		want bool
	}{
		{"localhost", true}, {"a.localhost", true}, {"a.b.localhost", true},
		{"notlocalhost", false}, {"localhost.example", false}, {"", false}, {".", false},
	} {
		if got := under(tt.name, "localhost"); got != tt.want {
			t.Errorf("under(%q) = %v", tt.name, got)
		}
	}
}
