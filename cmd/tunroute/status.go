package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/admin"
	"tunroute/cmd/tunroute/config"
)

// asker is a command that asks the daemon.
type asker struct {
	file, socket string
	json         bool
}

// flags adds what all of them take.
func (a *asker) flags(c *cobra.Command, withJSON bool) {
	configFlag(c, &a.file, defaultConfig)
	c.Flags().StringVar(&a.socket, "socket", "", "the daemon's `path`, instead of the one that the config has")
	if withJSON {
		c.Flags().BoolVar(&a.json, "json", false, "print JSON")
	}
}

// askTimeout is for an answer: of a reload, whose servers' names are looked up, most
// likely.
const askTimeout = time.Minute

// ask calls f with the client of the daemon.
func (a *asker) ask(ctx context.Context, f func(context.Context, *admin.Client) error) error {
	path, file := a.socket, ""
	if path == "" {
		cfg, err := config.LoadAdmin(a.file)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%v\n", err)
			return errors.New("the config says where the daemon is; --socket PATH asks it without")
		}
		file = cfg.AbsFile()
		if path = cfg.AdminSocket(); path == "" {
			return errors.New("the config has no admin.socket: name the daemon's with --socket PATH")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	return f(ctx, admin.Dial(path, file))
}

// print writes v as JSON where that was asked for, else by text.
func (a *asker) print(w io.Writer, v any, text func(w io.Writer)) error {
	if a.json {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	text(table)
	return table.Flush()
}

func newStatus() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "status [-c FILE]",
		Short: "Tell what a running daemon does, and how its upstreams are",
		Args:  noFile,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c.Context(), func(ctx context.Context, daemon *admin.Client) error {
				s, err := daemon.Status(ctx)
				if err != nil {
					return err
				}
				return a.print(c.OutOrStdout(), s, func(w io.Writer) { writeStatus(w, s) })
			})
		},
	}
	a.flags(c, true)
	return c
}

func writeStatus(w io.Writer, s admin.Status) {
	since := func(t time.Time) time.Duration { return time.Since(t).Round(time.Second) }
	fmt.Fprintf(w, "daemon\ttunroute %s, pid %d, running for %s\n", s.Version, s.PID, since(s.Started))
	fmt.Fprintf(w, "config\t%s", s.Config)
	if !s.Reloaded.IsZero() {
		fmt.Fprintf(w, ", reloaded %s ago", since(s.Reloaded))
	}
	fmt.Fprintln(w)
	if s.Device != "" {
		fmt.Fprintf(w, "device\t%s\n", s.Device)
	}
	fmt.Fprintf(w, "open\t%d tcp, %d udp\n", s.Flows, s.Sessions)
	fmt.Fprintf(w, "ended\t%d tcp, %d udp; %d failed, %d rejected, %d orphans\n", s.TCP, s.UDP, s.Failed, s.Rejected, s.Orphans)
	fmt.Fprintf(w, "limited\t%d flows, %d datagrams\n", s.Limited, s.Dropped)
	fmt.Fprintf(w, "carried\t%s up, %s down\n", bytesText(s.Up), bytesText(s.Down))
	notKept := ""
	if s.NotKept {
		notKept = "; not kept: the file cannot be written, see the log"
	}
	fmt.Fprintf(w, "leases\t%d of %d%s\n", s.Leases, s.Capacity, notKept)
	for _, g := range s.Groups {
		for _, m := range g.Members {
			fmt.Fprintf(w, "%s\t%s %s: ", g.Name, m.Name, m.Network)
			switch {
			case m.Bad && m.Err != "":
				fmt.Fprintf(w, "bad for %s: %s: %s\n", since(m.Since), m.Cause, m.Err)
			case m.Bad:
				fmt.Fprintf(w, "%s\n", m.Cause)
			case m.Took > 0:
				fmt.Fprintf(w, "good, probed in %s\n", m.Took.Round(100*time.Microsecond))
			default:
				fmt.Fprintln(w, "good")
			}
		}
	}
}

func newFlows() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "flows [-c FILE]",
		Short: "List the flows that a running daemon has open, the busiest first",
		Args:  noFile,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c.Context(), func(ctx context.Context, daemon *admin.Client) error {
				flows, err := daemon.Flows(ctx)
				if err != nil {
					return err
				}
				slices.SortFunc(flows, func(x, y admin.Flow) int {
					return cmp.Or(cmp.Compare(y.Up+y.Down, x.Up+x.Down), x.Source.Compare(y.Source))
				})
				return a.print(c.OutOrStdout(), flows, func(w io.Writer) { writeFlows(w, flows) })
			})
		},
	}
	a.flags(c, true)
	return c
}

func writeFlows(w io.Writer, flows []admin.Flow) {
	// Only clients of listeners can have said who they are.
	users := slices.ContainsFunc(flows, func(f admin.Flow) bool { return f.User != "" })
	head := ""
	if users {
		head = "USER\t"
	}
	fmt.Fprintf(w, "NET\tSOURCE\t%sTARGET\tRULE\tOUT\tUP\tDOWN\tAGE\n", head)
	for _, f := range flows {
		user := ""
		if users {
			user = cmp.Or(f.User, "-") + "\t"
		}
		rule := "default"
		if f.Rule > 0 {
			rule = fmt.Sprint(f.Rule)
		}
		fmt.Fprintf(w, "%s\t%s\t%s%s\t%s\t%s\t%s\t%s\t%s\n", f.Network, f.Source, user, f.Target, rule, f.Out,
			bytesText(f.Up), bytesText(f.Down), time.Since(f.Start).Round(time.Second))
	}
}

// bytesText writes an amount with three digits or so: 999 B, 1.5 kB, 20 MB.
func bytesText(n int64) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "kMGTPE"
	for v /= 1000; v >= 999.5; v /= 1000 {
		units = units[1:]
	}
	if v < 9.95 {
		return fmt.Sprintf("%.1f %cB", v, units[0])
	}
	return fmt.Sprintf("%.0f %cB", v, units[0])
}

func newDNS() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "dns [-c FILE] NAME [TYPE]",
		Short: "Tell what a running daemon answers about a name, and why",
		Long: `Dns asks the daemon's DNS server about a name, as a program would, and tells the
answer, where it is from, and which rules can decide flows to the name. TYPE is
that of a record: A where nothing is said.`,
		Example: `  tunroute dns www.example.org
  tunroute dns example.org MX`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			qtype := "A"
			if len(args) > 1 {
				qtype = args[1]
			}
			return a.ask(c.Context(), func(ctx context.Context, daemon *admin.Client) error {
				answer, err := daemon.Ask(ctx, args[0], qtype)
				if err != nil {
					return err
				}
				return a.print(c.OutOrStdout(), answer, func(w io.Writer) { writeAnswer(w, answer) })
			})
		},
	}
	a.flags(c, true)
	return c
}

// sources are the words for where an answer is from; another one is the reason why
// there is none.
var sources = map[string]string{
	"lease":     "a fake address of the name's own",
	"own":       "known without asking anybody",
	"none":      "there is none for this name",
	"forwarded": "a resolver's, passed on",
	"services":  "a resolver's, without what leads past the fake address",
}

func writeAnswer(w io.Writer, a admin.Answer) {
	fmt.Fprintf(w, "%s %s\t%s\n", a.Name, a.Type, a.Rcode)
	for _, r := range a.Records {
		fmt.Fprintf(w, "\t%s\n", r)
	}
	if a.Reason != "" {
		fmt.Fprintf(w, "reason\t%s\n", a.Reason)
	}
	from := sources[a.Source]
	if from == "" {
		from = a.Source
	}
	fmt.Fprintf(w, "from\t%s\n", from)
	fmt.Fprintf(w, "mode\t%s\n", a.Mode)
	label := "rules"
	for _, r := range a.Rules {
		text := "no rule matches"
		if r.Rule > 0 {
			text = fmt.Sprintf("rule %d (line %d)", r.Rule, r.Line)
		}
		fmt.Fprintf(w, "%s\t%s: via %s\n", label, text, r.Via)
		label = ""
	}
}

func newLeases() *cobra.Command {
	var a asker
	var drop bool
	c := &cobra.Command{
		Use:   "leases [-c FILE] [NAME|ADDRESS] [--drop]",
		Short: "List the names that have fake addresses in a running daemon, or find or drop one",
		Long: `Leases lists names and their fake addresses, those first that were used last; with
a name or a fake address, the one that it belongs to. With --drop the addresses
of that one lead nowhere any more, until the name is asked for again, and then it
has the same ones. Flows that are open go on.`,
		Example: `  tunroute leases
  tunroute leases 198.18.94.7
  tunroute leases --drop www.example.org`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			of := ""
			if len(args) > 0 {
				of = args[0]
			} else if drop {
				return errors.New("leases --drop takes the name, or a fake address, of the one to drop")
			}
			return a.ask(c.Context(), func(ctx context.Context, daemon *admin.Client) error {
				if drop {
					l, err := daemon.DropLease(ctx, of)
					if err == nil {
						fmt.Fprintf(c.OutOrStdout(), "dropped %s\n", l.Name)
					}
					return err
				}
				leases, err := daemon.Leases(ctx, of)
				if err != nil {
					return err
				}
				slices.SortFunc(leases, func(x, y admin.Lease) int {
					return cmp.Or(cmp.Compare(x.Unused, y.Unused), cmp.Compare(x.Name, y.Name))
				})
				return a.print(c.OutOrStdout(), leases, func(w io.Writer) { writeLeases(w, leases) })
			})
		},
	}
	a.flags(c, true)
	c.Flags().BoolVar(&drop, "drop", false, "drop it")
	return c
}

func writeLeases(w io.Writer, leases []admin.Lease) {
	fmt.Fprintln(w, "NAME\tIPV4\tIPV6\tUSED")
	for _, l := range leases {
		used := l.Unused.Round(time.Second).String() + " ago"
		switch {
		case l.Dropped:
			used = "dropped"
		case l.Flows > 0:
			used = fmt.Sprintf("by %d flows", l.Flows)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", l.Name, l.V4, l.V6, used)
	}
}

func newReload() *cobra.Command {
	var a asker
	c := &cobra.Command{
		Use:   "reload [-c FILE]",
		Short: "Have a running daemon read its config again, and tell what came of it",
		Long: `Reload does what SIGHUP does, and waits for it: the new config decides the flows
that come then. If it has an error, that is told, and nothing has changed.`,
		Args: noFile,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c.Context(), func(ctx context.Context, daemon *admin.Client) error { return daemon.Reload(ctx) })
		},
	}
	a.flags(c, false)
	return c
}
