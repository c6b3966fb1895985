package demo

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long anything may take that takes milliseconds.
const patience = 30 * time.Second

// task is what the program on the client is told to do, one of these.
type task struct {
	Get     string          // an URL
	Connect *netip.AddrPort // by TCP, and no more
	Socks   *socksTask
}

// socksTask asks a SOCKS server for a page, past the tunroute of the client: the
// company's own network is reached directly.
type socksTask struct {
	Server         netip.AddrPort
	User, Password string // none if User is empty
	Target         string // host and port
}

// outcome is what has become of a task.
type outcome struct {
	Page string // without the newline at its end
	Err  string // why not; "" if it went well
	// What a SOCKS server has said, in the order of the protocol; -1 where it was
	// not asked any more.
	Method, Status, Reply int
}

func nothing() outcome { return outcome{Method: -1, Status: -1, Reply: -1} }

// Client is the program on the client: it reads tasks on standard input and writes what
// became of them on standard output, as lines of JSON, until there are no more.
func Client() (status int) {
	in, out := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		var t task
		if err := in.Decode(&t); err != nil {
			return 0
		}
		if err := out.Encode(t.do()); err != nil {
			return 1
		}
	}
}

func (t task) do() outcome {
	o := nothing()
	var err error
	switch {
	case t.Get != "":
		o.Page, err = get(t.Get, dial)
	case t.Connect != nil:
		var c net.Conn
		if c, err = dial(context.Background(), "tcp", t.Connect.String()); err == nil {
			c.Close()
		}
	case t.Socks != nil:
		o.Page, err = get("http://"+t.Socks.Target+"/", func(context.Context, string, string) (net.Conn, error) {
			return o.socks(*t.Socks)
		})
	}
	if err != nil {
		o.Err = why(err)
	}
	return o
}

// dial connects by IPv4, of which the company is made: what would be tried of the
// other version meanwhile would be a flow of its own.
func dial(ctx context.Context, _, address string) (net.Conn, error) {
	return (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp4", address)
}

// get returns a page, over a connection of its own.
func get(url string, dial func(ctx context.Context, network, address string) (net.Conn, error)) (string, error) {
	c := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	return strings.TrimSuffix(string(page), "\n"), err
}

// why is the name of an errno, or the text of another error.
func why(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return unix.ErrnoName(errno)
	}
	return err.Error()
}

// socks is a client of SOCKS 5 (RFC 1928, RFC 1929) that asks for a name or an address
// as it stands, and writes down what the server says. It is ours so that what is shown
// is what was on the wire.
func (o *outcome) socks(t socksTask) (net.Conn, error) {
	c, err := dial(context.Background(), "tcp", t.Server.String())
	if err != nil {
		return nil, err
	}
	if err := o.negotiate(c, t); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (o *outcome) negotiate(c net.Conn, t socksTask) error {
	c.SetDeadline(time.Now().Add(patience))
	say := func(message, answer []byte) error {
		if _, err := c.Write(message); err != nil {
			return err
		}
		_, err := io.ReadFull(c, answer)
		return err
	}
	const none, userPassword = 0, 2
	method := byte(none)
	if t.User != "" {
		method = userPassword
	}
	two := make([]byte, 2)
	if err := say([]byte{5, 1, method}, two); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if o.Method = int(two[1]); two[1] != method {
		return fmt.Errorf("the server wants method %#02x", two[1])
	}
	if method == userPassword {
		m := append([]byte{1, byte(len(t.User))}, t.User...)
		m = append(append(m, byte(len(t.Password))), t.Password...)
		if err := say(m, two); err != nil {
			return fmt.Errorf("authenticate: %w", err)
		}
		if o.Status = int(two[1]); two[1] != 0 {
			return fmt.Errorf("authentication refused, status %d", two[1])
		}
	}
	host, port, err := net.SplitHostPort(t.Target)
	if err != nil {
		return err
	}
	n, err := net.LookupPort("tcp", port)
	if err != nil {
		return err
	}
	m := []byte{5, 1, 0} // CONNECT
	if a, err := netip.ParseAddr(host); err == nil {
		m = append(append(m, 1), a.AsSlice()...)
	} else {
		m = append(append(m, 3, byte(len(host))), host...)
	}
	head := make([]byte, 4)
	if err := say(binary.BigEndian.AppendUint16(m, uint16(n)), head); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	o.Reply = int(head[1])
	rest := 0
	switch head[3] {
	case 1:
		rest = 4 + 2
	case 3:
		one := make([]byte, 1)
		if _, err := io.ReadFull(c, one); err != nil {
			return err
		}
		rest = int(one[0]) + 2
	case 4:
		rest = 16 + 2
	}
	if _, err := io.ReadFull(c, make([]byte, rest)); err != nil && head[1] == 0 {
		return err
	}
	if head[1] != 0 {
		return fmt.Errorf("reply %02d", head[1])
	}
	return nil
}
