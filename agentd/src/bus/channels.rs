//! The daemon's sight of shared memory: a read-only mapping of every lane and log.
//!
//! Each channel that the router opens is mapped here and looked at until both sides have let go. Then what its
//! reader never read is counted, and the mappings go. Counting needs no help from either side and stops neither;
//! both may lie in their own memory, which costs them only the truth of their own figures. Sizes are sealed, so
//! no access can fault. A channel that can't be mapped works all the same and is missing from the listing.
//!
//! Any thread, behind a lock of its own; unprivileged.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use agentd_bus::channel::{Class, Overflow};
use agentd_bus::frame::PeerId;
use agentd_bus::message::Status;
use agentd_bus::router::{ChannelEvent, ChannelKind, ChannelOpened};
use agentd_bus::shm::counters::{Received, Sent};
use agentd_bus::shm::histogram::Latency;
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::view::{Unread, View};

use agentd_bus::shard::SharedFd;

/// One lane, log, or reader of a log, as its own counters tell it.
#[derive(Clone, Debug)]
pub struct ChannelInfo {
    /// Its number on the bus.
    pub id: u32,
    pub kind: ChannelKind,
    pub from: PeerId,
    pub from_name: String,
    /// `None` for a log that nobody reads.
    pub to: Option<(PeerId, String)>,
    /// `None` for a lane.
    pub topic: Option<String>,
    pub class: Class,
    pub overflow: Overflow,
    /// The producer waits for this reader.
    pub reliable: bool,
    pub slots: usize,
    pub sent: Sent,
    pub received: Received,
    /// Slots that are written and not read.
    pub depth: u64,
    /// Whether the producer and the reader sleep.
    pub parked: (bool, bool),
    pub latency: Latency,
    /// Bytes of the segments that go with it.
    pub bulk_bytes: u64,
}

/// A channel whose reader left something behind.
#[derive(Debug)]
pub(super) struct LeftBehind {
    pub channel: ChannelOpened<()>,
    pub unread: Unread,
    pub status: Status,
}

#[derive(Debug)]
struct Watched {
    opened: ChannelOpened<()>,
    view: View<Mapping, Mapping>,
}

/// Every channel that can be looked at, by number.
#[derive(Debug, Default)]
pub(super) struct Channels {
    watched: BTreeMap<u32, Watched>,
}

impl Channels {
    /// Takes the router's news, in its order.
    pub fn apply(&mut self, events: Vec<ChannelEvent<SharedFd>>) -> Vec<LeftBehind> {
        let mut left = Vec::new();
        for event in events {
            match event {
                ChannelEvent::Opened(opened) => match look_at(&opened) {
                    Ok(view) => {
                        let opened = without_descriptors(opened);
                        self.watched.insert(opened.id, Watched { opened, view });
                    }
                    Err(why) => tracing::warn!(
                        channel = opened.id,
                        from = %opened.from.1,
                        "a {} can't be looked at: {why}",
                        opened.kind.as_str()
                    ),
                },
                ChannelEvent::Ended { id, status } => {
                    let Some(watched) = self.watched.remove(&id) else {
                        continue;
                    };
                    let unread = watched.view.unread();
                    if unread.messages > 0 {
                        left.push(LeftBehind {
                            channel: watched.opened,
                            unread,
                            status,
                        });
                    }
                }
            }
        }
        left
    }

    /// The channels of `uid`'s agents. A log that has readers is in the list once for each of them.
    pub fn list(&self, uid: u32) -> Vec<ChannelInfo> {
        let followed: Vec<u32> = self
            .watched
            .values()
            .filter_map(|watched| match watched.opened.kind {
                ChannelKind::FollowedLog { log } => Some(log),
                _ => None,
            })
            .collect();
        self.watched
            .values()
            .filter(|watched| watched.opened.uid == uid)
            .filter(|watched| !followed.contains(&watched.opened.id))
            .map(Watched::info)
            .collect()
    }
}

impl Watched {
    fn info(&self) -> ChannelInfo {
        let (opened, seen) = (&self.opened, self.view.snapshot());
        ChannelInfo {
            id: opened.id,
            kind: opened.kind,
            from: opened.from.0,
            from_name: opened.from.1.clone(),
            to: opened.to.clone(),
            topic: opened.topic.clone(),
            class: opened.shape.class,
            overflow: opened.shape.overflow,
            reliable: opened.reliable,
            slots: seen.slots,
            sent: seen.sent,
            received: seen.received,
            depth: seen.depth,
            parked: (seen.producer_parked, seen.reader_parked),
            latency: seen.latency,
            bulk_bytes: 0,
        }
    }
}

fn look_at(opened: &ChannelOpened<SharedFd>) -> Result<View<Mapping, Mapping>, String> {
    let map = |fd: &SharedFd| memfd::open(fd.as_fd()).map_err(|error| error.to_string());
    let data = map(&opened.data)?;
    let cursor = opened.cursor.as_ref().map(map).transpose()?;
    View::new(data, cursor).map_err(|error| error.to_string())
}

/// The mapping keeps the memory; the descriptors may go.
fn without_descriptors(opened: ChannelOpened<SharedFd>) -> ChannelOpened<()> {
    ChannelOpened {
        id: opened.id,
        kind: opened.kind,
        uid: opened.uid,
        from: opened.from,
        to: opened.to,
        topic: opened.topic,
        shape: opened.shape,
        reliable: opened.reliable,
        data: (),
        cursor: opened.cursor.map(drop),
    }
}
