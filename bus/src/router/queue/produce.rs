//! What producers say: batches that are taken, wait for room or are refused.
//!
//! A batch is taken message by message as far as there is room; the rest is refused, or waits with its connection, from which
//! nothing more is read until then. Fails towards the producer, with a status, a text and how many were taken.

#![forbid(unsafe_code)]

use crate::frame::{Frame, PeerId};
use crate::message::{Full, Messages, Status};

use super::super::dispatch::Refusal;
use super::super::{ConnId, Descriptor, Effects, Now, Router};
use super::{DELIVERY_ROOM, PRODUCE_HEAD, Parked, Short, Wish};

impl<F: Descriptor> Router<F> {
    /// Takes a batch, as far as there is room.
    #[allow(clippy::too_many_arguments, reason = "the fields of one command")]
    pub(in super::super) fn produce(
        &mut self,
        id: ConnId,
        frame: &Frame,
        number: u32,
        messages: Messages<'_>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let correlation = frame.correlation();
        let outcome = self
            .check_produce(id, number, messages)
            .map_err(|refusal| Short { refusal, taken: 0 });
        let outcome = outcome.and_then(|()| {
            let parked = Parked {
                queue: number,
                correlation,
                payload: frame.payload.clone(),
                at: PRODUCE_HEAD,
                taken: 0,
                first: 0,
            };
            if self.queues[&number].store.spec().durable {
                self.produce_durable(id, parked, now, fx)
            } else {
                self.produce_here(id, parked, now, fx)
            }
        });
        if let Err(Short { refusal, taken }) = outcome {
            self.refuse_produce(id, correlation, number, refusal, taken, now, fx);
        }
    }

    fn check_produce(
        &self,
        id: ConnId,
        number: u32,
        messages: Messages<'_>,
    ) -> Result<(), Refusal> {
        self.opened_to(Wish::Produce, id, number)?;
        let limit = (self.limits.max_payload - DELIVERY_ROOM) as usize;
        if let Some(large) = messages.iter().find(|message| message.data.len() > limit) {
            let text = format!(
                "a message of {} bytes is over a queue's limit of {limit}",
                large.data.len()
            );
            return Err(Refusal::new(Status::TOO_LARGE, text));
        }
        if messages.is_empty() {
            return Err(Refusal::new(
                Status::MALFORMED,
                "a batch has at least one message",
            ));
        }
        if self.conns[&id].parked.is_some() {
            let text = "what was produced before on this connection waits for room still";
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        let uid = self.queues[&number].uid;
        let limit = self.limits.queue_bytes;
        if self
            .spaces
            .get(&uid)
            .is_some_and(|space| space.queue_bytes >= limit)
        {
            let text = format!("the queues of this user hold {limit} bytes, the most allowed");
            return Err(Refusal::new(Status::QUEUE_FULL, text));
        }
        Ok(())
    }

    /// Puts what there is room for into the queue. The rest waits, or is refused.
    fn produce_here(
        &mut self,
        id: ConnId,
        mut parked: Parked,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<(), Short> {
        let peer = self.conns[&id].peer;
        let from = self.peers[&peer].short;
        let number = parked.queue;
        let queue = self.queues.get_mut(&number).expect("it is open");
        let rest = Messages::parse(&parked.payload[parked.at..]).expect("checked when it came");
        let (len, bytes) = (rest.len() as u32, rest.data_bytes());
        let mut iter = rest.iter();
        let mut short = None;
        let mut put = 0;
        if queue.store.fits(len, bytes) {
            let first = queue.store.next_id();
            for message in rest {
                queue
                    .store
                    .push(now.wall_ns, from, message.priority, message.data);
            }
            put = len;
            if parked.taken == 0 {
                parked.first = first;
            }
        } else {
            loop {
                let before = iter.as_bytes().len();
                let Some(message) = iter.next() else { break };
                if !queue.store.make_room(1, message.data.len() as u64) {
                    short = Some((parked.payload.len() - before, message.data.len() as u64));
                    break;
                }
                let message_id =
                    queue
                        .store
                        .push(now.wall_ns, from, message.priority, message.data);
                if parked.taken + put == 0 {
                    parked.first = message_id;
                }
                put += 1;
            }
        }
        parked.taken += put;
        let (full, could) = (
            queue.store.spec().full,
            short.is_none_or(|(_, bytes)| queue.store.could_fit(1, bytes)),
        );
        if put > 0 {
            // One frame is one entry; the peer is told of each message.
            self.count_more_sent(peer, u64::from(put - 1));
            self.note_produced(peer, number, bytes, put, now, fx);
        }
        self.after(number, now, fx);
        match short {
            None => {
                self.answer_produced(id, parked.correlation, parked.taken, parked.first, fx);
                Ok(())
            }
            Some((at, _)) if full == Full::Block && could => {
                parked.at = at;
                self.park(id, parked);
                Ok(())
            }
            Some(_) => Err(Short {
                refusal: self.queue_full(number),
                taken: parked.taken,
            }),
        }
    }

    pub(super) fn queue_full(&self, number: u32) -> Refusal {
        let queue = &self.queues[&number];
        let (messages, bytes) = queue.store.live();
        let spec = queue.store.spec();
        let text = format!(
            "queue {} is full: {messages} of {} messages, {bytes} of {} bytes; try again later",
            queue.name, spec.max_messages, spec.max_bytes
        );
        Refusal::new(Status::QUEUE_FULL, text)
    }

    /// Nothing more is read from that connection until its batch has found room.
    pub(super) fn park(&mut self, id: ConnId, parked: Parked) {
        let queue = self.queues.get_mut(&parked.queue).expect("it is open");
        if !queue.paused.contains(&id) {
            queue.paused.push(id);
        }
        self.conns.get_mut(&id).expect("it produced").parked = Some(parked);
    }

    pub(super) fn answer_produced(
        &mut self,
        id: ConnId,
        correlation: u32,
        taken: u32,
        first: u64,
        fx: &mut Effects<F>,
    ) {
        if correlation != 0 {
            let mut result = [0; 16];
            result[..4].copy_from_slice(&taken.to_le_bytes());
            result[8..].copy_from_slice(&first.to_le_bytes());
            self.answer(id, correlation, Status::OK, "", &result, fx);
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one refusal")]
    pub(super) fn refuse_produce(
        &mut self,
        id: ConnId,
        correlation: u32,
        number: u32,
        refusal: Refusal,
        taken: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Refusal { status, text } = refusal;
        if correlation == 0 {
            self.notice(id, number, status, &text, fx);
        } else {
            self.answer(id, correlation, status, &text, &taken.to_le_bytes(), fx);
        }
        let Some(peer) = self.conns.get(&id).map(|conn| conn.peer) else {
            return;
        };
        let topic = self.queues.get_mut(&number).map(|queue| {
            queue.store.counters.refused += 1;
            queue.topic.clone()
        });
        let what = self.words.get("");
        self.note(peer, None, topic, "produce", what, 0, 0, status, 0, now, fx);
    }

    pub(super) fn note_produced(
        &mut self,
        peer: PeerId,
        number: u32,
        bytes: u64,
        count: u32,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let topic = Some(self.queues[&number].topic.clone());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let what = self.words.get("");
        self.note(
            peer,
            None,
            topic,
            "produce",
            what,
            bytes,
            0,
            Status::OK,
            count,
            now,
            fx,
        );
    }

    pub(super) fn count_more_sent(&mut self, peer: PeerId, messages: u64) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.counters.sent += messages;
        }
    }

    /// Takes the batches that waited for room.
    pub(super) fn resume_producers(&mut self, number: u32, now: Now, fx: &mut Effects<F>) {
        let Some(queue) = self.queues.get_mut(&number) else {
            return;
        };
        for id in std::mem::take(&mut queue.paused) {
            let parked = self.conns.get_mut(&id).and_then(|conn| conn.parked.take());
            let Some(parked) = parked else { continue };
            let correlation = parked.correlation;
            let durable = self.queues[&number].store.spec().durable;
            let outcome = if durable {
                self.produce_durable(id, parked, now, fx)
            } else {
                self.produce_here(id, parked, now, fx)
            };
            if let Err(Short { refusal, taken }) = outcome {
                self.refuse_produce(id, correlation, number, refusal, taken, now, fx);
            }
            if self
                .conns
                .get(&id)
                .is_some_and(|conn| conn.parked.is_none())
            {
                fx.resume.push(id);
            }
        }
    }
}
