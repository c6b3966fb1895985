package rig

import (
	"context"
	"regexp"
)

// Cell is something that is measured. README.md of bench tells how.
type Cell struct {
	Name string
	What string // in a line
	run  func(context.Context, *measurement) error
	fits func(*Router) bool // nil where it is for every router
}

// Cells returns all cells, in the order in which they are measured.
func Cells() []Cell {
	return []Cell{
		{Name: "up1", What: "TCP, 1 stream from the client", run: bulk(1, true, false)},
		{Name: "up8", What: "TCP, 8 streams from the client", run: bulk(8, true, false)},
		{Name: "down1", What: "TCP, 1 stream to the client", run: bulk(1, false, true)},
		{Name: "down8", What: "TCP, 8 streams to the client", run: bulk(8, false, true)},
		{Name: "up512", What: "TCP, 512 streams from the client", run: many(512, true, false)},
		{Name: "down512", What: "TCP, 512 streams to the client", run: many(512, false, true)},
		{Name: "connect", What: "TCP connections with a request each, 64 at a time", run: connect},
		{Name: "keep", What: "requests on 64 TCP connections that stay open", run: keep},
		{Name: "echo", What: "64 bytes there and back by TCP, nothing else going on", run: echo},
		{Name: "echo-load", What: "the same beside 4 streams up and 4 down", run: echoBeside},
		{Name: "udp64", What: "datagrams of 64 bytes to the target", run: datagrams(64), fits: carriesUDP},
		{Name: "udp1400", What: "datagrams of 1400 bytes to the target", run: datagrams(1400), fits: carriesUDP},
		{Name: "udp-echo", What: "datagrams of 64 bytes there and back, 256 on the way", run: echoUDP, fits: carriesUDP},
		{Name: "dns-warm", What: "DNS questions for 1,000 names, 64 on the way", run: dnsWarm, fits: answersDNS},
		{Name: "dns-cold", What: "DNS questions for a name each, 64 on the way", run: dnsCold, fits: answersDNS},
		{Name: "memory", What: "memory of the router with idle TCP connections", run: memory, fits: isProgram},
		{Name: "iperf3-up1", What: "as up1, by iperf3", run: iperf3(1, false), fits: notSOCKS},
		{Name: "iperf3-down1", What: "as down1, by iperf3", run: iperf3(1, true), fits: notSOCKS},
	}
}

// SelectCells returns those cells whose whole name an expression matches.
func SelectCells(expr string) ([]Cell, error) {
	re, err := regexp.Compile("^(?:" + expr + ")$")
	if err != nil {
		return nil, err
	}
	var list []Cell
	for _, c := range Cells() {
		if re.MatchString(c.Name) {
			list = append(list, c)
		}
	}
	return list, nil
}

// carriesUDP: what has no TUN redirects TCP, unless it is a SOCKS server.
func carriesUDP(r *Router) bool { return r.Run == "" || !r.NoTUN || r.Serves }

func answersDNS(r *Router) bool { return r.DNS != "" }

func isProgram(r *Router) bool { return r.Run != "" }

// notSOCKS: the client of others does not speak it.
func notSOCKS(r *Router) bool { return !r.SOCKS && !r.Serves }
