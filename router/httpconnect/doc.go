// Package httpconnect is the wire format of HTTP's CONNECT, as the client of a
// proxy and the proxy have it (RFC 9110 §9.3.6, RFC 9112 §3.2.3).
//
// Start at [AppendRequest] and [ReadReply] for the client, at [ReadRequest],
// [AppendConnected] and [AppendRefusal] for the proxy. Of HTTP it has the request,
// Basic credentials (RFC 7617) and the head of the reply, and no more: no bodies but
// the sentence of a refusal, no redirects, no caches, and none of what package net/http
// knows besides.
//
// The package opens no connection and sets no deadline; what a status means for the
// client of a flow, and with which one a flow is refused, is its caller's to say. It is a leaf: it imports the
// standard library only.
package httpconnect
