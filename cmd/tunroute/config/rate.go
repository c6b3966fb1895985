package config

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"
)

// Rate is how many in how long.
type Rate struct {
	N   int
	Per time.Duration
}

// units of a Rate that are written as a letter.
var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// String returns the rate as the config has it: 10/s, 600/m, 5/10s.
func (r Rate) String() string {
	per := r.Per.String()
	for letter, d := range units {
		if r.Per == d {
			per = letter
		}
	}
	return strconv.Itoa(r.N) + "/" + per
}

// MarshalText returns what String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func parseRate(s string) (Rate, error) {
	const hint = "write a number, a slash and a time, as in 10/s, 600/m or 5/10s"
	count, per, ok := strings.Cut(s, "/")
	n, err := strconv.Atoi(count)
	if !ok || err != nil {
		if _, err := strconv.Atoi(s); err == nil {
			return Rate{}, parseError(s, "has no time", "write "+s+"/s for so many a second")
		}
		return Rate{}, parseError(s, "is not a rate", hint)
	}
	d := units[per]
	if d == 0 {
		if d, err = time.ParseDuration(per); err != nil {
			return Rate{}, parseError(s, "is not a rate", hint)
		}
	}
	switch {
	case n < 1 || n > maxLimit:
		return Rate{}, parseError(s, "is not a number of flows", fmt.Sprintf("write a number from 1 to %d", maxLimit))
	case d < time.Millisecond || d > 24*time.Hour:
		return Rate{}, parseError(s, "is not a time to count in", "write one from 1ms to 24h")
	}
	return Rate{n, d}, nil
}

// maxLimit is the highest of a limit: beyond it memory is the limit, not this.
const maxLimit = 1 << 24

// Per is whose flows count together.
type Per uint8

// What flows can have in common.
const (
	PerRule Per = iota
	PerSource
	PerUser
)

var pers = enum{"rule", "source", "user"}

// String returns "rule", "source" or "user".
func (p Per) String() string { return pers.text(int(p)) }

// MarshalText returns what String does.
func (p Per) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (l *RuleLimits) decodeNode(d *decoder, n *yaml.Node) {
	before := len(d.errs)
	d.fields(n, reflect.ValueOf(l).Elem(), "limits")
	if len(d.errs) > before {
		return
	}
	if at := valueAt(n, "sessions"); at != n {
		d.checkRange(n, "sessions", l.Sessions, 1, maxLimit)
	} else if l.Rate == (Rate{}) {
		d.errorf(n, "write sessions, rate or both, or leave limits out", "limits of a rule say neither sessions nor rate")
	}
}

// Key returns a text that two rules share if they decide the same flows in the same way,
// whatever else they say of them.
func (r *Rule) Key() string {
	bare := *r
	bare.Limits, bare.Bandwidth, bare.Log = RuleLimits{}, Bandwidth{}, nil
	text, err := yaml.Dump(&bare)
	if err != nil {
		panic(err) // of a config that was read: never
	}
	return string(text)
}

// IsZero says that the rule has none.
func (l RuleLimits) IsZero() bool { return l == RuleLimits{} }
