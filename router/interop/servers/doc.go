// Package servers runs servers that this project did not write, for tests: for SOCKS
// dante, microsocks, openssh (its ssh -D) and shadowsocks (its ss-local), for HTTP's
// CONNECT squid and tinyproxy, and stunnel, which puts TLS in front of any of them. What
// they lead to are vsftpd, for FTP, and caddy, for HTTP/3.
//
// Start at [Start]. Each server is a shell script of this directory that answers
// start, stop and status, as rclone's test servers do; server.sh says which
// environment they read, and they can be run by hand:
//
//	SERVER_DIR=/tmp/dante ./dante start
//	curl --socks5 "$(SERVER_DIR=/tmp/dante ./dante status)" http://example.org/
//	SERVER_DIR=/tmp/dante ./dante stop
//
// They need Linux, and neither root nor any network but the loopback interface.
// They run in namespaces too; only openssh not as the root of a user namespace
// that has no other user, because sshd gives itself up to one.
//
// The package tests nothing but itself; what goes through the servers is up to
// the test that starts them.
package servers
