package krb5

import (
	"crypto/hmac"
	"crypto/rand"
	"errors"
	"fmt"
	"hash"

	"github.com/jcmturner/gokrb5/v8/crypto"
	"github.com/jcmturner/gokrb5/v8/crypto/common"
	"github.com/jcmturner/gokrb5/v8/crypto/etype"
	"github.com/jcmturner/gokrb5/v8/iana/etypeID"
	"github.com/jcmturner/gokrb5/v8/types"
)

// enctypes are the encryption types that we speak, the best first: those with AES. DES and
// RC4 are broken (RFC 6649, RFC 8429), and their tokens look different.
var enctypes = []int32{
	etypeID.AES256_CTS_HMAC_SHA384_192,
	etypeID.AES128_CTS_HMAC_SHA256_128,
	etypeID.AES256_CTS_HMAC_SHA1_96,
	etypeID.AES128_CTS_HMAC_SHA1_96,
}

// keySize returns how many bytes a key has, 0 for a type that we do not speak. The
// library has 24 for aes256-cts-hmac-sha384-192, which is the size of its checksum key.
func keySize(enctype int32) int {
	switch enctype {
	case etypeID.AES256_CTS_HMAC_SHA384_192, etypeID.AES256_CTS_HMAC_SHA1_96:
		return 32
	case etypeID.AES128_CTS_HMAC_SHA256_128, etypeID.AES128_CTS_HMAC_SHA1_96:
		return 16
	}
	return 0
}

// newKey returns a random key.
func newKey(enctype int32) types.EncryptionKey {
	k := types.EncryptionKey{KeyType: enctype, KeyValue: make([]byte, keySize(enctype))}
	rand.Read(k.KeyValue) // never fails
	return k
}

// confounder is how many random bytes stand before what is encrypted.
const confounder = 16

var errIntegrity = errors.New("a Kerberos checksum is wrong: the message was changed on the way, or the keys differ")

// cipher has the keys that are derived from one for one usage (RFC 3961 §5.3). Deriving
// them costs more than encrypting a short message, so it is done once.
type cipher struct {
	etype      etype.EType
	ke, ki, kc []byte
	size       int  // of a checksum
	etm        bool // encrypt, then MAC (RFC 8009), not the other way round (RFC 3962)
}

func newCipher(key types.EncryptionKey, usage uint32) (*cipher, error) {
	if n := keySize(key.KeyType); n == 0 || n != len(key.KeyValue) {
		return nil, fmt.Errorf("a key of encryption type %d with %d bytes is of no use here: AES is what we speak", key.KeyType, len(key.KeyValue))
	}
	e, err := crypto.GetEtype(key.KeyType)
	if err != nil {
		return nil, err
	}
	c := &cipher{etype: e, size: e.GetHMACBitLength() / 8}
	c.etm = key.KeyType == etypeID.AES256_CTS_HMAC_SHA384_192 || key.KeyType == etypeID.AES128_CTS_HMAC_SHA256_128
	for _, k := range []struct {
		key   *[]byte
		usage []byte
	}{{&c.ke, common.GetUsageKe(usage)}, {&c.ki, common.GetUsageKi(usage)}, {&c.kc, common.GetUsageKc(usage)}} {
		if *k.key, err = e.DeriveKey(key.KeyValue, k.usage); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// sum appends the checksum of parts.
func (c *cipher) sum(b, key []byte, parts ...[]byte) []byte {
	h := c.hmac(key)
	for _, p := range parts {
		h.Write(p)
	}
	at := len(b)
	return h.Sum(b)[:at+c.size]
}

func (c *cipher) hmac(key []byte) hash.Hash { return hmac.New(c.etype.GetHashFunc(), key) }

// checksum appends the checksum of parts that are not encrypted.
func (c *cipher) checksum(b []byte, parts ...[]byte) []byte { return c.sum(b, c.kc, parts...) }

// zeros is the initial vector of RFC 8009.
var zeros [16]byte

// encrypt appends parts, encrypted.
func (c *cipher) encrypt(b []byte, parts ...[]byte) ([]byte, error) {
	n := confounder
	for _, p := range parts {
		n += len(p)
	}
	plain := make([]byte, confounder, n)
	rand.Read(plain) // never fails
	for _, p := range parts {
		plain = append(plain, p...)
	}
	_, secret, err := c.etype.EncryptData(c.ke, plain)
	if err != nil {
		return nil, err
	}
	b = append(b, secret...)
	if c.etm {
		return c.sum(b, c.ki, zeros[:], secret), nil
	}
	return c.sum(b, c.ki, plain), nil
}

// decrypt returns what has been encrypted.
func (c *cipher) decrypt(secret []byte) ([]byte, error) {
	if len(secret) < confounder+c.size {
		return nil, errShort
	}
	secret, mac := secret[:len(secret)-c.size], secret[len(secret)-c.size:]
	if c.etm && !hmac.Equal(mac, c.sum(nil, c.ki, zeros[:], secret)) {
		return nil, errIntegrity
	}
	plain, err := c.etype.DecryptData(c.ke, secret)
	if err != nil {
		return nil, err
	}
	if !c.etm && !hmac.Equal(mac, c.sum(nil, c.ki, plain)) {
		return nil, errIntegrity
	}
	return plain[confounder:], nil
}
