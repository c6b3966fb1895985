package socks

import (
	"errors"
	"fmt"
)

// Errors of the negotiation.
var (
	// ErrProtocol says that the other end does not speak the protocol: a
	// wrong version, a method that was not offered, an address type that
	// does not exist. It is wrapped with what was wrong.
	ErrProtocol = errors.New("not the SOCKS protocol")
	// ErrNoMethod says that a SOCKS5 server takes none of the methods that
	// it was offered (it answered FF): it wants other credentials, or some.
	ErrNoMethod = errors.New("the server takes none of the authentication methods offered")
	// ErrAuth says that a SOCKS5 server refused user and password. It is
	// wrapped with the status.
	ErrAuth = errors.New("user or password refused")
)

// ReplyError is the REP field of a SOCKS5 reply (RFC 1928 §6). As an error that
// a Read function of a server returns, it is what to answer.
type ReplyError byte

// The replies of RFC 1928, and of tor's socks-extensions for onion services.
const (
	ReplySucceeded       ReplyError = 0 // no error; AppendReply takes it
	ReplyGeneral         ReplyError = 1
	ReplyRuleset         ReplyError = 2
	ReplyNetUnreachable  ReplyError = 3
	ReplyHostUnreachable ReplyError = 4
	ReplyRefused         ReplyError = 5
	ReplyTTL             ReplyError = 6
	ReplyCommand         ReplyError = 7
	ReplyAddressType     ReplyError = 8

	ReplyOnionNotFound          ReplyError = 0xF0
	ReplyOnionInvalidDescriptor ReplyError = 0xF1
	ReplyOnionIntroFailed       ReplyError = 0xF2
	ReplyOnionRendezvousFailed  ReplyError = 0xF3
	ReplyOnionNoAuth            ReplyError = 0xF4
	ReplyOnionWrongAuth         ReplyError = 0xF5
	ReplyOnionBadAddress        ReplyError = 0xF6
	ReplyOnionIntroTimeout      ReplyError = 0xF7
)

// Error returns, for example, "connection refused (reply 5)".
func (e ReplyError) Error() string {
	if e >= 0xF0 {
		return fmt.Sprintf("%s (reply %02X)", e.text(), byte(e))
	}
	return fmt.Sprintf("%s (reply %d)", e.text(), byte(e))
}

func (e ReplyError) text() string {
	switch e {
	case ReplySucceeded:
		return "succeeded"
	case ReplyGeneral:
		return "general failure"
	case ReplyRuleset:
		return "not allowed by the server's rules"
	case ReplyNetUnreachable:
		return "network unreachable"
	case ReplyHostUnreachable:
		return "host unreachable"
	case ReplyRefused:
		return "connection refused"
	case ReplyTTL:
		return "TTL expired"
	case ReplyCommand:
		return "command not supported"
	case ReplyAddressType:
		return "address type not supported"
	case ReplyOnionNotFound:
		return "onion service descriptor not found"
	case ReplyOnionInvalidDescriptor:
		return "onion service descriptor invalid"
	case ReplyOnionIntroFailed:
		return "onion service introduction failed"
	case ReplyOnionRendezvousFailed:
		return "onion service rendezvous failed"
	case ReplyOnionNoAuth:
		return "onion service wants client authorization"
	case ReplyOnionWrongAuth:
		return "onion service refused the client authorization"
	case ReplyOnionBadAddress:
		return "onion address invalid"
	case ReplyOnionIntroTimeout:
		return "onion service introduction timed out"
	}
	return "unknown failure"
}

// ReplyError4 is the CD field of a SOCKS4 reply.
type ReplyError4 byte

// The replies of SOCKS4. It has one for every reason that lies beyond the
// server, Reply4Rejected.
const (
	Reply4Granted      ReplyError4 = 90 // no error; AppendReply4 takes it
	Reply4Rejected     ReplyError4 = 91
	Reply4NoIdent      ReplyError4 = 92
	Reply4UserMismatch ReplyError4 = 93
)

// Error returns, for example, "rejected or failed (SOCKS4 reply 91)".
func (e ReplyError4) Error() string {
	text := "unknown failure"
	switch e {
	case Reply4Granted:
		text = "granted"
	case Reply4Rejected:
		text = "rejected or failed"
	case Reply4NoIdent:
		text = "the server cannot reach identd on the client"
	case Reply4UserMismatch:
		text = "identd names another user"
	}
	return fmt.Sprintf("%s (SOCKS4 reply %d)", text, byte(e))
}
