//! Channels and locks through what is granted for reading: an agent that holds a lock stops others, and one that sees
//! others' locks hears them.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::done;
use crate::case::{Case, Opening};
use crate::raw::call;

const LOCKS: Opening = Opening::Has("syscalls.allow", "locks");

pub const CASES: &[Case] = &[
    Case::new(
        "fs_flock_ro",
        "flock a file that is granted for reading",
        |s| {
            let file = File::open(s.shared())?;
            call!(
                libc::SYS_flock,
                file.as_raw_fd(),
                libc::LOCK_EX | libc::LOCK_NB
            )?;
            done("an exclusive lock is held")
        },
    )
    .opens(LOCKS),
    Case::new("fs_flock_dir_ro", "flock its folder", |s| {
        let folder = File::open(&s.shared)?;
        call!(
            libc::SYS_flock,
            folder.as_raw_fd(),
            libc::LOCK_EX | libc::LOCK_NB
        )?;
        done("an exclusive lock is held")
    })
    .opens(LOCKS),
    Case::new(
        "fs_posix_lock_ro",
        "a POSIX read lock on it, which keeps writers out",
        |s| {
            let file = File::open(s.shared())?;
            let mut lock = whole(libc::F_RDLCK);
            call!(libc::SYS_fcntl, file.as_raw_fd(), libc::F_SETLK, &mut lock)?;
            done("a read lock is held")
        },
    )
    .opens(LOCKS),
    Case::new(
        "fs_ofd_lock_ro",
        "an open file description lock on it",
        |s| {
            let file = File::open(s.shared())?;
            let mut lock = whole(libc::F_RDLCK);
            call!(
                libc::SYS_fcntl,
                file.as_raw_fd(),
                libc::F_OFD_SETLK,
                &mut lock
            )?;
            done("a read lock is held")
        },
    )
    .opens(LOCKS),
    Case::new("fs_lock_query_ro", "F_GETLK: who holds locks on it", |s| {
        let file = File::open(s.shared())?;
        let mut lock = whole(libc::F_WRLCK);
        call!(libc::SYS_fcntl, file.as_raw_fd(), libc::F_GETLK, &mut lock)?;
        done("locks of others can be asked for")
    })
    .opens(LOCKS),
    Case::new(
        "fs_lease_ro",
        "a lease on it, which makes writers wait",
        |s| {
            let file = File::open(s.shared())?;
            call!(
                libc::SYS_fcntl,
                file.as_raw_fd(),
                libc::F_SETLEASE,
                i32::from(libc::F_RDLCK as i16)
            )?;
            done("a lease is held")
        },
    )
    .opens(LOCKS),
    Case::new(
        "fs_dnotify_ro",
        "F_NOTIFY: signals at each access in its folder",
        |s| {
            let folder = File::open(&s.shared)?;
            call!(libc::SYS_fcntl, folder.as_raw_fd(), libc::F_NOTIFY, 0x3f)?;
            done("accesses of others are told")
        },
    ),
    Case::new("fs_fanotify_ro", "fanotify on it", |s| {
        let watch = call!(libc::SYS_fanotify_init, 0x200, 0)?;
        let path = crate::scene::c(&s.shared);
        call!(
            libc::SYS_fanotify_mark,
            watch,
            1,
            0x20,
            libc::AT_FDCWD,
            path.as_c_str()
        )?;
        done("accesses of others are told")
    }),
];

fn whole(kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}
