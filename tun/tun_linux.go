package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// clonePath is the file of which every open makes a TUN
// (Documentation/networking/tuntap.rst).
const clonePath = "/dev/net/tun"

// Opening is ours and not wgtun.CreateTUN: that one starts two goroutines which
// watch the link from the namespace they started in, and keeps the file open
// when the name is taken. wireguard/tun reads and writes from then on.

func open(c Config) (Device, error) {
	if c.Queues > 1 {
		fds, name, err := attachQueues(c)
		if err != nil {
			return nil, err
		}
		if err := settle(name, c.MTU); err != nil {
			closeAll(fds)
			return nil, err
		}
		return fromFDs(fds, c)
	}
	fd, _, err := createFD(c)
	if err != nil {
		return nil, err
	}
	return fromFD(fd, c)
}

func create(c Config) (*os.File, error) {
	fd, name, err := createFD(c)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func fromFD(fd int, c Config) (Device, error) { return fromFDs([]int{fd}, c) }

// fromFDs returns the device of an interface of which each file is a queue.
func fromFDs(fds []int, c Config) (Device, error) {
	fd := fds[0]
	if err := checkTUN(fd); err != nil {
		closeAll(fds)
		return nil, err
	}
	var more []*os.File
	closeMore := func() {
		for _, f := range more {
			f.Close()
		}
	}
	for _, fd := range fds[1:] {
		more = append(more, os.NewFile(uintptr(fd), clonePath))
	}
	// An error in here leaves fd to the finalizer of an os.File.
	wg, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		closeMore()
		return nil, fmt.Errorf("tun from file descriptor %d: %w", fd, err)
	}
	d, err := newSuper(&device{wg: wg, name: name, mtu: c.MTU}, fd, more)
	if err != nil {
		wg.Close()
		closeMore()
		return nil, err
	}
	return d, nil
}

// checkTUN refuses what would be read as rubbish: what is no TUN, and a TAP.
// Packet information (no IFF_NO_PI) cannot be seen from here: TUNGETIFF gives
// that bit the meaning of IFF_NOFILTER.
func checkTUN(fd int) error {
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("file descriptor %d is not an attached tun: %w", fd, err)
	}
	if ifr.Uint16()&unix.IFF_TUN == 0 {
		return fmt.Errorf("file descriptor %d (%s) is not a tun but a tap", fd, ifr.Name())
	}
	return nil
}

func createFD(c Config) (fd int, name string, err error) {
	fd, name, err = attach(c.Name, 0)
	if err != nil {
		return -1, "", err
	}
	if err := settle(name, c.MTU); err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	return fd, name, nil
}

// attach opens a file of an interface, which it makes if there is none of that
// name; flags are those of TUNSETIFF besides what all of ours have.
func attach(name string, flags uint16) (fd int, got string, err error) {
	if !validName(name) {
		return -1, "", fmt.Errorf("tun name %q: must be at most %d bytes without space, slash or colon", name, unix.IFNAMSIZ-1)
	}
	fd, err = unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, "", openError(err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		unix.Close(fd)
		return -1, "", err
	}
	// With the virtio-net header the kernel neither splits nor checksums
	// TCP for us: five times the throughput at an MTU of 1500.
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		_, lookup := net.InterfaceByName(name)
		return -1, "", attachError(name, lookup == nil, flags&unix.IFF_MULTI_QUEUE != 0, err)
	}
	return fd, ifr.Name(), nil
}

// settle gives an interface that we hold its MTU and the length of its queues.
func settle(name string, mtu int) error {
	switch err := setMTU(name, mtu); {
	case errors.Is(err, unix.EPERM):
		return &Obstacle{
			What:   fmt.Sprintf("interface %s has another mtu than %d and may not be changed", name, mtu),
			Remedy: fmt.Sprintf("run `ip link set %s mtu %d` as root, or choose its mtu", name, mtu),
			Err:    err,
		}
	case err != nil:
		return fmt.Errorf("set mtu %d of %s: %w", mtu, name, err)
	}
	// Who was given an interface by root may not, and lives with what it has.
	_ = interfaceIoctl(unix.SIOCSIFTXQLEN, name, queueLength)
	return nil
}

// queueLength is how many packets wait for us before the kernel drops one. Its own
// 500 are too few for 512 clients that send at the same time, each a window of
// 64 KiB (bench, up512); more than these would be latency.
const queueLength = 2000

// setMTU leaves an interface alone that has this MTU: who was given one by root
// may not set it.
func setMTU(name string, mtu int) error {
	if own, err := net.InterfaceByName(name); err == nil && own.MTU == mtu {
		return nil
	}
	return interfaceIoctl(unix.SIOCSIFMTU, name, uint32(mtu))
}

// interfaceIoctl sets a value of an interface: see netdevice(7).
func interfaceIoctl(what uint, name string, value uint32) error {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sock)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint32(value)
	return unix.IoctlIfreq(sock, what, ifr)
}

// validName is dev_valid_name of net/core/dev.c.
func validName(name string) bool {
	return len(name) < unix.IFNAMSIZ && name != "." && name != ".." &&
		!strings.ContainsFunc(name, func(r rune) bool {
			return r == '/' || r == ':' || r == 0 || unicode.IsSpace(r)
		})
}

// openError explains why the clone file does not open.
func openError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &Obstacle{
			What:   clonePath + " does not exist",
			Remedy: "load the driver with `modprobe tun`, or give the container the device with `--device " + clonePath + "`",
			Err:    err,
		}
	case errors.Is(err, unix.EACCES):
		return &Obstacle{
			What:   fmt.Sprintf("%s may not be opened by user %d", clonePath, os.Geteuid()),
			Remedy: "let every user open it with `chmod 0666 " + clonePath + "` as root, which is what most distributions do",
			Err:    err,
		}
	case errors.Is(err, unix.EPERM):
		// Not the mode of the file: the device cgroup of a container.
		return &Obstacle{
			What:   clonePath + " may not be opened in this container",
			Remedy: "start the container with `--device " + clonePath + "`",
			Err:    err,
		}
	}
	return fmt.Errorf("open %s: %w", clonePath, err)
}

// attachError explains why an interface cannot be made or taken. exists says
// whether there is one of that name, several whether it was to have several queues.
func attachError(name string, exists, several bool, err error) error {
	switch {
	case errors.Is(err, unix.EBUSY):
		return &Obstacle{
			What:   "interface " + name + " is in use by another process",
			Remedy: "choose another name, or stop the process that holds it",
			Err:    err,
		}
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &Obstacle{
			What:   "a tun interface may not be made without CAP_NET_ADMIN",
			Remedy: "run as root, or start the container with `--cap-add NET_ADMIN`",
			Err:    err,
		}
	case errors.Is(err, unix.EINVAL) && exists && several:
		return &Obstacle{
			What: "interface " + name + " exists and is not a tun of several queues",
			Remedy: "use one queue, choose another name, or remove it with `ip link del " + name + "` and, if it is to stay, " +
				"make it with `ip tuntap add dev " + name + " mode tun multi_queue`",
			Err: err,
		}
	case errors.Is(err, unix.EINVAL) && exists:
		return &Obstacle{
			What:   "interface " + name + " exists and is not a tun of one queue",
			Remedy: "choose another name, or remove it with `ip link del " + name + "`",
			Err:    err,
		}
	}
	return fmt.Errorf("make tun interface %q: %w", name, err)
}

// aboutOnePacket tells an error of reading the file, which is the end, from one
// about what was read: a virtio-net header that the splitter does not take.
// Whoever can send such a packet must not end the flows of all others.
func aboutOnePacket(err error) bool {
	var path *fs.PathError
	return !errors.Is(err, os.ErrClosed) && !errors.As(err, &path)
}
