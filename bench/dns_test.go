package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/cmd/tunroute/engine/enginetest"
	"tunroute/router/outbound/outboundtest"
)

// BenchmarkPathDNS is questions for the address of a name, by UDP, and their
// answers. The name is the same each time, or one that has no address yet. The
// ways:
//
//	direct           sockets of the kernel, and a server that sends the
//	                 question back
//	tunroute-listen  sockets of the kernel, and tunroute's listener (dns.listen)
//	tunroute-tun     the client machine and tunroute's stack
func BenchmarkPathDNS(b *testing.B) {
	server := outboundtest.ServeUDP(b, enginetest.Loopback, func(c *net.UDPConn, from netip.AddrPort, p []byte) {
		p[2] |= 0x80 // an answer
		c.WriteToUDPAddrPort(p, from)
	})
	dial := func(to netip.AddrPort) (datagrams, error) {
		return net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	}
	for _, names := range []string{"leased", "new"} {
		for _, w := range []struct {
			name string
			open func(*enginetest.Lab, netip.AddrPort) (datagrams, error)
		}{
			{"direct", func(*enginetest.Lab, netip.AddrPort) (datagrams, error) { return dial(server) }},
			{"tunroute-listen", func(_ *enginetest.Lab, listener netip.AddrPort) (datagrams, error) { return dial(listener) }},
			{"tunroute-tun", func(l *enginetest.Lab, _ netip.AddrPort) (datagrams, error) {
				return l.Host.DialUDP(netip.AddrPort{}, enginetest.AnyServer)
			}},
		} {
			b.Run("name="+names+"/way="+w.name, func(b *testing.B) {
				b.ReportAllocs()
				// A new one each time, in which no name has an address.
				listener := outboundtest.ClosedPort(b, enginetest.Loopback)
				l := enginetest.Start(b, "rules: [{via: reject}]\ndns: {listen: ['%s']}\nlog: {level: error}\n", listener)
				l.Lookup("ip4", "ready.test") // and so it is
				c, err := w.open(l, listener)
				if err != nil {
					b.Fatal(err)
				}
				defer c.Close()
				q, err := newQuestion(names)
				if err != nil {
					b.Fatal(err)
				}
				pingPong(b, c, q.next, isAnswer)
			})
		}
	}
}

// question is a DNS question that asks for another name each time, if that is to
// be new.
type question struct {
	message []byte
	isNew   bool
	n       uint32
}

// newNames is how many names are new before they begin again: somewhat less than
// tunroute has addresses for.
const newNames = 120_000

// numberAt is where the digits of the name of newQuestion begin, behind the
// header, the length of the label, and "new-".
const numberAt = 12 + 1 + len("new-")

// newQuestion returns a question for a name that is "leased" or "new".
func newQuestion(kind string) (*question, error) {
	name, err := dnsmessage.NewName(kind + "-00000000.test.")
	if err != nil {
		return nil, err
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	return &question{message: b, isNew: kind == "new"}, err
}

// next returns the next message, which is good until the next call.
func (q *question) next() []byte {
	if q.isNew {
		q.n = (q.n + 1) % newNames
		for i := range 8 {
			q.message[numberAt+i] = "0123456789abcdef"[q.n>>(28-4*i)&0xf]
		}
	}
	return q.message
}

var errNotAnswer = errors.New("not an answer")

// isAnswer says that b is one, without an error.
func isAnswer(b []byte) error {
	if len(b) < 12 || b[2]&0x80 == 0 || b[3]&0xf != 0 {
		return fmt.Errorf("%w: flags %#x", errNotAnswer, binary.BigEndian.Uint16(b[2:]))
	}
	return nil
}
