package interop

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

var killCount = flag.Int("kills", 20, "how often to kill a daemon that gives names addresses")

// askedNames is how many names leaseRole asks for.
const askedNames = 3000

// leaseRole SERVER asks for names below lab.SecretName, again and again, and prints
// each with the address that it got.
func leaseRole(args []string) error {
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for {
				name := fmt.Sprintf("n%d.%s", rand.IntN(askedNames), lab.SecretName)
				addr, err := askA(args[0], name)
				if err != nil {
					time.Sleep(10 * time.Millisecond) // the daemon is away
					continue
				}
				fmt.Println(name, addr)
			}
		})
	}
	asking.Wait()
	return nil
}

// leasedRole SERVER FLOWS reads names and addresses as leaseRole prints them, and
// says of each that has another address now what that is. To so many of them it
// opens a flow, by the address that it has read, and says which ones fail.
func leasedRole(args []string) error {
	var lines []string
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		lines = append(lines, in.Text())
	}
	rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
	flows := min(atoi(args[1]), len(lines))
	work := make(chan int)
	var checking sync.WaitGroup
	for range 8 {
		checking.Go(func() {
			for i := range work {
				name, addr, _ := strings.Cut(lines[i], " ")
				if i < flows {
					if err := echoAt(addr, name); err != nil {
						fmt.Printf("flow to %s at %s: %v\n", name, addr, err)
					}
				}
				// A datagram may be lost on a busy machine.
				var now netip.Addr
				err := errors.New("not asked")
				for try := 0; err != nil && try < 20; try++ {
					now, err = askA(args[0], name)
				}
				if err != nil || now.String() != addr {
					fmt.Printf("%s was at %s, is at %v, %v\n", name, addr, now, err)
				}
			}
		})
	}
	for i := range lines {
		work <- i
	}
	close(work)
	checking.Wait()
	fmt.Println("looked at", len(lines), "names and", flows, "flows")
	return nil
}

// askA asks a server for the IPv4 address of a name.
func askA(server, name string) (netip.Addr, error) {
	id := uint16(rand.Uint32())
	q := dnsmessage.Message{
		Header: dnsmessage.Header{ID: id, RecursionDesired: true},
		Questions: []dnsmessage.Question{{
			Name: dnsmessage.MustNewName(name + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET,
		}},
	}
	b, err := q.Pack()
	if err != nil {
		return netip.Addr{}, err
	}
	c, err := net.Dial("udp", server+":53")
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return netip.Addr{}, err
	}
	if _, err := c.Write(b); err != nil {
		return netip.Addr{}, err
	}
	b = make([]byte, 512)
	n, err := c.Read(b)
	if err != nil {
		return netip.Addr{}, err
	}
	var a dnsmessage.Message
	if err := a.Unpack(b[:n]); err != nil {
		return netip.Addr{}, err
	}
	if a.ID != id || len(a.Answers) != 1 {
		return netip.Addr{}, fmt.Errorf("answer %v", a.GoString())
	}
	r, ok := a.Answers[0].Body.(*dnsmessage.AResource)
	if !ok {
		return netip.Addr{}, fmt.Errorf("answer %v", a.GoString())
	}
	return netip.AddrFrom4(r.A), nil
}

// echoAt has an address say a word back.
func echoAt(addr, word string) error {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", addr, lab.EchoPort), 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	b := make([]byte, len(word))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != word {
		return fmt.Errorf("%q, %w", b, err)
	}
	return nil
}

// The daemon is killed at any moment, again and again, while dnsperf and others ask
// for names: after each start whoever was answered is right about the address, and
// a flow to it arrives, through a server that alone knows the name.
func TestLeasesOutliveSIGKILL(t *testing.T) {
	lab.Need(t, "dnsperf", "dnsperf")
	kills, flows := *killCount, 20
	if light() {
		kills = 3
	}
	l := newLab(t)
	danted := startServer(t, l, servers.Dante, dante)
	dir := lab.Dir(t)
	config := lab.File(t, "tunroute.yaml", runConfig(danted)+fmt.Sprintf("dns: {state: %s}\n", filepath.Join(dir, "leases")))
	const resolver = "198.18.0.1"

	var b strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&b, "load%d.%s A\n", i, lab.SecretName)
	}
	questions := lab.File(t, "questions", b.String())
	d := startRun(t, l, config)
	load := startShell(t, l.Lan, "dnsperf", "-s", resolver, "-d", questions, "-c", "4", "-Q", "5000", "-t", "1", "-l", "86400")
	defer load.Process().Kill()

	asker := l.Lan.Command(lab.Self, "lease", resolver)
	var said strings.Builder
	asker.Stderr = &said
	out, err := asker.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := asker.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		asker.Process.Kill()
		asker.Wait()
	}()
	lines := make(chan string)
	done := make(chan struct{})
	defer close(done)
	go func() {
		defer close(lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			select {
			case lines <- in.Text():
			case <-done:
				return
			}
		}
	}()

	told := map[string]string{}
	start := time.Now()
	for round := range kills {
		// How many answers until it is killed is as good as a time.
		for range 1 + rand.IntN(300) {
			line, ok := <-lines
			if !ok {
				t.Fatalf("the client has ended: %v, %s", asker.Wait(), &said)
			}
			name, addr, _ := strings.Cut(line, " ")
			if was := told[name]; was != "" && was != addr {
				t.Errorf("round %d: %s is at %s, was at %s", round, name, addr, was)
			}
			told[name] = addr
		}
		if err := d.Process().Kill(); err != nil {
			t.Fatal(err)
		}
		d.Wait(t)
		d = startRun(t, l, config)
		if strings.Contains(d.Log(), "level=ERROR") {
			t.Errorf("round %d: %s", round, d.Log())
		}
		check := flows
		if round == kills-1 {
			check = 10 * flows
		}
		var known strings.Builder
		for name, addr := range told {
			fmt.Fprintln(&known, name, addr)
		}
		list := lab.File(t, "told", known.String())
		got := must(t, l.Lan, "sh", "-c", fmt.Sprintf("%s leased %s %d < %s", lab.Self, resolver, check, list))
		if strings.Count(got, "\n") != 1 {
			t.Errorf("round %d: %s", round, got)
		}
	}
	t.Logf("%d names after %d kills in %v", len(told), kills, time.Since(start).Round(time.Second))
	stopRun(t, d)
}
