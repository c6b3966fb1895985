package config

import (
	"crypto/x509"
	"net/netip"
	"time"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// Config is a whole config.
//
// The comments of the fields that have a yaml tag, here and below, are what
// docs/config.md says of the key.
type Config struct {
	// The servers that flows can be sent through. Each has a name of its
	// own, by which rules and other upstreams call it: letters, digits, "-",
	// "_" and ".", at most 63. The value is a URL, or a mapping with the keys
	// below: with `url` it is a server, with `group` a choice among several,
	// which [groups.md](groups.md) tells of. `direct`, `reject`, `drop` and `dns` are built in and cannot be
	// names of upstreams.
	Upstreams Upstreams `yaml:"upstreams"`
	// Where names are resolved.
	Names Names `yaml:"names"`
	// The rules, of which the first that matches a flow decides; a flow
	// that none matches is rejected. [rules.md](rules.md) tells how a rule
	// matches, with examples.
	Rules []Rule `yaml:"rules"`
	// Where SOCKS and HTTP clients come in, whose flows go by the same rules. For
	// `run` only. [listen.md](listen.md) tells of it, with examples.
	Listen Listen `yaml:"listen"`
	// What is let in from outside, to programs behind the TUN.
	// [forward.md](forward.md) tells of it, with examples.
	Forward []Forward `yaml:"forward"`
	// The TUN interface and the routes into it. `queues`, `routes`, `exclude`,
	// `table`, `mark` and `strict` are for `run`: `exec` has a network
	// namespace of its own, from which nothing leads out but its TUN, and one
	// queue. `tun: off` is for a `run` that is a server for the clients of
	// `listen` and nothing else: it needs no privilege then, and changes nothing
	// of the host.
	TUN TUN `yaml:"tun"`
	// The DNS server that gives names fake addresses.
	DNS DNS `yaml:"dns"`
	// Whose our connections are, for SOCKS servers that ask back (RFC 1413): those
	// that go by `rfc931`, as danted and NEC's can, and many that speak SOCKS4. Nobody
	// is answered unless `listen` is given.
	Ident Ident `yaml:"ident"`
	// How long to wait. A duration is a number with its unit: `500ms`,
	// `10s`, `2m`, `1h30m`.
	Timeouts Timeouts `yaml:"timeouts"`
	// How much to hold at once. At a limit, what has been idle for longest
	// makes room; where nothing is idle, the new one is refused.
	Limits Limits `yaml:"limits"`
	// What is logged, and how.
	Log Log `yaml:"log"`
	// How a running daemon is asked and told things: for `run` only.
	// [admin.md](admin.md) has the commands and the metrics.
	Admin Admin `yaml:"admin"`

	File     string `yaml:"-"` // where it was read from; "" for none
	Warnings Errors `yaml:"-"` // what is allowed but probably not meant

	modes rule.NameTable[Mode] // of Names
}

// Upstream is a server that flows can be sent through, or a way out of this
// machine with options of its own. Once parsed its URL is SCHEME://HOST:PORT or
// "direct", and what else stood in it is in the other fields.
type Upstream struct {
	// How it is spoken to and where it is: `SCHEME://HOST:PORT`, with port
	// 1080 where none is given and IPv6 addresses in brackets. `socks4a` and
	// `socks5h` send names to the server; `socks4` and `socks5` resolve them
	// on this machine and send addresses. `http` is an HTTP proxy that has
	// CONNECT, which gets names and carries no UDP; its port has to be given.
	// `socks5h+tls` and so on are SOCKS over TLS, and `https`, with port 443
	// where none is given, is HTTP over TLS: the server's certificate must be
	// good for HOST, and UDP is refused, because it would go beside the TLS.
	// `socks5h+unix:///PATH` and so on are a server on a unix socket of this
	// machine, which carries no UDP. `direct`, without a host, is no server but the way out of this machine, for the sake of `bind`,
	// `interface` and `mark`. `USER:PASSWORD@` in front of the host is the
	// same as the keys `user` and `password`; what has a special meaning in
	// a URL is written as a percent sign and two hexadecimal digits.
	URL string `yaml:"url"`
	// Another upstream, through which this one is reached: a chain. Names go
	// to the last server of the chain only.
	Via string `yaml:"via,omitempty"`
	// The user name, or for SOCKS4 the user id; at most 255 bytes. Like the
	// password it can be `{file: PATH}` or `{env: VARIABLE}`. An HTTP proxy
	// gets it as Basic credentials, and may do without a password. In it stand
	// for what differs from flow to flow: `{rule}` (the number of the rule),
	// `{source}` and `{target}` (with `-` for the colons of IPv6) and `{port}`
	// (of the target), so that a tor keeps such flows on circuits of their own;
	// `{{` stands for a brace.
	User string `yaml:"user,omitempty" secret:"reference"`
	// The password; at most 255 bytes. Better than to write it here is
	// `{file: PATH}`, which reads it from a file (a path without a leading
	// slash starts at the directory of the config; one newline at the end
	// does not count), or `{env: VARIABLE}`. A server that has a password
	// here is not spoken to without it.
	Password Secret `yaml:"password,omitempty"`
	// `gssapi` has a SOCKS5 server and us authenticate each other by Kerberos
	// (RFC 1961), in place of user and password. The tickets are those that kinit
	// has got, or come by `keytab`; `/etc/krb5.conf`, or the file that KRB5_CONFIG
	// says, names the KDC, which is asked directly.
	Auth Auth `yaml:"auth,omitempty"`
	// The Kerberos service of the server: `SERVICE` of the host in `url`, where it
	// is `rcmd` if nothing is said, or `SERVICE/HOST`, or `SERVICE/HOST@REALM`. A
	// server whose `url` has an address needs the HOST. Only with `auth: gssapi`.
	Service string `yaml:"service,omitempty"`
	// How all that goes to the server and back is protected, datagrams among it:
	// `confidentiality` (encrypted), which is the default, `integrity` (for everybody
	// to read, but not to change) or `none` (only the beginning is authenticated). A
	// server that does less is not used. Only with `auth: gssapi`.
	Protection Protection `yaml:"protection,omitempty"`
	// `necgssapi` for a server that takes the protection unprotected, as NEC's
	// does. Only with `auth: gssapi`.
	Compatibility Compatibility `yaml:"compatibility,omitempty"`
	// The keytab with the key that tickets are got by; a path without a leading
	// slash starts at the directory of the config. Where there is none, they are
	// those in `ccache`. Only with `auth: gssapi`.
	Keytab string `yaml:"keytab,omitempty"`
	// Whose key of the keytab it is: `NAME` or `NAME@REALM`; the first one's where
	// nothing is said. Only with `keytab`.
	Principal string `yaml:"principal,omitempty"`
	// The file with the tickets, where it is not what KRB5CCNAME says, or
	// `/tmp/krb5cc_UID` where that says nothing. Only with `auth: gssapi`.
	CCache string `yaml:"ccache,omitempty"`
	// The file with the certificates, in PEM, that the server's must be one of
	// or be signed by, instead of those that this machine trusts; a path
	// without a leading slash starts at the directory of the config. For a
	// server that has signed its own it is that one. Only with TLS.
	CA string `yaml:"ca,omitempty"`
	// The name in the server's certificate, where it is not the host of `url`.
	// Only with TLS.
	ServerName string `yaml:"server-name,omitempty"`
	// Whether greeting, password and request go to a SOCKS5 server at once, so
	// that a connection waits for one round trip instead of two or three. For
	// servers that are known to take it, as danted, `ssh -D`, ss-local and tor
	// do; with microsocks every connection would hang.
	Pipeline bool `yaml:"pipeline,omitempty"`
	// Whether the SOCKS server says success before it knows, as ss-local does:
	// a connection over which nothing comes but its end is then reset, so that
	// the program sees that it broke. It costs more of the processor to relay
	// such a connection.
	EarlyReply bool `yaml:"early-reply,omitempty"`
	// The source address of our connections. Not with `via`.
	Bind netip.Addr `yaml:"bind,omitempty"`
	// The network interface that our connections leave by, whatever the
	// routes say. Linux only. Not with `via`.
	Interface string `yaml:"interface,omitempty"`
	// The firewall mark of our connections, for policy routing; hexadecimal
	// as in `0x20` or decimal. The bits of `tun.mark` are added in `run` and
	// cannot be used here. Linux only. Not with `via`.
	Mark uint32 `yaml:"mark,omitempty"`

	// The members of a group: other upstreams, groups among them, and
	// `direct`. A flow that one of them cannot open is tried through another
	// before its program has been told anything. What follows is for groups
	// only.
	Group []string `yaml:"group,omitempty"`
	// How a group chooses among the members that work: `fallback`, which is
	// the default (the first in the list), `random`, `round-robin`,
	// `least-flows`, `hash` (the same one for the same client) or `fastest`
	// (whose probe took the least time).
	Policy Policy `yaml:"policy,omitempty"`
	// What `hash` goes by: `source`, which is the default, or `target`, the
	// host that the flow wants to go to.
	By HashBy `yaml:"by,omitempty"`
	// How much more than others a member gets, as in `{int1: 3}`; from 1 to
	// 1000, and 1 where nothing is said. Not for `fallback` and `fastest`.
	Weights Weights `yaml:"weights,omitempty"`
	// How many failures in a row make a member bad, so that it gets no flows;
	// 1 where nothing is said, and at most 100. What may as well be about the
	// target counts less, and what surely is does not count.
	MaxFail int `yaml:"maxfail,omitempty"`
	// How long a bad member is left alone, until it is probed; `30s` where
	// nothing is said. If it works then, it gets flows again.
	BadExpire time.Duration `yaml:"badexpire,omitempty"`
	// How a member is probed: `negotiate`, which is the default (up to the
	// user and password), `connect` (the TCP connection only), or a
	// `HOST:PORT` that it has to reach.
	Probe Probe `yaml:"probe,omitempty"`
	// How often members are probed that work; not at all where nothing is
	// said, but for `fastest`, which has `30s`.
	ProbeEvery time.Duration `yaml:"probe-every,omitempty"`
	// How long a member may take before another one is tried beside it: the
	// first that answers is kept. `5s` where nothing is said, and not more.
	// Less costs more connections and waits less.
	Hedge time.Duration `yaml:"hedge,omitempty"`
	// How long all tries for one flow may take together; `60s` where nothing
	// is said.
	Deadline time.Duration `yaml:"deadline,omitempty"`

	Name      string         `yaml:"-"`
	Scheme    Scheme         `yaml:"-"` // of URL; 0 for a group
	Transport Transport      `yaml:"-"` // of URL
	Server    flow.Target    `yaml:"-"` // of URL; the zero Target for Direct, Unix and a group
	Path      string         `yaml:"-"` // of URL; of the socket for Unix
	Roots     *x509.CertPool `yaml:"-"` // what CA has; nil for what this machine trusts
	Line      int            `yaml:"-"` // where the config has it; 0 where there is no file

	at, atURL, atVia, atMark place
	atMembers                []place // of Group
}

// Upstreams are the upstreams in the order of the file.
type Upstreams []*Upstream

// Names says where names are resolved.
//
// A mode is one of three. `remote`: the program gets a fake address, the name
// goes to the last server of the chain, and nobody else is asked. `local`: one
// of `dns.resolvers` is asked and the program gets the true address, so that
// rules about names cannot see the flow. `local-then-remote`: as `local`, and as
// `remote` if there is no such name or no answer; this tells the resolver all
// names that only the far end should know.
//
// The lists make exceptions for names, written as in rules: `example.org` for
// that name, `.example.org` for it and everything below. The longest that fits
// counts. Names that are in none of them and mean something in this network only
// are `local` whatever the default: those without a dot, those below `local` (as
// the ones of a Kubernetes cluster) and `home.arpa`, and the reverse names of
// private addresses.
type Names struct {
	// The mode of names that are in none of the lists.
	Default Mode `yaml:"default"`
	// Names with the mode `remote`.
	Remote []rule.Dest `yaml:"remote"`
	// Names with the mode `local`.
	Local []rule.Dest `yaml:"local"`
	// Names with the mode `local-then-remote`.
	LocalThenRemote []rule.Dest `yaml:"local-then-remote"`

	atDefault, atLocalThenRemote place
}

// Rule says where some flows go.
//
// All keys that it has must match. A key may have one value or a list of them,
// of which one must match.
type Rule struct {
	// Where the flow comes from: addresses and prefixes.
	From []netip.Prefix `yaml:"from,omitempty"`
	// Where the flow wants to go: an address or prefix, `name`, `.suffix`
	// (the domain and everything below it), a name with `*` for single
	// labels, or `.` for every name.
	To []rule.Dest `yaml:"to,omitempty"`
	// The port that the flow wants to go to: a number, a range as in
	// `8000-8100`, or the name of a service as in `https`.
	Port []rule.PortRange `yaml:"port,omitempty"`
	// `tcp` or `udp`.
	Proto []Proto `yaml:"proto,omitempty"`
	// What the client asks for: `connect`, `bind` (to be connected to) or `udp`.
	// What comes from the interface is `connect` or `udp`.
	Command []Command `yaml:"command,omitempty"`
	// Where the flow came in: the name of a listener, or `tun`.
	Inbound []string `yaml:"inbound,omitempty"`
	// Who the client of a listener has proved to be; `*` for everybody who has.
	User []string `yaml:"user,omitempty"`
	// A group that the user is in.
	Group []string `yaml:"group,omitempty"`
	// Where the flow goes: an upstream, or `direct` (out of this machine),
	// `reject` (the program is told at once that it may not), `drop` (the
	// program is told nothing).
	Via string `yaml:"via"`
	// What the flows need besides. `ftp`: the server of an FTP client in active
	// mode connects back, which takes an address that it can reach: BIND of the
	// upstream, or a listener of this machine where the flow goes out of it.
	// [ftp.md](ftp.md) tells of it.
	Helper Helper `yaml:"helper,omitempty"`
	// How many flows it lets through at once, and new ones in a time:
	// `{sessions: 100, rate: 10/s, per: source}`. Either can be left out.
	// `per` is `rule` (all together, which is the default), `source` (each
	// client's address) or `user` (each user; without one, the address). A rate
	// is a number and `s`, `m`, `h` or a duration, as in `5/10s`. One too many
	// is refused. [limits.md](limits.md) tells more.
	Limits RuleLimits `yaml:"limits,omitempty"`
	// How fast the bytes of its flows go, each way: `10MB/s`, or
	// `{up: 1MB/s, down: 80Mbit/s, per: user}`, of which one direction can be
	// left out; `up` is from the client. `per` is as in `limits`. Flows that
	// share it get even parts. [limits.md](limits.md) has the units.
	Bandwidth Bandwidth `yaml:"bandwidth,omitempty"`
	// What is logged of its flows: `connect` (a line when one is connected),
	// `error` (one at the end of a flow that never was) and `disconnect` (one at
	// the end of a flow that was), or `none`. Where nothing is said it is
	// `[error, disconnect]`. [log.md](log.md) has the lines.
	Log []LogEvent `yaml:"log,omitempty"`

	Line int `yaml:"-"` // where the config has it; 0 where there is no file

	at, atVia, atTo, atInbound, atLimits, atBandwidth place
}

// RuleLimits are how many flows a rule lets through.
type RuleLimits struct {
	Sessions int  `yaml:"sessions,omitempty"`
	Rate     Rate `yaml:"rate,omitempty"`
	Per      Per  `yaml:"per,omitempty"`
}

// Bandwidth is how fast the bytes of a rule's flows go.
type Bandwidth struct {
	Up   Speed `yaml:"up,omitempty"`
	Down Speed `yaml:"down,omitempty"`
	Per  Per   `yaml:"per,omitempty"`
}

// Listen is where clients come in.
type Listen struct {
	// Listeners for clients that speak SOCKS4, SOCKS4a, SOCKS5 or HTTP CONNECT,
	// whichever it is; or a list of them. Each is an address, or a mapping with
	// the keys below.
	Socks []Listener `yaml:"socks"`
}

// Listener is a port or socket at which clients come in.
type Listener struct {
	// An address of this machine, with port 1080 where none is given, and
	// `0.0.0.0` or `"::"` for all of them; or `unix:PATH`, a socket.
	At ListenAt `yaml:"at"`
	// What rules and the log call it; `socks` where nothing is said. Several
	// may share a name.
	Name string `yaml:"name,omitempty"`
	// How a client may say who it is, the best first: `none` (not at all), which
	// is the default, `password`, which is the default where there are `users`
	// or `authenticate`, `gssapi` (RFC 1961, with Kerberos), whose user is the
	// principal, as in `alice@EXAMPLE.ORG`, or `ident`, which asks the client's machine
	// (RFC 1413, danted's `rfc931`). Of SOCKS4 clients `none` and `ident` can be true,
	// of HTTP clients all but `gssapi`.
	Auth []Auth `yaml:"auth,omitempty"`
	// The file of users and their passwords, which `tunroute passwd` writes; a path
	// without a leading slash starts at the directory of the config. When it
	// changes it is read again.
	Users string `yaml:"users,omitempty"`
	// A program that knows the users, instead of a file: `command` is its path and
	// its arguments. User and password are the two lines of its standard input; it
	// exits with 0 for yes and with 1 for no, within 10 s.
	Authenticate Authenticate `yaml:"authenticate,omitempty"`
	// The keytab with the keys of our Kerberos service, where it is not what
	// KRB5_KTNAME says, or `/etc/krb5.keytab` where that says nothing; a path without
	// a leading slash starts at the directory of the config. When it changes it is
	// read again. Only with `gssapi`.
	Keytab string `yaml:"keytab,omitempty"`
	// The Kerberos service whose tickets are taken: `SERVICE` for any host that the
	// keytab has a key of, which is `rcmd` if nothing is said, or `SERVICE/HOST`. Only
	// with `gssapi`.
	Service string `yaml:"service,omitempty"`
	// How what clients send and get may be protected: `none`, `integrity`,
	// `confidentiality`, or a list of them; the last two where nothing is said. A
	// client that wants another is answered the strongest of these. curl has `none`
	// only. Only with `gssapi`.
	Protection []Protection `yaml:"protection,omitempty"`
	// `necgssapi` for clients that send the protection unprotected, as NEC's do;
	// others are served as well. Only with `gssapi`.
	Compatibility Compatibility `yaml:"compatibility,omitempty"`
	// The certificate, where clients speak TLS: `cert` and `key` are files in PEM, whose
	// paths start at the directory of the config. When they change they are read again.
	TLS ListenTLS `yaml:"tls,omitempty"`
	// Where the relays of UDP ASSOCIATE are, for who publishes the ports of a container or
	// forwards those of a router: `ports` is a range, as in `40000-40999`, of which each
	// client takes one while it has a relay, and `announce` the address that clients are
	// told, where it is not the one that they have connected to here.
	UDP ListenUDP `yaml:"udp,omitempty"`
	// Who may connect to a unix socket, as in `0660`; `0600` where nothing is said.
	Mode FileMode `yaml:"mode,omitempty"`

	at place
}

// ListenTLS is the certificate of a listener.
type ListenTLS struct {
	Cert string `yaml:"cert,omitempty"`
	Key  string `yaml:"key,omitempty"`
}

// ListenUDP is where the relays of UDP ASSOCIATE are.
type ListenUDP struct {
	Ports    []rule.PortRange `yaml:"ports,omitempty"` // one at most
	Announce netip.Addr       `yaml:"announce,omitempty"`
}

// Authenticate is a program that knows users.
type Authenticate struct {
	Command []string `yaml:"command,omitempty"`
}

// Forward brings connections from outside to a program behind the TUN.
type Forward struct {
	// An address and a port of this machine at which to listen, and `0.0.0.0` or
	// `"::"` for all of its addresses. It is for `via: direct`, or an upstream with
	// the URL `direct`, whose `interface` and `mark` then hold.
	Listen Endpoint `yaml:"listen,omitempty"`
	// Where others connect: this machine, which is the default where there is a
	// `listen`, or a SOCKS server, a chain or a group, which is asked for `BIND`.
	// The server chooses the address, another one after each connection; the log
	// says which.
	Via string `yaml:"via,omitempty"`
	// Who may connect; everybody where nothing is said. Of a single address the
	// server is told, as many want it.
	From []netip.Prefix `yaml:"from,omitempty"`
	// Where the connections go: the address and the port of a program behind the
	// TUN, or a port alone for the machine that has the TUN itself; with `exec`
	// that is the command.
	To ForwardTo `yaml:"to"`
	// Whether the program sees who has connected. Its answers find their way back
	// only where that address is routed into the TUN: always with `exec`, with
	// `run` where `routes` has it and the machine no route of its own. Otherwise
	// the program sees the address of the resolver.
	KeepSource bool `yaml:"keep-source,omitempty"`

	at, atVia, atListen place
}

// TUN is the interface that programs send their packets to.
type TUN struct {
	// The name of the interface; at most 15 letters.
	Name string `yaml:"name"`
	// The largest packet in bytes, IP header included; 1280 to 65535.
	MTU int `yaml:"mtu"`
	// How many queues packets from programs have, each with a goroutine that
	// reads it; 1 to 16. More than one is for Linux; [run.md](run.md) tells
	// who may want that.
	Queues int `yaml:"queues"`
	// The prefixes that are routed into the interface. The fake ranges of
	// `dns` always are.
	Routes []netip.Prefix `yaml:"routes"`
	// The prefixes that stay outside even if `routes` has them.
	Exclude []netip.Prefix `yaml:"exclude"`
	// The number of the first of 129 routing tables for these routes. The
	// priorities of the policy rules go with it; see [run.md](run.md) for two
	// on one host.
	Table uint32 `yaml:"table"`
	// The firewall mark of our own connections, by which they stay out of
	// the interface: a value, or a value and a mask as in `0x10/0xf0`. Bits
	// outside the mask are left alone.
	Mark Mark `yaml:"mark"`
	// Whether packets enter the interface too that have an address of this
	// machine as their source already: answers to connections from outside,
	// which then work only from networks that this machine has a route for
	// (a default route aside), and what a program sends that binds to such
	// an address. And whether IPv6 is refused where `routes` has all of IPv4
	// and nothing of IPv6, or the other way round. While there is no
	// interface, after a crash for example, what `routes` has is refused in
	// any case.
	Strict bool `yaml:"strict"`

	Off bool `yaml:"-"` // there is none

	atExclude, atOff place
}

// DNS is the server that gives names fake addresses.
type DNS struct {
	// The range of fake IPv4 addresses; a prefix from /4 to /29. A large one
	// has room for more names, and gateways agree on more of them.
	Range4 netip.Prefix `yaml:"range4"`
	// The range of fake IPv6 addresses; a prefix from /8 to /125.
	Range6 netip.Prefix `yaml:"range6"`
	// How long a client may keep an answer; from 1s to 1h, in whole seconds.
	TTL time.Duration `yaml:"ttl"`
	// How long an address is kept for its name after the last flow to it has
	// ended, or the last answer with it has run out; from 1s to 30 days. Clients
	// keep answers for longer than these say.
	Quarantine time.Duration `yaml:"quarantine"`
	// The file in which `run` keeps the addresses of names, so that they
	// outlive it however it ends; `none` keeps none. A path without a leading
	// slash starts at the directory of the config. If nothing is said it is
	// called as the interface, as in `/var/lib/tunroute/tunroute0.leases`, or
	// that in the directory of `$STATE_DIRECTORY`, which systemd sets; with `tun:
	// off` it has a name that is made from the path of the config. `exec` keeps
	// none.
	State string `yaml:"state,omitempty"`
	// What else than its name the address of a name follows from; at most 255
	// bytes, and like a password it can be `{file: PATH}` or `{env: VARIABLE}`.
	// Gateways that are to agree have the same, or none. With one nobody can
	// tell beforehand which names come close to each other.
	Key Secret `yaml:"key,omitempty"`
	// Who is asked for names with the mode `local`, for names that go
	// `direct`, for the names of upstreams, and for what is no address of a
	// name with the mode `remote` that goes `direct`: addresses, with port 53
	// where none is given, `tcp://`, `tls://` and `https://` URLs, or `system` for
	// what this machine is set up with. One may be for some names only, and be
	// asked through an upstream: [dns.md](dns.md#resolvers) has its keys.
	Resolvers []Resolver `yaml:"resolvers"`
	// How one of several resolvers is chosen: `failover`, which asks the first,
	// and the next if it does not answer; or `race`, which asks all at once and
	// takes the first answer.
	Strategy Strategy `yaml:"strategy"`
	// Files with names and their addresses, which are looked at before anybody is
	// asked: `system`, for that of this machine, or the path of one, which starts
	// at the directory of the config without a leading slash.
	Hosts []string `yaml:"hosts"`
	// Names that may have addresses of private networks: `example.org`,
	// `.example.org` for it and everything below, or `.` for all. In answers
	// about other names of the public tree they are left out, so that no page
	// reaches into this network by a name of its own. Names that `names` or a
	// resolver's `for` lists may have them too, and all of which `system` says so.
	RebindAllow []rule.Dest `yaml:"rebind-allow"`
	// Who is asked for what is no address of a name with the mode `remote` that
	// goes through a server: addresses of DNS servers, with port 53 where none
	// is given, to which the question goes through that server, by TCP. Where
	// there is none nobody is asked, and such questions are refused.
	RemoteResolvers []netip.AddrPort `yaml:"remote-resolvers"`
	// What is said of the HTTPS and SVCB records of names that have fake
	// addresses: `fetch`, which is what they are without the addresses in them,
	// if somebody may be asked for them; or `nodata`, which is that there are
	// none.
	HTTPS HTTPS `yaml:"https"`
	// Whether these records `keep` the keys with which a program hides the name
	// in its TLS handshake, or the keys are taken out (`strip`).
	ECH ECH `yaml:"ech"`
	// What a name gets that every rule rejects whatever the port is: `lease`,
	// which is a fake address, so that the program hears from its connect that it
	// may not, and the log has the flow; or `nxdomain`, that there is no such name.
	Rejected Rejected `yaml:"rejected"`
	// What a name gets that every rule sends `direct` whatever the port is:
	// `fake` addresses, or its `real` ones from `dns.resolvers`, as with the mode
	// `local`: flows to it are then decided by rules about addresses.
	Direct Answer `yaml:"direct"`
	// Whether DNS by other ways is rejected, so that programs come back to port
	// 53: port 853 of every host, and the names and addresses of well-known
	// services over HTTPS, which [dns.md](dns.md#encrypted-dns) lists.
	RejectEncrypted bool `yaml:"reject-encrypted"`
	// Addresses of this machine on which to answer queries too, with port 53
	// where none is given.
	Listen []netip.AddrPort `yaml:"listen"`
	// Whether every query on port 53 that enters the interface is answered
	// here, whoever it was meant for. In `run`, where `tun.routes` has a
	// default route, queries to a resolver next door enter it too, unless
	// `tun.exclude` has that resolver.
	Capture bool `yaml:"capture"`
}

// Ident is what servers are told that ask whose a connection is.
type Ident struct {
	// Addresses of this machine at which to answer, on port 113: those that our
	// connections to the servers come from, or `0.0.0.0` and `"::"`. Only the server
	// at the other end of a connection is told whose it is. For `run` only.
	Listen []netip.Addr `yaml:"listen"`
	// What the server is told; at most 255 bytes. The variables are those of an
	// upstream's `user`. danted wants the name of a user of its own machine. For
	// an upstream that speaks SOCKS4 and has a `user`, it is that one, because the
	// server compares the two.
	User string `yaml:"user"`
}

// Timeouts is how long to wait.
type Timeouts struct {
	// For a TCP connection to a server, or directly to a target.
	Connect time.Duration `yaml:"connect"`
	// For a server to greet us and to check the password.
	Negotiate time.Duration `yaml:"negotiate"`
	// For a server to connect to the target and say so.
	Request time.Duration `yaml:"request"`
	// For another datagram, until a UDP conversation is over.
	UDPIdle time.Duration `yaml:"udp-idle"`
	// For another byte, either way, until a TCP connection is reset. For ever
	// where nothing is said: a client or server that has gone is noticed without
	// it. RFC 5382 asks for two hours and four minutes at least.
	TCPIdle time.Duration `yaml:"tcp-idle,omitempty"`
	// The same for a connection of which one side has ended its direction. For
	// ever where nothing is said.
	HalfClose time.Duration `yaml:"half-close,omitempty"`
}

// Limits is how much to hold at once.
type Limits struct {
	// TCP connections.
	Flows int `yaml:"flows"`
	// TCP connections that wait for their server's answer.
	HalfOpen int `yaml:"half-open"`
	// The same from one source address.
	HalfOpenPerSource int `yaml:"half-open-per-source"`
	// UDP conversations.
	UDPSessions int `yaml:"udp-sessions"`
	// Flows of one source address, TCP and UDP together; no limit where nothing
	// is said. For this and the limits that follow nothing makes room: one too
	// many is refused. What is rejected does not count. They can be changed by a
	// reload.
	PerSource int `yaml:"per-source,omitempty"`
	// Flows of one user, or of one source address where there is no user.
	PerUser int `yaml:"per-user,omitempty"`
	// New flows in a time, in all: a number and `s`, `m`, `h` or a duration, as
	// in `100/s` or `5/10s`.
	Rate Rate `yaml:"rate,omitempty"`
	// New flows of one source address in a time.
	RatePerSource Rate `yaml:"rate-per-source,omitempty"`
	// New flows of one user in a time, or of one source address where there is
	// no user.
	RatePerUser Rate `yaml:"rate-per-user,omitempty"`
}

// Admin is how a running daemon is asked and told things.
type Admin struct {
	// The unix socket at which the commands `status`, `flows` and `reload` find
	// the daemon: a path that starts with a slash, or `off` for none. Where nothing
	// is said it is `/run/tunroute/NAME.sock`, with the name of the interface, or
	// with `tun: off` one that is made from the path of the config; for a user other
	// than root it is the same below `$XDG_RUNTIME_DIR`. It is for the user that the
	// daemon runs as, and for root.
	Socket string `yaml:"socket"`
	// Addresses and ports of this machine at which Prometheus finds `/metrics`.
	// Nobody is asked who he is; the figures name no client and no target.
	Metrics []Endpoint `yaml:"metrics"`
}

// Log is what is logged.
type Log struct {
	// The least level that is logged: `error`, `warn`, `info` (a line for
	// each flow, at its end) or `debug`.
	Level Level `yaml:"level"`
	// `text` or `json`.
	Format Format `yaml:"format"`
	// Where it is kept, for `run`: `stderr`, `stdout`, `journald`, `syslog`
	// (which is `{syslog: "unix:/dev/log"}`), `{file: PATH}`, or
	// `{syslog: "udp:ADDRESS"}`, with port 514 where none is given. The mappings
	// take `level` and `format` of their own, and for syslog `facility`, which
	// is `daemon` where nothing is said, and `rfc`, `5424` or `3164`.
	// [log.md](log.md) tells more.
	To []LogTo `yaml:"to"`
}
