package rule

import (
	"errors"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

var errNotUTF8 = errors.New("is not UTF-8")

// toASCII returns a name with every label that has letters beyond ASCII in its
// "xn--" form, which is how browsers and resolvers ask DNS for it: mapped as for
// a look-up (UTS #46, not transitional). Other labels stay as they are, also
// such as no host has, with an underscore for example.
func toASCII(name string) (string, error) {
	if isASCII(name) {
		return name, nil
	}
	if !utf8.ValidString(name) {
		return "", errNotUTF8
	}
	lookup := idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false), idna.VerifyDNSLength(false))
	return lookup.ToASCII(name)
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
