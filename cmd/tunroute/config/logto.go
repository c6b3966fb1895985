package config

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// LogTo is where a log is kept.
type LogTo struct {
	Kind LogKind
	File string // of LogFile, as the config has it

	// Of LogSyslog: a unix socket or else a server, and what it is told.
	Socket   string
	Server   netip.AddrPort
	Facility Facility
	RFC3164  bool

	// Instead of the general ones where they are not nil. Of two levels the higher
	// counts.
	Level  *Level
	Format *Format
}

// LogEvent is what can be logged of a flow.
type LogEvent uint8

// The events.
const (
	LogConnect LogEvent = iota + 1
	LogError
	LogDisconnect
	LogNone // and nothing else
)

var logEvents = enum{"", "connect", "error", "disconnect", "none"}

// String returns the event as the config has it.
func (e LogEvent) String() string { return logEvents.text(int(e)) }

// MarshalText returns what String does.
func (e LogEvent) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// LogKind is what kind of place a log is kept in.
type LogKind uint8

// The kinds.
const (
	LogStderr LogKind = iota
	LogStdout
	LogJournald
	LogSyslog
	LogFile
)

var logKinds = enum{"stderr", "stdout", "journald", "syslog", "file"}

// Facility is who a syslog server takes a message to be from, as RFC 5424 §6.2.1
// numbers them.
type Facility uint8

// facilities have the names that syslog.conf(5) has; 12 to 15 have none that all know.
var facilities = enum{
	"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
	"", "", "", "", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
}

const (
	facilityDaemon Facility = 3

	devLog     = "/dev/log"
	syslogPort = 514
)

// logMapping is a LogTo that is written as a mapping.
type logMapping struct {
	File     string   `yaml:"file"`
	Syslog   syslogAt `yaml:"syslog"`
	Facility Facility `yaml:"facility"`
	RFC      rfc      `yaml:"rfc"`
	Level    Level    `yaml:"level"`
	Format   Format   `yaml:"format"`
}

// syslogAt is where a syslog server is.
type syslogAt struct {
	socket string
	server netip.AddrPort
}

// rfc is the format of syslog messages.
type rfc uint8

var rfcs = enum{"5424", "3164"}

func parseSyslogAt(s string) (syslogAt, error) {
	kind, where, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		if !strings.HasPrefix(where, "/") {
			return syslogAt{}, parseError(s, "is not a socket by its whole path", "write unix:/dev/log, or the path that your syslog server has")
		}
		return syslogAt{socket: where}, nil
	case "udp":
		ap, err := netip.ParseAddrPort(where)
		if a, aerr := netip.ParseAddr(strings.Trim(where, "[]")); aerr == nil {
			ap, err = netip.AddrPortFrom(a, syslogPort), nil
		}
		if err != nil || ap.Port() == 0 || ap.Addr().IsUnspecified() {
			// A name would have to be resolved by way of ourselves.
			return syslogAt{}, parseError(s, "is not a server by its address", "write an address, as in udp:192.0.2.1 or udp:[2001:db8::1]:514")
		}
		return syslogAt{server: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}, nil
	}
	return syslogAt{}, parseError(s, "is not a syslog server", "write unix:/dev/log, or udp:ADDRESS")
}

func (t *LogTo) decodeNode(d *decoder, n *yaml.Node) {
	if n.Kind != yaml.MappingNode {
		text, ok := d.scalar(n, "an entry of to")
		if !ok {
			return
		}
		i, hint := logKinds[:LogFile].parse(text)
		switch {
		case i >= 0:
			*t = LogTo{Kind: LogKind(i)}
			if t.Kind == LogSyslog {
				*t = LogTo{Kind: LogSyslog, Socket: devLog, Facility: facilityDaemon, RFC3164: true}
			}
		case strings.ContainsAny(text, "/."):
			d.errorf(n, "write {file: "+short(text)+"} for a file", "%q is not a place to log to", short(text))
		default:
			d.errorf(n, hint, "%q is not a place to log to", short(text))
		}
		return
	}
	before := len(d.errs)
	var m logMapping
	d.fields(n, reflect.ValueOf(&m).Elem(), "an entry of to")
	if len(d.errs) > before {
		return
	}
	has := func(key string) bool { return valueAt(n, key) != n }
	switch {
	case has("file") == has("syslog"):
		d.errorf(n, "write {file: PATH} or {syslog: WHERE}, each as an entry of its own", "an entry of to has one of file and syslog")
	case has("file"):
		for _, key := range []string{"facility", "rfc"} {
			if has(key) {
				d.errorf(valueAt(n, key), "leave it out", "%s is for syslog", key)
			}
		}
		if m.File == "" {
			d.errorf(valueAt(n, "file"), "write the path of a file", "file is empty")
		}
		*t = LogTo{Kind: LogFile, File: m.File}
	default:
		*t = LogTo{Kind: LogSyslog, Socket: m.Syslog.socket, Server: m.Syslog.server, Facility: facilityDaemon, RFC3164: rfcs[m.RFC] == "3164"}
		if has("facility") {
			t.Facility = m.Facility
		}
		if !has("rfc") {
			// Those that read it expect what syslog(3) sends: rsyslog, as it comes,
			// and journald take the new format for a part of the message there.
			t.RFC3164 = t.Socket == devLog
		}
	}
	if has("level") {
		t.Level = &m.Level
	}
	if has("format") {
		t.Format = &m.Format
	}
}

func (l *Log) decodeNode(d *decoder, n *yaml.Node) {
	d.fields(n, reflect.ValueOf(l).Elem(), "log")
	at := valueAt(n, "to")
	if len(l.To) == 0 && at != n && at.Kind == yaml.SequenceNode && len(at.Content) == 0 {
		d.errorf(at, "write stderr, or leave the key out", "to is an empty list")
	}
	for i, a := range l.To {
		if slices.ContainsFunc(l.To[:i], a.same) {
			d.errorf(at, "leave one of them out", "%s is there twice", a)
		}
	}
}

// same says that two are the same place.
func (t LogTo) same(u LogTo) bool {
	return t.Kind == u.Kind && t.File == u.File && t.Socket == u.Socket && t.Server == u.Server
}

// String returns the place without its options.
func (t LogTo) String() string {
	switch t.Kind {
	case LogFile:
		return "file " + t.File
	case LogSyslog:
		return "syslog " + t.at()
	}
	return logKinds.text(int(t.Kind))
}

func (t LogTo) at() string {
	if t.Socket != "" {
		return "unix:" + t.Socket
	}
	return "udp:" + t.Server.String()
}

// Path returns the path of a file to log to: one without a leading slash starts at the
// directory of the config.
func (c *Config) Path(t LogTo) string {
	if filepath.IsAbs(t.File) {
		return t.File
	}
	return filepath.Join(filepath.Dir(c.File), t.File)
}

// MarshalYAML writes the place as the config has it.
func (t LogTo) MarshalYAML() (any, error) {
	out := struct {
		File     string  `yaml:"file,omitempty"`
		Syslog   string  `yaml:"syslog,omitempty"`
		Facility string  `yaml:"facility,omitempty"`
		RFC      int     `yaml:"rfc,omitempty"`
		Level    *Level  `yaml:"level,omitempty"`
		Format   *Format `yaml:"format,omitempty"`
	}{File: t.File, Level: t.Level, Format: t.Format}
	switch t.Kind {
	case LogFile:
		return out, nil
	case LogSyslog:
		out.Syslog, out.Facility, out.RFC = t.at(), facilities.text(int(t.Facility)), 5424
		if t.RFC3164 {
			out.RFC = 3164
		}
		return out, nil
	}
	return logKinds.text(int(t.Kind)), nil
}

// SameSinks says that both log to the same places in the same way, but for the general
// level.
func (l Log) SameSinks(m Log) bool {
	l.Level, m.Level = 0, 0
	return reflect.DeepEqual(l, m)
}

func parseFacility(s string) (Facility, error) {
	i, err := parseEnum("facility of syslog", facilities, s)
	return Facility(i), err
}

func parseRFC(s string) (rfc, error) {
	i, hint := rfcs.parse(strings.TrimSpace(strings.TrimPrefix(strings.ToLower(s), "rfc")))
	if i < 0 {
		if hint == "" {
			hint = "write 5424 or 3164"
		}
		return 0, parseError(s, "is not a format of syslog messages", hint)
	}
	return rfc(i), nil
}
