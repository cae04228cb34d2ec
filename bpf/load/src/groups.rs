//! Which programs make up each group, and where each is attached.
//!
//! To add a program: a file in `agentd-ebpf`, a line here. What kind of program it is says its ELF
//! section; here is what the section doesn't say. A group loads whole or not at all, so programs
//! that some kernels lack are a group of their own.

use agentd_bpf::Group;

/// One program and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// The function's name in `agentd-ebpf`, and its link's pin.
    pub program: &'static str,
    pub place: Place,
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The broker's cgroup2 subtree: sock_addr, sock, skb and sockops programs.
    Subtree(At),
    /// A tracepoint with BTF (`tp_btf`), by its name.
    Tracepoint(&'static str),
    /// A hook of the security modules (`lsm`), by its name.
    Lsm(&'static str),
    /// A sockmap or sockhash, by its static's name: `sk_msg` programs.
    Sockets(&'static str),
}

/// A hook of a cgroup: `enum bpf_attach_type`. The program's section must be of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum At {
    Ingress = 0,
    Egress = 1,
    SockCreate = 2,
    SockOps = 3,
    Bind4 = 8,
    Bind6 = 9,
    Connect4 = 10,
    Connect6 = 11,
    PostBind4 = 12,
    PostBind6 = 13,
    Sendmsg4 = 14,
    Sendmsg6 = 15,
    SockRelease = 34,
}

/// The programs of a group.
pub const fn hooks(group: Group) -> &'static [Hook] {
    match group {
        Group::Net => NET,
        Group::Route => ROUTE,
        Group::Exec => EXEC,
        Group::Write => WRITE,
        Group::Guard => GUARD,
        Group::Sched => SCHED,
    }
}

const fn subtree(program: &'static str, at: At) -> Hook {
    Hook {
        program,
        place: Place::Subtree(at),
    }
}

/// A security hook has a program of its name.
const fn lsm(hook: &'static str) -> Hook {
    Hook {
        program: hook,
        place: Place::Lsm(hook),
    }
}

const NET: &[Hook] = &[
    subtree("connect4", At::Connect4),
    subtree("connect6", At::Connect6),
    subtree("sendmsg4", At::Sendmsg4),
    subtree("sendmsg6", At::Sendmsg6),
    subtree("bind4", At::Bind4),
    subtree("bind6", At::Bind6),
    subtree("sock_create", At::SockCreate),
    subtree("ingress", At::Ingress),
    subtree("egress", At::Egress),
];

const EXEC: &[Hook] = &[lsm("bprm_check_security")];

const WRITE: &[Hook] = &[
    lsm("file_open"),
    lsm("inode_create"),
    lsm("inode_mkdir"),
    lsm("inode_mknod"),
    lsm("inode_link"),
    lsm("inode_symlink"),
    lsm("inode_unlink"),
    lsm("inode_rmdir"),
    lsm("inode_rename"),
    lsm("inode_setattr"),
    lsm("inode_setxattr"),
    lsm("inode_removexattr"),
];

const GUARD: &[Hook] = &[
    lsm("ptrace_access_check"),
    lsm("userns_create"),
    lsm("bpf"),
    lsm("unix_stream_connect"),
];

/// A program that is called as its tracepoint is.
const fn tracepoint(program: &'static str) -> Hook {
    Hook {
        program,
        place: Place::Tracepoint(program),
    }
}

const SCHED: &[Hook] = &[
    tracepoint("sched_switch"),
    tracepoint("sched_wakeup"),
    tracepoint("sched_wakeup_new"),
    tracepoint("sched_migrate_task"),
];

/// The verdict before the sockets that it judges; the receipts before the credit that they give back.
const ROUTE: &[Hook] = &[
    Hook {
        program: "route_received",
        place: Place::Tracepoint("sock_recv_length"),
    },
    Hook {
        program: "route_verdict",
        place: Place::Sockets("ROUTE_SOCKETS"),
    },
    subtree("route_established", At::SockOps),
    subtree("route_connect4", At::Connect4),
];

/// Maps that are no table, and without which what a program has put into others means nothing: kept over restarts as tables are.
pub const KEPT: &[&str] = &["ROUTE_OWNERS"];

/// Fields of the kernel's structures whose offsets programs need: the global that gets it, the structure, the path of members.
/// A program whose global stays [`NO_OFFSET`] must not be loaded, so it belongs to a group that names it in [`needs`].
pub const OFFSETS: &[(&str, &str, &str)] = &[
    ("OFFSET_BPRM_FILE", "linux_binprm", "file"),
    ("OFFSET_FILE_INODE", "file", "f_inode"),
    ("OFFSET_FILE_MODE", "file", "f_mode"),
    ("OFFSET_INODE_MODE", "inode", "i_mode"),
    ("OFFSET_INODE_INO", "inode", "i_ino"),
    ("OFFSET_INODE_SB", "inode", "i_sb"),
    ("OFFSET_SB_DEV", "super_block", "s_dev"),
    ("OFFSET_SOCK_CGROUP", "sock", "sk_cgrp_data.cgroup"),
    ("OFFSET_TASK_PID", "task_struct", "pid"),
    ("OFFSET_TASK_CGROUPS", "task_struct", "cgroups"),
    ("OFFSET_CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp"),
    ("OFFSET_CGROUP_LEVEL", "cgroup", "level"),
    ("OFFSET_CGROUP_KN", "cgroup", "kn"),
    ("OFFSET_CGROUP_ANCESTORS", "cgroup", "ancestors"),
    ("OFFSET_KERNFS_NODE_ID", "kernfs_node", "id"),
];

/// As [`OFFSETS`], in bits: bit fields.
pub const BITS: &[(&str, &str, &str)] = &[
    ("BIT_TASK_IN_IOWAIT", "task_struct", "in_iowait"),
    ("BIT_TASK_FROZEN", "task_struct", "frozen"),
];

/// What a global is where this kernel has no such field.
pub const NO_OFFSET: u32 = u32::MAX;

/// The globals of [`OFFSETS`] and [`BITS`] without which a group is left out.
pub const fn needs(group: Group) -> &'static [&'static str] {
    match group {
        Group::Exec => &[
            "OFFSET_BPRM_FILE",
            "OFFSET_FILE_INODE",
            "OFFSET_INODE_INO",
            "OFFSET_INODE_SB",
            "OFFSET_SB_DEV",
        ],
        Group::Write => &[
            "OFFSET_FILE_INODE",
            "OFFSET_FILE_MODE",
            "OFFSET_INODE_MODE",
            "OFFSET_INODE_INO",
            "OFFSET_INODE_SB",
            "OFFSET_SB_DEV",
        ],
        Group::Guard => &[
            "OFFSET_SOCK_CGROUP",
            "OFFSET_TASK_CGROUPS",
            "OFFSET_CSS_SET_DFL_CGRP",
            "OFFSET_CGROUP_LEVEL",
            "OFFSET_CGROUP_KN",
            "OFFSET_CGROUP_ANCESTORS",
            "OFFSET_KERNFS_NODE_ID",
        ],
        Group::Sched => &[
            "OFFSET_TASK_PID",
            "OFFSET_TASK_CGROUPS",
            "OFFSET_CSS_SET_DFL_CGRP",
            "OFFSET_CGROUP_LEVEL",
            "OFFSET_CGROUP_KN",
            "OFFSET_CGROUP_ANCESTORS",
            "OFFSET_KERNFS_NODE_ID",
            "BIT_TASK_IN_IOWAIT",
            "BIT_TASK_FROZEN",
        ],
        Group::Net | Group::Route => &[],
    }
}
