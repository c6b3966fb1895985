package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"tunroute/router/outbound"
)

// pipe is a connection in memory.
type pipe struct{ net.Conn }

func (p pipe) CloseWrite() error { return p.Close() }

// liar is a server whose connections do what the bytes of a program say. It begins anew
// for each connection, behind the turns that those before have had.
func liar(program []byte, turn int, c net.Conn) {
	defer c.Close()
	last := make([]byte, 1024)
	n := 0
	for i := turn; i < len(program); {
		op := program[i]
		i++
		switch op % 8 {
		case 0, 1, 2:
			k, err := c.Read(last)
			if err != nil {
				return
			}
			n = k
		case 3: // that many bytes of the program
			k := min(int(op/8), len(program)-i)
			c.Write(program[i : i+k])
			i += k
		case 4: // what was sent to it
			c.Write(last[:n])
		case 5: // the choice of a method, or a reply
			c.Write([]byte{5, op / 8 % 3})
		case 6:
			c.Write([]byte{5, 0, 0, 3, 30})
		case 7:
			if op > 128 {
				return
			}
			c.SetReadDeadline(time.Now().Add(time.Hour))
			c.Read(last) // it hangs
		}
	}
}

// FuzzServer: whatever a server says, a run ends, each row has a verdict, and neither what
// the server says nor our password is printed as it is.
func FuzzServer(f *testing.F) {
	f.Add([]byte{0, 5, 0, 5}, true)
	f.Add([]byte{0, 3 + 2*8, 5, 2, 0, 3 + 2*8, 1, 0, 0, 6, 4, 4}, true)
	f.Add([]byte{0, 5, 0, 3 + 4*8, 5, 8, 0, 1, 255}, false)
	f.Add([]byte{4, 0, 4, 0, 4, 7}, true)
	f.Add([]byte("\x00\x3bHTTP/1."), false)
	f.Fuzz(func(t *testing.T, program []byte, login bool) {
		synctest.Test(t, func(t *testing.T) {
			const password = "opensesame"
			nothing := errors.New("no sockets here")
			p := &prober{Options: Options{Limit: DefaultLimit}, pause: pause,
				openTCP: func(netip.Addr) (net.Listener, error) { return nil, nothing },
				openUDP: func(netip.Addr) (net.PacketConn, error) { return nil, nothing }}
			if login {
				p.User, p.Password = "ann", password
			}
			var servers sync.WaitGroup
			var mu sync.Mutex // guards turns
			turns := 0
			p.Dial = func(context.Context) (outbound.Conn, error) {
				mu.Lock()
				turn := turns % (len(program)/4 + 1)
				turns++
				mu.Unlock()
				ours, theirs := net.Pipe()
				servers.Go(func() { liar(program, turn, theirs) })
				return pipe{ours}, nil
			}
			begun := time.Now()
			r, err := p.run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			servers.Wait()
			if took := time.Since(begun); took > 2*time.Hour {
				t.Errorf("it took %v", took)
			}
			for _, row := range r.Rows {
				text := fmt.Sprint(row)
				if !slices.Contains([]Verdict{OK, No, Odd, Bad, Unknown}, row.Verdict) {
					t.Errorf("no verdict: %s", text)
				}
				if strings.Contains(text, password) || strings.Contains(text, fmt.Sprintf("% x", password[:4])) || len(text) > 600 {
					t.Errorf("printed: %q", text)
				}
				for _, c := range row.Detail + row.Note + row.Answer {
					if c < ' ' {
						t.Errorf("a control character: %q", text)
					}
				}
			}
		})
	})
}
