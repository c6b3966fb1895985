package config

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"tunroute/router/flow"
	"tunroute/router/rule"
)

// parsers read the single values, by type. A value of a slice type is what one
// text stands for.
var parsers = map[reflect.Type]func(string) (any, error){
	reflect.TypeFor[string]():           func(s string) (any, error) { return s, nil },
	reflect.TypeFor[bool]():             func(s string) (any, error) { return parseBool(s) },
	reflect.TypeFor[int]():              func(s string) (any, error) { return parseInt(s) },
	reflect.TypeFor[uint32]():           func(s string) (any, error) { return parseUint32(s) },
	reflect.TypeFor[time.Duration]():    func(s string) (any, error) { return parseDuration(s) },
	reflect.TypeFor[netip.Addr]():       func(s string) (any, error) { return parseAddr(s) },
	reflect.TypeFor[netip.AddrPort]():   func(s string) (any, error) { return parseAddrPort(s) },
	reflect.TypeFor[Endpoint]():         func(s string) (any, error) { return parseEndpoint(s) },
	reflect.TypeFor[netip.Prefix]():     func(s string) (any, error) { return rule.ParseFrom(s) },
	reflect.TypeFor[rule.Dest]():        func(s string) (any, error) { return rule.ParseDest(s) },
	reflect.TypeFor[[]rule.PortRange](): func(s string) (any, error) { return parsePorts(s) },
	reflect.TypeFor[Proto]():            func(s string) (any, error) { return parseEnum("protocol", protos, s) },
	reflect.TypeFor[Auth]():             func(s string) (any, error) { return parseEnum("way to authenticate", auths, s) },
	reflect.TypeFor[Protection]():       func(s string) (any, error) { return parseEnum("protection", protections, s) },
	reflect.TypeFor[Compatibility]():    func(s string) (any, error) { return parseEnum("compatibility", compatibilities, s) },
	reflect.TypeFor[Mode]():             func(s string) (any, error) { return parseEnum("mode", modes, s) },
	reflect.TypeFor[ForwardTo]():        func(s string) (any, error) { return parseForwardTo(s) },
	reflect.TypeFor[Helper]():           func(s string) (any, error) { return parseEnum("helper", helpers, s) },
	reflect.TypeFor[Format]():           func(s string) (any, error) { return parseEnum("format", formats, s) },
	reflect.TypeFor[Level]():            func(s string) (any, error) { return parseLevel(s) },
	reflect.TypeFor[Mark]():             func(s string) (any, error) { return parseMark(s) },
	reflect.TypeFor[Policy]():           func(s string) (any, error) { return parseEnum("policy", policies, s) },
	reflect.TypeFor[HashBy]():           func(s string) (any, error) { return parseEnum("thing that hash goes by", hashBys, s) },
	reflect.TypeFor[Probe]():            func(s string) (any, error) { return parseProbe(s) },
	reflect.TypeFor[HTTPS]():            func(s string) (any, error) { return parseEnum("way with HTTPS records", httpses, s) },
	reflect.TypeFor[ECH]():              func(s string) (any, error) { return parseEnum("way with keys", echs, s) },
	reflect.TypeFor[Rejected]():         func(s string) (any, error) { return parseEnum("way with rejected names", rejecteds, s) },
	reflect.TypeFor[Answer]():           func(s string) (any, error) { return parseEnum("kind of addresses", answers, s) },
	reflect.TypeFor[ListenAt]():         func(s string) (any, error) { return parseListenAt(s) },
	reflect.TypeFor[FileMode]():         func(s string) (any, error) { return parseFileMode(s) },
	reflect.TypeFor[Command]():          func(s string) (any, error) { return parseEnum("command", commands, s) },
	reflect.TypeFor[Strategy]():         func(s string) (any, error) { return parseEnum("strategy", strategies, s) },
	reflect.TypeFor[LogEvent]():         func(s string) (any, error) { return parseEnum("thing to log", logEvents, s) },
	reflect.TypeFor[Speed]():            func(s string) (any, error) { return parseSpeed(s) },
	reflect.TypeFor[Rate]():             func(s string) (any, error) { return parseRate(s) },
	reflect.TypeFor[Per]():              func(s string) (any, error) { return parseEnum("kind of limit", pers, s) },
	reflect.TypeFor[syslogAt]():         func(s string) (any, error) { return parseSyslogAt(s) },
	reflect.TypeFor[Facility]():         func(s string) (any, error) { return parseFacility(s) },
	reflect.TypeFor[rfc]():              func(s string) (any, error) { return parseRFC(s) },
}

func parseError(s, reason, hint string) error {
	return &rule.ParseError{Text: s, Reason: reason, Hint: hint}
}

func parseEnum(what string, e enum, s string) (int, error) {
	i, hint := e.parse(s)
	if i < 0 {
		return 0, parseError(s, "is not a "+what, hint)
	}
	return i, nil
}

func parseLevel(s string) (Level, error) {
	i, err := parseEnum("level", levels, s)
	return Level(levelValues[i]), err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	hint := "write true or false"
	switch strings.ToLower(s) {
	case "yes", "on", "y", "true":
		hint = "write true"
	case "no", "off", "n", "false":
		hint = "write false"
	}
	return false, parseError(s, "is neither true nor false", hint)
}

func parseInt(s string) (int, error) {
	n, err := strconv.Atoi(s)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, parseError(s, "is too large", "write a smaller number")
	case err != nil:
		return 0, parseError(s, "is not a whole number", "write digits only, as in 1500")
	}
	return n, nil
}

func parseUint32(s string) (uint32, error) {
	digits, base := s, 10 // a zero in front does not make a number octal
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		digits, base = hex, 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, parseError(s, "does not fit into 32 bits", "write a smaller number")
	case err != nil:
		return 0, parseError(s, "is not a number", "write digits, or 0x and hexadecimal digits")
	}
	return uint32(n), nil
}

func parseFileMode(s string) (FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n == 0 || n > 0o777 {
		return 0, parseError(s, "is not the mode of a file", "write three or four octal digits, as in 0660")
	}
	return FileMode(n), nil
}

func parseMark(s string) (Mark, error) {
	value, mask, masked := strings.Cut(s, "/")
	m := Mark{Mask: ^uint32(0)}
	var err error
	if m.Value, err = parseUint32(strings.TrimSpace(value)); err != nil {
		return m, err
	}
	if masked {
		if m.Mask, err = parseUint32(strings.TrimSpace(mask)); err != nil {
			return m, err
		}
	}
	switch {
	case m.Value == 0:
		return m, parseError(s, "is no mark: every packet without one has it", "set a bit, as in 0x10/0x10")
	case m.Value&^m.Mask != 0:
		return m, parseError(s, "has bits outside its mask", fmt.Sprintf("write %#x/%#x", m.Value, m.Value|m.Mask))
	}
	return m, nil
}

func parseDuration(s string) (time.Duration, error) {
	t, err := time.ParseDuration(s)
	if err != nil {
		hint := "write a number and its unit, as in 500ms, 10s, 2m or 1h"
		if _, err := strconv.ParseFloat(s, 64); err == nil {
			return 0, parseError(s, "has no unit", "write "+s+"s for seconds, "+s+"ms for milliseconds")
		}
		return 0, parseError(s, "is not a duration", hint)
	}
	if t <= 0 {
		return 0, parseError(s, "is not a time to wait", "write a duration above zero")
	}
	return t, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		hint := "write an address, as in 192.0.2.1; an interface is named with interface"
		if strings.Contains(s, "/") {
			hint = "leave out the slash and what follows"
		}
		return a, parseError(s, "is not an address", hint)
	case a.IsUnspecified(), a.IsMulticast():
		return a, parseError(s, "is not an address of a machine", "write one of this machine's, or leave the key out")
	}
	return a.Unmap(), nil
}

// parseAddrPort parses the address of a DNS server.
func parseAddrPort(s string) (netip.AddrPort, error) {
	const dns = 53
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), dns), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		hint := "write an address, as in 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53"
		return ap, parseError(s, "is not an address with or without a port", hint)
	}
	if ap.Port() == 0 {
		return ap, parseError(s, "has port 0, which nobody can be at", "leave the port out for 53")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func parseEndpoint(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		hint := "write an address and a port, as in 127.0.0.1:9108 or [::1]:9108"
		if port, ok := strings.CutPrefix(s, ":"); ok && strings.Trim(port, "0123456789") == "" {
			hint = "write 0.0.0.0" + s + " and \"[::]" + s + "\" for every address"
		}
		return ap, parseError(s, "is not an address and a port", hint)
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func parseProbe(s string) (Probe, error) {
	switch s {
	case "negotiate":
		return Probe{}, nil
	case "connect":
		return Probe{ConnectOnly: true}, nil
	}
	t, err := flow.ParseTarget(s)
	if err != nil || t.Port == 0 {
		hint := didYouMean(s, []string{"negotiate", "connect"})
		if strings.Contains(s, ":") {
			hint = "write negotiate, connect, or a target as in www.example.org:443"
		}
		return Probe{}, parseError(s, "is not a probe", hint)
	}
	return Probe{Target: t}, nil
}

func parsePorts(s string) ([]rule.PortRange, error) {
	ranges, err := rule.ParsePorts(s)
	var pe *rule.ParseError
	if errors.As(err, &pe) {
		if near := closest(pe.Text, rule.Services()); near != "" && !strings.ContainsAny(pe.Text, "0123456789") {
			pe.Hint = fmt.Sprintf("did you mean %q?", near)
		}
	}
	return ranges, err
}
