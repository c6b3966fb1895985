package config

import (
	"fmt"

	"go.yaml.in/yaml/v4"
)

// YAML returns the config as a file that says the same, with all defaults and
// with "[secret]" for passwords.
func (c *Config) YAML() ([]byte, error) {
	return yaml.Dump(c, yaml.WithFlowSimpleCollections(), yaml.WithLineWidth(-1))
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
		URL        string `yaml:"url"`
		Via        string `yaml:"via,omitempty"`
		User       string `yaml:"user,omitempty"`
		Password   string `yaml:"password,omitempty"`
		CA         string `yaml:"ca,omitempty"`
		ServerName string `yaml:"server-name,omitempty"`
		Pipeline   bool   `yaml:"pipeline,omitempty"`
		EarlyReply bool   `yaml:"early-reply,omitempty"`
		Bind       string `yaml:"bind,omitempty"`
		Interface  string `yaml:"interface,omitempty"`
		Mark       string `yaml:"mark,omitempty"`
	}{
		URL: u.URL, Via: u.Via, User: u.User, Password: u.Password.String(),
		CA: u.CA, ServerName: u.ServerName, Pipeline: u.Pipeline, EarlyReply: u.EarlyReply, Interface: u.Interface,
	}
	if u.Bind.IsValid() {
		out.Bind = u.Bind.String()
	}
	if u.Mark != 0 {
		out.Mark = fmt.Sprintf("%#x", u.Mark)
	}
	return out, nil
}
