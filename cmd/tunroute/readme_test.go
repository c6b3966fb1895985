//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"tunroute/router/interop/lab"
	"tunroute/router/interop/servers"
)

// Every command of README.md is run, as it stands there, in a lab: see package
// lab for the drawing. Only the hosts are others than those in the text, and root
// needs no sudo:
var inReadme = strings.NewReplacer(
	"sudo ", "",
	// SOCKS servers of the lab.
	"proxy.example", "192.0.2.10:1080",
	"outer.example", "192.0.2.10:1081",
	"inner.example", "192.0.2.10:1082",
	"locked.example", "192.0.2.10:1083",
	"socks5h://10.0.4.1", "socks5h://192.0.2.10:1081",
	"socks5h://192.168.100.2", "socks5h://192.0.2.10:1082",
	// A name that only they know.
	"www.private-net.org", lab.SecretName,
	".private-net.org", "."+lab.SecretName,
	"intranet.example", lab.SecretName,
	// The cluster and its DNS: that of the lab's host.
	"10.0.0.0/8", "203.0.113.0/24",
	"10.96.0.10", "203.0.113.53",
	// The network behind the gateway.
	"192.168.0.0/16", "10.78.0.0/16",
	"192.168.2.0/24", "10.78.0.0/24",
	"fd00:0:0:2::/64", "fd78::/64",
	// A module proxy of the lab, whose answers go into no cache.
	"-- go list", "-- env GOPROXY=http://"+lab.PublicName+":8080 GOSUMDB=off GOMODCACHE=$SCRATCH/modules go list",
	// What is built is not left in the working tree.
	"-o tunroute", "-o $SCRATCH/tunroute",
)

// readmeSteps says of each command what must come of it.
var readmeSteps = map[string]func(*readme, string){
	"go run ./cmd/tunroute demo": func(r *readme, c string) {
		got := r.run(c)
		for requirement := 1; requirement <= 6; requirement++ {
			r.contains("\n"+got.Stdout, fmt.Sprintf("\n%d pass  ", requirement))
		}
	},
	"go run ./cmd/tunroute exec -v -- go list -m golang.org/x/net@latest": func(r *readme, c string) {
		r.serveModules()
		got := r.run(c)
		r.contains(got.Stdout, "golang.org/x/net v9.9.9\n")
		r.contains(got.Stderr, "dst="+lab.PublicName+":8080 rule=1 out=direct")
	},
	"go test ./...": func(r *readme, c string) {
		// This is a part of it; that it is what has to pass is said there.
		r.contains(r.read(".ci/run"), "\n"+c+"\n")
	},
	"CGO_ENABLED=0 go build -o tunroute ./cmd/tunroute": func(r *readme, c string) { r.run(c) },

	"./tunroute exec --proxy socks5h://proxy.example -- curl -s http://intranet.example/":                                 (*readme).page,
	"./tunroute exec --proxy socks5h://outer.example --proxy socks5h://inner.example -- curl -s http://intranet.example/": (*readme).page,
	"ALL_PROXY=socks5h://user:password@locked.example ./tunroute exec -- curl -s http://intranet.example/":                (*readme).page,
	"./tunroute probe socks5h://proxy.example":                                                                            (*readme).probed,
	"./tunroute check -c tunroute.yaml":                                                                                   func(r *readme, c string) { r.contains(r.run(c).Stdout, "tunroute.yaml: ok") },
	"./tunroute explain -c tunroute.yaml www.private-net.org:443":                                                         func(r *readme, c string) { r.contains(r.run(c).Stdout, "rule 2 (line 7, via p1): matches") },
	"./tunroute exec -c tunroute.yaml -- curl -s http://www.private-net.org/":                                             (*readme).page,
	"sudo ./tunroute run -c sidecar.yaml": func(r *readme, c string) {
		r.daemon(c, func() {
			r.isPage(r.lab.Host.Run(r.t, "curl", "-s", "http://"+lab.SecretName+"/"))
			got := r.lab.Host.Run(r.t, "curl", "-s", "--max-time", "20", "http://"+lab.NoName+"/")
			if got.Status != 7 { // "failed to connect", and not a time-out
				r.t.Errorf("curl of a name that does not exist: status %d, want 7", got.Status)
			}
		})
	},
	"sudo sysctl -w net.ipv4.ip_forward=1": func(r *readme, c string) { r.run(c) },
	"sudo ./tunroute run -c gateway.yaml": func(r *readme, c string) {
		r.daemon(c, func() {
			// From a client of the network behind.
			r.isPage(r.lab.Lan.Run(r.t, "curl", "-s", "http://"+lab.SecretName+"/"))
			if got := r.lab.Lan.Run(r.t, "curl", "-s", "http://"+lab.SecretName+":9001/"); got.Status != 7 {
				r.t.Errorf("curl of a port that guests may not use: status %d, want 7", got.Status)
			}
			r.contains(r.run("sudo ./tunroute status -c gateway.yaml").Stdout, "\ndevice   tunroute0\n")
		})
	},
	"sudo ./tunroute status -c gateway.yaml": func(*readme, string) {}, // while it runs: above
	"./tunroute run -c server.yaml": func(r *readme, c string) {
		r.daemon(c, func() {
			r.isPage(r.lab.Host.Run(r.t, "curl", "-s", "-x", "socks5h://127.0.0.1", "http://"+lab.SecretName+"/"))
			got := r.lab.Host.Run(r.t, "curl", "-s", "-x", "socks5h://127.0.0.1", "http://127.0.0.1/")
			if got.Status != 97 { // refused by the server
				r.t.Errorf("curl of what a rule rejects: status %d, want 97", got.Status)
			}
		})
	},
}

// readme is a walk through README.md.
type readme struct {
	t       *testing.T
	lab     *lab.Lab
	scratch string // where ./tunroute and the configs are
}

func TestReadme(t *testing.T) {
	if os.Getenv(inLab) == "" {
		runInLab(t)
		return
	}
	lab.Need(t, "curl", "curl")
	lab.Need(t, "sysctl", "procps")
	r := &readme{t: t, lab: lab.New(t), scratch: lab.Dir(t)}
	for port, o := range map[uint16]servers.Options{1080: {}, 1081: {}, 1082: {}, 1083: {User: "user", Password: "password"}} {
		o.Within, o.Listen, o.Port = r.lab.Srv.Within(), lab.Proxy4, port
		servers.Start(t, servers.Microsocks, o)
	}
	known := maps.Clone(readmeSteps)
	for _, b := range codeBlocks(t, "README.md") {
		if b.language == "yaml" {
			r.config(b)
		}
		if b.language != "sh" {
			continue
		}
		for _, command := range b.commands() {
			step, ok := known[command]
			if !ok {
				t.Fatalf("README.md:%d: no test knows what comes of %q", b.line, command)
			}
			delete(known, command)
			t.Run(command, func(t *testing.T) {
				r.t = t
				step(r, command)
			})
			r.t = t
		}
	}
	for command := range known {
		t.Errorf("README.md does not have %q any more", command)
	}
}

// runInLab runs a test in a process that is in a lab.
func runInLab(t *testing.T) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inLab+"=yes")
	out, err := cmd.CombinedOutput()
	switch {
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case bytes.Contains(out, []byte("--- SKIP: "+t.Name())):
		missing(t, string(out))
	}
	t.Logf("%s", out)
}

// block is what stands between two ``` of a text.
type block struct {
	language string
	text     string
	line     int
}

// codeBlocks returns the blocks of a file, whose path is from the root.
func codeBlocks(t *testing.T, file string) []block {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root(t), file))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []block
	open := false
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		language, fence := strings.CutPrefix(line, "```")
		switch {
		case fence && !open:
			blocks = append(blocks, block{language: strings.TrimSpace(language), line: n + 1})
			open = true
		case fence:
			open = false
		case open:
			blocks[len(blocks)-1].text += line
		}
	}
	return blocks
}

// commands returns the lines of a block that are commands.
func (b block) commands() []string {
	var all []string
	for line := range strings.Lines(strings.ReplaceAll(b.text, "\\\n", "")) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			all = append(all, line)
		}
	}
	return all
}

// config writes a config under the name that stands in its first line.
func (r *readme) config(b block) {
	r.t.Helper()
	first, _, _ := strings.Cut(b.text, "\n")
	name, ok := strings.CutPrefix(first, "# ")
	if !ok || filepath.Base(name) != name {
		r.t.Fatalf("README.md:%d: the config does not begin with a comment that names its file", b.line)
	}
	if err := os.WriteFile(filepath.Join(r.scratch, name), []byte(inReadme.Replace(b.text)), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// read returns a file, whose path is from the root.
func (r *readme) read(file string) string {
	r.t.Helper()
	text, err := os.ReadFile(filepath.Join(root(r.t), file))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(text)
}

// command returns a command as a shell on the lab's host would run it: those of
// go at the root, others where ./tunroute is.
func (r *readme) command(text string) (args []string, change func(*exec.Cmd)) {
	dir := r.scratch
	if isGo.MatchString(text) {
		dir = root(r.t)
	}
	return []string{"sh", "-c", `cd "$DIR" && exec env ` + inReadme.Replace(text)}, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "DIR="+dir, "SCRATCH="+r.scratch)
	}
}

// isGo finds commands of go, behind what is set for them.
var isGo = regexp.MustCompile(`^([A-Z_0-9]+=\S+ )*go `)

// run runs a command, which must succeed.
func (r *readme) run(text string) lab.Result {
	r.t.Helper()
	args, change := r.command(text)
	got := r.lab.Host.RunWith(r.t, change, args...)
	if got.Status != 0 {
		r.t.Fatalf("%s: status %d\n%s%s", text, got.Status, got.Stdout, got.Stderr)
	}
	return got
}

// page runs a command that prints the page of the lab.
func (r *readme) page(text string) {
	r.t.Helper()
	r.isPage(r.run(text))
}

// isPage fails the test unless a command has printed the page that is to be had
// through the SOCKS servers only.
func (r *readme) isPage(got lab.Result) {
	r.t.Helper()
	page := strings.TrimSpace(got.Stdout)
	from := page[strings.LastIndex(page, " ")+1:]
	addr, err := netip.ParseAddr(from)
	if err != nil || page+"\n" != lab.Page(lab.SecretName, from) || addr == lab.Host4 || addr == lab.Lan4 {
		r.t.Errorf("status %d, %q, want the page through a server\n%s", got.Status, got.Stdout, got.Stderr)
	}
}

// probed runs the probe of a server, whose output docs/probe.md has, but for ports.
func (r *readme) probed(text string) {
	r.t.Helper()
	const file = "cmd/tunroute/docs/probe.md"
	ports := regexp.MustCompile(`:[0-9]{4,5}\b`)
	plain := func(s string) string {
		return strings.Join(strings.Fields(ports.ReplaceAllString(s, ":PORT")), " ")
	}
	got := strings.ReplaceAll(r.run(text).Stdout, "192.0.2.10:1080", "proxy.example:1080")
	r.contains(r.read(file), text+"\n")
	if !strings.Contains(plain(r.read(file)), plain(got)) {
		r.t.Errorf("%s does not have what is printed:\n%s", file, got)
	}
}

func (r *readme) contains(text, want string) {
	r.t.Helper()
	if !strings.Contains(text, want) {
		r.t.Errorf("want %q in\n%s", want, text)
	}
}

// daemon runs a command that does not end until it is told to, calls during
// while it serves, and sees to it that the host is as it was afterwards.
func (r *readme) daemon(text string, during func()) {
	r.t.Helper()
	before := r.lab.Host.State(r.t)
	args, change := r.command(text)
	cmd := r.lab.Host.Command(args...)
	change(cmd)
	log, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		r.t.Fatal(err)
	}
	ready, ended := make(chan bool, 1), make(chan string, 1)
	go func() {
		var all strings.Builder
		for lines := bufio.NewScanner(log); lines.Scan(); {
			fmt.Fprintln(&all, lines.Text())
			if strings.Contains(lines.Text(), "msg=ready") {
				ready <- true
			}
		}
		close(ready)
		ended <- all.String()
	}()
	serving := <-ready
	if serving {
		during()
	}
	late := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer late.Stop()
	cmd.Process.Signal(syscall.SIGTERM)
	lines := <-ended
	if err := cmd.Wait(); err != nil || !serving {
		r.t.Errorf("%s: %v\n%s", text, err, lines)
	}
	if after := r.lab.Host.State(r.t); after != before {
		r.t.Errorf("%s has changed the host\nfrom\n%s\nto\n%s", text, before, after)
	}
}

// serveModules serves the little of a module proxy that is asked for.
func (r *readme) serveModules() {
	files := map[string]string{
		"list":        "v9.9.9\n",
		"v9.9.9.info": `{"Version": "v9.9.9", "Time": "2026-01-01T00:00:00Z"}`,
		"v9.9.9.mod":  "module golang.org/x/net\n",
	}
	l := r.lab.Srv.Listen(r.t, netip.AddrPortFrom(lab.Target4(1), 8080))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		text, ok := files[strings.TrimPrefix(q.URL.Path, "/golang.org/x/net/@v/")]
		if !ok {
			http.NotFound(w, q)
			return
		}
		io.WriteString(w, text)
	})}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	r.t.Cleanup(func() {
		server.Close()
		<-ended
	})
}

// TestLinks: what the texts for users refer to is there.
func TestLinks(t *testing.T) {
	files := []string{"README.md", "bench/README.md"}
	for _, pattern := range []string{"docs/*.md", "docs/changes/*.md", "deploy/*.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Errorf("no %s: %v", pattern, err)
		}
		for _, file := range found {
			files = append(files, filepath.Join("cmd/tunroute", file))
		}
	}
	link := regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	for _, file := range files {
		file = filepath.Join(root(t), file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
	}
}
