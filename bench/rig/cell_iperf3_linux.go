package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"

	"tunroute/bench/netlab"
)

// iperf3 is streams of another program, to check what ours say.
func iperf3(streams int, down bool) func(context.Context, *measurement) error {
	return func(ctx context.Context, m *measurement) error {
		if _, err := exec.LookPath("iperf3"); err != nil {
			return fmt.Errorf("%w: iperf3 is not installed (Debian: iperf3)", errNotForIt)
		}
		server, err := m.lab.server.Start(netlab.Program{Args: []string{"iperf3", "-s", "-1"}})
		if err != nil {
			return err
		}
		defer server.Stop()
		seconds := max(1, int(m.o.Time.Seconds()+0.5))
		args := []string{"iperf3", "-J", "-c", target4(0).String(), "-P", strconv.Itoa(streams), "-t", strconv.Itoa(seconds)}
		if down {
			args = append(args, "-R")
		}
		ctx, cancel := context.WithTimeout(ctx, m.o.Time+time.Minute)
		defer cancel()
		var out string
		c, err := m.measure(func() error {
			// It may not listen yet.
			for end := time.Now().Add(5 * time.Second); ; {
				if out, err = m.lab.client.Run(ctx, args...); err == nil || time.Now().After(end) || ctx.Err() != nil {
					return err
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
		if err != nil {
			return err
		}
		var res struct {
			End struct {
				Received struct {
					Bytes float64
					Bps   float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			}
		}
		if err := json.Unmarshal([]byte(out), &res); err != nil {
			return fmt.Errorf("iperf3: %w", err)
		}
		got := res.End.Received
		m.add("rate", "Gbit/s", got.Bps/1e9)
		if m.program() {
			m.add("router", "s/GB", c.router.Seconds()/(got.Bytes/1e9))
		}
		m.add("machine", "s/GB", c.machine.Seconds()/(got.Bytes/1e9))
		m.addOthers(c)
		return nil
	}
}
