package resolve

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFileThatHangs: who asks while a file is being read gets what it said before, and
// only one reads it.
func TestFileThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var hang chan struct{}
		reads := 0
		w := watched[string]{path: t.TempDir() + "/file", read: func(data []byte, err error) (string, error) {
			reads++
			if hang != nil {
				<-hang
			}
			return string(data), err
		}}
		writeFile(t, w.path, "old", 1)
		get := func(want string) {
			t.Helper()
			if got, err := w.get(); got != want || err != nil {
				t.Errorf("%q, %v, want %q", got, err, want)
			}
		}
		get("old")
		writeFile(t, w.path, "new", 2)
		hang = make(chan struct{})
		time.Sleep(recheck)
		var asking sync.WaitGroup
		asking.Go(func() { get("new") })
		synctest.Wait()
		get("old")
		time.Sleep(time.Minute)
		get("old")
		close(hang)
		asking.Wait()
		get("new")
		if reads != 2 {
			t.Errorf("%d reads", reads)
		}
	})
}

// TestFileThatIsNotThere: all wait for the first time, and all hear of it.
func TestFileThatIsNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reading := make(chan struct{}, 3)
		hang := make(chan struct{})
		w := watched[string]{path: t.TempDir() + "/file", read: func(data []byte, err error) (string, error) {
			reading <- struct{}{}
			<-hang
			return string(data), err
		}}
		var asking sync.WaitGroup
		for range 3 {
			asking.Go(func() {
				if got, err := w.get(); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		<-reading
		close(hang)
		asking.Wait()
		writeFile(t, w.path, "there", 1)
		time.Sleep(recheck)
		if got, err := w.get(); got != "there" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
		if err := os.Remove(w.path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(recheck)
		if got, err := w.get(); got != "there" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
}
