package route

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// conflicts returns an error if what is on the host does not go together with
// p, or nil. It names all of it, each with what to do.
func conflicts(h *netlink.Handle, p Plan) error {
	var errs []error
	conflict := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrConflict}, args...)...))
	}
	for _, family := range families() {
		used := usedBy(p, family)
		rules, err := ruleList(h, family)
		if err != nil {
			return err
		}
		for _, r := range rules {
			switch {
			case r.Protocol == Protocol:
				if used.priorities[r.Priority] || used.tables[r.Table] {
					errs = append(errs, fmt.Errorf("%w: rule %s", ErrLeftover, describe(r)))
				}
			case used.priorities[r.Priority]:
				conflict("rule %s has a priority that is ours: choose another `table`, the priorities go with it", describe(r))
			case used.tables[r.Table]:
				conflict("rule %s looks up a table that is ours: choose another `table`", describe(r))
			case markClash(r, used):
				conflict("rule %s and our mark %#x/%#x match the same packets: choose another `mark`", describe(r), used.mark.Mark, used.mark.Mask)
			}
		}
		routes, err := routeList(h, family)
		if err != nil {
			return err
		}
		for _, r := range routes {
			switch {
			case !used.tables[r.Table]:
			case r.Protocol == Protocol:
				errs = append(errs, fmt.Errorf("%w: route %s in table %d", ErrLeftover, r.Dst, r.Table))
			default:
				conflict("table %d has a route for %s that is not ours: choose another `table`", r.Table, r.Dst)
			}
		}
	}
	return errors.Join(errs...)
}

// numbers are those that a plan uses in one IP version.
type numbers struct {
	priorities, tables map[int]bool
	mark               Rule // the one about our own packets
}

func usedBy(p Plan, f int) numbers {
	n := numbers{priorities: make(map[int]bool), tables: make(map[int]bool)}
	for _, r := range p.Rules {
		if family(r.IPv6) != f {
			continue
		}
		n.priorities[r.Priority] = true
		if r.Table != tableMain && !r.Unreachable {
			n.tables[r.Table] = true
		}
		if r.Mask != 0 {
			n.mark = r
		}
	}
	return n
}

// markClash says whether somebody else's rule about a mark comes before ours and
// takes our packets, or after ours, which then takes theirs. A rule "not fwmark"
// takes ours by intent: it is that of a VPN which is to carry them.
func markClash(r netlink.Rule, used numbers) bool {
	if used.mark.Mask == 0 || r.Mark == 0 || r.Invert {
		return false
	}
	theirs := ^uint32(0)
	if r.Mask != nil {
		theirs = *r.Mask
	}
	if r.Priority < used.mark.Priority {
		return used.mark.Mark&theirs == r.Mark
	}
	return r.Mark&used.mark.Mask == used.mark.Mark
}

// describe returns a rule as the user would find it in the list of ip(8).
func describe(r netlink.Rule) string {
	s := fmt.Sprintf("%d:", r.Priority)
	if r.Src != nil {
		s += " from " + r.Src.String()
	}
	if r.Dst != nil {
		s += " to " + r.Dst.String()
	}
	if r.Mark != 0 {
		s += fmt.Sprintf(" fwmark %#x", r.Mark)
		if r.Mask != nil {
			s += fmt.Sprintf("/%#x", *r.Mask)
		}
	}
	if r.IifName != "" {
		s += " iif " + r.IifName
	}
	if r.Table != unix.RT_TABLE_UNSPEC {
		s += fmt.Sprintf(" lookup %d", r.Table)
	}
	return s
}
