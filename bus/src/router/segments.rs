//! What goes along with a channel: segments of its producer's arena, and its reader's bell.
//!
//! The producer of a lane or log announces each segment once; the bus passes it to the other side, for a log
//! to every reader, those that come later included. The answer comes after it was queued there, so a producer
//! that waits for it never refers to a segment that its reader isn't given first.

#![forbid(unsafe_code)]

use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Status};

use super::channels::{ChannelKind, Descriptor, Segment, Segments};
use super::dispatch::Refusal;
use super::{ConnId, Effects, Outgoing, Router};

fn malformed(text: impl Into<String>) -> Refusal {
    Refusal::new(Status::MALFORMED, text)
}

impl<F: Descriptor> Router<F> {
    /// A producer's segment, on its way to whoever reads.
    pub(super) fn announce_segment(
        &mut self,
        id: ConnId,
        number: u32,
        index: u32,
        sealed: bool,
        fd: Option<F>,
        fx: &mut Effects<F>,
    ) -> Result<(), Refusal> {
        let memory = fd.ok_or_else(|| malformed("a segment comes with its memory"))?;
        let bytes = memory.bytes();
        let limit = self.limits.max_segments;
        self.check_shared_bytes(id, bytes)?;
        let readers = self.readers_for(id, number)?;
        let congested = readers.iter().any(|(_, conn)| {
            self.conns
                .get(conn)
                .is_some_and(|conn| conn.queued_fds() >= limit)
        });
        let is_log = self.logs.contains_key(&number);
        let held = &mut self.segments_of(number).held;
        if held.contains_key(&index) {
            return Err(malformed(format!(
                "segment {index} of channel {number} is there already; drop it first"
            )));
        }
        // A descriptor that nobody takes from its queue stays open in the daemon.
        if held.len() >= limit || (congested && !is_log) {
            let text = format!(
                "channel {number} has {limit} segments, or its reader has not taken that many yet: the most allowed"
            );
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        let segment = Segment {
            memory: is_log.then(|| memory.clone()),
            bytes,
            sealed,
        };
        held.insert(index, segment);
        for (channel, conn) in readers {
            self.pass_segment(conn, channel, index, sealed, memory.clone(), fx);
        }
        Ok(())
    }

    /// A segment that will not be referred to again.
    pub(super) fn drop_segment(
        &mut self,
        id: ConnId,
        number: u32,
        index: u32,
        fx: &mut Effects<F>,
    ) -> Result<(), Refusal> {
        let readers = self.readers_for(id, number)?;
        if self.segments_of(number).held.remove(&index).is_none() {
            return Err(malformed(format!(
                "channel {number} has no segment {index}"
            )));
        }
        for (channel, conn) in readers {
            let payload = Control::SegmentDropped { channel, index }
                .encode()
                .expect("fixed size");
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, channel, payload);
            self.push_must(conn, frame, None, fx);
        }
        Ok(())
    }

    /// The eventfd of one side, on its way to the other: a reader's, or that of a lane's producer, which waits for room.
    /// Once per side.
    pub(super) fn pass_bell(
        &mut self,
        id: ConnId,
        number: u32,
        fd: Option<F>,
        fx: &mut Effects<F>,
    ) -> Result<(), Refusal> {
        let bell = fd.ok_or_else(|| malformed("a bell comes with its eventfd"))?;
        let no_side = || {
            malformed(format!(
                "this connection has no side of channel {number} that waits"
            ))
        };
        let channel = self.channels.get_mut(&number).ok_or_else(no_side)?;
        // One connection may be both sides; then the reader's comes first.
        let of_reader = channel.consumer.conn == Some(id) && !channel.bells.reader;
        let is_lane = channel.kind == ChannelKind::Lane;
        let (has, other) = if of_reader {
            (&mut channel.bells.reader, channel.producer.conn)
        } else if is_lane && channel.producer.conn == Some(id) {
            (&mut channel.bells.producer, channel.consumer.conn)
        } else if channel.consumer.conn == Some(id) {
            (&mut channel.bells.reader, None)
        } else {
            return Err(no_side());
        };
        if std::mem::replace(has, true) {
            return Err(malformed(format!("channel {number} has its bell already")));
        }
        if let Some(other) = other {
            let payload = Control::Bell { channel: number }
                .encode()
                .expect("fixed size");
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, number, payload);
            let fd = Some(bell);
            self.push_out(other, Outgoing { frame, fd }, fx);
        }
        Ok(())
    }

    pub(super) fn pass_segment(
        &mut self,
        conn: ConnId,
        channel: u32,
        index: u32,
        sealed: bool,
        memory: F,
        fx: &mut Effects<F>,
    ) {
        let payload = Control::Segment {
            channel,
            index,
            sealed,
        }
        .encode()
        .expect("fixed size");
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, channel, payload);
        let fd = Some(memory);
        self.push_out(conn, Outgoing { frame, fd }, fx);
    }

    /// Refuses memory that would go over what one connection may make others map.
    pub(super) fn check_shared_bytes(&self, id: ConnId, more: u64) -> Result<(), Refusal> {
        let (limit, held) = (self.limits.max_shared_bytes, self.shared_bytes(id));
        if held.saturating_add(more) <= limit {
            return Ok(());
        }
        let text = format!(
            "{more} bytes more than the {held} that this connection shares already are over its limit of {limit}"
        );
        Err(Refusal::new(Status::QUEUE_FULL, text))
    }

    /// The readers (channel, connection) of what `id` produces under that number.
    fn readers_for(&self, id: ConnId, number: u32) -> Result<Vec<(u32, ConnId)>, Refusal> {
        let mine = |conn: Option<ConnId>| conn == Some(id);
        if self
            .logs
            .get(&number)
            .is_some_and(|log| mine(Some(log.conn)))
        {
            let mut readers: Vec<(u32, ConnId)> = self
                .readers_of(number)
                .filter_map(|reader| Some((reader, self.channels[&reader].consumer.conn?)))
                .collect();
            readers.sort_unstable();
            return Ok(readers);
        }
        match self.channels.get(&number) {
            Some(lane) if lane.kind == ChannelKind::Lane && mine(lane.producer.conn) => {
                let consumer = lane.consumer.conn.filter(|_| lane.over.is_none());
                Ok(consumer.map(|conn| (number, conn)).into_iter().collect())
            }
            _ => Err(malformed(format!(
                "this connection produces no lane or log {number}: it was closed, or is another's"
            ))),
        }
    }

    fn segments_of(&mut self, number: u32) -> &mut Segments<F> {
        match self.logs.get_mut(&number) {
            Some(log) => &mut log.segments,
            None => {
                let lane = self.channels.get_mut(&number);
                &mut lane.expect("readers_for found it").segments
            }
        }
    }
}
