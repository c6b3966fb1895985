// Package ui is how tunroute speaks to people: its log.
//
// What a command was asked for goes to standard output, everything else to
// standard error. A message begins in lower case, says what happened and where,
// and what to do where something can be done. Where else a log can be kept is in
// package sink.
package ui
