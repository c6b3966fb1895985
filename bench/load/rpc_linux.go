package load

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"tunroute/bench/netlab"
)

// call is a line to a role, and answer its line back.
type call struct {
	Op   string
	Args json.RawMessage
}

type answer struct {
	Result json.RawMessage
	Error  string
}

// operations are what a role can do, by name.
type operations map[string]func(json.RawMessage) (any, error)

// op makes an operation of a function.
func op[A, R any](f func(A) (R, error)) func(json.RawMessage) (any, error) {
	return func(raw json.RawMessage) (any, error) {
		var args A
		if err := json.Unmarshal(raw, &args); err != nil {
			return nil, err
		}
		return f(args)
	}
}

// answerCalls does what it is asked for, one thing after the other, until in
// ends.
func answerCalls(in io.Reader, out io.Writer, ops operations) error {
	calls := json.NewDecoder(bufio.NewReader(in))
	answers := json.NewEncoder(out)
	for {
		var c call
		if err := calls.Decode(&c); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		f := ops[c.Op]
		if f == nil {
			return fmt.Errorf("there is no operation %q", c.Op)
		}
		result, err := f(c.Args)
		if err == nil {
			a.Result, err = json.Marshal(result)
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := answers.Encode(a); err != nil {
			return err
		}
	}
}

// Role is a process that serves or loads. It is for one goroutine; Stop is for
// any.
type Role struct {
	*netlab.Process
	name    string
	in, out *os.File // our ends of its standard input and output
	answers *json.Decoder
	errs    *netlab.Tail
}

// RoleArg is the first argument with which a program that uses [StartRole] is run
// again: its main function must then call [Serve] with the others.
const RoleArg = "__role"

// StartRole starts a role on a host; the first of args is its name, as [Serve]
// has them.
func StartRole(h *netlab.Host, args ...string) (*Role, error) {
	// Pipes of the kernel: both ends know at once when the other is gone.
	inR, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer inR.Close()
	out, outW, err := os.Pipe()
	if err != nil {
		in.Close()
		return nil, err
	}
	defer outW.Close()
	r := &Role{name: args[0], in: in, out: out, answers: json.NewDecoder(out), errs: new(netlab.Tail)}
	if r.Process, err = h.Start(netlab.Program{
		Args:   append([]string{"/proc/self/exe", RoleArg}, args...),
		Stdin:  inR,
		Stdout: outW,
		Stderr: r.errs,
	}); err != nil {
		in.Close()
		out.Close()
		return nil, err
	}
	var ready bool
	if err := r.Call("ready", struct{}{}, &ready); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

// Call has the role do something, and waits for the result.
func (r *Role) Call(name string, args, result any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	if err := json.NewEncoder(r.in).Encode(call{name, raw}); err != nil {
		return r.gone(err)
	}
	var a answer
	if err := r.answers.Decode(&a); err != nil {
		return r.gone(err)
	}
	if a.Error != "" {
		return fmt.Errorf("%s: %s: %s", r.name, name, a.Error)
	}
	return json.Unmarshal(a.Result, result)
}

// gone returns why a role that does not answer has ended.
func (r *Role) gone(err error) error {
	select {
	case <-r.Ended():
		return fmt.Errorf("%s has ended: %v %s", r.name, r.Err(), r.errs)
	case <-time.After(time.Second):
		return fmt.Errorf("%s: %w", r.name, err)
	}
}

// Stop ends the role, whatever it is doing.
func (r *Role) Stop() {
	r.in.Close()
	r.Kill()
	r.out.Close()
}
