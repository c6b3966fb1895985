package rig

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"tunroute/bench/load"
	"tunroute/bench/netlab"
)

// Topologies.
const (
	// Sidecar has the client and the router on one host:
	//
	//	app (client, router, TUN) ── veth ── srv (SOCKS5 server, targets)
	Sidecar = "sidecar"
	// Gateway has the client behind the router:
	//
	//	lan (client) ── veth ── gw (router, TUN) ── veth ── srv (SOCKS5 server, targets)
	Gateway = "gateway"
)

// Addresses of the lab: those for documentation (RFC 5737, RFC 3849), since the
// range for benchmarks is what routers take for names.
var (
	server4 = netip.MustParsePrefix("192.0.2.1/30") // the SOCKS5 server too
	server6 = netip.MustParsePrefix("2001:db8:1::1/64")
	router4 = netip.MustParsePrefix("192.0.2.2/30") // where the router's connections come from
	router6 = netip.MustParsePrefix("2001:db8:1::2/64")
	gate4   = netip.MustParsePrefix("192.0.2.9/30") // the gateway, for lan
	gate6   = netip.MustParsePrefix("2001:db8:2::1/64")
	lan4    = netip.MustParsePrefix("192.0.2.10/30")
	lan6    = netip.MustParsePrefix("2001:db8:2::2/64")
	tun4    = netip.MustParsePrefix("198.51.100.1/30") // of the TUN, for routers that want one
	tun6    = netip.MustParsePrefix("2001:db8:3::1/64")
)

// The targets are addresses of srv, 8 of IPv4 and 8 of IPv6.
const targets = 8

func target4(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i + 1)}) }

func target6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0x01, 0x13, 15: byte(i + 1)})
}

// socksPort is that of the rig's SOCKS5 server.
const socksPort = 1080

var socksAddr = netip.AddrPortFrom(server4.Addr(), socksPort)

// listen is where a router that serves is spoken to: at its end of the wire to the
// client, or on the host of both by an address that does not leave it.
func (l *lab) listen(v6 bool) netip.AddrPort {
	addrs := [2]netip.Prefix{router4, router6}
	if l.client != l.router {
		addrs = [2]netip.Prefix{gate4, gate6}
	}
	if v6 {
		return netip.AddrPortFrom(addrs[1].Addr(), socksPort)
	}
	return netip.AddrPortFrom(addrs[0].Addr(), socksPort)
}

// dnsAddr is where clients send their questions if the router answers whatever
// they ask; nobody is there.
var dnsAddr = netip.MustParseAddrPort("203.0.113.53:53")

// wireName is the interface of the router's host that leads to srv.
const wireName = "wire0"

// lab is the hosts, and the roles on them.
type lab struct {
	client, router, server *netlab.Host // in sidecar the first two are one
	hosts                  []*netlab.Host

	socks, bulk, request *load.Role // on server
	// load is for what is measured, beside for what happens at the same
	// time: two processes, since goroutines of one would wait for each other.
	load, beside *load.Role
	roles        []*load.Role

	stop sync.Once
}

// newLab makes a lab. With direct the router's host has a way to the targets
// beside the router's; without, what the router does not carry does not arrive.
func newLab(topology string, direct bool, seed uint64) (*lab, error) {
	l := new(lab)
	err := l.build(topology, direct)
	if err == nil {
		err = l.startRoles(seed)
	}
	if err != nil {
		l.close()
		return nil, fmt.Errorf("build the lab: %w", err)
	}
	return l, nil
}

// shareMemory lets the sockets of so many streams have what the kernel has for all
// TCP sockets together (tcp_mem in tcp(7)), which is the hosts' in common. With
// more, segments that have arrived are dropped (TCPRcvQDrop), and what is measured
// then is how long streams wait for their retransmission: seconds, without any
// router as well.
func (l *lab) shareMemory(streams int) error {
	var low, pressure, high int
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_mem")
	if err == nil {
		_, err = fmt.Sscan(string(b), &low, &pressure, &high)
	}
	if err != nil {
		return fmt.Errorf("tcp_mem: %w", err)
	}
	// On its way a stream has three connections, with two buffers each, whose
	// owners fill either at a time.
	const buffers = 3
	most := max(1<<16, low*os.Getpagesize()/(streams*buffers))
	for _, h := range l.hosts {
		for _, s := range [...][2]string{{"net.ipv4.tcp_rmem", "131072"}, {"net.ipv4.tcp_wmem", "16384"}} {
			if err := h.Sysctl(s[0], fmt.Sprintf("4096 %s %d", s[1], most)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lab) host(name string) (*netlab.Host, error) {
	h, err := netlab.NewHost(name)
	if err == nil {
		l.hosts = append(l.hosts, h)
	}
	return h, err
}

func (l *lab) build(topology string, direct bool) (err error) {
	if l.server, err = l.host("srv"); err != nil {
		return err
	}
	name := "app"
	if topology == Gateway {
		name = "gw"
	}
	if l.router, err = l.host(name); err != nil {
		return err
	}
	l.client = l.router
	if err := netlab.Wire(
		netlab.End{Host: l.router, Name: wireName, Addrs: []netip.Prefix{router4, router6}},
		netlab.End{Host: l.server, Name: "wire0", Addrs: []netip.Prefix{server4, server6}},
	); err != nil {
		return err
	}
	var addrs []string
	for i := range targets {
		for _, a := range []netip.Addr{target4(i), target6(i)} {
			addrs = append(addrs, netlab.AddAddr(netip.PrefixFrom(a, a.BitLen()), "lo"))
		}
	}
	if err := l.server.IP(addrs...); err != nil {
		return err
	}
	if direct {
		if err := l.router.IP("route add default via "+server4.Addr().String(),
			"route add default via "+server6.Addr().String()); err != nil {
			return err
		}
	}
	if topology != Gateway {
		return nil
	}
	if l.client, err = l.host("lan"); err != nil {
		return err
	}
	if err := netlab.Wire(
		netlab.End{Host: l.client, Name: "wire0", Addrs: []netip.Prefix{lan4, lan6}},
		netlab.End{Host: l.router, Name: "lan0", Addrs: []netip.Prefix{gate4, gate6}},
	); err != nil {
		return err
	}
	return errors.Join(
		l.router.Sysctl("net.ipv4.ip_forward", "1"),
		l.router.Sysctl("net.ipv6.conf.all.forwarding", "1"),
		l.client.IP("route add default via "+gate4.Addr().String(), "route add default via "+gate6.Addr().String()),
		l.server.IP(fmt.Sprintf("route add %s via %s", lan4.Masked(), router4.Addr()),
			fmt.Sprintf("route add %s via %s", lan6.Masked(), router6.Addr())),
	)
}

func (l *lab) startRoles(seed uint64) error {
	word := strconv.FormatUint(seed, 10)
	for _, r := range []struct {
		role **load.Role
		host *netlab.Host
		args []string
	}{
		{&l.socks, l.server, []string{load.RoleSOCKS, socksAddr.String(),
			netip.AddrPortFrom(server6.Addr(), socksPort).String()}},
		{&l.bulk, l.server, []string{load.RoleBulk, word}},
		{&l.request, l.server, []string{load.RoleRequest, word}},
		{&l.load, l.client, []string{load.RoleClient, word}},
		{&l.beside, l.client, []string{load.RoleClient, word}},
	} {
		role, err := load.StartRole(r.host, r.args...)
		if err != nil {
			return err
		}
		*r.role = role
		l.roles = append(l.roles, role)
	}
	return nil
}

// stopRoles ends all roles, and with them whatever is asked of them. It may be
// called at any time, from any goroutine.
func (l *lab) stopRoles() {
	l.stop.Do(func() {
		for _, r := range l.roles {
			r.Stop()
		}
	})
}

// close ends the roles and removes the hosts.
func (l *lab) close() {
	l.stopRoles()
	for _, h := range l.hosts {
		h.Close()
	}
}
