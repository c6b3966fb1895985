package config

import (
	"bytes"
	"fmt"
	"reflect"
	"time"

	"go.yaml.in/yaml/v4"
)

// Same tells whether two parts of configs say the same, wherever their files say it.
// Passwords are not compared.
func Same(a, b any) bool {
	x, err1 := yaml.Dump(a)
	y, err2 := yaml.Dump(b)
	return err1 == nil && err2 == nil && bytes.Equal(x, y)
}

// Difference returns where two parts of configs first say something else: keys and
// indices as in ".socks[1].users", and "" where it is the whole, or nothing.
func Difference(a, b any) string {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	switch {
	case x.Kind() == reflect.Struct:
		for i := range x.NumField() {
			key := yamlKey(x.Type().Field(i))
			if key == "" {
				continue
			}
			if p, q := x.Field(i).Interface(), y.Field(i).Interface(); !Same(p, q) {
				return "." + key + Difference(p, q)
			}
		}
	case x.Kind() == reflect.Slice && x.Len() == y.Len():
		for i := range x.Len() {
			if p, q := x.Index(i).Interface(), y.Index(i).Interface(); !Same(p, q) {
				return fmt.Sprintf("[%d]", i) + Difference(p, q)
			}
		}
	}
	return ""
}

// MarshalYAML writes off where there is no interface.
func (t TUN) MarshalYAML() (any, error) {
	if t.Off {
		return "off", nil
	}
	type keys TUN
	return keys(t), nil
}

// MarshalYAML keeps the order of the file.
func (us Upstreams) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for _, u := range us {
		var key, value yaml.Node
		key.SetString(u.Name)
		if err := value.Encode(u); err != nil {
			return nil, err
		}
		n.Content = append(n.Content, &key, &value)
	}
	return n, nil
}

// MarshalYAML writes what differs from the zero Upstream.
func (u *Upstream) MarshalYAML() (any, error) {
	out := struct {
		URL           string `yaml:"url,omitempty"`
		Via           string `yaml:"via,omitempty"`
		User          string `yaml:"user,omitempty"`
		Password      string `yaml:"password,omitempty"`
		Auth          string `yaml:"auth,omitempty"`
		Service       string `yaml:"service,omitempty"`
		Protection    string `yaml:"protection,omitempty"`
		Compatibility string `yaml:"compatibility,omitempty"`
		Keytab        string `yaml:"keytab,omitempty"`
		Principal     string `yaml:"principal,omitempty"`
		CCache        string `yaml:"ccache,omitempty"`
		CA            string `yaml:"ca,omitempty"`
		ServerName    string `yaml:"server-name,omitempty"`
		Pipeline      bool   `yaml:"pipeline,omitempty"`
		EarlyReply    bool   `yaml:"early-reply,omitempty"`
		Bind          string `yaml:"bind,omitempty"`
		Interface     string `yaml:"interface,omitempty"`
		Mark          string `yaml:"mark,omitempty"`

		Group      []string       `yaml:"group,omitempty,flow"`
		Policy     string         `yaml:"policy,omitempty"`
		By         string         `yaml:"by,omitempty"`
		Weights    map[string]int `yaml:"weights,omitempty,flow"`
		MaxFail    int            `yaml:"maxfail,omitempty"`
		BadExpire  time.Duration  `yaml:"badexpire,omitempty"`
		Probe      string         `yaml:"probe,omitempty"`
		ProbeEvery time.Duration  `yaml:"probe-every,omitempty"`
		Hedge      time.Duration  `yaml:"hedge,omitempty"`
		Deadline   time.Duration  `yaml:"deadline,omitempty"`
	}{
		URL: u.URL, Via: u.Via, User: u.User, Password: u.Password.String(), Interface: u.Interface,
		Service: u.Service, Protection: u.Protection.String(), Compatibility: u.Compatibility.String(),
		Keytab: u.Keytab, Principal: u.Principal, CCache: u.CCache,
		CA: u.CA, ServerName: u.ServerName, Pipeline: u.Pipeline, EarlyReply: u.EarlyReply,
		Group: u.Group, Weights: u.Weights, MaxFail: u.MaxFail, BadExpire: u.BadExpire,
		ProbeEvery: u.ProbeEvery, Hedge: u.Hedge, Deadline: u.Deadline,
	}
	if u.IsGroup() {
		out.Policy = u.Policy.String()
	}
	if u.Auth != AuthNone {
		out.Auth = u.Auth.String()
	}
	if u.By != BySource {
		out.By = u.By.String()
	}
	if u.Probe != (Probe{}) {
		out.Probe = u.Probe.String()
	}
	if u.Bind.IsValid() {
		out.Bind = u.Bind.String()
	}
	if u.Mark != 0 {
		out.Mark = fmt.Sprintf("%#x", u.Mark)
	}
	return out, nil
}
