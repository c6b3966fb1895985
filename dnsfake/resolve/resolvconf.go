package resolve

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"strings"
)

const (
	resolvConf = "/etc/resolv.conf"
	dnsPort    = 53

	// More name servers than this no resolver asks (MAXNS of resolv.conf(5)).
	maxServers = 3
)

// SystemServers returns the name servers of a resolv.conf(5) file; an empty path
// means /etc/resolv.conf. As glibc does, it returns the first three, passes over
// what is no address, and takes the server on this machine, 127.0.0.1:53, where
// none is left or /etc/resolv.conf does not exist.
//
// Where a system keeps its servers elsewhere (Windows) an empty path is an error
// that Is [errors.ErrUnsupported]. The file is read each time.
func SystemServers(path string) ([]netip.AddrPort, error) {
	var data []byte
	var err error
	switch {
	case path != "":
		data, err = os.ReadFile(path)
	case runtime.GOOS == "windows":
		return nil, fmt.Errorf("name servers of this system: %w (name them in the config)", errors.ErrUnsupported)
	default:
		data, err = os.ReadFile(resolvConf)
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	if err != nil {
		return nil, err
	}
	return parseResolvConf(string(data)), nil
}

// parseResolvConf returns the name servers in the text of a resolv.conf.
func parseResolvConf(text string) []netip.AddrPort {
	var servers []netip.AddrPort
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		rest, ok := strings.CutPrefix(line, "nameserver") // at the start of its line
		if !ok || strings.TrimLeft(rest, " \t") == rest {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) == 0 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		if servers = append(servers, netip.AddrPortFrom(addr, dnsPort)); len(servers) == maxServers {
			break
		}
	}
	if servers == nil {
		servers = []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), dnsPort)}
	}
	return servers
}
