// Package hosts makes a small network out of namespaces: hosts, each with a network
// namespace of its own, and switches that join them. Nobody outside sees anything of
// it, and no privilege is needed where the machine lets users have namespaces.
//
// Start at [Start], which runs this executable again where hosts can be made, and at
// [Enter], which the process that it has started calls. There [New] makes a host and
// [NewSwitch] what joins hosts. [Host.Command] starts a program on a host, [Host.Do]
// and [Host.Listen] open sockets there.
//
// The package works on Linux only and is empty elsewhere. What forbids it on a machine
// it reports as a [tunroute/tun.Obstacle], as package netns does. It does not know what
// runs on the hosts.
//
// # Theory of operation
//
//	P ── Start, World.Wait
//	└── D ── the first process of new namespaces: Enter
//	    ├── a program on one host
//	    └── a program on another
//
// D is in a user namespace (unless P is root), in which the user stays who it is and
// has the capabilities that networks take, and in mount, network, process, IPC and
// host name namespaces. Its network namespace has no interface but lo; each host has
// a network namespace that belongs to the same user namespace, and a mount namespace, and
// so does a switch, whose bridges are the networks.
//
// Nothing is left when D ends: the kernel kills all processes of a process namespace
// with the first one, network namespaces and mounts end with the last process that is
// in them, and files are made in memory, see [Scratch]. D ends when P does, however P
// has ended: P holds the one end of a pipe of which D reads the other.
package hosts
