package company

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// roles are what the test binary does when it runs inside, by its first argument.
var roles = map[string]func(args []string) error{
	"fetch": fetchRole,
	"load":  loadRole,
}

// patience of a program with one request: as long as a group may take for all its tries.
const patience = 60 * time.Second

// fetcher returns a client that makes a connection for each request, from an address if
// that is not zero.
func fetcher(from netip.Addr) *http.Client {
	d := &net.Dialer{}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return &http.Client{
		Timeout: patience,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			// Of one family: what would be tried of the other one meanwhile
			// would be a flow of its own.
			DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return d.DialContext(ctx, "tcp4", address)
			},
		},
	}
}

// fetch returns the page, without the newline at its end, or why there is none.
func fetch(c *http.Client, url string) (string, error) {
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return strings.TrimSuffix(string(body), "\n"), err
}

// fetchRole N URL [SOURCE...] asks for a page N times, one after the other, or N times
// from each source, and prints what comes. With sources they stand before the pages.
func fetchRole(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	sources := args[2:]
	if len(sources) == 0 {
		sources = []string{""}
	}
	for range n {
		for _, s := range sources {
			var from netip.Addr
			if s != "" {
				if from, err = netip.ParseAddr(s); err != nil {
					return err
				}
			}
			page, err := fetch(fetcher(from), args[1])
			if err != nil {
				return err
			}
			fmt.Println(strings.TrimSpace(s + " " + page))
		}
	}
	return nil
}

// Words of loadRole.
const (
	hold = "hold" // begin nothing new; answered by held when nothing runs any more
	held = "held"
	goOn = "go"
)

// loadEvery is the time between two requests: 20 a second.
const loadEvery = 50 * time.Millisecond

// loadRole URL asks for a page every loadEvery, also while the last ones take long, and
// prints a line for each when it has ended: "ok", how long it took, and the page; or
// "failed" and why. It is told on standard input what to do, hold at first, and ends
// with it.
func loadRole(args []string) error {
	words := make(chan string)
	go func() {
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			words <- in.Text()
		}
		close(words)
	}()
	var mu sync.Mutex // one line at a time
	say := func(format string, a ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", a...)
	}
	c := fetcher(netip.Addr{})
	tick := time.NewTicker(loadEvery)
	defer tick.Stop()
	var running sync.WaitGroup
	// More than there are where each second one takes a second. Where there would be
	// more, the machine is overloaded, and what waits for it is no concern of ours.
	slots := make(chan struct{}, 16)
	holding := true
	for {
		select {
		case word, ok := <-words:
			if holding = word != goOn; holding {
				running.Wait()
				say(held)
			}
			if !ok {
				return nil
			}
		case <-tick.C:
			if holding {
				continue
			}
			slots <- struct{}{}
			running.Go(func() {
				defer func() { <-slots }()
				begun := time.Now()
				page, err := fetch(c, args[0])
				took := time.Since(begun).Round(10 * time.Microsecond)
				if err != nil {
					say("failed after %v: %v", took, err)
				} else {
					say("ok %v %s", took, page)
				}
			})
		}
	}
}
