//! What each end of a lane settles when it is set up. Plain data; nothing here fails but [`SenderOptions`]
//! that a lane can't keep.

#![forbid(unsafe_code)]

use super::LayoutError;
use crate::channel::{Inline, Overflow, Waiting};
use crate::shm::counters::setup;
use crate::shm::patience::setup_flags;

/// What a message carries besides its tag; costs 16 of its inline bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extension {
    #[default]
    None,
    /// When it was sent, and the upper flags of a frame.
    Time,
    /// Also the CRC-32C of its payload, which the receiver checks.
    TimeAndCrc,
}

/// How the sending end behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SenderOptions {
    /// How it waits for room.
    pub waiting: Waiting,
    /// What `send` does with a message for which there is none. A lane never overwrites what its reader has not
    /// read: that is a log's [`Overflow::DropOldest`].
    pub overflow: Overflow,
    pub extension: Extension,
    /// How large the slots are.
    pub inline: Inline,
}

/// Who says how far the sender may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Credit {
    /// A slot that has been read may be written again.
    #[default]
    Automatic,
    /// Nothing may be written but what `grant` allows.
    Manual,
}

/// Who pays for it that no wake-up is missed: between what each side stores and its look at the other's word there has to be
/// a barrier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Barrier {
    /// Whoever is about to sleep, for both, by interrupting the other processors: nothing per message.
    #[default]
    Sleeper,
    /// Each side for itself: where many sleep often, and a sender looks once after a whole run of messages.
    Both,
}

/// How the receiving end behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiverOptions {
    /// How it waits for messages.
    pub waiting: Waiting,
    /// Of an adaptive wait; others need none.
    pub barrier: Barrier,
    pub credit: Credit,
}

impl SenderOptions {
    pub(super) fn check(&self) -> Result<(), LayoutError> {
        match self.overflow {
            Overflow::Block | Overflow::DropNewest | Overflow::Disconnect => Ok(()),
            Overflow::DropOldest => Err(LayoutError::DropOldest),
        }
    }

    pub(super) fn setup_flags(&self) -> u64 {
        let inline = match self.inline {
            Inline::Small => 0,
            Inline::Wide => setup::WIDE,
        };
        setup_flags(self.waiting) | inline
    }
}

impl ReceiverOptions {
    pub(super) fn setup_flags(&self) -> u64 {
        let credit = match self.credit {
            Credit::Automatic => 0,
            Credit::Manual => setup::MANUAL_CREDIT,
        };
        let waiting = setup_flags(self.waiting);
        let waiting = match self.barrier {
            Barrier::Sleeper => waiting,
            Barrier::Both => waiting & !setup::MEMBARRIER,
        };
        waiting | credit
    }
}
