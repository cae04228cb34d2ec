//! Words that lanes and logs have in common: what a sender promises, how a side waits, what a message says
//! about itself.
//!
//! Plain data; the protocols are in [`crate::lane`] and [`crate::log`].

#![forbid(unsafe_code)]

/// What happens to a message for which there is no room. Declared when a channel is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// The sender waits.
    #[default]
    Block,
    /// The message is dropped and counted.
    DropNewest,
    /// The oldest unread message is overwritten; the reader learns how many it lost.
    DropOldest,
    /// The channel ends: a reader this slow is taken for gone.
    Disconnect,
}

/// Which of several channels is read first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Class {
    Bulk = 0,
    #[default]
    Normal = 1,
    High = 2,
    /// Never behind data: cancellations, health.
    Control = 3,
}

/// How one end waits for the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Waiting {
    /// Looks without pause and never sleeps: for a thread with a core of its own.
    Busy,
    /// Looks for about as long as a wake-up costs, then sleeps.
    #[default]
    Adaptive,
    /// Sleeps at once: costs no processor time, and a wake-up per message.
    Blocking,
}

/// What a message says about itself besides its payload. None of it is checked by the channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Low byte of [`crate::frame::kind`].
    pub kind: u8,
    /// Bits 0-5 are the sender's; [`slot_flags`] has the channel's own two.
    pub flags: u8,
    /// Ties a response to its request, as in a frame.
    pub correlation: u32,
}

/// Flags of a slot that a [`Tag`] never shows.
pub mod slot_flags {
    /// The inline bytes begin with a time stamp u64 (CLOCK_MONOTONIC, ns), a CRC-32C u32 of the payload and
    /// further flags u32.
    pub const EXT: u8 = 0x80;
    /// The payload is a reference into the sender's arena.
    pub const REFERENCE: u8 = 0x40;
}
