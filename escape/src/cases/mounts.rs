//! Mounting, by every interface that the kernel has, first in a user namespace of one's own where that can be had.

use super::{done, in_child};
use crate::case::{Case, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

/// Whether the attempt itself comes after an unshare of user and mount namespace: an attacker would try both.
fn with_rights(attempt: impl Fn() -> Result<usize, Refused>) -> Try {
    let first = match attempt() {
        Ok(_) => return done("done"),
        Err(refused) => refused,
    };
    let status = in_child(|| {
        // SAFETY: asks for numbers.
        let (uid, gid) = unsafe { (libc::getuid(), libc::getgid()) };
        if call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNS).is_err() {
            return 1;
        }
        let mapped = std::fs::write("/proc/self/setgroups", "deny")
            .and_then(|()| std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")))
            .and_then(|()| std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")));
        i32::from(mapped.is_err() || attempt().is_err())
    })?;
    if status == 0 {
        done("done, in a user namespace")
    } else {
        Err(first)
    }
}

fn mount(source: &str, target: &str, kind: &str, flags: u64) -> Result<usize, Refused> {
    let (source, target, kind) = (c(source), c(target), c(kind));
    call!(
        libc::SYS_mount,
        source.as_c_str(),
        target.as_c_str(),
        kind.as_c_str(),
        flags,
        0
    )
}

/// fsopen, fsconfig, fsmount: a detached mount.
fn fs(kind: &str) -> Result<usize, Refused> {
    let kind = c(kind);
    let context = call!(libc::SYS_fsopen, kind.as_c_str(), 0)?;
    // FSCONFIG_CMD_CREATE
    call!(libc::SYS_fsconfig, context, 6, 0, 0, 0)?;
    call!(libc::SYS_fsmount, context, 0, 0)
}

fn own(s: &Scene) -> Result<String, Refused> {
    std::fs::create_dir_all(s.own())?;
    Ok(s.own().display().to_string())
}

pub const CASES: &[Case] = &[
    Case::new("mt_tmpfs", "mount a tmpfs", |s| {
        let target = own(s)?;
        with_rights(|| mount("none", &target, "tmpfs", 0))
    }),
    Case::new("mt_proc", "mount a fresh /proc", |s| {
        let target = own(s)?;
        with_rights(|| {
            call!(libc::SYS_unshare, libc::CLONE_NEWPID)?;
            match in_child(|| i32::from(mount("proc", &target, "proc", 0).is_err()))? {
                0 => Ok(0),
                _ => Err(Refused::new("mount", libc::EPERM)),
            }
        })
    }),
    Case::new("mt_sysfs", "mount a fresh /sys", |s| {
        let target = own(s)?;
        with_rights(|| {
            call!(libc::SYS_unshare, libc::CLONE_NEWNET)?;
            mount("sysfs", &target, "sysfs", 0)
        })
    }),
    Case::new("mt_bind", "bind a folder elsewhere", |s| {
        let target = own(s)?;
        let source = s.work.display().to_string();
        with_rights(|| mount(&source, &target, "none", libc::MS_BIND))
    }),
    Case::new(
        "mt_rbind_root",
        "bind the root elsewhere, with all below",
        |s| {
            let target = own(s)?;
            with_rights(|| mount("/", &target, "none", libc::MS_BIND | libc::MS_REC))
        },
    ),
    Case::new("mt_remount", "remount without nosuid and noexec", |s| {
        let target = own(s)?;
        let source = s.work.display().to_string();
        with_rights(|| {
            mount(&source, &target, "none", libc::MS_BIND)?;
            mount("none", &target, "none", libc::MS_BIND | libc::MS_REMOUNT)
        })
    }),
    Case::new("mt_overlay", "an overlay", |s| {
        let target = own(s)?;
        for name in ["u", "w"] {
            std::fs::create_dir_all(s.own().join(name))?;
        }
        let options = c(format!(
            "lowerdir=/usr,upperdir={target}/u,workdir={target}/w"
        ));
        let place = c(&target);
        with_rights(|| {
            call!(
                libc::SYS_mount,
                c"overlay",
                place.as_c_str(),
                c"overlay",
                0,
                options.as_ptr()
            )
        })
    }),
    Case::new("mt_umount", "unmount /proc", |_| {
        with_rights(|| call!(libc::SYS_umount2, c"/proc", libc::MNT_DETACH))
    })
    .cannot("what an outer namespace mounted is locked"),
    Case::new("mt_pivot", "pivot_root", |s| {
        let target = own(s)?;
        let place = c(&target);
        with_rights(|| {
            mount("none", &target, "tmpfs", 0)?;
            std::fs::create_dir(std::path::Path::new(&target).join("old"))?;
            let old = c(format!("{target}/old"));
            call!(libc::SYS_pivot_root, place.as_c_str(), old.as_c_str())
        })
    }),
    Case::new("mt_chroot", "chroot", |s| {
        let target = own(s)?;
        let place = c(&target);
        with_rights(|| call!(libc::SYS_chroot, place.as_c_str()))
    }),
    Case::new("mt_propagate", "make the root shared", |_| {
        with_rights(|| mount("none", "/", "none", libc::MS_REC | libc::MS_SHARED))
    }),
    Case::new("mt_fsopen", "fsopen, fsconfig, fsmount", |_| {
        with_rights(|| fs("tmpfs"))
    }),
    Case::new(
        "X3",
        "the shape of CVE-2022-0185: a legacy parameter longer than a page",
        |_| {
            with_rights(|| {
                // A file system that still takes its options as one string is not on every kernel: the context is what counts.
                let context = call!(libc::SYS_fsopen, c"cgroup2", 0)
                    .or_else(|_| call!(libc::SYS_fsopen, c"tmpfs", 0))?;
                let value = c("A".repeat(200));
                for _ in 0..32 {
                    // FSCONFIG_SET_STRING
                    if call!(libc::SYS_fsconfig, context, 1, c"source", value.as_ptr(), 0).is_err()
                    {
                        break;
                    }
                }
                Ok(context)
            })
        },
    ),
    Case::new(
        "mt_fspick",
        "fspick: reconfigure a mounted file system",
        |_| with_rights(|| call!(libc::SYS_fspick, libc::AT_FDCWD, c"/", 0)),
    ),
    Case::new("mt_opentree", "open_tree with a clone", |s| {
        let path = c(&s.work);
        with_rights(|| call!(libc::SYS_open_tree, libc::AT_FDCWD, path.as_c_str(), 1))
    }),
    Case::new("mt_move", "move_mount", |s| {
        let target = own(s)?;
        let (from, to) = (c(&s.work), c(&target));
        with_rights(|| {
            let tree = call!(libc::SYS_open_tree, libc::AT_FDCWD, from.as_c_str(), 1)?;
            call!(
                libc::SYS_move_mount,
                tree,
                c"",
                libc::AT_FDCWD,
                to.as_c_str(),
                4
            )
        })
    }),
    Case::new("mt_setattr", "mount_setattr", |s| {
        let target = own(s)?;
        let place = c(&target);
        with_rights(|| {
            mount("none", &target, "tmpfs", 0)?;
            let mut attr = [8_u64, 0, 0, 0];
            call!(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                place.as_c_str(),
                0,
                attr.as_mut_ptr(),
                32
            )
        })
    }),
    Case::new("mt_statmount", "statmount: where mounts come from", |_| {
        let mut request = [24_u64, 0, 0x1];
        request[1] = root_mount()?;
        let mut buffer = [0_u64; 256];
        call!(
            457,
            request.as_mut_ptr(),
            buffer.as_mut_ptr(),
            size_of_val(&buffer),
            0
        )?;
        done("told")
    }),
    Case::new("mt_listmount", "listmount: all mounts", |_| {
        let mut request = [24_u64, u64::MAX, 0];
        let mut mounts = [0_u64; 64];
        let count = call!(
            458,
            request.as_mut_ptr(),
            mounts.as_mut_ptr(),
            mounts.len(),
            0
        )?;
        done(format!("{count} mounts"))
    }),
    Case::new("mt_quota", "quotactl_fd on the workspace", |s| {
        let folder = c(&s.work);
        let opened = call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            folder.as_c_str(),
            libc::O_RDONLY
        )?;
        let mut format = 0_u32;
        call!(
            libc::SYS_quotactl_fd,
            opened,
            0x8000_0400_u32,
            0,
            &mut format
        )?;
        done("quotas answer")
    })
    .cannot("few file systems keep quotas"),
    Case::new("mt_swapon", "swap to a file of the workspace", |s| {
        std::fs::write(s.own(), vec![0; 65536])?;
        let path = c(s.own());
        call!(libc::SYS_swapon, path.as_c_str(), 0)?;
        done("swapping")
    })
    .cannot("it needs CAP_SYS_ADMIN"),
];

/// The unique id of the root mount, by statx.
fn root_mount() -> Result<u64, Refused> {
    let mut buffer = [0_u64; 64];
    // STATX_MNT_ID_UNIQUE
    call!(
        libc::SYS_statx,
        libc::AT_FDCWD,
        c"/",
        0,
        0x4000,
        buffer.as_mut_ptr()
    )?;
    // stx_mnt_id stands at byte 144.
    Ok(buffer[18])
}
