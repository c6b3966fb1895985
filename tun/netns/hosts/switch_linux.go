package hosts

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"tunroute/tun"
)

// Switch joins hosts: it has a bridge for each network.
type Switch struct{ *Host }

// NewSwitch makes a switch with some networks.
func NewSwitch(networks ...string) (*Switch, error) {
	h, err := New("switch")
	if err != nil {
		return nil, err
	}
	sw := &Switch{h}
	for _, name := range networks {
		err := sw.nl.LinkAdd(&netlink.Bridge{LinkAttrs: named(name)})
		if err == nil {
			err = sw.up(name)
		}
		if err != nil {
			h.Close()
			return nil, fmt.Errorf("make the network %s: %w", name, driver(err, "bridge"))
		}
	}
	return sw, nil
}

// driver explains why an interface of some kind cannot be made.
func driver(err error, kind string) error {
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return &tun.Obstacle{
		What:   "this kernel has no interfaces of the kind " + kind,
		Remedy: "load the driver with `modprobe " + kind + "` as root",
		Err:    err,
	}
}

func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}

// Attach gives a host an interface that is called like the network which it leads to,
// with some IPv4 addresses.
func (sw *Switch) Attach(h *Host, network string, addrs ...netip.Prefix) error {
	if err := sw.attach(h, network, addrs); err != nil {
		return fmt.Errorf("attach %s to %s: %w", h.Name, network, err)
	}
	return nil
}

func (sw *Switch) attach(h *Host, network string, addrs []netip.Prefix) error {
	port := h.Name + "-" + network
	cable := netlink.NewVeth(named(port))
	cable.PeerName = network
	cable.PeerNamespace = netlink.NsFd(h.net)
	if err := sw.nl.LinkAdd(cable); err != nil {
		return driver(err, "veth")
	}
	bridge, err := sw.nl.LinkByName(network)
	if err != nil {
		return err
	}
	if err := sw.nl.LinkSetMaster(cable, bridge); err != nil {
		return err
	}
	if err := sw.up(port); err != nil {
		return err
	}
	link, err := h.nl.LinkByName(network)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := h.nl.AddrAdd(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	return h.up(network)
}

// up sets an interface up, without a link-local address: nothing is said by IPv6 here.
func (h *Host) up(name string) error {
	link, err := h.nl.LinkByName(name)
	if err != nil {
		return err
	}
	_ = h.nl.LinkSetIP6AddrGenMode(link, addrGenModeNone) // a kernel without IPv6 has none anyway
	return h.nl.LinkSetUp(link)
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of include/uapi/linux/if_link.h.
const addrGenModeNone = 1
