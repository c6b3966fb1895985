package krb5

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/messages"
)

// parsing calls f, which parses by the library what came from elsewhere. The library's
// parsers check less than they could: what makes them panic is a malformed message.
func parsing(f func() error) (err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("malformed")
		}
	}()
	return f()
}

// explain says what a KDC's error means, for a client who, and what to do. Where it is
// the request that was for somebody who is not known, or with a key that is wrong, that is
// the format.
func explain(err error, who, format string, args ...any) error {
	var e *kdcError
	if !errors.As(err, &e) {
		return err
	}
	switch e.ErrorCode {
	case errorcode.KDC_ERR_S_PRINCIPAL_UNKNOWN, errorcode.KDC_ERR_PREAUTH_FAILED, errorcode.KRB_AP_ERR_BAD_INTEGRITY:
		return fmt.Errorf(format, args...)
	case errorcode.KDC_ERR_C_PRINCIPAL_UNKNOWN:
		return fmt.Errorf("the KDC %s knows no %s: is the principal right?", e.kdc, who)
	case errorcode.KRB_AP_ERR_SKEW:
		return fmt.Errorf("the KDC %s: %w", e.kdc, skewed(e.KRBError, 0))
	case errorcode.KRB_AP_ERR_TKT_EXPIRED, errorcode.KDC_ERR_NEVER_VALID, errorcode.KRB_AP_ERR_TKT_NYV:
		return fmt.Errorf("the KDC %s says that the ticket of %s is not valid now: run kinit, and see that both clocks are right", e.kdc, who)
	case errorcode.KDC_ERR_CLIENT_REVOKED, errorcode.KDC_ERR_KEY_EXPIRED, errorcode.KDC_ERR_NAME_EXP:
		return fmt.Errorf("the KDC %s says that %s is locked or has expired: ask who runs it", e.kdc, who)
	case errorcode.KDC_ERR_ETYPE_NOSUPP:
		return fmt.Errorf("the KDC %s has no AES keys for this: change the password or the key, and DES and RC4 go", e.kdc)
	}
	return fmt.Errorf("the KDC %s: %w", e.kdc, told(e.KRBError))
}

// told is an error of the other end: KRB_AP_ERR_SKEW Clock skew too great.
func told(e messages.KRBError) error {
	text := errorcode.Lookup(e.ErrorCode)
	if number, rest, ok := strings.Cut(text, ") "); ok && strings.HasPrefix(number, "(") {
		text = rest
	}
	if e.EText != "" {
		text += " (" + e.EText + ")"
	}
	return errors.New(text)
}

// skewed says by how much the clocks differ, ours being ahead by clock.
func skewed(e messages.KRBError, clock time.Duration) error {
	theirs := e.STime.Add(time.Duration(e.Susec) * time.Microsecond)
	d := (time.Until(theirs) - clock).Round(time.Second)
	way := "behind"
	if d < 0 {
		d, way = -d, "ahead of"
	}
	return fmt.Errorf("our clock is %v %s its clock, and Kerberos allows %v: set them right (NTP)", d, way, maxSkew)
}

// maxSkew is by how much the clocks of two ends may differ: what MIT's and Windows have
// unless they are told otherwise.
const maxSkew = 5 * time.Minute
