package ftp

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"tunroute/router/relay"
)

// Opened is an address at which the server can connect.
type Opened interface {
	// Addr is where, as the server is to be told.
	Addr() netip.AddrPort
	// Close gives the address up. A connection that has come lives on. It may
	// be called more than once.
	Close() error
}

// Options configure a [Control]. Client and Open are required.
type Options struct {
	// Client is where the control connection comes from.
	Client netip.AddrPort
	// Open opens an address for the server. Whoever connects to it is to be
	// brought to the client's at. It may block, until ctx ends.
	Open func(ctx context.Context, at netip.AddrPort) (Opened, error)
	// Refused, if not nil, is told why a command was not served.
	Refused func(error)
}

// Reasons for which a PORT or EPRT is not served.
var (
	ErrSyntax     = errors.New("not an address in the form of PORT or EPRT")
	ErrStranger   = errors.New("the address is not the client's own")
	ErrPrivileged = errors.New("the port is below 1024")
)

const (
	// maxLine is what a PORT or EPRT may have: the longest that can be right,
	// "EPRT |2|", an IPv6 address, "|65535|" and a line end, has 60.
	maxLine = 128
	// maxOpen is how many addresses may wait for the server at once. A client
	// that sends ahead has more than one; the oldest is closed for the next.
	maxOpen = 4
)

// Control is the client's end of a control connection. One Read and one Write may run
// at a time; the others are safe at any time.
type Control struct {
	relay.Conn
	opts Options
	ctx  context.Context // ends with the connection
	end  context.CancelFunc

	secured atomic.Bool // the server has said 234

	// The reader's.
	buf   [4 << 10]byte
	in    []byte // of buf, not looked at yet
	out   []byte // to be read
	err   error  // behind in
	state state
	held  []byte // what may be, or is, PORT or EPRT
	aside bool   // TLS has begun

	// The writer's.
	reply, digits int // the first bytes of a line, and how many there were

	mu   sync.Mutex // guards open
	open []Opened   // nil after the end
	over bool
}

// state is where in a command the reader is.
type state uint8

const (
	begin  state = iota // nothing of the command has come but blanks
	iac                 // a telnet command follows
	option              // a telnet option follows
	verb                // held may become PORT or EPRT
	args                // held is PORT or EPRT, and not complete
	long                // it is too long; nothing more is held
	behind              // the CR of such a line has come: an LF belongs to it
	pass                // another command
)

// Telnet (RFC 854), in which FTP's control connection speaks: clients send IAC IP IAC
// SYNCH before ABOR.
const (
	telnetIAC  = 0xff
	telnetWill = 0xfb // from here on an option follows
)

// tlsHandshake is the first byte of a TLS connection (RFC 8446 §5.1), and of no command.
const tlsHandshake = 0x16

// New returns the Control in front of a client's connection, which is the Control's from
// then on.
func New(client relay.Conn, o Options) *Control {
	ctx, cancel := context.WithCancel(context.Background())
	return &Control{Conn: client, opts: o, ctx: ctx, end: cancel}
}

// Read returns what the client has sent, as the server is to get it.
func (c *Control) Read(b []byte) (int, error) {
	for len(c.out) == 0 {
		switch {
		case len(c.in) > 0:
			c.step()
		case c.err != nil && c.state == verb:
			c.flush() // half a command, which may be any
		case c.err != nil:
			return 0, c.err
		case c.aside:
			return c.Conn.Read(b)
		default:
			n, err := c.Conn.Read(c.buf[:])
			c.in, c.err = c.buf[:n], err
		}
	}
	n := copy(b, c.out)
	c.out = c.out[n:]
	if len(c.out) == 0 {
		c.out = nil
	}
	return n, nil
}

// step takes bytes of in until a command ends, or all.
func (c *Control) step() {
	for len(c.in) > 0 {
		b := c.in[0]
		ends := b == '\r' || b == '\n'
		switch c.state {
		case behind:
			c.state = begin
			if b == '\n' {
				break
			}
			continue
		case begin:
			switch {
			case b == tlsHandshake && c.secured.Load():
				c.aside = true
				c.out = append(c.out, c.in...)
				c.in = nil
				return
			case b == telnetIAC:
				c.state = iac
			case b <= ' ':
			case upper(b) == 'P' || upper(b) == 'E':
				c.state, c.held = verb, append(c.held[:0], b)
				c.in = c.in[1:]
				continue
			default:
				c.state = pass
			}
			c.out = append(c.out, b)
		case iac:
			c.state = begin
			if b >= telnetWill && b != telnetIAC {
				c.state = option
			}
			c.out = append(c.out, b)
		case option:
			c.state = begin
			c.out = append(c.out, b)
		case verb:
			switch n := len(c.held); {
			case n < 4 && upper(b) == commands[upper(c.held[0])][n]:
				c.held = append(c.held, b)
			case n == 4 && ends:
				c.port(b)
			case n == 4 && b <= ' ':
				c.state, c.held = args, append(c.held, b)
			default:
				c.flush()
				continue
			}
		case args, long:
			switch {
			case ends:
				c.port(b)
			case len(c.held) == maxLine:
				c.state = long
			default:
				c.held = append(c.held, b)
			}
		case pass:
			c.out = append(c.out, b)
			if ends {
				c.state = begin
			}
		}
		c.in = c.in[1:]
		if ends && len(c.out) > 0 {
			return // what comes next may take its time
		}
	}
}

// commands are those that are looked at, by their first letter.
var commands = map[byte]string{'P': "PORT", 'E': "EPRT"}

func upper(b byte) byte {
	if 'a' <= b && b <= 'z' {
		return b - 'a' + 'A'
	}
	return b
}

// flush lets go of what is held: it is another command.
func (c *Control) flush() {
	c.out, c.held, c.state = append(c.out, c.held...), c.held[:0], pass
}

// port serves the command that is held, of which end has been the last byte.
func (c *Control) port(end byte) {
	command := commands[upper(c.held[0])]
	at, err := netip.AddrPort{}, ErrSyntax
	if c.state == args {
		at, err = parse(command, string(c.held[4:]))
	}
	if err == nil {
		err = c.check(at)
	}
	var o Opened
	if err == nil {
		o, err = c.opts.Open(c.ctx, at)
	}
	if err == nil && !c.keep(o) {
		o.Close()
		err = context.Canceled
	}
	if err == nil {
		c.out = appendCommand(c.out, command, at, o.Addr())
	} else {
		c.out = append(c.out, command...) // the server refuses that
		if c.opts.Refused != nil && c.ctx.Err() == nil {
			c.opts.Refused(fmt.Errorf("%s: %w", command, err))
		}
	}
	c.out = append(c.out, '\r', '\n')
	c.state, c.held = begin, c.held[:0]
	if end == '\r' {
		c.state = behind
	}
}

// check refuses what is not for the client itself.
func (c *Control) check(at netip.AddrPort) error {
	switch {
	case at.Addr() != c.opts.Client.Addr().Unmap():
		return fmt.Errorf("%w: %s", ErrStranger, at.Addr())
	case at.Port() < 1024:
		return fmt.Errorf("%w: %d", ErrPrivileged, at.Port())
	}
	return nil
}

// keep takes an address in, and closes the oldest if there are too many. It returns
// false after the end.
func (c *Control) keep(o Opened) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return false
	}
	if len(c.open) == maxOpen {
		c.open[0].Close()
		c.open = append(c.open[:0], c.open[1:]...)
	}
	c.open = append(c.open, o)
	return true
}

// Write sends the client what the server has said, and looks whether that is 234.
func (c *Control) Write(b []byte) (int, error) {
	for _, ch := range b {
		switch {
		case ch == '\n':
			c.reply, c.digits = 0, 0
		case c.digits < 3:
			c.reply, c.digits = c.reply*10+int(ch)-'0', c.digits+1
			if c.digits == 3 && c.reply == 234 {
				c.secured.Store(true)
			}
		}
	}
	return c.Conn.Write(b)
}

// Close ends the connection, and gives up what waits for the server.
func (c *Control) Close() error {
	c.giveUp()
	return c.Conn.Close()
}

// Reset is Close by a RST.
func (c *Control) Reset() {
	c.giveUp()
	relay.Reset(c.Conn)
}

func (c *Control) giveUp() {
	c.end()
	c.mu.Lock()
	open := c.open
	c.open, c.over = nil, true
	c.mu.Unlock()
	for _, o := range open {
		o.Close()
	}
}
