//! Logs: who writes which topic, who follows, and the descriptors that go between them.
//!
//! A log is offered once, under a topic that its producer may publish. A follow is a wish that lasts: each log
//! of the same user whose topic it covers, now and later, is offered to the follower, whose cursor memory goes
//! to the producer. Each pair of a log and a follow is a channel with a number of its own, so one connection
//! can read the same log twice.
//!
//! Fails towards whoever offers or follows, with a status and a text; a follow for which there is no room gets
//! a notice.

#![forbid(unsafe_code)]

use crate::access::{ask_publish, ask_subscribe};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Shape, Status};
use crate::topic::{check_pattern, check_topic, matches};

use super::channels::{
    Bells, Channel, ChannelEvent, ChannelKind, ChannelOpened, Descriptor, End, Segments,
};
use super::dispatch::Refusal;
use super::lanes::OFFER_TIMEOUT_MS;
use super::{ConnId, Effects, Now, Outgoing, Pending, PendingKind, PendingState, Router};

/// A log as its producer has it.
#[derive(Debug)]
pub(super) struct Log<F> {
    pub peer: PeerId,
    pub conn: ConnId,
    pub topic: String,
    pub shape: Shape,
    pub data: F,
    pub segments: Segments<F>,
}

/// A wish for all logs of a pattern.
#[derive(Debug)]
pub(super) struct Follow {
    pub conn: ConnId,
    pub pattern: String,
    pub reliable: bool,
}

impl<F: Descriptor> Router<F> {
    /// Answered with the log's number.
    pub(super) fn offer_log(
        &mut self,
        id: ConnId,
        shape: Shape,
        topic: &str,
        fd: Option<F>,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        let peer = self.conns[&id].peer;
        let admitted = self.admit_log(id, topic, fd);
        let status = admitted.as_ref().map_or_else(|r| r.status, |_| Status::OK);
        let what = format!("offer {topic}").into();
        self.note(peer, None, None, "log", what, 0, 0, status, 0, now, fx);
        let data = admitted?;
        let conn = self.conns.get_mut(&id).expect("dispatch has it");
        conn.shares_memory = true;
        let log = self.fresh_number();
        fx.channels.push(ChannelEvent::Opened(ChannelOpened {
            id: log,
            kind: ChannelKind::Log,
            uid: self.peers[&peer].uid,
            from: (peer, self.name_of(peer).to_string()),
            to: None,
            topic: Some(topic.to_owned()),
            shape,
            reliable: false,
            data: data.clone(),
            cursor: None,
        }));
        let entry = Log {
            peer,
            conn: id,
            topic: topic.to_owned(),
            shape,
            data,
            segments: Segments::default(),
        };
        self.logs.insert(log, entry);
        let mut follows: Vec<u32> = self.follows.keys().copied().collect();
        follows.sort_unstable();
        for follow in follows {
            self.offer_reader(log, follow, now, fx);
        }
        Ok(log.to_le_bytes().to_vec())
    }

    fn admit_log(&self, id: ConnId, topic: &str, fd: Option<F>) -> Result<F, Refusal> {
        check_topic(topic).map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        let data = fd.ok_or_else(|| {
            Refusal::new(Status::MALFORMED, "a log offer comes with its data memory")
        })?;
        let owner = self.conns[&id].peer;
        let peer = &self.peers[&owner];
        ask_publish(Self::party(peer), &*peer.access, topic)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        self.may_share(owner)?;
        let limit = self.limits.max_logs;
        if self.logs.values().filter(|log| log.conn == id).count() >= limit {
            let text = format!("this connection has {limit} logs, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        self.check_shared_bytes(id, data.bytes())?;
        Ok(data)
    }

    /// Registers a follow; gives its number.
    pub(super) fn follow_logs(
        &mut self,
        id: ConnId,
        reliable: bool,
        pattern: &str,
    ) -> Result<u32, Refusal> {
        check_pattern(pattern)
            .map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))?;
        let owner = self.conns[&id].peer;
        let peer = &self.peers[&owner];
        ask_subscribe(Self::party(peer), &*peer.access, pattern)
            .map_err(|text| Refusal::new(Status::DENIED, text))?;
        self.may_share(owner)?;
        let limit = self.limits.max_subscriptions;
        if self.follows.values().filter(|f| f.conn == id).count() >= limit {
            let text = format!("this connection follows {limit} patterns, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        let conn = self.conns.get_mut(&id).expect("dispatch has it");
        conn.shares_memory = true;
        let follow = self.fresh_number();
        let entry = Follow {
            conn: id,
            pattern: pattern.to_owned(),
            reliable,
        };
        self.follows.insert(follow, entry);
        Ok(follow)
    }

    /// Offers a fresh follow all that is there.
    pub(super) fn offer_all_logs(&mut self, follow: u32, now: Now, fx: &mut Effects<F>) {
        let mut logs: Vec<u32> = self.logs.keys().copied().collect();
        logs.sort_unstable();
        for log in logs {
            self.offer_reader(log, follow, now, fx);
        }
    }

    pub(super) fn unfollow_logs(&mut self, id: ConnId, follow: u32) {
        if self.follows.get(&follow).is_some_and(|f| f.conn == id) {
            self.follows.remove(&follow);
        }
    }

    /// Offers one log to one follow if they belong together.
    fn offer_reader(&mut self, log: u32, follow: u32, now: Now, fx: &mut Effects<F>) {
        let (Some(entry), Some(wish)) = (self.logs.get(&log), self.follows.get(&follow)) else {
            return;
        };
        let reader = self.conns[&wish.conn].peer;
        let (producer, follower) = (&self.peers[&entry.peer], &self.peers[&reader]);
        // As with topics, nobody is told what it says itself.
        if producer.uid != follower.uid
            || entry.peer == reader
            || !matches(&wish.pattern, &entry.topic)
            || !follower.access.may_subscribe(&entry.topic)
        {
            return;
        }
        let (conn, topic, data) = (wish.conn, entry.topic.clone(), entry.data.clone());
        let (from, from_conn) = (entry.peer, entry.conn);
        if let Err(refusal) = self.admit_reader(log, conn) {
            let text = format!("log {topic} of {}: {}", self.name_of(from), refusal.text);
            self.notice(conn, follow, refusal.status, &text, fx);
            return;
        }
        let wire = self.fresh_number();
        let pending = Pending {
            asker: from,
            asker_conn: from_conn,
            asker_correlation: 0,
            server: reader,
            state: PendingState::With(conn),
            deadline_ns: now
                .mono_ns
                .saturating_add(u64::from(OFFER_TIMEOUT_MS) * 1_000_000),
            what: topic.as_str().into(),
            kind: PendingKind::Reader { log, follow },
        };
        self.open_pending(wire, pending);
        let payload = Control::LogOffered {
            from,
            follow,
            channel: wire,
            topic: &topic,
        }
        .encode()
        .expect("the topic was checked");
        let frame = Frame::new(kind::COMMAND, reader, wire, payload);
        let fd = Some(data);
        self.push_out(conn, Outgoing { frame, fd }, fx);
    }

    fn admit_reader(&self, log: u32, conn: ConnId) -> Result<(), Refusal> {
        let full = |text: String| Err(Refusal::new(Status::QUEUE_FULL, text));
        let limit = self.limits.max_log_readers;
        let readers = self.readers_of(log).count()
            + self
                .pending
                .values()
                .filter(|p| matches!(p.kind, PendingKind::Reader { log: of, .. } if of == log))
                .count();
        if readers >= limit {
            return full(format!("it has {limit} readers, the most allowed"));
        }
        let limit = self.limits.max_followed;
        let reading = self
            .channels
            .values()
            .filter(|c| matches!(c.kind, ChannelKind::FollowedLog { .. }))
            .filter(|c| c.consumer.conn == Some(conn))
            .count()
            + self
                .pending
                .values()
                .filter(|p| matches!(p.kind, PendingKind::Reader { .. }))
                .filter(|p| matches!(p.state, PendingState::With(with) if with == conn))
                .count();
        if reading >= limit {
            return full(format!(
                "this connection reads {limit} logs, the most allowed"
            ));
        }
        Ok(())
    }

    /// Numbers of the readers of `log`.
    pub(super) fn readers_of(&self, log: u32) -> impl Iterator<Item = u32> {
        self.channels
            .iter()
            .filter(move |(_, channel)| channel.kind == ChannelKind::FollowedLog { log })
            .map(|(number, _)| *number)
    }

    /// The follower took or refused a log. `open` has been closed already.
    pub(super) fn reader_answered(
        &mut self,
        wire: u32,
        open: &Pending<F>,
        conn: ConnId,
        answer: (Status, Option<F>),
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let PendingKind::Reader { log, follow } = open.kind else {
            unreachable!("the caller looked")
        };
        let (Status::OK, Some(cursor)) = answer else {
            return;
        };
        // The log ends the offers of it when it ends, and a revoked right ends them too.
        let Some(entry) = self.logs.get(&log) else {
            return;
        };
        // A follow that was withdrawn meanwhile had been lossy or not: what the offer said is not known.
        let Some(reliable) = self.follows.get(&follow).map(|f| f.reliable) else {
            self.tell_closed(conn, wire, Status::CANCELLED, fx);
            return;
        };
        let (peer, from_conn, topic) = (entry.peer, entry.conn, entry.topic.clone());
        let end = |peer, conn| End {
            peer,
            conn: Some(conn),
        };
        fx.channels.push(ChannelEvent::Opened(ChannelOpened {
            id: wire,
            kind: ChannelKind::FollowedLog { log },
            uid: self.peers[&peer].uid,
            from: (peer, self.name_of(peer).to_string()),
            to: Some((open.server, self.name_of(open.server).to_string())),
            topic: Some(topic.clone()),
            shape: entry.shape,
            reliable,
            data: entry.data.clone(),
            cursor: Some(cursor.clone()),
        }));
        let segments: Vec<(u32, bool, F)> = entry
            .segments
            .held
            .iter()
            .filter_map(|(index, segment)| Some((*index, segment.sealed, segment.memory.clone()?)))
            .collect();
        let channel = Channel {
            kind: ChannelKind::FollowedLog { log },
            producer: end(peer, from_conn),
            consumer: end(open.server, conn),
            over: None,
            bells: Bells::default(),
            segments: Segments::default(),
        };
        self.channels.insert(wire, channel);
        let payload = Control::LogFollower {
            from: open.server,
            log,
            channel: wire,
            reliable,
        }
        .encode()
        .expect("fixed size");
        let frame = Frame::new(kind::COMMAND, peer, wire, payload);
        let fd = Some(cursor);
        self.push_out(from_conn, Outgoing { frame, fd }, fx);
        for (index, sealed, memory) in segments {
            self.pass_segment(conn, wire, index, sealed, memory, fx);
        }
        let to = Some((peer, self.name_of(peer)));
        let what = format!("follow {topic}").into();
        self.note(
            open.server,
            to,
            None,
            "log",
            what,
            0,
            wire,
            Status::OK,
            1,
            now,
            fx,
        );
    }

    /// The log is over for all its readers. Its producer is told if it was not it that said so.
    pub(super) fn close_log(&mut self, number: u32, status: Status, fx: &mut Effects<F>) {
        let Some(log) = self.logs.remove(&number) else {
            return;
        };
        let mut offered: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, p)| matches!(p.kind, PendingKind::Reader { log, .. } if log == number))
            .map(|(wire, _)| *wire)
            .collect();
        offered.sort_unstable();
        for wire in offered {
            self.withdraw_from_server(wire, status, fx);
            self.close_pending(wire);
        }
        let mut readers: Vec<u32> = self.readers_of(number).collect();
        readers.sort_unstable();
        for reader in readers {
            let channel = self.channels.get_mut(&reader).expect("just listed");
            channel.producer.conn = None;
            self.close_channel(reader, status, fx);
        }
        if status == Status::DENIED {
            self.tell_closed(log.conn, number, status, fx);
        }
        fx.channels.push(ChannelEvent::Ended { id: number, status });
    }
}
