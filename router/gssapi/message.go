package gssapi

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Errors that callers branch on.
var (
	// ErrProtocol says that the other end does not speak RFC 1961.
	ErrProtocol = errors.New("not a GSSAPI message of SOCKS")
	// ErrRefused says that the other end refuses: 01 FF.
	ErrRefused = errors.New("the other end refuses")
	// ErrProtection says that the two ends do not agree about the protection.
	ErrProtection = errors.New("no protection that both ends want")
)

// The types of messages, MTYP.
const (
	typeToken   = 1
	typeLevel   = 2
	typeWrapped = 3
	typeRefused = 0xFF
)

const (
	version  = 1
	headLen  = 4
	maxToken = 1<<16 - 1
)

// Protection is how what is sent is protected. More is greater.
type Protection byte

// The levels of RFC 1961 §4.3, and that of Dante and curl which is none. The RFC's
// fourth, 3, decides for each message anew; nobody has it.
const (
	None            Protection = 0
	Integrity       Protection = 1
	Confidentiality Protection = 2
)

// String returns "none", "integrity" or "confidentiality".
func (p Protection) String() string {
	switch p {
	case None:
		return "none"
	case Integrity:
		return "integrity"
	case Confidentiality:
		return "confidentiality"
	}
	return fmt.Sprintf("protection %d", byte(p))
}

// Protections is a set of levels.
type Protections byte

// Set returns a set.
func Set(levels ...Protection) Protections {
	var s Protections
	for _, p := range levels {
		s |= 1 << p
	}
	return s
}

// Has says whether p is in the set.
func (s Protections) Has(p Protection) bool { return p <= Confidentiality && s&(1<<p) != 0 }

// String returns the levels, the weakest first.
func (s Protections) String() string {
	var names []string
	for p := None; p <= Confidentiality; p++ {
		if s.Has(p) {
			names = append(names, p.String())
		}
	}
	return strings.Join(names, ", ")
}

// choose returns what a server that has s answers a client that wants p: that, or
// else the strongest it has. The client does not have to take it.
func (s Protections) choose(p Protection) Protection {
	if s.Has(p) {
		return p
	}
	for p = Confidentiality; p > None && !s.Has(p); p-- {
	}
	return p
}

// appendHead appends the head of a message whose token has n bytes.
func appendHead(b []byte, mtyp byte, n int) []byte {
	return binary.BigEndian.AppendUint16(append(b, version, mtyp), uint16(n))
}

// parseHead returns how long the token behind a head is, which has to be of type mtyp.
func parseHead(head [headLen]byte, mtyp byte) (int, error) {
	n := int(binary.BigEndian.Uint16(head[2:]))
	switch {
	case head[0] != version:
		return 0, fmt.Errorf("%w: version %d", ErrProtocol, head[0])
	case head[1] == typeRefused:
		return 0, ErrRefused
	case head[1] != mtyp:
		return 0, fmt.Errorf("%w: type %d, want %d", ErrProtocol, head[1], mtyp)
	case n == 0:
		return 0, fmt.Errorf("%w: no token", ErrProtocol)
	}
	return n, nil
}

// writeMessage sends a message in one Write.
func writeMessage(w io.Writer, mtyp byte, token []byte) error {
	if len(token) > maxToken {
		return fmt.Errorf("a token of %d bytes is longer than a message can be", len(token))
	}
	_, err := w.Write(append(appendHead(nil, mtyp, len(token)), token...))
	return err
}

// readMessage reads a message of one type, and not a byte beyond. A refusal is
// complete after two bytes.
func readMessage(r io.Reader, mtyp byte) ([]byte, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	if head[0] != version || head[1] != mtyp {
		_, err := parseHead(head, mtyp)
		return nil, err
	}
	if _, err := io.ReadFull(r, head[2:]); err != nil {
		return nil, unexpected(err)
	}
	n, err := parseHead(head, mtyp)
	if err != nil {
		return nil, err
	}
	token := make([]byte, n)
	if _, err := io.ReadFull(r, token); err != nil {
		return nil, unexpected(err)
	}
	return token, nil
}

// unexpected is an error within a message.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
