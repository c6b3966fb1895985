package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"tunroute/router/flow"
)

// DestKind says what a [Dest] stands for.
type DestKind uint8

// The kinds of destinations. The zero DestKind is none of them.
const (
	Addresses    DestKind = iota + 1 // the addresses of Prefix
	ExactName                        // Name and no other
	NameAndBelow                     // Name and every name that ends in a dot and Name
	NamePattern                      // as many labels as Name has, each equal or a "*" in Name
	EveryName                        // every name, but no address without one
)

// Dest is one entry of a rule's To. [ParseDest] makes one; Dests are comparable.
type Dest struct {
	Kind   DestKind
	Name   string       // canonical (see [flow.CanonicalName]); "" for Addresses and EveryName
	Prefix netip.Prefix // masked and unmapped; for Addresses only
}

// String returns d as [ParseDest] reads it.
func (d Dest) String() string {
	switch d.Kind {
	case Addresses:
		return prefixString(d.Prefix)
	case ExactName, NamePattern:
		return d.Name
	case NameAndBelow:
		return "." + d.Name
	case EveryName:
		return "."
	}
	return "invalid destination"
}

// MarshalText returns what String does.
func (d Dest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// check tells whether d is one that ParseDest could have made.
func (d Dest) check() error {
	if d.Kind == 0 || d.Kind > EveryName {
		return errors.New("destination without a kind")
	}
	back, err := ParseDest(d.String())
	switch {
	case err != nil:
		return err
	case back != d:
		return fmt.Errorf("destination %q is not in canonical form", d)
	}
	return nil
}

// ParseError says why a text is not a condition. Its message has no hint.
type ParseError struct {
	Text   string // what was written
	Reason string // continues a sentence that begins with Text
	Hint   string // what to write instead
}

// Error returns the text, shortened if need be, and the reason.
func (e *ParseError) Error() string {
	return fmt.Sprintf("%q %s", shorten(e.Text), e.Reason)
}

// shorten bounds what of a bad text gets into a message.
func shorten(s string) string {
	const enough = 80 // longer than any sensible name, and still one line
	if len(s) <= enough {
		return s
	}
	return strings.ToValidUTF8(s[:enough], "") + "..."
}

func parseError(text, reason, hint string) error {
	return &ParseError{Text: text, Reason: reason, Hint: hint}
}

func portError(text, host, port string) error {
	return parseError(text, "has a port in it", "write to: "+host+" and port: "+port)
}

// ParseDest parses one entry of a rule's To:
//
//	10.0.0.0/8     the addresses of a prefix
//	10.0.0.1       one address; IPv6 with or without brackets
//	example.org    that name and no other; also written =example.org
//	.example.org   the name and everything below it
//	*.example.org  names with one more label; "*" may stand for any label
//	.              every name, but no address without one
//
// Every error is a [*ParseError].
func ParseDest(s string) (Dest, error) {
	switch {
	case s == "":
		return Dest{}, parseError(s, "is no destination", `"." is every name; a rule without to matches everything`)
	case s == ".":
		return Dest{Kind: EveryName}, nil
	case strings.Contains(s, "://"):
		return Dest{}, parseError(s, "is a URL, not a destination", "write only its host, and its port as port")
	}
	if p, ok, err := parseAddresses(s); err != nil && ok {
		return Dest{}, err
	} else if ok {
		return Dest{Kind: Addresses, Prefix: p}, nil
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return Dest{}, portError(s, ap.Addr().String(), strconv.Itoa(int(ap.Port())))
	}
	return parseName(s)
}

// parseName parses the entries of To that are names.
func parseName(s string) (Dest, error) {
	kind, bare := ExactName, s
	switch s[0] {
	case '=':
		bare = s[1:]
	case '.':
		kind, bare = NameAndBelow, s[1:]
	}
	if _, isAddr, _ := parseAddresses(bare); isAddr {
		return Dest{}, parseError(s, "mixes an address with the sign for names", "write "+bare)
	}
	name, err := flow.CanonicalName(bare)
	switch {
	case errors.Is(err, flow.ErrEmptyName):
		return Dest{}, parseError(s, "has no name in it", "\".\" is every name, \".example.org\" the name and all below")
	case errors.Is(err, flow.ErrBadLabel):
		return Dest{}, parseError(s, "has an empty label (two dots in a row)", "take one of the dots away")
	case err != nil:
		return Dest{}, parseError(s, "is a "+err.Error(), "no server could be sent it")
	}
	if host, port, ok := strings.Cut(name, ":"); ok {
		if _, err := ParsePorts(port); err == nil {
			return Dest{}, portError(s, host, port)
		}
	}
	stars := 0
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if label == "*" {
			stars++
			continue
		}
		if reason, hint := badLabel(label); reason != "" {
			return Dest{}, parseError(s, reason, hint)
		}
	}
	if flow.EndsInNumber(name) {
		return Dest{}, parseError(s, "ends in a number, as only addresses do", "write an address in full: four numbers for IPv4")
	}
	if stars > 0 {
		switch {
		case kind == NameAndBelow:
			return Dest{}, parseError(s, `has a "*" and a leading dot`, `"*" is exactly one label; ".example.org" is everything below`)
		case s[0] == '=':
			return Dest{}, parseError(s, `has a "*" and a leading "="`, `leave out the "="`)
		case name == "*":
			return Dest{}, parseError(s, "would match names of one label only", `"." is every name; a rule without to matches everything`)
		}
		kind = NamePattern
	}
	return Dest{Kind: kind, Name: name}, nil
}

// badLabel says what is wrong with one label of a name, or "".
func badLabel(label string) (reason, hint string) {
	for i := range len(label) {
		switch c := label[i]; {
		case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-', c == '_', c >= 0x80:
		case c == '*':
			return `has a "*" beside other letters`, `"*" stands for a whole label, as in *.example.org`
		case c == '/':
			return "has a slash in it, as no name has", "a prefix is an address, a slash and a number of bits: 10.0.0.0/8"
		default:
			return fmt.Sprintf("has %q in it, as no name has", c), "names have letters, digits, \"-\" and \"_\""
		}
	}
	if ascii, err := toASCII(label); err != nil {
		return err.Error(), "save the file as UTF-8, or write the xn-- form"
	} else if len(ascii) > maxLabel {
		return "has a label longer than 63 bytes", "no name in DNS has"
	}
	return "", ""
}

// maxLabel is the longest label that DNS can carry (RFC 1035 §2.3.4).
const maxLabel = 63
