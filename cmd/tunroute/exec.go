package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"tunroute/cmd/tunroute/config"
)

// exitFailed is the exit status of exec when tunroute itself fails, as env(1)
// and others have it.
const exitFailed exitStatus = 125

// spec is what exec was asked for, as its router process is told.
type spec struct {
	Config   string      // the file; "" where there is none
	Text     config.File // what is in it: it may be a pipe
	Proxies  []string    // where there is no file
	Verbose  int
	Terminal bool // whether the log is read on one
}

func newExec() *cobra.Command {
	var s spec
	c := &cobra.Command{
		Use:   "exec [-c FILE] [--proxy URL]... [--] CMD [ARG...]",
		Short: "Run a program whose connections go where a config says",
		Long: `Exec runs a program, of any kind and without its knowing, in a network
namespace in which there is nothing but a TUN interface to tunroute. No privilege
is needed, and nothing of the host is changed.

Where its connections go is said by a config file; or by --proxy, which given
several times makes a chain, the nearest first; or by the environment (all_proxy,
ALL_PROXY, SOCKS5_SERVER, SOCKS_SERVER, SOCKS4_SERVER). If nothing says it they go
directly, from this host. The program does not see those variables, nor http_proxy
and the like: it would look for 127.0.0.1 in the wrong network.

The exit status is that of the program; 125 if tunroute fails, 126 if the program
cannot be executed and 127 if it is not found. What the program leaves running
goes on being served until it ends.

Flows that fail are logged on standard error; -v logs all of them.`,
		Example: `  tunroute exec -- curl -s http://example.org/
  tunroute exec --proxy socks5h://10.0.4.1 -- bash
  ALL_PROXY=socks5h://user:password@proxy.example:1080 tunroute exec -- git fetch`,
		Args: cobra.ArbitraryArgs,
		// Its flags are in Use: behind the program they would be the program's.
		DisableFlagsInUseLine: true,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("no program to run; try `tunroute exec -- curl -s http://example.org/`")
			case s.Config != "" && len(s.Proxies) > 0:
				return errors.New("-c and --proxy are both given, and a config names its servers itself, under upstreams")
			case s.Config == "" && len(s.Proxies) == 0:
				s.Proxies = proxyFromEnv()
			}
			var cfg *config.Config
			var err error
			if s.Config != "" {
				s.Text, err = config.Read(s.Config)
			}
			if err == nil {
				cfg, err = s.load()
			}
			var place config.Errors
			if errors.As(err, &place) {
				fmt.Fprintf(os.Stderr, "%v\n", err) // begins with its own place
				return exitFailed
			}
			if err != nil {
				return err
			}
			warn(cfg.Warnings)
			return runExec(s, cfg, args)
		},
	}
	// What follows the program is the program's.
	c.Flags().SetInterspersed(false)
	configFlag(c, &s.Config, "")
	c.Flags().StringArrayVar(&s.Proxies, "proxy", nil, "the `URL` of a SOCKS server or HTTP proxy; several make a chain")
	c.Flags().CountVarP(&s.Verbose, "verbose", "v", "log all flows; twice for what is behind them")
	return c
}

// proxyFromEnv returns the proxy that the environment names, if any.
func proxyFromEnv() []string {
	if p := config.ProxyFromEnv(os.Getenv); p != "" {
		return []string{p}
	}
	return nil
}

// takeProxies takes all proxies, and what is for their sake, out of the environment, and
// returns the names, sorted. A program in a namespace goes by the config: one that speaks
// SOCKS or HTTP proxies itself would look for 127.0.0.1 in the wrong network.
func takeProxies() []string {
	var names []string
	for _, v := range os.Environ() {
		name, _, _ := strings.Cut(v, "=")
		upper := strings.ToUpper(name)
		if strings.HasSuffix(upper, "_PROXY") || socksVariable.MatchString(upper) {
			names = append(names, name)
			os.Unsetenv(name)
		}
	}
	slices.Sort(names)
	return names
}

// socksVariable finds what Dante's clients go by.
var socksVariable = regexp.MustCompile(`^SOCKS[45]?_(SERVER|USER|USERNAME|PASSWD|PASSWORD)$`)

// load returns the config of a spec.
func (s spec) load() (*config.Config, error) {
	if s.Config == "" {
		return config.FromProxies(s.Proxies)
	}
	cfg, err := s.Text.Parse()
	if err != nil {
		return nil, err
	}
	// The addresses are for the clients and servers of run, which may be serving
	// them.
	cfg.DNS.Listen, cfg.Ident.Listen, cfg.Listen = nil, nil, config.Listen{}
	cfg.TUN.Off = false
	return cfg, nil
}

// logLevel returns the level of the log, and whether flows that went well are
// left out. A config that asks for more is heard,
// and one that asks for less than -v is not.
func (s spec) logLevel(cfg *config.Config) (level slog.Level, quiet bool) {
	level = slog.LevelInfo
	if s.Config != "" {
		level = slog.Level(cfg.Log.Level)
	}
	switch {
	case s.Verbose > 1:
		level = slog.LevelDebug
	case s.Verbose > 0:
		level = min(level, slog.LevelInfo)
	}
	return level, s.Verbose == 0 && level == slog.LevelInfo
}
