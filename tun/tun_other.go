//go:build !linux

package tun

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

func open(c Config) (Device, error) {
	if c.Queues > 1 {
		return nil, unsupported("a tun of several queues")
	}
	name := c.Name
	if name == "" && runtime.GOOS == "darwin" {
		name = "utun" // the system chooses the number
	}
	wg, err := wgtun.CreateTUN(name, c.MTU)
	if err != nil {
		return nil, fmt.Errorf("make tun interface %q: %w", name, err)
	}
	if name, err = wg.Name(); err != nil {
		wg.Close()
		return nil, fmt.Errorf("name of the tun interface: %w", err)
	}
	d := &device{wg: wg, name: name, mtu: c.MTU, drained: make(chan struct{})}
	go func() {
		defer close(d.drained)
		for range wg.Events() { // whoever sends them would block, and so would Close
		}
	}()
	return d, nil
}

func fromFD(fd int, _ Config) (Device, error) {
	os.NewFile(uintptr(fd), "").Close()
	return nil, unsupported("a tun from a file descriptor")
}

func create(Config) (*os.File, error) {
	return nil, unsupported("a tun to hand over")
}

func unsupported(what string) error {
	return fmt.Errorf("%s: not supported on %s: %w", what, runtime.GOOS, errors.ErrUnsupported)
}

// aboutOnePacket: these systems hand over packets as they are, so every error
// is one of the device.
func aboutOnePacket(error) bool { return false }
