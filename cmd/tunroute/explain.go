package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/flow"
	"tunroute/router/rule"
)

func newExplain() *cobra.Command {
	var file, from string
	var udp, bind bool
	f := &flow.Flow{Network: flow.TCP}
	c := &cobra.Command{
		Use:   "explain [-c FILE] [--from ADDR] [--udp] HOST:PORT",
		Short: "Tell which rule decides a flow, and why",
		Long: `Explain tells what happens to a flow: where its name is resolved, which rules
do not match it and why, which one does, and the servers that it goes through.
Nothing is opened, resolved or asked.`,
		Example: `  tunroute explain www.example.org:443
  tunroute explain --udp --from 10.0.0.7 203.0.113.9:ntp`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("explain takes one HOST:PORT, as in `tunroute explain www.example.org:443`")
			}
			target, err := parseTarget(args[0])
			if err != nil {
				return err
			}
			f.Target = target
			switch {
			case udp && bind:
				return errors.New("--udp and --bind are both given, and a BIND is for TCP")
			case udp:
				f.Network = flow.UDP
			case bind:
				f.Command = flow.Bind
			}
			if from != "" {
				a, err := netip.ParseAddr(from)
				if err != nil {
					return fmt.Errorf("--from: %q is not an address", from)
				}
				f.Source = netip.AddrPortFrom(a, 0)
			}
			cfg, err := load(file)
			if err != nil {
				return err
			}
			if !c.Flags().Changed("inbound") && cfg.TUN.Off && len(cfg.Listen.Socks) > 0 {
				f.Inbound = cfg.Listen.Socks[0].Name
			}
			if err := cfg.CheckInbound(f.Inbound); err != nil {
				return fmt.Errorf("--inbound: %w", err)
			}
			text, err := explain(cfg, f)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(c.OutOrStdout(), text)
			return err
		},
	}
	configFlag(c, &file, defaultConfig)
	c.Flags().StringVar(&from, "from", "", "the client's `address`")
	c.Flags().StringVar(&f.Inbound, "inbound", flow.Tun, "the `name` of the listener that it comes by")
	c.Flags().StringVar(&f.User, "user", "", "the `user` that the client has proved to be")
	c.Flags().StringSliceVar(&f.Groups, "group", nil, "the `groups` that the user is in")
	c.Flags().BoolVar(&bind, "bind", false, "a BIND: the target is who may connect")
	c.Flags().BoolVar(&udp, "udp", false, "a UDP conversation instead of a TCP connection")
	return c
}

// parseTarget parses what a flow is for: HOST:PORT, where the port may be the name of a
// service, or a URL, which has one.
func parseTarget(s string) (flow.Target, error) {
	hostport := s
	if service, rest, ok := strings.Cut(s, "://"); ok {
		hostport, _, _ = strings.Cut(rest, "/")
		if _, _, err := net.SplitHostPort(hostport); err != nil {
			hostport = net.JoinHostPort(strings.Trim(hostport, "[]"), service)
		}
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return flow.Target{}, fmt.Errorf("%q is not HOST:PORT; write the port as well, as in %s", s, net.JoinHostPort(strings.Trim(hostport, "[]"), "443"))
	}
	ports, err := rule.ParsePorts(port)
	if err != nil {
		return flow.Target{}, fmt.Errorf("%q is not HOST:PORT: %w", s, err)
	}
	if len(ports) != 1 || ports[0].First != ports[0].Last {
		return flow.Target{}, fmt.Errorf("%q has several ports, and a flow is for one", s)
	}
	target, err := flow.NewTarget(host, ports[0].First)
	if err != nil {
		return flow.Target{}, fmt.Errorf("%q is not HOST:PORT: %w", s, err)
	}
	return target, nil
}

// explain tells what cfg does to f.
func explain(cfg *config.Config, f *flow.Flow) (string, error) {
	table, err := cfg.Table()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", f.Network, f.Target)
	if f.Source.IsValid() {
		fmt.Fprintf(&b, " from %s", f.Source.Addr())
	}
	b.WriteByte('\n')
	text, decided, err := beforeRules(cfg, f)
	if err != nil {
		return "", err
	}
	b.WriteString(text)
	if decided {
		return b.String(), nil
	}

	if f.Target.Name != "" {
		switch mode := cfg.NameMode(f.Target.Name); mode {
		case config.Remote:
			b.WriteString(remote(cfg, table, f.Target.Name))
		case config.Local:
			fmt.Fprintf(&b, "  name: local: resolved here, so that the rules see an address instead:\n"+
				"        ask again with that address; what follows is for whoever sends the name itself\n")
		default:
			fmt.Fprintf(&b, "  name: %s: resolved here if it can be, and then the rules see an address;\n"+
				"        what follows is for when it cannot\n", mode)
		}
	}
	if cfg.DNS.RejectsFlow(f) {
		b.WriteString("  dns.reject-encrypted: DNS by another way than port 53\n")
		fmt.Fprintf(&b, "  via: %s\n", describe(cfg, f, "reject"))
		return b.String(), nil
	}
	steps := table.Explain(f)
	for _, s := range steps {
		fmt.Fprintf(&b, "  %s\n", s)
	}
	v := steps[len(steps)-1].Verdict
	fmt.Fprintf(&b, "  via: %s\n", describe(cfg, f, v.Via))
	if v.Helper == rule.FTP && f.Network == flow.TCP {
		fmt.Fprintf(&b, "  helper: ftp: a server that the client asks to connect to it can\n")
	}
	return b.String(), nil
}

// beforeRules tells what becomes of f before any rule is asked, and whether none is.
func beforeRules(cfg *config.Config, f *flow.Flow) (text string, decided bool, err error) {
	addrs, err := engine.AddrsOf(cfg)
	if err != nil {
		return "", false, err
	}
	a := f.Target.Addr
	contains := func(p netip.Prefix) bool { return p.Contains(a) }
	fake := contains(cfg.DNS.Range4) || contains(cfg.DNS.Range6)
	if f.Inbound == flow.Tun {
		if i := slices.IndexFunc(cfg.TUN.Exclude, contains); i >= 0 {
			text = fmt.Sprintf("  tun.exclude: run leaves %s to the routes of the host; what follows is for exec\n", cfg.TUN.Exclude[i])
		} else if a.IsValid() && !slices.ContainsFunc(cfg.TUNRoutes(), contains) {
			text = "  tun.routes: run leaves it to the routes of the host, as none there has it; what follows is for exec\n"
		}
		switch {
		case f.Target.Port != engine.DNSPort:
		case a == addrs.Resolver4 || a == addrs.Resolver6:
			return text + "  dns: tunroute's own server: it answers itself, and no rule is asked\n", true, nil
		case cfg.DNS.Capture:
			return text + "  dns.capture: tunroute answers what is sent to port 53 itself, and no rule is asked\n", true, nil
		}
	}
	if fake && (!cfg.TUN.Off || len(cfg.DNS.Listen) > 0) {
		return text + "  dns: a fake address: the rules see the name that has it, which `tunroute leases` tells; one that\n" +
			"       no name has is refused\n", true, nil
	}
	return text, false, nil
}

// remote says what a program gets for a name with the mode remote.
func remote(cfg *config.Config, table *rule.Table, name string) string {
	rejected, direct := true, true
	for v := range table.OfName(name) {
		rejected = rejected && v.Via == config.ViaReject
		direct = direct && v.Via == config.ViaDirect
	}
	switch {
	case cfg.DNS.RejectsName(name):
		return "  name: dns.reject-encrypted: the program is told that there is none;\n" +
			"        what follows is for whoever sends the name itself\n"
	case rejected && cfg.DNS.Rejected == config.NXDomain:
		return "  name: dns.rejected: the program is told that there is none;\n" +
			"        what follows is for whoever sends the name itself\n"
	case direct && cfg.DNS.Direct == config.Real:
		return "  name: dns.direct: resolved here, so that the rules see an address instead:\n" +
			"        ask again with that address; what follows is for whoever sends the name itself\n"
	}
	return "  name: remote: the program gets a fake address, the name goes on\n"
}

// describe says what the outbound of a name does with f.
func describe(cfg *config.Config, f *flow.Flow, via string) string {
	switch via {
	case "direct":
		if f.Target.Name != "" {
			return "direct, the name resolved here"
		}
		return via
	case "reject":
		return "reject: the program is told at once that it may not"
	case "drop":
		return "drop: the program is told nothing"
	}
	u := cfg.Upstream(via)
	if !u.IsGroup() {
		text, noUDP := way(cfg, f, u)
		if noUDP {
			text += ": the program is told at once that the port is unreachable"
		}
		return text
	}
	return u.String() + members(cfg, f, u, "    ")
}

// members lists what the members of a group do with f, each in a line.
func members(cfg *config.Config, f *flow.Flow, g *config.Upstream, indent string) string {
	var b strings.Builder
	for _, name := range g.Group {
		b.WriteString("\n" + indent + "- ")
		m := cfg.Upstream(name)
		switch {
		case m == nil:
			b.WriteString(describe(cfg, f, name))
		case m.IsGroup():
			b.WriteString(m.String() + members(cfg, f, m, indent+"  "))
		default:
			text, _ := way(cfg, f, m)
			b.WriteString(text)
		}
	}
	return b.String()
}

// way says how f goes through a server, and whether it is UDP that a hop does not carry.
func way(cfg *config.Config, f *flow.Flow, last *config.Upstream) (text string, noUDP bool) {
	var hops []string
	chain := cfg.Chain(last.Name)
	for _, u := range chain {
		hops = append(hops, u.String())
	}
	text = strings.Join(hops, " > ")
	switch {
	case last.Scheme == config.Direct:
		return text, false
	case f.Target.Name == "":
	case last.Scheme.TakesNames():
		text += ", which resolves the name"
	default:
		text += ", the name resolved here"
	}
	if f.Network == flow.UDP {
		for _, u := range chain {
			if part := u.NoUDP(); part != "" {
				return text + "; " + part + " carries no UDP", true
			}
		}
	}
	return text, false
}
