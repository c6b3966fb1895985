package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"tunroute/router/flow"
)

func TestFromProxies(t *testing.T) {
	for _, c := range []struct {
		name string
		urls []string
		want string // the chain; then the verdict's via
	}{
		{"none is direct", nil, "-> direct"},
		{"one", []string{"socks5h://192.0.2.1"}, "proxy socks5h://192.0.2.1:1080 -> proxy"},
		{"direct", []string{"direct"}, "proxy direct -> proxy"},
		{"a chain, the nearest first", []string{"socks4://192.0.2.1:1", "socks5://a:b@192.0.2.2", "socks5h://[2001:db8::1]:3"},
			"proxy1 socks4://192.0.2.1:1, proxy2 socks5://192.0.2.2:1080, proxy3 socks5h://[2001:db8::1]:3 -> proxy3"},
		{"a chain of all kinds", []string{"socks5h+unix:///run/tor/socks", "http://key@192.0.2.1:3128", "socks5h+tls://a:b@p.test", "HTTPS://a:b@P.test"},
			"proxy1 socks5h+unix:///run/tor/socks, proxy2 http://192.0.2.1:3128, proxy3 socks5h+tls://p.test:1080, proxy4 https://p.test:443 -> proxy4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := FromProxies(c.urls)
			if err != nil {
				t.Fatal(err)
			}
			table, err := cfg.Table()
			if err != nil {
				t.Fatal(err)
			}
			via := table.Match(&flow.Flow{Network: flow.TCP, Target: flow.Target{Name: "example.org", Port: 80}}).Via
			var hops []string
			for _, u := range cfg.Chain(via) {
				hops = append(hops, u.Name+" "+u.URL)
			}
			if got := strings.TrimSpace(strings.Join(hops, ", ") + " -> " + via); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if cfg.NameMode("example.org") != Remote {
				t.Error("names are not resolved at the far end")
			}
			checkRoundTrip(t, cfg)
		})
	}
}

func TestFromProxiesWarnsOfNamesThatAreResolvedHere(t *testing.T) {
	for url, want := range map[string]string{
		"socks5h://192.0.2.1": "",
		"socks5://192.0.2.1":  "names for upstream \"proxy\" are resolved on this machine, because of its scheme socks5\n      write socks5h:// to have the server resolve them",
	} {
		cfg, err := FromProxies([]string{url})
		if err != nil {
			t.Fatal(err)
		}
		if got := cfg.Warnings.Error(); got != want {
			t.Errorf("%s: got %q, want %q", url, got, want)
		}
	}
}

func TestFromProxiesErrors(t *testing.T) {
	for _, c := range []struct {
		urls []string
		want string
	}{
		{[]string{""}, `proxy "" is empty (write one as in socks5h://192.0.2.1)`},
		{[]string{"192.0.2.1"}, `proxy "192.0.2.1" has no scheme (it begins with socks5h://, socks5://, socks4a:// or socks4://)`},
		{[]string{"socks5h://a:hunter2@192.0.2.1:x"}, `proxy "socks5h://a:[secret]@192.0.2.1:x" has a port that is not a number from 1 to 65535 (if that is the password, the host is missing: USER:PASSWORD@HOST)`},
		{[]string{"socks5h://a:hunter2"}, `proxy "socks5h://a:[secret]" has a port that is not a number from 1 to 65535 (if that is the password, the host is missing: USER:PASSWORD@HOST)`},
		{[]string{"socks5h:/a:hunter2@192.0.2.1"}, `proxy "socks5h:[secret]@192.0.2.1" has no scheme (it begins with socks5h://, socks5://, socks4a:// or socks4://)`},
		{[]string{"socks5h://a:a@a:a"}, `proxy "socks5h://a:[secret]@a:a" has a port that is not a number from 1 to 65535 (if that is the password, the host is missing: USER:PASSWORD@HOST)`},
		{[]string{"a:hunter2@192.0.2.1"}, `proxy "a:[secret]@192.0.2.1" has no scheme (it begins with socks5h://, socks5://, socks4a:// or socks4://)`},
		{[]string{"socks4://a:hunter2@192.0.2.1"}, `proxy "socks4://a:[secret]@192.0.2.1" speaks SOCKS4, which has no passwords (leave the password out, or use socks5h)`},
		{[]string{"socks5h://192.0.2.1", "http://a:hunter2@192.0.2.1"}, `proxy 2 "http://a:[secret]@192.0.2.1" has no port (write http://HOST:PORT; proxies are at 3128 or 8080, and programs disagree about which it is where nothing is said)`},
		{[]string{"socks5h://192.0.2.1", "socks5h+unix:///run/tor/socks"}, `proxy 2 "socks5h+unix:///run/tor/socks" is on a unix socket of this machine and cannot go via another one (leave via out)`},
		{[]string{"https://a:hunter2@/x"}, `proxy "https://a:[secret]@/x" goes on behind host and port (leave out what follows the port)`},
		{[]string{"direct", "socks5h://192.0.2.1"}, `proxy 1 "direct" is direct and cannot be part of a chain (leave it out)`},
	} {
		_, err := FromProxies(c.urls)
		if err == nil || err.Error() != c.want {
			t.Errorf("%q\n got %v\nwant %s", c.urls, err, c.want)
		}
	}
}

func TestProxyFromEnv(t *testing.T) {
	for _, c := range []struct {
		name          string
		env           map[string]string
		variable, url string
	}{
		{"nothing", nil, "", ""},
		{"all_proxy", map[string]string{"all_proxy": " socks5h://192.0.2.1 "}, "all_proxy", "socks5h://192.0.2.1"},
		{"small before large, as curl has it", map[string]string{"all_proxy": "socks5h://192.0.2.1", "ALL_PROXY": "socks5h://192.0.2.2"}, "all_proxy", "socks5h://192.0.2.1"},
		{"ALL_PROXY before Dante's", map[string]string{"ALL_PROXY": "socks4a://192.0.2.2", "SOCKS5_SERVER": "192.0.2.3:1"}, "ALL_PROXY", "socks4a://192.0.2.2"},
		{"5 before any before 4", map[string]string{"SOCKS4_SERVER": "192.0.2.4:1", "SOCKS_SERVER": "192.0.2.3:1", "SOCKS5_SERVER": "192.0.2.5:1"}, "SOCKS5_SERVER", "socks5h://192.0.2.5:1"},
		{"any", map[string]string{"SOCKS_SERVER": "proxy.example.org:1081"}, "SOCKS_SERVER", "socks5h://proxy.example.org:1081"},
		{"4", map[string]string{"SOCKS4_SERVER": "192.0.2.4:1", "SOCKS_USERNAME": "joe", "SOCKS_PASSWORD": "hunter2"}, "SOCKS4_SERVER", "socks4://joe@192.0.2.4:1"},
		{"user and password", map[string]string{"SOCKS5_SERVER": "192.0.2.5:1", "SOCKS_USERNAME": "jo:e", "SOCKS_PASSWORD": "p@ss/w%rd:"}, "SOCKS5_SERVER", "socks5h://jo%3Ae:p%40ss%2Fw%25rd%3A@192.0.2.5:1"},
		{"not sent to a server that somebody else named", map[string]string{"ALL_PROXY": "socks5h://192.0.2.2", "SOCKS_USERNAME": "joe", "SOCKS_PASSWORD": "hunter2"}, "ALL_PROXY", "socks5h://192.0.2.2"},
		{"a URL in Dante's variable", map[string]string{"SOCKS5_SERVER": "socks5://192.0.2.5:1"}, "SOCKS5_SERVER", "socks5://192.0.2.5:1"},
		{"HTTP too", map[string]string{"ALL_PROXY": "http://192.0.2.2:3128", "SOCKS_SERVER": "192.0.2.3:1"}, "ALL_PROXY", "http://192.0.2.2:3128"},
		{"HTTP over TLS too", map[string]string{"all_proxy": "HTTPS://proxy.example.org", "ALL_PROXY": "socks5h://192.0.2.2"}, "all_proxy", "HTTPS://proxy.example.org"},
		{"ours before a kind that there is not", map[string]string{"ALL_PROXY": "ftp://192.0.2.2", "SOCKS_SERVER": "192.0.2.3:1"}, "SOCKS_SERVER", "socks5h://192.0.2.3:1"},
		{"a kind that there is not is not as good as none", map[string]string{"ALL_PROXY": "ftp://192.0.2.2"}, "ALL_PROXY", "ftp://192.0.2.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			getenv := func(name string) string { return c.env[name] }
			if got := ProxyVariable(getenv); got != c.variable {
				t.Errorf("variable: got %q, want %q", got, c.variable)
			}
			if got := ProxyFromEnv(getenv); got != c.url {
				t.Errorf("URL: got %q, want %q", got, c.url)
			}
		})
	}
}

func TestEnvironmentSurvivesTheURL(t *testing.T) {
	env := map[string]string{"SOCKS5_SERVER": "[2001:db8::1]:1", "SOCKS_USERNAME": "jo:e@home", "SOCKS_PASSWORD": "p@ss/w%rd: #?+"}
	cfg, err := FromProxies([]string{ProxyFromEnv(func(name string) string { return env[name] })})
	if err != nil {
		t.Fatal(err)
	}
	u := cfg.Upstreams[0]
	got := []string{u.Server.String(), u.User, u.Password.Reveal()}
	if diff := cmp.Diff([]string{"[2001:db8::1]:1", "jo:e@home", "p@ss/w%rd: #?+"}, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}
