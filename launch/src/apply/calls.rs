//! The system calls that the launcher makes, from its first instruction to the last of the sandbox's init: all of them, and
//! why. `launch/tests/launch/calls.rs` runs it under a filter made of this list.

use agentd_kernel::sys::nr;

/// Sorted by number.
#[rustfmt::skip]
pub const SYSTEM_CALLS: &[(u32, &str)] = &[
    (nr::READ, "the id of a mount's namespace, signals that arrived, the init's switches"),
    (nr::WRITE, "files of the plan, copies, what was refused"),
    (nr::CLOSE, "what is no longer needed"),
    (nr::FSTAT, "what was opened is what was meant"),
    (nr::MMAP, "the plan"),
    (nr::RT_SIGACTION, "the program starts with default actions"),
    (nr::RT_SIGPROCMASK, "the init handles no signal, the program all"),
    (nr::IOCTL, "the loopback interface, the namespace that it is in, the terminal, calls that the filter holds"),
    (nr::PREAD64, "files that are copied into the view"),
    (nr::PWRITE64, "the last report, on file"),
    (nr::DUP2, "the program's streams"),
    (nr::GETPID, "the foreground process group"),
    (nr::SOCKET, "listeners"),
    (nr::SENDMSG, "reports, with descriptors, and the listener"),
    (nr::RECVMSG, "what agentd and the broker say"),
    (nr::BIND, "listeners"),
    (nr::LISTEN, "listeners"),
    (nr::SOCKETPAIR, "the listener's way out of the program's process"),
    (nr::CLONE, "the task that makes the network namespace, the program's process"),
    (nr::EXECVE, "the program"),
    (nr::WAIT4, "children that have ended"),
    (nr::KILL, "signals for the program; its Landlock domain makes itself known"),
    (nr::FCNTL, "the plan's seals, the note's lock"),
    (nr::FCHDIR, "sockets and the new root are made where they are"),
    (nr::UMASK, "modes of what is made"),
    (nr::GETRUSAGE, "what the program used"),
    (nr::GETUID, "are the ids those of the plan"),
    (nr::GETGID, "are the ids those of the plan"),
    (nr::SETPGID, "the program is a job of its own"),
    (nr::SETSID, "the terminal is the sandbox's"),
    (nr::CAPGET, "are the capabilities gone"),
    (nr::CAPSET, "drop the capabilities"),
    (nr::PIVOT_ROOT, "the new root"),
    (nr::PRCTL, "not dumpable, no_new_privs, bounding set, securebits, MDWE, a name"),
    (nr::UMOUNT2, "the old root"),
    (nr::SETHOSTNAME, "the sandbox's name"),
    (nr::CLOCK_GETTIME, "the grace of a lifeline, when a call was refused"),
    (nr::EXIT_GROUP, "the end"),
    (nr::KEYCTL, "a session keyring of its own"),
    (nr::MKDIRAT, "folders of the view"),
    (nr::MKNODAT, "files that something is mounted on"),
    (nr::UNLINKAT, "the empty file behind a mask, the link behind a copy; placeholders"),
    (nr::SYMLINKAT, "links of the view"),
    (nr::READLINKAT, "links of the host that are kept; where a grant lies"),
    (nr::PPOLL, "wait for anything"),
    (nr::UNSHARE, "the network namespace"),
    (nr::SIGNALFD4, "children that end, as a descriptor"),
    (nr::PIPE2, "the program's streams, what was refused"),
    (nr::PRLIMIT64, "resource limits"),
    (nr::SETNS, "the network namespace"),
    (nr::SECCOMP, "both filters"),
    (nr::OPEN_TREE, "mounts by descriptor"),
    (nr::MOVE_MOUNT, "mounts by descriptor"),
    (nr::FSOPEN, "tmpfs, procfs, devpts, overlays"),
    (nr::FSCONFIG, "their options"),
    (nr::FSMOUNT, "their mounts"),
    (nr::CLOSE_RANGE, "the program inherits three descriptors"),
    (nr::OPENAT2, "every path, once"),
    (nr::MOUNT_SETATTR, "read-only, noexec, nosuid, nodev"),
    (nr::LANDLOCK_CREATE_RULESET, "the ruleset, and which ABI there is"),
    (nr::LANDLOCK_ADD_RULE, "its rules"),
    (nr::LANDLOCK_RESTRICT_SELF, "enforcing it"),
];

/// What a launch under gVisor takes beyond them; all but the first are answered by gVisor's kernel.
#[rustfmt::skip]
pub const GVISOR_CALLS: &[(u32, &str)] = &[
    (nr::ACCEPT4, "the init: the program's side calls"),
    (nr::CONNECT, "the program's side calls the init"),
    (nr::CHDIR, "where the program starts"),
    (nr::OPENAT, "the plan, as gVisor has no openat2"),
    (nr::GETDENTS64, "who is in the terminal's foreground"),
];

const _: () = {
    let mut at = 1;
    while at < SYSTEM_CALLS.len() {
        assert!(SYSTEM_CALLS[at - 1].0 < SYSTEM_CALLS[at].0, "not sorted");
        at += 1;
    }
};
