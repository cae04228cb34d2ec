//! Descriptors on their way from one agent to another: what each has to be, asked of the kernel.
//!
//! The daemon never believes what an agent says of a descriptor. Memory is passed on only if nobody but its
//! maker can write it and nobody can change its size ([`check_sealed`]), so that its receiver can't be hit by
//! SIGBUS; an eventfd only if it is one. Any thread, unprivileged.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use agentd_bus::frame::{Frame, kind};
use agentd_bus::message::{Control, FdKind};
use agentd_bus::router::{CloseReason, Descriptor};
use agentd_bus::shm::PAGE_WORDS;
use agentd_bus::shm::memfd::check_sealed;
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

/// Largest segment of an arena, bytes.
const SEGMENT_MAX: u64 = 1 << 30;
/// Bytes of cursor memory.
const CURSOR_BYTES: u64 = PAGE_WORDS as u64 * 8;

/// A share of a descriptor that has been looked at, and the size of what it stands for.
#[derive(Clone, Debug)]
pub(super) struct SharedFd {
    fd: Arc<OwnedFd>,
    bytes: u64,
}

impl Descriptor for SharedFd {
    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl AsFd for SharedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Takes the descriptor that came with `frame`, if it is what such a frame carries.
pub(super) fn admit(frame: &Frame, fd: OwnedFd) -> Result<SharedFd, CloseReason> {
    let expected = if frame.kind() == kind::COMMAND {
        Control::parse(&frame.payload)
            .ok()
            .and_then(|control| control.fd_kind())
            .ok_or(CloseReason::StrayDescriptor)?
    } else if frame.kind() & kind::RESPONSE != 0 {
        FdKind::Cursor
    } else {
        return Err(CloseReason::StrayDescriptor);
    };
    let (what, checked) = match expected {
        FdKind::Data => ("memory of a channel", sealed(fd.as_fd())),
        FdKind::Cursor => ("cursor memory", sealed(fd.as_fd()).and_then(one_page)),
        FdKind::Segment => ("segment", segment(fd.as_fd(), SealFlags::FUTURE_WRITE)),
        FdKind::SealedSegment => ("sealed segment", segment(fd.as_fd(), SealFlags::WRITE)),
        FdKind::Bell => ("eventfd", eventfd(fd.as_fd())),
    };
    match checked {
        Ok(bytes) => Ok(SharedFd {
            fd: Arc::new(fd),
            bytes,
        }),
        Err(why) => Err(CloseReason::BadDescriptor { what, why }),
    }
}

fn sealed(fd: BorrowedFd<'_>) -> Result<u64, String> {
    check_sealed(fd).map_err(|error| error.to_string())
}

fn one_page(bytes: u64) -> Result<u64, String> {
    if bytes == CURSOR_BYTES {
        Ok(bytes)
    } else {
        Err(format!(
            "it is {bytes} bytes; cursor memory is {CURSOR_BYTES}"
        ))
    }
}

fn segment(fd: BorrowedFd<'_>, writes: SealFlags) -> Result<u64, String> {
    let seals =
        fcntl_get_seals(fd).map_err(|errno| format!("it is no sealable memory ({errno})"))?;
    let required = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL | writes;
    let missing = required.difference(seals);
    if !missing.is_empty() {
        return Err(format!("it lacks the seals {missing:?}"));
    }
    let bytes = fstat(fd)
        .map_err(|errno| format!("fstat: {errno}"))?
        .st_size as u64;
    if bytes == 0 || bytes > SEGMENT_MAX || !bytes.is_multiple_of(4096) {
        return Err(format!(
            "it is {bytes} bytes; allowed are whole pages up to {SEGMENT_MAX}"
        ));
    }
    Ok(bytes)
}

fn eventfd(fd: BorrowedFd<'_>) -> Result<u64, String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
        .map_err(|error| format!("/proc/self/fd: {error}"))?;
    if link.as_os_str() == "anon_inode:[eventfd]" {
        Ok(0)
    } else {
        Err(format!("it is {}", link.display()))
    }
}
