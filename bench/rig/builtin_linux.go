package rig

import (
	"fmt"
	"os/exec"
)

// None returns the way without a router: the client reaches the targets by the
// veth.
func None() Router { return Router{Name: "none", Direct: true} }

// SOCKS returns the client that speaks to the SOCKS server itself.
func SOCKS() Router { return Router{Name: "socks", SOCKS: true} }

// Tunroute returns a program of this project, whose TUN has this MTU, or its own
// default where that is 0. It sends everything to the SOCKS server, or to the
// targets themselves.
func Tunroute(name, program string, mtu int, direct bool) Router {
	via, mtuLine := "socks", ""
	if direct {
		via = "direct"
	}
	if mtu != 0 {
		name = fmt.Sprintf("%s@%d", name, mtu)
		mtuLine = fmt.Sprintf(", mtu: %d", mtu)
	}
	return Router{
		Name: name, MTU: mtu, Direct: direct,
		Run: program + " run -c {{.Dir}}/tunroute.yaml",
		Files: map[string][]string{"tunroute.yaml": {
			"upstreams: {socks: 'socks5://{{.Socks}}'}",
			"rules: [{via: " + via + "}]",
			"tun: {name: {{.Tun}}" + mtuLine + "}",
			// Nobody is there: nothing is asked for. And nothing of a
			// run is left on the machine.
			"dns: {resolvers: '{{.SocksHost}}', state: none}",
			"admin: {socket: off}",
			"log: {level: warn}",
		}},
		Setup: []string{}, // it does that itself
		DNS:   dnsAddr.String(),
	}
}

// Server returns a program of this project as a SOCKS server, which reaches the targets
// directly.
func Server(name, program string) Router {
	return Router{
		Name: name, Serves: true, NoTUN: true, Direct: true,
		Run: program + " run -c {{.Dir}}/server.yaml",
		Files: map[string][]string{"server.yaml": {
			"tun: off",
			"listen: {socks: ['{{.Listen}}']}",
			"rules: [{via: direct}]",
			"dns: {resolvers: '{{.SocksHost}}'}", // has none: nothing is asked for
			"admin: {socket: off}",
			"log: {level: warn}",
		}},
	}
}

// redirectPort is where redsocks listens.
const redirectPort = 12345

// Redirect returns the way of the kernel: nftables sends connections to redsocks,
// which sends them to the SOCKS server. There is no TUN.
func Redirect() Router {
	r := Router{
		Name: "redirect", NoTUN: true, Direct: true, NoIPv6: true,
		Run: "redsocks -c {{.Dir}}/redsocks.conf",
		Files: map[string][]string{"redsocks.conf": {
			"base { log_info = off; daemon = off; redirector = iptables; redsocks_conn_max = 12000; }",
			fmt.Sprintf("redsocks { local_ip = 0.0.0.0; local_port = %d; ip = {{.SocksHost}}; port = {{.SocksPort}}; type = socks5; }", redirectPort),
		}},
		Before: []string{
			"nft add table ip rig",
			"nft add chain ip rig to '{ type nat hook {{if .Lan}}prerouting priority dstnat{{else}}output priority -100{{end}}; }'",
			fmt.Sprintf("nft add rule ip rig to ip daddr {{.Target4}} meta l4proto tcp redirect to :%d", redirectPort),
		},
		Version: "redsocks -v",
	}
	for program, pkg := range map[string]string{"nft": "nftables", "redsocks": "redsocks"} {
		if _, err := exec.LookPath(program); err != nil {
			r.Skip = fmt.Sprintf("%s is not installed (Debian: %s)", program, pkg)
		}
	}
	return r
}
