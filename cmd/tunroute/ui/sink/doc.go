// Package sink has the places that a log can be kept in, besides standard error: a
// file that others rotate, a syslog server, and systemd's journal.
//
// Start at [NewFile], [NewSyslog] and [NewJournal]. A [File] is an io.Writer; the other
// two are slog handlers, because what they send has the level of a message outside of its
// text, and the journal its attributes too.
//
// # Theory of operation
//
// Whoever logs does not wait for a receiver. A message for a syslog server or the journal
// is made at once, into a queue of a bounded size, from which one goroutine
// ([Sender.Run]) sends it. A receiver that is slow fills the queue; one that has gone
// is looked for again, at first soon and then every few seconds. What finds the queue
// full is lost and counted; the receiver is told how many messages when there is room
// again, and whoever reads standard error when it begins. When Run ends, what waits is
// sent for at most a second.
//
// A file is written by who logs, and is looked at once a second: if it is not what its
// path names any more, it is opened anew, as it is by [File.Reopen].
//
// The package knows no config and decides nothing about what is logged.
package sink
