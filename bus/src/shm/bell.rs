//! A bell: what a side in an event loop is woken by instead of a futex.
//!
//! An eventfd that the sleeper makes and the waker gets a copy of. Both hold the same open file, and neither
//! trusts the other, so nobody may ever block on it or believe its count:
//!
//! * it is born with a count of 1 and **never read**: it is always readable, and an edge-triggered `epoll`
//!   (`EPOLLET`) reports each write. A co-holder could drain it between a poll and a read, or clear `O_NONBLOCK`.
//! * it is rung by **writing 0**. A write waits only if the sum would pass 2⁶⁴-2, which no write of 0 does,
//!   whatever a co-holder has done to the count or to `O_NONBLOCK`; it still wakes every poller.
//!
//! What remains to a hostile co-holder is to ring too often, or to drain the count to 0, after which its own
//! writes of 0 are no longer reported: it ends up unheard. (Only the kernel's own asynchronous I/O can count to
//! 2⁶⁴-1, where even a 0 would wait; agents are denied `io_submit` and `io_uring`.)
//!
//! Any thread, no privilege. A bell costs one descriptor at each side. See eventfd(2), epoll(7).

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, fstat};

/// The count that a bell is born with: not 0, so that it polls as readable.
const BORN_WITH: u32 = 1;
/// What is added by ringing.
const RING: [u8; 8] = 0u64.to_ne_bytes();

/// Why there is no bell.
#[derive(Debug, thiserror::Error)]
pub enum BellError {
    #[error("{call} for a bell: {source}")]
    Call {
        call: &'static str,
        source: io::Error,
    },
    #[error("the descriptor is no eventfd but a {found}; a bell is made with eventfd(2)")]
    NotEventfd { found: &'static str },
}

fn failed(call: &'static str) -> impl Fn(rustix::io::Errno) -> BellError {
    move |errno| BellError::Call {
        call,
        source: errno.into(),
    }
}

/// The sleeper's end. Waitable through [`AsFd`], edge-triggered only: to a level-triggered loop it is always
/// readable (give that one a [`crate::wait::Waiter`]).
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> Result<Self, BellError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        eventfd(BORN_WITH, flags)
            .map(Self)
            .map_err(failed("eventfd"))
    }

    /// A copy for the waker: to be sent to it, or for a [`Ringer`] in this process.
    pub fn share(&self) -> Result<OwnedFd, BellError> {
        rustix::io::fcntl_dupfd_cloexec(&self.0, 0).map_err(failed("F_DUPFD_CLOEXEC"))
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The waker's end.
#[derive(Debug)]
pub struct Ringer(OwnedFd);

impl Ringer {
    /// Takes a descriptor that somebody else sent, after asking the kernel what it is.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, BellError> {
        check_bell(fd.as_fd())?;
        Ok(Self(fd))
    }

    /// Wakes whoever waits for the bell. Never blocks. The other side may have closed its end: then nobody
    /// waits, and that is no error.
    pub fn ring(&self) {
        // Fails only when the count stands at 2^64-1 (see above): that bell's owner has made itself deaf.
        if let Err(errno) = rustix::io::write(&self.0, &RING) {
            debug_assert_eq!(errno, rustix::io::Errno::AGAIN, "ringing a bell");
        }
    }
}

/// Where the ringer of the other side's bell is once it has come, put there by whichever thread hears of it: a side that
/// sleeps itself can't look after its post. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct RingerSlot(Arc<Mutex<Option<Ringer>>>);

impl RingerSlot {
    /// Puts a ringer there, in place of one that came before, and rings it: what happened before this was not told.
    pub fn put(&self, ringer: Ringer) {
        self.lock().insert(ringer).ring();
    }

    /// After a store that the owner of the bell waits for. If the ringer has not come yet, [`Self::put`] rings it after this,
    /// and whoever hears that sees the store: the lock is between them.
    pub fn ring(&self) {
        if let Some(ringer) = &*self.lock() {
            ringer.ring();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ringer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether `fd` is an eventfd, so that ringing it can neither block nor write into anything. Rings it once.
pub fn check_bell(fd: BorrowedFd<'_>) -> Result<(), BellError> {
    let mode = fstat(fd).map_err(failed("fstat"))?.st_mode;
    // The kernel's anonymous inodes (eventfd, epoll, timerfd, ...) have no file type. Of those only an eventfd
    // takes 8 bytes of zeros; the others refuse at once. A pipe, socket or file (FUSE!) could block.
    let found = match FileType::from_raw_mode(mode) {
        FileType::Unknown => None,
        FileType::RegularFile => Some("file"),
        FileType::Directory => Some("directory"),
        FileType::Symlink => Some("symbolic link"),
        FileType::Fifo => Some("pipe"),
        FileType::Socket => Some("socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("device"),
    };
    if let Some(found) = found {
        return Err(BellError::NotEventfd { found });
    }
    match rustix::io::write(fd, &RING) {
        Ok(8) => Ok(()),
        _ => Err(BellError::NotEventfd {
            found: "kernel object of another kind",
        }),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use rustix::event::epoll;
    use rustix::fs::OFlags;
    use rustix::time::Timespec;

    use super::*;

    const AT_ONCE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };

    fn edges(bell: &Bell) -> impl FnMut() -> usize {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&set, bell, epoll::EventData::new_u64(0), flags).unwrap();
        move || {
            let mut events = Vec::with_capacity(4);
            epoll::wait(
                &set,
                rustix::buffer::spare_capacity(&mut events),
                Some(&AT_ONCE),
            )
            .unwrap()
        }
    }

    #[test]
    fn each_ring_is_one_edge_without_anybody_reading() {
        let bell = Bell::new().unwrap();
        let ringer = Ringer::from_fd(bell.share().unwrap()).unwrap();
        let mut edges = edges(&bell);
        assert_eq!(edges(), 1, "registration reports what was");
        for _ in 0..3 {
            assert_eq!(edges(), 0);
            ringer.ring();
            assert_eq!(edges(), 1);
        }
    }

    #[test]
    fn a_ringer_that_comes_late_rings_for_what_was_before() {
        let slot = RingerSlot::default();
        let bell = Bell::new().unwrap();
        let mut edges = edges(&bell);
        edges();
        slot.ring();
        assert_eq!(edges(), 0, "nobody can be rung for yet");
        slot.clone()
            .put(Ringer::from_fd(bell.share().unwrap()).unwrap());
        assert_eq!(edges(), 1);
        slot.ring();
        assert_eq!(edges(), 1);
    }

    #[test]
    fn ringing_never_blocks_whatever_a_co_holder_does() {
        let bell = Bell::new().unwrap();
        let ringer = Ringer::from_fd(bell.share().unwrap()).unwrap();
        let mut edges = edges(&bell);
        let hostile = bell.share().unwrap();
        rustix::fs::fcntl_setfl(&hostile, OFlags::empty()).unwrap();
        let to_the_brim = u64::MAX - 1 - u64::from(BORN_WITH);
        rustix::io::write(&hostile, &to_the_brim.to_ne_bytes()).unwrap();
        edges();
        ringer.ring();
        assert_eq!(edges(), 1);
    }

    #[test]
    fn only_an_eventfd_is_a_bell() {
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = rustix::fs::memfd_create("no-bell", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let other = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (fd, name) in [
            (pipe, "pipe"),
            (socket.into(), "socket"),
            (file, "file"),
            (other, "kernel object of another kind"),
        ] {
            match Ringer::from_fd(fd) {
                Err(BellError::NotEventfd { found }) => assert_eq!(found, name),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
