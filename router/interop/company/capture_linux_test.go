package company

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"tunroute/router/interop/lab"
)

// capture is a tcpdump that writes down what passes an interface.
type capture struct {
	file    string
	tcpdump *lab.Shell
}

func startCapture(t *testing.T, n *lab.Node, ifname string) *capture {
	t.Helper()
	lab.Need(t, "tcpdump", "tcpdump")
	file := filepath.Join(lab.Dir(t), "pcap")
	// As root to the end: the directory is nobody else's.
	c := &capture{file, startShell(t, n.Command("tcpdump", "-i", ifname, "-w", file, "-U", "-Z", "root", "--immediate-mode", "-B", "65536"))}
	c.tcpdump.AwaitLog(t, 0, "listening on")
	return c
}

// stop returns all that was seen, as tcpdump has written it.
func (c *capture) stop(t *testing.T) []byte {
	t.Helper()
	if err := c.tcpdump.Process().Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	c.tcpdump.Wait(t)
	if log := c.tcpdump.Log(); !strings.Contains(log, "\n0 packets dropped by kernel") {
		t.Errorf("tcpdump has not seen everything:\n%s", log)
	}
	seen, err := os.ReadFile(c.file)
	if err != nil {
		t.Fatal(err)
	}
	return seen
}

// greetings returns the first that each client has sent to a SOCKS server.
func greetings(t *testing.T, pcap []byte) map[netip.AddrPort][]byte {
	t.Helper()
	// pcap-savefile(5), in the order of this machine and with Ethernet.
	const magic, header, ethernet = 0xa1b2c3d4, 24, 14
	if len(pcap) < header || binary.NativeEndian.Uint32(pcap) != magic || binary.NativeEndian.Uint32(pcap[20:]) != 1 {
		t.Fatal("tcpdump has written something else")
	}
	first := make(map[netip.AddrPort][]byte)
	for rest := pcap[header:]; len(rest) > 0; {
		if len(rest) < 16 || len(rest) < 16+int(binary.NativeEndian.Uint32(rest[8:])) {
			t.Fatal("the capture has no end")
		}
		n := int(binary.NativeEndian.Uint32(rest[8:]))
		frame := rest[16 : 16+n]
		rest = rest[16+n:]
		if n < ethernet+20 || binary.BigEndian.Uint16(frame[12:]) != unix.ETH_P_IP {
			continue
		}
		ip := frame[ethernet:]
		ip = ip[:min(len(ip), int(binary.BigEndian.Uint16(ip[2:])))] // short frames are padded
		if ip[9] != unix.IPPROTO_TCP {
			continue
		}
		tcp := ip[int(ip[0]&15)*4:]
		src, _ := netip.AddrFromSlice(ip[12:16])
		from := netip.AddrPortFrom(src, binary.BigEndian.Uint16(tcp))
		payload := tcp[int(tcp[12]>>4)*4:]
		if binary.BigEndian.Uint16(tcp[2:]) == 1080 && len(payload) > 0 && first[from] == nil {
			first[from] = payload
		}
	}
	return first
}

// checkWire looks for the credentials of the gateways to the Internet, where they have
// to be and where they must not be.
func checkWire(t *testing.T, captures map[string]*capture) {
	for name, c := range captures {
		seen := c.stop(t)
		users, passwords := bytes.Count(seen, []byte(user)), bytes.Count(seen, []byte(password))
		toInternet := strings.HasPrefix(name, "int")
		if (users > 0) != toInternet || (passwords > 0) != toInternet {
			t.Errorf("%s: user and password are %d and %d times on the wire", name, users, passwords)
		}
		first := greetings(t, seen)
		if len(first) == 0 {
			t.Errorf("%s: nobody has come", name)
		}
		none, other := 0, 0
		for from, greeting := range first {
			// Version 5, one method: 0, which is none, or 2, user and password.
			switch string(greeting) {
			case "\x05\x01\x00":
				none++
			case "\x05\x01\x02":
				other++
			default:
				t.Errorf("%s: %v begins with %x", name, from, greeting)
			}
		}
		if !toInternet && other > 0 {
			t.Errorf("%s: %d clients have offered a password", name, other)
		}
		t.Logf("%s: %d greetings with method 0 alone, %d with method 2 alone; %d times %q, %d times the password",
			name, none, other, users, user, passwords)
	}
}
