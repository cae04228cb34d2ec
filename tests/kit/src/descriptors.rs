//! A table of descriptors for each test's thread.
//!
//! The tests of one program are threads of one process, and whatever one of them starts holds the
//! descriptors of all from its fork to its exec (or, without an exec, to its end): the end of
//! another's pipe or socket comes late, a lock that it gave back is still held, and a program that
//! it copied a moment ago can't be executed (`ETXTBSY`). Where the machine is busy that moment is
//! long.
//!
//! Included by path: it needs `libc` and an unsafe call, and this crate has neither.

/// Gives the calling thread, and those that it starts from now on, a copy of the process's table of descriptors.
///
/// For tests that share no descriptor with others through a static: what is opened after this is in the copy alone.
pub fn own_descriptors() {
    // SAFETY: a number. The calling thread's table changes from the process's to an equal one.
    let unshared = unsafe { libc::unshare(libc::CLONE_FILES) };
    assert_eq!(unshared, 0, "{}", std::io::Error::last_os_error());
}
