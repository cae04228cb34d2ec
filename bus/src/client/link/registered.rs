//! What is known of a link's numbers: for whom answers, deliveries, events and the messages of a channel are, from the moment
//! somebody wants them until they are over.

use std::sync::Arc;

use super::super::inbox::Inbox;
use super::super::mailbox::Mailbox;
use super::super::serve::Subscriber;
use super::{Link, LinkState, OfferedLog, PIPELINE_COUNT, PIPELINED, pipeline_of};
use crate::frame::Frame;
use crate::message::{Response, Status};
use crate::shm::park::Closer;

/// One end of a channel, as the reading thread knows it.
#[derive(Clone, Debug)]
pub(in crate::client) struct Registered {
    pub closer: Closer,
    pub inbox: Arc<Inbox>,
}

impl Registered {
    pub fn new(closer: Closer) -> Self {
        Self {
            closer,
            inbox: Arc::default(),
        }
    }

    pub(super) fn close(&self, status: Status) {
        self.closer.close(status);
        self.inbox.close();
    }
}

/// What the number in an answer will stand for. The reading thread makes it known before it reads on, so that
/// nothing that follows the answer is missed.
#[derive(Clone, Debug)]
pub(in crate::client) enum Expected {
    Channel(Registered),
    Follow(Arc<Mailbox<OfferedLog>>),
}

impl Link {
    /// Makes an offered channel known, before the offer is answered. It ends when the bus says so, or with the
    /// connection.
    pub fn register(&self, channel: u32, end: Registered) {
        let mut state = self.lock();
        if state.closed.is_some() {
            end.close(Status::REPLACED);
        } else if let Some(at) = state
            .ended_early
            .iter()
            .position(|(ended, _)| *ended == channel)
        {
            if let Some((_, status)) = state.ended_early.remove(at) {
                end.close(status);
            }
        } else {
            state.channels.insert(channel, end);
        }
    }

    pub fn forget_channel(&self, channel: u32) {
        let mut state = self.lock();
        state.channels.remove(&channel);
        state.readers.retain(|_, log| *log != channel);
    }

    pub fn forget_reader(&self, channel: u32) {
        self.lock().readers.remove(&channel);
    }

    pub fn forget_follow(&self, follow: u32) {
        self.lock().follows.remove(&follow);
    }

    /// Answers to a pipeline go there from now on; the bits of its correlation ids. `None`: there are too many.
    pub fn add_pipeline(&self, mailbox: &Arc<Mailbox<Frame>>) -> Option<u32> {
        let mut state = self.lock();
        if state.closed.is_some() {
            mailbox.close();
        }
        let free = state.pipelines.iter().position(Option::is_none)?;
        state.pipelines[free] = Some(mailbox.clone());
        Some(PIPELINED | (free as u32) << PIPELINE_COUNT.count_ones())
    }

    pub fn remove_pipeline(&self, bits: u32) {
        self.lock().pipelines[pipeline_of(bits)] = None;
    }

    /// Deliveries of that queue go there from now on.
    pub fn add_consumer(&self, queue: u32, mailbox: &Arc<Mailbox<Frame>>) {
        let mut state = self.lock();
        if state.closed.is_some() {
            mailbox.close();
        }
        state.consumers.insert(queue, mailbox.clone());
    }

    /// Whether they still went there.
    pub fn remove_consumer(&self, queue: u32, mailbox: &Arc<Mailbox<Frame>>) -> bool {
        let mut state = self.lock();
        let ours = state.consumers.get(&queue);
        if !ours.is_some_and(|held| Arc::ptr_eq(held, mailbox)) {
            return false;
        }
        state.consumers.remove(&queue);
        true
    }

    pub fn add_subscriber(&self, subscriber: Subscriber) {
        let mut state = self.lock();
        if state.closed.is_some() {
            subscriber.mailbox.close();
        }
        state.subscribers.push(subscriber);
    }

    /// Removes one subscriber; says whether another one has the same pattern.
    pub fn remove_subscriber(&self, mailbox: &Arc<Mailbox<Frame>>) -> bool {
        let mut state = self.lock();
        let Some(at) = state
            .subscribers
            .iter()
            .position(|s| Arc::ptr_eq(&s.mailbox, mailbox))
        else {
            return true;
        };
        let removed = state.subscribers.swap_remove(at);
        state
            .subscribers
            .iter()
            .any(|other| other.pattern == removed.pattern)
    }

    pub fn is_cancelled(&self, request: u32) -> bool {
        self.lock().in_hand.get(&request).copied().unwrap_or(false)
    }

    pub fn forget_request(&self, request: u32) {
        self.lock().in_hand.remove(&request);
    }
}

impl LinkState {
    /// An answer that brings a number has come.
    pub(super) fn meet(&mut self, expected: Expected, frame: &Frame) {
        let number = Response::parse(&frame.payload)
            .ok()
            .filter(|response| response.status == Status::OK)
            .and_then(|response| response.result.try_into().ok())
            .map(u32::from_le_bytes);
        match (number, expected) {
            (Some(number), Expected::Channel(end)) => {
                self.channels.insert(number, end);
            }
            (Some(number), Expected::Follow(mailbox)) => {
                self.follows.insert(number, mailbox);
            }
            (None, _) => {}
        }
    }
}
