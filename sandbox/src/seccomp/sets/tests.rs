//! What the sets mean, call by call.

use super::*;
use crate::seccomp::refused::REFUSED;
use crate::seccomp::rule::{
    Action, EACCES, EAFNOSUPPORT, EINVAL, ENOLCK, ENOMEM, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM,
    EPROTONOSUPPORT,
};
use crate::seccomp::table::{SYSCALLS, number};

/// What a later set completes.
const REPLACED: &[&str] = &["fcntl", "personality", "prctl"];

#[test]
fn every_entry_is_a_system_call_with_a_reason_and_stands_in_one_set() {
    let mut seen = BTreeMap::new();
    for set in SyscallSet::ALL {
        for rule in set.rules() {
            assert!(
                number(rule.name).is_some(),
                "{} is not a system call",
                rule.name
            );
            assert!(!rule.why.is_empty(), "{} has no reason", rule.name);
            if let Some(other) = seen.insert(rule.name, *set) {
                assert!(
                    REPLACED.contains(&rule.name),
                    "{} is in {} and {}",
                    rule.name,
                    other.name(),
                    set.name()
                );
            }
        }
    }
}

#[test]
fn every_system_call_is_in_a_set_or_refused_with_a_reason() {
    let allowed = |name: &str| {
        SyscallSet::ALL
            .iter()
            .any(|s| s.rules().iter().any(|r| r.name == name))
    };
    let refusals = |name: &str| {
        REFUSED
            .iter()
            .filter(|(_, _, names)| names.contains(&name))
            .count()
    };
    for (nr, name) in SYSCALLS {
        assert!(refusals(name) <= 1, "{name} is refused twice");
        assert!(
            allowed(name) || refusals(name) == 1,
            "{name} ({nr}) is nowhere"
        );
    }
    for name in REFUSED.iter().flat_map(|(_, _, names)| *names) {
        assert!(number(name).is_some(), "{name} is not a system call");
    }
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

/// All sets but `locks`, `debug` and `confinement`, and nothing executable but files.
fn tight() -> Surface {
    use SyscallSet::{Confinement, Debug, Locks};
    let sets = SyscallSet::ALL.iter().copied();
    Surface {
        sets: sets
            .filter(|s| ![Locks, Debug, Confinement].contains(s))
            .collect(),
        memory_files: MemoryFiles::Sealed,
        write_exec: WriteExec::Refused,
        ioctls: Ioctls::Known,
        listening: Listening::Allowed,
        netlink: Netlink::Interfaces,
        refusals: Refusals::Silent,
    }
}

fn decide_under(surface: &Surface, name: &str, args: [u64; 6]) -> Option<Action> {
    surface.rules().get(name).map(|rule| rule.decide(args))
}

fn decide(name: &str, args: [u64; 6]) -> Action {
    decide_under(&tight(), name, args).unwrap()
}

#[test]
fn memory_becomes_executable_only_as_a_private_mapping_of_a_file() {
    let mmap = |prot, flags| decide("mmap", [0, 4096, prot, flags, 3, 0]);
    const PRIVATE: u64 = 2;
    const ANONYMOUS: u64 = 0x20;
    for (prot, flags) in [
        (3, PRIVATE | ANONYMOUS),
        (1, 1),
        (5, PRIVATE),
        (5, PRIVATE | 0x810),
        (4, PRIVATE),
    ] {
        assert_eq!(mmap(prot, flags), Action::Allow, "{prot} {flags:#x}");
    }
    // written and executed; anonymous; shared, which another mapping or write() changes; PROT_GROWSDOWN does not hide it
    for (prot, flags) in [
        (7, PRIVATE),
        (6, PRIVATE),
        (5, PRIVATE | ANONYMOUS),
        (5, 1),
        (5, 3),
        (5, 8 | ANONYMOUS),
        (0x0100_0007, PRIVATE),
    ] {
        assert_eq!(mmap(prot, flags), EACCES, "{prot} {flags:#x}");
    }
    assert_eq!(mmap(3, PRIVATE | ANONYMOUS | 0x4_0000), ENOMEM);
    assert_eq!(mmap(0xdead_beef_0000_0007, PRIVATE), EACCES);
    for name in ["mprotect", "pkey_mprotect"] {
        assert_eq!(decide(name, [0, 4096, 3, 0, 0, 0]), Action::Allow);
        for prot in [4, 5, 7, 0x0100_0005, 0x1_0000_0004] {
            assert_eq!(
                decide(name, [0, 4096, prot, 0, 0, 0]),
                EACCES,
                "{name} {prot:#x}"
            );
        }
    }
    assert_eq!(decide("shmat", [1, 0, 0o100_000, 0, 0, 0]), EACCES);
    assert_eq!(decide("personality", [0x0040_0000, 0, 0, 0, 0, 0]), EPERM);
    assert!(decide_under(&tight(), "remap_file_pages", [0; 6]).is_none());
    let jit = Surface {
        write_exec: WriteExec::Allowed,
        ..tight()
    };
    assert_eq!(
        decide_under(&jit, "mmap", [0, 4096, 7, PRIVATE | ANONYMOUS, 0, 0]),
        Some(Action::Allow)
    );
    assert_eq!(
        decide_under(&jit, "mprotect", [0, 4096, 5, 0, 0, 0]),
        Some(Action::Allow)
    );
}

#[test]
fn memory_files_are_as_the_policy_says() {
    let create = |memory_files, flags| {
        decide_under(
            &Surface {
                memory_files,
                ..tight()
            },
            "memfd_create",
            [0, flags, 0, 0, 0, 0],
        )
    };
    for flags in [0, 1, 2, 3, 0x10, 8] {
        assert_eq!(create(MemoryFiles::Refused, flags), Some(ENOSYS));
        assert_eq!(create(MemoryFiles::Kernel, flags), Some(Action::Allow));
        let sealed = if flags & 8 != 0 {
            Action::Allow
        } else {
            ENOSYS
        };
        assert_eq!(create(MemoryFiles::Sealed, flags), Some(sealed));
    }
    let without = Surface {
        sets: Vec::new(),
        ..tight()
    };
    assert_eq!(
        decide_under(&without, "memfd_create", [0, 8, 0, 0, 0, 0]),
        None
    );
}

#[test]
fn locks_come_with_their_set_alone() {
    let with = Surface {
        sets: SyscallSet::ALL.to_vec(),
        ..tight()
    };
    for command in [5, 6, 7, 36, 37, 38, 1024] {
        let args = [3, command, 0, 0, 0, 0];
        assert_eq!(decide("fcntl", args), ENOLCK, "{command}");
        assert_eq!(
            decide_under(&with, "fcntl", args),
            Some(Action::Allow),
            "{command}"
        );
    }
    for command in [0, 1, 2, 3, 4, 1030, 1031, 1033] {
        assert_eq!(
            decide("fcntl", [3, command, 0, 0, 0, 0]),
            Action::Allow,
            "{command}"
        );
    }
    for command in [1026, 12, 1_000_000] {
        assert_eq!(
            decide("fcntl", [3, command, 0, 0, 0, 0]),
            EINVAL,
            "{command}"
        );
    }
    assert!(decide_under(&tight(), "flock", [0; 6]).is_none());
    assert_eq!(crate::seccomp::refused::answer("flock"), ENOLCK);
}

#[test]
fn of_ioctl_only_known_requests_are_left() {
    let ioctl = |request| decide("ioctl", [0, request, 0, 0, 0, 0]);
    // TCGETS, TIOCGWINSZ, FIONREAD, FICLONE, and with anything in the high half
    for request in [0x5401, 0x5413, 0x541b, 0x4004_9409, 0xdead_0000_0000_5413] {
        assert_eq!(ioctl(request), Action::Allow, "{request:#x}");
    }
    for request in [0x5412, 0x541c, 0x541d, 0x5423, 0x5437, 0x1_0000_5412] {
        assert_eq!(ioctl(request), EPERM, "{request:#x}");
    }
    // FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR, FS_IOC_ENABLE_VERITY, SIOCADDRT, TUNSETIFF, BTRFS_IOC_SUBVOL_CREATE
    for request in [
        0x4008_6602,
        0x401c_5820,
        0x4080_6685,
        0x890b,
        0x4004_54ca,
        0x5000_940e,
    ] {
        assert_eq!(ioctl(request), ENOTTY, "{request:#x}");
    }
    let devices = Surface {
        ioctls: Ioctls::Devices,
        ..tight()
    };
    let of_device = |request| decide_under(&devices, "ioctl", [0, request, 0, 0, 0, 0]);
    assert_eq!(of_device(0xc020_6446), Some(Action::Allow));
    assert_eq!(of_device(0x5412), Some(EPERM));
    assert_eq!(of_device(0x4008_6602), Some(EPERM));
}

#[test]
fn tcp_is_connected_by_connect_alone() {
    const FASTOPEN: u64 = 0x2000_0000;
    assert_eq!(decide("sendto", [3, 0, 0, FASTOPEN, 0, 0]), EOPNOTSUPP);
    assert_eq!(decide("sendmsg", [3, 0, FASTOPEN, 0, 0, 0]), EOPNOTSUPP);
    assert_eq!(
        decide("sendmmsg", [3, 0, 1, FASTOPEN | 0x4000, 0, 0]),
        EOPNOTSUPP
    );
    assert_eq!(decide("sendto", [3, 0, 0, 0x4040, 0, 0]), Action::Allow);
    let option = |level, name| decide("setsockopt", [3, level, name, 0, 0, 0]);
    for name in [23, 30, 31, 33, 34] {
        assert_ne!(option(6, name), Action::Allow, "TCP option {name}");
    }
    for (level, name) in [(1, 26), (1, 50), (1, 51), (0, 64), (41, 64)] {
        assert_ne!(option(level, name), Action::Allow, "{level} {name}");
    }
    // SO_REUSEADDR, SO_KEEPALIVE, TCP_NODELAY, TCP_USER_TIMEOUT, IPV6_V6ONLY
    for (level, name) in [(1, 2), (1, 9), (6, 1), (6, 18), (41, 26)] {
        assert_eq!(option(level, name), Action::Allow, "{level} {name}");
    }
}

#[test]
fn the_init_keeps_its_limits_and_its_time() {
    for name in [
        "prlimit64",
        "sched_setaffinity",
        "sched_setparam",
        "sched_setscheduler",
        "sched_setattr",
    ] {
        assert_eq!(decide(name, [1, 0, 0, 0, 0, 0]), EPERM, "{name}");
        assert_eq!(
            decide(name, [0x1_0000_0001, 0, 0, 0, 0, 0]),
            EPERM,
            "{name}"
        );
        for pid in [0, 2, 77] {
            assert_eq!(
                decide(name, [pid, 0, 0, 0, 0, 0]),
                Action::Allow,
                "{name} {pid}"
            );
        }
    }
    for (name, process, everybody) in [("setpriority", 0, 2), ("ioprio_set", 1, 3)] {
        let of = |which, who| decide(name, [which, who, 0, 0, 0, 0]);
        assert_eq!(
            (of(process, 1), of(process + 1, 1)),
            (EPERM, EPERM),
            "{name}"
        );
        assert_eq!(
            (of(everybody, 0), of(everybody, 1000)),
            (EPERM, EPERM),
            "{name}"
        );
        assert_eq!(
            (of(process, 0), of(process + 1, 0)),
            (Action::Allow, Action::Allow),
            "{name}"
        );
    }
}

#[test]
fn no_whiteouts_and_no_devices_are_made() {
    let mknod = |mode| decide("mknod", [0, mode, 0, 0, 0, 0]);
    for mode in [0o644, 0o100_644, 0o010_600, 0o140_600] {
        assert_eq!(mknod(mode), Action::Allow, "{mode:o}");
    }
    for mode in [0o020_600, 0o060_600, 0o104_755, 0o040_755] {
        assert_eq!(mknod(mode), EPERM, "{mode:o}");
    }
    assert_eq!(decide("renameat2", [0, 0, 0, 0, 4, 0]), EINVAL);
    assert_eq!(decide("renameat2", [0, 0, 0, 0, 2, 0]), Action::Allow);
}

#[test]
fn what_debug_and_confinement_add_to_prctl_does_not_exclude_each_other() {
    const PTRACER: u64 = 0x5961_6d61;
    const SECCOMP: u64 = 22;
    let with = |extra: &[SyscallSet], option| {
        let mut surface = tight();
        surface.sets.extend(extra);
        decide_under(&surface, "prctl", [option, 0, 0, 0, 0, 0])
    };
    use SyscallSet::{Confinement, Debug};
    for (extra, expected) in [
        (&[][..], [EPERM, EPERM]),
        (&[Debug], [Action::Allow, EPERM]),
        (&[Confinement], [EPERM, Action::Allow]),
        (&[Debug, Confinement], [Action::Allow, Action::Allow]),
    ] {
        let said = [with(extra, PTRACER), with(extra, SECCOMP)];
        assert_eq!(said, expected.map(Some), "{extra:?}");
        assert_eq!(with(extra, 15), Some(Action::Allow), "{extra:?}");
    }
}

#[test]
fn further_filters_and_tracing_are_sets_of_their_own() {
    assert_eq!(decide("prctl", [22, 2, 0, 0, 0, 0]), EPERM);
    let with = Surface {
        sets: SyscallSet::ALL.to_vec(),
        ..tight()
    };
    assert_eq!(
        decide_under(&with, "prctl", [22, 2, 0, 0, 0, 0]),
        Some(Action::Allow)
    );
    assert_eq!(
        decide_under(&with, "personality", [0x0004_0000, 0, 0, 0, 0, 0]),
        Some(Action::Allow)
    );
    for name in ["ptrace", "process_vm_readv", "kcmp", "seccomp"] {
        assert_eq!(decide_under(&tight(), name, [0; 6]), None);
        assert_eq!(decide_under(&with, name, [0; 6]), Some(Action::Allow));
    }
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
