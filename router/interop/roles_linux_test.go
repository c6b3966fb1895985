package interop

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"tunroute/router/interop/lab"
)

// roles are what the test binary does when it runs inside, by its first
// argument.
var roles = map[string]func(args []string) error{
	"generate": generateRole,
	"streams":  streamsRole,
	"udp":      udpRole,
	"short":    shortRole,
	"lease":    leaseRole,
	"leased":   leasedRole,
}

// generateRole SEED SIZE prints what generate writes.
func generateRole(args []string) error {
	return generate(os.Stdout, uint64(atoi(args[0])), int64(atoi(args[1])))
}

// generate writes a stream as the server at lab.StreamPort expects it.
func generate(w io.Writer, seed uint64, size int64) error {
	if _, err := fmt.Fprintf(w, "%d %d\n", seed, size); err != nil {
		return err
	}
	// Without ReaderFrom, for the sake of the buffer's size.
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, lab.Stream(seed+lab.UpSeed, size), make([]byte, 64<<10))
	return err
}

// streamsRole SIZE ADDR... opens a stream to each address at lab.StreamPort, the
// first with seed 0, and prints a line for each with the SHA-256 of what came or
// what went wrong. Nothing is sent before all are connected: on a busy machine
// the first ones would take the time that the others need for that.
func streamsRole(args []string) error {
	size, addrs := int64(atoi(args[0])), args[1:]
	lines := make([]string, len(addrs))
	var connecting, running sync.WaitGroup
	for seed, a := range addrs {
		connecting.Add(1)
		running.Go(func() {
			conn, err := net.Dial("tcp", net.JoinHostPort(a, fmt.Sprint(lab.StreamPort)))
			connecting.Done()
			if err == nil {
				connecting.Wait()
				lines[seed], err = transfer(conn.(*net.TCPConn), uint64(seed), size)
			}
			if err != nil {
				lines[seed] = err.Error()
			}
		})
	}
	running.Wait()
	_, err := fmt.Println(strings.Join(lines, "\n"))
	return err
}

// transfer is the client's half of a stream, on a connection that it closes.
func transfer(conn *net.TCPConn, seed uint64, size int64) (sum string, err error) {
	defer conn.Close()
	var sending sync.WaitGroup
	var sent error
	sending.Go(func() {
		if sent = generate(conn, seed, size); sent == nil {
			sent = conn.CloseWrite()
		}
	})
	h := sha256.New()
	_, err = io.Copy(h, conn)
	sending.Wait()
	return hex.EncodeToString(h.Sum(nil)), errors.Join(err, sent)
}

// udpWait is how long to wait for an answer to a datagram, which is sent so many
// times: where a machine is busy, datagrams get lost, and not by us. Who is never
// answered has failed.
const (
	udpWait  = 5 * time.Second
	udpTries = 6
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
				for err == nil && r.Lost > 0 && i > 0 && bytes.Equal(b[:n], before) { // it was late, not lost
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
