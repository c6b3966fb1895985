package resolve

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// transports are all that there are.
var transports = []Transport{UDP, TCP, TLS, HTTPS}

const peerName = "dns.example.com"

// peer is a DNS server in memory that speaks all transports. What it does with a
// question is the test's.
type peer struct {
	addr  netip.AddrPort
	serve func(w *writer, q *dns.Msg)
	cert  tls.Certificate
	roots *x509.CertPool
	noUDP bool // dials of UDP fail
	roomy bool // what is sent to it does not wait until it reads
	web   chan net.Conn

	mu    sync.Mutex
	asked []string // the names, in order
	dials []string // the networks, in order
	conns []net.Conn
}

// writer is where a peer writes.
type writer struct {
	transport Transport
	conn      net.Conn
	http      http.ResponseWriter // of HTTPS
	request   *http.Request
}

// send sends one message.
func (w *writer) send(msg []byte) {
	switch w.transport {
	case UDP:
		_, _ = w.conn.Write(msg)
	case TCP, TLS:
		_, _ = w.conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...))
	case HTTPS:
		w.http.Header().Set("Content-Type", messageType)
		_, _ = w.http.Write(msg)
	}
}

// answer sends a reply as edit makes it.
func (w *writer) answer(q *dns.Msg, edit func(*dns.Msg)) {
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	edit(m)
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	w.send(b)
}

// raw sends what is no message.
func (w *writer) raw(b []byte) {
	if w.transport == HTTPS {
		w.send(b)
		return
	}
	_, _ = w.conn.Write(b)
}

// end closes the connection.
func (w *writer) end() {
	if w.transport == HTTPS {
		panic(http.ErrAbortHandler)
	}
	w.conn.Close()
}

// hang does nothing until the client has left.
func (w *writer) hang() {
	if w.transport == HTTPS {
		<-w.request.Context().Done()
	}
}

// newPeer returns a server that does so, until the end of the test.
func newPeer(t testing.TB, serve func(w *writer, q *dns.Msg)) *peer {
	t.Helper()
	p := &peer{addr: netip.MustParseAddrPort("192.0.2.53:53"), serve: serve, web: make(chan net.Conn)}
	p.cert, p.roots = certificate(t)
	ctx, cancel := context.WithCancel(context.Background())
	s := &http.Server{
		Handler:  http.HandlerFunc(p.serveHTTP),
		ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{
			Certificates: []tls.Certificate{p.cert},
			NextProtos:   []string{"h2", "http/1.1"},
		},
	}
	var running sync.WaitGroup
	running.Go(func() { _ = s.ServeTLS(&listener{p.web, ctx}, "", "") })
	t.Cleanup(func() {
		cancel()
		s.Close()
		running.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.conns {
			c.Close()
		}
	})
	return p
}

// buffered is a connection whose writes do not wait for the reader, as those of a
// socket do not.
type buffered struct {
	net.Conn
	queue chan []byte
	done  chan struct{}
	once  sync.Once
}

func buffer(conn net.Conn) net.Conn {
	b := &buffered{Conn: conn, queue: make(chan []byte, 64), done: make(chan struct{})}
	go func() {
		defer conn.Close()
		for {
			select {
			case data := <-b.queue:
				if _, err := conn.Write(data); err != nil {
					_ = b.Close()
					return
				}
			case <-b.done:
				// What waits is let out for as long as somebody reads it.
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				for len(b.queue) > 0 {
					if _, err := conn.Write(<-b.queue); err != nil {
						return
					}
				}
				return
			}
		}
	}()
	return b
}

func (b *buffered) Write(data []byte) (int, error) {
	select {
	case <-b.done:
		return 0, net.ErrClosed
	default:
	}
	select {
	case b.queue <- bytes.Clone(data):
		return len(data), nil
	case <-b.done:
		return 0, net.ErrClosed
	}
}

// SetWriteDeadline does nothing: what has been written goes out.
func (b *buffered) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr tells connections apart.
func (b *buffered) LocalAddr() net.Addr { return bufferedAddr{b} }

type bufferedAddr struct{ *buffered }

func (bufferedAddr) Network() string  { return "memory" }
func (a bufferedAddr) String() string { return fmt.Sprintf("%p", a.buffered) }

func (b *buffered) Close() error {
	b.once.Do(func() { close(b.done) })
	return nil
}

// listener is a net.Listener of connections in memory.
type listener struct {
	conns chan net.Conn
	ctx   context.Context
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

// server returns the peer as a Server.
func (p *peer) server(tr Transport) Server {
	s := Server{Transport: tr, Addrs: []string{p.addr.String()}, Name: peerName, Roots: p.roots, Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return p.dial(ctx, tr, network, addr)
	}}
	if tr == HTTPS {
		s.URL = "https://" + peerName + "/dns-query"
	}
	return s
}

func (p *peer) dial(ctx context.Context, tr Transport, network, addr string) (net.Conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dials = append(p.dials, network)
	if addr != p.addr.String() || p.noUDP && network == "udp" {
		return nil, syscall.ECONNREFUSED
	}
	client, server := net.Pipe()
	if network == "tcp" {
		server = buffer(server)
	}
	if p.roomy {
		client = buffer(client)
	}
	p.conns = append(p.conns, server)
	if tr == HTTPS {
		select {
		case p.web <- server:
			return client, nil
		case <-ctx.Done():
			server.Close() // the test may have ended, and closed those before it
			return nil, ctx.Err()
		}
	}
	go func() {
		defer server.Close()
		if network == "udp" {
			p.serveUDP(server)
			return
		}
		conn := net.Conn(server)
		over := TCP
		if tr == TLS {
			conn, over = tls.Server(server, &tls.Config{Certificates: []tls.Certificate{p.cert}}), TLS
		}
		for {
			msg, err := readMessage(conn)
			if err != nil {
				return
			}
			p.answer(&writer{transport: over, conn: conn}, msg)
		}
	}()
	return client, nil
}

func (p *peer) serveUDP(conn net.Conn) {
	buf := make([]byte, 1<<16)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		p.answer(&writer{transport: UDP, conn: conn}, bytes.Clone(buf[:n]))
	}
}

func (p *peer) serveHTTP(w http.ResponseWriter, r *http.Request) {
	msg, err := io.ReadAll(r.Body)
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/dns-query" || r.Host != peerName ||
		r.Header.Get("Content-Type") != messageType {
		http.Error(w, "not so", http.StatusBadRequest)
		return
	}
	p.answer(&writer{transport: HTTPS, http: w, request: r}, msg)
}

func (p *peer) answer(w *writer, msg []byte) {
	q := new(dns.Msg)
	if err := q.Unpack(msg); err != nil || len(q.Question) != 1 {
		return
	}
	p.mu.Lock()
	p.asked = append(p.asked, canonical(q.Question[0].Name))
	p.mu.Unlock()
	p.serve(w, q)
}

// questions returns the names that have been asked for since the last time.
func (p *peer) questions() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := p.asked
	p.asked = nil
	return list
}

// dialled returns the networks that have been dialled since the last time.
func (p *peer) dialled() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := slices.Clone(p.dials)
	p.dials = nil
	return list
}

// certificate returns one of a server that has signed it itself.
func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: peerName},
		NotBefore:             time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), // before the time in a synctest
		NotAfter:              time.Date(2090, 1, 1, 0, 0, 0, 0, time.UTC),
		DNSNames:              []string{peerName},
		IPAddresses:           []net.IP{net.IPv4(192, 0, 2, 53), net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}
