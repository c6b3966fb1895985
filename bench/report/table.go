package report

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// WriteTable writes a table for each cell: a line for each router, and medians
// with the least and the greatest value in parentheses.
func (r *Report) WriteTable(w io.Writer) error {
	var b strings.Builder
	for _, cell := range r.cells() {
		head, rows := r.table(cell)
		aligned(&b, append([][]string{head}, rows...))
		b.WriteByte('\n')
	}
	r.remarks(&b)
	_, err := io.WriteString(w, b.String())
	return err
}

// table returns the head and the rows of a cell.
func (r *Report) table(cell string) (head []string, rows [][]string) {
	results := r.of(cell)
	cols := columns(results)
	head = []string{cell}
	for _, f := range cols {
		name := f.Name
		if f.Unit != "" {
			name += " " + f.Unit
		}
		head = append(head, name)
	}
	for _, res := range results {
		row := []string{res.Router}
		for _, f := range cols {
			row = append(row, res.Figure(f.Name).String())
		}
		if n := len(res.Failures); n > 0 {
			row = append(row, fmt.Sprintf("%d failed", n))
		}
		rows = append(rows, row)
	}
	return head, rows
}

// remarks tells what is missing in the tables, and why.
func (r *Report) remarks(b *strings.Builder) {
	for _, router := range r.Routers {
		if router.Skipped != "" {
			fmt.Fprintf(b, "%s was not measured: %s\n", router.Name, router.Skipped)
		}
	}
	for _, res := range r.Results {
		for _, f := range res.Failures {
			fmt.Fprintf(b, "%s, %s failed: %s\n", res.Cell, res.Router, strings.ReplaceAll(f, "\n", "\n    "))
		}
	}
}

// String returns the median and, of several values, the least and the greatest;
// a dash where there is none.
func (f *Figure) String() string {
	if f == nil || len(f.Values) == 0 {
		return "-"
	}
	if len(f.Values) == 1 || f.Min() == f.Max() {
		return number(f.Median())
	}
	return number(f.Median()) + " (" + number(f.Min()) + "–" + number(f.Max()) + ")"
}

// number returns a number with three digits that count, or all of those before
// the point.
func number(v float64) string {
	if math.Abs(v) >= 1000 {
		return thousands(strconv.FormatFloat(v, 'f', 0, 64))
	}
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	v, _ = strconv.ParseFloat(strconv.FormatFloat(v, 'g', 3, 64), 64) // 0.9996 has as many digits as 1
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return strconv.FormatFloat(v, 'f', min(digits, 6), 64)
}

// thousands puts commas into a whole number of more than four digits.
func thousands(s string) string {
	if len(strings.TrimPrefix(s, "-")) <= 4 {
		return s
	}
	for i := len(s) - 3; i > len(s)-len(strings.TrimPrefix(s, "-")); i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// aligned writes rows with their columns below each other.
func aligned(b *strings.Builder, rows [][]string) {
	var widths []int
	for _, row := range rows {
		for i, s := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, s := range row {
			line.WriteString(s)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " "))
		b.WriteByte('\n')
	}
}
