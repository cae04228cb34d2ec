//! Memory of one's own, and what of it may be executed.
//!
//! Three questions are the policy's: whether memory may be written and then executed (`exec.write_exec`), whether there
//! are memory files, and whether those can be executed (`exec.memfd`). Each answer is a list of entries that is laid over
//! the set's own. `PR_SET_MDWE` says the first a second time, in the kernel, and survives what a filter cannot see.

use super::super::rule::{
    EACCES, ENOMEM, ENOSYS, EPERM, Rule, allow, allow_if, bits, checked, clear, refuse_if,
};

const PROT_EXEC: u32 = 4;
const PROT_WRITE_EXEC: u32 = 2 | 4;
/// MAP_TYPE and MAP_ANONYMOUS.
const MAP_KIND: u32 = 0x2f;
const MAP_PRIVATE: u32 = 2;
/// Huge pages are a pool that root has set aside for something; an agent can't take it by asking for a mapping.
const MAP_HUGETLB: u32 = 0x4_0000;
/// As [`MAP_HUGETLB`].
const SHM_HUGETLB: u32 = 0o4000;
const SHM_EXEC: u32 = 0o100_000;
const MFD_NOEXEC_SEAL: u32 = 8;

#[rustfmt::skip]
pub(super) const MEMORY: &[Rule] = &[
    allow("brk", "the heap"),
    checked("mmap", "map files and memory; no huge pages that root has reserved",
        &[allow_if(&[clear(3, MAP_HUGETLB)])], ENOMEM),
    allow("mprotect", "guard pages, relocations; code of just-in-time compilers"),
    allow("munmap", "unmap"),
    allow("mremap", "grow a mapping; keeps its protection"),
    allow("madvise", "what will be used"),
    allow("msync", "write a mapping back"),
    allow("mincore", "what is in memory, of files that may be written"),
    allow("mlock", "keys that are never swapped out; RLIMIT_MEMLOCK holds"),
    allow("mlock2", "the same"),
    allow("munlock", "the same, undone"),
    allow("mlockall", "the same for everything"),
    allow("munlockall", "the same, undone"),
    allow("pkey_alloc", "protection keys: guards within a process"),
    allow("pkey_free", "protection keys"),
    allow("pkey_mprotect", "protection keys"),
    allow("mseal", "a mapping that can't be changed any more"),
    allow("memfd_create", "memory as a file: lanes of the bus, buffers between processes"),
];

/// `exec.write_exec = false`: code comes from files alone. What ld.so does is a private mapping of a file that is
/// executable from the start; everything else that ends in executable memory is refused.
#[rustfmt::skip]
pub(super) const NO_WRITE_EXEC: &[Rule] = &[
    checked("mmap", "executable only as a private mapping of a file, never together with writable",
        &[
            refuse_if(&[bits(3, MAP_HUGETLB, &[MAP_HUGETLB])], ENOMEM),
            allow_if(&[clear(2, PROT_EXEC), clear(3, MAP_HUGETLB)]),
            allow_if(&[bits(2, PROT_WRITE_EXEC, &[PROT_EXEC]), bits(3, MAP_KIND | MAP_HUGETLB, &[MAP_PRIVATE])]),
        ], EACCES),
    checked("mprotect", "memory does not become executable", &[allow_if(&[clear(2, PROT_EXEC)])], EACCES),
    checked("pkey_mprotect", "memory does not become executable", &[allow_if(&[clear(2, PROT_EXEC)])], EACCES),
];

/// The same, where the policy allows System V shared memory.
pub(super) const NO_EXEC_SHM: &[Rule] = &[checked(
    "shmat",
    "attach shared memory, not executable",
    &[allow_if(&[clear(2, SHM_EXEC)])],
    EACCES,
)];

/// `exec.memfd = "none"`.
pub(super) const NO_MEMFD: &[Rule] = &[checked(
    "memfd_create",
    "there are no memory files",
    &[],
    ENOSYS,
)];

/// `exec.memfd = "data"` where `vm.memfd_noexec` can't be set: only files that say themselves that they are never
/// executed; programs that don't fall back to files in /tmp or /dev/shm.
pub(super) const SEALED_MEMFD: &[Rule] = &[checked(
    "memfd_create",
    "memory files that can never be executed",
    &[allow_if(&[bits(1, MFD_NOEXEC_SEAL, &[MFD_NOEXEC_SEAL])])],
    ENOSYS,
)];

/// System V and POSIX objects, in the sandbox's own IPC namespace.
#[rustfmt::skip]
pub(super) const IPC: &[Rule] = &[
    checked("shmget", "shared memory of test databases; no huge pages that root has reserved",
        &[allow_if(&[clear(2, SHM_HUGETLB)])], EPERM),
    allow("shmat", "attach it"),
    allow("shmdt", "detach it"),
    allow("shmctl", "remove it"),
    allow("semget", "semaphores"),
    allow("semop", "semaphores"),
    allow("semtimedop", "semaphores"),
    allow("semctl", "semaphores"),
    allow("msgget", "queues"),
    allow("msgsnd", "queues"),
    allow("msgrcv", "queues"),
    allow("msgctl", "queues"),
    allow("mq_open", "POSIX queues"),
    allow("mq_unlink", "POSIX queues"),
    allow("mq_timedsend", "POSIX queues"),
    allow("mq_timedreceive", "POSIX queues"),
    allow("mq_notify", "POSIX queues"),
    allow("mq_getsetattr", "POSIX queues"),
];
