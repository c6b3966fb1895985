package config

import (
	"regexp"
	"slices"
	"strings"
)

// span is bytes start to end of a line.
type span struct{ start, end int }

var (
	// anyKey finds keys, quoted or not, in block and flow style, and ends
	// where the value begins.
	anyKey = regexp.MustCompile(`([A-Za-z][\w-]*)["']?[ \t]*:[ \t]*`)

	// reference is the value of a password that says where the password is.
	reference = regexp.MustCompile(`^(?:\{[ \t]*)?(?:file|env)[ \t]*:`)
)

// passwordWords are the keys whose values are struck out. It is not enough to
// know our own: the line to be shown may have a key misspelt, or be from the
// config of another tool.
var passwordWords = []string{"password", "passwd", "passphrase", "pass", "pwd", "secret", "token"}

// passwordValues returns where in a line the values of passwords begin; text is what is
// to be shown of it.
func (s *source) passwordValues(line int, text string) []int {
	var starts []int
	inDNS := s.within(line, "dns")
	for _, m := range anyKey.FindAllStringSubmatchIndex(text, -1) {
		key := text[m[2]:m[3]]
		inDNS = inDNS || key == "dns"
		// A socket is near enough to a secret to be one that is misspelt. The key of dns
		// is one, and that of tls is the path of a file.
		if key != "socket" && closest(key, passwordWords) != "" || inDNS && key == "key" {
			starts = append(starts, m[1])
		}
	}
	return starts
}

// within tells whether a line is below a key, in block style.
func (s *source) within(line int, key string) bool {
	indent := indentOf(s.lines[line])
	for i := line - 1; i >= 0 && indent > 0; i-- {
		above := s.lines[i]
		n := indentOf(above)
		if n >= indent || strings.TrimSpace(above) == "" {
			continue
		}
		if m := anyKey.FindStringSubmatch(above); m != nil && m[1] == key {
			return true
		}
		indent = n
	}
	return false
}

// indentOf returns how many blanks a line begins with.
func indentOf(line string) int { return len(line) - len(strings.TrimLeft(line, " \t")) }

// secretSpans finds what in a line must not be shown, from the end to the
// beginning and without overlaps. It works on broken files too, where nothing is
// known but the text, and takes too much rather than too little.
func (s *source) secretSpans(line int, text string) []span {
	var spans []span
	add := func(start, end int) {
		if start < end {
			spans = append(spans, span{start, end})
		}
	}
	if s.insidePassword(line) {
		add(len(text)-len(strings.TrimLeft(text, " \t")), len(text))
	}
	for _, secret := range s.secrets {
		for from := 0; secret != ""; {
			i := strings.Index(text[from:], secret)
			if i < 0 {
				break
			}
			add(from+i, from+i+len(secret))
			from += i + len(secret)
		}
	}
	for _, start := range s.passwordValues(line, text) {
		add(start, start+valueEnd(text[start:]))
	}
	for from := 0; ; {
		i := strings.Index(text[from:], "://")
		if i < 0 {
			break
		}
		start, end := urlPassword(text, from+i)
		add(start, end)
		from += i + len("://")
	}
	slices.SortFunc(spans, func(a, b span) int { return a.start - b.start })
	joined := spans[:0]
	for _, sp := range spans {
		if n := len(joined); n > 0 && sp.start <= joined[n-1].end {
			joined[n-1].end = max(joined[n-1].end, sp.end)
			continue
		}
		joined = append(joined, sp)
	}
	slices.Reverse(joined)
	return joined
}

// urlPassword returns where in text the password is of the URL whose "://" is at
// i; start is end where there is none.
func urlPassword(text string, i int) (start, end int) {
	first := i // where the URL begins
	for first > 0 && (text[first-1] == '+' || isLetterOrDigit(text[first-1])) {
		first--
	}
	stop := " \t"
	if first > 0 && (text[first-1] == '"' || text[first-1] == '\'') {
		stop = text[first-1 : first]
	}
	url := text[first:]
	if n := strings.IndexAny(url, stop); n >= 0 {
		url = url[:n]
	}
	start, end = passwordSpan(strings.TrimRight(url, ",}]"))
	return first + start, first + end
}

func isLetterOrDigit(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
}

// valueEnd returns the length of the value that text begins with, or 0 for one
// that only refers to a secret.
func valueEnd(text string) int {
	switch {
	case text == "", reference.MatchString(text):
		return 0
	case text[0] == '"', text[0] == '\'':
		for i := 1; i < len(text); i++ {
			if text[i] == '\\' && text[0] == '"' {
				i++
			} else if text[i] == text[0] {
				return i + 1
			}
		}
		return len(text)
	}
	// A plain value ends at a comment or where its {...} goes on or ends.
	end := len(text)
	for _, stop := range []string{" #", ", ", "}", "]"} {
		if i := strings.Index(text[:end], stop); i >= 0 {
			end = i
		}
	}
	return len(strings.TrimRight(text[:end], " \t"))
}

// insidePassword tells whether a line belongs to the value of a password that
// began on a line before.
func (s *source) insidePassword(line int) bool {
	text := strings.TrimLeft(s.lines[line], " \t")
	if reference.MatchString(text) {
		return false
	}
	indent := indentOf(s.lines[line])
	// A password has no more lines than bytes.
	for i := line - 1; i >= max(0, line-maxSecret) && indent > 0; i-- {
		above := s.lines[i]
		n := indentOf(above)
		if n >= indent || strings.TrimSpace(above) == "" {
			continue
		}
		// Of the keys on the line above, the last one goes on here.
		keys := anyKey.FindAllStringIndex(above, -1)
		starts := s.passwordValues(i, above)
		if len(starts) > 0 && starts[len(starts)-1] == keys[len(keys)-1][1] {
			return true
		}
		indent = n
	}
	return false
}
