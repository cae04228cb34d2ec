//! Files by path, open descriptors, and locks.
//!
//! What there is to open is the business of the mount view and of Landlock. Here: no set-id bits, no device nodes, no
//! whiteouts, no locks on what can only be read unless a policy says so, and of ioctl() a list.

use super::super::rule::{
    Action, EINVAL, ENOLCK, ENOTTY, EPERM, Rule, allow, allow_if, bits, checked, clear, is,
    refuse_if,
};

/// S_ISUID | S_ISGID. In an idmapped workspace they would make files that are set-id for the *caller*.
const SET_ID: u32 = 0o6000;
/// O_CREAT and the bit of O_TMPFILE that O_DIRECTORY lacks: without them the mode argument means nothing.
const CREATES: u32 = 0o100 | 0o20_000_000;
/// S_IFMT, and what of it may be made: a file (also as 0), a pipe, a socket. Devices need a capability, but for the
/// device 0:0, which an overlay takes for a deleted file.
const KIND: u32 = 0o170_000;
const KINDS: &[u32] = &[0, 0o100_000, 0o010_000, 0o140_000];
/// Leaves such a device behind.
const RENAME_WHITEOUT: u32 = 4;

#[rustfmt::skip]
pub(super) const FILES: &[Rule] = &[
    allow("stat", "look"),
    allow("lstat", "look"),
    allow("fstat", "look"),
    allow("newfstatat", "look"),
    allow("statx", "look"),
    allow("access", "may I"),
    allow("faccessat", "may I"),
    allow("faccessat2", "may I"),
    allow("readlink", "read a link"),
    allow("readlinkat", "read a link"),
    allow("getdents", "list a folder"),
    allow("getdents64", "list a folder"),
    allow("getcwd", "where am I"),
    allow("chdir", "go somewhere"),
    allow("fchdir", "go somewhere"),
    allow("statfs", "how full is it"),
    allow("fstatfs", "how full is it"),
    allow("cachestat", "what of a file is in memory; only of one that may be written"),
    checked("open", "open; make without set-id bits",
        &[allow_if(&[clear(1, CREATES)]), allow_if(&[clear(2, SET_ID)])], EPERM),
    checked("openat", "open; make without set-id bits",
        &[allow_if(&[clear(2, CREATES)]), allow_if(&[clear(3, SET_ID)])], EPERM),
    checked("creat", "make without set-id bits", &[allow_if(&[clear(1, SET_ID)])], EPERM),
    checked("chmod", "change a mode, without set-id bits", &[allow_if(&[clear(1, SET_ID)])], EPERM),
    checked("fchmod", "change a mode, without set-id bits", &[allow_if(&[clear(1, SET_ID)])], EPERM),
    checked("fchmodat", "change a mode, without set-id bits", &[allow_if(&[clear(2, SET_ID)])], EPERM),
    checked("mknod", "make a pipe or a socket; no devices, no whiteouts",
        &[allow_if(&[clear(1, SET_ID), bits(1, KIND, KINDS)])], EPERM),
    checked("mknodat", "make a pipe or a socket; no devices, no whiteouts",
        &[allow_if(&[clear(2, SET_ID), bits(2, KIND, KINDS)])], EPERM),
    allow("mkdir", "make a folder; the kernel drops set-id bits"),
    allow("mkdirat", "make a folder; the kernel drops set-id bits"),
    allow("rmdir", "remove a folder"),
    allow("unlink", "remove a file"),
    allow("unlinkat", "remove a file or a folder"),
    allow("rename", "rename"),
    allow("renameat", "rename"),
    checked("renameat2", "rename, exchange; leave no whiteout", &[allow_if(&[clear(4, RENAME_WHITEOUT)])], EINVAL),
    allow("link", "a second name"),
    allow("linkat", "a second name"),
    allow("symlink", "a link"),
    allow("symlinkat", "a link"),
    allow("truncate", "cut"),
    allow("ftruncate", "cut"),
    allow("fallocate", "reserve room"),
    allow("utime", "set times; make and tar do"),
    allow("utimes", "set times"),
    allow("utimensat", "set times"),
    allow("futimesat", "set times"),
    allow("umask", "modes of what is made"),
    allow("chown", "to one's own ids; there is no capability for others"),
    allow("fchown", "to one's own ids"),
    allow("lchown", "to one's own ids"),
    allow("fchownat", "to one's own ids"),
    allow("getxattr", "attributes, read"),
    allow("lgetxattr", "attributes, read"),
    allow("fgetxattr", "attributes, read"),
    allow("listxattr", "attributes, read"),
    allow("llistxattr", "attributes, read"),
    allow("flistxattr", "attributes, read"),
    allow("setxattr", "user.* and access lists of one's own files; the rest needs a capability"),
    allow("lsetxattr", "the same"),
    allow("fsetxattr", "the same"),
    allow("removexattr", "the same"),
    allow("lremovexattr", "the same"),
    allow("fremovexattr", "the same"),
    allow("inotify_init", "watch files that are seen"),
    allow("inotify_init1", "watch files that are seen"),
    allow("inotify_add_watch", "watch files that are seen"),
    allow("inotify_rm_watch", "watch no more"),
    allow("sync", "write out"),
    allow("syncfs", "write out"),
    allow("fsync", "write out"),
    allow("fdatasync", "write out"),
    allow("sync_file_range", "write out"),
];

/// Terminal ioctls that put input into somebody's terminal (TIOCSTI, TIOCLINUX paste), take the console (TIOCCONS), hang up
/// (TIOCVHANGUP), or load a line discipline, rarely used kernel code with a long list of holes (TIOCSETD). Compared on
/// 32 bits, as the kernel does.
const TTY_IOCTLS: &[u32] = &[0x5412, 0x541c, 0x541d, 0x5437, 0x5423];

/// Every request that programs have a use for. Another gets ENOTTY, as from a file that does not know it.
#[rustfmt::skip]
const KNOWN_IOCTLS: &[u32] = &[
    0x5401, 0x5402, 0x5403, 0x5404, // TCGETS, TCSETS, TCSETSW, TCSETSF: terminal modes
    0x5405, 0x5406, 0x5407, 0x5408, // TCGETA, TCSETA, TCSETAW, TCSETAF: the same, older
    0x5409, 0x540a, 0x540b,         // TCSBRK, TCXONC, TCFLSH: drain, flow, flush
    0x540c, 0x540d,                 // TIOCEXCL, TIOCNXCL: screen and tmux
    0x540e, 0x5422,                 // TIOCSCTTY, TIOCNOTTY: take or leave one's own terminal
    0x540f, 0x5410, 0x5429,         // TIOCGPGRP, TIOCSPGRP, TIOCGSID: job control
    0x5411, 0x541b,                 // TIOCOUTQ, FIONREAD: how much is waiting
    0x5413, 0x5414,                 // TIOCGWINSZ, TIOCSWINSZ: window size
    0x5415, 0x5419,                 // TIOCMGET, TIOCGSOFTCAR: asked by terminal libraries
    0x5420, 0x5424, 0x5425,         // TIOCPKT, TIOCGETD, TCSBRKP
    0x5421,                         // FIONBIO: non-blocking
    0x802c_542a, 0x402c_542b, 0x402c_542c, 0x402c_542d, // TCGETS2, TCSETS2, TCSETSW2, TCSETSF2
    0x8004_5430, 0x4004_5431, 0x8004_5432, // TIOCGPTN, TIOCSPTLCK, TIOCGDEV: open a pseudoterminal
    0x4004_5436,                    // TIOCSIG: a signal to one's own pseudoterminal's group
    0x8004_5438, 0x8004_5439, 0x8004_5440, 0x5441, // TIOCGPKT, TIOCGPTLCK, TIOCGEXCL, TIOCGPTPEER
    0x5450, 0x5451, 0x5452, 0x5460, // FIONCLEX, FIOCLEX, FIOASYNC, FIOQSIZE
    2, 0xc020_660b,                 // FIGETBSZ, FS_IOC_FIEMAP: cp finds holes
    0x8008_6601, 0x801c_581f, 0x8008_7601, // FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FS_IOC_GETVERSION: look, not set
    0x8100_9431, 0x8011_1500, 0xc004_6686, // FS_IOC_GETFSLABEL, FS_IOC_GETFSUUID, FS_IOC_MEASURE_VERITY
    0x4004_9409, 0x4020_940d, 0xc018_9436, // FICLONE, FICLONERANGE, FIDEDUPERANGE: cp --reflink
    0x8903, 0x8904, 0x8905,         // FIOGETOWN, SIOCGPGRP, SIOCATMARK
    0x8906, 0x8907,                 // SIOCGSTAMP, SIOCGSTAMPNS: when a packet came
    0x8910, 0x8912, 0x8913, 0x8915, // SIOCGIFNAME, SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFADDR: interfaces, read
    0x8917, 0x8919, 0x891b, 0x891d, // SIOCGIFDSTADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMETRIC
    0x8921, 0x8927, 0x8933, 0x8938, // SIOCGIFMTU, SIOCGIFHWADDR, SIOCGIFINDEX, SIOCGIFCOUNT
    0x8942, 0x894b, 0x8970,         // SIOCGIFTXQLEN, SIOCOUTQNSD, SIOCGIFMAP
    0x8004_5200,                    // RNDGETENTCNT: gpg asks how much randomness there is
];

/// What fcntl() does for anybody: duplicates, flags, owners of signals (one's own processes), pipe sizes, seals, hints.
#[rustfmt::skip]
const FCNTLS: &[u32] = &[
    0, 1030,       // F_DUPFD, F_DUPFD_CLOEXEC
    1, 2, 3, 4,    // F_GETFD, F_SETFD, F_GETFL, F_SETFL
    8, 9, 15, 16,  // F_SETOWN, F_GETOWN, F_SETOWN_EX, F_GETOWN_EX
    10, 11,        // F_SETSIG, F_GETSIG
    1025,          // F_GETLEASE: is there one
    1027, 1028,    // F_DUPFD_QUERY, F_CREATED_QUERY
    1031, 1032,    // F_SETPIPE_SZ, F_GETPIPE_SZ
    1033, 1034,    // F_ADD_SEALS, F_GET_SEALS
    1035, 1036, 1037, 1038, // F_GET_RW_HINT, F_SET_RW_HINT, F_GET_FILE_RW_HINT, F_SET_FILE_RW_HINT
];
/// F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW, F_SETLEASE.
const LOCK_FCNTLS: &[u32] = &[5, 6, 7, 36, 37, 38, 1024];

#[rustfmt::skip]
pub(super) const IO: &[Rule] = &[
    allow("read", "read"),
    allow("write", "write"),
    allow("pread64", "read at a place"),
    allow("pwrite64", "write at a place"),
    allow("readv", "read into several buffers"),
    allow("writev", "write from several buffers"),
    allow("preadv", "both"),
    allow("pwritev", "both"),
    allow("preadv2", "both, with flags"),
    allow("pwritev2", "both, with flags"),
    allow("lseek", "move in a file"),
    allow("close", "close"),
    allow("close_range", "close many"),
    allow("dup", "a second descriptor"),
    allow("dup2", "a second descriptor"),
    allow("dup3", "a second descriptor"),
    checked("fcntl", "flags and duplicates of descriptors; locks are a set of their own",
        &[allow_if(&[is(1, FCNTLS)]), refuse_if(&[is(1, LOCK_FCNTLS)], ENOLCK)], EINVAL),
    checked("ioctl", "terminals, interfaces and file attributes: a list of requests",
        &[refuse_if(&[is(1, TTY_IOCTLS)], EPERM), allow_if(&[is(1, KNOWN_IOCTLS)])], ENOTTY),
    allow("pipe", "a pipe"),
    allow("pipe2", "a pipe"),
    allow("sendfile", "copy within the kernel"),
    allow("splice", "copy within the kernel"),
    allow("tee", "copy within the kernel"),
    allow("copy_file_range", "copy within the kernel"),
    allow("readahead", "what will be read"),
    allow("fadvise64", "what will be read"),
    allow("poll", "wait"),
    allow("ppoll", "wait"),
    allow("select", "wait"),
    allow("pselect6", "wait"),
    allow("epoll_create", "wait for many"),
    allow("epoll_create1", "wait for many"),
    allow("epoll_ctl", "wait for many"),
    allow("epoll_wait", "wait for many"),
    allow("epoll_pwait", "wait for many"),
    allow("epoll_pwait2", "wait for many"),
    allow("eventfd", "wake up"),
    allow("eventfd2", "wake up"),
];

/// `[devices] allow` names one: its driver's requests can't be listed here. What is dangerous on any terminal, or changes
/// what a file system does with a file, stays refused.
pub(super) const DEVICE_IOCTLS: &[Rule] = &[checked(
    "ioctl",
    "requests of the devices that the policy names",
    &[
        refuse_if(&[is(1, TTY_IOCTLS)], EPERM),
        refuse_if(&[is(1, FILE_SETTINGS)], EPERM),
    ],
    Action::Allow,
)];

/// FS_IOC_SETFLAGS (32 and 64 bits), FS_IOC_FSSETXATTR (immutable, project), FS_IOC_SETVERSION, FS_IOC_ENABLE_VERITY,
/// FS_IOC_SET_ENCRYPTION_POLICY, FS_IOC_ADD_ENCRYPTION_KEY, FS_IOC_REMOVE_ENCRYPTION_KEY, FIFREEZE, FITHAW, FITRIM.
const FILE_SETTINGS: &[u32] = &[
    0x4008_6602,
    0x4004_6602,
    0x401c_5820,
    0x4008_7602,
    0x4080_6685,
    0x800c_6613,
    0xc050_6617,
    0xc040_6618,
    0xc004_5877,
    0xc004_5878,
    0xc018_5879,
];

/// A lock can be taken on a file that is only read, and is then in the way of everybody who uses it outside.
#[rustfmt::skip]
pub(super) const LOCKS: &[Rule] = &[
    allow("flock", "lock a file"),
    checked("fcntl", "lock parts of files; leases",
        &[allow_if(&[is(1, FCNTLS)]), allow_if(&[is(1, LOCK_FCNTLS)])], EINVAL),
];
