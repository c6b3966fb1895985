// Package netns makes a network namespace with nothing in it but a TUN, and runs
// a command there. It is the part of `tunroute exec` that the kernel has to be
// asked for, and works on Linux only; elsewhere everything returns an error that
// Is errors.ErrUnsupported.
//
// Start at [Start], which the command calls, at [Enter] and [Setup], which the
// process inside calls, and at [Conn], over which the TUN is handed to whoever
// reads it. [Diagnose] says in one line what on this machine forbids all this.
//
// The package runs no network stack and does not know what is done with the
// packets.
//
// # Theory of operation
//
// There are three processes of the same executable, and the command CMD:
//
//	P ── parent, in the foreground ──────────── Start, Wait, Status.Exit
//	│    ends with the status of CMD, at once
//	├── R ── router, in a session of its own ── RecvFD, SendReady, Done
//	│        reads the TUN in the namespace of the host,
//	│        ends with C
//	└── C ── child, in new namespaces ───────── Enter, Setup, SendFD, AwaitReady, Run
//	    │    ends with the last process that CMD has left
//	    └── CMD
//
// P makes a [Pair] of sockets and gives one end to R and the other to C. C sets
// its namespaces up, with a TUN, sends the open TUN to R, waits until R reads
// it, and starts CMD. Flows leave by sockets of R, which is in the namespace of
// the host: they cannot come back into the TUN.
//
// How long each lives. P ends as soon as CMD has: a shell that waits for it
// goes on. If CMD has left nothing running, which is the rule, C and R end then
// too, and P can wait for both. What CMD has left running becomes a child of C, the subreaper; while
// there is any, C holds its end of the socket, and R reads the TUN. When C ends
// R sees the end of the socket and ends too. If R dies, the TUN goes with it,
// and what is inside has no way out; if C is killed, R ends. So there is no
// state in which a process of the namespace gets past R.
//
// What passes through. CMD has the standard files of P and every other file that
// P was started with, its directory, its environment, its limits, and the
// signals that were ignored (SIGHUP under nohup). C gives all files up when CMD
// has started: whoever waits for the end of a pipe waits for CMD and not for C.
// P, C and CMD share a process group: what the terminal sends reaches CMD, and
// what is sent to P alone is passed on. A stop of the whole group (^Z) stops P
// and CMD; a command that stops itself alone is not seen by P.
//
// Who CMD is. An unprivileged user gets a user namespace in which only that user
// and group exist, and CMD has no capabilities in it. The bounding set is left
// alone: a file with capabilities, such as ping of some systems, could not be
// executed at all otherwise, and what it gains holds in this namespace only.
// Root gets no user namespace and stays root, unless it may not make the others
// without.
//
// Names. /etc/resolv.conf and /etc/nsswitch.conf are covered by files of our
// own, and the sockets of nscd and systemd-resolved by empty directories:
// sockets with a path know no network namespaces, and a name asked there is
// asked on the host. The covers are mounts in the namespace; on the host nothing
// is written. A program that asks for names in another way than these (D-Bus) is
// not stopped. If the host replaces a covered file that is no symbolic link, the
// kernel takes the cover off; queries of port 53 enter the TUN all the same.
package netns
