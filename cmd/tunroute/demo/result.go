package demo

import (
	"fmt"
	"strings"
)

// result is what has been seen for a requirement.
type result struct {
	number int
	what   string
	seen   []string // as it should be
	wrong  []string // as it should not
}

// check writes down something that has been seen, and whether it should be.
func (r *result) check(ok bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if ok {
		r.seen = append(r.seen, text)
	} else {
		r.wrong = append(r.wrong, text)
	}
}

// passed says that everything was seen that has to be, and nothing else.
func (r *result) passed() bool { return len(r.wrong) == 0 && len(r.seen) > 0 }

// String is the line of the table. What is wrong comes first.
func (r *result) String() string {
	verdict := "pass"
	if !r.passed() {
		verdict = "FAIL"
	}
	return fmt.Sprintf("%d %s  %s: %s", r.number, verdict, r.what, strings.Join(append(r.wrong, r.seen...), "; "))
}
