//! How one waits for a lane's next message: what is watched, what is said before sleep, which bell rings.

#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};

use super::Consumer;
use crate::lane::ring::{SEQUENCE, empty};
use crate::shm::atomics::Ordering;
use crate::shm::counters::{PARKED_WORD, SETUP_WORD, parked};
use crate::shm::park::Closer;
use crate::shm::region::Words;
use crate::wait::{Park, Parking, Source, Watch};

/// Ready while there is a message, or the lane has ended.
impl<D: Words, C: Words> Source for Consumer<D, C> {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: &self.data.line(self.line_of(self.next))[SEQUENCE],
            seen: empty(self.next, self.capacity),
        }
    }

    fn arm(&mut self, how: Park) {
        // Also tells the producer which slot it is that we wait for.
        self.publish();
        // SYNC: parked. Pairs with the acquire load in `Look::parked`.
        self.cursor
            .store(PARKED_WORD, how.flag(), Ordering::Release);
    }

    fn disarm(&mut self) {
        self.slept = true;
        self.quick_until = self.next;
        self.cursor
            .store(PARKED_WORD, parked::AWAKE, Ordering::Relaxed);
    }

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        Parking::from_setup(self.cursor.load(SETUP_WORD, Ordering::Relaxed))
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }
}
