package gssapitest

import (
	"encoding/binary"
	"errors"
	"sync"

	"tunroute/router/gssapi"
)

// ErrToy is what a [Toy] says to what it does not like.
var ErrToy = errors.New("the toy does not like it")

// Toy is a context. What it wraps is its number, whether it is encrypted, and the
// bytes, each plus 1 if so. Its methods are safe for concurrent use but for Step.
type Toy struct {
	Steps    []string // the tokens of both ends by turns, beginning with who begins
	Initiate bool
	Name     string // what Peer returns

	at int

	mu         sync.Mutex // guards what follows
	Sent, Next uint64     // the numbers of the next message, ours and theirs
}

// Pair returns both ends of a context with two tokens, which have not been exchanged.
func Pair(client, server string) (c, s *Toy) {
	steps := []string{"request of " + client, "reply of " + server}
	return &Toy{Steps: steps, Initiate: true, Name: server}, &Toy{Steps: steps, Name: client}
}

// Peer implements [gssapi.Context].
func (c *Toy) Peer() string { return c.Name }

// Step implements [gssapi.Context].
func (c *Toy) Step(token []byte) ([]byte, bool, error) {
	if c.at > 0 || !c.Initiate {
		if c.at >= len(c.Steps) || string(token) != c.Steps[c.at] {
			return []byte("no"), false, ErrToy
		}
		c.at++
	}
	if c.at == len(c.Steps) {
		return nil, true, nil
	}
	c.at++
	return []byte(c.Steps[c.at-1]), c.at == len(c.Steps), nil
}

// Wrap implements [gssapi.Context].
func (c *Toy) Wrap(b, message []byte, seal bool) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b = binary.BigEndian.AppendUint64(b, c.Sent)
	c.Sent++
	if !seal {
		return append(append(b, 0), message...), nil
	}
	b = append(b, 1)
	for _, x := range message {
		b = append(b, x+1)
	}
	return b, nil
}

// Unwrap implements [gssapi.Context]. What has been overtaken is taken for a duplicate.
func (c *Toy) Unwrap(token []byte) (gssapi.Message, error) {
	if len(token) < 9 {
		return gssapi.Message{}, ErrToy
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m := gssapi.Message{Data: token[9:], Sealed: token[8] == 1}
	if m.Sealed {
		for i := range m.Data {
			m.Data[i]--
		}
	}
	switch seq := binary.BigEndian.Uint64(token); {
	case seq < c.Next:
		m.Order = gssapi.Duplicate
	case seq > c.Next:
		m.Order = gssapi.Gap
		c.Next = seq + 1
	default:
		c.Next++
	}
	return m, nil
}
