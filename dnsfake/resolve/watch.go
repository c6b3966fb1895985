package resolve

import (
	"errors"
	"io"
	"os"
	"sync"
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

	mu      sync.Mutex // guards what follows
	looked  time.Time  // when it was looked at; zero for never
	modTime time.Time
	size    int64
	value   T
	err     error
}

// get returns what the file says. What it said before stands in while it cannot be
// read.
func (w *watched[T]) get() (T, error) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.looked.IsZero()
	if !first && now.Sub(w.looked) < recheck {
		return w.value, w.err
	}
	w.looked = now
	info, err := os.Stat(w.path)
	if err == nil && !first && w.err == nil && info.ModTime().Equal(w.modTime) && info.Size() == w.size {
		return w.value, nil
	}
	var data []byte
	if err == nil {
		w.modTime, w.size = info.ModTime(), info.Size()
		data, err = readRegular(w.path, info)
	}
	value, err := w.read(data, err)
	if err != nil && !first && w.err == nil {
		w.modTime = time.Time{} // try again the next time
		return w.value, nil
	}
	w.value, w.err = value, err
	return value, err
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
