package hosts

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a network namespace with a loopback interface, and what is attached to it. Its
// programs have an empty /run: sockets with a path know no network namespaces. Its
// methods are safe for concurrent use.
type Host struct {
	Name string
	// Open files of the namespaces. As numbers: an os.File closes its own when it is
	// collected, and a host, or a switch, is there for others.
	net, mnt int
	nl       *netlink.Handle
}

// New makes a host, in a process that has called [Enter]. It exists until Close and
// until the last of its programs has ended and its last socket is closed.
func New(name string) (*Host, error) {
	h := &Host{Name: name, net: -1, mnt: -1}
	if err := onThread(h.make); err != nil {
		h.Close()
		return nil, fmt.Errorf("make the host %s: %w", name, err)
	}
	return h, nil
}

// onThread calls f on a thread that nobody else runs on, and that ends afterwards:
// its namespace may be changed.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func (h *Host) make() (err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for what, fd := range map[string]*int{"net": &h.net, "mnt": &h.mnt} {
		path := "/proc/thread-self/ns/" + what
		if *fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
	if err := unix.Mount("tunroute", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=16m"); err != nil {
		return &fs.PathError{Op: "mount", Path: "/run", Err: err}
	}
	if h.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	// Some of the settings of a new namespace are those of the machine. To filter
	// by the way back would drop what a host with two networks may get.
	for _, which := range []string{"all", "default"} {
		// Where /proc/sys may not be written the machine's have to do.
		_ = os.WriteFile("/proc/sys/net/ipv4/conf/"+which+"/rp_filter", []byte("0"), 0)
	}
	lo, err := h.nl.LinkByName("lo")
	if err == nil {
		err = h.nl.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// Close gives the host up.
func (h *Host) Close() {
	for _, fd := range []int{h.net, h.mnt} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	if h.nl != nil {
		h.nl.Close()
	}
}

// Do calls f on the host: the sockets that f opens itself, not in another goroutine, are
// the host's.
func (h *Host) Do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(h.net, unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// Start starts a command on the host.
func (h *Host) Start(cmd *exec.Cmd) error {
	return h.Do(func() error {
		// Threads have their root and their directory in common, and would have
		// those of two namespaces.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		if err := unix.Setns(h.mnt, unix.CLONE_NEWNS); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return cmd.Start()
	})
}

// Listen listens for TCP on the host.
func (h *Host) Listen(at netip.AddrPort) (l net.Listener, err error) {
	err = h.Do(func() (err error) {
		l, err = net.Listen("tcp", at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	return l, nil
}

// ListenUDP opens a UDP socket on the host.
func (h *Host) ListenUDP(at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", h.Name, err)
	}
	return c, nil
}

// Unreachable has the host say of an address that it cannot be reached, to others as
// to its own programs, at once: on a real network that takes three seconds.
func (h *Host) Unreachable(a netip.Addr) error {
	err := h.nl.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(a, a.BitLen())), Type: unix.RTN_UNREACHABLE})
	if err != nil {
		return fmt.Errorf("%s: make %v unreachable: %w", h.Name, a, err)
	}
	return nil
}

// Accepted returns how many TCP connections programs of the host have been connected
// with since the host was made, as its kernel has counted them.
func (h *Host) Accepted() (n int, err error) {
	var b []byte
	err = h.Do(func() (err error) {
		// Of this thread's namespace; /proc/net is that of the process.
		b, err = os.ReadFile("/proc/thread-self/net/snmp")
		return err
	})
	if err != nil {
		return 0, err
	}
	return passiveOpens(string(b))
}

// passiveOpens reads tcpPassiveOpens of RFC 4022, which are in the lines "Tcp:" of
// /proc/net/snmp: one with the names and one with the values.
func passiveOpens(snmp string) (int, error) {
	var names []string
	for line := range strings.Lines(snmp) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] != "Tcp:":
		case names == nil:
			names = f
		default:
			for i, name := range names {
				if name == "PassiveOpens" && i < len(f) {
					return strconv.Atoi(f[i])
				}
			}
		}
	}
	return 0, fmt.Errorf("/proc/net/snmp has no PassiveOpens")
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
