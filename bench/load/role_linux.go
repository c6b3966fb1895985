package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"tunroute/bench/pattern"
	"tunroute/bench/socksd"
)

// Roles, the first argument of [Serve].
const (
	RoleClient  = "client"  // SEED: the methods of Client
	RoleBulk    = "bulk"    // SEED: serves bulk streams and datagrams
	RoleRequest = "request" // SEED: serves requests and sends datagrams back
	RoleSOCKS   = "socks"   // ADDRESS…: a SOCKS5 server at each
)

// Serve has this process play a role until its standard input ends. Its
// arguments are those of [StartRole].
func Serve(args []string) error {
	if len(args) < 2 {
		return errors.New("a role needs a name and an argument")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ops := operations{"ready": op(func(struct{}) (bool, error) { return true, nil })}
	name, args := args[0], args[1:]
	if name == RoleSOCKS {
		server := socksd.New()
		lc := net.ListenConfig{KeepAlive: -1}
		lc.SetMultipathTCP(false)
		for _, arg := range args {
			addr, err := netip.ParseAddrPort(arg)
			if err != nil {
				return err
			}
			l, err := lc.Listen(ctx, "tcp", addr.String())
			if err != nil {
				return err
			}
			go server.Run(ctx, l) // until the process ends
		}
		return answerCalls(os.Stdin, os.Stdout, ops)
	}
	seed, err := strconv.ParseUint(args[0], 10, 64)
	if err != nil {
		return err
	}
	source := pattern.New(seed)
	switch name {
	case RoleClient:
		NewClient(source).operations(ops)
	case RoleBulk:
		s := NewServer(source)
		if err := errors.Join(s.serveTCP(ctx, BulkPort, s.bulk), s.serveUDP(ctx, SinkPort, s.sink)); err != nil {
			return err
		}
		s.operations(ops)
	case RoleRequest:
		s := NewServer(source)
		if err := errors.Join(s.serveTCP(ctx, RequestPort, s.requests), s.serveUDP(ctx, EchoPort, s.sendBack)); err != nil {
			return err
		}
		s.operations(ops)
	default:
		return fmt.Errorf("there is no role %q", name)
	}
	return answerCalls(os.Stdin, os.Stdout, ops)
}

func (c *Client) operations(ops operations) {
	ops["bulk"] = op(c.Bulk)
	ops["connect"] = op(c.Connect)
	ops["keep"] = op(c.Keep)
	ops["echo"] = op(c.Echo)
	ops["idle"] = op(c.Idle)
	ops["send"] = op(c.Send)
	ops["echoudp"] = op(c.EchoUDP)
	ops["dns"] = op(c.DNS)
}

func (s *Server) operations(ops operations) {
	ops["streams"] = op(s.takeStreams)
	ops["counts"] = op(s.takeCounts)
}

// The operations of roles, as calls.

// Bulk is [Client.Bulk].
func (r *Role) Bulk(a BulkArgs) (BulkResult, error) { return ask[BulkResult](r, "bulk", a) }

// Connect is [Client.Connect].
func (r *Role) Connect(a RequestArgs) (Times, error) { return ask[Times](r, "connect", a) }

// Keep is [Client.Keep].
func (r *Role) Keep(a RequestArgs) (Times, error) { return ask[Times](r, "keep", a) }

// Echo is [Client.Echo].
func (r *Role) Echo(a RequestArgs) (Times, error) { return ask[Times](r, "echo", a) }

// Idle is [Client.Idle].
func (r *Role) Idle(a IdleArgs) (IdleResult, error) { return ask[IdleResult](r, "idle", a) }

// Send is [Client.Send].
func (r *Role) Send(a SendArgs) (SendResult, error) { return ask[SendResult](r, "send", a) }

// EchoUDP is [Client.EchoUDP].
func (r *Role) EchoUDP(a PingPongArgs) (PingPongResult, error) {
	return ask[PingPongResult](r, "echoudp", a)
}

// DNS is [Client.DNS].
func (r *Role) DNS(a PingPongArgs) (PingPongResult, error) { return ask[PingPongResult](r, "dns", a) }

// Streams returns what a server has received of so many streams, when all have
// ended; fewer, where they do not end.
func (r *Role) Streams(count int) ([]Received, error) { return ask[[]Received](r, "streams", count) }

// Counts returns what a server has received of a sender of datagrams, when no
// more come.
func (r *Role) Counts(key uint64) (Received, error) { return ask[Received](r, "counts", key) }

func ask[R any](r *Role, name string, args any) (R, error) {
	var res R
	err := r.Call(name, args, &res)
	return res, err
}
