package hosts

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"tunroute/tun"
	"tunroute/tun/netns"
)

// leashEnv has the number of a file in the environment of D: the end of the pipe that
// it reads until P has gone.
const leashEnv = "TUNROUTE_HOSTS_FD"

// World is the process D, as its parent P sees it.
type World struct {
	cmd   *exec.Cmd
	leash *os.File
}

// Start runs this executable again, with args, where hosts can be made, and returns
// without waiting for it. args must lead it to [Enter]. It has the standard files, the
// environment and the directory of this process, and is in its process group.
//
// What forbids it is a [*tun.Obstacle].
func Start(args []string) (*World, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	user := os.Geteuid() != 0
	cmd, err := start(args, user, read)
	if errors.Is(err, unix.EPERM) && !user {
		cmd, err = start(args, true, read) // root of a container
	}
	if err != nil {
		write.Close()
		return nil, netns.Diagnose(fmt.Errorf("make namespaces: %w", err))
	}
	return &World{cmd, write}, nil
}

func start(args []string, newUser bool, leash *os.File) (*exec.Cmd, error) {
	// The same executable even if its file has been replaced meanwhile.
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.ExtraFiles = []*os.File{leash}
	cmd.Env = append(os.Environ(), leashEnv+"=3")
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if newUser {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	if newUser && os.Geteuid() != 0 {
		// Who is not root loses the capabilities of a new namespace on exec,
		// but for ambient ones: to make networks and mounts and to enter them, to
		// serve at ports such as 53, and to look at packets.
		attr.AmbientCaps = []uintptr{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW}
	}
	cmd.SysProcAttr = attr
	return cmd, cmd.Start()
}

// Wait waits until D has ended, and everything in its world with it, and returns its
// exit status, as a shell has it: 128 and its number for a signal.
func (w *World) Wait() int {
	w.cmd.Wait()
	w.leash.Close()
	ws := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// Kill ends D, and everything in its world. [World.Wait] returns when it has ended.
func (w *World) Kill() { w.cmd.Process.Kill() }

// Enter makes what [Start] has started a world of its own: what is mounted there is
// seen nowhere else, names are asked at the given servers and nowhere else, the host
// name is name, and the process ends when its parent does.
//
// What forbids it is a [*tun.Obstacle].
func Enter(name string, nameservers ...netip.Addr) error {
	fd, err := strconv.Atoi(os.Getenv(leashEnv))
	if err != nil {
		return fmt.Errorf("%s: this process is started by another of ours and cannot be run by hand", leashEnv)
	}
	os.Unsetenv(leashEnv)
	unix.CloseOnExec(fd)
	leash := os.NewFile(uintptr(fd), "leash")
	go func() {
		leash.Read(make([]byte, 1)) // nothing ever comes
		os.Exit(1)                  // and the kernel kills all others here
	}()
	if err := enter(name, nameservers); err != nil {
		return netns.Diagnose(fmt.Errorf("set up the namespaces: %w", err))
	}
	return nil
}

func enter(name string, nameservers []netip.Addr) error {
	// Not private: what the host mounts later has to appear here.
	if err := mount("", "/", "", unix.MS_REC|unix.MS_SLAVE); err != nil {
		return err
	}
	// With the processes of this namespace, for who looks at them. A container
	// whose own is covered in places may not have another; the one that is there
	// still has this process as /proc/self.
	_ = mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC)
	// Whoever is here is to have TUNs; and the directory of the device is used below.
	if err := checkTUN(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return os.NewSyscallError("sethostname", err)
	}
	return netns.CoverNames(nameservers...)
}

func mount(from, to, kind string, flags uintptr) error {
	if err := unix.Mount(from, to, kind, flags, ""); err != nil {
		return &fs.PathError{Op: "mount", Path: to, Err: err}
	}
	return nil
}

// Scratch mounts an empty directory, in memory, and returns its path. It is for a
// process that has called [Enter], and for the hosts that it makes afterwards.
func Scratch() (dir string, err error) {
	// Where something can be mounted for a while (FHS); small images lack one or
	// the other.
	for _, dir = range []string{"/mnt", "/media", "/srv", "/opt"} {
		err = unix.Mount("tunroute", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=64m")
		if !errors.Is(err, unix.ENOENT) {
			break
		}
	}
	if err != nil {
		return "", netns.Diagnose(&fs.PathError{Op: "mount", Path: dir, Err: err})
	}
	return dir, nil
}

// checkTUN returns what forbids programs of this world to have a TUN.
func checkTUN() error {
	device, err := tun.Create(tun.Config{Name: "test", MTU: 1500})
	if err != nil {
		return err
	}
	return device.Close()
}
