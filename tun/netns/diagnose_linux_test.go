package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"tunroute/tun"
	"tunroute/tun/nstest"
)

func TestDiagnose(t *testing.T) {
	clone := func(errno error) error {
		return fmt.Errorf("make a namespace: %w", &fs.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: errno})
	}
	mount := func(op string, errno error) error {
		return fmt.Errorf("cover: %w", &fs.PathError{Op: op, Path: "/etc/resolv.conf", Err: errno})
	}
	attach := &tun.Obstacle{What: "a tun may not be made", Remedy: "run as root", Err: unix.EPERM}
	on := map[string]string{sysctlUser: "15000", sysctlNet: "15000", sysctlMount: "15000"}
	with := func(name, value string) map[string]string {
		m := map[string]string{name: value}
		for k, v := range on {
			if k != name {
				m[k] = v
			}
		}
		return m
	}

	for _, tt := range []struct {
		name string
		err  error
		m    machine
		want []string // parts of the line; none for an error that stays as it is
	}{
		{"off", clone(unix.ENOSPC), machine{sysctl: with(sysctlUser, "0")}, []string{"switched off", "sysctl -w user.max_user_namespaces=15000"}},
		{"network namespaces off", clone(unix.ENOSPC), machine{sysctl: with(sysctlNet, "0")}, []string{"sysctl -w user.max_net_namespaces"}},
		{"too many", clone(unix.ENOSPC), machine{sysctl: on}, []string{"too many"}},
		{"Debian", clone(unix.EPERM), machine{sysctl: with(sysctlClone, "0")}, []string{"root only", "sysctl -w kernel.unprivileged_userns_clone=1"}},
		{"Debian, root", clone(unix.EPERM), machine{root: true, sysctl: with(sysctlClone, "0")}, nil},
		{"Ubuntu", clone(unix.EPERM), machine{sysctl: with(sysctlAppArmor, "1"), executable: "/usr/bin/tunroute"}, []string{"AppArmor", `"/usr/bin/tunroute"`, "userns,", "apparmor_parser"}},
		{"Ubuntu, no capabilities", attach, machine{sysctl: with(sysctlAppArmor, "1")}, []string{"AppArmor"}},
		{"Ubuntu, lo", fmt.Errorf("set lo up: %w", unix.EPERM), machine{sysctl: with(sysctlAppArmor, "1")}, []string{"AppArmor"}},
		{"Ubuntu, mount", mount(opMount, unix.EACCES), machine{sysctl: with(sysctlAppArmor, "1")}, []string{"AppArmor"}},
		{"Ubuntu, missing device", &tun.Obstacle{Err: unix.ENOENT}, machine{sysctl: with(sysctlAppArmor, "1")}, nil},
		{"tun", attach, machine{sysctl: on}, nil},
		{"container", clone(unix.EPERM), machine{root: true, sysctl: on, seccomp: true}, []string{"seccomp", "--security-opt seccomp=unconfined"}},
		{"container, mount", mount(opMount, unix.EACCES), machine{root: true, sysctl: on, apparmor: "docker-default"}, []string{"docker-default", "apparmor=unconfined"}},
		{"old kernel", mount(opOpenTree, unix.ENOSYS), machine{sysctl: on}, []string{"open_tree", "5.2"}},
		{"no user namespaces", clone(unix.EINVAL), machine{}, []string{"CONFIG_USER_NS"}},
		{"nothing known", clone(unix.EPERM), machine{sysctl: on}, nil},
		{"another error", clone(unix.ENOMEM), machine{sysctl: with(sysctlAppArmor, "1"), seccomp: true}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := diagnose(tt.err, tt.m)
			if tt.want == nil {
				if got != tt.err {
					t.Errorf("became %v", got)
				}
				return
			}
			var o *tun.Obstacle
			if !errors.As(got, &o) || !errors.Is(got, tt.err) {
				t.Fatalf("became %v, want an obstacle that has it", got)
			}
			for _, w := range tt.want {
				if !strings.Contains(got.Error(), w) {
					t.Errorf("%q does not say %q", got, w)
				}
			}
			if strings.Contains(got.Error(), "\n") {
				t.Errorf("%q is more than one line", got)
			}
		})
	}
}

// On a machine where network namespaces are off.
func TestLimitIsToldByTheRealThing(t *testing.T) {
	nstest.NeedRoot(t)
	cmd := user{}.command(t)
	cmd.Path = "/bin/sh"
	cmd.Args = []string{"sh", "-c", `echo 0 > /proc/sys/user/max_net_namespaces && exec "$0" parent true`, publicBinary(t)}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:     true,
		Cloneflags:  unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{Size: 1}},
	}
	_, errs, status := run(t, cmd)
	if status != exitFailed || !strings.Contains(errs, "sysctl -w user.max_net_namespaces=15000") {
		t.Errorf("status %d, %q", status, errs)
	}
}

// The device of the machine is for root only.
func TestClosedDeviceIsToldByTheRealThing(t *testing.T) {
	u := nobody(t)
	info, err := os.Stat("/dev/net/tun")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", "/dev/net", "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount("/dev/net", unix.MNT_DETACH)
	if _, errs, status := u.run(t, "true"); status != exitFailed || !strings.Contains(errs, "modprobe tun") {
		t.Errorf("without the device: status %d, %q", status, errs)
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o600, int(info.Sys().(*syscall.Stat_t).Rdev)); err != nil {
		t.Fatal(err)
	}
	if _, errs, status := u.run(t, "true"); status != exitFailed || !strings.Contains(errs, "chmod 0666 /dev/net/tun") {
		t.Errorf("with the device for root: status %d, %q", status, errs)
	}
}

// Root that may not make namespaces without a user namespace gets one, and is
// root in it.
func TestRootWithoutPrivilegeGetsAUserNamespace(t *testing.T) {
	nstest.NeedRoot(t)
	nstest.NeedTUN(t)
	if _, err := exec.LookPath("setpriv"); err != nil {
		nstest.Missing(t, "setpriv is missing: apt-get install util-linux")
	}
	cmd := user{}.command(t)
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c",
		`exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$0" parent sh -c 'id -u; cat /proc/self/uid_map; ip -o link; su -s /bin/sh nobody -c "id -u"'`, publicBinary(t)}
	out, errs, status := run(t, cmd)
	if status != 0 || !strings.HasPrefix(out, "0\n") || !strings.Contains(out, "tun0") || !strings.HasSuffix(out, "65534\n") || strings.Contains(out, "4294967295\nx") {
		t.Errorf("status %d, %q, %q", status, out, errs)
	}
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	cmd = user{}.command(t)
	cmd.Path, cmd.Args = "/bin/sh", []string{"sh", "-c",
		`exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "$0" parent readlink /proc/self/ns/user`, publicBinary(t)}
	if out, errs, status := run(t, cmd); status != 0 || strings.TrimSpace(out) == own {
		t.Errorf("status %d, user namespace %q, that of the test is %q; %q", status, out, own, errs)
	}
}
