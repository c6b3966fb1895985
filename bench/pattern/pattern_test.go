package pattern

import (
	"bytes"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// take returns the first n bytes of a stream, in pieces of various sizes.
func take(s *Stream, n int) []byte {
	var b []byte
	for len(b) < n {
		b = append(b, s.Next(min(1+rand.IntN(2*ChunkSize), n-len(b)))...)
	}
	return b
}

func TestWhatOneEndSendsTheOtherEndFindsRight(t *testing.T) {
	const n = 5*ChunkSize + 17
	sent := take(New(1).Stream(7), n)
	s := New(1).Stream(7) // as in another process
	for rest := sent; len(rest) > 0; {
		k := min(len(rest), 1+rand.IntN(2*ChunkSize))
		if err := s.Check(rest[:k]); err != nil {
			t.Fatal(err)
		}
		rest = rest[k:]
	}
	if s.Offset() != n {
		t.Errorf("the stream is at %d, want %d", s.Offset(), n)
	}
}

func TestOneChangedByteIsFound(t *testing.T) {
	src := New(1)
	sent := take(src.Stream(7), 3*ChunkSize)
	for _, at := range []int{0, 1, ChunkSize - 1, ChunkSize, 2*ChunkSize + 4711, 3*ChunkSize - 1} {
		for bit := range 8 {
			b := bytes.Clone(sent)
			b[at] ^= 1 << bit
			err := src.Stream(7).Check(b)
			if err == nil || !strings.Contains(err.Error(), "byte "+strconv.Itoa(at)+" ") {
				t.Errorf("bit %d of byte %d changed: %v", bit, at, err)
			}
		}
	}
}

func TestBytesOfAnotherPlaceAreFound(t *testing.T) {
	src := New(1)
	a, b := take(src.Stream(7), 3*ChunkSize), take(src.Stream(8), 3*ChunkSize)
	for name, wrong := range map[string][]byte{
		"another stream":        b,
		"another seed":          take(New(2).Stream(7), 3*ChunkSize),
		"a byte is missing":     append(bytes.Clone(a[:100]), a[101:]...),
		"a byte is there twice": append(bytes.Clone(a[:101]), a[100:]...),
		"a chunk is missing":    append(bytes.Clone(a[:ChunkSize]), a[2*ChunkSize:]...),
		"a block is missing":    take(src.Stream(7), blockSize+ChunkSize)[blockSize:],
	} {
		if src.Stream(7).Check(wrong) == nil {
			t.Errorf("%s: found right", name)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	src := New(1)
	sent := take(src.Stream(7), 16*ChunkSize)
	b.SetBytes(int64(len(sent)))
	for b.Loop() {
		if err := src.Stream(7).Check(sent); err != nil {
			b.Fatal(err)
		}
	}
}
