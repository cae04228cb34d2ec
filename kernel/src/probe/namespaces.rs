//! Namespaces, the id map, and the mounts that a sandbox makes inside them: each tried in a child.

use super::child::{self, Outcome, check};
use super::{Feature, ProbeState, Roots};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsmount, fsopen,
    open_tree,
};
use std::ffi::CString;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const USER: libc::c_int = libc::CLONE_NEWUSER;

/// The answers about namespaces, with a better remedy than the usual one where the cause is known.
pub(super) fn probe(roots: &Roots) -> Vec<(Feature, ProbeState, Option<String>)> {
    let user = user_namespace(roots);
    let usable = user.1 == ProbeState::Supported;
    let mut out = vec![user];
    if !usable {
        let why = "user namespaces are missing, so it could not be tried".to_owned();
        let rest = [
            Feature::IdMap,
            Feature::MountNs,
            Feature::PidNs,
            Feature::NetNs,
            Feature::IpcNs,
            Feature::UtsNs,
            Feature::CgroupNs,
            Feature::TimeNs,
            Feature::ProcMount,
            Feature::MountApi,
        ];
        out.extend(rest.map(|f| (f, ProbeState::Unsupported { why: why.clone() }, None)));
        return out;
    }
    out.push((Feature::IdMap, id_map(roots), None));
    let plain = |feature, flag, limit: &str| {
        (
            feature,
            state(child::run(USER | flag, || Ok(())), limit),
            None,
        )
    };
    out.push((Feature::MountNs, mount_namespace(), None));
    out.push(plain(
        Feature::PidNs,
        libc::CLONE_NEWPID,
        "user.max_pid_namespaces",
    ));
    out.push(plain(
        Feature::NetNs,
        libc::CLONE_NEWNET,
        "user.max_net_namespaces",
    ));
    out.push(plain(
        Feature::IpcNs,
        libc::CLONE_NEWIPC,
        "user.max_ipc_namespaces",
    ));
    out.push(plain(
        Feature::UtsNs,
        libc::CLONE_NEWUTS,
        "user.max_uts_namespaces",
    ));
    out.push(plain(
        Feature::CgroupNs,
        libc::CLONE_NEWCGROUP,
        "user.max_cgroup_namespaces",
    ));
    // CLONE_NEWTIME shares its bit with the exit signal of clone().
    let time = child::run(USER, || unshare(libc::CLONE_NEWTIME).map_err(|e| (0, e)));
    out.push((
        Feature::TimeNs,
        state(time, "user.max_time_namespaces"),
        None,
    ));
    out.push((Feature::ProcMount, proc_mount(), None));
    out.push((Feature::MountApi, mount_api(), None));
    out
}

fn unshare(flags: libc::c_int) -> Result<(), Errno> {
    // SAFETY: takes no pointers; runs in a child of its own.
    check(unsafe { libc::syscall(libc::SYS_unshare, libc::c_long::from(flags)) }).map(drop)
}

/// A namespace that gives no capabilities inside, as AppArmor makes them on Ubuntu, is of no use: so one is used.
fn user_namespace(roots: &Roots) -> (Feature, ProbeState, Option<String>) {
    let name = *b"probe";
    let outcome = child::run(USER, || {
        unshare(libc::CLONE_NEWUTS).map_err(|e| (1, e))?;
        // SAFETY: name lives in the parent's memory, of which the child has a copy, and its length is right.
        check(unsafe { libc::syscall(libc::SYS_sethostname, name.as_ptr(), name.len()) })
            .map_err(|e| (1, e))?;
        Ok(())
    });
    let sysctl =
        |path: &str| fs::read_to_string(roots.proc.join("sys").join(path)).unwrap_or_default();
    let is = |path: &str, value: &str| sysctl(path).trim() == value;
    let (state, fix) = match outcome {
        Outcome::Done => (ProbeState::Supported, None),
        _ if is("kernel/unprivileged_userns_clone", "0") => (
            denied("root", "kernel.unprivileged_userns_clone is 0"),
            Some("sudo sysctl -w kernel.unprivileged_userns_clone=1"),
        ),
        _ if is("user/max_user_namespaces", "0") => (
            denied("root", "user.max_user_namespaces is 0"),
            Some("sudo sysctl -w user.max_user_namespaces=15000"),
        ),
        Outcome::Failed(1, Errno::PERM | Errno::ACCESS)
            if is("kernel/apparmor_restrict_unprivileged_userns", "1") =>
        {
            (
                denied(
                    "an AppArmor profile",
                    "AppArmor takes the capabilities away inside user namespaces",
                ),
                Some("sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"),
            )
        }
        other => (state(other, "user.max_user_namespaces"), None),
    };
    (Feature::UserNs, state, fix.map(str::to_owned))
}

fn denied(capability: &str, why: &str) -> ProbeState {
    ProbeState::Denied {
        capability: capability.into(),
        why: why.into(),
    }
}

/// What an outcome means; `limit` is the sysctl that a namespace may have run into.
fn state(outcome: Outcome, limit: &str) -> ProbeState {
    match outcome {
        Outcome::Done => ProbeState::Supported,
        Outcome::NotMade(e) | Outcome::Failed(_, e) => match e {
            Errno::NOSPC | Errno::USERS => ProbeState::Unsupported {
                why: format!("the limit {limit} is reached"),
            },
            Errno::INVAL | Errno::NOSYS => ProbeState::Unsupported {
                why: "this kernel does not offer it".into(),
            },
            Errno::PERM | Errno::ACCESS => denied("CAP_SYS_ADMIN", &e.to_string()),
            e => ProbeState::Unsupported { why: e.to_string() },
        },
        Outcome::Killed => ProbeState::Unsupported {
            why: "the attempt was killed".into(),
        },
    }
}

fn cstring(path: &Path) -> CString {
    // A path that came from a constant or a command line argument holds no NUL.
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

/// Writes a single-id map for itself, as the launcher's parent does for it.
fn id_map(roots: &Roots) -> ProbeState {
    let own = roots.proc.join("self");
    let files = ["setgroups", "uid_map", "gid_map"].map(|f| cstring(&own.join(f)));
    let uid = rustix::process::geteuid().as_raw();
    let gid = rustix::process::getegid().as_raw();
    let lines = [
        "deny".to_owned(),
        format!("{uid} {uid} 1"),
        format!("{gid} {gid} 1"),
    ];
    let outcome = child::run(USER, || {
        for (file, line) in files.iter().zip(&lines) {
            write(file, line.as_bytes()).map_err(|e| (0, e))?;
        }
        Ok(())
    });
    state(outcome, "user.max_user_namespaces")
}

/// Raw open and write: nothing here may allocate.
fn write(file: &CString, bytes: &[u8]) -> Result<(), Errno> {
    let fd = rustix::fs::open(
        file.as_c_str(),
        rustix::fs::OFlags::WRONLY,
        rustix::fs::Mode::empty(),
    )?;
    rustix::io::write(&fd, bytes).map(drop)
}

fn mount_namespace() -> ProbeState {
    let outcome = child::run(USER | libc::CLONE_NEWNS, || {
        let flags = rustix::mount::MountPropagationFlags::PRIVATE
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", flags).map_err(|e| (0, e))
    });
    state(outcome, "user.max_mnt_namespaces")
}

/// Fails where the outer /proc has masks over it: the kernel shows no procfs that reveals more than the one seen.
fn proc_mount() -> ProbeState {
    let outcome = child::run(USER | libc::CLONE_NEWNS | libc::CLONE_NEWPID, || {
        let fs = fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| (0, e))?;
        fsconfig_create(&fs).map_err(|e| (0, e))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|e| (1, e))
            .map(drop)
    });
    match outcome {
        Outcome::Failed(1, Errno::PERM) => denied(
            "a /proc without masks over it",
            "the kernel refuses a new procfs because parts of the present one are hidden",
        ),
        other => state(other, "user.max_pid_namespaces"),
    }
}

fn mount_api() -> ProbeState {
    let outcome = child::run(USER | libc::CLONE_NEWNS, || {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, c"/usr", flags).map_err(|e| (0, e))?;
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID,
            attr_clr: 0,
            propagation: 0,
            userns_fd: 0,
        };
        mount_setattr(tree.as_raw_fd(), &attributes).map_err(|e| (0, e))
    });
    state(outcome, "user.max_mnt_namespaces")
}

/// `mount_setattr` on a whole tree held by descriptor.
pub(super) fn mount_setattr(tree: i32, attributes: &libc::mount_attr) -> Result<(), Errno> {
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is a C string, the structure is valid and its size is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}
