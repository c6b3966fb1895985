package engine

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"

	"tunroute/cmd/tunroute/config"
)

// serverTLS returns the config of a TLS server whose certificate is read again when its
// files have changed, within a second.
func serverTLS(files config.ListenTLS, log *slog.Logger) (*tls.Config, error) {
	c := &certificate{files: files, log: log}
	if err := c.load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.get}, nil
}

// clientTLS returns the config of a TLS client of a server; nil where that is spoken to
// without TLS.
func clientTLS(u *config.Upstream) *tls.Config {
	if u.Transport != config.TLS {
		return nil
	}
	return &tls.Config{ServerName: u.ServerName, RootCAs: u.Roots}
}

// certificate is that of a listener.
type certificate struct {
	files config.ListenTLS
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	now    *tls.Certificate
	seen   [2]time.Time // when the files had changed
	looked time.Time
}

func (c *certificate) load() error {
	c.seen, c.looked = c.changed(), time.Now()
	pair, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return err
	}
	c.now = &pair
	return nil
}

func (c *certificate) changed() (times [2]time.Time) {
	for i, path := range []string{c.files.Cert, c.files.Key} {
		if info, err := os.Stat(path); err == nil {
			times[i] = info.ModTime()
		}
	}
	return times
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) >= time.Second {
		c.looked = time.Now()
		if c.changed() != c.seen {
			if err := c.load(); err != nil {
				c.log.Error("the certificate stays as it was", "err", err)
			}
		}
	}
	return c.now, nil
}
