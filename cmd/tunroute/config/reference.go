package config

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxSecret is the longest user name or password that SOCKS5 can carry (RFC
// 1929 §2: one length octet each).
const maxSecret = 255

// text decodes a text that may stand elsewhere: {file: PATH} or {env:
// VARIABLE}. literal says that it stands in the config itself. No message shows
// the text.
func (d *decoder) text(n *yaml.Node, name string) (_ string, literal, ok bool) {
	n = follow(n)
	if isNull(n) {
		d.errorf(n, "write one, or leave the key out", "%s has no value", name)
		return "", false, false
	}
	var text string
	switch n.Kind {
	case yaml.ScalarNode:
		text, literal = n.Value, true
	case yaml.MappingNode:
		list, ok := d.pairs(n, name)
		if !ok {
			return "", false, false
		}
		if len(list) != 1 {
			d.errorf(n, "write {file: PATH} or {env: VARIABLE}", "%s comes from exactly one place", name)
			return "", false, false
		}
		where, isText := d.scalar(follow(list[0].value), list[0].key.Value)
		if !isText {
			return "", false, false
		}
		var err error
		switch key := list[0].key.Value; key {
		case "file":
			text, err = d.readFile(list[0].value, where)
		case "env":
			text, err = d.readEnv(where)
		default:
			d.errorf(list[0].key, didYouMean(key, []string{"file", "env"}), "%s cannot come from %q", name, short(key))
			return "", false, false
		}
		if err != nil {
			d.errorf(list[0].value, "write {file: PATH} of a file that we may read, or {env: VARIABLE} of one that is set", "%s: %v", name, err)
			return "", false, false
		}
	default:
		d.errorf(n, "leave out the brackets or the dash", "%s is one value, not a list", name)
		return "", false, false
	}
	switch {
	case text == "":
		d.errorf(n, "leave the key out if there is none", "%s is empty", name)
	case len(text) > maxSecret:
		d.errorf(n, "is it the right one?", "%s is longer than the %d bytes that SOCKS can carry", name, maxSecret)
	default:
		return text, literal, true
	}
	return "", false, false
}

// readFile reads a secret from a file, and notes whether others may as well.
func (d *decoder) readFile(n *yaml.Node, path string) (string, error) {
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(d.file), path)
	}
	// Before it is opened: opening a pipe would wait for its other end.
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("%s: %s", path, reason(err))
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %s", path, reason(err))
	}
	defer f.Close()
	// One byte and a line end more than can be right tells that it is not.
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+3))
	if err != nil {
		return "", err
	}
	if readableByOthers(info.Mode()) {
		d.secretFiles = append(d.secretFiles, finding{at(n), path})
	}
	data = bytes.TrimSuffix(data, []byte("\n"))
	data = bytes.TrimSuffix(data, []byte("\r"))
	return string(data), nil
}

func (d *decoder) readEnv(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, "=\x00 $") {
		return "", fmt.Errorf("%q is not the name of an environment variable", short(name))
	}
	text, ok := os.LookupEnv(name)
	if !ok {
		return "", fmt.Errorf("the environment variable %s is not set", name)
	}
	return text, nil
}

// readableByOthers tells whether a file with this mode is open to all users of
// the machine. On Windows the mode does not say.
func readableByOthers(mode os.FileMode) bool {
	return runtime.GOOS != "windows" && mode.Perm()&0o004 != 0
}

// decode decodes what the key called name has for a secret.
func (s *Secret) decode(d *decoder, n *yaml.Node, name string) {
	text, literal, ok := d.text(n, name)
	if !ok {
		return
	}
	*s = NewSecret(text)
	d.keepSecret(text)
	if literal {
		d.passwordAt(at(n))
	}
}

// passwordAt notes that a password stands in the config.
func (d *decoder) passwordAt(p place) {
	if d.inline == (place{}) {
		d.inline = p
	}
}
