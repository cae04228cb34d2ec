//! Descriptors on their way from one agent to another, or to the bus: what each has to be, asked of the kernel.
//!
//! The bus never believes what an agent says of a descriptor. Memory is passed on only if nobody but its
//! maker can write it and nobody can change its size ([`check_sealed`]), so that its receiver can't be hit by
//! SIGBUS; an eventfd only if it is one. Any thread, unprivileged.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::frame::{Frame, kind};
use crate::message::{Control, FdKind};
use crate::router::{CloseReason, Descriptor};
use crate::shm::PAGE_WORDS;
use crate::shm::memfd::{check_payload, check_sealed, check_segment};
use crate::wait::check_bell;

/// Bytes of cursor memory.
const CURSOR_BYTES: u64 = PAGE_WORDS as u64 * 8;

/// A share of a descriptor that has been looked at, and the size of what it stands for.
#[derive(Clone, Debug)]
pub struct SharedFd {
    fd: Arc<OwnedFd>,
    bytes: u64,
}

impl SharedFd {
    /// A descriptor that was made here: memory of that size, or an eventfd.
    pub(super) fn made(fd: OwnedFd, bytes: u64) -> Self {
        Self {
            fd: Arc::new(fd),
            bytes,
        }
    }
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
pub fn admit(frame: &Frame, fd: OwnedFd) -> Result<SharedFd, CloseReason> {
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
        FdKind::Data => (
            "memory of a channel",
            check_sealed(fd.as_fd()).map_err(text),
        ),
        FdKind::Cursor => (
            "cursor memory",
            check_sealed(fd.as_fd()).map_err(text).and_then(one_page),
        ),
        FdKind::Segment => ("segment", check_segment(fd.as_fd()).map_err(text)),
        FdKind::SealedSegment => ("sealed segment", check_payload(fd.as_fd()).map_err(text)),
        FdKind::Bell => ("bell", check_bell(fd.as_fd()).map(|()| 0).map_err(text)),
    };
    match checked {
        Ok(bytes) => Ok(SharedFd {
            fd: Arc::new(fd),
            bytes,
        }),
        Err(why) => Err(CloseReason::BadDescriptor { what, why }),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
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
