package config

import (
	"fmt"
	"slices"
	"strings"
)

// didYouMean returns the hint for a word that should have been one of known:
// the nearest of them, or all if they are few, or "".
func didYouMean(word string, known []string) string {
	if near := closest(word, known); near != "" {
		return fmt.Sprintf("did you mean %q?", near)
	}
	if n := len(known); 0 < n && n <= 8 { // more is a list, not a hint
		return "it can be " + oneOf(known)
	}
	return ""
}

// oneOf writes "a, b or c".
func oneOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// closest returns the entry of known that word is most likely a slip of, or "".
func closest(word string, known []string) string {
	word = strings.ToLower(word)
	// A third of the letters wrong is a slip; more is another word.
	best, least := "", 2*min(len(word)/3, 8)+2
	for _, k := range known {
		// Twice the distance, so that of two that are equally near the one
		// that begins like the word is nearer: people slip in the middle.
		d := 2 * distance(word, strings.ToLower(k))
		if word != "" && k != "" && word[0] != strings.ToLower(k)[0] {
			d++
		} else if d > 0 && strings.HasPrefix(strings.ToLower(k), word) {
			d--
		}
		if d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is how many letters to add, drop, change or swap with their
// neighbour (Damerau-Levenshtein, in the form of optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b)) // nobody guesses at that length
	}
	var before, last, row []int
	for j := range len(b) + 1 {
		last = append(last, j)
	}
	for i := 1; i <= len(a); i++ {
		row = append(slices.Grow([]int(nil), len(b)+1), i)
		for j := 1; j <= len(b); j++ {
			change := last[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			d := min(change, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, before[j-2]+1)
			}
			row = append(row, d)
		}
		before, last = last, row
	}
	return last[len(b)]
}
