package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"tunroute/tun"
)

// Diagnose turns an error of [Start] or [Setup] into a [*tun.Obstacle] that says
// what on this machine forbids namespaces and what to do about it, in one line.
// An error for which it finds no reason it returns as it is. Start and Setup
// call it already.
func Diagnose(err error) error {
	return diagnose(err, readMachine())
}

// machine is what may forbid namespaces.
type machine struct {
	root       bool
	sysctl     map[string]string // "" where there is none
	seccomp    bool              // a filter decides about our system calls
	apparmor   string            // the profile that confines us, "" for none
	executable string
}

// The settings that forbid. Debian and others have the second, Ubuntu has the
// third since 23.10.
const (
	sysctlUser     = "user.max_user_namespaces"
	sysctlNet      = "user.max_net_namespaces"
	sysctlMount    = "user.max_mnt_namespaces"
	sysctlClone    = "kernel.unprivileged_userns_clone"
	sysctlAppArmor = "kernel.apparmor_restrict_unprivileged_userns"
)

func readMachine() machine {
	m := machine{root: os.Geteuid() == 0, sysctl: make(map[string]string)}
	for _, name := range []string{sysctlUser, sysctlNet, sysctlMount, sysctlClone, sysctlAppArmor} {
		m.sysctl[name] = readLine("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	}
	status, _ := os.ReadFile("/proc/self/status")
	m.seccomp = strings.Contains(string(status), "\nSeccomp:\t2")
	if profile, _, _ := strings.Cut(readLine("/proc/self/attr/apparmor/current"), " "); profile != "unconfined" {
		m.apparmor = profile
	}
	m.executable, _ = os.Executable()
	return m
}

func readLine(path string) string {
	b, _ := os.ReadFile(path)
	return strings.TrimRight(string(b), "\x00\n ")
}

func diagnose(err error, m machine) error {
	denied := errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)
	obstacle := func(what, remedy string) error {
		return &tun.Obstacle{What: what, Remedy: remedy, Err: err}
	}

	// Where AppArmor lets the namespace be made but gives no capabilities in
	// it, a TUN is refused for a reason that is not CAP_NET_ADMIN of the host.
	restricted := !m.root && m.sysctl[sysctlAppArmor] == "1"
	var known *tun.Obstacle
	if errors.As(err, &known) && !(restricted && errors.Is(err, unix.EPERM)) {
		return err
	}
	var path *fs.PathError
	mounting := errors.As(err, &path) && (path.Op == opMount || path.Op == opOpenTree || path.Op == opMoveMount)

	switch {
	case errors.Is(err, unix.ENOSPC):
		for _, name := range []string{sysctlUser, sysctlNet, sysctlMount} {
			if m.sysctl[name] == "0" {
				return obstacle("namespaces are switched off ("+name+" is 0)", "run `sysctl -w "+name+"=15000` as root")
			}
		}
		return obstacle("there are too many namespaces", "raise "+sysctlUser+", "+sysctlNet+" or "+sysctlMount+" with `sysctl -w` as root")
	case denied && !m.root && m.sysctl[sysctlClone] == "0":
		return obstacle("user namespaces are for root only ("+sysctlClone+" is 0)", "run `sysctl -w "+sysctlClone+"=1` as root")
	case denied && restricted:
		return obstacle("AppArmor forbids user namespaces to this program ("+sysctlAppArmor+" is 1)",
			fmt.Sprintf("allow them to it alone by running, as root, `%s`", appArmorCommand(m.executable)))
	case denied && m.seccomp && !mounting:
		return obstacle("a seccomp filter, as containers have it, forbids namespaces",
			"start the container with `--security-opt seccomp=unconfined`, or use `tunroute run` in it, which needs none")
	case denied && m.apparmor != "" && mounting:
		return obstacle(fmt.Sprintf("the AppArmor profile %q, as containers have it, forbids mounting", m.apparmor),
			"start the container with `--security-opt apparmor=unconfined`, or use `tunroute run` in it, which mounts nothing")
	case errors.Is(err, unix.ENOSYS) && mounting:
		return obstacle("this kernel cannot mount as it is needed ("+path.Op+" is missing)", "use Linux 5.2 or later")
	case errors.Is(err, unix.EINVAL) && !mounting && m.sysctl[sysctlUser] == "":
		return obstacle("this kernel has no user namespaces", "run as root, or use a kernel with CONFIG_USER_NS")
	}
	return err
}

// appArmorCommand allows user namespaces to one program. The profile confines
// nothing else.
func appArmorCommand(executable string) string {
	return fmt.Sprintf(`echo 'abi <abi/4.0>, profile tunroute "%s" flags=(unconfined) { userns, }' > /etc/apparmor.d/tunroute && apparmor_parser -r /etc/apparmor.d/tunroute`, executable)
}
