//! The conformance suite on 2 MiB pages of the reserved pool, which the test reserves for itself where it may.

use std::fs::{self, File};
use std::path::Path;

use agentd_kernel::memory::HugePool;
use rustix::fs::{FlockOperation, flock};

use super::*;

const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// A larger pool for as long as it lives; one test process at a time.
struct Reserved {
    before: String,
    _lock: File,
}

impl Reserved {
    fn pages(pages: u64) -> Result<Self, String> {
        let lock = std::env::temp_dir().join("agentd-test-nr_hugepages.lock");
        let why = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let lock = File::create(&lock).map_err(|e| why("lock file", &e))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| why("flock", &e))?;
        let before = fs::read_to_string(POOL).map_err(|e| why(POOL, &e))?;
        let total: u64 = before.trim().parse().map_err(|e| why(POOL, &e))?;
        // Dropped, and so undone, on every way out from here on.
        let reserved = Self {
            before,
            _lock: lock,
        };
        let mut found = 0;
        for _ in 0..10 {
            fs::write(POOL, format!("{}", total + pages))
                .map_err(|e| why("reserving huge pages needs root", &e))?;
            let pool = HugePool::read(Path::new("/sys")).map_err(|e| why("the pool", &e))?;
            found = pool.available();
            if found >= pages {
                return Ok(reserved);
            }
            // Where memory is in pieces the kernel puts them together when it is asked to, if it can do so.
            fs::write("/proc/sys/vm/compact_memory", "1").ok();
        }
        Err(format!(
            "the kernel found memory for {found} of {pages} pages"
        ))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // Without the right to write nothing was changed.
        if let Err(error) = fs::write(POOL, &self.before) {
            eprintln!("{POOL} is not put back to {}: {error}", self.before.trim());
        }
    }
}

#[test]
fn pages_of_the_pool_conform_and_go_back_to_it() {
    // The suite uses a few at a time. The others are for what is not back yet: see below.
    let reserved = match Reserved::pages(16) {
        Ok(reserved) => reserved,
        Err(why) => return skip::skip("huge-pages", &why),
    };
    let free = || HugePool::read(Path::new("/sys")).unwrap().free;
    let before = free();
    // A process that a test beside this one forked meanwhile has a copy of each mapping until it
    // ends, and the pool is everybody's.
    let all_come_back = || {
        let began = std::time::Instant::now();
        while free() < before {
            let watchdog = std::time::Duration::from_secs(60);
            assert!(began.elapsed() < watchdog, "{} of {before}", free());
            std::thread::yield_now();
        }
    };
    let pair = sealed(4 << 20, PageKind::Huge).expect("there are pages, and they are used");
    drop(pair);
    all_come_back();
    conforms(4 << 20, |bytes| sealed(bytes, PageKind::Huge).unwrap());
    // More than there is: ordinary pages do, and it is seen; nothing is kept of the attempt.
    let (mine, _fd) = memfd::create_segment(64 << 20, PageKind::Huge, None).unwrap();
    assert!(mine.pages().unwrap() < PageKind::Huge);
    all_come_back();
    drop(reserved);
}

#[test]
fn without_a_pool_a_segment_has_smaller_pages_and_says_so() {
    let (mine, fd) = memfd::create_segment(2 << 20, PageKind::Transparent, Some(0)).unwrap();
    assert_ne!(mine.pages().unwrap(), PageKind::Huge);
    assert!(mine.words().as_ptr().addr().is_multiple_of(2 << 20));
    match mine.node() {
        Ok(node) => assert_eq!(node, 0),
        Err(error) => assert_eq!(
            error.raw_os_error(),
            Some(libc::ENOSYS),
            "a kernel without NUMA"
        ),
    }
    let (small, _fd) = memfd::create_segment(64 << 10, PageKind::Huge, None).unwrap();
    assert_eq!(small.pages().unwrap(), PageKind::Small);
    drop(fd);
}

#[test]
fn a_segment_that_is_not_all_there_or_not_sealed_is_refused() {
    use crate::shm::memfd::MemfdError;
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
    let with = |bytes: u64, seals: SealFlags| {
        let fd = memfd_create("segment", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&fd, bytes).unwrap();
        fcntl_add_seals(&fd, seals).unwrap();
        memfd::open_segment(fd.as_fd()).map(drop)
    };
    // Its reader would pay for the pages.
    assert!(matches!(
        with(1 << 20, memfd::REQUIRED_SEALS),
        Err(MemfdError::NotThere { allocated: 0, bytes }) if bytes == 1 << 20
    ));
    assert!(matches!(
        with(1 << 20, memfd::REQUIRED_SEALS.difference(SealFlags::SHRINK)),
        Err(MemfdError::Unsealed {
            missing: SealFlags::SHRINK
        })
    ));
    for bytes in [0, 4095, 4097, SEGMENT_MAX + 4096] {
        assert!(matches!(
            with(bytes, memfd::REQUIRED_SEALS),
            Err(MemfdError::SegmentSize { .. })
        ));
    }
    let (mine, fd) = memfd::create_segment(1 << 20, PageKind::Small, None).unwrap();
    assert_eq!(memfd::check_segment(fd.as_fd()).unwrap(), 1 << 20);
    assert_eq!(
        rustix::io::pwrite(&fd, b"x", 0),
        Err(rustix::io::Errno::PERM)
    );
    drop(mine);
}
