package sink

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Dial connects to a receiver, as net.Dialer's DialContext does.
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// SyslogOptions configure a [Syslog].
type SyslogOptions struct {
	Socket   string         // the path of a unix socket, or
	Server   netip.AddrPort // a server, by UDP
	Dial     Dial           // nil: as package net does
	Facility int            // who a message is from, as a number of RFC 5424 §6.2.1
	// Old is the format of RFC 3164 instead of that of RFC 5424. To a socket it is
	// without a host, as syslog(3) has it.
	Old      bool
	JSON     bool         // the message is the whole record, in JSON
	Level    slog.Leveler // nil: info
	Complain func(error)  // is told, rarely, why messages are lost; nil discards
}

// Syslog is a slog.Handler that sends to a syslog server. [Sender.Run] must run for it to.
type Syslog struct {
	*Sender
	*frame
	inner slog.Handler
}

// maxMessage is how long a message is at the most, in bytes: rsyslog's default. More than
// any record of a flow has.
const maxMessage = 8 << 10

// frame makes messages. It is shared by a handler and those that are made of it.
type frame struct {
	head func([]byte, slog.Record) []byte
	text bool // the message begins with the record's, behind head

	mu  sync.Mutex // guards what follows
	buf bytes.Buffer
}

// NewSyslog returns a Syslog. It opens nothing.
func NewSyslog(o SyslogOptions) *Syslog {
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	network, address := "unixgram", o.Socket
	if o.Socket == "" {
		network, address = "udp", o.Server.String()
	}
	s := &Syslog{
		Sender: newSender("syslog "+address, func(ctx context.Context) (net.Conn, error) { return o.Dial(ctx, network, address) }, o.Complain),
		frame:  &frame{head: o.header(os.Getpid(), hostname()), text: !o.JSON},
	}
	s.inner = newInner(&s.buf, o.JSON, o.Level)
	s.note = s.noteLost
	return s
}

// newInner returns what writes the attributes of a record in text, or all of it in JSON.
func newInner(w *bytes.Buffer, json bool, level slog.Leveler) slog.Handler {
	if json {
		return slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})
	}
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch a.Key {
		case slog.TimeKey, slog.LevelKey, slog.MessageKey:
			if len(groups) == 0 {
				return slog.Attr{}
			}
		}
		return a
	}})
}

// Enabled implements slog.Handler.
func (s *Syslog) Enabled(ctx context.Context, l slog.Level) bool { return s.inner.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (s *Syslog) WithAttrs(as []slog.Attr) slog.Handler {
	return &Syslog{s.Sender, s.frame, s.inner.WithAttrs(as)}
}

// WithGroup implements slog.Handler.
func (s *Syslog) WithGroup(name string) slog.Handler {
	return &Syslog{s.Sender, s.frame, s.inner.WithGroup(name)}
}

// Handle implements slog.Handler.
func (s *Syslog) Handle(ctx context.Context, r slog.Record) error {
	m, err := s.message(ctx, r, s.inner)
	if err == nil {
		s.put(m)
	}
	return err
}

func (s *Syslog) noteLost(lost uint64) []byte {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log messages were lost", 0)
	r.AddAttrs(slog.Uint64("messages", lost))
	m, err := s.message(context.Background(), r, s.inner)
	if err != nil {
		return nil // of two words and a number: never
	}
	return m
}

// message returns the message of a record, whose attributes inner writes into buf.
func (f *frame) message(ctx context.Context, r slog.Record, inner slog.Handler) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.buf.Reset()
	if err := inner.Handle(ctx, r); err != nil {
		return nil, err
	}
	body := bytes.TrimSuffix(f.buf.Bytes(), []byte("\n"))
	m := f.head(make([]byte, 0, 96+len(r.Message)+len(body)), r)
	if f.text {
		m = appendLine(m, r.Message)
		if len(body) > 0 {
			m = append(m, ' ')
		}
	}
	return cut(append(m, body...), maxMessage), nil
}

// appendLine appends a text with blanks for what would end its line.
func appendLine(b []byte, s string) []byte {
	for _, c := range s {
		if c < ' ' || c == 0x7f {
			c = ' '
		}
		b = utf8.AppendRune(b, c)
	}
	return b
}

// cut returns at most n bytes of a text, and no half character.
func cut(b []byte, n int) []byte {
	if len(b) <= n {
		return b
	}
	for n > 0 && !utf8.RuneStart(b[n]) {
		n--
	}
	return b[:n]
}

const appName = "tunroute"

// header returns what appends the part before the message.
func (o SyslogOptions) header(pid int, host string) func([]byte, slog.Record) []byte {
	if o.Old {
		return func(b []byte, r slog.Record) []byte {
			b = fmt.Appendf(b, "<%d>", priority(o.Facility, r.Level))
			b = r.Time.AppendFormat(b, "Jan _2 15:04:05 ")
			if o.Socket == "" {
				b = append(append(b, host...), ' ')
			}
			return fmt.Appendf(b, appName+"[%d]: ", pid)
		}
	}
	return func(b []byte, r slog.Record) []byte {
		b = fmt.Appendf(b, "<%d>1 ", priority(o.Facility, r.Level))
		b = r.Time.AppendFormat(b, "2006-01-02T15:04:05.000000Z07:00")
		b = fmt.Appendf(b, " %s "+appName+" %d ", host, pid)
		b = append(b, msgID(r.Message)...)
		// No structured data: its names would need a number of ours from IANA.
		// No BOM before the message: receivers log it with the rest.
		return append(b, " - "...)
	}
}

// priority is PRI of RFC 5424 §6.2.1.
func priority(facility int, l slog.Level) int {
	return facility*8 + severity(l)
}

// severity of RFC 5424 §6.2.1.
func severity(l slog.Level) int {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// msgID returns a message of one word, as "flow" is, and "-" for others: RFC 5424 §6.2.7.
func msgID(message string) string {
	if message == "" || len(message) > 32 || strings.ContainsFunc(message, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "-"
	}
	return message
}

// hostname is this machine's name, or "-": RFC 5424 §6.2.4.
func hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" || len(name) > 255 || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "-"
	}
	return name
}
