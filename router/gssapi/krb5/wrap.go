package krb5

import (
	"bytes"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/types"

	"tunroute/router/gssapi"
)

// A wrap token (RFC 4121 §4.2.6.2): the header, and behind it the message with its
// checksum, or encrypted with a copy of the header.
//
//	05 04 FLAGS FF EC(2) RRC(2) SEQ(8)
const (
	headerLen = 16

	flagAcceptor = 1 // sent by the acceptor
	flagSealed   = 2
	flagSubkey   = 4 // under the acceptor's subkey
)

var errShort = errors.New("a Kerberos token is too short")

// wrapper wraps what one end sends and unwraps what the other does.
type wrapper struct {
	flags      byte // of ours
	send, recv *cipher

	seq atomic.Uint64 // of the next token that we send

	mu     sync.Mutex // guards window
	window window
}

// newWrapper returns the wrapper of the acceptor or of the initiator. subkey says that
// key is one that the acceptor has chosen.
func newWrapper(key types.EncryptionKey, acceptor, subkey bool, sendSeq, recvSeq uint64) (*wrapper, error) {
	w := &wrapper{window: window{next: recvSeq, seen: ^uint64(0)}} // nothing comes before the first
	w.seq.Store(sendSeq)
	ours, theirs := uint32(keyusage.GSSAPI_INITIATOR_SEAL), uint32(keyusage.GSSAPI_ACCEPTOR_SEAL)
	if acceptor {
		ours, theirs = theirs, ours
		w.flags |= flagAcceptor
	}
	if subkey {
		w.flags |= flagSubkey
	}
	var err error
	if w.send, err = newCipher(key, ours); err == nil {
		w.recv, err = newCipher(key, theirs)
	}
	return w, err
}

func appendHeader(b []byte, flags byte, ec, rrc uint16, seq uint64) []byte {
	b = append(b, 5, 4, flags, 0xFF)
	b = binary.BigEndian.AppendUint16(b, ec)
	b = binary.BigEndian.AppendUint16(b, rrc)
	return binary.BigEndian.AppendUint64(b, seq)
}

// Wrap implements [gssapi.Context].
func (w *wrapper) Wrap(b, message []byte, seal bool) ([]byte, error) {
	seq := w.seq.Add(1) - 1
	var header [headerLen]byte
	if seal {
		appendHeader(header[:0], w.flags|flagSealed, 0, 0, seq)
		return w.send.encrypt(append(b, header[:]...), message, header[:])
	}
	// The checksum is over a header that does not say how long it is.
	appendHeader(header[:0], w.flags, 0, 0, seq)
	b = appendHeader(b, w.flags, uint16(w.send.size), 0, seq)
	b = append(b, message...)
	return w.send.checksum(b, message, header[:]), nil
}

// Unwrap implements [gssapi.Context].
func (w *wrapper) Unwrap(token []byte) (gssapi.Message, error) {
	var none gssapi.Message
	if len(token) < headerLen {
		return none, errShort
	}
	header, body := token[:headerLen], token[headerLen:]
	flags := header[2]
	switch {
	case header[0] != 5 || header[1] != 4 || header[3] != 0xFF:
		return none, fmt.Errorf("not a Kerberos wrap token of RFC 4121: it begins with % x", header[:4])
	case flags&flagAcceptor == w.flags&flagAcceptor:
		return none, errors.New("a Kerberos token of our own has come back")
	case flags&flagSubkey != w.flags&flagSubkey:
		return none, errors.New("a Kerberos token is under another key than the context has")
	}
	ec, rrc := int(binary.BigEndian.Uint16(header[4:])), int(binary.BigEndian.Uint16(header[6:]))
	seq := binary.BigEndian.Uint64(header[8:])
	if len(body) > 0 {
		rotateLeft(body, rrc%len(body))
	}
	binary.BigEndian.PutUint16(header[6:], 0)
	m := gssapi.Message{Sealed: flags&flagSealed != 0}
	if m.Sealed {
		plain, err := w.recv.decrypt(body)
		if err != nil {
			return none, err
		}
		// Message, filler, header.
		n := len(plain) - headerLen - ec
		if n < 0 {
			return none, errShort
		}
		if !bytes.Equal(plain[n+ec:], header) {
			return none, errIntegrity
		}
		m.Data = plain[:n]
	} else {
		n := len(body) - ec
		if n < 0 || ec != w.recv.size {
			return none, errShort
		}
		binary.BigEndian.PutUint16(header[4:], 0)
		if !hmac.Equal(body[n:], w.recv.checksum(nil, body[:n], header)) {
			return none, errIntegrity
		}
		m.Data = body[:n]
	}
	w.mu.Lock()
	m.Order = w.window.order(seq)
	w.mu.Unlock()
	return m, nil
}

// rotateLeft moves the first n bytes to the end. The sender has rotated the other way
// (RFC 4121 §4.2.5), as Microsoft's do always and MIT's for those who ask for it.
func rotateLeft(b []byte, n int) {
	if n == 0 {
		return
	}
	slices.Reverse(b[:n])
	slices.Reverse(b[n:])
	slices.Reverse(b)
}

// window tells the order of sequence numbers. It remembers the last 64.
type window struct {
	next uint64 // after the greatest that has come
	seen uint64 // bit i is set if next-1-i has come
}

func (w *window) order(seq uint64) gssapi.Order {
	if ahead := seq - w.next; ahead < 1<<63 {
		w.next = seq + 1
		if ahead >= 63 {
			w.seen = 0
		} else {
			w.seen <<= ahead + 1
		}
		w.seen |= 1
		if ahead == 0 {
			return gssapi.InOrder
		}
		return gssapi.Gap
	}
	behind := w.next - 1 - seq
	if behind >= 64 || w.seen>>behind&1 != 0 {
		return gssapi.Duplicate
	}
	w.seen |= 1 << behind
	return gssapi.Late
}
