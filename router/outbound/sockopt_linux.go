package outbound

import (
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkSocketOptions refuses what no later event can mend. The interface need
// not be there yet.
func checkSocketOptions(o DirectOptions) error {
	if len(o.Interface) >= unix.IFNAMSIZ {
		return fmt.Errorf("interface name %q is longer than %d bytes", o.Interface, unix.IFNAMSIZ-1)
	}
	return nil
}

// Control sets the options of a new socket before it is bound or connected: it is what
// [net.Dialer] and [net.ListenConfig] have a Control for, and gives the sockets of others
// the interface and the mark of ours.
func (d *Direct) Control(network, _ string, c syscall.RawConn) error {
	var err error
	set := func(name string, f func() error) {
		if err == nil {
			if e := f(); e != nil {
				err = fmt.Errorf("%s: %w", name, os.NewSyscallError("setsockopt", e))
			}
		}
	}
	cerr := c.Control(func(fd uintptr) {
		s := int(fd)
		if d.opts.Mark != 0 {
			set("mark (needs CAP_NET_ADMIN)", func() error {
				return unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, int(d.opts.Mark))
			})
		}
		if d.opts.Interface != "" {
			set("interface "+d.opts.Interface, func() error { return unix.BindToDevice(s, d.opts.Interface) })
		}
		if d.opts.Bind.IsValid() && strings.HasPrefix(network, "tcp") {
			// The kernel chooses the port at connect, when it knows the
			// target: at bind it would have to keep the port from all
			// other targets, and 28,000 flows would be the limit.
			set("bind "+d.opts.Bind.String(), func() error {
				return unix.SetsockoptInt(s, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
			})
		}
	})
	if cerr != nil {
		return cerr
	}
	return err
}
