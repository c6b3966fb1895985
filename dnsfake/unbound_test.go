package dnsfake_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"tunroute/dnsfake/resolve"
)

// startUnbound starts unbound, which answers plain DNS, DNS over TLS and over HTTPS
// with the same records, and returns a Server for each of its ways.
func startUnbound(t *testing.T) []resolve.Server {
	t.Helper()
	path := tool(t, "unbound", "unbound")
	dir := t.TempDir()
	roots := writeCertificate(t, dir)
	var last []byte
	for range 5 { // somebody may take a port meanwhile
		plain, secure, web := freePort(t), freePort(t), freePort(t)
		conf := fmt.Sprintf(`server:
	directory: %q
	username: ""
	chroot: ""
	pidfile: ""
	use-syslog: no
	logfile: ""
	verbosity: 0
	num-threads: 1
	do-daemonize: no
	interface: 127.0.0.1@%d
	interface: 127.0.0.1@%d
	interface: 127.0.0.1@%d
	tls-port: %d
	https-port: %d
	tls-service-key: key.pem
	tls-service-pem: cert.pem
	local-zone: "test." static
	local-data: "www.test. 300 IN A 192.0.2.1"
	local-data: "www.test. 300 IN AAAA 2001:db8::1"
	local-data: "alias.test. 300 IN CNAME www.test."
	local-data: "test. 300 IN SOA ns.test. a.test. 1 3600 1200 604800 60"
`, dir, plain.Port(), secure.Port(), web.Port(), secure.Port(), web.Port())
		for i := range 200 {
			conf += fmt.Sprintf("\tlocal-data: 'long.test. 300 IN TXT \"%03d %s\"'\n", i, strings.Repeat("x", 90))
		}
		conf += "remote-control:\n\tcontrol-enable: no\n"
		file := filepath.Join(dir, "unbound.conf")
		if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
		log, err := os.Create(filepath.Join(dir, "log"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, "-d", "-c", file)
		cmd.Stdout, cmd.Stderr = log, log
		err = cmd.Start()
		log.Close()
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			_ = cmd.Wait()
			close(ended)
		}()
		if answersTCP(web.String(), ended) {
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				<-ended
			})
			name := "dns.test"
			return []resolve.Server{
				resolve.Plain(plain, nil),
				{Transport: resolve.TCP, Addrs: []string{plain.String()}},
				{Transport: resolve.TLS, Addrs: []string{secure.String()}, Name: name, Roots: roots},
				{Transport: resolve.TLS, Addrs: []string{secure.String()}, Roots: roots},
				{Transport: resolve.HTTPS, Addrs: []string{web.String()}, Name: name, URL: "https://dns.test/dns-query", Roots: roots},
			}
		}
		_ = cmd.Process.Kill()
		<-ended
		last, _ = os.ReadFile(log.Name())
	}
	t.Fatalf("unbound does not start: %s", last)
	return nil
}

// answersTCP waits until somebody listens, or has ended.
func answersTCP(addr string, ended <-chan struct{}) bool {
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// writeCertificate writes cert.pem and key.pem into a directory, and returns who signed.
func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "dns.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"dns.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true, IsCA: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "key.pem": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}))
	return roots
}

// TestResolverAgainstUnbound asks a server that others have written by each transport.
func TestResolverAgainstUnbound(t *testing.T) {
	for _, s := range startUnbound(t) {
		t.Run(s.Transport.String()+"/"+s.Name, func(t *testing.T) {
			// The time-out is for a machine that has other things to do.
			r, err := resolve.New(resolve.Options{Servers: []resolve.Server{s}, Timeout: 20 * time.Second, Deadline: time.Minute})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			c := resolve.NewCache(resolve.CacheOptions{Choose: func(string) *resolve.Resolver { return r }})
			defer c.Close()
			for _, tt := range []struct{ network, host, want string }{
				{"ip", "www.test", "[192.0.2.1 2001:db8::1]"},
				{"ip4", "WWW.Test.", "[192.0.2.1]"},
				{"ip6", "www.test", "[2001:db8::1]"},
				{"ip", "nx.test", "lookup nx.test: no such host"},
			} {
				addrs, err := c.LookupNetIP(t.Context(), tt.network, tt.host)
				got := fmt.Sprint(addrs)
				if err != nil {
					got = err.Error()
				}
				if got != tt.want {
					t.Errorf("%s %s: %s, want %s", tt.network, tt.host, got, tt.want)
				}
			}
			for _, tt := range []struct {
				name    string
				qtype   uint16
				answers int
				rcode   int
			}{
				{"www.test.", dns.TypeA, 1, dns.RcodeSuccess},
				{"alias.test.", dns.TypeCNAME, 1, dns.RcodeSuccess},
				{"long.test.", dns.TypeTXT, 200, dns.RcodeSuccess},
				{"www.test.", dns.TypeMX, 0, dns.RcodeSuccess},
				{"nx.test.", dns.TypeMX, 0, dns.RcodeNameError},
			} {
				b, err := new(dns.Msg).SetQuestion(tt.name, tt.qtype).Pack()
				if err != nil {
					t.Fatal(err)
				}
				answer, err := c.Exchange(t.Context(), b, "udp")
				var m dns.Msg
				if err == nil {
					err = m.Unpack(answer)
				}
				if err != nil || len(m.Answer) != tt.answers || m.Rcode != tt.rcode || tt.answers == 0 && len(m.Ns) == 0 {
					t.Errorf("%s: %v, %v", tt.name, err, &m)
				}
			}
			// That of www.test is known, and so is that there is no nx.test.
			if s := c.Stats(); s.Failed != 0 || s.Hits < 3 {
				t.Errorf("%+v", s)
			}
		})
	}
}
