package outbound_test

import (
	"net/netip"
	"syscall"
	"testing"

	"tunroute/router/flow"
	"tunroute/router/interop/servers"
	"tunroute/router/outbound"
	"tunroute/router/outbound/outboundtest"
)

// The suite through servers that this project did not write. What they do not
// do, they were seen not to do: microsocks loses the answer after our FIN, ssh -D
// hangs up where others reply, Dante has one SOCKS4 reply for all failures.
func TestThirdPartyServers(t *testing.T) {
	const header = 10
	six := netip.IPv6Loopback()
	dante := servers.Options{External: []netip.Addr{loopback, six}, Config: "udp.connectdst: no"}
	dante6 := dante
	dante6.Listen = six
	udp := outboundtest.Options{MaxUDP: 65507 - header}
	udp2 := outboundtest.Options{MaxUDP: 65507 - 2*header}
	// By default danted's relay hears nobody but whom it has sent to last.
	danteDefault := servers.Options{External: dante.External}
	udpDefault := outboundtest.Options{MaxUDP: 65507 - header, NoStrangers: true}
	micro := outboundtest.Options{NoHalfClose: true, NoUDP: true}
	ssh := outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoUDP: true}
	ssh4 := ssh
	ssh4.NoIPv6 = true

	type hop struct {
		link
		kind   servers.Kind
		server servers.Options
	}
	tests := []struct {
		name    string
		hops    []hop
		options outboundtest.Options
	}{
		{"dante socks5, as it comes", []hop{{link{"socks5", ""}, servers.Dante, danteDefault}}, udpDefault},
		{"dante socks5", []hop{{link{"socks5", ""}, servers.Dante, dante}}, udp},
		{"dante socks5h", []hop{{link{"socks5h", ""}, servers.Dante, dante}}, udp},
		{"dante socks5h on IPv6", []hop{{link{"socks5h", ""}, servers.Dante, dante6}}, udp},
		{"dante socks4", []hop{{link{"socks4", "ann"}, servers.Dante, dante}}, outboundtest.Options{Refused: syscall.EHOSTUNREACH, NoIPv6: true, NoUDP: true}},
		{"microsocks socks5", []hop{{link{"socks5", ""}, servers.Microsocks, servers.Options{}}}, micro},
		{"microsocks socks5h user", []hop{{link{"socks5h", "ann"}, servers.Microsocks, servers.Options{User: "ann", Password: password("ann")}}}, micro},
		{"ssh -D socks4", []hop{{link{"socks4", ""}, servers.OpenSSH, servers.Options{}}}, ssh4},
		{"ssh -D socks4a", []hop{{link{"socks4a", ""}, servers.OpenSSH, servers.Options{}}}, ssh4},
		{"ssh -D socks5h", []hop{{link{"socks5h", ""}, servers.OpenSSH, servers.Options{}}}, ssh},
		{"dante, dante", []hop{
			{link{"socks5", ""}, servers.Dante, dante},
			{link{"socks5h", ""}, servers.Dante, dante},
		}, udp2},
		{"ssh -D, microsocks, dante", []hop{
			{link{"socks4a", ""}, servers.OpenSSH, servers.Options{}},
			{link{"socks5", "bob"}, servers.Microsocks, servers.Options{User: "bob", Password: password("bob")}},
			{link{"socks5h", ""}, servers.Dante, dante},
		}, outboundtest.Options{NoHalfClose: true, NoUDP: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var at []flow.Target
			for _, h := range tt.hops {
				at = append(at, flow.AddrTarget(servers.Start(t, h.kind, h.server)))
			}
			outboundtest.Run(t, tt.options, func(t testing.TB, env outboundtest.Env) outbound.Dialer {
				var d outbound.Dialer = newDirect(t, env.Resolver)
				for i, h := range tt.hops {
					d = newSocks(t, h.options(string(rune('a'+i)), at[i], d, env.Resolver))
				}
				return d
			})
		})
	}
}
