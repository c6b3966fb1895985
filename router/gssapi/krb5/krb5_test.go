package krb5

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"tunroute/router/gssapi"
)

// realm is a realm without a KDC: a keytab, and tickets made from it.
type realm struct {
	keys *keytab.Keytab
	file string
}

func newRealm(t testing.TB, services ...string) *realm {
	t.Helper()
	r := &realm{keys: keytab.New(), file: filepath.Join(t.TempDir(), "keytab")}
	for _, s := range services {
		r.add(t, s, "password of "+s, 1)
	}
	r.write(t)
	return r
}

func (r *realm) add(t testing.TB, service, password string, kvno uint8) {
	t.Helper()
	if err := r.keys.AddEntry(service, "TEST.REALM", password, time.Now(), kvno, etypeID.AES256_CTS_HMAC_SHA1_96); err != nil {
		t.Fatal(err)
	}
}

func (r *realm) write(t testing.TB) {
	t.Helper()
	b, err := r.keys.Marshal()
	if err == nil {
		err = os.WriteFile(r.file, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// ticket makes a ticket of alice that is good from now until end.
func (r *realm) ticket(t testing.TB, service string, end time.Duration) *ticket {
	t.Helper()
	now := time.Now().UTC()
	name := types.NewPrincipalName(nametype.KRB_NT_SRV_HST, service)
	alice := types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, "alice")
	made, key, err := messages.NewTicket(alice, "TEST.REALM", name, "TEST.REALM", types.NewKrbFlags(), r.keys,
		etypeID.AES256_CTS_HMAC_SHA1_96, 1, now.Add(-time.Hour), now.Add(-time.Hour), now.Add(end), now.Add(end))
	if err != nil {
		t.Fatal(err)
	}
	return &ticket{Ticket: made, key: key, end: now.Add(end), client: alice, realm: "TEST.REALM"}
}

func (r *realm) server(t testing.TB, service string) *Server {
	t.Helper()
	s, err := NewServer(ServerOptions{Keytab: r.file, Service: service})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// contexts returns both ends of a context.
func contexts(t testing.TB) (client, server gssapi.Context) {
	t.Helper()
	r := newRealm(t, "rcmd/host")
	c, err := newInitiator(r.ticket(t, "rcmd/host", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	s := r.server(t, "rcmd").Accept()
	request, _, err := c.Step(nil)
	if err != nil {
		t.Fatal(err)
	}
	reply, done, err := s.Step(request)
	if err != nil || !done {
		t.Fatal(done, err)
	}
	if _, done, err := c.Step(reply); err != nil || !done {
		t.Fatal(done, err)
	}
	return c, s
}

func TestOurselves(t *testing.T) {
	client, server := contexts(t)
	for _, seal := range []bool{false, true} {
		for _, way := range [][2]gssapi.Context{{client, server}, {server, client}} {
			token, err := way[0].Wrap(nil, []byte("hello"), seal)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := way[0].Unwrap(bytes.Clone(token)); err == nil {
				t.Error("an end takes back its own token")
			}
			if m, err := way[1].Unwrap(token); err != nil || string(m.Data) != "hello" || m.Sealed != seal || m.Order != gssapi.InOrder {
				t.Errorf("%+v, %v", m, err)
			}
		}
	}
	for _, c := range []gssapi.Context{client, server} {
		if _, _, err := c.Step([]byte("x")); err == nil {
			t.Error("a complete context takes another token")
		}
	}
}

// TestRefusals are those of a server, in its own words and in those that its client
// finds for what it is told.
func TestRefusals(t *testing.T) {
	r := newRealm(t, "rcmd/host", "HTTP/host")
	for _, c := range []struct {
		name           string
		change         func(i *initiator, s *realm)
		server, client string
	}{
		{"another service", func(i *initiator, s *realm) { i.ticket = r.ticket(t, "HTTP/host", time.Hour) },
			"the client has a ticket for HTTP/host@TEST.REALM, and we are rcmd",
			"the server has no key for a ticket of HTTP/host@TEST.REALM (KRB_AP_ERR_NOT_US The ticket isn't for us): its keytab needs a new one (ktadd); where that was done, run kinit again"},
		{"no key of that host", func(i *initiator, s *realm) { s.keys = newRealm(t, "rcmd/other").keys },
			"the client has a ticket for rcmd/host@TEST.REALM, and KEYTAB has no key of it: add it by ktadd, or name the server to clients as the keytab does",
			"the server has no key for a ticket of rcmd/host@TEST.REALM (KRB_AP_ERR_NOKEY Service key not available): its keytab needs a new one (ktadd); where that was done, run kinit again"},
		{"another version of the key", func(i *initiator, s *realm) { s.keys = keytab.New(); s.add(t, "rcmd/host", "new", 2) },
			"the client's ticket for rcmd/host@TEST.REALM is for key version 1, and KEYTAB has 2: get the new key by ktadd; where it is the newer, the client has to run kinit again",
			"the server has no key for a ticket of rcmd/host@TEST.REALM (KRB_AP_ERR_BADKEYVER Specified version of key is not available): its keytab needs a new one (ktadd); where that was done, run kinit again"},
		{"another key", func(i *initiator, s *realm) { s.keys = keytab.New(); s.add(t, "rcmd/host", "new", 1) },
			"the key of rcmd/host@TEST.REALM in KEYTAB does not open the client's ticket: get it anew by ktadd",
			"the server has no key for a ticket of rcmd/host@TEST.REALM (KRB_AP_ERR_MODIFIED Message stream modified): its keytab needs a new one (ktadd); where that was done, run kinit again"},
		{"expired", func(i *initiator, s *realm) { i.ticket = r.ticket(t, "rcmd/host", -10*time.Minute) },
			"the ticket of alice@TEST.REALM is not valid now: it ends at TIME",
			"the server says that our ticket has expired: run kinit, and see that both clocks are right"},
		{"somebody else's", func(i *initiator, s *realm) {
			i.ticket.client = types.NewPrincipalName(nametype.KRB_NT_PRINCIPAL, "bob")
		},
			"the ticket of alice@TEST.REALM is used by bob@TEST.REALM",
			"the server: KRB_AP_ERR_BADMATCH Ticket and authenticator don't match"},
	} {
		t.Run(c.name, func(t *testing.T) {
			i, err := newInitiator(r.ticket(t, "rcmd/host", time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			theirs := newRealm(t, "rcmd/host")
			server := theirs.server(t, "rcmd")
			theirs.keys = r.keys
			c.change(i, theirs)
			theirs.write(t)
			server.source = stamp{} // two versions within the clock of the file system
			request, _, err := i.Step(nil)
			if err != nil {
				t.Fatal(err)
			}
			reply, done, err := server.Accept().Step(request)
			if done || err == nil {
				t.Fatal("accepted")
			}
			said := strings.ReplaceAll(err.Error(), theirs.file, "KEYTAB")
			if at := strings.Index(said, "ends at "); at >= 0 {
				said = said[:at] + "ends at TIME"
			}
			if said != c.server {
				t.Errorf("the server says\n%s\nwant\n%s", said, c.server)
			}
			if _, done, err := i.Step(reply); done || err == nil || err.Error() != c.client {
				t.Errorf("the client says\n%v\nwant\n%s", err, c.client)
			}
		})
	}
}

func TestReplayIsRefused(t *testing.T) {
	r := newRealm(t, "rcmd/host")
	s := r.server(t, "rcmd")
	i, err := newInitiator(r.ticket(t, "rcmd/host", time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	request, _, err := i.Step(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, done, err := s.Accept().Step(request); err != nil || !done {
		t.Fatal(done, err)
	}
	if _, done, err := s.Accept().Step(request); err == nil || done {
		t.Error("a request is taken twice")
	}
}

func TestReplaysAreBounded(t *testing.T) {
	var r replays
	id := func(i int) []byte { return fmt.Append(nil, i) }
	for i := range maxReplays + 10 {
		if r.seen(id(i)) {
			t.Fatalf("%d has not been seen", i)
		}
	}
	if len(r.set) != maxReplays || len(r.ring) != maxReplays {
		t.Errorf("%d and %d are kept, want %d", len(r.set), len(r.ring), maxReplays)
	}
	for i := maxReplays; i < maxReplays+10; i++ {
		if !r.seen(id(i)) {
			t.Errorf("%d is forgotten before older ones", i)
		}
	}
}

// TestAnotherServerCannotAnswer: who does not have the key of the service is not it.
func TestAnotherServerCannotAnswer(t *testing.T) {
	r := newRealm(t, "rcmd/host")
	make := func() (*initiator, []byte) {
		i, err := newInitiator(r.ticket(t, "rcmd/host", time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		request, _, err := i.Step(nil)
		if err != nil {
			t.Fatal(err)
		}
		reply, _, err := r.server(t, "").Accept().Step(request)
		if err != nil {
			t.Fatal(err)
		}
		return i, reply
	}
	_, other := make()
	i, reply := make()
	for name, bad := range map[string][]byte{"empty": nil, "to another": other, "cut": reply[:len(reply)-1], "ours": makeToken(apReq, []byte("x"))} {
		if _, done, err := i.Step(bad); err == nil {
			t.Errorf("%s: taken, done %t", name, done)
		}
	}
	if _, done, err := i.Step(reply); err != nil || !done {
		t.Errorf("the right one: %v, %v", done, err)
	}
}

func TestPrincipal(t *testing.T) {
	for _, c := range []struct {
		name []string
		want string
	}{
		{[]string{"alice"}, "alice@R"},
		{[]string{"rcmd", "host"}, "rcmd/host@R"},
		{[]string{"alice@R", "x/y"}, `alice\@R/x\/y@R`},
		{[]string{"a\nb"}, `a\nb@R`},
	} {
		if got := principal(types.PrincipalName{NameString: c.name}, "R"); got != c.want {
			t.Errorf("%q: %s, want %s", c.name, got, c.want)
		}
	}
}

// TestWindow compares with a list of all that has come.
func TestWindow(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, first := range []uint64{0, 1 << 30, ^uint64(0) - 50} {
		w := window{next: first, seen: ^uint64(0)}
		come := map[uint64]bool{}
		next := first
		for range 20000 {
			seq := next + uint64(rnd.IntN(150)) - 100
			if rnd.IntN(3) > 0 {
				seq = next
			}
			if seq-first > 1<<63 {
				continue // before the first: a duplicate
			}
			want := gssapi.Late
			switch behind := next - 1 - seq; {
			case seq == next:
				want = gssapi.InOrder
			case seq-next < 1<<63:
				want = gssapi.Gap
			case behind >= 64 || come[seq]:
				want = gssapi.Duplicate
			}
			if got := w.order(seq); got != want {
				t.Fatalf("%d, %d after the first, next %d: %d, want %d", seq, seq-first, next, got, want)
			}
			come[seq] = true
			if seq-next < 1<<63 {
				next = seq + 1
			}
		}
		if got := (&window{next: first, seen: ^uint64(0)}).order(first - 1); got != gssapi.Duplicate {
			t.Errorf("before the first: %d, want %d", got, gssapi.Duplicate)
		}
	}
}

func TestRotateLeft(t *testing.T) {
	for n := range 7 {
		b := []byte("abcdefg")
		rotateLeft(b, n)
		if want := "abcdefgabcdefg"[n:][:7]; string(b) != want {
			t.Errorf("by %d: %s, want %s", n, b, want)
		}
	}
}

func FuzzAccept(f *testing.F) {
	r := newRealm(f, "rcmd/host")
	i, err := newInitiator(r.ticket(f, "rcmd/host", time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	request, _, err := i.Step(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add(makeToken(apRep, nil))
	f.Add([]byte("\x60\x00"))
	s := r.server(f, "rcmd")
	f.Fuzz(func(t *testing.T, in []byte) {
		c := s.Accept()
		_, done, err := c.Step(in)
		if done != (err == nil) {
			t.Errorf("%x: done %t, %v", in, done, err)
		}
		if done && c.Peer() != "alice@TEST.REALM" {
			t.Errorf("%x: %s", in, c.Peer())
		}
	})
}

func FuzzFinish(f *testing.F) {
	r := newRealm(f, "rcmd/host")
	i, err := newInitiator(r.ticket(f, "rcmd/host", time.Hour))
	if err != nil {
		f.Fatal(err)
	}
	request, _, err := i.Step(nil)
	if err != nil {
		f.Fatal(err)
	}
	reply, _, err := r.server(f, "").Accept().Step(request)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(reply)
	e := messages.NewKRBError(i.ticket.SName, "TEST.REALM", errorcode.KRB_AP_ERR_SKEW, "")
	b, err := e.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(makeToken(krbError, b))
	f.Fuzz(func(t *testing.T, in []byte) {
		again := *i
		_, done, err := again.Step(in)
		if err == nil && (!done || again.wrapper == nil) {
			t.Errorf("%x: done %t without a context", in, done)
		}
	})
}

func FuzzUnwrap(f *testing.F) {
	client, server := contexts(f)
	sent := map[string]bool{}
	for _, text := range []string{"", "hello", strings.Repeat("long ", 100)} {
		for _, seal := range []bool{false, true} {
			token, err := client.Wrap(nil, []byte(text), seal)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(token)
			sent[text] = true
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, err := server.Unwrap(bytes.Clone(in)); err == nil && !sent[string(m.Data)] {
			t.Errorf("%x: %q, which nobody has wrapped", in, m.Data)
		}
	})
}

// FuzzFiles: what does not belong there is an error, and shows none of it.
func FuzzFiles(f *testing.F) {
	r := newRealm(f, "rcmd/host")
	b, err := os.ReadFile(r.file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("\x05\x04\x00\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01R\x00\x00\x00\x01a"))
	f.Add([]byte{})
	file := filepath.Join(f.TempDir(), "file")
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := os.WriteFile(file, in, 0o600); err != nil {
			t.Fatal(err)
		}
		name := types.NewPrincipalName(nametype.KRB_NT_SRV_HST, "rcmd/host")
		if s, tgt, err := readCCache(file, name, ""); err == nil && s == nil && tgt == nil {
			t.Error("no ticket and no error")
		}
		if _, err := loadKeytab(file); err != nil && len(in) > 8 && strings.Contains(err.Error(), string(in)) {
			t.Errorf("the error shows the file: %v", err)
		}
	})
}

func BenchmarkWrap(b *testing.B) {
	client, server := contexts(b)
	for _, size := range []int{64, 32 << 10} {
		for _, seal := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d/seal=%t", size, seal), func(b *testing.B) {
				message := make([]byte, size)
				var token []byte
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					var err error
					if token, err = client.Wrap(token[:0], message, seal); err != nil {
						b.Fatal(err)
					}
					if _, err := server.Unwrap(token); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkContext(b *testing.B) {
	r := newRealm(b, "rcmd/host")
	t := r.ticket(b, "rcmd/host", time.Hour)
	s := r.server(b, "rcmd")
	b.ReportAllocs()
	for b.Loop() {
		i, err := newInitiator(t)
		if err != nil {
			b.Fatal(err)
		}
		request, _, err := i.Step(nil)
		if err != nil {
			b.Fatal(err)
		}
		reply, _, err := s.Accept().Step(request)
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := i.Step(reply); err != nil {
			b.Fatal(err)
		}
	}
}
