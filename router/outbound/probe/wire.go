package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"tunroute/router/outbound"
	"tunroute/router/socks"
)

// What comes back, as [Row.Answer] has it, where it has no number in it.
const (
	success = "success"
	closed  = "closed"    // EOF or RST; which of them is a matter of chance where data was on its way
	silence = "silence"   // nothing within the limit
	other   = "no SOCKS"  // bytes that are no SOCKS message
	noDial  = "no answer" // there is no connection to the server
)

// answer is what came back.
type answer struct {
	token  string // for machines
	detail string // for people
	bytes  int
	bound  socks.Addr // of a success
}

// link is a connection to the server, of one row.
type link struct {
	conn  outbound.Conn
	limit time.Duration
	stop  func() bool

	// secret says that what comes is not shown: a server could send our own password
	// back, and it would be on a screen.
	secret bool
}

// dial connects to the server. The end of ctx closes the connection.
func (p *prober) dial(ctx context.Context) (*link, error) {
	limited, cancel := context.WithTimeout(ctx, p.Limit)
	defer cancel()
	conn, err := p.Dial(limited)
	if err != nil {
		return nil, err
	}
	return &link{conn, p.Limit, context.AfterFunc(ctx, func() { conn.Close() }), p.credentials()}, nil
}

func (l *link) close() {
	l.stop()
	l.conn.Close()
}

// write sends b in one piece. What becomes of it is seen when the answer is read.
func (l *link) write(b []byte) {
	l.conn.SetDeadline(time.Now().Add(l.limit))
	l.conn.Write(b)
}

// take fills b, and waits for it until the limit. It returns how much of b came.
func (l *link) take(b []byte) (int, error) {
	l.conn.SetDeadline(time.Now().Add(l.limit))
	return io.ReadFull(l.conn, b)
}

// ended is the answer where not even the beginning of one came.
func ended(err error) answer {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return answer{token: silence}
	}
	return answer{token: closed}
}

// strange is the answer that is no SOCKS message, or does not belong here. b is what
// came of it; what is there behind it is read as well, for people to see.
func (l *link) strange(b []byte) answer {
	more := make([]byte, 64)
	l.conn.SetDeadline(time.Now().Add(min(l.limit, time.Second)))
	n, _ := l.conn.Read(more)
	b = append(b, more[:n]...)
	return l.wrong(b)
}

// wrong is the answer of bytes that are no SOCKS message.
func (l *link) wrong(b []byte) answer {
	return answer{token: other, detail: l.show(b), bytes: len(b)}
}

// show prints what came, if it may be seen.
func (l *link) show(b []byte) string {
	if l.secret {
		return fmt.Sprintf("%d bytes", len(b))
	}
	return show(b)
}

// show prints the first bytes of a message: as text where it is text.
func show(b []byte) string {
	text := string(b)
	if line, _, ok := strings.Cut(text, "\n"); ok {
		text = line
	}
	text = strings.TrimRight(text, "\r")
	if text != "" && strings.Trim(text, " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~") == "" {
		return fmt.Sprintf("%.40q", text)
	}
	if len(b) > 16 {
		return fmt.Sprintf("% x ...", b[:16])
	}
	return fmt.Sprintf("% x", b)
}

// method reads what a server answers to a greeting.
func (l *link) method() answer {
	var b [2]byte
	n, err := l.take(b[:])
	switch {
	case n == 0:
		return ended(err)
	case b[0] != socks.Version5 || n == 1:
		return l.strange(b[:n])
	case b[1] == 0xFF:
		return answer{token: "no method", detail: "FF", bytes: n}
	}
	return answer{token: fmt.Sprintf("method %d", b[1]), bytes: n}
}

// status reads what a server answers to user and password (RFC 1929). The version of
// the answer may be 5: see [socks.ReadAuthStatus].
func (l *link) status() answer {
	var b [2]byte
	n, err := l.take(b[:])
	switch {
	case n == 0:
		return ended(err)
	case n == 1 || b[0] != 1 && b[0] != socks.Version5:
		return l.strange(b[:n])
	case b[1] != 0:
		return answer{token: fmt.Sprintf("status %d", b[1]), bytes: n}
	}
	return answer{token: success, bytes: n}
}

// reply reads a SOCKS5 reply, which is as long as its own address type says, and no
// byte behind it. A refusal may be shorter: the code in its second byte is enough.
func (l *link) reply() answer {
	var b [4 + 1 + 255 + 2]byte
	n, err := l.take(b[:2])
	switch {
	case n == 0:
		return ended(err)
	case n == 1 || b[0] != socks.Version5:
		return l.strange(b[:n])
	}
	code := socks.ReplyError(b[1])
	// more reads up to byte to, and says whether it came.
	more := func(to int) bool {
		var k int
		k, err = l.take(b[n:to])
		n += k
		return err == nil
	}
	whole := more(4)
	if whole {
		switch b[3] {
		case 1:
			whole = more(4 + 4 + 2)
		case 3:
			whole = more(5) && more(5+int(b[4])+2)
		case 4:
			whole = more(4 + 16 + 2)
		default:
			whole = false
		}
	}
	a := answer{token: fmt.Sprintf("reply %d", byte(code)), bytes: n}
	switch {
	case code != socks.ReplySucceeded:
		a.detail, _, _ = strings.Cut(code.Error(), " (")
		if n != 10 {
			a.detail += fmt.Sprintf(", %d bytes", n)
		}
	case !whole:
		return l.wrong(b[:n])
	default:
		a.token = success
		a.bound = bound(b[:n])
		a.detail = "bound " + a.bound.String()
	}
	return a
}

// nameOf stands for a name that a server says, which may be anything: what moves the
// cursor, or our own password.
func nameOf(n int) string { return fmt.Sprintf("(a name of %d bytes)", n) }

// bound returns the address in a whole reply.
func bound(b []byte) socks.Addr {
	a := socks.Addr{Port: uint16(b[len(b)-2])<<8 | uint16(b[len(b)-1])}
	if b[3] == 3 {
		a.Name = nameOf(len(b) - 2 - 5)
		return a
	}
	ip, _ := netip.AddrFromSlice(b[4 : len(b)-2])
	a.IP = ip.Unmap()
	return a
}

// reply4 reads a SOCKS4 reply.
func (l *link) reply4() answer {
	var b [8]byte
	n, err := l.take(b[:2])
	switch {
	case n == 0:
		return ended(err)
	case n == 1 || b[0] != 0:
		return l.strange(b[:n])
	}
	k, err := l.take(b[2:])
	n += k
	code := socks.ReplyError4(b[1])
	switch {
	case code == socks.Reply4Granted && err == nil:
		return answer{token: "granted", bytes: n}
	case code < socks.Reply4Granted || code > socks.Reply4UserMismatch || code == socks.Reply4Granted:
		return l.wrong(b[:n])
	}
	detail, _, _ := strings.Cut(code.Error(), " (")
	return answer{token: fmt.Sprintf("reply %d", byte(code)), detail: detail, bytes: n}
}

// greeting is what we offer, and behind it what we say to method 2: nil where we offer
// none but "no authentication".
func (p *prober) greeting() (greeting, login []byte) {
	if !p.credentials() {
		return socks.AppendMethods(nil, socks.MethodNone), nil
	}
	// Run has looked that they can be written.
	login, _ = socks.AppendUserPass(nil, p.User, p.Password)
	return socks.AppendMethods(nil, socks.MethodUserPass), login
}

func (p *prober) credentials() bool { return p.Password != "" }

// open connects to the server and negotiates. Where that fails there is no link, and the
// answer is what came instead.
func (p *prober) open(ctx context.Context) (*link, answer) {
	l, err := p.dial(ctx)
	if err != nil {
		return nil, answer{token: noDial, detail: err.Error()}
	}
	greeting, login := p.greeting()
	l.write(greeting)
	if a, ok := l.negotiated(login, func() { l.write(login) }); !ok {
		l.close()
		return nil, a
	}
	return l, answer{}
}

// negotiated reads the server's part of the negotiation. send sends the login.
func (l *link) negotiated(login []byte, send func()) (answer, bool) {
	want := "method 0"
	if login != nil {
		want = "method 2"
	}
	if a := l.method(); a.token != want {
		return a, false
	}
	if login == nil {
		return answer{}, true
	}
	send()
	a := l.status()
	return a, a.token == success
}

// request returns a SOCKS5 request: RSV is 0 in all but one probe.
func request(cmd byte, dst []byte) []byte {
	return append([]byte{socks.Version5, cmd, 0}, dst...)
}

// addrDst and nameDst are the address of a request, from its type on. A name is what it
// is, whatever is in it; it has 255 bytes at most.
func addrDst(a netip.AddrPort) []byte {
	b := []byte{1}
	if a.Addr().Is6() {
		b[0] = 4
	}
	b = append(b, a.Addr().AsSlice()...)
	return append(b, byte(a.Port()>>8), byte(a.Port()))
}

func nameDst(name string, port uint16) []byte {
	b := append([]byte{3, byte(len(name))}, name...)
	return append(b, byte(port>>8), byte(port))
}

// The commands of RFC 1928 §4.
const (
	connect   = byte(socks.Connect)
	bind      = byte(socks.Bind)
	associate = byte(socks.UDPAssociate)
)
