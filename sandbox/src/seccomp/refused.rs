//! Every system call that no set allows, and why. They get EPERM, or what makes programs fall back.

use super::rule::{Action, ENOLCK, ENOSYS, EPERM};

/// The calls of Linux 6.18 that are in no set, by what they are. A call that is neither here nor in a set is unknown to
/// this build and gets ENOSYS, as on an older kernel.
#[rustfmt::skip]
pub(super) const REFUSED: &[(Action, &str, &[&str])] = &[
    (ENOSYS, "their arguments lie in memory, where a filter can't look: callers fall back to clone, openat, fchmodat",
        &["clone3", "openat2", "fchmodat2"]),
    (ENOSYS, "newer forms of calls that there are; callers fall back",
        &["setxattrat", "getxattrat", "listxattrat", "removexattrat", "file_getattr", "file_setattr"]),
    (ENOLCK, "locks also on what is only read: the set `locks`", &["flock"]),
    (EPERM, "mounts: what is seen is decided before the agent starts",
        &["mount", "umount2", "pivot_root", "chroot", "open_tree", "open_tree_attr", "move_mount", "fsopen", "fsconfig",
          "fsmount", "fspick", "mount_setattr"]),
    (EPERM, "how the host is laid out", &["statmount", "listmount", "ustat", "sysfs", "lsm_list_modules"]),
    (EPERM, "other namespaces", &["setns"]),
    (EPERM, "files by handle: past every path that is checked", &["name_to_handle_at", "open_by_handle_at"]),
    (EPERM, "other processes' memory and descriptors: the set `debug`, or nothing",
        &["ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "process_madvise", "process_mrelease"]),
    (EPERM, "programs and rings in the kernel: past the filter, and the surface of most exploits",
        &["bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "userfaultfd", "perf_event_open", "io_setup",
          "io_destroy", "io_getevents", "io_pgetevents", "io_submit", "io_cancel", "vmsplice"]),
    (EPERM, "keys of the host", &["keyctl", "add_key", "request_key"]),
    (EPERM, "what other processes do with files", &["fanotify_init", "fanotify_mark"]),
    (EPERM, "the kernel itself",
        &["kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "create_module",
          "get_kernel_syms", "query_module", "reboot", "syslog", "acct", "swapon", "swapoff", "quotactl", "quotactl_fd",
          "nfsservctl", "_sysctl", "lookup_dcookie", "vhangup", "iopl", "ioperm", "modify_ldt", "uselib",
          "sethostname", "setdomainname"]),
    (EPERM, "the clocks of the host", &["settimeofday", "clock_settime", "adjtimex", "clock_adjtime"]),
    (EPERM, "where memory lies on the host",
        &["move_pages", "migrate_pages", "mbind", "set_mempolicy", "get_mempolicy", "set_mempolicy_home_node"]),
    (EPERM, "memory that nothing else can look into or that changes under a mapping",
        &["memfd_secret", "remap_file_pages"]),
    (EPERM, "attributes of security modules", &["lsm_get_self_attr", "lsm_set_self_attr"]),
    (EPERM, "confining oneself further: the set `confinement`",
        &["seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]),
    (ENOSYS, "shadow stacks are made by the kernel at exec and clone", &["map_shadow_stack"]),
    (EPERM, "of 32-bit or vanished programs",
        &["set_thread_area", "get_thread_area", "epoll_ctl_old", "epoll_wait_old", "getpmsg", "putpmsg", "afs_syscall",
          "tuxcall", "security", "vserver"]),
    (ENOSYS, "the kernel's own, from its uprobes", &["uretprobe", "uprobe"]),
];

/// The calls that no set allows: the error they get, why, and their names.
pub fn refused_calls() -> impl Iterator<Item = (&'static str, &'static str, &'static [&'static str])>
{
    REFUSED.iter().map(|(action, why, names)| {
        let error = match *action {
            ENOSYS => "ENOSYS",
            ENOLCK => "ENOLCK",
            _ => "EPERM",
        };
        (error, *why, *names)
    })
}

/// Why no set allows this call; `None` for one that a set allows or that nobody knows.
pub fn refusal_of(name: &str) -> Option<&'static str> {
    REFUSED
        .iter()
        .find(|(_, _, names)| names.contains(&name))
        .map(|(_, why, _)| *why)
}

/// Whether the refusal of this call is told of, where refusals are: those that get EPERM and nobody makes all the time.
pub(super) fn is_told(name: &str) -> bool {
    refusal_of(name).is_some() && answer(name) == EPERM
}

/// Calls that are refused only where they ask for namespaces, which is told of as well.
pub(super) const TOLD_BY_ARGUMENTS: [&str; 2] = ["clone", "unshare"];

/// What a call gets that no entry allows.
pub(super) fn answer(name: &str) -> Action {
    REFUSED
        .iter()
        .find(|(_, _, names)| names.contains(&name))
        .map_or(EPERM, |(action, _, _)| *action)
}
