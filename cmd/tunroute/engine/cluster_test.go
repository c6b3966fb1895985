package engine

import (
	"slices"
	"strings"
	"testing"

	"tunroute/cmd/tunroute/config"
	"tunroute/dnsfake"
)

func TestClusterDomains(t *testing.T) {
	for search, want := range map[string]bool{
		"shop.svc.cluster.local svc.cluster.local cluster.local ec2.internal":                       true,
		"shop.svc.k8s.example.org svc.k8s.example.org k8s.example.org c.p.internal google.internal": true,
		"svc.cluster.local":               false, // no list of Kubernetes
		"example.org corp.example":        false,
		"svc.example.org www.example.org": false,
		"":                                false,
	} {
		if got := clusterDomains(strings.Fields(search)); (got != nil) != want || want && !slices.Equal(got, strings.Fields(search)) {
			t.Errorf("%q: %q, want all of them: %v", search, got, want)
		}
	}
}

// TestClusterNamesAreLocal: what a search list makes of a name is asked for where the
// list comes from, unless the config says otherwise.
func TestClusterNamesAreLocal(t *testing.T) {
	cfg, err := config.Parse("t.yaml", []byte("names: {remote: [.far.ec2.internal]}\nrules: [{via: direct}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	table, err := cfg.Table()
	if err != nil {
		t.Fatal(err)
	}
	n := &names{cfg: cfg, table: table, away: make([]bool, 1), cluster: []string{"shop.svc.k8s.test", "svc.k8s.test", "k8s.test", "ec2.internal"}}
	for name, want := range map[string]dnsfake.Mode{
		"www.example.org.shop.svc.k8s.test": dnsfake.Local,
		"www.example.org.k8s.test":          dnsfake.Local,
		"www.example.org.ec2.internal":      dnsfake.Local,
		"ec2.internal":                      dnsfake.Local,
		"db.far.ec2.internal":               dnsfake.Remote,
		"notec2.internal":                   dnsfake.Remote,
		"www.example.org":                   dnsfake.Remote,
	} {
		if got := n.policy(name).Mode; got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if allocs := testing.AllocsPerRun(100, func() { n.policy("www.example.org.far.ec2.internal") }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}
