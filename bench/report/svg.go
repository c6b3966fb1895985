package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// Measures of the chart, in pixels.
const (
	chartWidth = 900
	labelWidth = 190
	valueWidth = 190
	barHeight  = 16
	lineHeight = 22
	headHeight = 34
	margin     = 16
)

// WriteSVG writes a bar chart: for each cell the first figure of each router,
// with a line from the least to the greatest value.
func (r *Report) WriteSVG(w io.Writer) error {
	var b strings.Builder
	y := margin
	for _, cell := range r.cells() {
		y = r.chart(&b, cell, y)
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, chartWidth, y+margin, chartWidth, y+margin, b.String())
	return err
}

// chart draws a cell from y on, and returns where the next begins.
func (r *Report) chart(b *strings.Builder, cell string, y int) int {
	results := r.of(cell)
	cols := columns(results)
	if len(cols) == 0 {
		return y
	}
	first := cols[0]
	var top float64
	for _, res := range results {
		if f := res.Figure(first.Name); f != nil {
			top = max(top, f.Max())
		}
	}
	title := cell + ": " + first.Name
	if first.Unit != "" {
		title += ", " + first.Unit
	}
	fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">%s</text>\n", margin, y+18, escape(title))
	y += headHeight
	const space = chartWidth - 2*margin - labelWidth - valueWidth
	for _, res := range results {
		middle := y + barHeight/2
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", margin+labelWidth-8, middle+5, escape(res.Router))
		f := res.Figure(first.Name)
		left, end := float64(margin+labelWidth), float64(margin+labelWidth)
		if f != nil && top > 0 {
			x := func(v float64) float64 { return left + v/top*space }
			end = x(f.Max())
			fmt.Fprintf(b, "<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"#4a7ab5\"/>\n", left, y, x(f.Median())-left, barHeight)
			fmt.Fprintf(b, "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"black\"/>\n", x(f.Min()), middle, end, middle)
		}
		value := f.String()
		if f == nil && len(res.Failures) > 0 {
			value = "failed"
		}
		fmt.Fprintf(b, "<text x=\"%.1f\" y=\"%d\">%s</text>\n", end+8, middle+5, escape(value))
		y += lineHeight
	}
	return y + lineHeight/2
}

func escape(s string) string {
	var b strings.Builder
	xml.EscapeText(&b, []byte(s)) // never fails: nor does the builder
	return b.String()
}
