package rig

import (
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"tunroute/bench/netlab"
	"tunroute/bench/report"
)

// machine describes the one that this runs on.
func machine() report.Machine {
	m := report.Machine{Go: runtime.Version(), Cores: runtime.NumCPU()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.CPU = fileField("/proc/cpuinfo", "model name")
	var kib int64
	fmt.Sscanf(fileField("/proc/meminfo", "MemTotal"), "%d", &kib)
	m.MemoryBytes = kib << 10
	m.Congestion = netlab.Congestion()
	return m
}

// fileField returns the value behind "name:" in a file of /proc, empty where
// there is none.
func fileField(file, name string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if before, after, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(before) == name {
			return strings.TrimSpace(after)
		}
	}
	return ""
}

// describe tells which program a router is. Where it is on this machine is of no
// interest to others.
func (r *Router) describe() report.Router {
	d := report.Router{Name: r.Name, Files: r.Files, Skipped: r.Skip}
	if r.Run == "" || r.Skip != "" {
		return d
	}
	if !r.NoTUN {
		d.MTU = r.MTU
	}
	words := strings.Fields(r.Run)
	if words[0] == "exec" && len(words) > 1 {
		words = words[1:]
	}
	program := words[0]
	d.Command = strings.Replace(r.Run, program, filepath.Base(program), 1)
	path, err := exec.LookPath(program)
	if err != nil {
		return d // the first run will tell
	}
	d.Binary = fingerprint(path)
	if r.Version != "" {
		out, err := exec.Command("sh", "-c", r.Version).CombinedOutput()
		d.Version, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n")
		if err != nil && d.Version == "" {
			d.Version = err.Error()
		}
	} else if info, err := buildinfo.ReadFile(path); err == nil {
		d.Version = info.Main.Version + ", " + info.GoVersion
	}
	return d
}

// fingerprint returns the size and hash of a file.
func fingerprint(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%d bytes, SHA-256 %x", n, h.Sum(nil))
}
