package config

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkParse reads what is large for a config: one rule with many names, and
// many rules, none of which shadows another.
func BenchmarkParse(b *testing.B) {
	var names, rules strings.Builder
	names.WriteString("rules:\n  - via: reject\n    to:\n")
	for i := range 100_000 {
		fmt.Fprintf(&names, "      - .d%d.example.org\n", i)
	}
	rules.WriteString("rules:\n")
	for i := range 3000 {
		fmt.Fprintf(&rules, "  - {to: [.d%d.example.org, 10.%d.%d.0/24], port: 443, via: direct}\n", i, i/256, i%256)
	}
	for name, text := range map[string]string{"names=100000": names.String(), "rules=3000": rules.String()} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := Parse("tunroute.yaml", []byte(text)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
