package config

import (
	"log/slog"
	"net/netip"
	"time"
)

// Default returns the config that a file starts from, which is also that of an
// empty file: everything is rejected.
func Default() *Config {
	return &Config{
		TUN: TUN{
			Name: "tunroute0",
			// What programs and paths are used to. A larger one saves
			// packets between the kernel and us, but a program that
			// measures the path would then be told what is not so.
			MTU: 1500,
			// On two processors a second changes nothing that can be
			// measured; a single flow has one in any case.
			Queues: 1,
			Routes: []netip.Prefix{
				netip.MustParsePrefix("0.0.0.0/0"),
				netip.MustParsePrefix("::/0"),
			},
			// The port of SOCKS: easy to remember, and neither one of the
			// kernel's tables (253 to 255) nor one that the common VPNs
			// take (52, 51820).
			Table: 1080,
			// One bit, so that all others can go on meaning what they do;
			// this one, because kube-proxy has bits 14 and 15, and
			// Tailscale 16 to 23.
			Mark: Mark{Value: 1 << 26, Mask: 1 << 26},
		},
		DNS: DNS{
			// Set aside for benchmarks between networks (RFC 2544 §C.2.2),
			// not routed on the Internet, and what others of this kind use.
			Range4: netip.MustParsePrefix("198.18.0.0/15"),
			// A unique local prefix (RFC 4193) whose global ID spells
			// "tunro". Two gateways have to agree on it, so it is not
			// random.
			Range6: netip.MustParsePrefix("fd74:756e:726f::/64"),
			// The shortest that is not "do not keep at all", which some
			// resolvers take for an error. A fake address costs nothing to
			// ask for again.
			TTL: time.Second,
			// What programs have been seen to keep an address for that
			// should have asked again.
			Quarantine: time.Hour,
			Resolvers:  []Resolver{{URL: "system"}},
			Hosts:      []string{systemHosts},
			Capture:    true,
		},
		// It says what is there, and nothing of who is behind it.
		Ident: Ident{User: "tunroute"},
		Timeouts: Timeouts{
			// Linux sends its SYN at 0, 1, 3 and 7 seconds: three may be
			// lost.
			Connect: 10 * time.Second,
			// Two short exchanges with a server that has just accepted;
			// the time is for one that looks users up elsewhere.
			Negotiate: 10 * time.Second,
			// Danted gives its own connect 30 s and then says why it
			// failed; waiting for a little longer hears it.
			Request: 35 * time.Second,
			// RFC 4787 REQ-5: not less than two minutes.
			UDPIdle: 2 * time.Minute,
		},
		Limits: Limits{
			// Each costs two goroutines, a socket and up to two buffers of
			// 32 KiB: 1.5 GB with all of them busy, and below the 20,000
			// open files that services are commonly allowed.
			Flows: 16384,
			// Each costs a goroutine and a socket, some 16 KB, so 64 MB.
			// At a dial of 100 ms that is 40,000 connections a second.
			HalfOpen: 4096,
			// A quarter of all, so that one client that scans a network
			// leaves room for the others.
			HalfOpenPerSource: 1024,
			// Each costs a socket, and through SOCKS a connection too.
			UDPSessions: 4096,
		},
		Log: Log{Level: Level(slog.LevelInfo), Format: Text, To: []LogTo{{Kind: LogStderr}}},
	}
}
