package socks

import (
	"bytes"
	"testing"
)

// fuzz gives any bytes to a reader. What it takes, it must take from exactly the
// bytes that it consumed, and what it writes from that must be read as the same.
func fuzz(f *testing.F, name string) {
	for _, v := range vectors(f) {
		if v.reader == name {
			f.Add(v.bytes)
			f.Add(append(bytes.Clone(v.bytes), "payload"...))
		}
	}
	read := readers[name]
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		said, again, err := read(r)
		if err != nil {
			return
		}
		message := in[:len(in)-r.Len()]
		if alone, _, err := read(bytes.NewReader(message)); err != nil || alone != said {
			t.Fatalf("%x says %q, its message %x says %q, %v", in, said, message, alone, err)
		}
		if again == nil {
			return
		}
		twice, _, err := read(bytes.NewReader(again))
		if name == "udp" && message[2] != 0 { // FRAG is read and never written
			return
		}
		if err != nil || twice != said {
			t.Fatalf("%x says %q, written again as %x it says %q, %v", in, said, again, twice, err)
		}
	})
}

func FuzzReadMethods(f *testing.F)    { fuzz(f, "methods") }
func FuzzReadMethod(f *testing.F)     { fuzz(f, "method") }
func FuzzReadUserPass(f *testing.F)   { fuzz(f, "userpass") }
func FuzzReadAuthStatus(f *testing.F) { fuzz(f, "auth") }
func FuzzReadRequest(f *testing.F)    { fuzz(f, "request") }
func FuzzReadReply(f *testing.F)      { fuzz(f, "reply") }
func FuzzReadRequest4(f *testing.F)   { fuzz(f, "request4") }
func FuzzReadReply4(f *testing.F)     { fuzz(f, "reply4") }
func FuzzParseUDP(f *testing.F)       { fuzz(f, "udp") }
