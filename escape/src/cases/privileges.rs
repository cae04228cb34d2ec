//! Ids, capabilities and the bits that give them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::{done, in_child, named_tmpfile};
use crate::case::{Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const SETUID: u32 = 0o4755;
const SETGID: u32 = 0o2755;

const fn set_id(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::SetId)
}

pub const CASES: &[Case] = &[
    Case::new(
        "priv_nnp",
        "whether programs can still gain rights at exec",
        |_| match call!(libc::SYS_prctl, libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)? {
            0 => done("no_new_privs is not set"),
            _ => Err(Refused::without_errno("no_new_privs is set")),
        },
    ),
    Case::new("priv_suid", "exec a set-uid-root program", |s| {
        gained(s, "suid")
    }),
    Case::new("priv_sgid", "exec a set-gid-root program", |s| {
        gained(s, "sgid")
    }),
    Case::new(
        "priv_caps_file",
        "exec a program with file capabilities",
        |s| gained(s, "caps"),
    ),
    Case::new("priv_uid0", "be root inside", |_| {
        match call!(libc::SYS_geteuid)? {
            0 => done("euid 0"),
            uid => Err(Refused::without_errno(format!("uid {uid}"))),
        }
    })
    .emulated(super::emulated::ROOT)
    .cannot("an ordinary user is not root"),
    Case::new("priv_setuid", "setresuid to root", |_| {
        call!(libc::SYS_setresuid, 0, 0, 0)?;
        done("uid 0")
    })
    .emulated(super::emulated::ROOT)
    .cannot("it needs CAP_SETUID"),
    Case::new("priv_setuid_other", "setresuid to another user", |s| {
        call!(libc::SYS_setresuid, s.uid + 1, s.uid + 1, s.uid + 1)?;
        done("another uid")
    })
    .cannot("it needs CAP_SETUID"),
    Case::new("priv_setgid", "setresgid to root", |_| {
        call!(libc::SYS_setresgid, 0, 0, 0)?;
        done("gid 0")
    })
    .emulated(super::emulated::ROOT)
    .cannot("it needs CAP_SETGID"),
    Case::new("priv_setgroups", "take on groups", |_| {
        let mut groups = [0_u32];
        call!(libc::SYS_setgroups, 1, groups.as_mut_ptr())?;
        done("group 0")
    })
    .cannot("it needs CAP_SETGID"),
    Case::new("priv_capset", "raise capabilities", |_| {
        let mut header = [0x2008_0522_u32, 0];
        let mut data = [u32::MAX, u32::MAX, 0, 0, 0, 0];
        call!(libc::SYS_capset, header.as_mut_ptr(), data.as_mut_ptr())?;
        done("raised")
    })
    .cannot("only what is permitted can be raised"),
    Case::new("priv_caps", "hold any capability", |_| {
        match status("CapEff:")? {
            0 => Err(Refused::without_errno("none")),
            caps => done(format!("{caps:#x}")),
        }
    })
    .cannot("an ordinary user has none"),
    Case::new(
        "priv_bounding",
        "a bounding set from which programs could gain",
        |_| match status("CapBnd:")? {
            0 => Err(Refused::without_errno("empty")),
            caps => done(format!("{caps:#x}")),
        },
    ),
    Case::new("priv_ambient", "raise an ambient capability", |_| {
        call!(
            libc::SYS_prctl,
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE,
            21,
            0,
            0
        )?;
        done("raised")
    })
    .cannot("only what is permitted can be raised"),
    Case::new("priv_securebits", "change the secure bits", |_| {
        call!(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0)?;
        done("changed")
    })
    .cannot("it needs CAP_SETPCAP"),
    Case::new("priv_groups", "keep supplementary groups", |s| {
        let mut groups = [0_u32; 64];
        let count = call!(libc::SYS_getgroups, groups.len(), groups.as_mut_ptr())?;
        let extra: Vec<u32> = groups[..count]
            .iter()
            .copied()
            .filter(|group| *group != s.uid && *group != 65534)
            .collect();
        if extra.is_empty() {
            return Err(Refused::without_errno("none"));
        }
        done(format!("groups {extra:?}"))
    })
    .cannot("the session's user has none"),
    Case::new("priv_drop_filter", "take the seccomp filter away", |_| {
        call!(libc::SYS_prctl, libc::PR_SET_SECCOMP, 0, 0, 0, 0)?;
        done("gone")
    })
    .cannot("a filter stays for ever"),
    Case::new("priv_unset_nnp", "take no_new_privs away", |_| {
        call!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0)?;
        done("gone")
    })
    .cannot("it stays for ever"),
    set_id("fs_suid_create", "fchmod 04755 in the workspace", |s| {
        fs::write(s.own(), "x")?;
        let path = c(s.own());
        let file = call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_c_str(),
            libc::O_RDONLY
        )?;
        call!(libc::SYS_fchmod, file, SETUID)?;
        done("set")
    }),
    set_id("fs_suid_chmod", "chmod 04755", |s| {
        fs::write(s.own(), "x")?;
        fs::set_permissions(s.own(), fs::Permissions::from_mode(SETUID))?;
        done("set")
    }),
    set_id("fs_sgid_chmod", "chmod 02755", |s| {
        fs::write(s.own(), "x")?;
        fs::set_permissions(s.own(), fs::Permissions::from_mode(SETGID))?;
        done("set")
    }),
    set_id("fs_suid_fchmodat", "fchmodat", |s| {
        fs::write(s.own(), "x")?;
        let path = c(s.own());
        call!(libc::SYS_fchmodat, libc::AT_FDCWD, path.as_c_str(), SETUID)?;
        done("set")
    }),
    set_id("fs_suid_fchmodat2", "fchmodat2", |s| {
        fs::write(s.own(), "x")?;
        let path = c(s.own());
        call!(
            libc::SYS_fchmodat2,
            libc::AT_FDCWD,
            path.as_c_str(),
            SETUID,
            0
        )?;
        done("set")
    }),
    set_id("fs_suid_open", "open with O_CREAT and mode 04755", |s| {
        let path = c(s.own());
        call!(
            libc::SYS_open,
            path.as_c_str(),
            libc::O_CREAT | libc::O_WRONLY,
            SETUID
        )?;
        done("made")
    }),
    set_id(
        "fs_suid_openat",
        "openat with O_CREAT and mode 04755",
        |s| {
            let path = c(s.own());
            call!(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path.as_c_str(),
                libc::O_CREAT | libc::O_WRONLY,
                SETUID
            )?;
            done("made")
        },
    ),
    set_id(
        "fs_suid_openat2",
        "openat2 with O_CREAT and mode 04755",
        |s| {
            let path = c(s.own());
            let mut how = [
                (libc::O_CREAT | libc::O_WRONLY) as u64,
                u64::from(SETUID),
                0,
            ];
            call!(
                libc::SYS_openat2,
                libc::AT_FDCWD,
                path.as_c_str(),
                how.as_mut_ptr(),
                24
            )?;
            done("made")
        },
    ),
    set_id("fs_suid_creat", "creat with mode 04755", |s| {
        let path = c(s.own());
        call!(libc::SYS_creat, path.as_c_str(), SETUID)?;
        done("made")
    }),
    set_id("fs_suid_mknod", "mknod with mode 04755", |s| {
        let path = c(s.own());
        call!(libc::SYS_mknod, path.as_c_str(), libc::S_IFREG | SETUID, 0)?;
        done("made")
    }),
    set_id(
        "fs_suid_tmpfile",
        "O_TMPFILE with mode 04755, then a name",
        |s| {
            named_tmpfile(&s.work, SETUID, s.own())?;
            done("made")
        },
    ),
    set_id("fs_suid_int80", "chmod through the 32-bit entry", |s| {
        fs::write(s.own(), "x")?;
        super::syscalls::int80_path(15, &s.own(), SETUID)?;
        done("set")
    }),
    set_id("fs_sgid_mkdir", "a set-gid folder", |s| {
        let path = c(s.own());
        call!(libc::SYS_mkdir, path.as_c_str(), 0o755)?;
        call!(libc::SYS_chmod, path.as_c_str(), 0o2777)?;
        done("made")
    }),
    Case::new(
        "fs_setcap",
        "give a file of the workspace capabilities",
        |s| {
            fs::write(s.own(), "x")?;
            let path = c(s.own());
            let mut data: [u32; 5] = [0x0200_0001, 1 << 21, 0, 0, 0];
            call!(
                libc::SYS_setxattr,
                path.as_c_str(),
                c"security.capability",
                data.as_mut_ptr(),
                20,
                0
            )?;
            done("set")
        },
    )
    .cannot("it needs CAP_SETFCAP"),
    Case::new(
        "fs_chown_away",
        "give a file of the workspace to another user",
        |s| {
            fs::write(s.own(), "x")?;
            let path = c(s.own());
            call!(libc::SYS_chown, path.as_c_str(), 0, 0)?;
            done("given")
        },
    )
    .effect(Effect::GivenAway)
    .cannot("it needs CAP_CHOWN"),
    Case::new("priv_core", "leave core dumps, with memory in them", |_| {
        let mut limit = [0_u64; 2];
        call!(
            libc::SYS_prlimit64,
            0,
            libc::RLIMIT_CORE,
            0,
            limit.as_mut_ptr()
        )?;
        if limit[1] == 0 {
            return Err(Refused::without_errno("the hard limit is 0"));
        }
        done("core dumps can be turned on")
    }),
    Case::new(
        "priv_userns_root",
        "root in a user namespace of one's own",
        |_| {
            // SAFETY: asks for a number.
            let uid = unsafe { libc::getuid() };
            let status = in_child(|| {
                let made = call!(libc::SYS_unshare, libc::CLONE_NEWUSER).is_ok()
                    && fs::write("/proc/self/uid_map", format!("0 {uid} 1")).is_ok();
                i32::from(!made)
            })?;
            if status == 0 {
                done("root, with every capability over it")
            } else {
                Err(Refused::new("unshare", libc::EPERM))
            }
        },
    ),
];

/// Runs a program of the shared folder that says who it is, and compares.
fn gained(s: &Scene, name: &str) -> Try {
    let program = s.shared.join(name);
    let output = Command::new(&program).arg("ids").output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if said.is_empty() {
        return Err(Refused::without_errno(format!(
            "it did not run: {}",
            output.status
        )));
    }
    if said == own_ids() {
        return Err(Refused::without_errno("nothing was gained"));
    }
    done(said)
}

/// Effective ids and capabilities, as one line.
pub fn own_ids() -> String {
    // SAFETY: asks for numbers.
    let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
    format!(
        "uid {uid} gid {gid} caps {:#x}",
        status("CapEff:").unwrap_or(0)
    )
}

/// A hexadecimal number of /proc/self/status.
fn status(key: &str) -> Result<u64, Refused> {
    let text = fs::read_to_string("/proc/self/status")?;
    text.lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix(key)?.trim(), 16).ok())
        .ok_or_else(|| Refused::without_errno(format!("no {key}")))
}
