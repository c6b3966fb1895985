package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// device is a [Device] over one of wireguard/tun, which knows how each system
// frames packets and, on Linux, splits and joins super-segments.
type device struct {
	wg     wgtun.Device
	name   string
	mtu    int
	closed atomic.Bool
	// drained is closed when nobody sends to wg.Events any more; nil where
	// nobody ever did.
	drained chan struct{}
}

var _ Device = (*device)(nil)

func (d *device) BatchSize() int { return d.wg.BatchSize() }
func (d *device) MTU() int       { return d.mtu }
func (d *device) Name() string   { return d.name }

// Read runs at packet tempo.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := d.wg.Read(bufs, sizes, offset)
		switch {
		case n > 0:
			// With an error: a super-segment of more packets than
			// there are buffers. TCP sends the rest again.
			return n, nil
		case err == nil, aboutOnePacket(err):
			continue
		}
		return 0, d.failure("read", err)
	}
}

// Write runs at packet tempo.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) == 0 {
		return 0, nil
	}
	// The number that comes back counts bytes on one system and packets on
	// another.
	if _, err := d.wg.Write(bufs, offset); err != nil {
		return 0, d.failure("write", err)
	}
	return len(bufs), nil
}

// failure tells our own Close from an interface that somebody has removed: both
// come as os.ErrClosed.
func (d *device) failure(op string, err error) error {
	switch {
	case d.closed.Load():
		return os.ErrClosed
	case errors.Is(err, os.ErrClosed):
		return fmt.Errorf("%s %s: the interface was removed", op, d.name)
	}
	return fmt.Errorf("%s %s: %w", op, d.name, err)
}

func (d *device) Close() error {
	d.closed.Store(true)
	err := d.wg.Close()
	if d.drained != nil {
		<-d.drained
	}
	return err
}
