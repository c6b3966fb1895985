package admin

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"tunroute/cmd/tunroute/engine"
)

// NewMetrics shows the counters of d at the moment of each request, and those of the
// process. Labels are closed sets: names of the config, networks and reasons, and
// never a client, a target or a rule's text.
func NewMetrics(d Daemon) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collector{d})
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{})
}

// metric is a figure of engine.Stats.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	get  func(s *engine.Stats) float64
}

func counter[T uint64 | int64](name, help string, get func(*engine.Stats) T) metric {
	return metric{prometheus.NewDesc("tunroute_"+name+"_total", help, nil, nil), prometheus.CounterValue,
		func(s *engine.Stats) float64 { return float64(get(s)) }}
}

func gauge[T uint64 | int](name, help string, get func(*engine.Stats) T) metric {
	return metric{prometheus.NewDesc("tunroute_"+name, help, nil, nil), prometheus.GaugeValue,
		func(s *engine.Stats) float64 { return float64(get(s)) }}
}

// The metrics, by room. docs/admin.md has them by their names.
func metrics() []metric {
	type stats = *engine.Stats
	return []metric{
		gauge("stack_half_open", "Connection attempts that wait for an answer.", func(s stats) int { return s.Stack.HalfOpen }),
		gauge("stack_connections", "Connections of the TUN, up to the end of TIME-WAIT.", func(s stats) uint64 { return s.Stack.Established }),
		counter("stack_half_open_dropped", "SYNs that were dropped for a limit.", func(s stats) uint64 { return s.Stack.HalfOpenDropped }),
		counter("stack_refused", "Connection attempts that got an RST or an ICMP message.", func(s stats) uint64 { return s.Stack.Refused }),
		counter("stack_packets_in", "Packets from the TUN; a super-segment is one.", func(s stats) uint64 { return s.Stack.PacketsIn }),
		counter("stack_packets_out", "Packets to the TUN; a super-segment is one.", func(s stats) uint64 { return s.Stack.PacketsOut }),
		counter("stack_bad_packets", "Packets that are neither IPv4 nor IPv6.", func(s stats) uint64 { return s.Stack.BadPackets }),
		counter("stack_bad_datagrams", "Datagrams with a wrong length or checksum.", func(s stats) uint64 { return s.Stack.BadDatagrams }),

		gauge("router_flows", "TCP flows that are open.", func(s stats) int { return s.Router.Flows }),
		gauge("router_udp_sessions", "UDP sessions that are open.", func(s stats) int { return s.Router.Sessions }),
		counter("router_tcp_flows", "TCP flows that have ended.", func(s stats) uint64 { return s.Router.TCP }),
		counter("router_udp_flows", "UDP flows that have ended.", func(s stats) uint64 { return s.Router.UDP }),
		counter("router_up_bytes", "Payload from clients, of flows that have ended.", func(s stats) int64 { return s.Router.Up }),
		counter("router_down_bytes", "Payload to clients, of flows that have ended.", func(s stats) int64 { return s.Router.Down }),
		counter("router_failed", "Flows that could not be connected, or that the target refused.", func(s stats) uint64 { return s.Router.Failed }),
		counter("router_rejected", "Flows that a rule refused or ignored.", func(s stats) uint64 { return s.Router.Rejected }),
		counter("router_orphans", "Flows to fake addresses without a name.", func(s stats) uint64 { return s.Router.Orphans }),
		counter("router_flows_evicted", "Idle TCP flows that made room for others.", func(s stats) uint64 { return s.Router.FlowsEvicted }),
		counter("router_flows_refused", "TCP flows for which there was no room.", func(s stats) uint64 { return s.Router.FlowsRefused }),
		counter("router_datagrams_limited", "Datagrams that went faster than the bandwidth of their rule.", func(s stats) uint64 { return s.Router.UDPLimited }),
		counter("router_flows_limited", "Flows that a limit of a rule, of sources, of users or of new flows has refused.", func(s stats) uint64 { return s.Router.Limited }),
		counter("router_udp_evicted", "Idle UDP sessions that made room for others.", func(s stats) uint64 { return s.Router.UDPEvicted }),

		gauge("inbound_waiting", "Clients of listeners that have not asked yet.", func(s stats) int { return s.Inbound.Waiting }),
		counter("inbound_clients", "Clients that have come to listeners.", func(s stats) uint64 { return s.Inbound.Clients }),
		counter("inbound_unwanted", "Clients from where nobody is served.", func(s stats) uint64 { return s.Inbound.Unwanted }),
		counter("inbound_evicted", "Clients that made room for others before they asked.", func(s stats) uint64 { return s.Inbound.Evicted }),
		counter("inbound_failed", "Clients that did not get as far as a request.", func(s stats) uint64 { return s.Inbound.Failed }),

		gauge("dns_leases", "Names that have a fake address.", func(s stats) int { return s.Pool.Leases }),
		gauge("dns_leases_max", "Names that can have one.", func(s stats) int { return s.Pool.Capacity }),
		gauge("dns_leases_failing", "1 while the file of leases cannot be written.", func(s stats) int {
			if s.Pool.Failing {
				return 1
			}
			return 0
		}),
		counter("dns_leases_unsaved", "Answers that did not wait until their lease was in the file.", func(s stats) uint64 { return s.Pool.Unsaved }),
		gauge("dns_pins", "Flows on fake addresses.", func(s stats) int { return s.Pool.Pins }),
		gauge("dns_waiting", "Questions that wait for a resolver.", func(s stats) int { return s.DNS.Waiting }),
		counter("dns_leased", "Answers with a fake address.", func(s stats) uint64 { return s.DNS.Leased }),
		counter("dns_own", "Other answers of our own.", func(s stats) uint64 { return s.DNS.Own }),
		counter("dns_forwarded", "Answers of a resolver, passed on.", func(s stats) uint64 { return s.DNS.Forwarded }),
		counter("dns_refused", "Questions that are malformed, or of a kind that is not served.", func(s stats) uint64 { return s.DNS.Refused }),
		counter("dns_failed", "Questions that were answered SERVFAIL.", func(s stats) uint64 { return s.DNS.Failed }),
		gauge("dns_cache_entries", "Answers of resolvers that are kept.", func(s stats) int { return s.Lookups.Entries }),
		gauge("dns_cache_bytes", "Memory that answers of resolvers take.", func(s stats) int { return s.Lookups.Bytes }),
		counter("dns_cache_hits", "Questions and look-ups that were answered from what is kept.", func(s stats) uint64 { return s.Lookups.Hits }),
		counter("dns_cache_stale", "Answers that stood in after their time was over.", func(s stats) uint64 { return s.Lookups.Stale }),
		counter("dns_cache_misses", "Questions that resolvers were asked.", func(s stats) uint64 { return s.Lookups.Misses }),
		counter("dns_cache_prefetched", "Answers that were asked for again before their time was over.", func(s stats) uint64 { return s.Lookups.Prefetch }),
		counter("dns_cache_failed", "Questions to which no resolver had an answer.", func(s stats) uint64 { return s.Lookups.Failed }),
		counter("dns_evicted", "Leases that ended for another name.", func(s stats) uint64 { return s.Pool.Evicted }),
		counter("dns_exhausted", "Names that got no lease.", func(s stats) uint64 { return s.Pool.Exhausted }),
	}
}

// The metrics of the members of groups.
var (
	memberLabels = []string{"group", "member", "net"}
	memberBad    = prometheus.NewDesc("tunroute_group_member_bad", "Whether a member gets no flows, because it failed or cannot carry the network.", memberLabels, nil)
	memberProbe  = prometheus.NewDesc("tunroute_group_member_probe_seconds", "How long the last probe of a member took that succeeded.", memberLabels, nil)
	uptime       = prometheus.NewDesc("tunroute_uptime_seconds", "How long the daemon has been running.", nil, nil)
)

// collector reads the counters when it is asked.
type collector struct{ d Daemon }

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics() {
		ch <- m.desc
	}
	ch <- memberBad
	ch <- memberProbe
	ch <- uptime
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.d.Stats()
	for _, m := range metrics() {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.get(&s))
	}
	status := c.d.Status()
	ch <- prometheus.MustNewConstMetric(uptime, prometheus.GaugeValue, time.Since(status.Started).Seconds())
	for _, g := range status.Groups {
		for _, m := range g.Members {
			bad := 0.0
			if m.Bad {
				bad = 1
			}
			ch <- prometheus.MustNewConstMetric(memberBad, prometheus.GaugeValue, bad, g.Name, m.Name, m.Network)
			if m.Took > 0 {
				ch <- prometheus.MustNewConstMetric(memberProbe, prometheus.GaugeValue, m.Took.Seconds(), g.Name, m.Name, m.Network)
			}
		}
	}
}
