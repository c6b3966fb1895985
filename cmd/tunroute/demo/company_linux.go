package demo

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"tunroute/tun/netns/hosts"
)

// Addresses of the company: docs/company.md has the drawing.
var (
	clientAddr = addr("10.0.0.10")
	lanAddr    = addr("10.0.0.20")
	d1Addr     = addr("10.0.4.1")
	p1Addr     = addr("192.168.100.2")
	subAddr    = addr("192.168.100.10")
	noSubAddr  = addr("192.168.100.77") // of nobody
	privAddr   = addr("172.31.0.10")
	webAddr    = addr("203.0.113.80")

	corpDNSAddr = addr("10.0.0.53")
	netDNSAddr  = addr("203.0.113.53")
	privDNSAddr = addr("172.31.0.53")

	intAddr = [2]netip.Addr{addr("10.0.3.1"), addr("10.0.3.2")}

	// Gateways, as those see them who are behind.
	int1Outside = addr("203.0.113.1")
	int2Outside = addr("203.0.113.2")
	d1Outside   = addr("192.168.100.1")
	p1Outside   = addr("172.31.0.1")
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

const socksPort = 1080

// company is the network, with all that runs there.
type company struct {
	dir             string // the configs, the secrets and the logs
	hosts, networks int

	lan, sub, priv, web      *site
	corpDNS, netDNS, privDNS *nameServer
	int                      [2]*tunroute
	d1, p1                   *tunroute
	client                   *tunroute
	program                  *program
	user, password           string

	counted map[*tunroute]int // of connections, when they were last asked for
}

// Company is the process in which the company is: args are a [Task], as JSON, and
// configs are those of the client and of the gateways, by the names of their files in
// examples. It prints what is seen, and returns the exit status.
func Company(args []string, configs map[string]string) (status int) {
	var t Task
	if len(args) != 1 || json.Unmarshal([]byte(args[0]), &t) != nil {
		fmt.Fprintln(os.Stderr, "tunroute: demo: this process is started by another of ours and cannot be run by hand")
		return 1
	}
	done := make(chan int, 1)
	var inShell atomic.Bool
	go func() {
		status, err := live(t, configs, &inShell)
		if err != nil {
			fmt.Fprintf(os.Stderr, "tunroute: demo: %v\n", err)
			status = 1
		}
		done <- status
	}()
	// What a terminal sends to all ends this process as well as P, unless it is
	// for the shell.
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	for {
		select {
		case status := <-done:
			return status
		case sig := <-signals:
			if inShell.Load() && (sig == syscall.SIGINT || sig == syscall.SIGQUIT) {
				continue
			}
			return 128 + int(sig.(syscall.Signal))
		}
	}
}

// live does what the task says and returns the exit status.
func live(t Task, configs map[string]string, inShell *atomic.Bool) (status int, err error) {
	begun := time.Now()
	since := func() time.Duration { return time.Since(begun).Round(10 * time.Millisecond) }
	c, err := found(t, configs)
	if err != nil {
		return 0, err
	}
	fmt.Printf("a company of %d hosts on %d networks, in namespaces, is up after %v\n", c.hosts, c.networks, since())
	passed := c.inspect()
	if passed == len(requirements) {
		fmt.Printf("all pass, after %v\n", since())
	} else {
		fmt.Printf("%d of %d pass, after %v\n", passed, len(requirements), since())
		status = 1
	}
	if !t.Shell {
		return status, nil
	}
	inShell.Store(true)
	return c.shell()
}

// found makes the company and starts everything in it. All of it ends with this
// process.
func found(t Task, configs map[string]string) (*company, error) {
	file := clientConfig
	if t.Config != "" { // what is mounted next may cover it
		text, err := os.ReadFile(t.Config)
		if err != nil {
			return nil, err
		}
		file = filepath.Base(t.Config) // by which errors name it
		configs[file] = string(text)
	}
	// The machine's own resolver is the company's, whom tunroute has to keep
	// programs from asking.
	if err := hosts.Enter("client", corpDNSAddr); err != nil {
		return nil, err
	}
	c := &company{counted: make(map[*tunroute]int)}
	if err := c.furnish(configs); err != nil {
		return nil, err
	}
	if err := c.build(); err != nil {
		return nil, err
	}
	c.client.config = file
	var starting errgroup.Group
	for _, g := range []*tunroute{c.int[0], c.int[1], c.d1, c.p1, c.client} {
		if !slices.Contains(t.Without, g.Name) {
			starting.Go(g.start)
		}
	}
	starting.Go(func() (err error) {
		c.program, err = startProgram(c.client.Host)
		return err
	})
	return c, starting.Wait()
}

// Files of the company.
const (
	clientConfig = "company.yaml"
	userFile     = "internet.user" // and secretFile: the client's
	secretFile   = "internet.secret"
	usersFile    = "internet.users" // those of int1 and int2
)

// furnish makes the directory of the company.
func (c *company) furnish(configs map[string]string) (err error) {
	if c.dir, err = hosts.Scratch(); err != nil {
		return err
	}
	c.user, c.password = "office", strings.ToLower(rand.Text()[:12])
	for name, text := range configs {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o644))
	}
	for name, text := range map[string]string{userFile: c.user, secretFile: c.password} {
		err = errors.Join(err, os.WriteFile(filepath.Join(c.dir, name), []byte(text+"\n"), 0o600))
	}
	if err != nil {
		return err
	}
	// As the owner of the gateways would.
	cmd := exec.Command("/proc/self/exe", "passwd", usersFile, c.user)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = c.dir
	cmd.Stdin = strings.NewReader(c.password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the users of the gateways: %w\n%s", err, out)
	}
	return nil
}

// build makes hosts and networks, web sites and name servers.
func (c *company) build() error {
	networks := []string{"corp", "net", "sub", "priv"}
	c.networks = len(networks)
	sw, err := hosts.NewSwitch(networks...)
	if err != nil {
		return err
	}
	// host makes a host with interfaces: a network, and addresses there.
	host := func(name string, interfaces ...[]string) *hosts.Host {
		if err != nil {
			return nil
		}
		c.hosts++
		var h *hosts.Host
		if h, err = hosts.New(name); err != nil {
			return nil
		}
		for _, i := range interfaces {
			var addrs []netip.Prefix
			for _, a := range i[1:] {
				addrs = append(addrs, netip.MustParsePrefix(a))
			}
			err = errors.Join(err, sw.Attach(h, i[0], addrs...))
		}
		return h
	}
	client := host("client", []string{"corp", "10.0.0.10/8"})
	lan := host("lan", []string{"corp", "10.0.0.20/8", "10.0.0.53/8"})
	int1 := host("int1", []string{"corp", "10.0.3.1/8"}, []string{"net", "203.0.113.1/24"})
	int2 := host("int2", []string{"corp", "10.0.3.2/8"}, []string{"net", "203.0.113.2/24"})
	d1 := host("d1", []string{"corp", "10.0.4.1/8"}, []string{"sub", "192.168.100.1/24"})
	p1 := host("p1", []string{"sub", "192.168.100.2/24"}, []string{"priv", "172.31.0.1/16"})
	sub := host("sub", []string{"sub", "192.168.100.10/24"})
	priv := host("priv", []string{"priv", "172.31.0.10/16", "172.31.0.53/16"})
	inet := host("inet", []string{"net", "203.0.113.80/24", "203.0.113.53/24"})
	if err != nil {
		return err
	}
	var all [8]error
	c.lan, all[0] = newSite(lan, lanAddr, 80)
	c.sub, all[1] = newSite(sub, subAddr, 80, 2222)
	c.priv, all[2] = newSite(priv, privAddr, 80)
	c.web, all[3] = newSite(inet, webAddr, 80, 8080)
	all[4] = errors.Join(echo(inet, netip.AddrPortFrom(webAddr, 7000)), d1.Unreachable(noSubAddr))
	c.corpDNS, all[5] = newNameServer(lan, corpDNSAddr, "corp.example", lanAddr)
	c.netDNS, all[6] = newNameServer(inet, netDNSAddr, "example.com", webAddr)
	c.privDNS, all[7] = newNameServer(priv, privDNSAddr, "private-net.org", privAddr)

	c.client = newTunroute(client, c.dir, clientConfig)
	for i, h := range []*hosts.Host{int1, int2} {
		c.int[i] = newTunroute(h, c.dir, gatewayConfig(h.Name))
	}
	c.d1, c.p1 = newTunroute(d1, c.dir, gatewayConfig("d1")), newTunroute(p1, c.dir, gatewayConfig("p1"))
	return errors.Join(all[:]...)
}

// gatewayConfig is the file with the config of a gateway.
func gatewayConfig(name string) string { return "company-" + name + ".yaml" }

// program is the program on the client that knows nothing of tunroute.
type program struct {
	out *json.Encoder
	in  *json.Decoder
}

func startProgram(h *hosts.Host) (*program, error) {
	cmd := exec.Command("/proc/self/exe", StageClient)
	cmd.Args[0] = os.Args[0]
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var in io.WriteCloser
	out, err := cmd.StdoutPipe()
	if err == nil {
		in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = h.Start(cmd)
	}
	if err != nil {
		return nil, fmt.Errorf("start a program on %s: %w", h.Name, err)
	}
	return &program{json.NewEncoder(in), json.NewDecoder(out)}, nil
}

// do has the program do something.
func (p *program) do(t task) outcome {
	o := nothing()
	err := p.out.Encode(t)
	if err == nil {
		err = p.in.Decode(&o)
	}
	if err != nil {
		o.Err = fmt.Sprintf("the program on the client has ended: %v", err)
	}
	return o
}

// connections returns how many connections have been accepted on each of some hosts
// since they were last asked about.
func (c *company) connections(of ...*tunroute) (list []int, err error) {
	for _, t := range of {
		n, aerr := t.Accepted()
		err = errors.Join(err, aerr)
		list = append(list, n-c.counted[t])
		c.counted[t] = n
	}
	return list, err
}
