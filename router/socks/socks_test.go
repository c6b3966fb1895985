package socks

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

// randomAddr returns a name, an IPv4 or an IPv6 address, each as likely.
func randomAddr(rnd *rand.Rand) Addr {
	a := Addr{Port: uint16(rnd.Uint32())}
	switch rnd.IntN(3) {
	case 0:
		name := make([]byte, 1+rnd.IntN(maxString))
		for i := range name {
			name[i] = byte('!' + rnd.IntN(0x7f-'!'))
		}
		a.Name = string(name)
	case 1:
		var ip [4]byte
		ip[0] = byte(1 + rnd.IntN(255)) // 0.0.0.x is no address in SOCKS4
		ip[3] = byte(rnd.Uint32())
		a.IP = netip.AddrFrom4(ip)
	case 2:
		var ip [16]byte
		ip[0] = 0x20
		for i := 1; i < 16; i++ {
			ip[i] = byte(rnd.Uint32())
		}
		a.IP = netip.AddrFrom16(ip)
	}
	return a
}

func TestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		a := randomAddr(rnd)
		cmd := Command(rnd.Uint32())

		b, err := AppendRequest(nil, cmd, a)
		if err != nil {
			t.Fatalf("seed %d: AppendRequest %v: %v", seed, a, err)
		}
		if req, err := ReadRequest(bytes.NewReader(b)); err != nil || req.Addr != a || req.Command != cmd {
			t.Fatalf("seed %d: request %v %v came back as %+v, %v", seed, cmd, a, req, err)
		}

		b, err = AppendUDPHeader(nil, a)
		if err != nil {
			t.Fatalf("seed %d: AppendUDPHeader %v: %v", seed, a, err)
		}
		h, payload, err := ParseUDP(append(b, "payload"...))
		if got := (Addr{string(h.Name), h.Addr.Addr(), h.Addr.Port()}); err != nil || got != a || string(payload) != "payload" {
			t.Fatalf("seed %d: UDP header %v came back as %v, %q, %v", seed, a, got, payload, err)
		}

		user := strings.Repeat("u", rnd.IntN(maxString+1))
		b, err = AppendRequest4(nil, cmd, a, user)
		if a.IP.Is6() {
			if err != ErrNoIPv6 {
				t.Fatalf("seed %d: AppendRequest4 %v: error %v, want ErrNoIPv6", seed, a, err)
			}
		} else if err != nil {
			t.Fatalf("seed %d: AppendRequest4 %v: %v", seed, a, err)
		} else {
			req, err := ReadRequest4(bytes.NewReader(b[1:]))
			if err != nil || req != (Request{cmd, a, user}) {
				t.Fatalf("seed %d: SOCKS4 request %v %v came back as %+v, %v", seed, cmd, a, req, err)
			}
		}

		if a.Name != "" {
			continue
		}
		bound := netip.AddrPortFrom(a.IP, a.Port)
		if got, err := ReadReply(bytes.NewReader(AppendReply(nil, ReplySucceeded, bound))); err != nil || got != a {
			t.Fatalf("seed %d: reply %v came back as %v, %v", seed, a, got, err)
		}
		if a.IP.Is4() {
			if got, err := ReadReply4(bytes.NewReader(AppendReply4(nil, Reply4Granted, bound))); err != nil || got != bound {
				t.Fatalf("seed %d: SOCKS4 reply %v came back as %v, %v", seed, bound, got, err)
			}
		}
	}
}

// What must not be sent is refused, by every message that carries an address.
func TestBadAddressesAreNotWritten(t *testing.T) {
	addr := netip.MustParseAddr
	tests := []struct {
		name      string
		addr      Addr
		want      error // of AppendRequest and AppendUDPHeader; nil: fine there
		wantSocks error // of AppendRequest4
	}{
		{"nothing", Addr{Port: 80}, ErrNoAddr, ErrNoAddr},
		{"NUL", Addr{Name: "good.example\x00.bad"}, ErrName, ErrName},
		{"newline", Addr{Name: "a\nb"}, ErrName, ErrName},
		{"space", Addr{Name: "a b"}, ErrName, ErrName},
		{"DEL", Addr{Name: "a\x7f"}, ErrName, ErrName},
		{"256 bytes", Addr{Name: strings.Repeat("a", 256)}, ErrName, ErrName},
		{"zone", Addr{IP: addr("fe80::1%eth0")}, ErrZone, ErrNoIPv6},
		{"IPv6", Addr{IP: addr("2001:db8::1")}, nil, ErrNoIPv6},
		{"the mark of 4a", Addr{IP: addr("0.0.0.7")}, nil, ErrNotIPv4},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := AppendRequest(nil, Connect, tt.addr); err != tt.want {
				t.Errorf("AppendRequest: %v, want %v", err, tt.want)
			}
			if _, err := AppendUDPHeader(nil, tt.addr); err != tt.want {
				t.Errorf("AppendUDPHeader: %v, want %v", err, tt.want)
			}
			if _, err := AppendRequest4(nil, Connect, tt.addr, ""); err != tt.wantSocks {
				t.Errorf("AppendRequest4: %v, want %v", err, tt.wantSocks)
			}
		})
	}
}

func TestBadCredentialsAreNotWritten(t *testing.T) {
	long := strings.Repeat("secret", 50)
	_, userErr := AppendUserPass(nil, long, "p")
	_, passErr := AppendUserPass(nil, "u", long)
	_, longErr := AppendRequest4(nil, Connect, Addr{Name: "a"}, long)
	_, nulErr := AppendRequest4(nil, Connect, Addr{Name: "a"}, "secret\x00")
	for i, err := range []error{userErr, passErr, longErr, nulErr} {
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%d: error %v, want one that does not show the credentials", i, err)
		}
	}
}

// What a mapped IPv4 address is asked for as, and how a bound address without a
// value is written.
func TestAddressForms(t *testing.T) {
	mapped := netip.MustParseAddr("::ffff:192.0.2.1")
	b, err := AppendRequest(nil, Connect, Addr{IP: mapped, Port: 80})
	if want := "\x05\x01\x00\x01\xc0\x00\x02\x01\x00\x50"; err != nil || string(b) != want {
		t.Errorf("AppendRequest of a mapped address: %x, %v, want %x", b, err, want)
	}
	b, err = AppendRequest4(nil, Connect, Addr{IP: mapped, Port: 80}, "")
	if want := "\x04\x01\x00\x50\xc0\x00\x02\x01\x00"; err != nil || string(b) != want {
		t.Errorf("AppendRequest4 of a mapped address: %x, %v, want %x", b, err, want)
	}
	b = AppendReply(nil, ReplyRefused, netip.AddrPort{})
	if want := "\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00"; string(b) != want {
		t.Errorf("AppendReply without an address: %x, want %x", b, want)
	}
	b = AppendReply4(nil, Reply4Rejected, netip.MustParseAddrPort("[2001:db8::1]:80"))
	if want := "\x00\x5b\x00\x50\x00\x00\x00\x00"; string(b) != want {
		t.Errorf("AppendReply4 of an IPv6 address: %x, want %x", b, want)
	}
	if got, want := AppendNoMethod(nil), "\x05\xff"; string(got) != want {
		t.Errorf("AppendNoMethod: %x, want %x", got, want)
	}
	if got, want := AppendAuthStatus(nil, false), "\x01\x01"; string(got) != want {
		t.Errorf("AppendAuthStatus of a refusal: %x, want %x", got, want)
	}
}

// Callers branch on these.
func TestErrorsAreFound(t *testing.T) {
	read := func(f func(*bytes.Reader) error, b string) error { return f(bytes.NewReader([]byte(b))) }
	method := func(r *bytes.Reader) error { _, err := ReadMethod(r, MethodUserPass); return err }
	reply := func(r *bytes.Reader) error { _, err := ReadReply(r); return err }
	request := func(r *bytes.Reader) error { _, err := ReadRequest(r); return err }
	status := func(r *bytes.Reader) error { return ReadAuthStatus(r) }
	tests := []struct {
		name  string
		err   error
		want  error
		isNot error
	}{
		{"no method", read(method, "\x05\xff"), ErrNoMethod, ErrProtocol},
		{"another method", read(method, "\x05\x00"), ErrProtocol, ErrNoMethod},
		{"an FF that was offered", func() error {
			_, err := ReadMethod(strings.NewReader("\x05\xff"), methodRefused)
			return err
		}(), ErrNoMethod, ErrProtocol},
		{"wrong version", read(method, "HT"), ErrProtocol, ErrNoMethod},
		{"auth", read(status, "\x01\x05"), ErrAuth, ErrProtocol},
		{"reply", read(reply, "\x05\x05"), ReplyRefused, ErrProtocol},
		{"reply with a bad type", read(reply, "\x05\x00\x00\x09"), ErrProtocol, ReplyAddressType},
		{"request with a bad type", read(request, "\x05\x01\x00\x09"), ReplyAddressType, ErrProtocol},
	}
	for _, tt := range tests {
		if !errors.Is(tt.err, tt.want) || errors.Is(tt.err, tt.isNot) {
			t.Errorf("%s: %v: want it to be %v and not %v", tt.name, tt.err, tt.want, tt.isNot)
		}
	}
}

func TestUDPHeaderAllocatesNothing(t *testing.T) {
	addrs := []Addr{
		{IP: netip.MustParseAddr("192.0.2.1"), Port: 53},
		{IP: netip.MustParseAddr("2001:db8::1"), Port: 53},
		{Name: strings.Repeat("a", maxString), Port: 53},
	}
	buf := make([]byte, 0, MaxUDPHeader+len("payload"))
	for _, a := range addrs {
		var n int
		if got := testing.AllocsPerRun(100, func() {
			b, err := AppendUDPHeader(buf, a)
			if err != nil {
				t.Fatal(err)
			}
			h, payload, err := ParseUDP(append(b, "payload"...))
			if err != nil || h.Addr.Port() != 53 {
				t.Fatal(h, err)
			}
			n += len(payload)
		}); got != 0 {
			t.Errorf("%.9s...: %v allocations a datagram, want 0", a.String(), got)
		}
	}
	garbage := []byte{0, 0, 0, 9, 1, 2, 3}
	if got := testing.AllocsPerRun(100, func() {
		if _, _, err := ParseUDP(garbage); err == nil {
			t.Fatal("garbage was taken")
		}
	}); got != 0 {
		t.Errorf("garbage: %v allocations a datagram, want 0", got)
	}
}
