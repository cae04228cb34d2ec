//! New namespaces, and the way into those of others: most kernel exploits begin with the capabilities that they give.

use super::{done, in_child};
use crate::case::{Case, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const NEWTIME: i32 = 0x80;

/// Unshares in a child, so that nothing later runs in the new namespace.
fn unshare(flags: i32) -> Try {
    let mut result = Ok(());
    let status = in_child(|| match call!(libc::SYS_unshare, flags) {
        Ok(_) => 0,
        Err(refused) => refused.errno,
    })?;
    if !libc::WIFEXITED(status) {
        return Err(Refused::without_errno(format!(
            "unshare: killed, status {status:#x}"
        )));
    }
    if libc::WEXITSTATUS(status) != 0 {
        result = Err(Refused::new("unshare", libc::WEXITSTATUS(status)));
    }
    result?;
    done("the namespace was made")
}

macro_rules! with_user {
    ($id:literal, $title:literal, $flag:expr) => {
        Case::new($id, $title, |_| unshare(libc::CLONE_NEWUSER | $flag))
    };
}

pub const CASES: &[Case] = &[
    Case::new("ns_user", "unshare a user namespace", |_| {
        unshare(libc::CLONE_NEWUSER)
    }),
    with_user!("ns_mnt", "user and mount namespace", libc::CLONE_NEWNS),
    with_user!("ns_pid", "user and pid namespace", libc::CLONE_NEWPID),
    with_user!("ns_net", "user and network namespace", libc::CLONE_NEWNET),
    with_user!("ns_ipc", "user and IPC namespace", libc::CLONE_NEWIPC),
    with_user!("ns_uts", "user and UTS namespace", libc::CLONE_NEWUTS),
    with_user!(
        "ns_cgroup",
        "user and cgroup namespace",
        libc::CLONE_NEWCGROUP
    ),
    with_user!("ns_time", "user and time namespace", NEWTIME),
    Case::new(
        "ns_mnt_bare",
        "a mount namespace without a user namespace",
        |_| unshare(libc::CLONE_NEWNS),
    )
    .cannot("it needs CAP_SYS_ADMIN"),
    Case::new("ns_clone", "clone(CLONE_NEWUSER)", |_| {
        cloned(libc::CLONE_NEWUSER)
    }),
    Case::new(
        "ns_clone_high",
        "clone(CLONE_NEWUSER) with high bits of the flags set",
        |_| {
            let flags = (1_i64 << 40) | i64::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
            match call!(libc::SYS_clone, flags, 0, 0, 0, 0)? {
                // SAFETY: ends the child.
                0 => unsafe { libc::_exit(0) },
                child => done(format!("child {child}")),
            }
        },
    ),
    Case::new(
        "ns_clone3",
        "clone3(CLONE_NEWUSER), whose flags no filter sees",
        |_| clone3(libc::CLONE_NEWUSER as u64, 0),
    ),
    Case::new("ns_clone3_cgroup", "clone3(CLONE_INTO_CGROUP)", |_| {
        let folder = call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/sys/fs/cgroup/unified",
            libc::O_PATH | libc::O_DIRECTORY
        )
        .or_else(|_| {
            call!(
                libc::SYS_openat,
                libc::AT_FDCWD,
                c"/sys/fs/cgroup",
                libc::O_PATH | libc::O_DIRECTORY
            )
        })
        .unwrap_or(0);
        clone3(0x2_0000_0000, folder as u64)
    })
    .cannot("another cgroup needs write access to it"),
    Case::new("ns_clone3_plain", "clone3 at all", |_| clone3(0, 0)),
    Case::new(
        "ns_umount_mask",
        "user and mount namespace, then unmount what hides",
        |s| {
            let path = c(s.work.join(".env"));
            let status = in_child(|| {
                if call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNS).is_err() {
                    return 1;
                }
                // Without a sandbox there is no mask: the namespace is what matters.
                call!(libc::SYS_umount2, path.as_c_str(), libc::MNT_DETACH).map_or_else(
                    |refused| if refused.errno == libc::EINVAL { 0 } else { 2 },
                    |_| 0,
                )
            })?;
            if status == 0 {
                done("mounts can be changed")
            } else {
                Err(Refused::new("unshare", libc::EPERM))
            }
        },
    ),
    Case::new(
        "ns_user_nft",
        "user and network namespace, then an nf_tables socket",
        |_| {
            let status = in_child(|| {
                let made = call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNET)
                    .and_then(|_| call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 12));
                i32::from(made.is_err())
            })?;
            if status == 0 {
                done("the socket was made")
            } else {
                Err(Refused::new("unshare", libc::EPERM))
            }
        },
    ),
    Case::new("ns_setns_pidfd", "setns by pidfd of a host process", |s| {
        let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
        call!(
            libc::SYS_setns,
            pidfd,
            libc::CLONE_NEWUSER | libc::CLONE_NEWNS
        )?;
        done("joined")
    })
    .cannot("one's own user namespace can't be joined again"),
    Case::new("ns_setns_init", "setns to the namespaces of pid 1", |_| {
        let mut last = Refused::new("open", libc::ENOENT);
        for name in ["mnt", "pid", "net", "ipc", "uts", "user", "cgroup"] {
            let path = c(format!("/proc/1/ns/{name}"));
            match call!(libc::SYS_openat, libc::AT_FDCWD, path.as_c_str(), 0)
                .and_then(|fd| call!(libc::SYS_setns, fd, 0))
            {
                Ok(_) => return done(format!("joined {name}")),
                Err(refused) => last = refused,
            }
        }
        Err(last)
    })
    .cannot("the host's init belongs to root"),
    Case::new(
        "ns_setns_self",
        "setns to one's own namespaces, which some capability checks miss",
        |_| {
            let path = c"/proc/self/ns/net";
            let opened = call!(libc::SYS_openat, libc::AT_FDCWD, path, 0)?;
            call!(libc::SYS_setns, opened, libc::CLONE_NEWNET)?;
            done("joined")
        },
    )
    .cannot("it needs CAP_SYS_ADMIN"),
    Case::new(
        "ns_parent",
        "NS_GET_USERNS and NS_GET_PARENT: a way to the namespace above",
        |_| {
            let opened = call!(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/ns/user", 0)?;
            // NS_GET_PARENT
            let above = call!(libc::SYS_ioctl, opened, 0xb702)?;
            done(format!("descriptor {above}"))
        },
    )
    .cannot("the host's own namespace has none above"),
    Case::new(
        "ns_nested",
        "a namespace within a namespace, ten deep",
        |_| {
            let status = in_child(|| {
                i32::from((0..10).any(|_| call!(libc::SYS_unshare, libc::CLONE_NEWUSER).is_err()))
            })?;
            if status == 0 {
                done("ten")
            } else {
                Err(Refused::new("unshare", libc::EPERM))
            }
        },
    )
    .cannot("the second unshare needs a map of the first"),
    Case::new("ns_x34_bwrap", "a sandbox within: bubblewrap", |_| {
        if !std::path::Path::new("/usr/bin/bwrap").exists() {
            return super::unavailable("bubblewrap is not in the view");
        }
        let output = std::process::Command::new("/usr/bin/bwrap")
            .args(["--unshare-all", "--ro-bind", "/", "/", "true"])
            .output()?;
        if output.status.success() {
            done("it made namespaces")
        } else {
            Err(Refused::without_errno(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ))
        }
    }),
    Case::new("ns_vm_uts", "see the host's name", |_| {
        let mut name = [0_u8; 390];
        call!(libc::SYS_uname, name.as_mut_ptr())?;
        let end = name[65..130]
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(65);
        Ok(crate::case::Attempt::Loot(name[65..65 + end].to_vec()))
    })
    .effect(crate::case::Effect::SameAs("/proc/sys/kernel/hostname")),
    Case::new(
        "ns_ids",
        "the host's pid, network or IPC namespace is one's own",
        shared_namespaces,
    ),
];

fn cloned(flags: i32) -> Try {
    match call!(libc::SYS_clone, flags | libc::SIGCHLD, 0, 0, 0, 0)? {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(0) },
        child => done(format!("child {child}")),
    }
}

fn clone3(flags: u64, cgroup: u64) -> Try {
    let mut arguments = [0_u64; 11];
    arguments[0] = flags;
    arguments[4] = libc::SIGCHLD as u64;
    arguments[10] = cgroup;
    let size = size_of_val(&arguments);
    match call!(libc::SYS_clone3, arguments.as_mut_ptr(), size)? {
        // SAFETY: ends the child.
        0 => unsafe { libc::_exit(0) },
        child => done(format!("child {child}")),
    }
}

/// The first namespaces have fixed inode numbers.
fn shared_namespaces(_: &Scene) -> Try {
    const FIRST: [(&str, u64); 4] = [
        ("ipc", 0xefff_ffff),
        ("uts", 0xefff_fffe),
        ("user", 0xefff_fffd),
        ("pid", 0xefff_fffc),
    ];
    use std::os::unix::fs::MetadataExt;
    let shared: Vec<&str> = FIRST
        .iter()
        .filter(|(name, inode)| {
            std::fs::metadata(format!("/proc/self/ns/{name}"))
                .is_ok_and(|found| found.ino() == *inode)
        })
        .map(|(name, _)| *name)
        .collect();
    if shared.is_empty() {
        return Err(Refused::without_errno("none is the host's first"));
    }
    done(format!("shared with the host: {}", shared.join(", ")))
}
