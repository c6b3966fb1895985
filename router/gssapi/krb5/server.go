package krb5

import (
	"cmp"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana"
	"github.com/jcmturner/gokrb5/v8/iana/asnAppTag"
	"github.com/jcmturner/gokrb5/v8/iana/chksumtype"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/msgtype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"tunroute/router/gssapi"
)

// ServerOptions say who we are to clients.
type ServerOptions struct {
	// Keytab is the file with our keys: else KRB5_KTNAME, else /etc/krb5.keytab. FILE:
	// may stand before it.
	Keytab string
	// Service is whose tickets are taken: SERVICE for one of any host that the keytab
	// has, or SERVICE/HOST; any key of the keytab if it is empty.
	Service string
}

// Server is the end that accepts. It is safe for concurrent use.
type Server struct {
	file    string
	service types.PrincipalName // none if it is empty

	mu     sync.Mutex // guards what follows
	source stamp
	keys   *keytab.Keytab

	replays replays
}

// NewServer returns a Server. It reads the keytab, to say what is wrong with it.
func NewServer(o ServerOptions) (*Server, error) {
	file, err := fileName(cmp.Or(o.Keytab, os.Getenv("KRB5_KTNAME"), "/etc/krb5.keytab"), "")
	if err != nil {
		return nil, err
	}
	s := &Server{file: file}
	if o.Service != "" {
		s.service, _ = types.ParseSPNString(o.Service)
	}
	kt, err := s.keytab()
	if err != nil {
		return nil, err
	}
	found := false
	for _, e := range kt.Entries {
		found = found || s.serves(e.Principal.Components) && keySize(e.Key.KeyType) > 0
	}
	if !found {
		return nil, fmt.Errorf("the Kerberos keytab %s has no AES key of %s: add one by kadmin: ktadd -k %[1]s %[2]s/HOST", file, cmp.Or(o.Service, "anybody"))
	}
	return s, nil
}

// serves says whether we are the service of a name.
func (s *Server) serves(name []string) bool {
	return len(name) > 0 && len(s.service.NameString) <= len(name) &&
		slices.Equal(s.service.NameString, name[:len(s.service.NameString)])
}

// keytab returns the keys as the file has them now.
func (s *Server) keytab() (*keytab.Keytab, error) {
	source, err := stampOf(s.file)
	if err != nil {
		return nil, fmt.Errorf("the Kerberos keytab: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if source != s.source {
		kt, err := loadKeytab(s.file)
		if err != nil {
			return nil, err
		}
		s.source, s.keys = source, kt
	}
	return s.keys, nil
}

// Accept returns a context with a client.
func (s *Server) Accept() gssapi.Context { return &acceptor{server: s} }

// acceptor is the context of a server.
type acceptor struct {
	*wrapper // nil until the context is complete
	server   *Server
	peer     string
}

// Peer implements [gssapi.Context]: NAME@REALM.
func (a *acceptor) Peer() string { return a.peer }

// principal returns a name in the form NAME/NAME@REALM. What means something in it is
// quoted where it is part of a name (RFC 1964 §2.1.3).
func principal(name types.PrincipalName, realm string) string {
	quote := strings.NewReplacer(`\`, `\\`, "/", `\/`, "@", `\@`, "\n", `\n`, "\t", `\t`, "\b", `\b`, "\x00", `\0`)
	var parts []string
	for _, n := range name.NameString {
		parts = append(parts, quote.Replace(n))
	}
	return strings.Join(parts, "/") + "@" + quote.Replace(realm)
}

// refusal is why a client is refused, and what it is told.
type refusal struct {
	code int32
	error
}

func refuse(code int32, format string, args ...any) error {
	return &refusal{code, fmt.Errorf(format, args...)}
}

// Step implements [gssapi.Context].
func (a *acceptor) Step(token []byte) (reply []byte, done bool, err error) {
	if a.wrapper != nil {
		return nil, false, errors.New("a Kerberos token behind the last")
	}
	var req messages.APReq
	err = parsing(func() error {
		k, message, err := parseToken(token)
		switch {
		case err != nil:
			return err
		case k != apReq:
			return unexpectedKind(k)
		}
		return req.Unmarshal(message)
	})
	if err != nil {
		return nil, false, fmt.Errorf("the client's Kerberos request: %w", err)
	}
	err = parsing(func() error {
		reply, err = a.accept(&req)
		return err
	})
	var r *refusal
	if errors.As(err, &r) {
		e := messages.NewKRBError(req.Ticket.SName, req.Ticket.Realm, r.code, "")
		if b, err := e.Marshal(); err == nil {
			reply = makeToken(krbError, b)
		}
	}
	if err != nil {
		return reply, false, err
	}
	return reply, true, nil
}

// accept looks at an AP-REQ (RFC 4120 §3.2.3) and makes the AP-REP.
func (a *acceptor) accept(req *messages.APReq) ([]byte, error) {
	kt, err := a.server.keytab()
	if err != nil {
		return nil, err
	}
	t := &req.Ticket
	who := principal(t.SName, t.Realm)
	if !a.server.serves(t.SName.NameString) {
		return nil, refuse(errorcode.KRB_AP_ERR_NOT_US, "the client has a ticket for %s, and we are %s", who, a.server.service.PrincipalNameString())
	}
	if keySize(t.EncPart.EType) == 0 {
		return nil, refuse(errorcode.KRB_AP_ERR_NOKEY, "the client's ticket for %s is not encrypted by AES: give the service an AES key (ktadd)", who)
	}
	key, _, err := kt.GetEncryptionKey(t.SName, t.Realm, t.EncPart.KVNO, t.EncPart.EType)
	if err != nil {
		if _, have, err := kt.GetEncryptionKey(t.SName, t.Realm, 0, t.EncPart.EType); err == nil {
			return nil, refuse(errorcode.KRB_AP_ERR_BADKEYVER, "the client's ticket for %s is for key version %d, and %s has %d: get the new key by ktadd; where it is the newer, the client has to run kinit again", who, t.EncPart.KVNO, a.server.file, have)
		}
		return nil, refuse(errorcode.KRB_AP_ERR_NOKEY, "the client has a ticket for %s, and %s has no key of it: add it by ktadd, or name the server to clients as the keytab does", who, a.server.file)
	}
	if err := t.Decrypt(key); err != nil {
		return nil, refuse(errorcode.KRB_AP_ERR_MODIFIED, "the key of %s in %s does not open the client's ticket: get it anew by ktadd", who, a.server.file)
	}
	part := &t.DecryptedEncPart
	client := principal(part.CName, part.CRealm)
	if ok, err := t.Valid(maxSkew); err != nil || !ok {
		return nil, refuse(errorcode.KRB_AP_ERR_TKT_EXPIRED, "the ticket of %s is not valid now: it ends at %s", client, part.EndTime.Local().Format(time.DateTime))
	}
	if err := req.DecryptAuthenticator(part.Key); err != nil {
		return nil, refuse(errorcode.KRB_AP_ERR_BAD_INTEGRITY, "the request of %s is not under the key of its ticket", client)
	}
	auth := &req.Authenticator
	switch {
	case !auth.CName.Equal(part.CName) || auth.CRealm != part.CRealm:
		return nil, refuse(errorcode.KRB_AP_ERR_BADMATCH, "the ticket of %s is used by %s", client, principal(auth.CName, auth.CRealm))
	case part.CRealm != t.Realm && len(part.Transited.Contents) > 0 && !types.IsFlagSet(&part.Flags, flags.TransitedPolicyChecked):
		return nil, refuse(errorcode.KRB_AP_PATH_NOT_ACCEPTED, "%s comes through realms that its KDC has not looked at", client)
	}
	made := auth.CTime.Add(time.Duration(auth.Cusec) * time.Microsecond)
	if d := time.Until(made).Round(time.Second); d.Abs() > maxSkew {
		return nil, refuse(errorcode.KRB_AP_ERR_SKEW, "the clock of %s differs from ours by %v, and Kerberos allows %v: set them right (NTP)", client, d, maxSkew)
	}
	if auth.Cksum.CksumType != chksumtype.GSSAPI || len(auth.Cksum.Checksum) < 24 {
		return nil, refuse(errorcode.KRB_AP_ERR_INAPP_CKSUM, "the request of %s is not one of GSS-API", client)
	}
	if binary.LittleEndian.Uint32(auth.Cksum.Checksum[20:])&gssMutual == 0 {
		return nil, refuse(errorcode.KRB_AP_ERR_METHOD, "%s does not ask for mutual authentication (RFC 1961 §3.2)", client)
	}
	if a.server.replays.seen(req.EncryptedAuthenticator.Cipher) {
		return nil, refuse(errorcode.KRB_AP_ERR_REPEAT, "the request of %s has come before: somebody replays it", client)
	}
	a.peer = client
	return a.answer(auth, part.Key)
}

// answer makes the AP-REP, with a subkey of ours.
func (a *acceptor) answer(auth *types.Authenticator, session types.EncryptionKey) ([]byte, error) {
	enctype := session.KeyType
	if len(auth.SubKey.KeyValue) > 0 {
		enctype = auth.SubKey.KeyType
	}
	subkey := newKey(enctype)
	seq := rand.Uint32N(1<<30) + 1 // not 0, which is none
	w, err := newWrapper(subkey, true, true, uint64(seq), uint64(uint32(auth.SeqNumber)))
	if err != nil {
		return nil, err
	}
	part, err := asn1.MarshalWithParams(messages.EncAPRepPart{
		CTime: auth.CTime, Cusec: auth.Cusec, Subkey: subkey, SequenceNumber: int64(seq),
	}, fmt.Sprintf("application,explicit,tag:%d", asnAppTag.EncAPRepPart))
	if err != nil {
		return nil, err
	}
	secret, err := crypto.GetEncryptedData(part, session, keyusage.AP_REP_ENCPART, 0)
	if err != nil {
		return nil, err
	}
	rep, err := asn1.MarshalWithParams(messages.APRep{PVNO: iana.PVNO, MsgType: msgtype.KRB_AP_REP, EncPart: secret},
		fmt.Sprintf("application,explicit,tag:%d", asnAppTag.APREP))
	if err != nil {
		return nil, err
	}
	a.wrapper = w
	return makeToken(apRep, rep), nil
}

// maxReplays is how many requests a server remembers: those of five minutes at 200 a
// second, in 3 MB.
const maxReplays = 1 << 16

// replays are the requests that came last. One that has been forgotten for want of room
// may be replayed as long as its time stamp is good.
type replays struct {
	mu   sync.Mutex // guards what follows
	set  map[[16]byte]struct{}
	ring [][16]byte // of set; the oldest is at next once it is full
	next int
}

// seen says whether an authenticator has come before, and remembers it.
func (r *replays) seen(authenticator []byte) bool {
	sum := sha256.Sum256(authenticator)
	id := [16]byte(sum[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.set[id]; ok {
		return true
	}
	if r.set == nil {
		r.set = make(map[[16]byte]struct{})
	}
	r.set[id] = struct{}{}
	if len(r.ring) < maxReplays {
		r.ring = append(r.ring, id)
		return false
	}
	delete(r.set, r.ring[r.next])
	r.ring[r.next] = id
	r.next = (r.next + 1) % maxReplays
	return false
}
