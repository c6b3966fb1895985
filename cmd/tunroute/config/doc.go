// Package config reads tunroute.yaml: what the file says, where each part of it
// stands, and everything that is wrong with it.
//
// Start at [Load]; [FromProxies] makes the [Config] of a command line without a
// file. A Config is complete: defaults are filled in, secrets read, names
// resolved to what they name; [Config.Table] compiles its rules. It is not
// changed afterwards and is safe for concurrent use.
//
// The package starts nothing and opens no socket. It reads the config file and
// the files that the config names for secrets, nothing else; whether a server
// can be reached or an interface made is for others to find out.
//
// # Errors
//
// All errors of a file are found in one go, and each has its position, its line
// and, where there is one, the remedy ([Error]). What is allowed but probably
// not meant is a warning ([Config.Warnings]). No message has a password in it:
// a [Secret] does not print, and a source line is shown with its passwords
// struck out.
//
// # Limits
//
// A file has at most 16 MiB, nests at most 32 deep and, with all its aliases
// written out, has at most a million nodes; after a hundred errors the rest is
// not looked for.
//
// # The reference
//
// The doc comments of the structs that a file is decoded into are the text of
// docs/config.md; a test keeps the two equal (go test -update).
package config
