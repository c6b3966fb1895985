package rule

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// PortRange is the ports from First to Last, both included.
type PortRange struct {
	First, Last uint16
}

// String returns "80" or "8000-8100".
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// MarshalText returns what String does.
func (r PortRange) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// ParsePorts parses a port (443), a range (8000-8100), the name of a service
// (https, see [Services]) or several of them with commas between. Every error
// is a [*ParseError].
func ParsePorts(s string) ([]PortRange, error) {
	var ranges []PortRange
	for item := range strings.SplitSeq(s, ",") {
		r, err := parsePorts(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, r)
	}
	return ranges, nil
}

func parsePorts(s string) (PortRange, error) {
	if port, ok := services[strings.ToLower(s)]; ok {
		return PortRange{port, port}, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if !isRange {
		last = first
	}
	lo, err := parsePort(s, strings.TrimSpace(first))
	if err != nil {
		return PortRange{}, err
	}
	hi, err := parsePort(s, strings.TrimSpace(last))
	if err != nil {
		return PortRange{}, err
	}
	if lo > hi {
		return PortRange{}, parseError(s, "is a range that ends before it begins", fmt.Sprintf("write %d-%d", hi, lo))
	}
	return PortRange{lo, hi}, nil
}

// parsePort parses one end of a range; whole is for the message.
func parsePort(whole, s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	switch {
	case s != "" && strings.Trim(s, "0123456789") == "" && (err != nil || n > 65535):
		return 0, parseError(whole, "is beyond the last port", "ports go from 1 to 65535")
	case err != nil:
		return 0, parseError(whole, "is not a port", "write a number, a range as in 8000-8100, or the name of a service as in https")
	case n == 0:
		return 0, parseError(whole, "has port 0, which no flow has", "ports go from 1 to 65535")
	}
	return uint16(n), nil
}

// Services returns the names that [ParsePorts] knows, sorted.
func Services() []string { return slices.Sorted(maps.Keys(services)) }

// services are the well-known names, as IANA has registered them, of what
// people write rules about; and dns, rdp and others, as people call them.
// /etc/services is not asked: it differs between systems and is missing in
// most containers, and a rule must mean the same everywhere.
var services = map[string]uint16{
	"ftp-data":      20,
	"ftp":           21,
	"ssh":           22,
	"telnet":        23,
	"smtp":          25,
	"whois":         43,
	"domain":        53,
	"dns":           53,
	"tftp":          69,
	"gopher":        70,
	"finger":        79,
	"http":          80,
	"www":           80,
	"kerberos":      88,
	"pop3":          110,
	"ident":         113,
	"nntp":          119,
	"ntp":           123,
	"imap":          143,
	"snmp":          161,
	"snmptrap":      162,
	"irc":           194,
	"ldap":          389,
	"https":         443,
	"microsoft-ds":  445,
	"smb":           445,
	"submissions":   465,
	"smtps":         465,
	"isakmp":        500,
	"syslog":        514,
	"rtsp":          554,
	"nntps":         563,
	"submission":    587,
	"ipp":           631,
	"ldaps":         636,
	"domain-s":      853,
	"dot":           853,
	"rsync":         873,
	"ftps":          990,
	"imaps":         993,
	"pop3s":         995,
	"socks":         1080,
	"openvpn":       1194,
	"ms-sql-s":      1433,
	"mqtt":          1883,
	"radius":        1812,
	"nfs":           2049,
	"stun":          3478,
	"turn":          3478,
	"mysql":         3306,
	"ms-wbt-server": 3389,
	"rdp":           3389,
	"svn":           3690,
	"ipsec-nat-t":   4500,
	"sip":           5060,
	"sips":          5061,
	"xmpp-client":   5222,
	"stuns":         5349,
	"mdns":          5353,
	"postgresql":    5432,
	"amqps":         5671,
	"amqp":          5672,
	"vnc":           5900,
	"redis":         6379,
	"ircs-u":        6697,
	"http-alt":      8080,
	"https-alt":     8443,
	"secure-mqtt":   8883,
	"git":           9418,
	"mongodb":       27017,
}
