package krb5

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"
)

// The flags of a context (RFC 4121 §4.1.1.1).
const (
	gssMutual   = 2
	gssReplay   = 4
	gssSequence = 8
	gssConf     = 16
	gssInteg    = 32
)

// initiator is the context of a client.
type initiator struct {
	*wrapper // nil until the context is complete
	ticket   *ticket
	auth     types.Authenticator
	sent     bool
	clock    time.Duration // by which our clock is ahead; tests change it
}

func newInitiator(t *ticket) (*initiator, error) {
	if keySize(t.key.KeyType) != len(t.key.KeyValue) || len(t.key.KeyValue) == 0 {
		return nil, fmt.Errorf("the KDC gives %s a key that is not AES: its keytab needs an AES key", t.SName.PrincipalNameString())
	}
	return &initiator{ticket: t}, nil
}

// Peer implements [gssapi.Context].
func (i *initiator) Peer() string {
	return principal(i.ticket.SName, i.ticket.Realm)
}

// Step implements [gssapi.Context].
func (i *initiator) Step(token []byte) (reply []byte, done bool, err error) {
	switch {
	case i.wrapper != nil:
		return nil, false, errors.New("a Kerberos token behind the last")
	case i.sent:
		err = i.finish(token)
		return nil, err == nil, err
	}
	i.sent = true
	reply, err = i.begin()
	return reply, false, err
}

// begin makes the AP-REQ.
func (i *initiator) begin() ([]byte, error) {
	auth, err := types.NewAuthenticator(i.ticket.realm, i.ticket.client)
	if err != nil {
		return nil, err
	}
	auth.CTime = auth.CTime.Add(i.clock)
	auth.SubKey = newKey(i.ticket.key.KeyType)
	// No channel bindings, and what is wanted.
	sum := make([]byte, 24)
	binary.LittleEndian.PutUint32(sum, 16)
	binary.LittleEndian.PutUint32(sum[20:], gssMutual|gssReplay|gssSequence|gssConf|gssInteg)
	auth.Cksum = types.Checksum{CksumType: chksumtype.GSSAPI, Checksum: sum}
	req, err := messages.NewAPReq(i.ticket.Ticket, i.ticket.key, auth)
	if err != nil {
		return nil, err
	}
	types.SetFlag(&req.APOptions, flags.APOptionMutualRequired)
	b, err := req.Marshal()
	i.auth = auth
	return makeToken(apReq, b), err
}

// finish takes the AP-REP.
func (i *initiator) finish(token []byte) error {
	k, message, err := parseToken(token)
	if err != nil {
		return err
	}
	var part messages.EncAPRepPart
	switch k {
	case krbError:
		var e messages.KRBError
		if err := parsing(func() error { return e.Unmarshal(message) }); err != nil {
			return fmt.Errorf("a Kerberos error of the server: %w", err)
		}
		return i.explain(e)
	case apRep:
		err := parsing(func() error {
			var rep messages.APRep
			if err := rep.Unmarshal(message); err != nil {
				return err
			}
			plain, err := crypto.DecryptEncPart(rep.EncPart, i.ticket.key, keyusage.AP_REP_ENCPART)
			if err != nil {
				return err
			}
			return part.Unmarshal(plain)
		})
		if err != nil {
			return fmt.Errorf("the server does not prove that it is %s: %w", i.Peer(), err)
		}
	default:
		return unexpectedKind(k)
	}
	if part.CTime.Unix() != i.auth.CTime.Unix() || part.Cusec != i.auth.Cusec {
		return fmt.Errorf("the server does not prove that it is %s: its answer is to another request", i.Peer())
	}
	key, theirs := part.Subkey, true
	if len(key.KeyValue) == 0 {
		key, theirs = i.auth.SubKey, false
	}
	i.wrapper, err = newWrapper(key, false, theirs, uint64(i.auth.SeqNumber), uint64(uint32(part.SequenceNumber)))
	return err
}

// explain says why the server refuses us.
func (i *initiator) explain(e messages.KRBError) error {
	switch e.ErrorCode {
	case errorcode.KRB_AP_ERR_SKEW:
		return fmt.Errorf("the server: %w", skewed(e, i.clock))
	case errorcode.KRB_AP_ERR_MODIFIED, errorcode.KRB_AP_ERR_NOKEY, errorcode.KRB_AP_ERR_BADKEYVER, errorcode.KRB_AP_ERR_BAD_INTEGRITY, errorcode.KRB_AP_ERR_NOT_US:
		return fmt.Errorf("the server has no key for a ticket of %s (%w): its keytab needs a new one (ktadd); where that was done, run kinit again", i.Peer(), told(e))
	case errorcode.KRB_AP_ERR_TKT_EXPIRED:
		return errors.New("the server says that our ticket has expired: run kinit, and see that both clocks are right")
	}
	return fmt.Errorf("the server: %w", told(e))
}
