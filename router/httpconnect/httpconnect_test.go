package httpconnect

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// What is sent is what package net/http reads as what was meant.
func TestAppendRequest(t *testing.T) {
	basic, err := Basic("ann", "a:b ü")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		host          string
		port          uint16
		authorization string
		want          string
	}{
		{"example.org", 443, "", "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n"},
		{"192.0.2.1", 80, "", "CONNECT 192.0.2.1:80 HTTP/1.1\r\nHost: 192.0.2.1:80\r\n\r\n"},
		{"2001:db8::1", 80, "", "CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"},
		{"_x-1.test", 1, basic, "CONNECT _x-1.test:1 HTTP/1.1\r\nHost: _x-1.test:1\r\nProxy-Authorization: Basic YW5uOmE6YiDDvA==\r\n\r\n"},
	} {
		got, err := AppendRequest([]byte("before "), tt.host, tt.port, tt.authorization)
		if err != nil || string(got) != "before "+tt.want {
			t.Errorf("%s: got %q, %v, want %q", tt.host, got, err, tt.want)
			continue
		}
		q, err := http.ReadRequest(bufio.NewReader(strings.NewReader(tt.want)))
		if err != nil {
			t.Errorf("%s: net/http: %v", tt.host, err)
			continue
		}
		// What BasicAuth reads is another header, with the same value.
		q.Header.Set("Authorization", q.Header.Get("Proxy-Authorization"))
		user, password, ok := q.BasicAuth()
		if q.URL.Hostname() != tt.host || q.Host != q.URL.Host || ok != (tt.authorization != "") || ok && (user != "ann" || password != "a:b ü") {
			t.Errorf("%s: net/http reads %q, user %q, password %q", tt.host, q.URL.Host, user, password)
		}
	}
}

// What could be taken for more than a host is not sent.
func TestAppendRequestRefuses(t *testing.T) {
	for _, host := range []string{
		"", "a b", "a\r\nb", "a\x00b", "a/b", "user@host", "a?b", "a#b", "a:80", "[::1]", "fe80::1%eth0", "%41", "ü", strings.Repeat("a", 256),
	} {
		if b, err := AppendRequest(nil, host, 80, ""); !errors.Is(err, ErrHost) || len(b) != 0 {
			t.Errorf("%q: got %q, %v, want ErrHost", host, b, err)
		}
	}
	for _, c := range [][2]string{{"a:b", ""}, {"a\r\nX: y", "p"}, {"a", "p\x00"}, {"a", "\x7f"}} {
		if v, err := Basic(c[0], c[1]); !errors.Is(err, ErrCredentials) || v != "" {
			t.Errorf("%q: got %q, %v, want ErrCredentials", c, v, err)
		}
	}
	for _, c := range [][2]string{{"", ""}, {"key", ""}, {"", "p"}} {
		if _, err := Basic(c[0], c[1]); err != nil {
			t.Errorf("%q: %v", c, err)
		}
	}
}

const crlf2 = "\r\n\r\n"

// What servers were seen to send, and what they must not. The cause of an error is
// tested for as well.
func TestReadReply(t *testing.T) {
	long := func(n int) string { return "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", n-24) + crlf2 }
	for _, tt := range []struct {
		name, in string
		code     int    // 0 for another error
		cause    string // of a StatusError
		rest     string
		err      error // nil for code 200
	}{
		{"tinyproxy", "HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy/1.11.1" + crlf2, 200, "", "", nil},
		{"squid", "HTTP/1.1 200 Connection established" + crlf2, 200, "", "", nil},
		{"no reason", "HTTP/1.1 200 " + crlf2, 200, "", "", nil},
		{"no reason and no blank", "HTTP/1.1 200" + crlf2, 200, "", "", nil},
		{"another success", "HTTP/1.1 204 No Content" + crlf2, 200, "", "", nil},
		{"payload behind it", "HTTP/1.1 200 OK" + crlf2 + "220 welcome\r\n", 200, "", "220 welcome\r\n", nil},
		{"payload like a head", "HTTP/1.1 200 OK" + crlf2 + "HTTP/1.1 500 no" + crlf2, 200, "", "HTTP/1.1 500 no" + crlf2, nil},
		{"a length that means nothing", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked" + crlf2 + "220 ", 200, "", "220 ", nil},
		{"interim replies", "HTTP/1.1 100 Continue" + crlf2 + "HTTP/1.1 102 Processing\r\nX: y" + crlf2 + "HTTP/1.1 200 OK" + crlf2 + "x", 200, "", "x", nil},
		{"the longest", long(maxHead), 200, "", "", nil},

		{"squid, refused", "HTTP/1.1 503 Service Unavailable\r\nServer: squid/5.7\r\nX-Squid-Error: ERR_CONNECT_FAIL 111\r\nContent-Length: 3048" + crlf2 + "<html>", 503, "ERR_CONNECT_FAIL 111", "", nil},
		{"tinyproxy, anything", "HTTP/1.1 500 Unable to connect\r\nServer: tinyproxy/1.11.1" + crlf2, 500, "", "", nil},
		{"Proxy-Status", "HTTP/1.1 502 Bad Gateway\r\nproxy-status: edge; error=dns_error; details=\"a;error=b\", office; error=connection_refused; next-hop=\"x\"\r\nX-Squid-Error: ERR_DNS_FAIL 0" + crlf2, 502, "connection_refused", "", nil},
		{"a cause that is not to be shown", "HTTP/1.1 503 x\r\nX-Squid-Error: \x1b[31m" + crlf2, 0, "", "", ErrProtocol},
		{"a cause in odd letters", "HTTP/1.1 503 x\r\nX-Squid-Error: <script>" + crlf2, 503, "", "", nil},
		{"a long cause", "HTTP/1.1 503 x\r\nX-Squid-Error: " + strings.Repeat("a", 65) + crlf2, 503, "", "", nil},
		{"authentication", "HTTP/1.0 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"Tinyproxy\"" + crlf2, 407, "", "", nil},
		{"refused and hung up", "HTTP/1.1 403 Forbidden\r\nServer: x", 403, "", "", nil},
		{"a redirect", "HTTP/1.1 302 Found\r\nLocation: http://login.test/" + crlf2, 302, "", "", nil},

		{"nothing", "", 0, "", "", io.EOF},
		{"half a head", "HTTP/1.1 200 OK\r\nX: y\r\n", 0, "", "", io.ErrUnexpectedEOF},
		{"half a status line", "HTTP/1.1 403 For", 0, "", "", io.ErrUnexpectedEOF},
		{"an interim reply alone", "HTTP/1.1 100 Continue" + crlf2, 0, "", "", io.ErrUnexpectedEOF},
		{"a SOCKS server", "\x05\xff", 0, "", "", ErrProtocol},
		{"a TLS server", "\x15\x03\x01\x00\x02\x02\x46", 0, "", "", ErrProtocol},
		{"HTTP/2", "HTTP/2 200 OK" + crlf2, 0, "", "", ErrProtocol},
		{"HTTP/1.2", "HTTP/1.2 200 OK" + crlf2, 0, "", "", ErrProtocol},
		{"small letters", "http/1.1 200 OK" + crlf2, 0, "", "", ErrProtocol},
		{"switched protocols", "HTTP/1.1 101 Switching Protocols" + crlf2, 0, "", "", ErrProtocol},
		{"two digits", "HTTP/1.1 20 OK" + crlf2, 0, "", "", ErrProtocol},
		{"four digits", "HTTP/1.1 2000 OK" + crlf2, 0, "", "", ErrProtocol},
		{"status 099", "HTTP/1.1 099 OK" + crlf2, 0, "", "", ErrProtocol},
		{"a line that ends in LF", "HTTP/1.1 200 OK\n\n", 0, "", "", ErrProtocol},
		{"a header that ends in LF", "HTTP/1.1 200 OK\r\nX: y\nZ: z" + crlf2, 0, "", "", ErrProtocol},
		{"a CR in a header", "HTTP/1.1 200 OK\r\nX: y\rz" + crlf2, 0, "", "", ErrProtocol},
		{"a NUL in a header", "HTTP/1.1 200 OK\r\nX: \x00" + crlf2, 0, "", "", ErrProtocol},
		{"no colon", "HTTP/1.1 200 OK\r\nXy" + crlf2, 0, "", "", ErrProtocol},
		{"no name", "HTTP/1.1 200 OK\r\n: y" + crlf2, 0, "", "", ErrProtocol},
		{"a blank before the colon", "HTTP/1.1 200 OK\r\nX : y" + crlf2, 0, "", "", ErrProtocol},
		{"a header over two lines", "HTTP/1.1 200 OK\r\nX: y\r\n z" + crlf2, 0, "", "", ErrProtocol},
		{"longer than the longest", long(maxHead + 1), 0, "", "", ErrProtocol},
		{"interim replies for ever", strings.Repeat("HTTP/1.1 100 Continue"+crlf2, maxHead), 0, "", "", ErrProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for way, r := range map[string]io.Reader{
				"whole":        strings.NewReader(tt.in),
				"byte by byte": iotest.OneByteReader(strings.NewReader(tt.in)),
				"error beside": iotest.DataErrReader(strings.NewReader(tt.in)),
			} {
				rest, err := ReadReply(r)
				unread, _ := io.ReadAll(r)
				var status *StatusError
				switch {
				case tt.code == 200:
					if err != nil || string(rest)+string(unread) != tt.rest {
						t.Errorf("%s: got %q and %q, %v, want %q", way, rest, unread, err, tt.rest)
					}
				case tt.code != 0:
					if !errors.As(err, &status) || *status != (StatusError{tt.code, tt.cause}) {
						t.Errorf("%s: got %v, want status %d, %q", way, err, tt.code, tt.cause)
					}
				case !errors.Is(err, tt.err):
					t.Errorf("%s: got %v, want %v", way, err, tt.err)
				}
			}
		})
	}
}

// What a server of another protocol has said is an error before it says more.
func TestReadReplyDoesNotWaitForAnotherProtocol(t *testing.T) {
	more := errors.New("read on")
	for _, in := range []string{"\x05", "220 welcome", "HTTP/2", "SSH-2.0-"} {
		if _, err := ReadReply(io.MultiReader(strings.NewReader(in), iotest.ErrReader(more))); !errors.Is(err, ErrProtocol) {
			t.Errorf("%q: got %v, want ErrProtocol", in, err)
		}
	}
}

// However the bytes come, they say the same; what is a success is one for net/http
// too, and nothing behind the head is lost.
func FuzzReadReply(f *testing.F) {
	for _, in := range []string{
		"HTTP/1.1 200 OK" + crlf2 + "payload", "HTTP/1.0 200\r\nA: b" + crlf2, "HTTP/1.1 100 C" + crlf2 + "HTTP/1.1 200 OK" + crlf2,
		"HTTP/1.1 503 x\r\nX-Squid-Error: ERR_CONNECT_FAIL 111" + crlf2, "HTTP/1.1 502 x\r\nProxy-Status: a; error=b" + crlf2, "\x05\x00",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := bytes.NewReader(in)
		rest, err := ReadReply(whole)
		rest = append(rest, in[len(in)-whole.Len():]...)
		single := bytes.NewReader(in)
		rest1, err1 := ReadReply(iotest.OneByteReader(single))
		rest1 = append(rest1, in[len(in)-single.Len():]...)
		var s, s1 *StatusError
		if errors.As(err, &s) != errors.As(err1, &s1) || (err == nil) != (err1 == nil) || s != nil && *s != *s1 {
			t.Fatalf("%q: whole %v, byte by byte %v", in, err, err1)
		}
		if s != nil && s.Cause != plain(s.Cause) {
			t.Fatalf("%q: cause %q", in, s.Cause)
		}
		if err != nil {
			return
		}
		if !bytes.Equal(rest, rest1) || !bytes.HasSuffix(in, append([]byte(crlf2), rest...)) {
			t.Fatalf("%q: whole %q, byte by byte %q are behind the head", in, rest, rest1)
		}
		head := in[:len(in)-len(rest)]
		r := bufio.NewReader(bytes.NewReader(head))
		for {
			resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
			if err != nil {
				if strings.Contains(err.Error(), "Content-Length") || strings.Contains(err.Error(), "transfer encoding") {
					return // which it would read in front of a tunnel too
				}
				t.Fatalf("%q: net/http: %v", head, err)
			}
			resp.Body.Close()
			if resp.StatusCode >= 200 {
				if resp.StatusCode >= 300 || r.Buffered() > 0 {
					t.Fatalf("%q: net/http has status %d, and %d bytes behind it", head, resp.StatusCode, r.Buffered())
				}
				return
			}
		}
	})
}
