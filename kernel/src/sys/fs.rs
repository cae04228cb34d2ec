//! Files, directories, pipes and mappings.

use core::ffi::CStr;

use super::call::{call, call_retry};
use super::{Errno, Fd, FdRef, nr};

/// `O_*`
pub const O_RDONLY: u32 = 0;
/// `O_*`
pub const O_WRONLY: u32 = 1;
/// `O_*`
pub const O_RDWR: u32 = 2;
/// `O_*`
pub const O_CREAT: u32 = 0o100;
/// `O_*`
pub const O_EXCL: u32 = 0o200;
/// `O_*`
pub const O_NOCTTY: u32 = 0o400;
/// `O_*`
pub const O_NONBLOCK: u32 = 0o4000;
/// `O_*`
pub const O_DIRECTORY: u32 = 0o200_000;
/// `O_*`
pub const O_NOFOLLOW: u32 = 0o400_000;
/// `O_*`
pub const O_CLOEXEC: u32 = 0o2_000_000;
/// `O_*`
pub const O_PATH: u32 = 0o10_000_000;

/// `RESOLVE_*` of openat2
pub const RESOLVE_NO_XDEV: u64 = 0x01;
/// `RESOLVE_*` of openat2
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
/// `RESOLVE_*` of openat2
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
/// `RESOLVE_*` of openat2
pub const RESOLVE_BENEATH: u64 = 0x08;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A unix socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A regular file.
    File,
    /// Anything else.
    Other,
}

/// Which file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
    /// Its kind.
    pub kind: FileKind,
    /// Names it has.
    pub links: u64,
    /// Permission bits.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
}

/// Opens `path` relative to `dir` under the `resolve` restrictions.
pub fn openat2(
    dir: FdRef<'_>,
    path: &CStr,
    flags: u32,
    mode: u32,
    resolve: u64,
) -> Result<Fd, Errno> {
    let how: [u64; 3] = [u64::from(flags | O_CLOEXEC), u64::from(mode), resolve];
    let args = [
        dir.arg(),
        path.as_ptr().expose_provenance(),
        how.as_ptr().expose_provenance(),
        size_of_val(&how),
    ];
    // SAFETY: `path` ends in NUL and `how` is a `struct open_how` of the length given; both outlive the call.
    unsafe { call_retry(nr::OPENAT2, args) }.map(Fd::returned)
}

/// Makes a directory.
pub fn mkdirat(dir: FdRef<'_>, path: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe {
        call(
            nr::MKDIRAT,
            [dir.arg(), path.as_ptr().expose_provenance(), mode as usize],
        )
    }
    .map(drop)
}

/// Makes an empty file without opening it.
pub fn make_file(dir: FdRef<'_>, path: &CStr, mode: u32) -> Result<(), Errno> {
    const S_IFREG: u32 = 0o100_000;
    let args = [
        dir.arg(),
        path.as_ptr().expose_provenance(),
        (S_IFREG | mode) as usize,
        0,
    ];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { call(nr::MKNODAT, args) }.map(drop)
}

/// Makes a symbolic link that says `target`.
pub fn symlinkat(target: &CStr, dir: FdRef<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: both strings end in NUL and outlive the call.
    unsafe {
        call(
            nr::SYMLINKAT,
            [
                target.as_ptr().expose_provenance(),
                dir.arg(),
                path.as_ptr().expose_provenance(),
            ],
        )
    }
    .map(drop)
}

/// What the symbolic link `path` (or, if it is empty, the `O_PATH` fd of one) says, as a string in `buffer`.
pub fn readlinkat<'b>(
    dir: FdRef<'_>,
    path: &CStr,
    buffer: &'b mut [u8],
) -> Result<&'b CStr, Errno> {
    let args = [
        dir.arg(),
        path.as_ptr().expose_provenance(),
        buffer.as_mut_ptr().expose_provenance(),
        buffer.len(),
    ];
    // SAFETY: `path` ends in NUL; the kernel writes at most `buffer.len()` bytes to `buffer`.
    let len = unsafe { call(nr::READLINKAT, args) }?;
    *buffer.get_mut(len).ok_or(Errno::NAMETOOLONG)? = 0;
    CStr::from_bytes_until_nul(buffer).map_err(|_| Errno::INVAL)
}

/// Removes a file.
pub fn unlinkat(dir: FdRef<'_>, path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe {
        call(
            nr::UNLINKAT,
            [dir.arg(), path.as_ptr().expose_provenance(), 0],
        )
    }
    .map(drop)
}

/// Removes an empty directory.
pub fn rmdirat(dir: FdRef<'_>, path: &CStr) -> Result<(), Errno> {
    const AT_REMOVEDIR: usize = 0x200;
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe {
        call(
            nr::UNLINKAT,
            [dir.arg(), path.as_ptr().expose_provenance(), AT_REMOVEDIR],
        )
    }
    .map(drop)
}

/// Asks what is open.
pub fn fstat(fd: FdRef<'_>) -> Result<Stat, Errno> {
    // struct stat is 144 bytes: dev, ino, nlink, mode u32, uid u32, gid u32, pad, rdev, size …
    let mut stat = [0u64; 18];
    // SAFETY: the kernel writes 144 bytes to `stat`, which has them.
    unsafe { call(nr::FSTAT, [fd.arg(), stat.as_mut_ptr().expose_provenance()]) }?;
    let kind = match stat[3] & 0o170_000 {
        0o040_000 => FileKind::Directory,
        0o100_000 => FileKind::File,
        0o120_000 => FileKind::Symlink,
        0o140_000 => FileKind::Socket,
        0o020_000 => FileKind::CharDevice,
        _ => FileKind::Other,
    };
    Ok(Stat {
        dev: stat[0],
        ino: stat[1],
        kind,
        links: stat[2],
        mode: (stat[3] & 0o7777) as u32,
        size: stat[6],
    })
}

/// Writes up to all of `bytes`; returns how many were written.
pub fn write(fd: FdRef<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    unsafe {
        call_retry(
            nr::WRITE,
            [fd.arg(), bytes.as_ptr().expose_provenance(), bytes.len()],
        )
    }
}

/// Writes all of `bytes`.
pub fn write_all(fd: FdRef<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = write(fd, bytes)?;
        bytes = bytes.get(written..).ok_or(Errno::INVAL)?;
    }
    Ok(())
}

/// Writes up to all of `bytes` at `offset`; returns how many were written.
pub fn write_at(fd: FdRef<'_>, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    let args = [
        fd.arg(),
        bytes.as_ptr().expose_provenance(),
        bytes.len(),
        offset as usize,
    ];
    // SAFETY: the kernel reads `bytes.len()` bytes from `bytes`.
    unsafe { call_retry(nr::PWRITE64, args) }
}

/// Reads up to `buffer.len()` bytes.
pub fn read(fd: FdRef<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    unsafe {
        call_retry(
            nr::READ,
            [
                fd.arg(),
                buffer.as_mut_ptr().expose_provenance(),
                buffer.len(),
            ],
        )
    }
}

/// The next entries of a directory, as `struct linux_dirent64` has them; 0 at the end.
pub fn read_entries(directory: FdRef<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args = [
        directory.arg(),
        buffer.as_mut_ptr().expose_provenance(),
        buffer.len(),
    ];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    unsafe { call(nr::GETDENTS64, args) }
}

/// Reads up to all of `buffer` from `offset`, and leaves the file's own position alone.
pub fn read_at(fd: FdRef<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let args = [
        fd.arg(),
        buffer.as_mut_ptr().expose_provenance(),
        buffer.len(),
        // Only x86-64 is built for, where a usize holds it.
        offset as usize,
    ];
    // SAFETY: the kernel writes at most `buffer.len()` bytes to `buffer`.
    unsafe { call_retry(nr::PREAD64, args) }
}

/// Makes the open directory the working directory.
pub fn fchdir(dir: FdRef<'_>) -> Result<(), Errno> {
    // SAFETY: no memory is involved.
    unsafe { call(nr::FCHDIR, [dir.arg()]) }.map(drop)
}

/// Makes `path` the working directory, links followed.
pub fn chdir(path: &CStr) -> Result<(), Errno> {
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { call(nr::CHDIR, [path.as_ptr().expose_provenance()]) }.map(drop)
}

/// Opens `path` as it is, for where there is no [`openat2`].
pub fn open(path: &CStr, flags: u32) -> Result<Fd, Errno> {
    let args = [
        FdRef::CWD.arg(),
        path.as_ptr().expose_provenance(),
        (flags | O_CLOEXEC) as usize,
        0,
    ];
    // SAFETY: `path` ends in NUL and outlives the call.
    unsafe { call_retry(nr::OPENAT, args) }.map(Fd::returned)
}

/// A pipe: read end, write end; both closed on exec.
pub fn pipe() -> Result<(Fd, Fd), Errno> {
    pipe_with(O_CLOEXEC)
}

/// The same, and neither end ever waits.
pub fn pipe_nonblocking() -> Result<(Fd, Fd), Errno> {
    pipe_with(O_CLOEXEC | O_NONBLOCK)
}

fn pipe_with(flags: u32) -> Result<(Fd, Fd), Errno> {
    let mut ends = [0u32; 2];
    // SAFETY: the kernel writes two ints to `ends`.
    unsafe {
        call(
            nr::PIPE2,
            [ends.as_mut_ptr().expose_provenance(), flags as usize],
        )
    }?;
    Ok((
        Fd::returned(ends[0] as usize),
        Fd::returned(ends[1] as usize),
    ))
}

/// Makes the number `to` mean what `from` means, not closed on exec.
///
/// # Safety
/// Nobody owns the number `to`.
pub unsafe fn dup_to(from: FdRef<'_>, to: i32) -> Result<(), Errno> {
    // SAFETY: no memory is involved; that `to` is free to be replaced is the caller's promise.
    unsafe { call(nr::DUP2, [from.arg(), to as usize]) }.map(drop)
}

/// Closes every descriptor from `first` on, but for `kept`.
///
/// # Safety
/// Nobody uses any of them afterwards.
pub unsafe fn close_from(first: u32, kept: Option<FdRef<'_>>) -> Result<(), Errno> {
    let close = |first: usize, last: usize| {
        if first > last {
            return Ok(());
        }
        // SAFETY: no memory is involved; that nobody uses the numbers is the caller's promise.
        unsafe { call(nr::CLOSE_RANGE, [first, last, 0]) }.map(drop)
    };
    const LAST: usize = u32::MAX as usize;
    let first = first as usize;
    match kept.map(FdRef::arg) {
        Some(kept) if kept >= first => {
            if kept > first {
                close(first, kept - 1)?;
            }
            close(kept + 1, LAST)
        }
        _ => close(first, LAST),
    }
}

/// A copy of what is in a file of at most `most` bytes, from where it is read, in memory that is never given back.
pub fn read_whole(fd: FdRef<'_>, most: usize) -> Result<&'static [u8], Errno> {
    const PROT_READ: usize = 1;
    const PROT_WRITE: usize = 2;
    const MAP_PRIVATE: usize = 2;
    const MAP_ANONYMOUS: usize = 0x20;
    let len = usize::try_from(fstat(fd)?.size).map_err(|_| Errno::INVAL)?;
    if len == 0 || len > most {
        return Err(Errno::INVAL);
    }
    let protection = PROT_READ | PROT_WRITE;
    let flags = MAP_PRIVATE | MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe { call(nr::MMAP, [0, len, protection, flags, usize::MAX, 0]) }?;
    // SAFETY: the mapping is `len` bytes of zeros that can be read and written, that nobody else knows of, and that is never
    // unmapped.
    let bytes = unsafe {
        core::slice::from_raw_parts_mut(core::ptr::with_exposed_provenance_mut(address), len)
    };
    let mut filled = 0;
    while filled < len {
        match read(fd, &mut bytes[filled..])? {
            0 => return Err(Errno::INVAL),
            more => filled += more,
        }
    }
    Ok(bytes)
}

/// The seals of a memfd.
pub fn seals(fd: FdRef<'_>) -> Result<u32, Errno> {
    const F_GET_SEALS: usize = 1034;
    // SAFETY: no memory is involved.
    unsafe { call(nr::FCNTL, [fd.arg(), F_GET_SEALS]) }.map(|seals| seals as u32)
}

/// `F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE`: the content can never change again.
pub const SEALED: u32 = 0x2 | 0x4 | 0x8;

/// Maps all of a sealed memfd of at most `most` bytes, for the life of the process.
pub fn map_sealed(fd: FdRef<'_>, most: usize) -> Result<&'static [u8], Errno> {
    const PROT_READ: usize = 1;
    const MAP_PRIVATE: usize = 2;
    const MAP_POPULATE: usize = 0x8000;
    if seals(fd)? & SEALED != SEALED {
        return Err(Errno::PERM);
    }
    let len = usize::try_from(fstat(fd)?.size).map_err(|_| Errno::INVAL)?;
    if len == 0 || len > most {
        return Err(Errno::INVAL);
    }
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let address = unsafe {
        call(
            nr::MMAP,
            [0, len, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd.arg(), 0],
        )
    }?;
    // SAFETY: the mapping is `len` readable bytes and is never unmapped; the seals keep the file from shrinking and from
    // being written, so the bytes are there and do not change.
    Ok(unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance(address), len) })
}
