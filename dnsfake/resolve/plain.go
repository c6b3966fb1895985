package resolve

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
)

const (
	// The longest answer by UDP that is read. What this program asks offers
	// 1232 octets; more than 4096 nobody sends (RFC 6891 §6.2.5).
	maxUDP = 4096

	// So many datagrams that are no answer are no accident: somebody guesses
	// ids (RFC 5452 §9.3), and TCP is where he cannot.
	maxForged = 32
)

// errForged says that somebody sends answers to what was not asked.
var errForged = errors.New("too many answers to other questions")

// askUDP asks once, from a port of its own.
func askUDP(ctx context.Context, s *Server, q *query, edns bool) ([]byte, error) {
	conn, err := s.dial(ctx, "udp")
	if err != nil {
		return nil, &dialError{err}
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	id := uint16(rand.Uint32()) // ChaCha8, seeded by the system
	if _, err := conn.Write(q.message(id, edns, false)); err != nil {
		return nil, err
	}
	return readUDP(conn, id, q.wire)
}

// readUDP waits for the answer, and past what is none.
func readUDP(conn net.Conn, id uint16, question []byte) ([]byte, error) {
	buf := make([]byte, maxUDP)
	for range maxForged {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if isAnswer(buf[:n], id, question) {
			return buf[:n], nil
		}
	}
	return nil, errForged
}

// dialError says that nothing was sent.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// setID gives a message an id.
func setID(msg []byte, id uint16) { binary.BigEndian.PutUint16(msg, id) }
