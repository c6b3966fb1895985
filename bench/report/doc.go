// Package report is what the rig has found: medians with their spread, as a
// table, JSON, Markdown and a chart.
//
// Start at [Report], which is also what JSON files have in them. The package
// measures nothing.
package report
