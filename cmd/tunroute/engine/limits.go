package engine

import (
	"fmt"

	"tunroute/cmd/tunroute/config"
	"tunroute/router"
	"tunroute/router/limit"
)

// limiters are the limits of a config, by all that makes them what they are. Those that
// the next config has too go on with what they have counted.
type limiters struct {
	flows      map[string]*limit.Limiter
	bandwidths map[string]*limit.Bandwidth
}

// keep returns the limit of a key: one that is there, or was, or a new one.
func keep[T any](is, was map[string]*T, key string, make func() *T) *T {
	switch {
	case is[key] != nil: // two rules of which the second never matches
	case was[key] != nil:
		is[key] = was[key]
	default:
		is[key] = make()
	}
	return is[key]
}

// pers are those of a config.
var pers = map[config.Per]limit.Per{config.PerRule: limit.All, config.PerSource: limit.Source, config.PerUser: limit.User}

// events are those of a config.
var events = map[config.LogEvent]router.Events{
	config.LogConnect: router.LogConnect, config.LogError: router.LogError, config.LogDisconnect: router.LogDisconnect,
	config.LogNone: router.LogNone,
}

// options returns what cfg says of flows besides where they go, and its limits.
func (was limiters) options(cfg *config.Config) (router.SnapshotOptions, limiters) {
	is := limiters{make(map[string]*limit.Limiter), make(map[string]*limit.Bandwidth)}
	get := func(of string, o limit.Options) *limit.Limiter {
		return keep(is.flows, was.flows, fmt.Sprint(of, o), func() *limit.Limiter { return limit.New(o) })
	}
	var more router.SnapshotOptions
	rate := func(r config.Rate) limit.Rate { return limit.Rate{N: r.N, Per: r.Per} }
	for _, o := range []limit.Options{
		{Name: "limits.per-user", Per: limit.User, Sessions: cfg.Limits.PerUser},
		{Name: "limits.rate-per-user", Per: limit.User, Rate: rate(cfg.Limits.RatePerUser)},
		{Name: "limits.per-source", Per: limit.Source, Sessions: cfg.Limits.PerSource},
		{Name: "limits.rate-per-source", Per: limit.Source, Rate: rate(cfg.Limits.RatePerSource)},
		{Name: "limits.rate", Rate: rate(cfg.Limits.Rate)},
	} {
		if o.Sessions > 0 || o.Rate.N > 0 {
			more.Limits = append(more.Limits, get("", o))
		}
	}
	more.Rules = make([]router.RuleOptions, len(cfg.Rules))
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		if b := r.Bandwidth; !b.IsZero() {
			o := limit.BandwidthOptions{Per: pers[b.Per], Up: int64(b.Up), Down: int64(b.Down)}
			more.Rules[i].Bandwidth = keep(is.bandwidths, was.bandwidths, fmt.Sprint(r.Key(), o), func() *limit.Bandwidth { return limit.NewBandwidth(o) })
		}
		for _, e := range r.Log {
			more.Rules[i].Log |= events[e]
		}
		if l := r.Limits; !l.IsZero() {
			more.Rules[i].Limit = get(r.Key(), limit.Options{Name: "the rule", Per: pers[l.Per], Sessions: l.Sessions, Rate: rate(l.Rate)})
		}
	}
	return more, is
}
