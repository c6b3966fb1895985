package dnsfake

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"unsafe"

	"github.com/miekg/dns"
)

// What a question is read into and answers are written with (RFC 1035 §4, RFC
// 6891). Our own answers hold the header, the question as it came, at most one
// record and OPT. The longest fits in 512 octets: a question of 259, an SOA of 48;
// or a reverse name's question of 78, a PTR of 267.

const headerSize = 12

// Bits of the second 16 of the header (RFC 1035 §4.1.1; AD, CD: RFC 4035 §3).
const (
	flagQR = 1 << 15
	flagTC = 1 << 9
	flagRD = 1 << 8
	flagRA = 1 << 7
	flagAD = 1 << 5
	flagCD = 1 << 4

	opcodeBits = 0xf << 11
	rcodeBits  = 0xf

	ednsDO = 1 << 15 // in the second 16 of OPT's TTL
)

const (
	minUDP = 512 // what every client takes (RFC 1035 §2.3.4)

	// maxUDP is the most that is sent to a client and asked of an upstream
	// by UDP: 1232 passes every path without fragments (1280, the least MTU
	// of IPv6, less 48 of headers), and is what other servers agreed on.
	maxUDP = 1232

	maxMessage = 1<<16 - 1 // what TCP's length prefix can say
)

// ignore is parse's outcome for what is not to be answered at all.
const ignore = -1

// query is a question message as read. It is reused: whoever keeps the name makes
// a copy.
type query struct {
	id    uint16
	flags uint16

	// question is the question section as it came and aliases the message;
	// nil unless the message is well-formed and has one question.
	question      []byte
	qtype, qclass uint16

	// name is the name asked for in lower case and without the trailing
	// dot; "." is the root. Where plain is false it holds octets that
	// plainByte refuses, written as \. or \DDD.
	name  string
	plain bool

	edns    bool
	version uint8
	do      bool
	size    int // the longest answer that the client takes by UDP

	policy Policy   // of the name; asked for once, since a reload may change it
	why    extended // what an answer says besides its response code

	outcome string // what became of it, in a word or with the reason of a failure

	buf  []byte    // where an answer of our own begins; nil for a new one
	text [256]byte // of name, but for names with many escapes
}

// forget lets go of what belongs to others.
func (q *query) forget() {
	q.question, q.name, q.buf, q.policy = nil, "", nil, Policy{}
}

// parse reads a message. Its outcome is [ignore], the response code of a refusal,
// or success. The query is as complete as what could be read, and valid as long as
// the message is. Nothing is left of what it was before.
func (q *query) parse(msg []byte) (rcode int) {
	q.question, q.qtype, q.qclass, q.name, q.plain = nil, 0, 0, "", false
	q.edns, q.version, q.do = false, 0, false
	q.policy, q.why, q.outcome = Policy{}, extended{}, ""
	if len(msg) < headerSize {
		return ignore
	}
	q.id = binary.BigEndian.Uint16(msg)
	q.flags = binary.BigEndian.Uint16(msg[2:])
	q.size = minUDP
	if q.flags&flagQR != 0 {
		return ignore
	}
	// Refusals have an OPT too if the client sent one, so all is read first;
	// but messages of other opcodes may have another form.
	ok := q.read(msg)
	switch {
	case q.flags&opcodeBits != dns.OpcodeQuery<<11:
		return dns.RcodeNotImplemented
	case !ok || q.question == nil:
		return dns.RcodeFormatError
	case q.version > 0:
		return dns.RcodeBadVers
	}
	return dns.RcodeSuccess
}

// read reads the sections of a message: the question, if there is one and only
// one (RFC 9619), and OPT. It reports whether the message is well-formed. What
// follows the last record is of no account.
func (q *query) read(msg []byte) bool {
	var counts [4]int // questions, answers, authority, additional
	for i := range counts {
		counts[i] = int(binary.BigEndian.Uint16(msg[4+2*i:]))
	}
	off := headerSize
	var name []byte
	for range counts[0] {
		var ok bool
		if name, off, q.plain, ok = readName(q.text[:0], msg, off); !ok || len(msg)-off < 4 {
			return false
		}
		q.qtype = binary.BigEndian.Uint16(msg[off:])
		q.qclass = binary.BigEndian.Uint16(msg[off+2:])
		off += 4
	}
	question := msg[headerSize:off]
	before := counts[1] + counts[2]
	for i := range before + counts[3] {
		r, next, ok := readRecord(msg, off)
		if !ok {
			return false
		}
		off = next
		if r.rtype != dns.TypeOPT {
			continue
		}
		if q.edns || i < before || !r.root { // RFC 6891 §6.1.1
			return false
		}
		q.edns = true
		q.version = uint8(r.ttl >> 16)
		q.do = r.ttl&ednsDO != 0
		q.size = min(max(int(r.class), minUDP), maxUDP)
	}
	if counts[0] == 1 {
		q.question = question
		q.name = unsafe.String(unsafe.SliceData(name), len(name))
	}
	return true
}

// readName appends the name at msg[off:] to dst as text (see query) and returns
// where the message goes on. Names in questions are not compressed: there is
// nothing yet that they could point to.
func readName(dst, msg []byte, off int) (name []byte, next int, plain, ok bool) {
	start := off
	plain = true
	for {
		if off >= len(msg) {
			return dst, off, false, false
		}
		n := int(msg[off])
		off++
		if n == 0 {
			break
		}
		// 255 octets with the root (RFC 1035 §2.3.4).
		if n > 63 || off+n-start > 254 || off+n > len(msg) {
			return dst, off, false, false
		}
		if len(dst) > 0 {
			dst = append(dst, '.')
		}
		for _, c := range msg[off : off+n] {
			switch {
			case plainByte(c):
				dst = append(dst, lower(c))
			case c == '.' || c == '\\':
				plain = false
				dst = append(dst, '\\', c)
			default:
				plain = false
				dst = append(dst, '\\', '0'+c/100, '0'+c/10%10, '0'+c%10)
			}
		}
		off += n
	}
	if len(dst) == 0 {
		return append(dst, '.'), off, false, true
	}
	return dst, off, plain, true
}

// record is a resource record as far as we look into it.
type record struct {
	off          int // of the octets after the owner name
	root         bool
	rtype, class uint16
	ttl          uint32
	data         []byte
}

// readRecord reads the record at msg[off:] and returns where the next one is.
func readRecord(msg []byte, off int) (r record, next int, ok bool) {
	r.root = off < len(msg) && msg[off] == 0
	for {
		if off >= len(msg) {
			return r, off, false
		}
		n := int(msg[off])
		off++
		if n == 0 {
			break
		}
		if n >= 0xc0 { // a pointer ends the name
			off++
			break
		}
		if n > 63 {
			return r, off, false
		}
		off += n
	}
	if len(msg)-off < 10 {
		return r, off, false
	}
	r.off = off
	r.rtype = binary.BigEndian.Uint16(msg[off:])
	r.class = binary.BigEndian.Uint16(msg[off+2:])
	r.ttl = binary.BigEndian.Uint32(msg[off+4:])
	n := int(binary.BigEndian.Uint16(msg[off+8:]))
	off += 10
	if len(msg)-off < n {
		return r, off, false
	}
	r.data = msg[off : off+n]
	return r, off + n, true
}

// sameQuestion reports whether msg, of one question, has this one; letters of
// either case are the same.
func sameQuestion(msg, question []byte) bool {
	if len(msg) < headerSize+len(question) {
		return false
	}
	name := len(question) - 4 // then type and class, which have no letters
	other := msg[headerSize:]
	for i, c := range question[:name] {
		if lower(c) != lower(other[i]) { // length octets are below 'A'
			return false
		}
	}
	return bytes.Equal(question[name:], other[name:len(question)])
}

// begin starts an answer: header and question.
func (q *query) begin(rcode int) []byte {
	b := q.buf[:0]
	if cap(b) < minUDP {
		// Room for an SOA (48) or less and OPT (11); a PTR may grow it.
		b = make([]byte, 0, headerSize+len(q.question)+64)
	}
	b = b[:headerSize]
	clear(b)
	flags := flagQR | flagRA | q.flags&(opcodeBits|flagRD|flagCD) | uint16(rcode)&rcodeBits
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[2:], flags)
	if q.question != nil {
		b[5] = 1
		b = append(b, q.question...)
	}
	return b
}

// end finishes an answer that begin started: an OPT if the client sent one (RFC
// 6891 §7).
func (q *query) end(b []byte, rcode int) []byte {
	if q.edns {
		b = appendOPT(b, uint8(rcode>>4), q.do)
		b = q.why.append(b)
	}
	return b
}

// refuse is an answer without records.
func (q *query) refuse(rcode int) []byte {
	return q.end(q.begin(rcode), rcode)
}

// Offsets of the record counts' low octets; no count of ours comes near 256.
const (
	answers    = 7
	authority  = 9
	additional = 11
)

// nameOfQuestion points to the name in the question (RFC 1035 §4.1.4).
const nameOfQuestion = 0xc000 | headerSize

// appendRecord appends the head of a record about the name asked for.
func appendRecord(b []byte, rtype uint16, ttl uint32, size int) []byte {
	b[answers]++
	b = binary.BigEndian.AppendUint16(b, nameOfQuestion)
	b = binary.BigEndian.AppendUint16(b, rtype)
	b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
	b = binary.BigEndian.AppendUint32(b, ttl)
	return binary.BigEndian.AppendUint16(b, uint16(size))
}

func appendAddr(b []byte, addr netip.Addr, ttl uint32) []byte {
	if addr.Is4() {
		a := addr.As4()
		return append(appendRecord(b, dns.TypeA, ttl, len(a)), a[:]...)
	}
	a := addr.As16()
	return append(appendRecord(b, dns.TypeAAAA, ttl, len(a)), a[:]...)
}

// appendPTR appends a PTR to a plain name.
func appendPTR(b []byte, name string, ttl uint32) []byte {
	b = appendRecord(b, dns.TypePTR, ttl, len(name)+2)
	for label := range strings.SplitSeq(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return append(b, 0)
}

// appendHINFO appends what RFC 8482 §4.2 answers to ANY.
func appendHINFO(b []byte, ttl uint32) []byte {
	const cpu = "RFC8482"
	b = appendRecord(b, dns.TypeHINFO, ttl, len(cpu)+2)
	b = append(b, byte(len(cpu)))
	b = append(b, cpu...)
	return append(b, 0)
}

// appendSOA appends the SOA of a negative answer, which says for how long it may
// be kept (RFC 2308 §3 and §5). It is the root's, whose names are above all that
// may be asked for; nobody.invalid is who RFC 6303 §3 has to write to.
func appendSOA(b []byte, ttl uint32) []byte {
	const names = "\x00" + "\x06nobody\x07invalid\x00"
	b[authority]++
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, dns.TypeSOA)
	b = binary.BigEndian.AppendUint16(b, dns.ClassINET)
	b = binary.BigEndian.AppendUint32(b, ttl)
	b = binary.BigEndian.AppendUint16(b, uint16(len(names)+5*4))
	b = append(b, names...)
	for _, v := range [...]uint32{1, 3600, 1200, 604800, ttl} { // RFC 6303 §3, but for the last
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// appendOPT appends our OPT with the upper bits of a response code.
func appendOPT(b []byte, rcode uint8, do bool) []byte {
	// Only one more: the count may be an upstream's.
	binary.BigEndian.PutUint16(b[additional-1:], binary.BigEndian.Uint16(b[additional-1:])+1)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, dns.TypeOPT)
	b = binary.BigEndian.AppendUint16(b, maxUDP)
	ttl := uint32(rcode) << 24
	if do {
		ttl |= ednsDO
	}
	b = binary.BigEndian.AppendUint32(b, ttl)
	return binary.BigEndian.AppendUint16(b, 0)
}

// extended is why an answer is what it is (RFC 8914 §2): for people, and for
// whoever looks for the cause.
type extended struct {
	code uint16
	text string
}

// The reasons of answers that are no resolver's fault. The longest question, an
// SOA and one of these are some 400 octets.
var (
	whyDenied    = extended{dns.ExtendedErrorCodeBlocked, "the rules let nothing through to this name"}
	whyNobody    = extended{dns.ExtendedErrorCodeProhibited, "nobody may be asked: the rules reject the name, or there are no dns.remote-resolvers"}
	whyExhausted = extended{dns.ExtendedErrorCodeOther, "no fake address is left"}
	whyBusy      = extended{dns.ExtendedErrorCodeOther, "too many questions wait for resolvers"}
	whySilent    = extended{dns.ExtendedErrorCodeNoReachableAuthority, "no resolver has given an answer that can be passed on"}
)

// append appends it to the OPT that b ends with.
func (e extended) append(b []byte) []byte {
	if e.code == 0 && e.text == "" {
		return b
	}
	size := 2 + len(e.text)
	binary.BigEndian.PutUint16(b[len(b)-2:], uint16(4+size))
	b = binary.BigEndian.AppendUint16(b, dns.EDNS0EDE)
	b = binary.BigEndian.AppendUint16(b, uint16(size))
	b = binary.BigEndian.AppendUint16(b, e.code)
	return append(b, e.text...)
}
