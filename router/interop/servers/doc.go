// Package servers runs SOCKS servers that this project did not write, for tests:
// dante, microsocks and openssh (its ssh -D).
//
// Start at [Start]. Each server is a shell script of this directory that answers
// start, stop and status, as rclone's test servers do; server.sh says which
// environment they read, and they can be run by hand:
//
//	SERVER_DIR=/tmp/dante ./dante start
//	curl --socks5 "$(SERVER_DIR=/tmp/dante ./dante status)" http://example.org/
//	SERVER_DIR=/tmp/dante ./dante stop
//
// They need Linux, no root and no network but the loopback interface. The
// package tests nothing; what goes through the servers is the test's.
package servers
