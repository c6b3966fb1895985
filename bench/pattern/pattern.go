package pattern

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
)

const (
	// ChunkSize is how far a stream follows the block before it goes on
	// elsewhere in it.
	ChunkSize = 64 << 10
	// blockSize is a power of two. With a chunk more, it stays in the second
	// cache of today's processors: the check costs no trip to memory.
	blockSize = 256 << 10
)

// Source is the block that all streams are cut from. It is safe for concurrent
// use: nothing changes it.
type Source struct {
	seed  uint64
	block []byte // the first chunk stands behind the block once more
}

// New returns the source of a seed.
func New(seed uint64) *Source {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	block := make([]byte, blockSize, blockSize+ChunkSize)
	rand.NewChaCha8(key).Read(block) // never fails
	return &Source{seed: seed, block: append(block, block[:ChunkSize]...)}
}

// Stream is a stream of bytes from its beginning on. It is for one goroutine.
type Stream struct {
	source *Source
	key    uint64
	offset int64
	rest   []byte // of the chunk at offset
}

// Stream returns the stream of a key.
func (s *Source) Stream(key uint64) *Stream { return &Stream{source: s, key: mix(s.seed ^ mix(key))} }

// Start returns the first n bytes of the stream of a key, at most ChunkSize. They
// belong to the source and must not be changed.
func (s *Source) Start(key uint64, n int) []byte {
	start := mix(mix(s.seed^mix(key))) % blockSize
	return s.block[start:][:n]
}

// Offset is how many bytes of the stream are behind it.
func (s *Stream) Offset() int64 { return s.offset }

// Next returns the next bytes of the stream, from 1 to max, and moves behind
// them. They belong to the source and must not be changed.
func (s *Stream) Next(max int) []byte {
	s.fill()
	p := s.rest[:min(max, len(s.rest))]
	s.move(len(p))
	return p
}

// Check compares p with the next bytes of the stream, and moves behind them. The
// error tells the place of the first byte that is another.
func (s *Stream) Check(p []byte) error {
	for len(p) > 0 {
		s.fill()
		n := min(len(p), len(s.rest))
		if !bytes.Equal(p[:n], s.rest[:n]) {
			return s.wrong(p[:n])
		}
		s.move(n)
		p = p[n:]
	}
	return nil
}

func (s *Stream) wrong(p []byte) error {
	i := 0
	for p[i] == s.rest[i] {
		i++
	}
	return fmt.Errorf("byte %d is %#02x and should be %#02x", s.offset+int64(i), p[i], s.rest[i])
}

// fill cuts a new chunk where the last is used up. Where in the block it begins
// depends on the key and on its number, so that neither a chunk that is missing
// nor one that is there twice or in another stream fits.
func (s *Stream) fill() {
	if len(s.rest) == 0 {
		start := mix(s.key+uint64(s.offset/ChunkSize)) % blockSize
		s.rest = s.source.block[start:][:ChunkSize]
	}
}

func (s *Stream) move(n int) {
	s.offset += int64(n)
	s.rest = s.rest[n:]
}

// mix is the finaliser of SplitMix64: every bit of x changes half of the result.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
