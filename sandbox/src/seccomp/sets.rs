//! The named sets, with the reason for each group and for each argument check.
//!
//! What is in no set: mounting and namespaces, modules, kexec, bpf, io_uring, perf, userfaultfd, keyrings, ptrace
//! and reading other processes' memory, file handles, setting clocks, swap, quotas, accounting, raw ports, NUMA
//! page moving, fanotify, and calls that Linux keeps only for old programs. They get EPERM.

use super::rule::{Action, Case, EAFNOSUPPORT, EINVAL, EPERM, EPROTONOSUPPORT, Rule, Test};
use serde::{Serialize, Serializer};

/// Known system calls that are answered with ENOSYS so that libraries fall back to one whose arguments a filter can
/// see: clone3 and openat2 take their flags behind a pointer; fchmodat2 is masked by masking fchmodat.
pub(super) const ABSENT: &[&str] = &["clone3", "openat2", "fchmodat2"];

macro_rules! sets {
    ($( $(#[$doc:meta])* $variant:ident = $name:literal { $($plain:ident)* } checked [ $($rule:expr),* $(,)? ]; )*) => {
        /// A named set of system calls, as `[syscalls] allow` of a policy lists them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum SyscallSet { $( $(#[$doc])* $variant, )* }

        impl SyscallSet {
            pub const ALL: &'static [SyscallSet] = &[ $( SyscallSet::$variant, )* ];

            pub fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )* }
            }

            pub(crate) fn rules(self) -> &'static [Rule] {
                match self {
                    $( Self::$variant => {
                        const RULES: &[Rule] = &[ $( Rule::allow(stringify!($plain)), )* $( $rule, )* ];
                        RULES
                    } )*
                }
            }
        }
    };
}

impl SyscallSet {
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|s| s.name() == name)
    }
}

impl Serialize for SyscallSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// The whole argument is one of these.
const fn is(arg: u8, values: &'static [u32]) -> Test {
    Test {
        arg,
        mask: u32::MAX,
        values,
    }
}

/// None of these bits is set.
const fn clear(arg: u8, mask: u32) -> Test {
    Test {
        arg,
        mask,
        values: &[0],
    }
}

const fn allow_if(tests: &'static [Test]) -> Case {
    Case {
        tests,
        then: Action::Allow,
    }
}

const fn checked(name: &'static str, cases: &'static [Case], otherwise: Action) -> Rule {
    Rule {
        name,
        cases,
        otherwise,
    }
}

/// S_ISUID | S_ISGID. In an idmapped workspace they would make files that are set-id for the *caller*.
const SET_ID: u32 = 0o6000;
/// O_CREAT and the bit of O_TMPFILE that O_DIRECTORY lacks: without them the mode argument means nothing.
const CREATES: u32 = 0o100 | 0o20_000_000;

const fn mode_in(name: &'static str, cases: &'static [Case]) -> Rule {
    checked(name, cases, EPERM)
}

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: a user namespace brings back every capability
/// and with it the kernel code that most exploits start from.
const CLONE_NEW: u32 = 0x7e02_0000;
/// Shares its bit with the exit signal in clone(), so only unshare() can ask for it.
const CLONE_NEWTIME: u32 = 0x80;

/// Terminal ioctls that put input into somebody's terminal (TIOCSTI, TIOCLINUX paste), take the console (TIOCCONS),
/// hang up (TIOCVHANGUP), or load a line discipline, rarely used kernel code with a long list of holes (TIOCSETD).
const TTY_IOCTLS: &[u32] = &[0x5412, 0x541c, 0x541d, 0x5437, 0x5423];

const UNIX: u32 = 1;
const INET: u32 = 2;
const INET6: u32 = 10;
const NETLINK: u32 = 16;
/// SOCK_TYPE_MASK: the rest is SOCK_NONBLOCK and SOCK_CLOEXEC.
const TYPE: u32 = 0xf;
const STREAM: u32 = 1;
const DGRAM: u32 = 2;
const RAW: u32 = 3;
const SEQPACKET: u32 = 5;

const fn kind(values: &'static [u32]) -> Test {
    Test {
        arg: 1,
        mask: TYPE,
        values,
    }
}

/// Unix sockets of every type; over IP only TCP (0 or 6) and UDP (0 or 17): no MPTCP, which Landlock's port rules
/// miss, no SCTP, DCCP, UDP-Lite, no ICMP, nothing raw. Netlink only with NETLINK_ROUTE (0), through which
/// getifaddrs() lists the interfaces of the sandbox's own network namespace; changing anything needs a capability.
const SOCKET: Rule = checked(
    "socket",
    &[
        allow_if(&[is(0, &[UNIX]), kind(&[STREAM, DGRAM, SEQPACKET])]),
        allow_if(&[is(0, &[INET, INET6]), kind(&[STREAM]), is(2, &[0, 6])]),
        allow_if(&[is(0, &[INET, INET6]), kind(&[DGRAM]), is(2, &[0, 17])]),
        allow_if(&[is(0, &[NETLINK]), kind(&[DGRAM, RAW]), is(2, &[0])]),
        Case {
            tests: &[is(0, &[UNIX, INET, INET6, NETLINK])],
            then: EPROTONOSUPPORT,
        },
    ],
    EAFNOSUPPORT,
);

/// The same without any network: unix sockets only.
const SOCKETPAIR: Rule = checked(
    "socketpair",
    &[allow_if(&[
        is(0, &[UNIX]),
        kind(&[STREAM, DGRAM, SEQPACKET]),
    ])],
    EAFNOSUPPORT,
);

/// Options that concern the process itself and give nothing: parent-death signal, dumpable, name, timer slack,
/// seccomp state and further filters, capability queries and drops, child subreaper, no_new_privs, transparent huge
/// pages, speculation control, memory-deny-write-execute, naming of mappings, who may ptrace me, the auxiliary vector.
const PRCTL_OPTIONS: &[u32] = &[
    1,
    2,
    3,
    4,
    7,
    8,
    15,
    16,
    21,
    22,
    23,
    24,
    27,
    28,
    29,
    30,
    36,
    37,
    38,
    39,
    40,
    41,
    42,
    47,
    52,
    53,
    65,
    66,
    0x5356_4d41,
    0x5961_6d61,
    0x4155_5856,
];

/// FS and GS base, CPUID faulting state (read), extended-state permission (AMX), shadow stack of oneself.
const ARCH_PRCTL_OPTIONS: &[u32] = &[
    0x1001, 0x1002, 0x1003, 0x1004, 0x1011, 0x1021, 0x1022, 0x1023, 0x1024, 0x1025, 0x5001, 0x5002,
    0x5003, 0x5005,
];

sets! {
    /// Starting, naming, waiting for and ending processes and threads. Namespaces can't be made.
    Process = "process" {
        // programs
        execve execveat exit exit_group fork vfork wait4 waitid
        // who am I among processes
        getpid getppid gettid getpgid getpgrp getsid setpgid setsid set_tid_address
        // threads
        futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list get_robust_list rseq membarrier restart_syscall
        // a handle on a child that no other process can take over; reading its descriptors (pidfd_getfd) is not here
        pidfd_open pidfd_send_signal
        // limits and usage; other processes than one's own are not visible
        getrlimit setrlimit prlimit64 getrusage times sysinfo uname getcpu getrandom
    } checked [
        checked("clone", &[allow_if(&[clear(0, CLONE_NEW)])], EPERM),
        checked("unshare", &[allow_if(&[clear(0, CLONE_NEW | CLONE_NEWTIME)])], EPERM),
        checked("prctl", &[allow_if(&[is(0, PRCTL_OPTIONS)])], EPERM),
        checked("arch_prctl", &[allow_if(&[is(0, ARCH_PRCTL_OPTIONS)])], EINVAL),
        // PER_LINUX, PER_LINUX32 and the query; not ADDR_NO_RANDOMIZE or READ_IMPLIES_EXEC
        checked("personality", &[allow_if(&[is(0, &[0, 8, u32::MAX])])], EPERM),
    ];

    /// Mapping and protecting one's own memory, as just-in-time compilers need it.
    Memory = "memory" {
        brk mmap mprotect munmap mremap madvise msync mincore mlock mlock2 munlock mlockall munlockall
        pkey_alloc pkey_free pkey_mprotect mseal memfd_create
    } checked [];

    /// Files by path: what the mount view and Landlock show. Set-id bits can't be set.
    Files = "files" {
        // look
        stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getdents getdents64
        getcwd chdir fchdir statfs fstatfs cachestat
        // change
        mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink symlinkat
        truncate ftruncate fallocate utime utimes utimensat futimesat umask
        // to one's own ids only: there is no capability
        chown fchown lchown fchownat
        // user.* and what the file system lets an owner set
        getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr
        removexattr lremovexattr fremovexattr
        // watch
        inotify_init inotify_init1 inotify_add_watch inotify_rm_watch
        sync syncfs fsync fdatasync sync_file_range
    } checked [
        mode_in("open", &[allow_if(&[clear(1, CREATES)]), allow_if(&[clear(2, SET_ID)])]),
        mode_in("openat", &[allow_if(&[clear(2, CREATES)]), allow_if(&[clear(3, SET_ID)])]),
        mode_in("creat", &[allow_if(&[clear(1, SET_ID)])]),
        mode_in("chmod", &[allow_if(&[clear(1, SET_ID)])]),
        mode_in("fchmod", &[allow_if(&[clear(1, SET_ID)])]),
        mode_in("fchmodat", &[allow_if(&[clear(2, SET_ID)])]),
        // pipes and sockets; device nodes need a capability
        mode_in("mknod", &[allow_if(&[clear(1, SET_ID)])]),
        mode_in("mknodat", &[allow_if(&[clear(2, SET_ID)])]),
    ];

    /// Reading, writing and waiting on open descriptors.
    Io = "io" {
        read write pread64 pwrite64 readv writev preadv pwritev preadv2 pwritev2 lseek close close_range
        dup dup2 dup3 fcntl flock pipe pipe2 sendfile splice tee copy_file_range readahead fadvise64
        poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait
        epoll_pwait epoll_pwait2 eventfd eventfd2
    } checked [
        checked("ioctl", &[Case { tests: &[is(1, TTY_IOCTLS)], then: EPERM }], Action::Allow),
    ];

    /// Sending signals to one's own processes and handling them.
    Signals = "signals" {
        kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigqueueinfo
        rt_tgsigqueueinfo rt_sigsuspend sigaltstack signalfd signalfd4 pause
    } checked [];

    /// Reading clocks, sleeping and timers. No clock can be set.
    Time = "time" {
        time gettimeofday clock_gettime clock_getres clock_nanosleep nanosleep alarm getitimer setitimer
        timer_create timer_settime timer_gettime timer_getoverrun timer_delete
        timerfd_create timerfd_settime timerfd_gettime
    } checked [];

    /// Priorities and affinity; raising a priority needs a capability.
    Scheduling = "scheduling" {
        sched_yield sched_getaffinity sched_setaffinity sched_getparam sched_setparam sched_getscheduler
        sched_setscheduler sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_getattr
        sched_setattr getpriority setpriority ioprio_get ioprio_set
    } checked [];

    /// Asking for, and giving up, ids and capabilities; there are none to gain.
    Identity = "identity" {
        getuid geteuid getgid getegid getresuid getresgid getgroups setuid setgid setreuid setregid setresuid
        setresgid setgroups setfsuid setfsgid capget capset
    } checked [];

    /// Sockets. Where they lead is decided by the network namespace: to the sandbox's own loopback.
    Network = "network" {
        connect accept accept4 bind listen getsockname getpeername getsockopt setsockopt shutdown
        sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg
    } checked [SOCKET, SOCKETPAIR];

    /// System V and POSIX queues, semaphores and shared memory, in the sandbox's own IPC namespace.
    Ipc = "ipc" {
        shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
    } checked [];

    /// Tightening further: programs that bring a sandbox of their own (Landlock, more filters).
    Confinement = "confinement" {
        seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self
    } checked [];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::table::number;

    #[test]
    fn every_entry_is_a_system_call_and_stands_in_one_set() {
        let mut seen = std::collections::BTreeMap::new();
        for set in SyscallSet::ALL {
            for rule in set.rules() {
                assert!(
                    number(rule.name).is_some(),
                    "{} is not a system call",
                    rule.name
                );
                if let Some(other) = seen.insert(rule.name, *set) {
                    panic!("{} is in {} and {}", rule.name, other.name(), set.name());
                }
            }
        }
        assert!(
            ABSENT
                .iter()
                .all(|n| number(n).is_some() && !seen.contains_key(n))
        );
    }

    #[test]
    fn what_undoes_a_sandbox_is_in_no_set() {
        for name in [
            "mount",
            "umount2",
            "pivot_root",
            "chroot",
            "setns",
            "open_tree",
            "move_mount",
            "fsopen",
            "fsconfig",
            "mount_setattr",
            "statmount",
            "listmount",
            "bpf",
            "io_uring_setup",
            "io_uring_enter",
            "perf_event_open",
            "userfaultfd",
            "keyctl",
            "add_key",
            "request_key",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "kcmp",
            "pidfd_getfd",
            "kexec_load",
            "kexec_file_load",
            "init_module",
            "finit_module",
            "swapon",
            "reboot",
            "sethostname",
            "modify_ldt",
            "quotactl",
            "move_pages",
            "vhangup",
            "open_by_handle_at",
            "fanotify_init",
            "clock_settime",
            "settimeofday",
            "iopl",
            "ioperm",
            "acct",
            "syslog",
            "vmsplice",
            "memfd_secret",
        ] {
            let found = SyscallSet::ALL
                .iter()
                .find(|s| s.rules().iter().any(|r| r.name == name));
            assert!(
                number(name).is_some() && found.is_none(),
                "{name} is in {found:?}"
            );
        }
    }

    fn decide(name: &str, args: [u64; 6]) -> Action {
        let rule = SyscallSet::ALL
            .iter()
            .flat_map(|s| s.rules())
            .find(|r| r.name == name)
            .unwrap();
        rule.decide(args)
    }

    #[test]
    fn set_id_bits_are_refused_only_where_a_mode_counts() {
        let at = |flags, mode| decide("openat", [0, 0, flags, mode, 0, 0]);
        assert_eq!(at(0o101, 0o4755), EPERM);
        assert_eq!(at(0o101, 0o2644), EPERM);
        assert_eq!(at(0o20_200_002, 0o4644), EPERM);
        assert_eq!(at(0o101, 0o644), Action::Allow);
        // without O_CREAT the register holds whatever was in it
        assert_eq!(at(0o2, 0o7777), Action::Allow);
        assert_eq!(at(0o200_000, u64::MAX), Action::Allow);
        assert_eq!(decide("fchmod", [3, 0o4755, 0, 0, 0, 0]), EPERM);
        assert_eq!(decide("fchmod", [3, 0o1777, 0, 0, 0, 0]), Action::Allow);
    }

    #[test]
    fn sockets_are_unix_tcp_udp_and_route_netlink() {
        let socket = |f, t, p| decide("socket", [f, t, p, 0, 0, 0]);
        for (f, t, p) in [
            (1, 1, 0),
            (1, 0o2_004_001, 0),
            (2, 1, 0),
            (2, 1, 6),
            (10, 2, 17),
            (16, 3, 0),
        ] {
            assert_eq!(socket(f, t, p), Action::Allow, "{f} {t} {p}");
        }
        for (f, t, p) in [
            (2, 1, 262),
            (2, 1, 132),
            (2, 2, 136),
            (2, 2, 1),
            (2, 3, 1),
            (10, 6, 0),
            (16, 3, 12),
            (1, 3, 0),
        ] {
            assert_eq!(socket(f, t, p), EPROTONOSUPPORT, "{f} {t} {p}");
        }
        for f in (0..46).filter(|f| ![1, 2, 10, 16].contains(f)) {
            assert_eq!(socket(f, 1, 0), EAFNOSUPPORT, "{f}");
        }
    }

    #[test]
    fn high_halves_of_arguments_do_not_matter() {
        assert_eq!(
            decide("ioctl", [0, 0xdead_0000_0000_5412, 0, 0, 0, 0]),
            EPERM
        );
        assert_eq!(decide("clone", [0x1_1000_0011, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(decide("clone", [0x0120_0011, 0, 0, 0, 0, 0]), Action::Allow);
        assert_eq!(decide("unshare", [0x80, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(decide("personality", [0x0040_0000, 0, 0, 0, 0, 0]), EPERM);
    }
}
