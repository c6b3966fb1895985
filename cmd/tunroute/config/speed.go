package config

import (
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Speed is in bytes per second.
type Speed int64

// The bounds of a Speed: a packet in a second and a half, and a terabyte in a second.
const (
	minSpeed = 1000
	maxSpeed = 1e12
)

// speedUnits are what is counted, in bytes. Those of bits are written as network people
// do, and case does not count but in b and B, which are refused alone: they are confused.
var speedUnits = []struct {
	name  string
	bytes float64
}{
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9},
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30},
	{"kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8},
}

// String returns the speed as a config has it, in the largest unit that is exact.
func (s Speed) String() string {
	for _, i := range []int{2, 1, 0} { // GB, MB, kB
		if u := speedUnits[i]; int64(s)%int64(u.bytes) == 0 {
			return strconv.FormatInt(int64(s)/int64(u.bytes), 10) + u.name + "/s"
		}
	}
	// Exact in any case: a byte is a thousandth of a kB.
	return strconv.FormatFloat(float64(s)/1e3, 'f', -1, 64) + "kB/s"
}

// MarshalText returns what String does.
func (s Speed) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func parseSpeed(s string) (Speed, error) {
	const hint = "write a number and a unit, as in 500kB/s, 10MB/s, 2MiB/s or 80Mbit/s"
	text, ok := strings.CutSuffix(s, "/s")
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	unit := strings.TrimSpace(text[len(digits):])
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || n < 0 || math.IsInf(n, 0) || math.IsNaN(n) {
		return 0, parseError(s, "is not a bandwidth", hint)
	}
	for _, u := range speedUnits {
		if !strings.EqualFold(u.name, unit) || strings.HasSuffix(unit, "b") {
			continue
		}
		bytes := n * u.bytes
		switch {
		case !ok:
			return 0, parseError(s, "has no time", "write "+digits+unit+"/s")
		case bytes < minSpeed || bytes > maxSpeed:
			return 0, parseError(s, "is not a bandwidth that can be kept", "write one from 1kB/s to 1000GB/s")
		}
		return Speed(math.Round(bytes)), nil
	}
	if strings.HasSuffix(unit, "b") {
		return 0, parseError(s, "could be bits or bytes", fmt.Sprintf("write %sB/s for bytes, or %sbit/s for bits", digits+strings.TrimSuffix(unit, "b"), digits+strings.TrimSuffix(unit, "b")))
	}
	return 0, parseError(s, "has no unit", hint)
}

func (b *Bandwidth) decodeNode(d *decoder, n *yaml.Node) {
	if n.Kind == yaml.ScalarNode {
		speed, err := parseSpeed(n.Value)
		if err != nil {
			d.error(n, err)
			return
		}
		*b = Bandwidth{Up: speed, Down: speed}
		return
	}
	before := len(d.errs)
	d.fields(n, reflect.ValueOf(b).Elem(), "bandwidth")
	if len(d.errs) == before && b.Up == 0 && b.Down == 0 {
		d.errorf(n, "write up, down or both, as in 10MB/s for both", "bandwidth says neither up nor down")
	}
}

// IsZero says that there is no limit.
func (b Bandwidth) IsZero() bool { return b == Bandwidth{} }
