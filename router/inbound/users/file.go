package users

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"tunroute/router/inbound"
)

// maxFile bounds the file: 100,000 users have 12 MB.
const maxFile = 32 << 20

// entry is a user.
type entry struct {
	hash   string
	groups []string
}

// File is a file of users. It is safe for concurrent use.
type File struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex // guards what follows
	entries map[string]entry
	nobody  string // see nobody
	state   fileState
	looked  time.Time
	said    string // the error of the last look, if there was one
}

// fileState is by what one sees that a file has changed.
type fileState struct {
	size int64
	time time.Time
	info fs.FileInfo
}

func (s fileState) same(o fileState) bool {
	return s.size == o.size && s.time.Equal(o.time) && s.info != nil && o.info != nil && os.SameFile(s.info, o.info)
}

// Open reads a file of users. What goes wrong when it is read again later is logged; a
// nil log discards that.
func Open(path string, log *slog.Logger) (*File, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &File{path: path, log: log}
	var err error
	f.entries, f.state, err = load(path)
	f.nobody = nobody(f.entries)
	f.looked = time.Now()
	return f, err
}

func load(path string) (map[string]entry, fileState, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fileState{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fileState{}, err
	}
	state := fileState{info.Size(), info.ModTime(), info}
	if !info.Mode().IsRegular() {
		return nil, state, fmt.Errorf("%s: not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, state, err
	}
	if len(data) > maxFile {
		return nil, state, fmt.Errorf("%s: larger than %d MiB", path, maxFile>>20)
	}
	entries, err := parse(data)
	if err != nil {
		return nil, state, fmt.Errorf("%s:%w", path, err)
	}
	return entries, state, nil
}

// parse parses a file. Its error begins with the line.
func parse(data []byte) (map[string]entry, error) {
	entries := make(map[string]entry)
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		user, rest, ok := strings.Cut(line, ":")
		hash, groups, _ := strings.Cut(rest, ":")
		if !ok {
			return nil, fmt.Errorf("%d: not USER:HASH", n)
		}
		if err := CheckUser(user); err != nil {
			return nil, fmt.Errorf("%d: %w", n, err)
		}
		if _, twice := entries[user]; twice {
			return nil, fmt.Errorf("%d: user %q is there twice", n, user)
		}
		if err := checkHash(hash); err != nil {
			return nil, fmt.Errorf("%d: user %q: %w", n, user, err)
		}
		e := entry{hash: hash}
		if groups != "" {
			e.groups = strings.Split(groups, ",")
			for _, g := range e.groups {
				if err := CheckUser(g); err != nil {
					return nil, fmt.Errorf("%d: a group: %w", n, err)
				}
			}
		}
		entries[user] = e
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%v", err)
	}
	return entries, nil
}

// CheckUser says what is wrong with the name of a user or a group.
func CheckUser(name string) error {
	if name == "" || len(name) > 255 || strings.ContainsAny(name, ":,#") || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return errors.New(`a name has 1 to 255 bytes and no blank, control character, ":", "," or "#"`)
	}
	return nil
}

// lookInterval is how soon a change is seen.
const lookInterval = time.Second

// find returns a user, of the file as it is now. Where there is none, the entry has a hash
// all the same, which no password has.
func (f *File) find(user string) (entry, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now := time.Now(); now.Sub(f.looked) >= lookInterval {
		f.looked = now
		f.lookLocked()
	}
	e, ok := f.entries[user]
	if !ok {
		e.hash = f.nobody
	}
	return e, ok
}

func (f *File) lookLocked() {
	info, err := os.Stat(f.path)
	if err == nil && f.state.same(fileState{info.Size(), info.ModTime(), info}) {
		return
	}
	entries, state, err := load(f.path)
	if err != nil {
		if text := err.Error(); text != f.said {
			f.log.Error("the users stay as they were", "err", err)
			f.said = text
		}
		f.state = state
		return
	}
	f.entries, f.nobody, f.state, f.said = entries, nobody(entries), state, ""
	f.log.Info("users read again", "file", f.path, "users", len(entries))
}

// verify implements verifier.
func (f *File) verify(_ context.Context, user, password string) (inbound.Identity, error) {
	e, ok := f.find(user)
	if !verify(e.hash, password) || !ok {
		return inbound.Identity{}, inbound.ErrDenied
	}
	return inbound.Identity{User: user, Groups: e.groups}, nil
}

// atATime implements verifier: a hash takes a processor.
func (*File) atATime() int { return runtime.GOMAXPROCS(0) }

// version implements verifier: what the user's line says.
func (f *File) version(user string) string {
	e, ok := f.find(user)
	if !ok {
		return ""
	}
	return e.hash + ":" + strings.Join(e.groups, ",")
}

// Set puts a user with this hash and these groups into a file, instead of the one that
// has the name; nil groups keep what that one has. The file is made if it is not
// there, for its owner only, and replaced whole.
func Set(path, user, hash string, groups []string) error {
	for _, name := range append([]string{user}, groups...) {
		if err := CheckUser(name); err != nil {
			return err
		}
	}
	return edit(path, user, func(old string) (string, error) {
		line := user + ":" + hash
		if groups == nil {
			_, rest, _ := strings.Cut(old, ":")
			_, list, _ := strings.Cut(rest, ":")
			if list != "" {
				groups = strings.Split(strings.TrimSpace(list), ",")
			}
		}
		if len(groups) > 0 {
			line += ":" + strings.Join(groups, ",")
		}
		return line, nil
	})
}

// ErrNoUser says that a user is not in a file.
var ErrNoUser = errors.New("no such user")

// Delete takes a user out of a file.
func Delete(path, user string) error {
	if _, err := os.Stat(path); err != nil {
		return err
	}
	return edit(path, user, func(old string) (string, error) {
		if old == "" {
			return "", ErrNoUser
		}
		return "", nil
	})
}

// edit replaces the line of a user, "" where there is none, by what change returns, unless
// that is an error. Of a symbolic link it is the file behind it.
func edit(path, user string, change func(old string) (string, error)) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	data, err := os.ReadFile(path)
	mode := fs.FileMode(0o600)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	at := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), user+":") })
	if at < 0 {
		at = len(lines)
		if len(data) == 0 {
			at = 0
		}
		lines = append(lines[:at], "")
	}
	if lines[at], err = change(lines[at]); err != nil {
		return err
	}
	if lines[at] == "" {
		lines = slices.Delete(lines, at, at+1)
	}
	text := ""
	if len(lines) > 0 {
		text = strings.Join(lines, "\n") + "\n"
	}
	if _, err := parse([]byte(text)); err != nil {
		return fmt.Errorf("%s:%w", path, err)
	}
	// In the same directory, so that it can be renamed.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".passwd-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(text)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	keepOwner(tmp.Name(), path)
	return os.Rename(tmp.Name(), path)
}
