//! Queues that somebody watches: what happens to each of their messages, step by step. Never contents.
//!
//! A queue is watched by its name, whoever's it is; who may hear of it is for the listener's filter. [`Store`] notes a step
//! while its flag is set, and whatever changed it has the steps told right after: they are in the order in which they
//! happened. Without a watcher it costs the store one look at the flag.
//!
//! [`Store`]: super::store::Store

#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::frame::PeerId;

use super::super::{ConnId, DeadReason, Descriptor, Effects, Router};

/// What happened to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueStepKind {
    Produced,
    Delivered,
    Acked,
    /// Held for longer than the queue's own time-out.
    Extended,
    /// Given back by who had it.
    Nacked,
    /// Given back because nobody settled it in time.
    Expired,
    /// Given back because its consumer's connection closed, or it stopped consuming.
    Returned,
    /// Delayed when it was given back, and may be delivered again.
    Due,
    Dead(DeadReason),
    /// A dead letter lives again.
    Requeued,
    /// A dead letter is gone for good.
    Dropped,
}

impl QueueStepKind {
    /// The word for people and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Produced => "produced",
            Self::Delivered => "delivered",
            Self::Acked => "acked",
            Self::Extended => "extended",
            Self::Nacked => "nacked",
            Self::Expired => "expired",
            Self::Returned => "returned",
            Self::Due => "due",
            Self::Dead(_) => "dead",
            Self::Requeued => "requeued",
            Self::Dropped => "dropped",
        }
    }

    /// Why a dead letter is one.
    pub fn why(self) -> Option<&'static str> {
        match self {
            Self::Dead(reason) => Some(reason.as_str()),
            _ => None,
        }
    }
}

/// One step of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueStep {
    pub uid: u32,
    pub queue: Arc<str>,
    /// The message's id in its queue.
    pub message: u64,
    pub kind: QueueStepKind,
    /// Who put it in, has it or had it; `None`: nobody who is still there.
    pub by: Option<(PeerId, Arc<str>)>,
    /// How often it was delivered until then.
    pub deliveries: u16,
    /// Of contents.
    pub bytes: u32,
    /// Nanoseconds since the Unix epoch.
    pub at_ns: u64,
}

/// A step as the store knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub message: u64,
    pub kind: QueueStepKind,
    pub by: By,
    pub deliveries: u16,
    pub bytes: u32,
}

/// Whose step it was.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    /// The short id of who produced it.
    Producer(u32),
    Consumer(ConnId),
    Nobody,
}

impl<F: Descriptor> Router<F> {
    /// From now on, until as many calls of [`Self::unwatch_queue`], the steps of all queues of this name are in
    /// [`Effects::steps`].
    pub fn watch_queue(&mut self, name: &str) {
        *self.watched.entry(name.to_owned()).or_default() += 1;
        self.flag_watched(name, true);
    }

    /// Takes back one [`Self::watch_queue`].
    pub fn unwatch_queue(&mut self, name: &str) {
        let Some(count) = self.watched.get_mut(name) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            self.watched.remove(name);
            self.flag_watched(name, false);
        }
    }

    fn flag_watched(&mut self, name: &str, watched: bool) {
        let queues = self.queues.values_mut();
        for queue in queues.filter(|queue| &*queue.name == name) {
            queue.store.watch(watched);
        }
    }

    /// What the queue's messages went through since the last time.
    pub(super) fn tell_steps(&mut self, number: u32, fx: &mut Effects<F>) {
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        let steps = std::mem::take(&mut queue.store.steps);
        let (uid, queue) = (queue.uid, queue.name.clone());
        for step in steps {
            let by = match step.by {
                By::Producer(short) => {
                    let mut peers = self.peers.iter();
                    let it = peers.find(|(_, peer)| peer.uid == uid && peer.short == short);
                    it.map(|(id, _)| *id)
                }
                By::Consumer(conn) => self.conns.get(&conn).map(|conn| conn.peer),
                By::Nobody => None,
            };
            fx.steps.push(QueueStep {
                uid,
                queue: queue.clone(),
                message: step.message,
                kind: step.kind,
                by: by.map(|id| (id, self.name_of(id))),
                deliveries: step.deliveries,
                bytes: step.bytes,
                at_ns: self.clock.wall_ns,
            });
        }
    }
}
