package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"tunroute/cmd/tunroute/engine"
)

// NewHandler answers for d, which runs with the config at a path, and refuses who takes
// it for one that runs with another.
func NewHandler(d Daemon, config string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) { reply(w, d.Status(), nil) })
	mux.HandleFunc("GET /v1/flows", func(w http.ResponseWriter, r *http.Request) { reply(w, d.Flows(), nil) })
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) { reply(w, struct{}{}, d.Reload()) })
	mux.HandleFunc("GET /v1/dns", func(w http.ResponseWriter, r *http.Request) {
		a, err := d.Ask(r.Context(), r.FormValue("name"), r.FormValue("type"))
		reply(w, a, err)
	})
	mux.HandleFunc("GET /v1/leases", func(w http.ResponseWriter, r *http.Request) {
		of := r.FormValue("of")
		if of == "" {
			reply(w, d.Leases(), nil)
			return
		}
		l, err := d.FindLease(of)
		reply(w, []Lease{l}, err)
	})
	mux.HandleFunc("DELETE /v1/leases", func(w http.ResponseWriter, r *http.Request) {
		l, err := d.DropLease(r.FormValue("of"))
		reply(w, l, err)
	})
	mux.Handle("GET /metrics", NewMetrics(d))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if meant := r.FormValue("config"); meant != "" && !samePath(meant, config) {
			reply(w, nil, fmt.Errorf("the daemon that answers runs with %s and not with %s: "+
				"admin.socket gives each a socket of its own, and --socket asks the one at a socket whatever it runs with", config, meant))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// samePath tells whether two paths lead to one file.
func samePath(a, b string) bool {
	if a == b {
		return true
	}
	ai, aerr := os.Stat(a)
	bi, berr := os.Stat(b)
	return aerr == nil && berr == nil && os.SameFile(ai, bi)
}

// failure is the body of an error.
type failure struct {
	Error string `json:"error"`
}

func reply(w http.ResponseWriter, body any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		body = failure{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(body) // or the client has gone
}

// socketMode lets in the user that the daemon runs as, and root.
const socketMode = 0o600

// Listen is [engine.ListenUnix], and makes the directory where there is none.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	l, err := engine.ListenUnix(path, socketMode)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return l, nil
}

const (
	// readTimeout for a request, which is a line or two.
	readTimeout = 5 * time.Second
	// idleTimeout between the requests of one client.
	idleTimeout = time.Minute
)

// Serve answers at l until ctx ends, closes it, and returns when the last answer
// has been given, at most a second later.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	s := &http.Server{Handler: h, ReadHeaderTimeout: readTimeout, IdleTimeout: idleTimeout}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(l) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if s.Shutdown(last) != nil {
		s.Close()
	}
	<-ended
	return nil
}
