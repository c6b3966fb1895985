package krb5

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"
)

const (
	// kdcTime is how long a KDC may take before another is asked. A KDC asks nobody.
	kdcTime = 5 * time.Second

	// maxReply bounds what a KDC answers: tickets with all the groups of a Windows
	// user have up to 64 KiB (MaxTokenSize).
	maxReply = 1 << 18
)

// kdcError is what a KDC answers instead of a ticket.
type kdcError struct {
	kdc string
	messages.KRBError
}

// kdcs returns the KDCs of a realm as HOST:PORT.
func (c *Client) kdcs(ctx context.Context, cfg *config.Config, realm string) ([]string, error) {
	for _, r := range cfg.Realms {
		if r.Realm != realm || len(r.KDC) == 0 {
			continue
		}
		var list []string
		for _, k := range r.KDC {
			k = strings.TrimPrefix(k, "tcp/")
			if i := strings.IndexByte(k, '/'); i >= 0 {
				continue // udp/ and the like
			}
			list = append(list, k)
		}
		return list, nil
	}
	if !cfg.LibDefaults.DNSLookupKDC || c.o.LookupSRV == nil {
		return nil, fmt.Errorf("%s names no KDC of the realm %s: is the realm right? else add kdc = HOST there, in [realms]", c.configFile(), realm)
	}
	_, records, err := c.o.LookupSRV(ctx, "kerberos", "tcp", realm)
	if err != nil {
		return nil, fmt.Errorf("look for a KDC of the realm %s in DNS: %w", realm, err)
	}
	var list []string
	for _, r := range records {
		list = append(list, net.JoinHostPort(strings.TrimSuffix(r.Target, "."), fmt.Sprint(r.Port)))
	}
	return list, nil
}

// ask sends a request to a KDC of a realm and returns its answer. An answer that is an
// error is a [*kdcError].
func (c *Client) ask(ctx context.Context, cfg *config.Config, realm string, request []byte) ([]byte, error) {
	kdcs, err := c.kdcs(ctx, cfg, realm)
	if err != nil {
		return nil, err
	}
	var told []error
	for _, kdc := range kdcs {
		reply, err := c.askOne(ctx, kdc, request)
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			told = append(told, fmt.Errorf("KDC %s: %w", kdc, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		var e messages.KRBError
		if e.Unmarshal(reply) == nil {
			if e.ErrorCode == errorcode.KDC_ERR_SVC_UNAVAILABLE {
				told = append(told, fmt.Errorf("KDC %s: not available now", kdc))
				continue
			}
			return nil, &kdcError{kdc, e}
		}
		return reply, nil
	}
	return nil, fmt.Errorf("no KDC of the realm %s answers: %w", realm, errors.Join(told...))
}

// askOne asks one KDC over TCP (RFC 4120 §7.2.2).
func (c *Client) askOne(ctx context.Context, kdc string, request []byte) (reply []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, kdcTime)
	defer cancel()
	conn, err := c.o.Dial(ctx, "tcp", kdc)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...))
	if err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := io.ReadFull(conn, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxReply {
		return nil, fmt.Errorf("a reply of %d bytes is too long", n)
	}
	reply = make([]byte, n)
	_, err = io.ReadFull(conn, reply)
	return reply, err
}
