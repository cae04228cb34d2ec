//! System calls as an attacker makes them: by number, past the C library and whatever it would check first.
//!
//! Runs inside the sandbox, in the process of one case. Nothing is retried and nothing translated: what the kernel says
//! is the answer. A refusal is a [`Refused`] that names the call and the errno.

use std::ffi::CStr;
use std::fmt;

/// What was refused, and with which errno (0: the kernel gave none).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub what: String,
    pub errno: i32,
}

impl Refused {
    pub fn new(what: impl Into<String>, errno: i32) -> Self {
        Self {
            what: what.into(),
            errno,
        }
    }

    /// The action was carried out, and what came of it is not what an attacker wanted.
    pub fn without_errno(what: impl Into<String>) -> Self {
        Self::new(what, 0)
    }
}

impl From<std::io::Error> for Refused {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string(), error.raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// One argument of a system call: a number, or an address.
pub trait Word {
    fn word(self) -> usize;
}

macro_rules! numbers {
    ($($number:ty)*) => { $(
        impl Word for $number {
            // As C would pass it: sign-extended where it has a sign.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a machine word is what the kernel reads")]
            fn word(self) -> usize {
                self as usize
            }
        }
    )* };
}
numbers!(i32 u32 i64 u64 isize usize);

impl Word for &CStr {
    fn word(self) -> usize {
        self.as_ptr().expose_provenance()
    }
}

impl<T> Word for *const T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self.expose_provenance()
    }
}

impl<T> Word for &mut T {
    fn word(self) -> usize {
        std::ptr::from_mut(self).expose_provenance()
    }
}

/// Makes the call; the errno is the error.
pub fn enter(name: &str, number: i64, words: [usize; 6]) -> Result<usize, Refused> {
    // SAFETY: the process exists for one attempt, holds nothing that anybody else relies on, and ends right after it.
    // Each case passes addresses of its own live buffers of the size that the call wants, or numbers.
    let result = unsafe {
        libc::syscall(
            number, words[0], words[1], words[2], words[3], words[4], words[5],
        )
    };
    usize::try_from(result).map_err(|_| {
        let name = name.trim_start_matches("libc::").trim_start_matches("SYS_");
        Refused::new(name, errno())
    })
}

/// `call!(libc::SYS_openat, libc::AT_FDCWD, c"/", 0)`: a system call by number with up to six arguments.
macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        let words: &[usize] = &[$( $crate::raw::Word::word($argument) ),*];
        let mut all = [0_usize; 6];
        all[..words.len()].copy_from_slice(words);
        $crate::raw::enter(stringify!($number), $number, all)
    }};
}
pub(crate) use call;

pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The errno's name, for people.
pub fn errno_name(errno: i32) -> Option<&'static str> {
    const NAMES: [(i32, &str); 40] = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EINTR, "EINTR"),
        (libc::EIO, "EIO"),
        (libc::ENXIO, "ENXIO"),
        (libc::E2BIG, "E2BIG"),
        (libc::ENOEXEC, "ENOEXEC"),
        (libc::EBADF, "EBADF"),
        (libc::ECHILD, "ECHILD"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::ENOMEM, "ENOMEM"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EBUSY, "EBUSY"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENFILE, "ENFILE"),
        (libc::EMFILE, "EMFILE"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::EFBIG, "EFBIG"),
        (libc::ENOSPC, "ENOSPC"),
        (libc::EROFS, "EROFS"),
        (libc::EMLINK, "EMLINK"),
        (libc::EPIPE, "EPIPE"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ELOOP, "ELOOP"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::ENETUNREACH, "ENETUNREACH"),
        (libc::ETIMEDOUT, "ETIMEDOUT"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::EHOSTUNREACH, "EHOSTUNREACH"),
        (libc::EDQUOT, "EDQUOT"),
        (libc::ENOKEY, "ENOKEY"),
    ];
    NAMES
        .iter()
        .find(|(number, _)| *number == errno)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_names_itself_and_its_errno() {
        let refused = call!(libc::SYS_openat, libc::AT_FDCWD, c"/nowhere at all", 0)
            .expect_err("there is no such file");
        assert_eq!(refused, Refused::new("openat", libc::ENOENT));
        assert_eq!(errno_name(refused.errno), Some("ENOENT"));
    }

    #[test]
    fn negative_numbers_keep_their_sign() {
        assert_eq!((-100_i32).word(), usize::MAX - 99);
    }
}
