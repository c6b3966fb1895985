//go:build !linux

package tun

import (
	"errors"
	"testing"
)

func TestSeveralQueuesAreUnsupported(t *testing.T) {
	d, err := Open(Config{Queues: 2})
	if err == nil {
		d.Close()
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Open with 2 queues = %v, want %v", err, errors.ErrUnsupported)
	}
}
