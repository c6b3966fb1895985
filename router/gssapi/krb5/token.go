package krb5

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/jcmturner/gokrb5/v8/asn1tools"
)

// A token of the context (RFC 4121 §4.1): [APPLICATION 0] with the mechanism, the kind of
// the message and the message.
type kind [2]byte

var (
	apReq    = kind{1, 0}
	apRep    = kind{2, 0}
	krbError = kind{3, 0}
)

// mechanism is the OID 1.2.840.113554.1.2.2 in DER (RFC 1964 §1).
var mechanism = []byte{0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x12, 0x01, 0x02, 0x02}

// spnego is the OID 1.3.6.1.5.5.2 in DER.
var spnego = []byte{0x06, 0x06, 0x2B, 0x06, 0x01, 0x05, 0x05, 0x02}

func makeToken(k kind, message []byte) []byte {
	b := append(bytes.Clone(mechanism), k[:]...)
	return asn1tools.AddASNAppTag(append(b, message...), 0)
}

func parseToken(b []byte) (k kind, message []byte, err error) {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(b, &outer)
	if err != nil || len(rest) > 0 || outer.Class != asn1.ClassApplication || outer.Tag != 0 || !outer.IsCompound {
		return k, nil, errors.New("not a token of GSS-API")
	}
	body, ok := bytes.CutPrefix(outer.Bytes, mechanism)
	switch {
	case bytes.HasPrefix(outer.Bytes, spnego):
		return k, nil, errors.New("a token of SPNEGO, and Kerberos itself is spoken here")
	case !ok:
		return k, nil, errors.New("a token of another mechanism than Kerberos")
	case len(body) < len(k):
		return k, nil, errShort
	}
	return kind(body[:len(k)]), body[len(k):], nil
}

// unexpectedKind is the error of a token of the wrong kind.
func unexpectedKind(k kind) error {
	return fmt.Errorf("a Kerberos token of kind %02x %02x is not due here", k[0], k[1])
}
