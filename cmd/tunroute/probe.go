package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/flow"
	"tunroute/router/outbound/probe"
)

func newProbe() *cobra.Command {
	var asked struct {
		json                      bool
		self                      []string
		target, udpTarget, downAt string
		limit                     time.Duration
	}
	c := &cobra.Command{
		Use:   "probe [URL]...",
		Short: "Tell what a SOCKS server can and cannot do",
		Long: `Probe asks a SOCKS server for what programs ask for, and for what they should
not, and tells what came back, what to think of it, and with which config the
server is best used. Several URLs are a chain, the nearest first: the last server
is probed through the others. Without a URL it is that of the environment, as exec
takes it, so that a password need not stand on the command line.

Nothing is sent to anybody but the server. What comes out of it should arrive here:
probe listens, for a moment and at a port for each row, at the address that its
connection to the server comes from. Where the server does not reach that, --self
says another address of this machine, or --target a service that both know.

The exit status is 0 if the server was probed, whatever it does, and 1 if it cannot
be reached or does not take us.`,
		Example: `  tunroute probe socks5://10.0.4.1
  tunroute probe --json socks5://10.0.4.1
  tunroute probe --target www.example.org:80 --udp 9.9.9.9:53 socks5://proxy.example
  ALL_PROXY=socks5h://user:password@proxy.example tunroute probe`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				if url := config.ProxyFromEnv(os.Getenv); url != "" {
					args = []string{url}
				} else {
					return errors.New("no server to probe; try `tunroute probe socks5://HOST:PORT`")
				}
			}
			cfg, err := config.FromProxies(args)
			if err != nil {
				return err
			}
			u := cfg.Upstreams[len(cfg.Upstreams)-1]
			switch u.Scheme {
			case config.Direct:
				return errors.New("direct is no server to probe")
			case config.HTTP:
				return fmt.Errorf("%s is an HTTP proxy; probe knows what to ask a SOCKS server", u.URL)
			}
			o := probe.Options{User: u.User, Password: u.Password.Reveal(), Limit: asked.limit}
			if asked.limit <= 0 {
				return errors.New("--timeout: must be more than 0")
			}
			for _, s := range asked.self {
				a, err := netip.ParseAddr(s)
				if err != nil {
					return fmt.Errorf("--self: %q is not an address", s)
				}
				o.Self = append(o.Self, a)
			}
			if asked.target != "" {
				if o.Target, err = flow.ParseTarget(asked.target); err != nil {
					return fmt.Errorf("--target: %q is not HOST:PORT: %w", asked.target, err)
				}
			}
			if asked.udpTarget != "" {
				if o.UDPTarget, err = netip.ParseAddrPort(asked.udpTarget); err != nil {
					return fmt.Errorf("--udp: %q is not ADDRESS:PORT", asked.udpTarget)
				}
			}
			if asked.downAt != "" {
				if o.Down, err = netip.ParseAddr(asked.downAt); err != nil {
					return fmt.Errorf("--down: %q is not an address", asked.downAt)
				}
			}
			switch {
			case u.Via != "":
				o.NoUDP = "UDP is probed of the first server of a chain only"
			case u.Transport != config.TCP:
				o.NoUDP = "tunroute sends no UDP beside " + u.NoUDP()
			}
			if o.Dial, err = engine.Way(cfg, u.Name); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt)
			defer stop()
			r, err := probe.Run(ctx, o)
			if err != nil {
				return fmt.Errorf("%s: %w", u.URL, err)
			}
			yaml := adviceYAML(cfg, u, r.Advice, o.User != "")
			if asked.json {
				err = printJSON(c.OutOrStdout(), u, r, yaml)
			} else {
				err = printTable(c.OutOrStdout(), u, r, yaml)
			}
			switch {
			case err != nil:
				return err
			case r.Advice.Version == 0:
				return fmt.Errorf("%s: %s", u.URL, r.Refused)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asked.json, "json", false, "print JSON")
	c.Flags().StringArrayVar(&asked.self, "self", nil, "the `address` at which the server reaches this machine; once for each family")
	c.Flags().StringVar(&asked.target, "target", "", "`HOST:PORT` of a service that the server reaches: an echo, or a web server")
	c.Flags().StringVar(&asked.udpTarget, "udp", "", "`ADDRESS:PORT` of a resolver, or of an echo, that the server reaches")
	c.Flags().StringVar(&asked.downAt, "down", "", "the `address` of a host that is down, in a network of the server's")
	c.Flags().DurationVar(&asked.limit, "timeout", probe.DefaultLimit, "how long to wait for each answer")
	return c
}

// printTable prints a report for people.
func printTable(w io.Writer, u *config.Upstream, r *probe.Report, yaml string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "PROBE\tSENT\tANSWER\tVERDICT\n")
	for _, row := range r.Rows {
		answer := row.Answer
		if row.Detail != "" {
			answer += " (" + row.Detail + ")"
		}
		if answer == "" {
			answer = "-"
		}
		verdict := string(row.Verdict)
		if row.Note != "" {
			verdict += ": " + row.Note
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", row.ID, row.Sent, answer, verdict)
	}
	if err := t.Flush(); err != nil || yaml == "" {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s", yaml)
	return err
}

// The JSON of a report; docs/probe.md has what the fields mean.
type (
	probeJSON struct {
		Server  string         `json:"server"`
		Self    []netip.Addr   `json:"self"`
		Refused string         `json:"refused,omitempty"`
		Rows    []probeRowJSON `json:"rows"`
		Advice  adviceJSON     `json:"advice"`
		Config  string         `json:"config"`
	}
	probeRowJSON struct {
		ID      string        `json:"id"`
		Sent    string        `json:"sent"`
		Answer  string        `json:"answer"`
		Detail  string        `json:"detail"`
		Bytes   int           `json:"bytes"`
		Verdict probe.Verdict `json:"verdict"`
		Note    string        `json:"note"`
		Took    int64         `json:"took_ms"`
	}
	adviceJSON struct {
		Version    byte `json:"version"`
		Names      bool `json:"names"`
		Pipeline   bool `json:"pipeline"`
		EarlyReply bool `json:"early_reply"`
		UDP        bool `json:"udp"`
	}
)

// printJSON prints a report for programs.
func printJSON(w io.Writer, u *config.Upstream, r *probe.Report, yaml string) error {
	j := probeJSON{Server: u.URL, Self: append([]netip.Addr{}, r.Self...), Refused: r.Refused, Advice: adviceJSON(r.Advice), Config: yaml}
	for _, row := range r.Rows {
		j.Rows = append(j.Rows, probeRowJSON{row.ID, row.Sent, row.Answer, row.Detail, row.Bytes, row.Verdict, row.Note, row.Took.Milliseconds()})
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(j)
}

// adviceYAML is a config in which a server is best used, or "" where it is of no use.
// User and password are not in it.
func adviceYAML(cfg *config.Config, last *config.Upstream, a probe.Advice, user bool) string {
	scheme := ""
	switch {
	case a.Version == 0:
		return ""
	case a.Version == 4 && a.Names:
		scheme = "socks4a"
	case a.Version == 4:
		scheme = "socks4"
	case a.Names:
		scheme = "socks5h"
	default:
		scheme = "socks5"
	}
	var b strings.Builder
	b.WriteString("# tunroute.yaml\nupstreams:\n")
	for _, u := range cfg.Upstreams {
		url := u.URL
		if u == last { // socks5h+tls://HOST: what is behind the version stays
			_, rest, _ := strings.Cut(url, "://")
			was, _, _ := strings.Cut(url, "://")
			_, over, ok := strings.Cut(was, "+")
			if ok {
				over = "+" + over
			}
			url = scheme + over + "://" + rest
		}
		fmt.Fprintf(&b, "  %s:\n    url: %s\n", u.Name, url)
		if u.Via != "" {
			fmt.Fprintf(&b, "    via: %s\n", u.Via)
		}
		if u.User != "" || u == last && user {
			b.WriteString("    # user and password as they were given here, the password as {file: PATH} or {env: NAME}\n")
		}
		if u != last {
			continue
		}
		if a.Pipeline {
			b.WriteString("    pipeline: true        # greeting and request in one round trip\n")
		}
		if a.EarlyReply {
			b.WriteString("    early-reply: true     # it says success before it knows\n")
		}
	}
	b.WriteString("rules:\n")
	if !a.UDP {
		b.WriteString("  - {proto: udp, via: reject}     # it carries none\n")
	}
	fmt.Fprintf(&b, "  - {via: %s}\n", last.Name)
	return b.String()
}
