//! io_uring, as little of it as the writer needs: registered memory and files, writes linked to their sync.
//!
//! The ring is *restricted* before it is enabled: it can write, sync, and exchange its registered files, and nothing else,
//! for ever; so it is no way around the seccomp filter that agentd loads after it was made (ADR 24). Driven by the writer's
//! thread alone, which waits for every completion before it goes on: no memory or descriptor is ever in use by the kernel
//! while this code runs. What fails here is reported as not done; [`super::disk`] then does it by plain system calls.
//!
//! This is the crate's only unsafe code.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd as _};

use io_uring::{
    IoUring, opcode, register::Restriction, squeue, squeue::Entry, types::Fixed, types::FsyncFlags,
};

use super::disk::{DiskError, Pool, Write};

/// Files that are registered at once: streams that are written to, more than that take turns.
const FILES: u32 = 64;
/// Writes in one submission; each takes two entries.
const WRITES: usize = FILES as usize;
/// The number of the one registered buffer.
const BUFFER: u16 = 0;

/// See the module.
pub(super) struct Ring {
    ring: IoUring,
    /// The pool could be registered: pages are pinned once instead of at each write.
    registered: bool,
    /// Which file is in which slot, and when it was last written.
    slots: Vec<Option<(u64, u64)>>,
    clock: u64,
    /// What a registered file is exchanged for; here because the kernel reads it.
    exchanged: Box<[i32; 1]>,
    /// Why completions could not be waited for. The memory may be in use for ever; nothing is submitted any more.
    broken: Option<String>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("registered", &self.registered)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

impl Ring {
    /// Makes a ring that can write from `pool` only. The error is for people.
    pub(super) fn new(pool: &Pool) -> Result<Self, String> {
        let ring = IoUring::builder()
            .setup_r_disabled()
            .build(2 * FILES)
            .map_err(|error| refused(&error))?;
        let submitter = ring.submitter();
        let step = |what: &'static str| {
            move |error: io::Error| format!("io_uring here has no {what}: {error}")
        };
        submitter
            .register_files_sparse(FILES)
            .map_err(step("registered files"))?;
        let memory = libc::iovec {
            iov_base: pool.bytes().as_ptr().cast_mut().cast(),
            iov_len: pool.bytes().len(),
        };
        // SAFETY: the memory must stay where it is, and be written by nobody while the kernel uses it. It is a boxed slice
        // in the same `Disk` as this ring and never replaced; `commit` returns only when nothing is in flight. It may be
        // freed before the ring: a registered buffer keeps its own reference to the pages, and nothing is submitted then.
        let registered = unsafe { submitter.register_buffers(&[memory]) }.is_ok();
        let mut allowed = [
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::WriteFixed::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_op(opcode::FilesUpdate::CODE),
            Restriction::sqe_flags_allowed(
                (squeue::Flags::FIXED_FILE | squeue::Flags::IO_LINK).bits(),
            ),
        ];
        submitter
            .register_restrictions(&mut allowed)
            .map_err(step("restrictions"))?;
        submitter
            .register_enable_rings()
            .map_err(step("way to be enabled"))?;
        Ok(Self {
            ring,
            registered,
            slots: vec![None; FILES as usize],
            clock: 0,
            exchanged: Box::new([-1]),
            broken: None,
        })
    }

    pub(super) fn describe(&self) -> String {
        let memory = if self.registered {
            ""
        } else {
            ", its memory not registered (RLIMIT_MEMLOCK)"
        };
        format!("io_uring (restricted{memory})")
    }

    /// Carries out what it can; `None` where something did not go as it should, which is no verdict yet.
    pub(super) fn commit(
        &mut self,
        pool: &Pool,
        writes: &[Write<'_>],
    ) -> Vec<Option<Result<(), DiskError>>> {
        let mut outcomes = Vec::with_capacity(writes.len());
        for writes in writes.chunks(WRITES) {
            let done = self.submit(pool, writes);
            outcomes.extend(writes.iter().enumerate().map(|(at, write)| {
                let full = i32::try_from(write.len).ok();
                let good = done.as_ref().is_some_and(|done| {
                    done[2 * at] == full && full.is_some() && done[2 * at + 1] == Some(0)
                });
                good.then_some(Ok(()))
            }));
        }
        outcomes
    }

    /// The results of each write and each sync, by place; `None` if nothing was submitted.
    fn submit(&mut self, pool: &Pool, writes: &[Write<'_>]) -> Option<Vec<Option<i32>>> {
        let slots: Option<Vec<u32>> = writes.iter().map(|write| self.slot(write)).collect();
        let mut entries = Vec::with_capacity(2 * writes.len());
        for (at, (write, slot)) in writes.iter().zip(slots?).enumerate() {
            let memory = pool.bytes().get(write.start..write.start + write.len)?;
            let len = u32::try_from(write.len).ok()?;
            let entry = if self.registered {
                opcode::WriteFixed::new(Fixed(slot), memory.as_ptr(), len, BUFFER)
                    .offset(write.position)
                    .build()
            } else {
                opcode::Write::new(Fixed(slot), memory.as_ptr(), len)
                    .offset(write.position)
                    .build()
            };
            entries.push(entry.flags(squeue::Flags::IO_LINK).user_data(2 * at as u64));
            let sync = opcode::Fsync::new(Fixed(slot)).flags(FsyncFlags::DATASYNC);
            entries.push(sync.build().user_data(2 * at as u64 + 1));
        }
        self.run(&entries)
    }

    /// Submits entries and waits for all of them.
    fn run(&mut self, entries: &[Entry]) -> Option<Vec<Option<i32>>> {
        if self.broken.is_some() {
            return None;
        }
        // SAFETY: what the entries point at must stay until they are complete. That is memory of the pool, which the caller
        // has borrowed, and `exchanged`. This returns when every entry is complete, or sets `broken`, upon which `Disk`
        // gives up pool and ring without freeing or touching them again. Descriptors are registered: the kernel holds them.
        unsafe { self.ring.submission().push_multiple(entries) }.ok()?;
        let mut results = vec![None; entries.len()];
        let mut missing = entries.len();
        while missing > 0 {
            match self.ring.submit_and_wait(missing) {
                Ok(_) => {}
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.broken = Some(error.to_string());
                    return None;
                }
            }
            for completion in self.ring.completion() {
                let at = usize::try_from(completion.user_data()).ok();
                if let Some(result) = at.and_then(|at| results.get_mut(at)) {
                    missing -= usize::from(result.replace(completion.result()).is_none());
                }
            }
        }
        Some(results)
    }

    /// The slot of a file, into which it is put first if it is in none.
    fn slot(&mut self, write: &Write<'_>) -> Option<u32> {
        self.clock += 1;
        let held = |slot: &Option<(u64, u64)>| slot.is_some_and(|(key, _)| key == write.key);
        if let Some(at) = self.slots.iter().position(held) {
            self.slots[at] = Some((write.key, self.clock));
            return u32::try_from(at).ok();
        }
        // One commit never writes to more files than there are slots, so the one that was used longest ago is free.
        let at =
            (0..self.slots.len()).min_by_key(|&at| self.slots[at].map_or(0, |(_, used)| used))?;
        self.exchange(at, write.file.as_raw_fd())?;
        self.slots[at] = Some((write.key, self.clock));
        u32::try_from(at).ok()
    }

    /// Lets go of a file.
    pub(super) fn forget(&mut self, key: u64) {
        let held = |slot: &Option<(u64, u64)>| slot.is_some_and(|(of, _)| of == key);
        if let Some(at) = self.slots.iter().position(held)
            && self.exchange(at, -1).is_some()
        {
            self.slots[at] = None;
        }
    }

    /// Why it can't be used any more, if so. Then neither it nor the pool may be freed or written to.
    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    fn exchange(&mut self, at: usize, file: i32) -> Option<()> {
        *self.exchanged = [file];
        let offset = i32::try_from(at).ok()?;
        let update = opcode::FilesUpdate::new(self.exchanged.as_ptr(), 1).offset(offset);
        let results = self.run(&[update.build().user_data(0)])?;
        (results == [Some(1)]).then_some(())
    }
}

/// Why there is no ring, for people.
fn refused(error: &io::Error) -> String {
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    match (error.raw_os_error(), setting.as_deref().map(str::trim)) {
        (Some(libc::EPERM), Ok(setting @ ("1" | "2"))) => {
            format!("io_uring is forbidden by kernel.io_uring_disabled={setting}")
        }
        (Some(libc::EPERM | libc::EACCES), _) => {
            "io_uring is forbidden by a seccomp filter or security module".to_owned()
        }
        (Some(libc::ENOSYS), _) => "this kernel has no io_uring".to_owned(),
        (Some(libc::ENOMEM), _) => {
            "io_uring gets no memory: raise RLIMIT_MEMLOCK (`ulimit -l`)".to_owned()
        }
        _ => format!("io_uring: {error}"),
    }
}

/// Whether waiting again is all that is needed.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, os::fd::AsFd as _};

    use super::super::disk::{Disk, Pool, Write};
    use super::*;

    fn ring(pool: &Pool) -> Option<Ring> {
        Ring::new(pool)
            .map_err(|why| agentd_testkit::skip("io-uring", &why))
            .ok()
    }

    #[test]
    fn more_files_than_slots_are_written_and_synced() {
        let mut disk = Disk::probe();
        let folder = tempfile::tempdir().unwrap();
        let count = WRITES + 5;
        let files: Vec<File> = (0..count)
            .map(|at| File::create_new(folder.path().join(at.to_string())).unwrap())
            .collect();
        for round in 0..3_u8 {
            disk.pool().fill(b'a' + round);
            let writes: Vec<Write<'_>> = files
                .iter()
                .enumerate()
                .map(|(at, file)| Write {
                    file: file.as_fd(),
                    key: at as u64,
                    position: u64::from(round) * 4096,
                    start: at * 4096,
                    len: 4096,
                })
                .collect();
            let outcomes = disk.commit(&writes);
            assert!(outcomes.len() == count && outcomes.iter().all(Result::is_ok));
        }
        for at in 0..count {
            disk.forget(at as u64);
            let mut text = String::new();
            File::open(folder.path().join(at.to_string()))
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            assert_eq!(text.len(), 3 * 4096);
            assert!(text.starts_with("aaa") && text.ends_with("ccc"));
        }
    }

    #[test]
    fn a_write_that_fails_fails_alone_and_says_with_what() {
        let mut disk = Disk::probe();
        let folder = tempfile::tempdir().unwrap();
        let good = File::create_new(folder.path().join("good")).unwrap();
        let bad = File::open(folder.path().join("good")).unwrap();
        let write = |file: &'static File, key| Write {
            file: file.as_fd(),
            key,
            position: 0,
            start: 0,
            len: 4096,
        };
        // Leaked so that the closure's lifetimes stay simple; two descriptors of a test.
        let (good, bad) = (&*Box::leak(Box::new(good)), &*Box::leak(Box::new(bad)));
        let outcomes = disk.commit(&[write(bad, 1), write(good, 2)]);
        let error = outcomes[0].as_ref().unwrap_err();
        assert_eq!(
            (error.call, error.source.raw_os_error()),
            ("pwritev2", Some(libc::EBADF))
        );
        assert!(outcomes[1].is_ok());
    }

    #[test]
    fn the_ring_can_do_nothing_else() {
        let pool = Pool::new(4096);
        let Some(mut ring) = ring(&pool) else { return };
        let mut other = [0_u8; 8];
        for entry in [
            opcode::Read::new(Fixed(0), other.as_mut_ptr(), 8).build(),
            opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build(),
            opcode::Nop::new().build(),
        ] {
            assert_eq!(ring.run(&[entry]), Some(vec![Some(-libc::EACCES)]));
        }
        assert!(ring.ring.submitter().register_files_sparse(1).is_err());
    }
}
