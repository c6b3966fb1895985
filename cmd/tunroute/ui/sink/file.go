package sink

import (
	"fmt"
	"os"
	"sync"
	"time"
)

// File is a file that lines are added to. It is safe for concurrent use.
type File struct {
	path     string
	complain func(error)

	mu     sync.Mutex // guards what follows
	f      *os.File
	looked time.Time // at what path names
	lost   uint64    // writes, since the last that went well
}

// lookEvery is how often a File looks whether its path still names it.
const lookEvery = time.Second

// NewFile opens a file, which only its owner and group can read when it has to be made.
// complain is told, rarely, why lines are lost; nil discards.
func NewFile(path string, complain func(error)) (*File, error) {
	f := &File{path: path, complain: rarely(complain)}
	return f, f.Reopen()
}

// Reopen opens the file anew, for the sake of who has moved it. Where that fails, lines
// go where they went before.
func (f *File) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reopenLocked()
}

func (f *File) reopenLocked() error {
	// O_APPEND: whoever empties the file (logrotate's copytruncate) finds it begun
	// anew, and two processes do not write over each other.
	now, err := os.OpenFile(f.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	if f.f != nil {
		f.f.Close()
	}
	f.f, f.looked = now, time.Now()
	return nil
}

// Write adds a line. An error is told to complain, too: loggers have no use for it.
func (f *File) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return 0, os.ErrClosed
	}
	if now := time.Now(); now.Sub(f.looked) >= lookEvery {
		f.looked = now
		if f.moved() {
			if err := f.reopenLocked(); err != nil {
				f.complain(err)
			}
		}
	}
	n, err := f.f.Write(line)
	switch {
	case err != nil:
		f.lost++
		f.complain(err)
	case f.lost > 0:
		f.complain(fmt.Errorf("%s: %d lines were lost", f.path, f.lost))
		f.lost = 0
	}
	return n, err
}

// moved says that the path names another file by now, or none.
func (f *File) moved() bool {
	at, err := os.Stat(f.path)
	if err != nil {
		return os.IsNotExist(err)
	}
	own, err := f.f.Stat()
	return err == nil && !os.SameFile(at, own)
}

// Close closes the file; what is written then is lost.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil {
		return nil
	}
	err := f.f.Close()
	f.f = nil
	return err
}

// rarely returns what passes on an error to f, but not more than one in a minute.
func rarely(f func(error)) func(error) {
	if f == nil {
		return func(error) {}
	}
	var mu sync.Mutex
	var last time.Time
	return func(err error) {
		mu.Lock()
		now := time.Now()
		again := last.IsZero() || now.Sub(last) >= time.Minute
		if again {
			last = now
		}
		mu.Unlock()
		if again {
			f(err)
		}
	}
}
