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

func fromFD(fd int, c Config) (Device, error) {
	if err := checkTUN(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	// An error in here leaves fd to the finalizer of an os.File.
	wg, name, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("tun from file descriptor %d: %w", fd, err)
	}
	d, err := newSuper(&device{wg: wg, name: name, mtu: c.MTU}, fd)
	if err != nil {
		wg.Close()
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
	if !validName(c.Name) {
		return -1, "", fmt.Errorf("tun name %q: must be at most %d bytes without space, slash or colon", c.Name, unix.IFNAMSIZ-1)
	}
	fd, err = unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, "", openError(err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()

	ifr, err := unix.NewIfreq(c.Name)
	if err != nil {
		return -1, "", err
	}
	// With the virtio-net header the kernel neither splits nor checksums
	// TCP for us: five times the throughput at an MTU of 1500.
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_, lookup := net.InterfaceByName(c.Name)
		return -1, "", attachError(c.Name, lookup == nil, err)
	}
	name = ifr.Name()
	switch err := setMTU(name, c.MTU); {
	case errors.Is(err, unix.EPERM):
		return -1, "", &Obstacle{
			What:   fmt.Sprintf("interface %s has another mtu than %d and may not be changed", name, c.MTU),
			Remedy: fmt.Sprintf("run `ip link set %s mtu %d` as root, or choose its mtu", name, c.MTU),
			Err:    err,
		}
	case err != nil:
		return -1, "", fmt.Errorf("set mtu %d of %s: %w", c.MTU, name, err)
	}
	// Who was given an interface by root may not, and lives with what it has.
	_ = interfaceIoctl(unix.SIOCSIFTXQLEN, name, queueLength)
	return fd, name, nil
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
// whether there is one of that name.
func attachError(name string, exists bool, err error) error {
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
