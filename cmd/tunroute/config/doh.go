package config

import (
	"net/netip"
	"strings"

	"tunroute/router/flow"
)

// Encrypted DNS: what dns.reject-encrypted rejects. The lists are of services that
// programs and systems have built in or offer by a name; docs/dns.md has them too
// (TestEncryptedDNSIsDocumented). They need not be complete: whoever sets up a server
// of his own means to.

// dotPort is that of DNS over TLS (RFC 7858 §3.1) and QUIC (RFC 9250 §4.1.1).
const dotPort = 853

// dohNames are names of services over HTTPS, each with all below it.
var dohNames = []string{
	"dns.google", "dns.google.com", // Google
	"cloudflare-dns.com", "one.one.one.one", // Cloudflare, and its names for browsers
	"dns.quad9.net", "dns9.quad9.net", "dns10.quad9.net", "dns11.quad9.net", "dns12.quad9.net", // Quad9
	"doh.opendns.com", "doh.familyshield.opendns.com", "doh.sandbox.opendns.com", "doh.umbrella.com", // Cisco
	"dns.adguard-dns.com", "unfiltered.adguard-dns.com", "family.adguard-dns.com", "dns.adguard.com", // AdGuard
	"dns.nextdns.io", "doh.cleanbrowsing.org", "freedns.controld.com", "dns.controld.com", "dns.mullvad.net", "doh.dns.sb",
	"dns.alidns.com", "doh.pub", "dns.pub", // AliDNS, DNSPod
	"doh.dns.apple.com",                     // Apple
	"mask.icloud.com", "mask-h2.icloud.com", // Apple's Private Relay, which asks beside us and then goes beside us
}

// dohAddrs are addresses at which a program that knows nothing else finds them.
var dohAddrs = addrSet(
	"8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844",
	"1.1.1.1", "1.0.0.1", "1.1.1.2", "1.0.0.2", "1.1.1.3", "1.0.0.3",
	"2606:4700:4700::1111", "2606:4700:4700::1001", "2606:4700:4700::1112", "2606:4700:4700::1002",
	"2606:4700:4700::1113", "2606:4700:4700::1003",
	"9.9.9.9", "149.112.112.112", "9.9.9.10", "149.112.112.10", "9.9.9.11", "149.112.112.11",
	"2620:fe::fe", "2620:fe::9", "2620:fe::10", "2620:fe::fe:10", "2620:fe::11", "2620:fe::fe:11",
	"208.67.222.222", "208.67.220.220", "2620:119:35::35", "2620:119:53::53",
	"94.140.14.14", "94.140.15.15", "2a10:50c0::ad1:ff", "2a10:50c0::ad2:ff",
	"223.5.5.5", "223.6.6.6",
)

func addrSet(texts ...string) map[netip.Addr]bool {
	set := make(map[netip.Addr]bool)
	for _, t := range texts {
		set[netip.MustParseAddr(t)] = true
	}
	return set
}

// RejectsName reports whether there is to be no such name as this canonical one,
// because it is that of an encrypted DNS service. It does not allocate.
func (x *DNS) RejectsName(name string) bool {
	if !x.RejectEncrypted {
		return false
	}
	for _, n := range dohNames {
		if rest, ok := strings.CutSuffix(name, n); ok && (rest == "" || rest[len(rest)-1] == '.') {
			return true
		}
	}
	return false
}

// RejectsFlow reports whether a flow is one of encrypted DNS and is to be rejected
// before any rule. It does not allocate.
func (x *DNS) RejectsFlow(f *flow.Flow) bool {
	switch {
	case !x.RejectEncrypted:
		return false
	case f.Target.Port == dotPort:
		return true
	case f.Target.Port != 443:
		return false
	}
	return dohAddrs[f.Target.Addr.Unmap()] || f.Target.Name != "" && x.RejectsName(f.Target.Name)
}
