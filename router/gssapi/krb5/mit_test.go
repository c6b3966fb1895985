package krb5

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"tunroute/router/gssapi"
	"tunroute/router/gssapi/krb5/kdctest"
)

// mit compiles the other end.
func mit(t *testing.T) string {
	t.Helper()
	gcc := kdctest.Need(t, "gcc", "gcc")
	bin := filepath.Join(t.TempDir(), "peer")
	out, err := exec.Command(gcc, "-Wall", "-Werror", "-o", bin, "testdata/peer.c", "-lgssapi_krb5").CombinedOutput()
	if err != nil {
		if bytes.Contains(out, []byte("gssapi")) && os.Getenv("CI") != "true" {
			t.Skip("no headers of MIT Kerberos: install the Debian package libkrb5-dev")
		}
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return bin
}

// peer is a running testdata/peer.c.
type peer struct {
	t     *testing.T
	in    io.WriteCloser
	lines *bufio.Scanner
}

func startPeer(t *testing.T, cmd *exec.Cmd) *peer {
	t.Helper()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
		limit.Stop()
	})
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	return &peer{t, in, lines}
}

// say sends a line.
func (p *peer) say(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatal(err)
	}
}

// hear returns what is behind the word that the next line begins with.
func (p *peer) hear(word string) string {
	p.t.Helper()
	if !p.lines.Scan() {
		p.t.Fatalf("the peer ended, want %s: %v", word, p.lines.Err())
	}
	got, ok := strings.CutPrefix(p.lines.Text(), word+" ")
	if !ok {
		p.t.Fatalf("the peer says %.200q, want %s", p.lines.Text(), word)
	}
	return got
}

func (p *peer) hearBytes(word string) []byte {
	p.t.Helper()
	return unhex(p.t, p.hear(word))
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	if s == "-" {
		return nil
	}
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func hexed(b []byte) string {
	if len(b) == 0 {
		return "-"
	}
	return hex.EncodeToString(b)
}

// TestWithMIT makes contexts with MIT's library, we at either end, for every encryption
// type, and has each unwrap what the other has wrapped.
func TestWithMIT(t *testing.T) {
	bin := mit(t)
	kdc := kdctest.Start(t, kdctest.Options{Config: "\tpermitted_enctypes = aes256-sha2 aes128-sha2 aes256-sha1 aes128-sha1"})
	kdc.Add(t, "alice")
	cache := kdc.Login(t, "alice")
	client := NewClient(ClientOptions{Config: kdc.Conf, CCache: cache})
	for i, enctype := range []string{"aes256-sha2", "aes128-sha2", "aes256-sha1", "aes128-sha1"} {
		host := enctype + ".test"
		kdc.Admin(t, fmt.Sprintf("addprinc -e %[1]s:normal -randkey rcmd/%[2]s\nsetstr rcmd/%[2]s session_enctypes %[1]s", enctype, host))
		kt := kdc.Keytab(t, "rcmd/"+host)

		t.Run(enctype+"/client", func(t *testing.T) {
			cmd := kdc.Command("", bin, "accept")
			cmd.Env = append(cmd.Env, "KRB5_KTNAME="+kt)
			p := startPeer(t, cmd)
			c, err := client.Initiate(t.Context(), "rcmd", host)
			if err != nil {
				t.Fatal(err)
			}
			token, done, err := c.Step(nil)
			if err != nil || done {
				t.Fatal(done, err)
			}
			p.say("T %s", hexed(token))
			if _, done, err = c.Step(p.hearBytes("T")); err != nil || !done {
				t.Fatal(done, err)
			}
			var name string
			var flags int
			if _, err := fmt.Sscan(p.hear("DONE"), &name, &flags); err != nil {
				t.Fatal(err)
			}
			if want := gssMutual | gssReplay | gssSequence | gssConf | gssInteg; name != "alice@TEST.REALM" || flags&want != want {
				t.Errorf("the server sees %q with flags %#x, want alice with %#x", name, flags, want)
			}
			if got, want := c.Peer(), "rcmd/"+host+"@TEST.REALM"; got != want {
				t.Errorf("the client sees %q, want %q", got, want)
			}
			if got := c.(*initiator).wrapper.send.etype.GetETypeID(); got != enctypes[i] {
				t.Errorf("encryption type %d, want %d", got, enctypes[i])
			}
			exchange(t, c, p)
		})
		t.Run(enctype+"/server", func(t *testing.T) {
			s, err := NewServer(ServerOptions{Keytab: kt, Service: "rcmd"})
			if err != nil {
				t.Fatal(err)
			}
			p := startPeer(t, kdc.Command(cache, bin, "init", "rcmd@"+host))
			c := s.Accept()
			token, done, err := c.Step(p.hearBytes("T"))
			if err != nil || !done {
				t.Fatal(done, err)
			}
			p.say("T %s", hexed(token))
			if got, want := p.hear("DONE"), "rcmd/"+host+"@"; !strings.HasPrefix(got, want) {
				t.Errorf("the client sees %q, want %q", got, want)
			}
			if got, want := c.Peer(), "alice@TEST.REALM"; got != want {
				t.Errorf("the server sees %q, want %q", got, want)
			}
			exchange(t, c, p)
		})
	}
}

// exchange has both ends wrap messages of many lengths, and unwrap those of the other.
func exchange(t *testing.T, c gssapi.Context, p *peer) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{0, 1, 15, 16, 17, 31, 32, 33, 1000, 32 << 10} {
		message := make([]byte, size)
		for i := range message {
			message[i] = byte(rnd.Uint32())
		}
		for conf := range 2 {
			token, err := c.Wrap(nil, message, conf == 1)
			if err != nil {
				t.Fatal(err)
			}
			if over := len(token) - size; over > gssapi.MaxOverhead {
				t.Errorf("%d bytes more than the message, want at most %d", over, gssapi.MaxOverhead)
			}
			if plain := bytes.Contains(token, message); size >= 15 && plain == (conf == 1) {
				t.Errorf("%d bytes, encrypted %d: the message is to be seen: %t", size, conf, plain)
			}
			p.say("U %s", hexed(token))
			var sealed, major int
			var data string
			if _, err := fmt.Sscan(p.hear("D"), &sealed, &major, &data); err != nil {
				t.Fatal(err)
			}
			if sealed != conf || major != 0 || !bytes.Equal(unhex(t, data), message) {
				t.Fatalf("%d bytes: unwrapped with encryption %d, want %d, status %#x, want 0, %.80s", size, sealed, conf, major, data)
			}

			for _, how := range []string{"W", "R"} { // R for the end that rotates
				if how == "R" && size == 0 {
					continue
				}
				p.say("%s %d %s", how, conf, hexed(message))
				token := p.hearBytes("M")
				if rrc := token[6:8]; how == "R" && rrc[0]|rrc[1] == 0 {
					t.Errorf("%d bytes: the peer has rotated by 0", size)
				}
				broken := bytes.Clone(token)
				broken[16+rnd.IntN(len(broken)-16)] ^= 1
				if _, err := c.Unwrap(broken); err == nil {
					t.Fatalf("%d bytes: what was changed on the way is unwrapped", size)
				}
				again := bytes.Clone(token)
				m, err := c.Unwrap(token)
				if err != nil || !bytes.Equal(m.Data, message) || m.Sealed != (conf == 1) || m.Order != gssapi.InOrder {
					t.Fatalf("%s, %d bytes: unwrapped %d bytes, encrypted %t, want %d, order %d, %v", how, size, len(m.Data), m.Sealed, conf, m.Order, err)
				}
				if m, err := c.Unwrap(again); err != nil || m.Order != gssapi.Duplicate {
					t.Fatalf("%d bytes: twice: order %d, %v", size, m.Order, err)
				}
			}
		}
	}
}
