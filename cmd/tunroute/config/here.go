package config

import (
	"strings"

	"tunroute/router/rule"
)

// meantHere reports whether a canonical name means something in this network only,
// so that nobody at the far end could say what: asked there it leaks, and with a
// fake address for each a search list never gets to its end. Everything below such a
// name is one as well, but for names without a dot.
func meantHere(name string) bool {
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		return true // RFC 8499: a host name that some search list completes
	}
	switch name[dot+1:] {
	case "local": // RFC 6762 §3, and cluster.local of Kubernetes
		return true
	case "arpa":
		for _, zone := range hereInArpa {
			if rest, ok := strings.CutSuffix(name[:dot], zone); ok && (rest == "" || rest[len(rest)-1] == '.') {
				return true
			}
		}
	}
	return false
}

// MeantElsewhere reports whether nobody on the Internet can say what a canonical name
// with a dot is: it means something in one network only, or is an onion service (RFC 7686
// §2), which Tor finds without DNS.
func MeantElsewhere(name string) bool {
	name = rule.Host(name)
	return strings.Contains(name, ".") && meantHere(name) || name == "onion" || strings.HasSuffix(name, ".onion")
}

// hereInArpa are home.arpa (RFC 8375) and the reverse zones of addresses that are
// used by many networks (RFC 6303 §4), without the last label.
var hereInArpa = []string{
	"home",
	"10.in-addr", "168.192.in-addr", "254.169.in-addr", "127.in-addr", "0.in-addr",
	"16.172.in-addr", "17.172.in-addr", "18.172.in-addr", "19.172.in-addr",
	"20.172.in-addr", "21.172.in-addr", "22.172.in-addr", "23.172.in-addr",
	"24.172.in-addr", "25.172.in-addr", "26.172.in-addr", "27.172.in-addr",
	"28.172.in-addr", "29.172.in-addr", "30.172.in-addr", "31.172.in-addr",
	"c.f.ip6", "d.f.ip6", "8.e.f.ip6", "9.e.f.ip6", "a.e.f.ip6", "b.e.f.ip6",
	"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6",
}
