package netns

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// resolvContent is the resolv.conf of the namespace. Nothing of the host's is
// taken: its name servers are not reached from here, [Config.Search] says why
// its search list would do harm, and its options are about its servers.
func resolvContent(c Config) []byte {
	var b bytes.Buffer
	b.WriteString("# made by tunroute for this namespace only\n")
	for _, a := range c.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	if len(c.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Search, " "))
	}
	return b.Bytes()
}

// nsswitchContent is an nsswitch.conf in which hosts are looked for in files and
// DNS only, and in the machine's own name if they were before: that asks nobody.
// All other lines are kept.
func nsswitchContent(host []byte) []byte {
	var out bytes.Buffer
	sources := "files dns"
	for line := range bytes.Lines(host) {
		code, _, _ := bytes.Cut(line, []byte("#"))
		name, value, found := bytes.Cut(code, []byte(":"))
		if !found || string(bytes.TrimSpace(name)) != "hosts" {
			out.Write(line)
			continue
		}
		if slices.Contains(strings.Fields(string(value)), "myhostname") {
			sources = "files myhostname dns"
		}
	}
	if b := out.Bytes(); len(b) > 0 && b[len(b)-1] != '\n' {
		out.WriteByte('\n')
	}
	fmt.Fprintf(&out, "hosts: %s\n", sources)
	return out.Bytes()
}
