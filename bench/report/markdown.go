package report

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// WriteMarkdown writes a page: when, where and how it was measured, and a table
// for each cell.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s, %s\n\n", r.When.Format("2006-01-02"), r.Topology)
	fmt.Fprintf(&b, "Linux %s, %d cores (%s), %.1f GiB of memory, %s, TCP congestion control: %s.\n\n",
		r.Machine.Kernel, r.Machine.Cores, r.Machine.CPU, float64(r.Machine.MemoryBytes)/(1<<30), r.Machine.Go, r.Machine.Congestion)
	fmt.Fprintf(&b, "```text\n%s\n```\n\n", quoted(r.Command))
	fmt.Fprintf(&b, "Medians, with the least and the greatest value, of %d rounds. All bytes were compared. "+
		"[How it is measured](../README.md).\n\n", r.Rounds)
	b.WriteString("| router | MTU | version | command | program |\n|---|---|---|---|---|\n")
	for _, router := range r.Routers {
		mtu := "-"
		if router.MTU != 0 {
			mtu = fmt.Sprint(router.MTU)
		}
		command := "-"
		if router.Command != "" {
			command = "`" + router.Command + "`"
		}
		row(&b, router.Name, mtu, router.Version, command, router.Binary)
	}
	for _, router := range r.Routers {
		for _, name := range slices.Sorted(maps.Keys(router.Files)) {
			fmt.Fprintf(&b, "\n%s, %s:\n\n```text\n%s\n```\n", router.Name, name, strings.Join(router.Files[name], "\n"))
		}
	}
	for _, cell := range r.cells() {
		head, rows := r.table(cell)
		b.WriteByte('\n')
		row(&b, head...)
		b.WriteString(strings.Repeat("|---", len(head)) + "|\n")
		for _, cells := range rows {
			for len(cells) < len(head) {
				cells = append(cells, "")
			}
			row(&b, cells...)
		}
	}
	var remarks strings.Builder
	r.remarks(&remarks)
	if remarks.Len() > 0 {
		fmt.Fprintf(&b, "\n```text\n%s```\n", remarks.String())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func row(b *strings.Builder, cells ...string) {
	for _, s := range cells {
		fmt.Fprintf(b, "| %s ", strings.ReplaceAll(strings.ReplaceAll(s, "|", `\|`), "\n", " "))
	}
	b.WriteString("|\n")
}

// quoted returns a command as a shell takes it.
func quoted(args []string) string {
	var words []string
	for _, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[]{}()<>|&;#~!") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		words = append(words, a)
	}
	return strings.Join(words, " ")
}
