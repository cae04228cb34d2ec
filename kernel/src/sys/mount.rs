//! Mounts by file descriptor: `fsopen`, `open_tree`, `move_mount`, `mount_setattr`, and changing the root.

use core::ffi::CStr;

use super::call::call;
use super::{Errno, Fd, FdRef, nr};

/// `MOUNT_ATTR_*`
pub const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_*`
pub const ATTR_NOSUID: u64 = 0x2;
/// `MOUNT_ATTR_*`
pub const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_*`
pub const ATTR_NOEXEC: u64 = 0x8;

const AT_EMPTY_PATH: usize = 0x1000;
const AT_RECURSIVE: usize = 0x8000;
const CLOEXEC: usize = 1;
const FSCONFIG_SET_FLAG: usize = 0;
const FSCONFIG_SET_STRING: usize = 1;
const FSCONFIG_CMD_CREATE: usize = 6;

/// How deep a mount call reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// This mount only.
    One,
    /// And all mounts beneath it.
    Tree,
}

/// A new filesystem of this type, mounted nowhere, with these options (an empty value is a flag).
pub fn new_mount(kind: &CStr, options: &[(&CStr, &CStr)], attributes: u64) -> Result<Fd, Errno> {
    // SAFETY: `kind` ends in NUL and outlives the call.
    let context = unsafe { call(nr::FSOPEN, [kind.as_ptr().expose_provenance(), CLOEXEC]) }
        .map(Fd::returned)?;
    let fd = context.borrow().arg();
    for (key, value) in options {
        let args = match value.count_bytes() {
            0 => [
                fd,
                FSCONFIG_SET_FLAG,
                key.as_ptr().expose_provenance(),
                0,
                0,
            ],
            _ => [
                fd,
                FSCONFIG_SET_STRING,
                key.as_ptr().expose_provenance(),
                value.as_ptr().expose_provenance(),
                0,
            ],
        };
        // SAFETY: `key` and `value` end in NUL and outlive the call; a flag takes no value.
        unsafe { call(nr::FSCONFIG, args) }?;
    }
    // SAFETY: this command takes neither key nor value.
    unsafe { call(nr::FSCONFIG, [fd, FSCONFIG_CMD_CREATE, 0, 0, 0]) }?;
    // SAFETY: no memory is involved.
    unsafe { call(nr::FSMOUNT, [fd, CLOEXEC, attributes as usize]) }.map(Fd::returned)
}

/// A detached copy of the mount or tree at `from`.
pub fn clone_tree(from: FdRef<'_>, depth: Depth) -> Result<Fd, Errno> {
    const OPEN_TREE_CLONE: usize = 1;
    const OPEN_TREE_CLOEXEC: usize = 0o2_000_000;
    let recursive = if depth == Depth::Tree {
        AT_RECURSIVE
    } else {
        0
    };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | recursive;
    // SAFETY: the path is an empty string that ends in NUL.
    unsafe {
        call(
            nr::OPEN_TREE,
            [from.arg(), c"".as_ptr().expose_provenance(), flags],
        )
    }
    .map(Fd::returned)
}

/// A detached copy of the mount or tree at `name`, one component in `dir`. A symbolic link there is copied, not followed.
pub fn clone_named(dir: FdRef<'_>, name: &CStr, depth: Depth) -> Result<Fd, Errno> {
    const OPEN_TREE_CLONE: usize = 1;
    const OPEN_TREE_CLOEXEC: usize = 0o2_000_000;
    const AT_SYMLINK_NOFOLLOW: usize = 0x100;
    let recursive = if depth == Depth::Tree {
        AT_RECURSIVE
    } else {
        0
    };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_SYMLINK_NOFOLLOW | recursive;
    // SAFETY: `name` ends in NUL and outlives the call.
    unsafe {
        call(
            nr::OPEN_TREE,
            [dir.arg(), name.as_ptr().expose_provenance(), flags],
        )
    }
    .map(Fd::returned)
}

/// Attaches a detached mount at `name`, one component in `dir`. A symbolic link there is not followed.
pub fn attach_named(mount: FdRef<'_>, dir: FdRef<'_>, name: &CStr) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: usize = 0x4;
    let args = [
        mount.arg(),
        c"".as_ptr().expose_provenance(),
        dir.arg(),
        name.as_ptr().expose_provenance(),
        MOVE_MOUNT_F_EMPTY_PATH,
    ];
    // SAFETY: both paths end in NUL and outlive the call.
    unsafe { call(nr::MOVE_MOUNT, args) }.map(drop)
}

/// Attaches a detached mount at `to`.
pub fn attach(mount: FdRef<'_>, to: FdRef<'_>) -> Result<(), Errno> {
    const MOVE_MOUNT_F_EMPTY_PATH: usize = 0x4;
    const MOVE_MOUNT_T_EMPTY_PATH: usize = 0x40;
    let empty = c"".as_ptr().expose_provenance();
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both paths are empty strings that end in NUL.
    unsafe { call(nr::MOVE_MOUNT, [mount.arg(), empty, to.arg(), empty, flags]) }.map(drop)
}

/// Adds `attributes` to a mount.
pub fn set_attributes(mount: FdRef<'_>, attributes: u64, depth: Depth) -> Result<(), Errno> {
    // struct mount_attr: set, clear, propagation, userns fd
    let attr: [u64; 4] = [attributes, 0, 0, 0];
    let recursive = if depth == Depth::Tree {
        AT_RECURSIVE
    } else {
        0
    };
    let args = [
        mount.arg(),
        c"".as_ptr().expose_provenance(),
        AT_EMPTY_PATH | recursive,
        attr.as_ptr().expose_provenance(),
        size_of_val(&attr),
    ];
    // SAFETY: the path ends in NUL; `attr` is a `struct mount_attr` of the length given and outlives the call.
    unsafe { call(nr::MOUNT_SETATTR, args) }.map(drop)
}

/// Makes the working directory, which must be a mount, the root; the old root ends up on top of it.
pub fn pivot_here() -> Result<(), Errno> {
    // SAFETY: both paths end in NUL.
    unsafe {
        call(
            nr::PIVOT_ROOT,
            [
                c".".as_ptr().expose_provenance(),
                c".".as_ptr().expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// Detaches what is mounted on top of the working directory, and all beneath it.
pub fn detach_here() -> Result<(), Errno> {
    const MNT_DETACH: usize = 2;
    // SAFETY: the path ends in NUL.
    unsafe { call(nr::UMOUNT2, [c".".as_ptr().expose_provenance(), MNT_DETACH]) }.map(drop)
}
