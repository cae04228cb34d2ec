//! Changing what is granted for reading.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::{done, fifo_at, opened, path_of};
use crate::case::{Case, Effect, Try};
use crate::raw::{Refused, call};
use crate::scene::{Scene, c};

const fn ro(id: &'static str, title: &'static str, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Shared)
}

pub const CASES: &[Case] = &[
    ro("fs_write_ro", "open it for writing", |s| {
        fs::write(s.shared(), "overwritten")?;
        done("written")
    }),
    ro("fs_append_ro", "append to it", |s| {
        use std::io::Write;
        File::options()
            .append(true)
            .open(s.shared())?
            .write_all(b"x")?;
        done("appended")
    }),
    ro("fs_truncate_ro", "truncate it by path", |s| {
        let path = c(s.shared());
        call!(libc::SYS_truncate, path.as_c_str(), 0)?;
        done("truncated")
    }),
    ro("fs_unlink_ro", "unlink it", |s| {
        fs::remove_file(s.shared())?;
        done("removed")
    }),
    ro("fs_rename_ro", "rename it", |s| {
        fs::rename(s.shared(), s.shared_new())?;
        done("renamed")
    }),
    ro(
        "fs_rename_over_ro",
        "rename a file of the workspace over it",
        |s| {
            fs::write(s.own(), "mine")?;
            fs::rename(s.own(), s.shared())?;
            done("replaced")
        },
    ),
    ro("fs_create_ro", "make a file beside it", |s| {
        fs::write(s.shared_new(), "new")?;
        done("made")
    }),
    ro("fs_mkdir_ro", "make a folder beside it", |s| {
        fs::create_dir(s.shared_new())?;
        done("made")
    }),
    ro("fs_mkfifo_ro", "make a fifo beside it", |s| {
        fifo_at(s.shared_new())
    }),
    ro("fs_bind_ro", "bind a socket beside it", |s| {
        std::os::unix::net::UnixDatagram::bind(s.shared_new())?;
        done("bound")
    }),
    ro("fs_chmod_ro", "chmod it", |s| {
        fs::set_permissions(s.shared(), fs::Permissions::from_mode(0o777))?;
        done("changed")
    }),
    ro(
        "fs_fchmod_ro",
        "fchmod it through a read-only descriptor",
        |s| {
            let file = File::open(s.shared())?;
            call!(libc::SYS_fchmod, file.as_raw_fd(), 0o777)?;
            done("changed")
        },
    ),
    ro("fs_fchmodat2_ro", "fchmodat2 with an empty path", |s| {
        let file = File::open(s.shared())?;
        call!(
            libc::SYS_fchmodat2,
            file.as_raw_fd(),
            c"",
            0o777,
            libc::AT_EMPTY_PATH
        )?;
        done("changed")
    }),
    ro("fs_utime_ro", "utimensat", |s| {
        let path = c(s.shared());
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
    ro("fs_futime_ro", "utimensat on a read-only descriptor", |s| {
        let file = File::open(s.shared())?;
        let mut times = [1_i64, 0, 1, 0];
        call!(
            libc::SYS_utimensat,
            file.as_raw_fd(),
            0,
            times.as_mut_ptr(),
            0
        )?;
        done("changed")
    }),
    ro("fs_xattr_ro", "setxattr", |s| {
        let path = c(s.shared());
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
    ro("fs_fxattr_ro", "fsetxattr on a read-only descriptor", |s| {
        let file = File::open(s.shared())?;
        call!(
            libc::SYS_fsetxattr,
            file.as_raw_fd(),
            c"user.escape",
            c"x",
            1,
            0
        )?;
        done("set")
    }),
    ro("fs_flags_ro", "FS_IOC_SETFLAGS: no atime, no dump", |s| {
        let file = File::open(s.shared())?;
        let mut flags = 0_i64;
        call!(
            libc::SYS_ioctl,
            file.as_raw_fd(),
            0x8008_6601_u32,
            &mut flags
        )?;
        flags |= 0x40;
        call!(
            libc::SYS_ioctl,
            file.as_raw_fd(),
            0x4008_6602_u32,
            &mut flags
        )?;
        // The flag shows in no state that the host compares, so a time is changed with it where it may be.
        let mut times = [1_i64, 0, 1, 0];
        call!(
            libc::SYS_utimensat,
            file.as_raw_fd(),
            0,
            times.as_mut_ptr(),
            0
        )?;
        done("set")
    }),
    ro("fs_fallocate_ro", "punch a hole", |s| {
        let file = File::options().read(true).write(true).open(s.shared())?;
        call!(libc::SYS_fallocate, file.as_raw_fd(), 3, 0, 4096)?;
        done("punched")
    }),
    ro(
        "fs_link_ro",
        "link it into the workspace and write through the link",
        |s| {
            fs::hard_link(s.shared(), s.own())?;
            fs::write(s.own(), "through a link")?;
            done("written")
        },
    ),
    ro(
        "fs_fd_reopen_ro",
        "open it for reading, then /proc/self/fd/N for writing",
        |s| {
            let file = File::open(s.shared())?;
            fs::write(path_of(&file), "through /proc")?;
            done("written")
        },
    ),
    ro(
        "fs_path_reopen_ro",
        "an O_PATH descriptor, then /proc/self/fd/N for writing",
        |s| {
            let file = opened(s.shared(), libc::O_PATH)?;
            fs::write(format!("/proc/self/fd/{file}"), "through O_PATH")?;
            done("written")
        },
    ),
    ro(
        "fs_mmap_ro",
        "map it shared, make the mapping writable, store",
        |s| {
            let file = File::open(s.shared())?;
            let at = mapped_shared(&file)?;
            call!(
                libc::SYS_mprotect,
                at,
                4096,
                libc::PROT_READ | libc::PROT_WRITE
            )?;
            // SAFETY: mapped and made writable just now.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_volatile(b'!') };
            done("stored")
        },
    )
    .cannot("a read-only descriptor gives no writable mapping"),
    ro(
        "fs_procmem_ro",
        "map it shared, store through /proc/self/mem",
        |s| {
            use std::os::unix::fs::FileExt;
            let file = File::open(s.shared())?;
            let at = mapped_shared(&file)?;
            File::options()
                .write(true)
                .open("/proc/self/mem")?
                .write_all_at(b"forced", at as u64)?;
            done("stored")
        },
    )
    .cannot("the kernel copies a page rather than write through a read-only shared mapping"),
    ro(
        "X4",
        "the shape of Dirty Pipe: splice a page of it into a pipe, then write the pipe",
        dirty_pipe,
    )
    .cannot("fixed in every kernel that is supported"),
    ro(
        "fs_dirty_cow",
        "the shape of Dirty COW: madvise against /proc/self/mem on a private mapping",
        dirty_cow,
    )
    .cannot("fixed in every kernel that is supported"),
    ro("fs_remount_ro", "remount the folder for writing", |s| {
        let path = c(&s.shared);
        call!(
            libc::SYS_mount,
            c"none",
            path.as_c_str(),
            0,
            libc::MS_REMOUNT | libc::MS_BIND,
            0
        )?;
        fs::write(s.shared(), "remounted")?;
        done("written")
    })
    .cannot("mounting needs CAP_SYS_ADMIN"),
    ro(
        "fs_setattr_ro",
        "mount_setattr takes the read-only flag away",
        |s| {
            let path = c(&s.shared);
            // struct mount_attr: attr_set, attr_clr, propagation, userns_fd
            let mut attr = [0_u64, 1, 0, 0];
            call!(
                libc::SYS_mount_setattr,
                libc::AT_FDCWD,
                path.as_c_str(),
                0,
                attr.as_mut_ptr(),
                size_of_val(&attr)
            )?;
            fs::write(s.shared(), "remounted")?;
            done("written")
        },
    )
    .cannot("mounting needs CAP_SYS_ADMIN"),
];

/// The file's first page, to be read, and shared with everybody.
fn mapped_shared(file: &File) -> Result<usize, Refused> {
    call!(
        libc::SYS_mmap,
        0,
        4096,
        libc::PROT_READ,
        libc::MAP_SHARED,
        file.as_raw_fd(),
        0
    )
}

fn dirty_pipe(s: &Scene) -> Try {
    let file = File::open(s.shared())?;
    let mut ends = [0_i32; 2];
    call!(libc::SYS_pipe2, ends.as_mut_ptr(), 0)?;
    // Fill and drain, so that every buffer of the ring carries the merge flag.
    let filler = [0_u8; 4096];
    for _ in 0..16 {
        call!(libc::SYS_write, ends[1], filler.as_ptr(), filler.len())?;
    }
    let mut drain = [0_u8; 4096];
    for _ in 0..16 {
        call!(libc::SYS_read, ends[0], drain.as_mut_ptr(), drain.len())?;
    }
    let mut offset = 0_i64;
    call!(
        libc::SYS_splice,
        file.as_raw_fd(),
        &mut offset,
        ends[1],
        0,
        1,
        0
    )?;
    call!(libc::SYS_write, ends[1], c"dirty", 5)?;
    done("the pipe was written")
}

fn dirty_cow(s: &Scene) -> Try {
    use std::os::unix::fs::FileExt;
    let file = File::open(s.shared())?;
    let at = call!(
        libc::SYS_mmap,
        0,
        4096,
        libc::PROT_READ,
        libc::MAP_PRIVATE,
        file.as_raw_fd(),
        0
    )?;
    let memory = File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    let racer = std::thread::spawn(move || {
        for _ in 0..20_000 {
            if call!(libc::SYS_madvise, at, 4096, libc::MADV_DONTNEED).is_err() {
                return;
            }
        }
    });
    for _ in 0..20_000 {
        memory.write_all_at(b"dirty", at as u64)?;
    }
    racer
        .join()
        .map_err(|_| Refused::without_errno("the racer died"))?;
    done("raced")
}
