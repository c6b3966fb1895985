package rule

import (
	"slices"
	"strings"

	"tunroute/router/flow"
)

// AnyUser, as an entry of a rule's Users, is everybody who has said who it is.
const AnyUser = "*"

// who are the conditions of a rule about the client: how it came in, as whom, and what
// it asks for. What is empty is always met.
type who struct {
	commands         uint8 // a bit for each flow.Command
	inbounds         []string
	users, groups    map[string]struct{}
	anyUser, trivial bool // trivial: nothing is said
}

func compileWho(r Rule) who {
	w := who{inbounds: slices.Clone(r.Inbounds), users: set(r.Users), groups: set(r.Groups)}
	for _, c := range r.Commands {
		w.commands |= 1 << c
	}
	_, w.anyUser = w.users[AnyUser]
	w.trivial = w.commands == 0 && len(w.inbounds) == 0 && w.users == nil && w.groups == nil
	return w
}

func set(list []string) map[string]struct{} {
	if len(list) == 0 {
		return nil
	}
	s := make(map[string]struct{}, len(list))
	for _, e := range list {
		s[e] = struct{}{}
	}
	return s
}

func (w *who) matches(f *flow.Flow) bool {
	return w.trivial || w.commandMatches(f) && w.inboundMatches(f.Inbound) && w.userMatches(f.User) && w.groupMatches(f.Groups)
}

func (w *who) commandMatches(f *flow.Flow) bool {
	return w.commands == 0 || w.commands&(1<<f.Asks()) != 0
}

func (w *who) inboundMatches(inbound string) bool {
	return len(w.inbounds) == 0 || slices.Contains(w.inbounds, inbound)
}

func (w *who) userMatches(user string) bool {
	if w.users == nil {
		return true
	}
	if user == "" {
		return false
	}
	_, ok := w.users[user]
	return ok || w.anyUser
}

func (w *who) groupMatches(groups []string) bool {
	if w.groups == nil {
		return true
	}
	for _, g := range groups {
		if _, ok := w.groups[g]; ok {
			return true
		}
	}
	return false
}

// covers tells whether w matches every client that of does.
func (w *who) covers(of *who) bool {
	switch {
	case w.trivial:
		return true
	case w.commands != 0 && (of.commands == 0 || of.commands&^w.commands != 0):
		return false
	case len(w.inbounds) > 0 && (len(of.inbounds) == 0 || slices.ContainsFunc(of.inbounds, func(i string) bool { return !w.inboundMatches(i) })):
		return false
	case w.groups != nil && !within(of.groups, w.groups):
		return false
	}
	return w.users == nil || w.anyUser && of.users != nil || !of.anyUser && within(of.users, w.users)
}

// within tells whether part is not empty and has nothing that all has not.
func within(part, all map[string]struct{}) bool {
	for e := range part {
		if _, ok := all[e]; !ok {
			return false
		}
	}
	return part != nil
}

// whyNot says which condition does not hold, and why: "", "" if all do.
func (w *who) whyNot(f *flow.Flow, r *Rule) (key, reason string) {
	switch {
	case !w.commandMatches(f):
		return "command", f.Asks().String() + " is not " + list(r.Commands)
	case !w.inboundMatches(f.Inbound):
		return "inbound", "it comes by " + f.Inbound + ", not by " + strings.Join(r.Inbounds, " or ")
	case !w.userMatches(f.User) && f.User == "":
		return "user", "the user is not known"
	case !w.userMatches(f.User):
		return "user", "user " + f.User + " is not " + list(words(r.Users))
	case !w.groupMatches(f.Groups) && len(f.Groups) == 0:
		return "group", "the user is in no group"
	case !w.groupMatches(f.Groups):
		return "group", "the user's groups are " + strings.Join(f.Groups, ", ") + ", not " + list(words(r.Groups))
	}
	return "", ""
}

// word is a text that list takes.
type word string

func (w word) String() string { return string(w) }

func words(list []string) []word {
	all := make([]word, len(list))
	for i, s := range list {
		all[i] = word(s)
	}
	return all
}

// Admits tells whether some flow like from could go anywhere: whether there is a rule for
// it that goes to another outbound than refuse says, before one that refuses all of them.
// Of from, the Target is not known yet and, while it has no Network, neither is who it is
// and what it asks for. A source that is not valid is none that a rule could name.
func (t *Table) Admits(from flow.Flow, refuse func(via string) bool) bool {
	src, asked := plain(from.Source.Addr()), from.Network != 0
	for i := range t.compiled {
		c := &t.compiled[i]
		if !c.fromMatches(src) || !c.who.inboundMatches(from.Inbound) {
			continue
		}
		if asked && !(c.networkMatches(from.Network) && c.who.matches(&from)) {
			continue
		}
		if !refuse(t.rules[i].Via) {
			return true
		}
		if len(c.ports) == 0 && c.to == nil && (asked || c.network == 0 && c.who.commands == 0 && c.who.users == nil && c.who.groups == nil) {
			return false
		}
	}
	return false
}
