package krb5

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jcmturner/gokrb5/v8/config"
	"github.com/jcmturner/gokrb5/v8/credentials"
	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/iana/errorcode"
	"github.com/jcmturner/gokrb5/v8/iana/flags"
	"github.com/jcmturner/gokrb5/v8/iana/keyusage"
	"github.com/jcmturner/gokrb5/v8/iana/nametype"
	"github.com/jcmturner/gokrb5/v8/iana/patype"
	"github.com/jcmturner/gokrb5/v8/keytab"
	"github.com/jcmturner/gokrb5/v8/messages"
	"github.com/jcmturner/gokrb5/v8/types"

	"tunroute/router/gssapi"
)

// ClientOptions say who we are. What is empty is as MIT's programs have it.
type ClientOptions struct {
	// Config is the path of krb5.conf: else KRB5_CONFIG, else /etc/krb5.conf.
	Config string
	// CCache is the file with the tickets that kinit has got: else KRB5CCNAME, else
	// /tmp/krb5cc_UID. FILE: may stand before it.
	CCache string
	// Keytab, if not empty, has the key that we get tickets with, in place of CCache.
	Keytab string
	// Principal is whose key of Keytab that is: else that of its first.
	Principal string

	// Dial connects to a KDC; else it is a [net.Dialer].
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// LookupSRV finds the KDCs where krb5.conf says dns_lookup_kdc; else it is that of
	// [net.DefaultResolver].
	LookupSRV func(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Client is the end that begins. It is safe for concurrent use.
type Client struct {
	o ClientOptions

	mu     sync.Mutex        // guards what follows; not held while somebody is asked
	source stamp             // of the file that tickets come from
	known  map[string]*known // by service; "" is the ticket that the key in Keytab gets
}

// known is what is known of a service, or is being found out.
type known struct {
	done   chan struct{} // closed when what follows is there
	ticket *ticket
	err    error // why there is none
	at     time.Time
	gaveUp bool // whoever asked did not wait for an answer: err says nothing of the service
}

// remembered is how long a failure counts: flows to a realm whose KDC is dead hear of
// that, and do not each find it out again.
const remembered = 5 * time.Second

// NewClient returns a Client. It reads nothing yet.
func NewClient(o ClientOptions) *Client {
	if o.Dial == nil {
		o.Dial = new(net.Dialer).DialContext
	}
	if o.LookupSRV == nil {
		o.LookupSRV = net.DefaultResolver.LookupSRV
	}
	return &Client{o: o, known: make(map[string]*known)}
}

// ticket is a ticket and what belongs to it.
type ticket struct {
	messages.Ticket
	key    types.EncryptionKey
	end    time.Time
	client types.PrincipalName
	realm  string // of client
}

// margin is how long a ticket has to be good still to be used: as long as a flow may
// wait for it.
const margin = 10 * time.Second

func (t *ticket) good() bool { return t != nil && time.Until(t.end) > margin }

// Initiate returns a context with a service of a host: SERVICE, SERVICE/HOST or
// SERVICE/HOST@REALM. It blocks until there is a ticket, or ctx ends. Errors say what to
// do.
func (c *Client) Initiate(ctx context.Context, service, host string) (gssapi.Context, error) {
	name, realm := types.ParseSPNString(service)
	if len(name.NameString) == 1 {
		name.NameString = append(name.NameString, strings.ToLower(strings.TrimSuffix(host, ".")))
	}
	name.NameType = nametype.KRB_NT_SRV_HST

	t, err := c.ticket(ctx, name, realm)
	if err != nil {
		return nil, err
	}
	return newInitiator(t)
}

// stamp tells a version of a file from others.
type stamp struct {
	name string
	time time.Time
	size int64
}

func stampOf(name string) (stamp, error) {
	info, err := os.Stat(name)
	if err != nil {
		return stamp{}, err
	}
	return stamp{name, info.ModTime(), info.Size()}, nil
}

// get returns the ticket for a service that is known, or what fetch gets, which is asked
// by one goroutine at a time for each service. What is known counts for one version of the
// file that tickets come from.
func (c *Client) get(ctx context.Context, source stamp, service string, fetch func() (*ticket, error)) (*ticket, error) {
	for {
		c.mu.Lock()
		if source != c.source {
			c.source, c.known = source, make(map[string]*known)
		}
		k := c.known[service]
		if k.useful() {
			c.mu.Unlock()
			select {
			case <-k.done:
			case <-ctx.Done():
				return nil, fmt.Errorf("wait for a Kerberos ticket: %w", context.Cause(ctx))
			}
			if k.gaveUp {
				continue
			}
			return k.ticket, k.err
		}
		k = &known{done: make(chan struct{})}
		c.known[service] = k
		c.mu.Unlock()
		began := time.Now()
		k.ticket, k.err = fetch()
		k.at = time.Now()
		k.gaveUp = k.err != nil && ctx.Err() != nil && k.at.Sub(began) < kdcTime
		close(k.done)
		return k.ticket, k.err
	}
}

// useful says that nobody has to be asked: it is known, or is being found out.
func (k *known) useful() bool {
	if k == nil {
		return false
	}
	select {
	case <-k.done:
	default:
		return true
	}
	if k.err != nil {
		return !k.gaveUp && time.Since(k.at) < remembered
	}
	return k.ticket.good()
}

// ticket returns a ticket for a service.
func (c *Client) ticket(ctx context.Context, name types.PrincipalName, realm string) (*ticket, error) {
	file, err := c.file()
	if err != nil {
		return nil, err
	}
	source, err := stampOf(file)
	if err != nil {
		return nil, c.noFile(file, err)
	}
	return c.get(ctx, source, name.PrincipalNameString()+"@"+realm, func() (*ticket, error) {
		var t, tgt *ticket
		var err error
		if c.o.Keytab != "" {
			tgt, err = c.get(ctx, source, "", func() (*ticket, error) { return c.login(ctx, file) })
		} else {
			t, tgt, err = readCCache(file, name, realm)
		}
		if err == nil && t == nil {
			t, err = c.request(ctx, tgt, name, realm)
		}
		return t, err
	})
}

// file returns the path of the file that our tickets come from.
func (c *Client) file() (string, error) {
	name, from := cmp.Or(c.o.Keytab, c.o.CCache), ""
	if name == "" {
		name, from = os.Getenv("KRB5CCNAME"), "KRB5CCNAME says "
	}
	if name == "" {
		return fmt.Sprintf("/tmp/krb5cc_%d", os.Getuid()), nil
	}
	return fileName(name, from)
}

// fileName returns the path of what may have FILE: before it.
func fileName(name, from string) (string, error) {
	kind, path, ok := strings.Cut(name, ":")
	switch {
	case !ok || strings.Contains(kind, "/"):
		return name, nil
	case kind == "FILE" || kind == "WRFILE":
		return path, nil
	}
	return "", fmt.Errorf("%s%s, and only files can be read here: use FILE:PATH, as in kinit -c FILE:PATH", from, name)
}

// noFile says that the file that tickets come from cannot be read.
func (c *Client) noFile(file string, err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	switch {
	case c.o.Keytab != "":
		return fmt.Errorf("the Kerberos keytab %s: %w: write the path of a keytab that we may read", file, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("no Kerberos tickets: %s does not exist: run kinit as the user who runs this, or give it a keytab", file)
	}
	return fmt.Errorf("the Kerberos tickets in %s: %w", file, err)
}

// readCCache returns the ticket for a service that a credential cache has, or else the
// one to get it with.
func readCCache(file string, name types.PrincipalName, realm string) (service, tgt *ticket, err error) {
	var cache *credentials.CCache
	err = parsing(func() (err error) {
		cache, err = credentials.LoadCCache(file)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("%s has no Kerberos tickets in it that could be read: run kinit, or name another file", file)
	}
	ours := cache.GetClientRealm()
	krbtgt := types.PrincipalName{NameString: []string{"krbtgt", ours}}
	who := cache.GetClientPrincipalName().PrincipalNameString() + "@" + ours
	var last time.Time
	for _, cred := range cache.GetEntries() {
		isTGT := cred.Server.PrincipalName.Equal(krbtgt) && cred.Server.Realm == ours
		isService := cred.Server.PrincipalName.Equal(name) && (realm == "" || cred.Server.Realm == realm)
		if !isTGT && !isService {
			continue
		}
		t := &ticket{key: cred.Key, end: cred.EndTime, client: cred.Client.PrincipalName, realm: cred.Client.Realm}
		if !t.good() {
			if isTGT && t.end.After(last) {
				last = t.end
			}
			continue
		}
		if keySize(t.key.KeyType) == 0 {
			continue // of no use to us; the KDC gives us another
		}
		if err := t.Unmarshal(cred.Ticket); err != nil {
			return nil, nil, fmt.Errorf("the Kerberos tickets in %s: %w", file, err)
		}
		if isService {
			return t, nil, nil
		}
		tgt = t
	}
	switch {
	case tgt != nil:
		return nil, tgt, nil
	case !last.IsZero():
		return nil, nil, fmt.Errorf("the Kerberos ticket of %s in %s expired at %s: run kinit", who, file, last.Format(time.DateTime))
	}
	return nil, nil, fmt.Errorf("%s has no Kerberos ticket of %s that is of use: run kinit", file, who)
}

// configFile is where krb5.conf is.
func (c *Client) configFile() string {
	return cmp.Or(c.o.Config, strings.Split(os.Getenv("KRB5_CONFIG"), ":")[0], "/etc/krb5.conf")
}

// config reads krb5.conf.
func (c *Client) config() (*config.Config, error) {
	cfg, err := loadConfig(c.configFile())
	if err != nil {
		return nil, err
	}
	cfg.LibDefaults.DefaultTktEnctypeIDs = choose(cfg.LibDefaults.DefaultTktEnctypeIDs)
	cfg.LibDefaults.DefaultTGSEnctypeIDs = choose(cfg.LibDefaults.DefaultTGSEnctypeIDs)
	cfg.LibDefaults.Canonicalize = true // else there are no referrals
	cfg.LibDefaults.Forwardable, cfg.LibDefaults.Proxiable = false, false
	cfg.LibDefaults.NoAddresses = true
	return cfg, nil
}

func loadConfig(file string) (*config.Config, error) {
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("%w: it has to name the KDC of the realm; KRB5_CONFIG says where else it is", err)
	}
	var cfg *config.Config
	err := parsing(func() (err error) {
		cfg, err = config.Load(file)
		return err
	})
	var unsupported config.UnsupportedDirective
	if err != nil && !(errors.As(err, &unsupported) && cfg != nil) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return cfg, nil
}

// choose returns those of the encryption types that we speak: all where the library's own
// list has come, which lacks the best.
func choose(ids []int32) []int32 {
	if slices.Equal(ids, config.New().LibDefaults.DefaultTGSEnctypeIDs) {
		return enctypes
	}
	return slices.DeleteFunc(slices.Clone(ids), func(id int32) bool { return keySize(id) == 0 })
}

// login returns a ticket to get others with, by the key in a keytab.
func (c *Client) login(ctx context.Context, file string) (*ticket, error) {
	kt, err := loadKeytab(file)
	if err != nil {
		return nil, err
	}
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	name, realm := types.ParseSPNString(c.o.Principal)
	switch {
	case c.o.Principal == "":
		p := kt.Entries[0].Principal
		name, realm = types.PrincipalName{NameType: nametype.KRB_NT_PRINCIPAL, NameString: p.Components}, p.Realm
	case realm == "":
		if realm = cfg.LibDefaults.DefaultRealm; realm == "" {
			return nil, fmt.Errorf("the Kerberos principal %s has no realm, and %s has no default_realm: write %[1]s@REALM", c.o.Principal, c.configFile())
		}
	}
	who := name.PrincipalNameString() + "@" + realm
	cfg.LibDefaults.DefaultTktEnctypeIDs = slices.DeleteFunc(slices.Clone(cfg.LibDefaults.DefaultTktEnctypeIDs), func(id int32) bool {
		_, _, err := kt.GetEncryptionKey(name, realm, 0, id)
		return err != nil
	})
	if len(cfg.LibDefaults.DefaultTktEnctypeIDs) == 0 {
		return nil, fmt.Errorf("the keytab %s has no AES key of %s: klist -k shows what it has", file, who)
	}
	t, err := c.as(ctx, cfg, kt, name, realm)
	if err != nil {
		const text = "the KDC has another key of %s than %s: get a new one by ktadd"
		if errors.Is(err, errKey) {
			return nil, fmt.Errorf(text, who, file)
		}
		return nil, explain(err, who, text, who, file)
	}
	return t, nil
}

// errKey says that a reply of a KDC is not under the key that we have.
var errKey = errors.New("not under our key")

// as is the AS exchange (RFC 4120 §3.1) with encrypted time stamp (§5.2.7.2).
func (c *Client) as(ctx context.Context, cfg *config.Config, kt *keytab.Keytab, name types.PrincipalName, realm string) (*ticket, error) {
	req, err := messages.NewASReqForTGT(realm, cfg, name)
	if err != nil {
		return nil, err
	}
	b, err := req.Marshal()
	if err != nil {
		return nil, err
	}
	reply, err := c.ask(ctx, cfg, realm, b)
	var refused *kdcError
	if errors.As(err, &refused) && refused.ErrorCode == errorcode.KDC_ERR_PREAUTH_REQUIRED {
		pa, err := timestamp(kt, name, realm, refused.EData, cfg.LibDefaults.DefaultTktEnctypeIDs)
		if err != nil {
			return nil, err
		}
		req.PAData = types.PADataSequence{pa}
		if b, err = req.Marshal(); err != nil {
			return nil, err
		}
		reply, err = c.ask(ctx, cfg, realm, b)
		if err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	var rep messages.ASRep
	err = parsing(func() error {
		if err := rep.Unmarshal(reply); err != nil {
			return err
		}
		creds := credentials.NewFromPrincipalName(name, realm).WithKeytab(kt)
		if _, err := rep.DecryptEncPart(creds); err != nil {
			return errKey
		}
		_, err := rep.Verify(cfg, creds, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &ticket{Ticket: rep.Ticket, key: rep.DecryptedEncPart.Key, end: rep.DecryptedEncPart.EndTime, client: name, realm: realm}, nil
}

// timestamp is the time, encrypted by the key of an encryption type that the KDC wants.
func timestamp(kt *keytab.Keytab, name types.PrincipalName, realm string, edata []byte, ours []int32) (pa types.PAData, err error) {
	enctype := ours[0]
	err = parsing(func() error {
		var list types.PADataSequence
		if err := list.Unmarshal(edata); err != nil {
			return err
		}
		for _, p := range list {
			if p.PADataType != patype.PA_ETYPE_INFO2 {
				continue
			}
			info, err := p.GetETypeInfo2()
			if err != nil {
				return err
			}
			for _, i := range info {
				if slices.Contains(ours, i.EType) {
					enctype = i.EType
					return nil
				}
			}
		}
		return nil
	})
	if err != nil {
		return pa, err
	}
	key, kvno, err := kt.GetEncryptionKey(name, realm, 0, enctype)
	if err != nil {
		return pa, err
	}
	now, err := types.GetPAEncTSEncAsnMarshalled()
	if err != nil {
		return pa, err
	}
	secret, err := crypto.GetEncryptedData(now, key, keyusage.AS_REQ_PA_ENC_TIMESTAMP, kvno)
	if err != nil {
		return pa, err
	}
	b, err := secret.Marshal()
	return types.PAData{PADataType: patype.PA_ENC_TIMESTAMP, PADataValue: b}, err
}

// maxReferrals is how many realms a service may be looked for in.
const maxReferrals = 5

// request gets a ticket for a service with another ticket (RFC 4120 §3.3), in the realm
// of the client and those that it refers us to.
func (c *Client) request(ctx context.Context, tgt *ticket, name types.PrincipalName, realm string) (*ticket, error) {
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	if realm == "" {
		realm = cfg.ResolveRealm(name.NameString[len(name.NameString)-1])
	}
	who := tgt.client.PrincipalNameString() + "@" + tgt.realm
	at := tgt.realm // whose KDC is asked
	for range maxReferrals {
		want := name
		if realm != "" && realm != at {
			want = types.PrincipalName{NameType: nametype.KRB_NT_SRV_INST, NameString: []string{"krbtgt", realm}}
		}
		t, err := c.tgs(ctx, cfg, at, tgt, want)
		if err != nil {
			return nil, explain(err, who, "the KDC of %s knows no %s: is the name of the server right? else kadmin: addprinc -randkey %[2]s, and ktadd it into the keytab of the server", at, want.PrincipalNameString()+"@"+at)
		}
		got := t.SName.NameString
		switch {
		case t.SName.Equal(name):
			return t, nil
		case len(got) == 2 && got[0] == "krbtgt" && got[1] != at:
			at, tgt = got[1], t
			if realm == "" || want.Equal(name) {
				realm = at
			}
		default:
			return nil, fmt.Errorf("the KDC of %s has a ticket for %s in place of %s", at, t.SName.PrincipalNameString(), want.PrincipalNameString())
		}
	}
	return nil, fmt.Errorf("the KDCs refer us from one to another for %s: is domain_realm in %s right?", name.PrincipalNameString(), c.configFile())
}

// tgs is the TGS exchange with the KDC of a realm.
func (c *Client) tgs(ctx context.Context, cfg *config.Config, realm string, tgt *ticket, name types.PrincipalName) (*ticket, error) {
	req, err := messages.NewTGSReq(tgt.client, realm, cfg, tgt.Ticket, tgt.key, name, false)
	if err != nil {
		return nil, err
	}
	b, err := req.Marshal()
	if err != nil {
		return nil, err
	}
	reply, err := c.ask(ctx, cfg, realm, b)
	if err != nil {
		return nil, err
	}
	var rep messages.TGSRep
	err = parsing(func() error {
		if err := rep.Unmarshal(reply); err != nil {
			return err
		}
		if err := rep.DecryptEncPart(tgt.key); err != nil {
			return err
		}
		_, err := rep.Verify(cfg, req)
		return err
	})
	if err != nil {
		return nil, err
	}
	if types.IsFlagSet(&rep.DecryptedEncPart.Flags, flags.Invalid) {
		return nil, errors.New("the KDC gives a ticket that is not valid yet")
	}
	return &ticket{Ticket: rep.Ticket, key: rep.DecryptedEncPart.Key, end: rep.DecryptedEncPart.EndTime, client: tgt.client, realm: tgt.realm}, nil
}

// loadKeytab reads a keytab that is not empty.
func loadKeytab(file string) (*keytab.Keytab, error) {
	var kt *keytab.Keytab
	err := parsing(func() (err error) {
		kt, err = keytab.Load(file)
		return err
	})
	switch {
	case err != nil:
		// Not the library's error: it prints what it has read, keys and all.
		var path *fs.PathError
		if errors.As(err, &path) {
			return nil, fmt.Errorf("the Kerberos keytab %s: %w", file, path.Err)
		}
		return nil, fmt.Errorf("%s is no keytab", file)
	case len(kt.Entries) == 0:
		return nil, fmt.Errorf("the Kerberos keytab %s has no keys: add some by kadmin: ktadd -k %[1]s PRINCIPAL", file)
	}
	return kt, nil
}
