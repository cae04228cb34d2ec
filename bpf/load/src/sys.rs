//! The calls of `bpf(2)` that aya has no public form of: pins with flags, links that are made,
//! replaced and pinned alike for every kind of program. Kernel doc: `include/uapi/linux/bpf.h`.

use crate::groups::At;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TEST_RUN: libc::c_long = 10;
const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;

/// `BPF_PROG_TYPE_RAW_TRACEPOINT`.
const RAW_TRACEPOINT: u32 = 17;
/// `BPF_SK_MSG_VERDICT`.
const SK_MSG_VERDICT: u32 = 7;

/// The attributes of the calls below, as the kernel lays them out; the rest of `union bpf_attr` is zero.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Attributes {
    words: [u32; 16],
}

impl Attributes {
    fn set_pointer(&mut self, word: usize, address: u64) {
        self.words[word] = address as u32;
        self.words[word + 1] = (address >> 32) as u32;
    }
}

fn bpf(command: libc::c_long, attributes: &Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the attributes are initialised and live through the call; where they hold a pointer
    // (OBJ_PIN, OBJ_GET, PROG_LOAD), it is of what the caller keeps alive. None of these commands
    // writes to them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Loads a program of few instructions that is run by [`run`] and never attached.
pub fn load_raw_tracepoint(instructions: &[u64]) -> io::Result<OwnedFd> {
    let licence = c"GPL";
    let mut attributes = Attributes::default();
    attributes.words[0] = RAW_TRACEPOINT;
    attributes.words[1] = instructions.len() as u32;
    attributes.set_pointer(2, instructions.as_ptr() as u64);
    attributes.set_pointer(4, licence.as_ptr() as u64);
    bpf(PROG_LOAD, &attributes).map(descriptor)
}

/// What a raw tracepoint's program returns when this task calls it.
pub fn run(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut attributes = Attributes::default();
    attributes.words[0] = raw(program);
    // SAFETY: the attributes are initialised, live through the call and are borrowed for it alone;
    // the kernel writes the result to them and follows no pointer, as there is none.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_TEST_RUN,
            std::ptr::from_mut(&mut attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(attributes.words[1])
}

fn descriptor(number: libc::c_long) -> OwnedFd {
    // SAFETY: a call that succeeded has just opened it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn path_attributes(path: &Path, fd: u32) -> io::Result<(CString, Attributes)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Attributes::default();
    attributes.set_pointer(0, path.as_ptr() as u64);
    attributes.words[2] = fd;
    Ok((path, attributes))
}

pub fn pin(fd: impl AsFd, path: &Path) -> io::Result<()> {
    let (_path, attributes) = path_attributes(path, raw(fd.as_fd()))?;
    bpf(OBJ_PIN, &attributes).map(|_| ())
}

/// What is pinned at `path`.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let (_path, attributes) = path_attributes(path, 0)?;
    bpf(OBJ_GET, &attributes).map(descriptor)
}

/// A link of a program to a cgroup. Others may be attached there too (links always allow it).
pub fn link_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, to: At) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    attributes.words[0] = raw(program);
    attributes.words[1] = raw(cgroup);
    attributes.words[2] = to as u32;
    bpf(LINK_CREATE, &attributes).map(descriptor)
}

/// A link of a `tp_btf` or `lsm` program to the place that it was loaded for.
pub fn link_tracing(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attributes = Attributes::default();
    // The name (words 0 and 1) is none: the program knows.
    attributes.words[2] = raw(program);
    bpf(RAW_TRACEPOINT_OPEN, &attributes).map(descriptor)
}

/// Puts another program into a link, with no moment in which there is none.
pub fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes.words[0] = raw(link);
    attributes.words[1] = raw(program);
    bpf(LINK_UPDATE, &attributes).map(|_| ())
}

/// Attaches an `sk_msg` program to a map of sockets, instead of the one that was.
pub fn attach_to_sockets(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes.words[0] = raw(map);
    attributes.words[1] = raw(program);
    attributes.words[2] = SK_MSG_VERDICT;
    bpf(PROG_ATTACH, &attributes).map(|_| ())
}
