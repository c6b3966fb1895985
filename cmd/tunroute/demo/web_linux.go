package demo

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"

	"tunroute/tun/netns/hosts"
)

// site is web servers on a host, which say and remember who has asked.
type site struct {
	*hosts.Host

	mu   sync.Mutex // guards seen
	seen []request
}

// request is what a site has been asked.
type request struct {
	from netip.Addr
	host string // and port, as the client has asked for it
}

// newSite starts web servers at an address. They end with this process.
func newSite(h *hosts.Host, at netip.Addr, ports ...uint16) (*site, error) {
	s := &site{Host: h}
	for _, port := range ports {
		l, err := h.Listen(netip.AddrPortFrom(at, port))
		if err != nil {
			return nil, err
		}
		go http.Serve(l, s)
	}
	return s, nil
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := netip.MustParseAddrPort(r.RemoteAddr).Addr()
	s.mu.Lock()
	s.seen = append(s.seen, request{from, r.Host})
	s.mu.Unlock()
	fmt.Fprintf(w, "srv=%s peer=%s Host=%s\n", s.Name, from, r.Host)
}

// requests returns what has been asked since the last call.
func (s *site) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = nil
	return seen
}

// echo serves a port of another service than HTTP.
func echo(h *hosts.Host, at netip.AddrPort) error {
	l, err := h.Listen(at)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				go func() {
					defer c.Close()
					io.Copy(c, c)
				}()
			}
		}
	}()
	return nil
}
