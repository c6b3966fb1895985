// Package company tests tunroute in the network of a company: six requirements of
// 2002 (C. Thieswald, "Understanding and implementing socks server", SANS), which no
// SOCKS system of that time met alone, and Dante's server does not meet today.
//
// The network is made of namespaces, its servers are dnsmasq and, once each, danted and
// tunroute, and what is claimed is what these, the web servers and tcpdump have seen. The config is
// cmd/tunroute/examples/company.yaml, which cmd/tunroute/docs/company.md explains; the
// drawing is there too. It has nothing but tests.
//
// Start at network_linux_test.go, which has the network; software_linux_test.go has what
// makes gateways of its hosts, and requirements_linux_test.go goes through the
// requirements one by one.
package company
