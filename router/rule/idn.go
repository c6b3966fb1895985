package rule

import (
	"errors"
	"strings"
	"unicode/utf8"
)

var errNotUTF8 = errors.New("is not UTF-8")

// toASCII returns a name with every label that has letters beyond ASCII in its
// "xn--" form (RFC 3490 ToASCII, RFC 3492 Punycode), in lower case, which is how
// browsers and resolvers ask DNS for it. It does not compose accents: "u" and a
// combining diaeresis are not taken for "ü".
func toASCII(name string) (string, error) {
	if isASCII(name) {
		return name, nil
	}
	if !utf8.ValidString(name) {
		return "", errNotUTF8
	}
	labels := strings.Split(strings.ToLower(name), ".")
	for i, label := range labels {
		if !isASCII(label) {
			labels[i] = "xn--" + punycode([]rune(label))
		}
	}
	return strings.Join(labels, "."), nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// The parameters of Punycode (RFC 3492 §5).
const (
	punyBase, punyTMin, punyTMax  = 36, 1, 26
	punySkew, punyDamp            = 38, 700
	punyInitialBias, punyInitialN = 72, 0x80
	punyDigits                    = "abcdefghijklmnopqrstuvwxyz0123456789"
)

// punycode encodes a label as RFC 3492 §6.3 does. A name is at most 255 bytes
// long, so that delta stays below 2^29 and cannot overflow.
func punycode(label []rune) string {
	var out []byte
	for _, r := range label {
		if r < punyInitialN {
			out = append(out, byte(r))
		}
	}
	basic := len(out)
	if basic > 0 {
		out = append(out, '-')
	}
	n, delta, bias := rune(punyInitialN), 0, punyInitialBias
	for done := basic; done < len(label); {
		next := rune(utf8.MaxRune)
		for _, r := range label {
			if r >= n {
				next = min(next, r)
			}
		}
		delta += int(next-n) * (done + 1)
		n = next
		for _, r := range label {
			if r < n {
				delta++
			}
			if r == n {
				out = appendPuny(out, delta, bias)
				bias = adaptBias(delta, done+1, done == basic)
				delta = 0
				done++
			}
		}
		delta++
		n++
	}
	return string(out)
}

// appendPuny appends delta as a variable-length integer (RFC 3492 §3.3).
func appendPuny(out []byte, delta, bias int) []byte {
	for k := punyBase; ; k += punyBase {
		t := min(max(k-bias, punyTMin), punyTMax)
		if delta < t {
			return append(out, punyDigits[delta])
		}
		out = append(out, punyDigits[t+(delta-t)%(punyBase-t)])
		delta = (delta - t) / (punyBase - t)
	}
}

// adaptBias is the bias adaptation of RFC 3492 §6.1.
func adaptBias(delta, points int, first bool) int {
	if first {
		delta /= punyDamp
	} else {
		delta /= 2
	}
	delta += delta / points
	k := 0
	for ; delta > (punyBase-punyTMin)*punyTMax/2; k += punyBase {
		delta /= punyBase - punyTMin
	}
	return k + (punyBase-punyTMin+1)*delta/(delta+punySkew)
}
