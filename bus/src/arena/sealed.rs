//! Payloads that are read in place: sealed for good before they are handed over.
//!
//! The sender builds the payload in memory that nobody else has, unmaps it, and seals it `F_SEAL_WRITE | SHRINK |
//! GROW | SEAL`. The kernel refuses that seal while any writable mapping or pinned page exists, and from then on
//! refuses every write, writable mapping, hole and change of size, in every process, its maker's included. So whoever
//! holds the descriptor and has *asked the kernel for the seals* has memory that can't change, and only of such memory
//! is there a `&[u8]`. (`F_SEAL_FUTURE_WRITE`, which an arena's segments have, is not enough: its maker goes on
//! writing.)
//!
//! One descriptor is one payload; it travels like any other descriptor. For payloads so large, or read so often, that
//! a copy costs more than a mapping: from some MiB on.
//!
//! Any thread, no privilege. Fails with what the kernel says.

use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::SEGMENT_MAX;
use crate::shm::memfd::{self, MemfdError};

/// A payload that nobody can change any more, mapped for reading.
#[derive(Debug)]
pub struct SealedPayload {
    fd: OwnedFd,
    start: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is immutable (see `bytes`) and belongs to no thread.
unsafe impl Send for SealedPayload {}
// SAFETY: as above: shared readers only read.
unsafe impl Sync for SealedPayload {}

/// A range that is unmapped on drop.
struct Range(NonNull<u8>, usize);

impl Range {
    fn map(
        fd: BorrowedFd<'_>,
        bytes: usize,
        rights: ProtFlags,
        kind: MapFlags,
    ) -> Result<Self, MemfdError> {
        // SAFETY: a null hint lets the kernel choose an unused range, which the returned value owns.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                rights,
                kind | MapFlags::POPULATE,
                fd,
                0,
            )
        }
        .map_err(memfd::failed("mmap"))?;
        let start = NonNull::new(start.cast()).ok_or(MemfdError::Size { bytes: 0 })?;
        Ok(Self(start, bytes))
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, owned by this value, and borrows of it have ended.
        if let Err(errno) = unsafe { munmap(self.0.as_ptr().cast(), self.1) } {
            panic!("munmap of a payload's own mapping: {errno}");
        }
    }
}

impl SealedPayload {
    /// Lets `fill` write a payload of `bytes` (1 to 1 GiB, zeroed), and seals it.
    pub fn build(bytes: u64, fill: impl FnOnce(&mut [u8])) -> Result<Self, MemfdError> {
        if bytes == 0 || bytes > SEGMENT_MAX {
            return Err(MemfdError::PayloadSize { bytes });
        }
        let fd = memfd::payload(bytes)?;
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let range = Range::map(fd.as_fd(), bytes as usize, rights, MapFlags::SHARED)?;
        // SAFETY: `range` is `bytes` initialised (zeroed by the kernel) bytes of a file whose descriptor was made here
        // and handed to nobody, so nothing else maps it or refers to it while the borrow lasts.
        fill(unsafe { slice::from_raw_parts_mut(range.0.as_ptr(), range.1) });
        drop(range);
        memfd::seal_payload(&fd)?;
        Self::open(fd)
    }

    /// Takes a payload that somebody else made, after asking the kernel for its seals.
    pub fn open(fd: OwnedFd) -> Result<Self, MemfdError> {
        let bytes = memfd::check_payload(fd.as_fd())? as usize;
        // Private, because kernels before 6.7 refuse shared mappings of write-sealed memory even for reading. It is
        // never written, so its pages are those of the file.
        let range = Range::map(fd.as_fd(), bytes, ProtFlags::READ, MapFlags::PRIVATE)?;
        let start = range.0;
        std::mem::forget(range);
        Ok(Self { fd, start, bytes })
    }

    /// The payload.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start` maps `bytes` readable bytes until drop. `check_payload` saw, before the mapping was made, that
        // the file is sealed against writing, shrinking and growing and that all of it is there; seals are never
        // taken off, so no process can change what the pages hold, and this one has no writable mapping. So the memory
        // is immutable for as long as the borrow lasts, whatever the sender is.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// What to hand over.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Deref for SealedPayload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Drop for SealedPayload {
    fn drop(&mut self) {
        drop(Range(self.start, self.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    use rustix::io::Errno;

    #[test]
    fn what_was_built_is_read_in_place_by_its_maker_and_by_a_receiver() {
        for bytes in [1u64, 4095, 4096, 4097, 3 << 20] {
            let payload = SealedPayload::build(bytes, |memory| {
                assert!(memory.iter().all(|&byte| byte == 0));
                for (at, byte) in memory.iter_mut().enumerate() {
                    *byte = at as u8 ^ 0x5A;
                }
            })
            .unwrap();
            let theirs = SealedPayload::open(payload.fd().try_clone_to_owned().unwrap()).unwrap();
            drop(payload);
            assert_eq!(theirs.len() as u64, bytes);
            assert!(
                theirs
                    .iter()
                    .enumerate()
                    .all(|(at, &byte)| byte == at as u8 ^ 0x5A)
            );
        }
    }

    #[test]
    fn nobody_can_change_it_any_more() {
        let payload = SealedPayload::build(8192, |memory| memory.fill(7)).unwrap();
        let fd = payload.fd();
        assert_eq!(rustix::io::pwrite(fd, b"x", 0), Err(Errno::PERM));
        assert_eq!(ftruncate(fd, 0), Err(Errno::PERM));
        assert_eq!(ftruncate(fd, 1 << 20), Err(Errno::PERM));
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(fd, hole, 0, 4096), Err(Errno::PERM));
        let writable = Range::map(
            fd,
            8192,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
        );
        assert!(writable.is_err());
        assert!(payload.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn memory_that_its_maker_can_still_write_is_refused() {
        let open = |fd: OwnedFd| SealedPayload::open(fd).map(drop);
        let bare = || {
            let fd = memfd_create("bare", MemfdFlags::ALLOW_SEALING).unwrap();
            ftruncate(&fd, 4096).unwrap();
            fd
        };
        let fd = bare();
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let _writable = Range::map(fd.as_fd(), 4096, rights, MapFlags::SHARED).unwrap();
        assert_eq!(
            fcntl_add_seals(&fd, SealFlags::WRITE),
            Err(Errno::BUSY),
            "while it is mapped"
        );
        fcntl_add_seals(&fd, memfd::REQUIRED_SEALS).unwrap();
        let Err(MemfdError::Unsealed { missing }) = open(fd) else {
            panic!("taken, and its maker writes on")
        };
        assert_eq!(missing, SealFlags::WRITE);
        // Sealed, but to be paid by whoever touches it first.
        let fd = bare();
        fcntl_add_seals(&fd, memfd::PAYLOAD_SEALS).unwrap();
        assert!(matches!(
            open(fd),
            Err(MemfdError::NotThere { allocated: 0, .. })
        ));
        assert!(matches!(
            open(tempfile::tempfile().unwrap().into()),
            Err(MemfdError::NotMemory { .. })
        ));
        assert!(matches!(
            SealedPayload::build(0, |_| ()),
            Err(MemfdError::PayloadSize { bytes: 0 })
        ));
        assert!(matches!(
            SealedPayload::build(SEGMENT_MAX + 1, |_| ()),
            Err(MemfdError::PayloadSize { .. })
        ));
    }
}
