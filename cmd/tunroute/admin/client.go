package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
)

// Client asks a daemon. Its methods block until the answer is there or ctx ends.
type Client struct {
	path   string
	config string
	http   http.Client
}

// Dial returns a Client of the daemon at a socket, which must be the one that runs with
// the config at an absolute path; "" is any. It opens nothing yet.
func Dial(path, config string) *Client {
	return &Client{path: path, config: config, http: http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
	}}}
}

// maxAnswer bounds what is taken for an answer: some 200 bytes for each of a
// million leases.
const maxAnswer = 256 << 20

// do sends a request and decodes the answer into result, which may be nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, result any) error {
	if query == nil {
		query = make(url.Values)
	}
	if c.config != "" {
		query.Set("config", c.config)
	}
	u := url.URL{Scheme: "http", Host: "tunroute", Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unreached(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("the daemon at %s: %w", c.path, err)
	}
	if resp.StatusCode >= 400 {
		var f failure
		if json.Unmarshal(body, &f) != nil || f.Error == "" {
			return fmt.Errorf("the daemon at %s: %s %s", c.path, resp.Status, bytes.TrimSpace(body))
		}
		return errors.New(f.Error)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(body, result); err != nil {
		return fmt.Errorf("the daemon at %s is of another version: %w", c.path, err)
	}
	return nil
}

// unreached says what to do about a daemon that does not answer.
func (c *Client) unreached(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon answers at %s: is `tunroute run` running, with this config?", c.path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s is for the user that the daemon runs as, and for root", c.path)
	}
	return fmt.Errorf("the daemon at %s: %w", c.path, err)
}

// Status asks for [Daemon.Status].
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/status", nil, &s)
	return s, err
}

// Flows asks for [Daemon.Flows].
func (c *Client) Flows(ctx context.Context) (f []Flow, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/flows", nil, &f)
	return f, err
}

// Ask asks for [Daemon.Ask].
func (c *Client) Ask(ctx context.Context, name, qtype string) (a Answer, err error) {
	err = c.do(ctx, http.MethodGet, "/v1/dns", url.Values{"name": {name}, "type": {qtype}}, &a)
	return a, err
}

// Leases asks for [Daemon.Leases], or for [Daemon.FindLease] where of is not "".
func (c *Client) Leases(ctx context.Context, of string) (l []Lease, err error) {
	query := make(url.Values)
	if of != "" {
		query.Set("of", of)
	}
	err = c.do(ctx, http.MethodGet, "/v1/leases", query, &l)
	return l, err
}

// DropLease asks for [Daemon.DropLease].
func (c *Client) DropLease(ctx context.Context, of string) (l Lease, err error) {
	err = c.do(ctx, http.MethodDelete, "/v1/leases", url.Values{"of": {of}}, &l)
	return l, err
}

// Reload has the config read again.
func (c *Client) Reload(ctx context.Context) error {
	return c.do(ctx, http.MethodPost, "/v1/reload", nil, nil)
}
