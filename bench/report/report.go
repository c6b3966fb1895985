package report

import (
	"encoding/json"
	"io"
	"math"
	"slices"
	"time"
)

// Report is the result of a run of the rig.
type Report struct {
	When     time.Time
	Command  []string // of the rig
	Machine  Machine
	Topology string
	Rounds   int
	Seed     uint64 // of the bytes that were sent
	Routers  []Router
	Results  []*Result // in the order of the table
}

// Machine is where it was measured.
type Machine struct {
	Kernel, CPU, Go string
	Cores           int
	MemoryBytes     int64
	Congestion      string // control of TCP
}

// Router is what was measured.
type Router struct {
	Name    string
	MTU     int    `json:",omitempty"` // 0 where there is no TUN, or its own default
	Command string `json:",omitempty"`
	Version string `json:",omitempty"` // what the program says of itself
	Binary  string `json:",omitempty"` // size and SHA-256 of the file
	// Files are its configuration, lines by name.
	Files   map[string][]string `json:",omitempty"`
	Skipped string              `json:",omitempty"` // why it was not measured
}

// Result is what was found for a router in a cell.
type Result struct {
	Cell     string
	Router   string
	Figures  []*Figure
	Failures []string `json:",omitempty"` // rounds without figures
}

// Figure is a quantity, with a value for each round that has succeeded.
type Figure struct {
	Name   string
	Unit   string
	Values []float64
}

// Result returns the result of a cell and router, a new one behind the others
// where there is none yet.
func (r *Report) Result(cell, router string) *Result {
	for _, res := range r.Results {
		if res.Cell == cell && res.Router == router {
			return res
		}
	}
	res := &Result{Cell: cell, Router: router}
	r.Results = append(r.Results, res)
	return res
}

// Add adds the value of a round.
func (r *Result) Add(name, unit string, value float64) {
	for _, f := range r.Figures {
		if f.Name == name {
			f.Values = append(f.Values, value)
			return
		}
	}
	r.Figures = append(r.Figures, &Figure{name, unit, []float64{value}})
}

// Figure returns the figure of a name, nil where there is none.
func (r *Result) Figure(name string) *Figure {
	for _, f := range r.Figures {
		if f.Name == name {
			return f
		}
	}
	return nil
}

// Median returns the median, of an even number of values the mean of the two in
// the middle; of none, NaN.
func (f *Figure) Median() float64 {
	v := slices.Sorted(slices.Values(f.Values))
	n := len(v)
	if n == 0 {
		return math.NaN()
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

// Min returns the least value.
func (f *Figure) Min() float64 { return slices.Min(f.Values) }

// Max returns the greatest value.
func (f *Figure) Max() float64 { return slices.Max(f.Values) }

// Jain returns the fairness index of R. Jain: 1 where all values are the same,
// and 1/n where all but one are 0. Of nothing at all it is 0.
func Jain(values []float64) float64 {
	var sum, squares float64
	for _, v := range values {
		sum += v
		squares += v * v
	}
	if squares == 0 {
		return 0
	}
	return sum * sum / (float64(len(values)) * squares)
}

// WriteJSON writes the report with all its values.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "\t")
	return e.Encode(r)
}

// cells returns the names of the cells in the order of the results.
func (r *Report) cells() []string {
	var names []string
	for _, res := range r.Results {
		if !slices.Contains(names, res.Cell) {
			names = append(names, res.Cell)
		}
	}
	return names
}

// of returns the results of a cell, in the order of the routers.
func (r *Report) of(cell string) []*Result {
	var all []*Result
	for _, router := range r.Routers {
		for _, res := range r.Results {
			if res.Cell == cell && res.Router == router.Name {
				all = append(all, res)
			}
		}
	}
	return all
}

// columns returns the figures that results of a cell have, in the order of the
// result that has most.
func columns(results []*Result) []*Figure {
	var all []*Figure
	for _, res := range slices.SortedStableFunc(slices.Values(results), func(a, b *Result) int {
		return len(b.Figures) - len(a.Figures)
	}) {
		for _, f := range res.Figures {
			if !slices.ContainsFunc(all, func(g *Figure) bool { return g.Name == f.Name }) {
				all = append(all, f)
			}
		}
	}
	return all
}
