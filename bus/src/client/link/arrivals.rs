//! What arrives, frame by frame: answers, requests, events, and what the bus says of channels and queues, each to whoever
//! waits for it. Runs on the thread that reads: the link's own, or with a route that of whoever waits there. Never blocks.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::super::inbox::{Inbox, News, TheirBell};
use super::super::route::RouteOffer;
use super::super::serve::{Asked, Subscriber};
use super::{Link, PIPELINED, Registered, pipeline_of};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Delivery, Event, Response, Shape, Status};
use crate::topic::matches;

/// Endings held of channels that were offered and not taken yet.
const ENDINGS_HELD: usize = 512;

/// A frame and what came with it.
#[derive(Debug)]
pub(in crate::client) struct Arrived {
    pub frame: Frame,
    pub fd: Option<OwnedFd>,
}

/// A lane that another agent offers.
#[derive(Debug)]
pub(in crate::client) struct OfferedLane {
    pub from: PeerId,
    pub lane: u32,
    pub shape: Shape,
    pub memory: OwnedFd,
}

/// A log that a follow covers.
#[derive(Debug)]
pub(in crate::client) struct OfferedLog {
    pub from: PeerId,
    pub channel: u32,
    pub topic: String,
    pub memory: OwnedFd,
}

impl Link {
    pub fn arrived(&self, arrived: Arrived) {
        let frame = &arrived.frame;
        let bits = frame.kind();
        if bits & kind::RESPONSE != 0 && frame.correlation() & PIPELINED != 0 {
            self.piped(frame.correlation(), arrived.frame);
        } else if bits & kind::RESPONSE != 0 {
            let mut state = self.lock();
            if let Some(expected) = state.expected.remove(&frame.correlation()) {
                state.meet(expected, frame);
            }
            if let Some(waiting) = state.calls.remove(&frame.correlation()) {
                // The caller may have given up in this moment.
                drop(waiting.send(arrived));
            }
        } else if bits == kind::REQUEST {
            self.lock().in_hand.insert(frame.correlation(), false);
            self.requests.push(Asked {
                frame: arrived.frame,
                by: None,
            });
        } else if bits & kind::EVENT != 0 {
            self.event(arrived.frame);
        } else if bits == kind::COMMAND {
            if !self.delivered(&arrived.frame) {
                self.command(arrived);
            }
        } else if bits == kind::ERROR && frame.correlation() != 0 {
            self.queue_notice(&arrived.frame);
        } else if bits == kind::ERROR && frame.correlation() == 0 {
            // Said by the bus before it closes a connection.
            if let Ok(notice) = Response::parse(&frame.payload) {
                self.lock()
                    .closed
                    .get_or_insert_with(|| notice.error.to_owned());
            }
        }
    }

    /// What a pipeline hears about the frames with this correlation id.
    fn piped(&self, correlation: u32, frame: Frame) {
        if let Some(mailbox) = &self.lock().pipelines[pipeline_of(correlation)] {
            mailbox.push(frame);
        }
    }

    /// Deliveries of a queue, if that is what the command is.
    fn delivered(&self, frame: &Frame) -> bool {
        let Some((head, _)) = frame.payload.split_first_chunk::<8>() else {
            return false;
        };
        let [27, 0, 0, 0, queue @ ..] = *head else {
            return false;
        };
        // What nobody takes any more goes back when the bus hears that.
        if let Some(mailbox) = self.lock().consumers.get(&u32::from_le_bytes(queue)) {
            mailbox.push(frame.clone());
        }
        true
    }

    /// A notice under a queue's number: the consumer has ended, if it says so.
    fn queue_notice(&self, frame: &Frame) {
        let ended = Response::parse(&frame.payload)
            .is_ok_and(|notice| matches!(notice.status, Status::NO_SUCH_QUEUE | Status::DENIED));
        if ended && let Some(mailbox) = self.lock().consumers.remove(&frame.correlation()) {
            mailbox.close();
        }
    }

    fn event(&self, frame: Frame) {
        let Ok(event) = Event::parse(&frame.payload) else {
            return;
        };
        let state = self.lock();
        let covers = |subscriber: &&Subscriber| matches(&subscriber.pattern, event.topic);
        let mut subscribers = state.subscribers.iter().filter(covers).peekable();
        while let Some(subscriber) = subscribers.next() {
            if subscribers.peek().is_none() {
                subscriber.mailbox.push(frame);
                return;
            }
            subscriber.mailbox.push(frame.clone());
        }
    }

    fn command(&self, arrived: Arrived) {
        match Control::parse(&arrived.frame.payload) {
            Ok(Control::Lost { count }) => {
                for subscriber in &self.lock().subscribers {
                    subscriber.mailbox.add_lost(count);
                }
            }
            Ok(Control::Acknowledged { first, .. }) if first & PIPELINED != 0 => {
                self.piped(first, arrived.frame);
            }
            Ok(Control::Cancel { request }) => {
                if let Some(withdrawn) = self.lock().in_hand.get_mut(&request) {
                    *withdrawn = true;
                }
            }
            Ok(Control::Unsubscribe {
                delivery: Delivery::Push,
                pattern,
            }) => {
                // The policy no longer allows it.
                for subscriber in &self.lock().subscribers {
                    if subscriber.pattern == pattern {
                        subscriber.mailbox.close();
                    }
                }
            }
            Ok(Control::ChannelClosed { channel, status }) => self.channel_closed(channel, status),
            Ok(Control::Direct(said)) => self.direct.heard(said),
            Ok(Control::SegmentDropped { channel, index }) => {
                self.news(channel, News::SegmentDropped { index });
            }
            Ok(control) => {
                // Without its descriptor it is no offer; the bus never sends one like that.
                if let Some(fd) = arrived.fd {
                    self.carried(control, fd);
                }
            }
            Err(_) => {}
        }
    }

    /// A message that comes with a descriptor.
    fn carried(&self, control: Control<'_>, fd: OwnedFd) {
        match control {
            Control::LaneOffered { from, lane, .. } if from.is_bus() => {
                let registered = Registered::new(self.route_closer.clone());
                // Known before what follows the offer arrives.
                self.register(lane, registered.clone());
                self.route_offers.push(RouteOffer {
                    lane,
                    memory: fd,
                    registered,
                });
            }
            Control::LaneOffered { from, lane, shape } => self.offers.push(OfferedLane {
                from,
                lane,
                shape,
                memory: fd,
            }),
            Control::LogOffered {
                from,
                follow,
                channel,
                topic,
            } => {
                let mailbox = self.lock().follows.get(&follow).cloned();
                if let Some(mailbox) = mailbox {
                    mailbox.push(OfferedLog {
                        from,
                        channel,
                        topic: topic.to_owned(),
                        memory: fd,
                    });
                }
            }
            Control::LogFollower {
                from,
                log,
                channel,
                reliable,
            } => {
                self.lock().readers.insert(channel, log);
                let news = News::Reader {
                    channel,
                    from,
                    reliable,
                    cursor: fd,
                };
                self.news(log, news);
            }
            Control::Segment {
                channel,
                index,
                sealed,
            } => {
                let news = News::Segment {
                    index,
                    sealed,
                    memory: fd,
                };
                self.news(channel, news);
            }
            Control::Bell { channel } => {
                let log = self.lock().readers.get(&channel).copied();
                if let Some(inbox) = self.inbox_of(log.unwrap_or(channel)) {
                    inbox.push_bell(TheirBell { channel, bell: fd });
                }
            }
            _ => {}
        }
    }

    fn news(&self, channel: u32, news: News) {
        if let Some(inbox) = self.inbox_of(channel) {
            inbox.push(news);
        }
    }

    fn inbox_of(&self, channel: u32) -> Option<Arc<Inbox>> {
        let state = self.lock();
        state.channels.get(&channel).map(|end| end.inbox.clone())
    }

    fn channel_closed(&self, channel: u32, status: Status) {
        let mut state = self.lock();
        if let Some(end) = state.channels.remove(&channel) {
            end.close(status);
        } else if let Some(log) = state.readers.remove(&channel) {
            drop(state);
            self.news(log, News::ReaderGone { channel });
        } else if let Some(mailbox) = state.follows.remove(&channel) {
            mailbox.close();
        } else {
            state.ended_early.truncate(ENDINGS_HELD);
            state.ended_early.push_front((channel, status));
        }
    }
}
