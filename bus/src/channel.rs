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

impl Overflow {
    /// The value in an offer.
    pub const fn code(self) -> u8 {
        match self {
            Self::Block => 0,
            Self::DropNewest => 1,
            Self::DropOldest => 2,
            Self::Disconnect => 3,
        }
    }

    /// The policy of that value.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Block,
            1 => Self::DropNewest,
            2 => Self::DropOldest,
            3 => Self::Disconnect,
            _ => return None,
        })
    }

    /// The word used in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::DropNewest => "drop-newest",
            Self::DropOldest => "drop-oldest",
            Self::Disconnect => "disconnect",
        }
    }
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

impl Class {
    /// The class of a value in an offer.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Bulk,
            1 => Self::Normal,
            2 => Self::High,
            3 => Self::Control,
            _ => return None,
        })
    }

    /// The word used in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Normal => "normal",
            Self::High => "high",
            Self::Control => "control",
        }
    }
}

/// How large the slots of a lane are, and with it the longest message that takes one slot. Fixed when a lane is offered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Inline {
    /// One cache line: 48 bytes.
    #[default]
    Small = 0,
    /// Two: 112 bytes. Pays where most messages are longer than 48.
    Wide = 1,
}

impl Inline {
    /// The class of a value in an offer.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Small,
            1 => Self::Wide,
            _ => return None,
        })
    }

    /// Cache lines of a slot.
    pub const fn lines(self) -> usize {
        1 + self as usize
    }

    /// Longest message that takes one slot, bytes.
    pub const fn bytes(self) -> usize {
        self.lines() * 64 - 16
    }
}

/// How the messages of an agent travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// Lanes, logs and segments where it asks for them and the policy allows; else the socket.
    SharedMemory,
    /// The socket alone.
    Socket(SocketOnly),
}

/// Why an agent has the socket alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SocketOnly {
    #[error("its policy has [ipc] shared_memory = false")]
    Policy,
    #[error(
        "its client can't sleep on shared memory: no futex_waitv in this kernel or sandbox (Linux 5.16)"
    )]
    Incapable,
    #[error("no process of it is connected")]
    NotConnected,
}

impl Tier {
    /// The value in a welcome or a list of agents: two bits.
    pub const fn code(self) -> u8 {
        match self {
            Self::SharedMemory => 0,
            Self::Socket(SocketOnly::Policy) => 1,
            Self::Socket(SocketOnly::Incapable) => 2,
            Self::Socket(SocketOnly::NotConnected) => 3,
        }
    }

    /// The tier of that value.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::SharedMemory,
            1 => Self::Socket(SocketOnly::Policy),
            2 => Self::Socket(SocketOnly::Incapable),
            3 => Self::Socket(SocketOnly::NotConnected),
            _ => return None,
        })
    }

    /// The word used in listings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SharedMemory => "shared-memory",
            Self::Socket(_) => "socket",
        }
    }

    /// Why it is no better; `None` for the best.
    pub const fn why(self) -> Option<SocketOnly> {
        match self {
            Self::SharedMemory => None,
            Self::Socket(why) => Some(why),
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::SharedMemory => f.write_str("shared memory"),
            Self::Socket(why) => write!(f, "socket: {why}"),
        }
    }
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
