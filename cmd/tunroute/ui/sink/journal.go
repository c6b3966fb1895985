package sink

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"
)

// JournalSocket is where systemd's journal listens.
const JournalSocket = "/run/systemd/journal/socket"

// JournalOptions configure a [Journal].
type JournalOptions struct {
	Socket   string       // "": JournalSocket
	Dial     Dial         // nil: as package net does
	JSON     bool         // MESSAGE is the whole record, in JSON
	Level    slog.Leveler // nil: info
	Complain func(error)  // is told, rarely, why messages are lost; nil discards
}

// Journal is a slog.Handler that sends to systemd's journal: MESSAGE is as a syslog
// message has it, and each attribute is a field besides, as TUNROUTE_DST for dst.
// [Sender.Run] must run for it to.
type Journal struct {
	*Sender
	*frame
	inner slog.Handler

	prefix string // of the fields
	fields []byte // of WithAttrs
}

// NewJournal returns a Journal. It opens nothing.
func NewJournal(o JournalOptions) *Journal {
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.Socket == "" {
		o.Socket = JournalSocket
	}
	j := &Journal{
		Sender: newSender("journal "+o.Socket, func(ctx context.Context) (net.Conn, error) { return o.Dial(ctx, "unixgram", o.Socket) }, o.Complain),
		frame:  &frame{head: func(b []byte, _ slog.Record) []byte { return b }, text: !o.JSON},
		prefix: "TUNROUTE_",
	}
	j.inner = newInner(&j.buf, o.JSON, o.Level)
	j.note = j.noteLost
	return j
}

// Enabled implements slog.Handler.
func (j *Journal) Enabled(ctx context.Context, l slog.Level) bool { return j.inner.Enabled(ctx, l) }

// WithAttrs implements slog.Handler.
func (j *Journal) WithAttrs(as []slog.Attr) slog.Handler {
	with := *j
	with.inner, with.fields = j.inner.WithAttrs(as), slices.Clone(j.fields)
	for _, a := range as {
		with.fields = appendAttr(with.fields, j.prefix, a)
	}
	return &with
}

// WithGroup implements slog.Handler.
func (j *Journal) WithGroup(name string) slog.Handler {
	with := *j
	with.inner, with.prefix = j.inner.WithGroup(name), j.prefix+fieldName(name)+"_"
	return &with
}

// Handle implements slog.Handler.
func (j *Journal) Handle(ctx context.Context, r slog.Record) error {
	text, err := j.message(ctx, r, j.inner)
	if err == nil {
		j.put(j.datagram(text, r))
	}
	return err
}

func (j *Journal) noteLost(lost uint64) []byte {
	r := slog.NewRecord(time.Now(), slog.LevelWarn, "log messages were lost", 0)
	r.AddAttrs(slog.Uint64("messages", lost))
	text, err := j.message(context.Background(), r, j.inner)
	if err != nil {
		return nil // of two words and a number: never
	}
	return j.datagram(text, r)
}

// datagram returns a record in systemd's native protocol:
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
func (j *Journal) datagram(text []byte, r slog.Record) []byte {
	b := appendField(make([]byte, 0, 128+2*len(text)), "MESSAGE", text)
	b = append(b, "\nPRIORITY="...)
	b = append(b, byte('0'+severity(r.Level)))
	b = append(b, "\nSYSLOG_IDENTIFIER="+appName+"\n"...)
	b = append(b, j.fields...)
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, j.prefix, a)
		return true
	})
	return b
}

// appendAttr appends the field, or fields, of an attribute, each with its line end.
func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += fieldName(a.Key) + "_"
		}
		for _, a := range v.Group() {
			b = appendAttr(b, prefix, a)
		}
		return b
	}
	if a.Key == "" {
		return b
	}
	return append(appendField(b, prefix+fieldName(a.Key), cut([]byte(v.String()), maxMessage)), '\n')
}

// appendField appends a field without its line end.
func appendField(b []byte, name string, value []byte) []byte {
	b = append(b, name...)
	if bytes.IndexByte(value, '\n') < 0 {
		return append(append(b, '='), value...)
	}
	b = append(b, '\n')
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	return append(b, value...)
}

// fieldName returns what the journal takes of a key: upper-case letters, digits and
// underscores.
func fieldName(key string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
}
