package interop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"tunroute/router/interop/lab"
)

// roles are what the test binary does when it runs inside, by its first
// argument.
var roles = map[string]func(args []string) error{
	"generate": generate,
	"udp":      udpRole,
	"short":    shortRole,
}

// generate SEED SIZE prints a stream as the server at lab.StreamPort expects it.
func generate(args []string) error {
	var seed uint64
	var size int64
	if _, err := fmt.Sscan(args[0]+" "+args[1], &seed, &size); err != nil {
		return err
	}
	if _, err := fmt.Printf("%d %d\n", seed, size); err != nil {
		return err
	}
	// Without ReaderFrom, for the sake of the buffer's size.
	out := struct{ io.Writer }{os.Stdout}
	_, err := io.CopyBuffer(out, lab.Stream(seed+lab.UpSeed, size), make([]byte, 64<<10))
	return err
}

// udpWait is how long to wait for an answer to a datagram, which is sent so many
// times: where a machine is busy, datagrams get lost, and not by us. Who is never
// answered has failed.
const (
	udpWait  = 3 * time.Second
	udpTries = 3
)

// udpRole SIZE [connect] TARGET... sends a datagram to each target in turn, all
// from one socket, waits for its answer, and prints a udpResult. With connect
// the socket is connected and sees errors.
func udpRole(args []string) error {
	size, targets := atoi(args[0]), args[1:]
	connected := targets[0] == "connect"
	if connected {
		targets = targets[1:]
	}
	var to []netip.AddrPort
	for _, s := range targets {
		a, err := netip.ParseAddrPort(s)
		if err != nil {
			return err
		}
		to = append(to, a)
	}
	var c *net.UDPConn
	var err error
	if connected {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to[0]))
	} else {
		c, err = net.ListenUDP("udp", nil)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	var r udpResult
	payload, before, b := make([]byte, size), []byte(nil), make([]byte, 1<<16)
	for i, a := range to {
		for j := range payload {
			payload[j] = byte(i + j + j>>8)
		}
		var start time.Time
		var n int
		var from netip.AddrPort
		for try := range udpTries {
			start = time.Now()
			if connected {
				_, err = c.Write(payload)
			} else {
				_, err = c.WriteToUDPAddrPort(payload, a)
			}
			if err == nil {
				c.SetReadDeadline(start.Add(udpWait))
				n, from, err = c.ReadFromUDPAddrPort(b)
				for err == nil && r.Lost > 0 && bytes.Equal(b[:n], before) { // it was late, not lost
					n, from, err = c.ReadFromUDPAddrPort(b)
				}
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if try < udpTries-1 {
				r.Lost++
			}
		}
		r.Took = append(r.Took, time.Since(start))
		r.From = append(r.From, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		said := ""
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			said = errno.Error()
		} else if err != nil {
			said = err.Error()
		} else if !bytes.Equal(b[:n], payload) {
			r.Wrong = append(r.Wrong, fmt.Sprintf("%v answered %d bytes which are not the %d that it was sent", from, n, size))
		}
		r.Err = append(r.Err, said)
		before = bytes.Clone(payload)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

func atoi(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}
