package socks

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
)

// readers says of every message what was read, and writes it again. It is the
// one list that the vectors, the truncation test and the fuzz targets go by.
var readers = map[string]func(r io.Reader) (said string, again []byte, err error){
	"methods": func(r io.Reader) (string, []byte, error) {
		v, err := ReadVersion(r)
		if err == nil {
			err = checkVersion(v, Version5)
		}
		if err != nil {
			return "", nil, err
		}
		offer, err := ReadMethods(r)
		if err != nil {
			return "", nil, err
		}
		if len(offer) == 0 {
			return "", nil, nil
		}
		return strings.Trim(fmt.Sprint(offer), "[]"), AppendMethods(nil, offer...), nil
	},
	"method": func(r io.Reader) (string, []byte, error) {
		m, err := ReadMethod(r, MethodNone, MethodUserPass)
		return fmt.Sprint(m), AppendMethod(nil, m), err
	},
	"userpass": func(r io.Reader) (string, []byte, error) {
		user, password, err := ReadUserPass(r)
		if err != nil {
			return "", nil, err
		}
		again, err := AppendUserPass(nil, user, password)
		return fmt.Sprintf("%q %q", user, password), again, err
	},
	"auth": func(r io.Reader) (string, []byte, error) {
		return "ok", AppendAuthStatus(nil, true), ReadAuthStatus(r)
	},
	"request": func(r io.Reader) (string, []byte, error) {
		req, err := ReadRequest(r)
		again, bad := AppendRequest(nil, req.Command, req.Addr)
		if bad != nil {
			again = nil
		}
		return fmt.Sprintf("command %d %s", req.Command, say(req.Addr)), again, err
	},
	"reply": func(r io.Reader) (string, []byte, error) {
		a, err := ReadReply(r)
		again, bad := appendAddr([]byte{Version5, byte(ReplySucceeded), 0}, a)
		if bad != nil || a.Name != "" {
			again = nil
		}
		return say(a), again, err
	},
	"request4": func(r io.Reader) (string, []byte, error) {
		v, err := ReadVersion(r)
		if err == nil {
			err = checkVersion(v, Version4)
		}
		if err != nil {
			return "", nil, err
		}
		req, err := ReadRequest4(r)
		again, bad := AppendRequest4(nil, req.Command, req.Addr, req.User)
		if bad != nil {
			again = nil
		}
		return fmt.Sprintf("command %d %s user %q", req.Command, say(req.Addr), req.User), again, err
	},
	"reply4": func(r io.Reader) (string, []byte, error) {
		ap, err := ReadReply4(r)
		return ap.String(), AppendReply4(nil, Reply4Granted, ap), err
	},
	"udp": func(r io.Reader) (string, []byte, error) {
		p, err := io.ReadAll(r)
		if err != nil {
			return "", nil, err
		}
		h, payload, err := ParseUDP(p)
		a := Addr{Name: string(h.Name), IP: h.Addr.Addr(), Port: h.Addr.Port()}
		again, bad := AppendUDPHeader(nil, a)
		if bad != nil {
			again = nil
		} else {
			again = append(again, payload...)
		}
		return fmt.Sprintf("frag %d %s payload %q", h.Frag, say(a), payload), again, err
	},
}

// say is Addr.String with names in quotes, so that no name looks like an
// address.
func say(a Addr) string {
	if !a.IP.IsValid() {
		return fmt.Sprintf("%q:%d", a.Name, a.Port)
	}
	return a.String()
}

type vector struct {
	line      int
	reader    string
	canonical bool
	bytes     []byte
	want      string // what it says, or the error if fails
	fails     bool
}

func (v vector) name() string { return fmt.Sprintf("%s line %d", v.reader, v.line) }

// vectors reads testdata/vectors.txt, which explains itself.
func vectors(t testing.TB) []vector {
	text, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	for i, line := range strings.Split(string(text), "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, "|", 3)
		if len(f) != 3 {
			t.Fatalf("vectors.txt:%d: want three columns", i+1)
		}
		v := vector{line: i + 1}
		v.reader, v.canonical = strings.CutSuffix(strings.TrimSpace(f[0]), "~")
		v.canonical = !v.canonical
		if readers[v.reader] == nil {
			t.Fatalf("vectors.txt:%d: no reader %q", i+1, v.reader)
		}
		for _, word := range strings.Fields(f[1]) {
			digits, times, many := strings.Cut(word, "*")
			n := 1
			if many {
				n, err = strconv.Atoi(times)
			}
			b, bad := hex.DecodeString(digits)
			if err != nil || bad != nil {
				t.Fatalf("vectors.txt:%d: %q", i+1, word)
			}
			v.bytes = append(v.bytes, bytes.Repeat(b, n)...)
		}
		v.want = strings.TrimSpace(f[2])
		v.want = strings.ReplaceAll(v.want, "128*255", strings.TrimSpace(strings.Repeat("128 ", 255)))
		for _, c := range []string{"a", "b"} {
			v.want = strings.ReplaceAll(v.want, c+"*255", strings.Repeat(c, 255))
		}
		v.want, v.fails = strings.CutPrefix(v.want, "error: ")
		all = append(all, v)
	}
	return all
}

func TestVectors(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.name(), func(t *testing.T) {
			said, again, err := readers[v.reader](bytes.NewReader(v.bytes))
			if v.fails {
				if err == nil || !strings.Contains(err.Error(), v.want) {
					t.Fatalf("%x: got %q and error %v, want an error with %q", v.bytes, said, err, v.want)
				}
				return
			}
			if err != nil || said != v.want {
				t.Fatalf("%x: got %q, %v, want %q", v.bytes, said, err, v.want)
			}
			if v.canonical && !bytes.Equal(again, v.bytes) {
				t.Errorf("%s is written as\n%x, want\n%x", said, again, v.bytes)
			}
		})
	}
}

// A connection gives a message in pieces and has more behind it.
func TestByteByByteAndNotOneFurther(t *testing.T) {
	for _, v := range vectors(t) {
		if v.reader == "udp" { // a datagram is whole, and its payload goes to its end
			continue
		}
		t.Run(v.name(), func(t *testing.T) {
			const payload = "payload in the same segment"
			r := bytes.NewReader(append(bytes.Clone(v.bytes), payload...))
			said, _, err := readers[v.reader](iotest.OneByteReader(r))
			if v.fails {
				if err == nil || !strings.Contains(err.Error(), v.want) {
					t.Fatalf("error %v, want one with %q", err, v.want)
				}
				if r.Len() < len(payload) {
					t.Errorf("the reader went %d bytes into the payload", len(payload)-r.Len())
				}
				return
			}
			if err != nil || said != v.want {
				t.Fatalf("got %q, %v, want %q", said, err, v.want)
			}
			if rest, _ := io.ReadAll(r); string(rest) != payload {
				t.Errorf("left in the connection: %q, want %q", rest, payload)
			}
		})
	}
}

// Wherever the connection ends: io.EOF before the first byte, so that a caller
// can tell a server that hangs up from one that breaks off, and
// io.ErrUnexpectedEOF after it. The error of the connection comes through.
func TestTruncation(t *testing.T) {
	errReset := errors.New("connection reset")
	for _, v := range vectors(t) {
		if v.reader == "udp" || v.fails {
			continue
		}
		t.Run(v.name(), func(t *testing.T) {
			for n := range v.bytes {
				_, _, err := readers[v.reader](bytes.NewReader(v.bytes[:n]))
				want := io.ErrUnexpectedEOF
				if n == 0 {
					want = io.EOF
				}
				if err != want {
					t.Errorf("after %d of %d bytes: error %v, want %v", n, len(v.bytes), err, want)
				}
				_, _, err = readers[v.reader](io.MultiReader(bytes.NewReader(v.bytes[:n]), iotest.ErrReader(errReset)))
				if !errors.Is(err, errReset) {
					t.Errorf("reset after %d of %d bytes: error %v", n, len(v.bytes), err)
				}
			}
		})
	}
}
