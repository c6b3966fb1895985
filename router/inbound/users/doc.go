// Package users knows who may come in: from a file of users, or by asking a program.
//
// Start at [Open] and [NewGuard]. A [File] has a line for each user; [Set] and [Hash]
// make such lines. A [Guard] stands before a File or a [Command]: it remembers for a
// short time who was right, holds up who guesses, and bounds how much is verified at
// once, since a good hash costs a good deal of memory and time.
//
// It opens no connection and knows nothing of SOCKS.
//
// # The file
//
// A line is USER:HASH, or USER:HASH:GROUP,GROUP...; empty lines and those that begin
// with "#" do not count. A hash is argon2id's or bcrypt's, in the form that other
// programs have as well ("$argon2id$v=19$m=..." and "$2y$..."), so that a file made by
// `htpasswd -B` does. A file that changes is read again; one that cannot be read or
// has an error changes nothing.
package users
