package proc

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of times in /proc: USER_HZ is 100 on every machine that Go
// runs on.
const tick = 10 * time.Millisecond

// Usage is what processes use.
type Usage struct {
	CPU time.Duration // user and system, so far
	RSS int64         // bytes of memory (VmRSS), now
}

// process is a line of /proc/PID/stat.
type process struct {
	name        string
	pid, parent int
	usage       Usage
}

// Tree returns the sum of the processes below a process; that itself does not
// count. Children that have ended count in CPU, if somebody has waited for them.
// The memory of a shell does not count while it has children: it is there to wait
// for them.
func Tree(root int) (Usage, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return Usage{}, err
	}
	children := make(map[int][]process)
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		p, err := parseStat(string(line))
		if err != nil {
			return Usage{}, fmt.Errorf("%s: %w", file, err)
		}
		children[p.parent] = append(children[p.parent], p)
	}
	var sum Usage
	var add func(pid int)
	add = func(pid int) {
		for _, p := range children[pid] {
			sum.CPU += p.usage.CPU
			if !shells[p.name] || len(children[p.pid]) == 0 {
				sum.RSS += p.usage.RSS
			}
			add(p.pid)
		}
	}
	add(root)
	return sum, nil
}

// shells are the names of programs that sh may be.
var shells = map[string]bool{"sh": true, "dash": true, "bash": true, "busybox": true}

// parseStat reads a line of proc_pid_stat(5). The name of the program is in
// parentheses and may have any byte in it, parentheses too.
func parseStat(line string) (process, error) {
	pid, rest, ok := strings.Cut(line, " (")
	last := strings.LastIndex(rest, ") ")
	if !ok || last < 0 {
		return process{}, fmt.Errorf("not a line of a process: %q", line)
	}
	// Fields count from 3, the state.
	f := strings.Fields(rest[last+2:])
	if len(f) < 24-2 {
		return process{}, fmt.Errorf("not a line of a process: %q", line)
	}
	p := process{name: rest[:last]}
	var ticks, pages int64
	for _, field := range []struct {
		text string
		add  func(int64)
	}{
		{pid, func(n int64) { p.pid = int(n) }},
		{f[4-3], func(n int64) { p.parent = int(n) }},
		{f[14-3], func(n int64) { ticks += n }}, // utime
		{f[15-3], func(n int64) { ticks += n }}, // stime
		{f[16-3], func(n int64) { ticks += n }}, // cutime
		{f[17-3], func(n int64) { ticks += n }}, // cstime
		{f[24-3], func(n int64) { pages = n }},
	} {
		n, err := strconv.ParseInt(field.text, 10, 64)
		if err != nil {
			return process{}, err
		}
		field.add(n)
	}
	p.usage = Usage{CPU: time.Duration(ticks) * tick, RSS: pages * int64(os.Getpagesize())}
	return p, nil
}

// Machine returns the time that the processors of the machine were busy.
func Machine() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	return parseMachine(string(b))
}

// parseMachine adds up the first line of proc_stat(5): user, nice, system, irq
// and softirq. What a hypervisor takes away is not work of ours.
func parseMachine(stat string) (time.Duration, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 8 || f[0] != "cpu" {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(f[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// Retransmits returns how many TCP segments were sent again in the network
// namespace of a process.
func Retransmits(pid int) (int64, error) {
	file := fmt.Sprintf("/proc/%d/net/snmp", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	n, err := parseRetransmits(string(b))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// parseRetransmits finds the value in two lines, of names and of numbers.
func parseRetransmits(snmp string) (int64, error) {
	var names []string
	for line := range strings.Lines(snmp) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for i, name := range names {
			if name == "RetransSegs" && i < len(f) {
				return strconv.ParseInt(f[i], 10, 64)
			}
		}
	}
	return 0, fmt.Errorf("no RetransSegs of Tcp")
}
