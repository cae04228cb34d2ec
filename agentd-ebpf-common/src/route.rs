//! The direct path between two agents: what the kernel routes by, and the head of each frame on it.
//!
//! An agent connects to [`PORT`] on its own loopback, where agentd accepts and never writes. From then on a whole frame that it
//! sends is put into the receive queue of the peer it names, or, if that can't be, back into its own, with the reason in
//! [`Head::status`]. What is no frame of its own is refused with `EACCES`, and so is everything that this socket sends afterwards:
//! connect anew. Nothing ever reaches agentd. What decides:
//!
//! | table | written by | what |
//! | --- | --- | --- |
//! | [`Grant`] (`ROUTE_GRANTS`), a row for each slot | the broker | who this slot is now, to whom it may send, its credit |
//! | [`Flow`] (`ROUTE_FLOWS`), a row for each slot | the programs | what was put into its queue, what it took |
//! | [`Traffic`] (`ROUTE_TRAFFIC`), a row for each slot | the programs | figures: its connection, frames, refusals |
//!
//! **Credit.** What is queued to a peer is [`Flow::queued`] less [`Flow::taken`], and never more than [`Grant::credit`]. The kernel says what a
//! peer has taken, not the peer: a program on the tracepoint `sock_recv_length` (Linux 6.3) counts what it received.

/// Port of the direct connection on the sandbox's loopback.
pub const PORT: u16 = 7203;
/// Slots that take part: those from 1 to one less than this. An agent in a higher slot stays on the userspace route.
pub const SLOTS: usize = 1024;
/// Words of one row of permissions.
pub const WORDS: usize = SLOTS / 64;
/// The longest content of a frame. Longer ones go through shared memory or the userspace route, which are better at it.
pub const CONTENT_MAX: u32 = 4096;
/// What may be queued to an agent unless the broker says otherwise.
pub const CREDIT: u32 = 256 * 1024;
/// A bit of [`Head::kind`]: the frame answers. Whoever may ask an agent may be answered by it, so such a frame goes by the right of its
/// receiver to send to its sender.
pub const ANSWERS: u32 = 1 << 31;
/// First word of each frame.
pub const MAGIC: u32 = 0xaf42_d14e;

/// Who an agent is on the direct path: its slot, and the id of its cgroup, which no other has until the host is started anew.
#[inline(always)]
pub const fn address(slot: u32, cgroup_id: u64) -> u64 {
    cgroup_id << 10 | (slot as u64 & (SLOTS as u64 - 1))
}

#[inline(always)]
pub const fn slot_of(address: u64) -> u32 {
    (address & (SLOTS as u64 - 1)) as u32
}

/// The cgroup that an address is of. Ids have 54 bits: the kernel counts inodes in 32 and their generations above.
#[inline(always)]
pub const fn cgroup_of(address: u64) -> u64 {
    address >> 10
}

/// One agent's rights on the direct path. All zero: none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// [`address`] of the agent that has this slot; 0 for none.
    pub address: u64,
    /// Bytes that may be queued to it.
    pub credit: u32,
    pub _zero: u32,
    /// A bit for each slot that it may send to, and whose answers it takes.
    pub to: [u64; WORDS],
}

/// How much waits in an agent's queue. By this the programs decide, so nobody else gets it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes put into its queue, ever.
    pub queued: u64,
    /// Of these, what the agent has received, or what went with a connection that was closed.
    pub taken: u64,
}

/// What happened on one agent's direct connection: figures for agentd.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Cookie of its socket; that of the last one after it has been closed.
    pub cookie: u64,
    /// Frames of others put into its queue, and their content.
    pub received: u64,
    pub received_bytes: u64,
    /// Frames that it sent, and that went into somebody's queue, and their content.
    pub sent: u64,
    pub sent_bytes: u64,
    /// Frames that it sent and that were refused, by [`refused`].
    pub refused: [u64; refused::KINDS],
}

/// Why a frame was refused: indexes of [`Traffic::refused`].
pub mod refused {
    /// Not one whole frame in one call, or longer than [`super::CONTENT_MAX`].
    pub const SHAPE: usize = 0;
    /// Sent by a socket that is nobody's direct connection, or as somebody else.
    pub const SOURCE: usize = 1;
    /// No right to send to this address, or to answer it, or nobody is there any more.
    pub const RIGHT: usize = 2;
    /// The peer has not taken enough of what is queued to it.
    pub const CREDIT: usize = 3;
    /// The peer has no direct connection.
    pub const ABSENT: usize = 4;
    pub const KINDS: usize = 5;
}

/// The head of each frame, in host byte order: both ends are on this host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// [`MAGIC`].
    pub magic: u32,
    /// Bytes of content, which follow.
    pub len: u32,
    /// [`address`] of the sender: a frame with another's is refused.
    pub from: u64,
    /// [`address`] of the receiver.
    pub to: u64,
    /// The request that this is, or answers.
    pub correlation: u64,
    /// The library's, but for [`ANSWERS`].
    pub kind: u32,
    /// The library's, until the frame comes back: then an index of [`refused`] plus one.
    pub status: u32,
}

/// Bytes of [`Head`].
pub const HEAD_LEN: usize = 40;

const _: () = {
    assert!(size_of::<Head>() == HEAD_LEN);
    assert!(size_of::<Grant>() == 16 + 8 * WORDS);
    assert!(size_of::<Flow>() == 16);
    assert!(size_of::<Traffic>() == 80);
    assert!(SLOTS.is_power_of_two() && SLOTS == 1 << 10);
};
