package stack

import (
	"fmt"
	"net/netip"
	stdslices "slices"
	"testing"
)

// countUDP takes everything.
type countUDP struct{ Handler }

func (countUDP) ServeUDP(_, _ netip.AddrPort, _ []byte) bool { return true }

// BenchmarkDatagramIn is what the stack does for a datagram on its way in, the
// device left out: alone, or one of a row of 40. An operation is a datagram.
func BenchmarkDatagramIn(b *testing.B) {
	fam := rowFamilies["IPv4"]
	for _, size := range []int{64, 1200} {
		for _, n := range []int{1, 40} {
			b.Run(fmt.Sprintf("size=%d/row=%d", size, n), func(b *testing.B) {
				p := superRow(fam[0], fam[1], make([]byte, n*size), size, nil)
				if n == 1 {
					p[1] = 0
				}
				in := serve(b, newRowDevice(), countUDP{}).newBurst()
				in.told = true
				bufs := [][]byte{p[superHeader:]}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for left := b.N; left > 0; left -= n {
					in.takeSuper(p[:superHeader], bufs, len(p)-superHeader)
				}
			})
		}
	}
}

// BenchmarkDatagramsOut is what the stack does for a datagram on its way out, the
// device left out: alone, or one of a row of 40. An operation is a datagram.
func BenchmarkDatagramsOut(b *testing.B) {
	fam := rowFamilies["IPv4"]
	for _, size := range []int{64, 1200} {
		for _, n := range []int{1, 40} {
			b.Run(fmt.Sprintf("size=%d/row=%d", size, n), func(b *testing.B) {
				d := newRowDevice()
				d.discard = true
				s := serve(b, d, countUDP{})
				row := stdslices.Repeat([][]byte{make([]byte, size)}, n)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for left := b.N; left > 0; left -= n {
					if err := s.WriteUDPs(row, fam[1], fam[0]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
