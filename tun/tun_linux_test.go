package tun

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"tunroute/tun/nstest"
)

// The topology of these tests, in a namespace of their own:
//
//	kernel, 10.9.0.1 and fd09::1 ── tunN ── Device: plays 10.9.0.2 and fd09::2

const deadline = time.Minute // for what takes milliseconds

// openTUN opens a device with addresses, up.
func openTUN(t *testing.T, c Config) Device {
	t.Helper()
	nstest.NeedTUN(t)
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	up(t, d.Name())
	return d
}

func up(t *testing.T, name string) {
	t.Helper()
	nstest.IP(t, "link set "+name+" addrgenmode none")
	nstest.IP(t, "addr add 10.9.0.1/30 dev "+name)
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		nstest.IP(t, "addr add fd09::1/64 nodad dev "+name)
	}
	nstest.IP(t, "link set "+name+" up")
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		waitLocal(t, name, "fd09::1")
	}
}

// waitLocal waits until the kernel takes packets to a new IPv6 address: its route
// comes later, from a work queue (net/ipv6/addrconf.c, addrconf_dad_work).
func waitLocal(t *testing.T, name, addr string) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); {
		out, err := exec.Command("ip", "-6", "route", "show", "table", "local", "dev", name).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if strings.Contains(string(out), "local "+addr+" ") {
			return
		}
	}
	t.Fatalf("no local route to %s on %s", addr, name)
}

// echo answers every UDP packet that comes out of d until d is closed, and
// returns the error that ended it.
func echo(d Device) <-chan error {
	ended := make(chan error, 1)
	go func() {
		bufs, sizes := buffers(d.BatchSize(), d.MTU())
		for {
			n, err := d.Read(bufs, sizes, Headroom)
			if err != nil {
				ended <- err
				return
			}
			var answers [][]byte
			for i := range n {
				if p := bufs[i][:Headroom+sizes[i]]; turnUDP(p[Headroom:]) {
					answers = append(answers, bytes.Clone(p))
				}
			}
			if len(answers) == 0 {
				continue
			}
			if _, err := d.Write(answers, Headroom); err != nil {
				ended <- err
				return
			}
		}
	}()
	return ended
}

// turnUDP swaps both ends of a UDP packet in place. The checksums are sums, and
// stay right.
func turnUDP(p []byte) bool {
	var addrs, ports []byte
	switch {
	case len(p) >= 28 && p[0] == 0x45 && p[9] == unix.IPPROTO_UDP:
		addrs, ports = p[12:20], p[20:24]
	case len(p) >= 48 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP:
		addrs, ports = p[8:40], p[40:44]
	default:
		return false
	}
	for _, ends := range [...][]byte{addrs, ports} {
		for i, half := 0, len(ends)/2; i < half; i++ {
			ends[i], ends[half+i] = ends[half+i], ends[i]
		}
	}
	return true
}

func TestPacketsPassTheKernelBothWays(t *testing.T) {
	for _, mtu := range []int{MinMTU, DefaultMTU, 9000, MaxMTU} {
		d := openTUN(t, Config{Name: "tun%d", MTU: mtu})
		ended := echo(d)
		if got := linkMTU(t, d.Name()); got != mtu || d.MTU() != mtu {
			t.Errorf("mtu of %s is %d, MTU() %d, want %d", d.Name(), got, d.MTU(), mtu)
		}
		for _, to := range []string{"10.9.0.2:7", "[fd09::2]:7"} {
			ap := netip.MustParseAddrPort(to)
			if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil && ap.Addr().Is6() {
				continue
			}
			// The largest datagram that is one packet, and that a UDP
			// socket takes (RFC 768: the length has 16 bits).
			largest := min(mtu-28, 65507)
			if ap.Addr().Is6() {
				largest = mtu - 48
			}
			for _, size := range []int{1, 512, largest} {
				checkEcho(t, to, bytes.Repeat([]byte{byte(size)}, size))
			}
		}
		d.Close()
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read after Close = %v, want %v", err, os.ErrClosed)
		}
	}
}

func checkEcho(t *testing.T, to string, payload []byte) {
	t.Helper()
	conn, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(deadline))
	if _, err := conn.Write(payload); err != nil {
		t.Fatalf("%d bytes to %s: %v", len(payload), to, err)
	}
	got := make([]byte, len(payload)+1)
	n, err := conn.Read(got)
	if err != nil || !bytes.Equal(got[:n], payload) {
		t.Errorf("%d bytes to %s came back as %d bytes, %v", len(payload), to, n, err)
	}
}

func linkMTU(t *testing.T, name string) int {
	t.Helper()
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return ifc.MTU
}

// What the kernel wants to send as one segment of many packets comes out as
// packets of at most the MTU, complete and in order.
func TestSuperSegmentsAreSplit(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0"})
	peer := netip.MustParseAddrPort("10.9.0.2:9")
	sent := make([]byte, 50<<10)
	for i := range sent {
		sent[i] = byte(i * 7 / 5)
	}

	conn := make(chan net.Conn, 1)
	go func() {
		c, err := net.DialTimeout("tcp", peer.String(), deadline)
		if err == nil {
			c.Write(sent) // into the send buffer: we take it from the packets
		}
		conn <- c
	}()

	var got []byte
	var base uint32
	bufs, sizes := buffers(d.BatchSize(), d.MTU())
	for len(got) < len(sent) {
		n, err := d.Read(bufs, sizes, Headroom)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			p := bufs[i][Headroom : Headroom+sizes[i]]
			if len(p) > d.MTU() {
				t.Fatalf("packet of %d bytes, mtu %d", len(p), d.MTU())
			}
			if len(p) < 40 || p[0] != 0x45 || p[9] != unix.IPPROTO_TCP {
				continue
			}
			if sum(p[:20], 0) != 0xffff || sum(p[20:], pseudo(p)) != 0xffff {
				t.Fatalf("packet with wrong checksum: %x", p[:40])
			}
			seq := binary.BigEndian.Uint32(p[24:])
			if p[33]&0x02 != 0 { // SYN: let it connect, with a window for all
				base = seq + 1
				if _, err := d.Write([][]byte{synAck(p)}, Headroom); err != nil {
					t.Fatal(err)
				}
				continue
			}
			data := p[20+int(p[32]>>4)*4:]
			if at := int(seq - base); at == len(got) {
				got = append(got, data...)
			}
			if len(data) > 0 {
				if _, err := d.Write([][]byte{ack(p, base+uint32(len(got)))}, Headroom); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("the bytes of the packets are not what was sent")
	}
	if c := <-conn; c != nil {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

// sum is the Internet checksum before its complement (RFC 1071).
func sum(b []byte, s uint32) uint16 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func pseudo(p []byte) uint32 {
	return uint32(sum(p[12:20], uint32(p[9])+uint32(len(p)-20)))
}

// ack returns the answer to a TCP packet that acknowledges up to seq.
func ack(p []byte, seq uint32) []byte {
	a := packet(make([]byte, 40)...)
	h := a[Headroom:]
	copy(h, p[:20])
	binary.BigEndian.PutUint16(h[2:], 40)
	copy(h[12:16], p[16:20])
	copy(h[16:20], p[12:16])
	copy(h[20:22], p[22:24])
	copy(h[22:24], p[20:22])
	binary.BigEndian.PutUint32(h[24:], 1001) // our sequence number, after the SYN
	binary.BigEndian.PutUint32(h[28:], seq)
	h[32], h[33] = 5<<4, 0x10
	binary.BigEndian.PutUint16(h[34:], 0xffff)
	h[10], h[11] = 0, 0
	binary.BigEndian.PutUint16(h[10:], ^sum(h[:20], 0))
	binary.BigEndian.PutUint16(h[36:], ^sum(h[20:], pseudo(h)))
	return a
}

func synAck(p []byte) []byte {
	a := ack(p, binary.BigEndian.Uint32(p[24:])+1)
	h := a[Headroom:]
	binary.BigEndian.PutUint32(h[24:], 1000)
	h[33] = 0x12
	h[36], h[37] = 0, 0
	binary.BigEndian.PutUint16(h[36:], ^sum(h[20:], pseudo(h)))
	return a
}

// A device made of a handed-over file works like one that was opened, and its
// MTU is what it was told.
func TestCreatedFileBecomesADevice(t *testing.T) {
	nstest.NeedTUN(t)
	f, err := Create(Config{Name: "tun0", MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	if f.Name() != "tun0" {
		t.Errorf("name of the file is %q, want tun0", f.Name())
	}
	up(t, "tun0")
	d, err := FromFD(dup(t, f), Config{MTU: 1400})
	f.Close() // the device has its own
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.Name() != "tun0" || d.MTU() != 1400 || linkMTU(t, "tun0") != 1400 {
		t.Errorf("device %s, mtu %d, the kernel says %d", d.Name(), d.MTU(), linkMTU(t, "tun0"))
	}
	ended := echo(d)
	checkEcho(t, "10.9.0.2:7", []byte("handed over"))
	d.Close()
	<-ended
	if _, err := net.InterfaceByName("tun0"); err == nil {
		t.Error("tun0 is still there after the last file was closed")
	}
}

func dup(t *testing.T, f *os.File) int {
	t.Helper()
	sc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if cerr := sc.Control(func(p uintptr) { fd, err = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return fd
}

func TestFromFDRefusesWhatIsNoTUN(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) int{
		"pipe": func(t *testing.T) int {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			unix.Close(p[1])
			return p[0]
		},
		"unattached": func(t *testing.T) int { return rawTUN(t, 0) },
		"tap":        func(t *testing.T) int { return rawTUN(t, unix.IFF_TAP|unix.IFF_NO_PI) },
	} {
		t.Run(name, func(t *testing.T) {
			fd := open(t)
			d, err := FromFD(fd, Config{})
			if err == nil {
				d.Close()
				t.Fatal("FromFD took it")
			}
			if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
				t.Error("the file descriptor was left open")
			}
		})
	}
}

// rawTUN opens the clone file and, with flags, attaches an interface.
func rawTUN(t *testing.T, flags uint16) int {
	t.Helper()
	nstest.NeedTUN(t)
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if flags != 0 {
		ifr, err := unix.NewIfreq("")
		if err != nil {
			t.Fatal(err)
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func TestCloseUnblocksRead(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0"})
	ended := echo(d)
	checkEcho(t, "10.9.0.2:7", []byte("it reads")) // and now it waits
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("Read = %v, want %v", err, os.ErrClosed)
		}
	case <-time.After(deadline):
		t.Fatal("Read still blocks after Close")
	}
	if _, err := d.Write([][]byte{packet(make([]byte, 40)...)}, Headroom); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write after Close = %v, want %v", err, os.ErrClosed)
	}
}

// An interface that somebody removes is not our own Close.
func TestRemovedInterfaceIsAnError(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0"})
	ended := echo(d)
	checkEcho(t, "10.9.0.2:7", []byte("it reads"))
	nstest.IP(t, "link del tun0")
	select {
	case err := <-ended:
		if errors.Is(err, os.ErrClosed) || !strings.Contains(err.Error(), "removed") {
			t.Errorf("Read = %v, want that the interface was removed", err)
		}
	case <-time.After(deadline):
		t.Fatal("Read still blocks after the interface has gone")
	}
}

func TestWriteAfterABadPacketGoesOn(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0"})
	if _, err := d.Write([][]byte{packet(0xff, 0xff)}, Headroom); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("Write of a packet of no IP version = %v, want an error of the kernel", err)
	}
	ended := echo(d)
	checkEcho(t, "10.9.0.2:7", []byte("still here"))
	d.Close()
	<-ended
}

func TestObstacles(t *testing.T) {
	nstest.NeedTUN(t)
	held, err := Open(Config{Name: "held"})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	nstest.IP(t, "link add veth0 type veth peer name veth1")
	defer nstest.IP(t, "link del veth0")

	for _, tt := range []struct {
		name string
		want []string // in the one line that the user sees
	}{
		{"held", []string{"held", "in use", "another name"}},
		{"veth0", []string{"veth0", "not a tun", "ip link del veth0"}},
	} {
		_, err := Open(Config{Name: tt.name})
		var o *Obstacle
		if !errors.As(err, &o) {
			t.Errorf("Open(%q) = %v, want an Obstacle", tt.name, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("Open(%q) = %q, want it to say %q", tt.name, err, w)
			}
		}
	}
}

func TestMissingCloneFileIsAnObstacle(t *testing.T) {
	nstest.NeedTUN(t)
	if err := unix.Mount("none", "/dev/net", "tmpfs", 0, ""); err != nil {
		nstest.Missing(t, fmt.Sprintf("hide /dev/net: %v", err))
	}
	defer unix.Unmount("/dev/net", unix.MNT_DETACH)
	_, err := Open(Config{Name: "tun0"})
	var o *Obstacle
	if !errors.As(err, &o) || !strings.Contains(o.Remedy, "modprobe tun") || !errors.Is(err, unix.ENOENT) {
		t.Errorf("Open without /dev/net/tun = %v", err)
	}
}

func TestErrorsOfTheKernelAreExplained(t *testing.T) {
	for _, tt := range []struct {
		err    error
		remedy string // part of it; "" for no obstacle
	}{
		{openError(unix.ENOENT), "modprobe tun"},
		{openError(unix.ENODEV), "modprobe tun"},
		{openError(unix.EACCES), "chmod 0666 /dev/net/tun"},
		{openError(unix.EPERM), "--device /dev/net/tun"},
		{openError(unix.EMFILE), ""},
		{attachError("tun0", true, false, unix.EBUSY), "another name"},
		{attachError("tun0", false, false, unix.EPERM), "CAP_NET_ADMIN"},
		{attachError("tun0", true, false, unix.EINVAL), "another name"},
		{attachError("tun0", false, false, unix.EINVAL), ""},
		{attachError("tun0", true, true, unix.EINVAL), "multi_queue"},
		{attachError("tun0", true, true, unix.EBUSY), "another name"},
	} {
		var o *Obstacle
		switch found := errors.As(tt.err, &o); {
		case found != (tt.remedy != ""):
			t.Errorf("%v: an obstacle: %v, want %v", tt.err, found, tt.remedy != "")
		case !strings.Contains(tt.err.Error(), tt.remedy):
			t.Errorf("%q does not say %q", tt.err, tt.remedy)
		case strings.Contains(tt.err.Error(), "\n"):
			t.Errorf("%q is more than one line", tt.err)
		}
	}
}

func TestBadConfigIsRefused(t *testing.T) {
	for _, c := range []Config{
		{Name: "tun0", MTU: MinMTU - 1},
		{Name: "tun0", MTU: MaxMTU + 1},
		{Name: "tun0", MTU: -1},
		{Name: "a name with space"},
		{Name: "with/slash"},
		{Name: "colon:0"},
		{Name: ".."},
		{Name: "sixteen-bytes-xx"},
	} {
		if d, err := Open(c); err == nil {
			d.Close()
			t.Errorf("Open(%+v) did not fail", c)
		}
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[1])
	if _, err := FromFD(p[0], Config{MTU: 1}); err == nil {
		t.Error("FromFD took an mtu of 1")
	}
	if _, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFD, 0); err == nil {
		t.Error("FromFD left the file descriptor open")
	}
}

// A packet that the splitter does not take must not end the device; an error of
// the file must.
func TestErrorsAboutOnePacket(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want bool
	}{
		{errors.New("packet is too short"), true},
		{&os.PathError{Op: "read", Path: "/dev/tun", Err: unix.EIO}, false},
		{os.ErrClosed, false},
	} {
		if got := aboutOnePacket(tt.err); got != tt.want {
			t.Errorf("aboutOnePacket(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

func TestReadAndWriteDoNotAllocate(t *testing.T) {
	d := openTUN(t, Config{Name: "tun0"})
	conn, err := net.Dial("udp", "10.9.0.2:7")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(deadline))
	payload, back := make([]byte, 1000), make([]byte, 1001)
	bufs, sizes := buffers(d.BatchSize(), d.MTU())
	out := make([][]byte, 1)
	once := func() {
		if _, err := conn.Write(payload); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := d.Read(bufs, sizes, Headroom)
			if err != nil {
				t.Fatal(err)
			}
			if n == 1 && turnUDP(bufs[0][Headroom:Headroom+sizes[0]]) {
				break
			}
		}
		out[0] = bufs[0][:Headroom+sizes[0]]
		if n, err := d.Write(out, Headroom); n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		if n, err := io.ReadFull(conn, back[:1000]); n != 1000 || err != nil {
			t.Fatalf("came back as %d bytes, %v", n, err)
		}
	}
	once()
	if n := testing.AllocsPerRun(100, once); n != 0 {
		t.Errorf("%v allocations for a packet there and back, want 0", n)
	}
}
