package interop

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// probeMatrix is what four servers answer, as they were measured to before there was a
// probe, by other means; where what is seen here is another thing than was noted then,
// the line says why. A number behind a "*" is the length of the reply.
//
// The server has no route of IPv6 to us.
const probeMatrix = `
	                danted       microsocks   ssh -D      ss-local
	method-none     method 0     method 0     method 0    method 0
	method-unknown  no method    no method    closed      no method
	socks4          granted      no SOCKS     granted     closed
	socks4a         reply 91     no SOCKS     granted     closed
	ipv4            success      success      success     success
	ipv6            reply 8      reply 3      closed      success
	bound           address      none         none        none
	name            success      success      success     success
	name-literal    success      success      success     success
	name-dot        success      success      success     success
	name-empty      reply 4 *7   reply 1      closed      success
	name-255        reply 4 *262 reply 1      closed      success
	name-unknown    reply 4      reply 1      closed      success
	refused         reply 5      reply 5      closed      success
	host-down       reply 4      reply 4      closed      success
	no-route        reply 3      reply 3      closed      success
	port-0          reply 8      reply 5      closed      success
	bad-type        closed       reply 8      closed      reply 8 *4
	bad-command     closed       reply 7      closed      reply 7 *4
	rsv             success      reply 1      closed      success
	bind            success      reply 7      closed      reply 7
	udp             success      reply 7      closed      success
	udp-address     own port     -            -           shared port
	udp-echo        answered     -            -           answered
	udp-source      ignored      -            -           relayed
	udp-fragment    dropped      -            -           dropped
	udp-close       ended        -            -           relayed
	split           success      !success     success     success
	pipeline        success      silence      success     success
	half-close      answered     lost         answered    lost
	http            closed       no method    closed      closed

	# "connects" was noted of three, and of ss-local its success, which it says of
	# everything. Who listens at the other end sees that ss-server connects too.
	name-nul        connected    connected    connected   connected
	# "hangs" was noted of microsocks: it answers the request, and it is the data
	# in the same segment that is lost, for which the program then waits.
	early-data      success      lost         success     success
`

// probeColumns are the widths of the matrix, from its first line on.
func probeColumns(t *testing.T, server string) (names []string, want map[string]string) {
	t.Helper()
	want = make(map[string]string)
	var at, end int
	for line := range strings.Lines(probeMatrix) {
		line = strings.TrimRight(strings.TrimPrefix(line, "\t"), "\n")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case at == 0:
			if at = strings.Index(line, server); at <= 0 {
				t.Fatalf("the matrix has no %s", server)
			}
			end = len(line) + 100
			if i := strings.Index(line[at:], "  "); i > 0 {
				end = at + i + len(line[at+i:]) - len(strings.TrimLeft(line[at+i:], " "))
			}
		default:
			id, _, _ := strings.Cut(line, " ")
			names = append(names, id)
			want[id] = strings.TrimSpace(line[at:min(end, len(line))])
		}
	}
	return names, want
}

// TestProbe: the probe sees of real servers what is known of them, and advises the config
// that suits them, which check takes.
func TestProbe(t *testing.T) {
	l := newLab(t)
	// The server has no way to us of IPv6 then, as it was where the matrix was made.
	l.Srv.IP(t, "addr del fd77::1/64 dev srv0")
	for _, tt := range []struct {
		server string
		kind   servers.Kind
		o      servers.Options
		advice string
		config []string // lines of it
	}{
		{"danted", servers.Dante, servers.Options{External: []netip.Addr{lab.Proxy4}, Config: "udp.connectdst: no"},
			`{"version":5,"names":true,"pipeline":true,"early_reply":false,"udp":true}`, []string{"url: socks5h://", "pipeline: true"}},
		{"microsocks", servers.Microsocks, servers.Options{},
			`{"version":5,"names":true,"pipeline":false,"early_reply":false,"udp":false}`, []string{"url: socks5h://", "{proto: udp, via: reject}"}},
		{"ssh -D", servers.OpenSSH, servers.Options{},
			`{"version":5,"names":true,"pipeline":true,"early_reply":false,"udp":false}`, []string{"url: socks5h://", "pipeline: true", "{proto: udp, via: reject}"}},
		{"ss-local", servers.Shadowsocks, servers.Options{},
			`{"version":5,"names":true,"pipeline":true,"early_reply":true,"udp":true}`, []string{"url: socks5h://", "pipeline: true", "early-reply: true"}},
	} {
		t.Run(tt.server, func(t *testing.T) {
			at := startServer(t, l, tt.kind, tt.o)
			out := must(t, l.Host, rootUser.tunroute("probe", "--json", "--timeout", "15s", "--down", lab.NoHost4.String(),
				"--target", fmt.Sprintf("%s:%d", lab.SecretName, lab.EchoPort), "socks5h://"+at)...)
			var got struct {
				Self []netip.Addr
				Rows []struct {
					ID, Answer, Detail, Verdict, Note string
					Bytes                             int
				}
				Advice json.RawMessage
				Config string
			}
			if err := json.Unmarshal([]byte(out), &got); err != nil {
				t.Fatalf("%v in %s", err, out)
			}
			if len(got.Self) != 1 || got.Self[0] != lab.Host4 {
				t.Errorf("the server reaches us at %v, want %v", got.Self, lab.Host4)
			}
			names, want := probeColumns(t, tt.server)
			seen := make(map[string]bool)
			for _, row := range got.Rows {
				seen[row.ID] = true
				w, known := want[row.ID]
				if !known {
					continue // those of the address that we have asked with
				}
				w, length, sized := strings.Cut(w, " *")
				ok := row.Answer == w || w == "-" && row.Answer == ""
				if not, isNot := strings.CutPrefix(w, "!"); isNot {
					ok = row.Answer != not
				}
				if !ok || sized && length != fmt.Sprint(row.Bytes) {
					t.Errorf("%s: %q (%s), %d bytes, %s: %s; want %q", row.ID, row.Answer, row.Detail, row.Bytes, row.Verdict, row.Note, want[row.ID])
				}
			}
			for _, id := range names {
				if !seen[id] {
					t.Errorf("no row %s", id)
				}
			}
			var advice strings.Builder
			for _, line := range strings.Fields(string(got.Advice)) {
				advice.WriteString(line)
			}
			if advice.String() != tt.advice {
				t.Errorf("advice %s, want %s", &advice, tt.advice)
			}
			for _, line := range tt.config {
				if !strings.Contains(got.Config, line) {
					t.Errorf("no %q in the config\n%s", line, got.Config)
				}
			}
			if r := run(t, l.Host, rootUser.tunroute("check", "-c", lab.File(t, "tunroute.yaml", got.Config))...); r.Status != 0 || r.Stderr != "" {
				t.Errorf("check of the config: status %d, %s%s", r.Status, r.Stdout, r.Stderr)
			}
		})
	}
}
