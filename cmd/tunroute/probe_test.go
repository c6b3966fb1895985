package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/config"
	"tunroute/cmd/tunroute/engine"
	"tunroute/router/outbound/outboundtest"
)

// What is printed has neither user nor password in it, and its config is one, over
// whatever the server is spoken to.
func TestProbePrints(t *testing.T) {
	o := outboundtest.ServerOptions{User: "ann-of-probe", Password: "opensesame"}
	tcp := outboundtest.StartServer(t, o)
	o.Unix = true
	unix := outboundtest.StartServer(t, o)
	open := outboundtest.StartServer(t, outboundtest.ServerOptions{})
	login := o.User + ":" + o.Password + "@"
	for _, c := range []struct {
		name   string
		urls   []string
		scheme string // of the server in the config
		ok     bool
	}{
		{"tcp", []string{"socks5://" + login + tcp.Target().String()}, "url: socks5", true},
		{"unix", []string{"socks5h+unix://" + login + unix.Path()}, "+unix:///", true},
		{"chain", []string{"socks5h+unix://" + login + unix.Path(), "socks5h://" + open.Target().String()}, "via: proxy1\n", true},
		{"wrong password", []string{"socks5h://ann-of-probe:opensesame2@" + tcp.Target().String()}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, format := range []string{"--json=false", "--json"} {
				var out, stderr bytes.Buffer
				root := newRoot()
				root.SetArgs(append([]string{"probe", format, "--timeout", "30s", "--down", "127.0.0.1"}, c.urls...))
				root.SetOut(&out)
				root.SetErr(&stderr)
				err := root.Execute()
				if (err == nil) != c.ok {
					t.Fatalf("%s: %v", format, err)
				}
				text := out.String() + stderr.String()
				if err != nil {
					text += err.Error()
				}
				if strings.Contains(text, o.Password) || strings.Contains(text, o.User) {
					t.Errorf("credentials in\n%s", text)
				}
				if format != "--json" {
					continue
				}
				var got struct {
					Self   []netip.Addr
					Config string
				}
				if err := json.Unmarshal(out.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				if !c.ok {
					if got.Config != "" {
						t.Errorf("a config of a server that does not take us:\n%s", got.Config)
					}
					continue
				}
				if len(got.Self) == 0 {
					t.Error("a server on this machine does not reach us")
				}
				cfg, err := config.Parse("tunroute.yaml", []byte(got.Config))
				if err != nil {
					t.Fatalf("%v\n%s", err, got.Config)
				}
				if err := engine.Check(cfg); len(err) > 0 || !strings.Contains(got.Config, c.scheme) {
					t.Errorf("%v, want %q in\n%s", err, c.scheme, got.Config)
				}
			}
		})
	}
}
