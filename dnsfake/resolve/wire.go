package resolve

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/miekg/dns"
)

const (
	headerSize = 12
	maxMessage = 1<<16 - 1

	// The UDP size that questions offer: passes every path without fragments,
	// as in package dnsfake.
	offerUDP = 1232

	// Questions over TLS are padded to a multiple of this, so that their length
	// says little of the name (RFC 8467 §4.1).
	padTo = 128
)

// Bits of the second 16 of a header.
const (
	flagQR     = 1 << 15
	flagTC     = 1 << 9
	flagRD     = 1 << 8
	flagAD     = 1 << 5
	flagCD     = 1 << 4
	opcodeBits = 0xf << 11
	rcodeBits  = 0xf
)

// errNotQuery is about the caller's message.
var errNotQuery = errors.New("not a dns message with one question")

// query is a question and what its asker wants of the answer.
type query struct {
	key
	wire    []byte // the question section, with the letters as they were sent
	noRD    bool   // nobody is to be asked for it but who knows
	wantsAD bool   // it means something to the asker that an answer is authentic
	id      uint16
	alone   bool // not on a connection on which others wait: see streams
}

// key is what answers are kept by.
type key struct {
	of     *Resolver // whom alone to ask; nil for whom the name says: see Cache.Of
	name   string    // in lower case, without the final dot; "." is the root
	qtype  uint16
	qclass uint16
	do     bool // with the records of DNSSEC
	cd     bool // also where they do not fit
}

// keyOf returns the key of a look-up.
func keyOf(name string, qtype uint16) key {
	return key{name: name, qtype: qtype, qclass: dns.ClassINET}
}

// parseQuery reads a message with one question. The query refers to msg.
func parseQuery(msg []byte) (query, error) {
	wire, ok := questionOf(msg)
	if !ok || len(msg) > maxMessage {
		return query{}, errNotQuery
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&(flagQR|opcodeBits) != 0 {
		return query{}, errNotQuery
	}
	name, end, err := dns.UnpackDomainName(wire, 0)
	if err != nil {
		return query{}, errNotQuery
	}
	q := query{
		key: key{
			name:   canonical(name),
			qtype:  binary.BigEndian.Uint16(wire[end:]),
			qclass: binary.BigEndian.Uint16(wire[end+2:]),
			cd:     flags&flagCD != 0,
		},
		wire: wire,
		noRD: flags&flagRD == 0,
		id:   binary.BigEndian.Uint16(msg),
	}
	// OPT stands alone behind the question of whoever asks like a resolver.
	const optSize, doBit = 11, 0x80
	if rest := msg[headerSize+len(wire):]; len(rest) >= optSize && rest[0] == 0 &&
		binary.BigEndian.Uint16(rest[1:]) == dns.TypeOPT {
		q.do = rest[7]&doBit != 0
	}
	q.wantsAD = q.do || flags&flagAD != 0
	return q, nil
}

// canonical returns a name in lower case and without its final dot.
func canonical(name string) string {
	if name == "." {
		return name
	}
	return lower(strings.TrimSuffix(name, "."))
}

// lower is [strings.ToLower] for ASCII alone, as DNS has it (RFC 4343).
func lower(name string) string {
	for i := range len(name) {
		if c := name[i]; 'A' <= c && c <= 'Z' {
			b := []byte(name)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] |= 0x20
				}
			}
			return string(b)
		}
	}
	return name
}

// query returns the query of a look-up; false where the name cannot be asked for.
func (k key) query() (query, bool) {
	if k.name == "" || k.name != "." && dns.IsFqdn(k.name) {
		return query{}, false // an empty label
	}
	const maxName = 255 // octets (RFC 1035 §2.3.4)
	buf := make([]byte, len(k.name)+6)
	end, err := dns.PackDomainName(dns.Fqdn(k.name), buf, 0, nil, false)
	if err != nil || end > maxName {
		return query{}, false
	}
	buf = binary.BigEndian.AppendUint16(buf[:end], k.qtype)
	return query{key: k, wire: binary.BigEndian.AppendUint16(buf, k.qclass)}, true
}

// message returns the message that asks. Without edns it has no OPT.
func (q *query) message(id uint16, edns, padded bool) []byte {
	flags := uint16(flagAD) // what the answer says of it is for us to pass on
	if !q.noRD {
		flags |= flagRD
	}
	if q.cd {
		flags |= flagCD
	}
	b := make([]byte, headerSize, headerSize+len(q.wire)+11+padTo)
	binary.BigEndian.PutUint16(b, id)
	binary.BigEndian.PutUint16(b[2:], flags)
	b[5] = 1
	b = append(b, q.wire...)
	if !edns {
		return b
	}
	b[11] = 1
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, dns.TypeOPT)
	b = binary.BigEndian.AppendUint16(b, offerUDP)
	b = append(b, 0, 0, 0, 0)
	if q.do {
		b[len(b)-2] = 0x80
	}
	if !padded {
		return binary.BigEndian.AppendUint16(b, 0)
	}
	const head = 2 + 4 // the length of the options, and the option's own
	padding := (padTo - (len(b)+head)%padTo) % padTo
	b = binary.BigEndian.AppendUint16(b, uint16(4+padding))
	b = binary.BigEndian.AppendUint16(b, dns.EDNS0PADDING)
	b = binary.BigEndian.AppendUint16(b, uint16(padding))
	return append(b, make([]byte, padding)...)
}

// questionOf returns the question section of a message with one question. Its name is
// the first of the message and stands there as it is: a pointer (RFC 1035 §4.1.4) could
// only lead into the header, or to what comes behind, and be another name elsewhere.
func questionOf(msg []byte) ([]byte, bool) {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) != 1 {
		return nil, false
	}
	_, end, err := dns.UnpackDomainName(msg, headerSize)
	if err != nil || len(msg)-end < 4 || !uncompressed(msg[headerSize:end]) {
		return nil, false
	}
	return msg[headerSize : end+4], true
}

// uncompressed reports whether a name on the wire has no pointer.
func uncompressed(name []byte) bool {
	for len(name) > 0 && name[0] < 0xc0 && int(name[0]) < len(name) {
		name = name[1+int(name[0]):]
	}
	return len(name) == 0
}

// isAnswer reports whether answer is one to a message that asks question: the id,
// the opcode and the question are the same, but for the case of letters. A server
// that read no further than the header may say so without the question.
func isAnswer(answer []byte, id uint16, question []byte) bool {
	if len(answer) < headerSize || binary.BigEndian.Uint16(answer) != id {
		return false
	}
	if binary.BigEndian.Uint16(answer[2:])&(flagQR|opcodeBits) != flagQR {
		return false
	}
	if binary.BigEndian.Uint16(answer[4:]) == 0 {
		return rcode(answer) != dns.RcodeSuccess
	}
	other, ok := questionOf(answer)
	if !ok || string(other[len(other)-4:]) != string(question[len(question)-4:]) {
		return false
	}
	return sameName(other, question)
}

// sameName reports whether two question sections, as questionOf returns them, ask
// for the same name.
func sameName(a, b []byte) bool {
	nameA, _, errA := dns.UnpackDomainName(a, 0)
	nameB, _, errB := dns.UnpackDomainName(b, 0)
	return errA == nil && errB == nil && lower(nameA) == lower(nameB)
}

// rcode returns the lower bits of the response code.
func rcode(msg []byte) int { return int(msg[3] & rcodeBits) }

func isTruncated(msg []byte) bool { return binary.BigEndian.Uint16(msg[2:])&flagTC != 0 }
