//! What the kernel keeps of the promise that each side can write only what it owns.

use std::os::fd::AsFd;

use rustix::fs::SealFlags;

use crate::shm::PAGE_WORDS;
use crate::shm::atomics::Ordering;
use crate::shm::memfd::{self, MemfdError};
use crate::shm::region::Words;

#[test]
fn sealed_memory_can_be_written_by_nobody_else() {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (mine, fd) = memfd::create("lane-data", PAGE_WORDS).unwrap();
    mine.words()[9].store(42, Ordering::Relaxed);
    let theirs = memfd::open(fd.as_fd()).unwrap();
    assert_eq!(theirs.words()[9].load(Ordering::Relaxed), 42);
    // SAFETY: a null hint maps fresh addresses; the call is expected to fail, and a mapping that it made
    // would stay unused.
    let writable = unsafe {
        mmap(
            std::ptr::null_mut(),
            4096,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &fd,
            0,
        )
    };
    assert_eq!(writable.err(), Some(rustix::io::Errno::PERM));
    assert_eq!(
        rustix::io::pwrite(&fd, b"x", 0),
        Err(rustix::io::Errno::PERM)
    );
    assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(rustix::io::Errno::PERM));
    assert_eq!(
        rustix::fs::ftruncate(&fd, 8192),
        Err(rustix::io::Errno::PERM)
    );
    let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    assert_eq!(
        rustix::fs::fallocate(&fd, hole, 0, 4096),
        Err(rustix::io::Errno::PERM)
    );
    assert_eq!(
        rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE),
        Err(rustix::io::Errno::PERM)
    );
}

#[test]
fn a_descriptor_without_its_seals_is_refused() {
    use rustix::fs::{MemfdFlags, fcntl_add_seals, ftruncate, memfd_create};
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(
        memfd::check_sealed(file.as_fd()),
        Err(MemfdError::NotMemory { .. })
    ));
    let fd = memfd_create("bare", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 4096).unwrap();
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW).unwrap();
    let Err(MemfdError::Unsealed { missing }) = memfd::check_sealed(fd.as_fd()) else {
        panic!("taken unsealed")
    };
    assert_eq!(missing, SealFlags::FUTURE_WRITE | SealFlags::SEAL);
    let fd = memfd_create("odd", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, 4097).unwrap();
    fcntl_add_seals(&fd, memfd::REQUIRED_SEALS).unwrap();
    assert!(matches!(
        memfd::check_sealed(fd.as_fd()),
        Err(MemfdError::Size { bytes: 4097 })
    ));
    let fd = memfd_create("huge", MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&fd, memfd::BYTES_MAX + 4096).unwrap();
    fcntl_add_seals(&fd, memfd::REQUIRED_SEALS).unwrap();
    assert!(matches!(
        memfd::check_sealed(fd.as_fd()),
        Err(MemfdError::Size { .. })
    ));
}
