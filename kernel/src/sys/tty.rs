//! Terminals: a pseudo terminal's pair, its size, its session and its foreground group.

use super::call::call;
use super::{Errno, Fd, FdRef, fs, nr};

/// The other side of an open `ptmx`, unlocked, from the same devpts.
pub fn open_peer(master: FdRef<'_>) -> Result<Fd, Errno> {
    const TIOCSPTLCK: usize = 0x4004_5431;
    const TIOCGPTPEER: usize = 0x5441;
    let unlock = 0u32;
    // SAFETY: the kernel reads an int from `unlock`.
    unsafe {
        call(
            nr::IOCTL,
            [
                master.arg(),
                TIOCSPTLCK,
                (&raw const unlock).expose_provenance(),
            ],
        )
    }?;
    let flags = (fs::O_RDWR | fs::O_NOCTTY | fs::O_CLOEXEC) as usize;
    // SAFETY: the argument is flags; no memory is involved.
    unsafe { call(nr::IOCTL, [master.arg(), TIOCGPTPEER, flags]) }.map(Fd::returned)
}

/// Sets the window's size.
pub fn set_size(terminal: FdRef<'_>, rows: u16, cols: u16) -> Result<(), Errno> {
    const TIOCSWINSZ: usize = 0x5414;
    let size = [rows, cols, 0, 0];
    // SAFETY: the kernel reads a `struct winsize` of four shorts from `size`.
    unsafe {
        call(
            nr::IOCTL,
            [
                terminal.arg(),
                TIOCSWINSZ,
                size.as_ptr().expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// Makes it the controlling terminal of the caller, who leads a session without one.
pub fn make_controlling(terminal: FdRef<'_>) -> Result<(), Errno> {
    const TIOCSCTTY: usize = 0x540e;
    // SAFETY: the argument is a number; no memory is involved.
    unsafe { call(nr::IOCTL, [terminal.arg(), TIOCSCTTY, 0]) }.map(drop)
}

/// Makes a process group of the session the foreground one.
pub fn set_foreground(terminal: FdRef<'_>, group: u32) -> Result<(), Errno> {
    const TIOCSPGRP: usize = 0x5410;
    // SAFETY: the kernel reads an int from `group`.
    unsafe {
        call(
            nr::IOCTL,
            [
                terminal.arg(),
                TIOCSPGRP,
                (&raw const group).expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// The foreground process group.
pub fn foreground(terminal: FdRef<'_>) -> Result<u32, Errno> {
    const TIOCGPGRP: usize = 0x540f;
    let mut group = 0u32;
    // SAFETY: the kernel writes an int to `group`.
    unsafe {
        call(
            nr::IOCTL,
            [
                terminal.arg(),
                TIOCGPGRP,
                (&raw mut group).expose_provenance(),
            ],
        )
    }?;
    Ok(group)
}
