//! Reading what is not in the view: by every way to a file that does not go through its own path.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use super::{fd, link_followed, loot, loot_fd};
use crate::case::{Attempt, Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

pub const CASES: &[Case] = &[
    Case::new(
        "fs_read_abs",
        "open a secret outside by its absolute path",
        |s| loot(s.outside()),
    )
    .secret(),
    Case::new(
        "fs_read_openat2",
        "the same by openat2 without any RESOLVE flag",
        openat2,
    )
    .secret(),
    Case::new(
        "fs_read_symlink",
        "through a symbolic link that was in the workspace before",
        |s| loot(s.planted()),
    )
    .secret(),
    Case::new(
        "fs_read_own_symlink",
        "through a symbolic link of the agent's own",
        |s| {
            let link = s.own();
            symlink(s.outside(), &link)?;
            loot(link)
        },
    )
    .secret(),
    Case::new(
        "fs_read_chain",
        "through a link to /proc/self/root and on from there",
        |s| {
            let link = s.own();
            symlink("/proc/self/root", &link)?;
            loot(format!("{}{}", link.display(), s.outside().display()))
        },
    )
    .secret(),
    Case::new("fs_read_dotdot", "../ out of the workspace", |s| {
        loot(s.work.join("../../outside").join(&s.case))
    })
    .secret(),
    Case::new(
        "fs_read_fchdir",
        "a directory above the workspace opened, then .. from there",
        fchdir_up,
    )
    .secret(),
    Case::new("fs_proc_self_root", "/proc/self/root/…", |s| {
        loot(below("/proc/self/root", s))
    })
    .secret(),
    Case::new("fs_proc_thread_root", "/proc/thread-self/root/…", |s| {
        loot(below("/proc/thread-self/root", s))
    })
    .secret(),
    Case::new("fs_proc_1_root", "/proc/1/root/…", |s| {
        loot(below("/proc/1/root", s))
    })
    .secret()
    .cannot("the host's init belongs to root"),
    Case::new("fs_proc_1_cwd", "/proc/1/cwd and up", |s| {
        loot(format!(
            "/proc/1/cwd/../../../../../..{}",
            s.outside().display()
        ))
    })
    .secret()
    .cannot("the host's init belongs to root"),
    Case::new("fs_proc_parent_root", "/proc/PPID/root/…", |s| {
        let parent = std::os::unix::process::parent_id();
        loot(below(&format!("/proc/{parent}/root"), s))
    })
    .secret(),
    Case::new(
        "fs_proc_v_root",
        "/proc/PID/root/… of a host process",
        |s| loot(below(&format!("/proc/{}/root", s.victim.pid), s)),
    )
    .secret(),
    Case::new(
        "fs_proc_v_cwd",
        "/proc/PID/cwd of a host process, and on from there",
        |s| {
            let up = "../".repeat(12);
            loot(format!(
                "/proc/{}/cwd/{up}{}",
                s.victim.pid,
                s.outside().display()
            ))
        },
    )
    .secret(),
    Case::new("fs_proc_v_fd", "/proc/PID/fd/N of a host process", |s| {
        loot(format!("/proc/{}/fd/{}", s.victim.pid, s.victim.fd))
    })
    .secret(),
    Case::new(
        "fs_proc_any_root",
        "/proc/N/root/… of every process that shows",
        any_root,
    )
    .secret(),
    Case::new("fs_hardlink_in", "a hard link into the workspace", |s| {
        fs::hard_link(s.outside(), s.own())?;
        loot(s.own())
    })
    .secret(),
    Case::new(
        "fs_hardlink_proc",
        "a hard link by /proc/self/fd and AT_SYMLINK_FOLLOW",
        |s| {
            let secret = format!("/proc/{}/fd/{}", s.victim.pid, s.victim.fd);
            link_followed(secret, s.own())?;
            loot(s.own())
        },
    )
    .secret(),
    Case::new("fs_rename_in", "rename it into the workspace", |s| {
        fs::rename(s.outside(), s.own())?;
        loot(s.own())
    })
    .secret(),
    Case::new(
        "fs_rename_exchange",
        "exchange it with a file of the workspace",
        |s| {
            fs::write(s.own(), "mine")?;
            let (from, to) = (c(s.outside()), c(s.own()));
            call!(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                from.as_c_str(),
                libc::AT_FDCWD,
                to.as_c_str(),
                libc::RENAME_EXCHANGE
            )?;
            loot(s.own())
        },
    )
    .secret(),
    Case::new("fs_list", "list the folder", |s| {
        let names = fs::read_dir(&s.outside)?.count();
        super::done(format!("{names} names"))
    }),
    Case::new("fs_list_home", "list the caller's HOME as it is", |s| {
        let found = fs::read_dir(&s.home)?
            .filter_map(Result::ok)
            .any(|entry| entry.file_name() == ".bash_history");
        if found {
            super::done("its files are listed")
        } else {
            Err(Refused::without_errno("another HOME"))
        }
    }),
    Case::new("fs_stat", "stat: whether it exists, and its size", |s| {
        super::done(format!("{} bytes", fs::metadata(s.outside())?.len()))
    }),
    Case::new("fs_statx", "statx", statx),
    Case::new("fs_access", "faccessat2", |s| {
        let path = c(s.outside());
        call!(
            libc::SYS_faccessat2,
            libc::AT_FDCWD,
            path.as_c_str(),
            libc::R_OK,
            0
        )?;
        super::done("it is there and readable")
    }),
    Case::new("fs_readlink_out", "readlink outside", |s| {
        let path = c(s.outside.join("nothing"));
        let mut target = [0_u8; 64];
        match call!(
            libc::SYS_readlink,
            path.as_c_str(),
            target.as_mut_ptr(),
            target.len()
        ) {
            // The folder is reached when the name alone is missing.
            Err(refused) if refused.errno == libc::ENOENT && s.outside.exists() => {
                super::done("the folder is reached")
            }
            Err(refused) => Err(refused),
            Ok(_) => super::done("the link was read"),
        }
    }),
    Case::new("fs_path_open", "an O_PATH descriptor of it", |s| {
        let path = c(s.outside());
        call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            path.as_c_str(),
            libc::O_PATH
        )?;
        super::done("it can be named")
    }),
    Case::new("fs_inotify", "watch the folder's activity", |s| {
        let watch = call!(libc::SYS_inotify_init1, 0)?;
        let path = c(&s.outside);
        call!(
            libc::SYS_inotify_add_watch,
            watch,
            path.as_c_str(),
            libc::IN_ALL_EVENTS
        )?;
        super::done("a watch was set")
    }),
    Case::new("fs_getxattr_out", "list its extended attributes", |s| {
        let path = c(s.outside());
        call!(libc::SYS_listxattr, path.as_c_str(), 0, 0)?;
        super::done("attributes are listed")
    }),
    Case::new("fs_statfs_out", "statfs of its file system", |s| {
        let path = c(s.outside());
        let mut buffer = [0_u64; 32];
        call!(libc::SYS_statfs, path.as_c_str(), buffer.as_mut_ptr())?;
        super::done("the file system answers")
    }),
    Case::new(
        "fs_handle",
        "name_to_handle_at in the view, then open_by_handle_at of the root inode",
        handle,
    )
    .cannot("open_by_handle_at needs CAP_DAC_READ_SEARCH"),
    Case::new("fs_handle_leak", "name_to_handle_at of it", |s| {
        let path = c(s.outside());
        let mut handle = [0_u32; 40];
        handle[0] = 128;
        let mut mount = 0_i32;
        call!(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_c_str(),
            handle.as_mut_ptr(),
            &mut mount,
            0
        )?;
        super::done("a handle was given")
    }),
    Case::new(
        "fs_toctou_dirswap",
        "race a folder against a link while it is opened",
        dirswap,
    )
    .secret()
    .limit(15),
    Case::new("fs_home_read", "~/.ssh/id_rsa", |s| {
        loot(s.home.join(".ssh/id_rsa"))
    })
    .secret(),
    Case::new("fs_home_aws", "~/.aws/credentials", |s| {
        loot(s.home.join(".aws/credentials"))
    })
    .secret(),
    Case::new("fs_home_history", "~/.bash_history", |s| {
        loot(s.home.join(".bash_history"))
    })
    .secret(),
    Case::new("fs_home_claude", "~/.claude/.credentials.json", |s| {
        loot(s.home.join(".claude/.credentials.json"))
    })
    .secret(),
    Case::new("fs_home_codex", "~/.codex/auth.json", |s| {
        loot(s.home.join(".codex/auth.json"))
    })
    .secret(),
    Case::new("fs_home_gh", "~/.config/gh/hosts.yml", |s| {
        loot(s.home.join(".config/gh/hosts.yml"))
    })
    .secret(),
    Case::new("fs_home_docker", "~/.docker/config.json", |s| {
        loot(s.home.join(".docker/config.json"))
    })
    .secret(),
    Case::new("fs_home_gnupg", "~/.gnupg/private-keys-v1.d", |s| {
        loot(s.home.join(".gnupg/private-keys-v1.d/key"))
    })
    .secret(),
    Case::new("fs_home_netrc", "~/.netrc", |s| loot(s.home.join(".netrc"))).secret(),
    Case::new("fs_host_users", "the host's /etc/passwd", |_| {
        loot("/etc/passwd")
    })
    .effect(Effect::SameAs("/etc/passwd")),
    Case::new("fs_host_id", "the host's /etc/machine-id", |_| {
        loot("/etc/machine-id")
    })
    .effect(Effect::SameAs("/etc/machine-id")),
    Case::new("fs_host_hosts", "the host's /etc/hosts", |_| {
        loot("/etc/hosts")
    })
    .effect(Effect::SameAs("/etc/hosts")),
    Case::new("fs_host_fstab", "the host's /etc/fstab", |_| {
        loot("/etc/fstab")
    })
    .effect(Effect::SameAs("/etc/fstab")),
    Case::new("fs_host_tmp", "list the host's /tmp", |s| {
        let marked = format!("{}-tmp", s.mark);
        let path = std::path::Path::new("/tmp").join(marked);
        fs::write(&path, "here")?;
        // Only the host's own /tmp holds what others left there.
        let others = fs::read_dir("/tmp")?
            .filter_map(Result::ok)
            .filter(|entry| entry.path() != path)
            .count();
        fs::remove_file(&path)?;
        if others > 0 {
            super::done(format!("{others} names of others"))
        } else {
            Err(Refused::without_errno("a private /tmp"))
        }
    }),
    Case::new("fs_dotenv_read", "a denied file of the workspace", |s| {
        loot(s.work.join(".env"))
    })
    .secret(),
    Case::new(
        "fs_dotenv_dir",
        "a denied file in a folder of the workspace",
        |s| loot(s.work.join("conf/secret.key")),
    )
    .secret(),
    Case::new("fs_dotenv_link", "a hard link to the denied file", |s| {
        fs::hard_link(s.work.join(".env"), s.own())?;
        loot(s.own())
    })
    .secret(),
    Case::new(
        "fs_dotenv_symlink",
        "a symbolic link to the denied file",
        |s| {
            symlink(s.work.join(".env"), s.own())?;
            loot(s.own())
        },
    )
    .secret(),
    Case::new("fs_dotenv_openat2", "the denied file by openat2", |s| {
        openat2_of(&s.work.join(".env"))
    })
    .secret(),
    Case::new(
        "fs_dotenv_rename",
        "rename the denied file, then read it",
        |s| renamed(s, ".env"),
    )
    .secret(),
    Case::new(
        "fs_dotenv_parent",
        "rename the folder above a denied file, then read it",
        |s| {
            let moved = s.own();
            fs::rename(s.work.join("conf"), &moved)?;
            let got = loot(moved.join("secret.key"));
            fs::rename(&moved, s.work.join("conf"))?;
            got
        },
    )
    .secret(),
    Case::new(
        "fs_dotenv_umount",
        "unmount what covers the denied file",
        |s| {
            let path = c(s.work.join(".env"));
            call!(libc::SYS_umount2, path.as_c_str(), libc::MNT_DETACH)?;
            loot(s.work.join(".env"))
        },
    )
    .secret()
    .cannot("there is no mount to take away without a sandbox"),
    Case::new(
        "fs_dotenv_proc_fd",
        "the denied file through its directory's descriptor",
        |s| {
            let folder = File::open(&s.work)?;
            loot(format!("{}/.env", super::path_of(&folder)))
        },
    )
    .secret(),
    Case::new("X10", "the denied file by another case of its name", |s| {
        loot(s.work.join(".ENV"))
    })
    .secret()
    .cannot("the file system of the workspace minds case"),
    Case::new(
        "X11",
        "a hard link in the workspace to a secret that is denied, made before the session",
        |s| loot(s.planted()),
    )
    .secret()
    .alone(),
];

fn below(root: &str, s: &Scene) -> String {
    format!("{root}{}", s.outside().display())
}

fn openat2(s: &Scene) -> Try {
    openat2_of(&s.outside())
}

fn openat2_of(path: &std::path::Path) -> Try {
    let path = c(path);
    // struct open_how: flags, mode, resolve
    let mut how = [0_u64; 3];
    let opened = call!(
        libc::SYS_openat2,
        libc::AT_FDCWD,
        path.as_c_str(),
        how.as_mut_ptr(),
        size_of_val(&how)
    )?;
    loot_fd(fd(opened))
}

fn statx(s: &Scene) -> Try {
    let path = c(s.outside());
    let mut buffer = [0_u64; 64];
    call!(
        libc::SYS_statx,
        libc::AT_FDCWD,
        path.as_c_str(),
        0,
        0xfff,
        buffer.as_mut_ptr()
    )?;
    super::done(format!("size {}", buffer[5]))
}

fn fchdir_up(s: &Scene) -> Try {
    let above = s
        .work
        .parent()
        .and_then(|home| home.parent())
        .ok_or_else(|| Refused::without_errno("no parent"))?;
    let folder = c(above);
    let opened = call!(
        libc::SYS_openat,
        libc::AT_FDCWD,
        folder.as_c_str(),
        libc::O_RDONLY | libc::O_DIRECTORY
    )?;
    call!(libc::SYS_fchdir, opened)?;
    loot(std::path::Path::new("outside").join(&s.case))
}

fn any_root(s: &Scene) -> Try {
    let mut last = Refused::without_errno("no process shows");
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else {
            continue;
        };
        match loot(below(&format!("/proc/{pid}/root"), s)) {
            Ok(found) => return Ok(found),
            Err(refused) => last = refused,
        }
    }
    Err(last)
}

fn renamed(s: &Scene, name: &str) -> Try {
    let moved = s.own();
    fs::rename(s.work.join(name), &moved)?;
    let got = loot(&moved);
    fs::rename(&moved, s.work.join(name))?;
    got
}

fn handle(s: &Scene) -> Try {
    let mount = File::open(&s.work)?;
    // struct file_handle for ext4 and xfs: 8 bytes, type 1 (inode, generation); inode 2 is the root.
    let mut handle: [u32; 4] = [8, 1, 2, 0];
    use std::os::fd::AsRawFd;
    let opened = call!(
        libc::SYS_open_by_handle_at,
        mount.as_raw_fd(),
        handle.as_mut_ptr(),
        libc::O_RDONLY | libc::O_DIRECTORY
    )?;
    super::done(format!("descriptor {opened} of the root"))
}

/// One process exchanges a folder and a link without end, the other opens the file below it.
fn dirswap(s: &Scene) -> Try {
    let base = s.own();
    let (folder, link) = (base.join("d"), base.join("l"));
    fs::create_dir(&base)?;
    fs::create_dir(&folder)?;
    fs::write(folder.join(&s.case), "decoy")?;
    symlink(&s.outside, &link)?;
    let (a, b) = (c(&folder), c(&link));
    // SAFETY: a case has one thread; the child only renames until it is killed.
    let swapper = unsafe { libc::fork() };
    if swapper == 0 {
        loop {
            if call!(
                libc::SYS_renameat2,
                libc::AT_FDCWD,
                a.as_c_str(),
                libc::AT_FDCWD,
                b.as_c_str(),
                libc::RENAME_EXCHANGE
            )
            .is_err()
            {
                // SAFETY: ends the child.
                unsafe { libc::_exit(1) }
            }
        }
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(2);
    let mut got = Err(Refused::without_errno("never in 2 s"));
    while std::time::Instant::now() < end {
        if let Ok(bytes) = fs::read(folder.join(&s.case))
            && bytes != b"decoy"
        {
            got = Ok(Attempt::Loot(bytes));
            break;
        }
    }
    // SAFETY: our own child.
    unsafe {
        libc::kill(swapper, libc::SIGKILL);
        libc::waitpid(swapper, std::ptr::null_mut(), 0);
    }
    got
}
