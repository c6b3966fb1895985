package engine

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/config"
)

// TestRunPageHasWhatIsFixed: docs/run.md lists what a reload cannot change, and nothing
// else.
func TestRunPageHasWhatIsFixed(t *testing.T) {
	want := []string{"admin", "dns.key", "log.format", "log.to"}
	for _, p := range fixedParts {
		if p.name != "dns" {
			want = append(want, p.name)
		}
	}
	// Of dns it is what fixed leaves as it was.
	var d config.DNS
	fields := reflect.ValueOf(&d).Elem()
	for i := range fields.NumField() {
		switch f := fields.Field(i); {
		case !f.CanSet():
		case f.Kind() == reflect.Slice:
			f.Set(reflect.MakeSlice(f.Type(), 1, 1))
		case f.CanInt():
			f.SetInt(1)
		case f.CanUint():
			f.SetUint(1)
		case f.Kind() == reflect.Bool:
			f.SetBool(true)
		}
	}
	left := reflect.ValueOf(fixed(d))
	for i := range fields.NumField() {
		key, _, _ := strings.Cut(fields.Type().Field(i).Tag.Get("yaml"), ",")
		if key != "" && key != "-" && key != "key" && (!left.Field(i).IsZero() || fields.Field(i).IsZero()) {
			want = append(want, "dns."+key)
		}
	}
	slices.Sort(want)

	text, err := os.ReadFile("../docs/run.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## Reload\n")
	section, _, _ = strings.Cut(section, "\n## ")
	_, list, _ := strings.Cut(section, "only a new start can change:")
	list, _, _ = strings.Cut(list, ".\n")
	var got []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(list, -1) {
		got = append(got, m[1])
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("docs/run.md lists\n%q\nand a reload cannot change\n%q", got, want)
	}
}
