package users

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// What a new hash costs: 19 MiB and two passes, the first that OWASP's password
// storage cheat sheet has for argon2id; some 40 ms.
const (
	hashMemory  = 19 << 10 // KiB
	hashTime    = 2
	hashThreads = 1
	saltSize    = 16
	keySize     = 32
)

// What a hash in a file may cost, so that a line in it is no way to stop us.
const (
	maxMemory  = 256 << 10 // KiB
	maxTime    = 16
	maxThreads = 16
	maxCost    = 14 // bcrypt's: a second
)

var errHash = errors.New("neither an argon2id hash nor one of bcrypt")

// Hash returns the argon2id hash of a password, with a new salt.
func Hash(password string) string {
	salt := make([]byte, saltSize)
	rand.Read(salt) // never fails, says its documentation
	key := argon2.IDKey([]byte(password), salt, hashTime, hashMemory, hashThreads, keySize)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, hashMemory, hashTime, hashThreads,
		b64.EncodeToString(salt), b64.EncodeToString(key))
}

// argon is a parsed argon2id hash.
type argon struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

func parseArgon(hash string) (a argon, err error) {
	parts := strings.Split(hash, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return a, errHash
	}
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &a.memory, &a.time, &a.threads); n != 3 || err != nil {
		return a, errHash
	}
	if a.salt, err = base64.RawStdEncoding.DecodeString(parts[4]); err != nil || len(a.salt) < 8 || len(a.salt) > 64 {
		return a, errHash
	}
	if a.key, err = base64.RawStdEncoding.DecodeString(parts[5]); err != nil || len(a.key) < 16 || len(a.key) > 64 {
		return a, errHash
	}
	if a.time < 1 || a.threads < 1 || a.memory < 8*uint32(a.threads) || a.memory > maxMemory || a.time > maxTime || a.threads > maxThreads {
		return a, fmt.Errorf("a hash that costs more than m=%d,t=%d,p=%d, or nothing", maxMemory, maxTime, maxThreads)
	}
	return a, nil
}

// checkHash says whether verify would take a hash.
func checkHash(hash string) error {
	if strings.HasPrefix(hash, "$2") {
		cost, err := bcrypt.Cost([]byte(hash))
		switch {
		case err != nil || len(hash) != 60:
			return errHash
		case cost > maxCost:
			return fmt.Errorf("a bcrypt hash that costs more than %d", maxCost)
		}
		return nil
	}
	_, err := parseArgon(hash)
	return err
}

// kind returns what of a hash says how long it takes: its beginning.
func kind(hash string) string {
	if strings.HasPrefix(hash, "$2") {
		return hash[:len("$2y$05$")]
	}
	return hash[:1+strings.LastIndexByte(hash[:strings.LastIndexByte(hash, '$')], '$')]
}

// nobody returns the hash that is verified for users who do not exist, so that it takes
// as long to refuse them as most of those who do: it is of the same kind. No password has
// it.
func nobody(entries map[string]entry) string {
	counts := make(map[string]int)
	most := kind(fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$$", argon2.Version, hashMemory, hashTime, hashThreads))
	for _, e := range entries {
		k := kind(e.hash)
		counts[k]++
		if counts[k] > counts[most] || counts[k] == counts[most] && k > most {
			most = k
		}
	}
	if strings.HasPrefix(most, "$2") {
		return most + strings.Repeat(".", 22+31) // of salt and key: bcrypt's zeros
	}
	return most + strings.Repeat("A", 22) + "$" + strings.Repeat("A", 43)
}

// verify tells whether a hash is of a password.
func verify(hash, password string) bool {
	if strings.HasPrefix(hash, "$2") {
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil
	}
	a, err := parseArgon(hash)
	if err != nil {
		return false
	}
	key := argon2.IDKey([]byte(password), a.salt, a.time, a.memory, a.threads, uint32(len(a.key)))
	return subtle.ConstantTimeCompare(key, a.key) == 1
}
