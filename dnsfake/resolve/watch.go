package resolve

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// How often a file is looked at, while somebody asks for what it says.
	recheck = 5 * time.Second

	// The longest file that is read: a list of a million names to block has
	// less.
	maxFileSize = 32 << 20
)

// watched is a file that is read again when it has changed.
type watched[T any] struct {
	path string
	// read makes of the content what it says; err is why there is none.
	read func(data []byte, err error) (T, error)

	now     atomic.Pointer[seen[T]] // nil where it was never looked at
	looking sync.Mutex              // held by the one who reads the file, for as long as that takes
}

// seen is what a file said. It is immutable.
type seen[T any] struct {
	looked  time.Time // when it was looked at
	modTime time.Time
	size    int64
	value   T
	err     error
}

// get returns what the file says. What it said before stands in while it cannot be
// read, and for all but one asker while it is being read.
func (w *watched[T]) get() (T, error) {
	now := time.Now()
	was := w.now.Load()
	if was == nil {
		w.looking.Lock()
	} else if now.Sub(was.looked) < recheck || !w.looking.TryLock() {
		return was.value, was.err
	}
	defer w.looking.Unlock()
	if is := w.now.Load(); is != was {
		return is.value, is.err // somebody else was faster
	}
	is := w.look(was)
	is.looked = now
	w.now.Store(is)
	return is.value, is.err
}

// look reads the file if it is not as it was; nil is never.
func (w *watched[T]) look(was *seen[T]) *seen[T] {
	is := new(seen[T])
	good := was != nil && was.err == nil
	info, err := os.Stat(w.path)
	if err == nil {
		if is.modTime, is.size = info.ModTime(), info.Size(); good && is.modTime.Equal(was.modTime) && is.size == was.size {
			is.value = was.value
			return is
		}
	}
	var data []byte
	if err == nil {
		data, err = readRegular(w.path, info)
	}
	if is.value, is.err = w.read(data, err); is.err != nil && good {
		return &seen[T]{value: was.value} // and tried again the next time
	}
	return is
}

// readRegular reads a file. To open a pipe would wait for its other end.
func readRegular(path string, info os.FileInfo) ([]byte, error) {
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err == nil && len(data) > maxFileSize {
		err = &os.PathError{Op: "read", Path: path, Err: errors.New("larger than 32 MiB")}
	}
	return data, err
}
