//! What of a queue waits for the durable store, and what comes out of it after a restart.
//!
//! A batch takes its room in the queue before it is handed to the store, and its place once the store has given it
//! offsets; its producer is answered then. Acknowledgements are answered when the store has them. What the store
//! refuses is refused to whoever asked.

#![forbid(unsafe_code)]

use super::super::dispatch::Refusal;
use super::super::persist::{
    Batch, OffsetRange, Persist, PersistError, Restored, Settled, StreamId, StreamSpec,
};
use super::super::tickets::Ticket;
use super::super::{ConnId, Descriptor, Effects, Now, Router};
use super::slab::Arriving;
use super::{Parked, Short};
use crate::message::{Full, Messages, QueueSpec, Status};

/// A batch that is being stored.
#[derive(Debug)]
pub(in super::super) struct Storing {
    queue: u32,
    pub(in super::super) conn: ConnId,
    correlation: u32,
    batch: Batch,
    count: u32,
    bytes: u64,
}

impl<F: Descriptor> Router<F> {
    pub(super) fn store_declaration(
        &mut self,
        number: u32,
        conn: ConnId,
        correlation: u32,
        fx: &mut Effects<F>,
    ) {
        let queue = &self.queues[&number];
        let (stream, spec) = (queue.stream(), StreamSpec::Queue(*queue.store.spec()));
        let ticket = self.ticket(Ticket::Queue {
            queue: number,
            conn,
            correlation,
        });
        fx.persist.push(Persist::Declare {
            stream,
            ticket,
            spec,
        });
    }

    /// The store knows the queue, or not.
    pub(in super::super) fn queue_declared(
        &mut self,
        number: u32,
        conn: ConnId,
        correlation: u32,
        outcome: Result<u64, PersistError>,
        fx: &mut Effects<F>,
    ) {
        match outcome {
            Ok(_) => self.answer(conn, correlation, Status::OK, "", &number.to_le_bytes(), fx),
            Err(error) => {
                let text = format!("the queue was not stored: {error}");
                self.answer(conn, correlation, Status::NOT_STORED, &text, &[], fx);
                self.remove_queue(number, &text, fx);
            }
        }
    }

    pub(super) fn drop_stream(&mut self, stream: StreamId, fx: &mut Effects<F>) {
        fx.persist.push(Persist::Drop { stream });
    }

    /// Hands a batch to the store, all of it or none.
    pub(super) fn produce_durable(
        &mut self,
        id: ConnId,
        parked: Parked,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<(), Short> {
        let number = parked.queue;
        let messages = Messages::parse(&parked.payload[parked.at..]).expect("checked when it came");
        let (count, bytes) = (messages.len() as u32, messages.data_bytes());
        let queue = self.queues.get_mut(&number).expect("it is open");
        if !queue.store.make_room(count, bytes) {
            let (full, could) = (queue.store.spec().full, queue.store.could_fit(count, bytes));
            if full == Full::Block && could {
                self.park(id, parked);
                return Ok(());
            }
            return Err(Short {
                refusal: self.queue_full(number),
                taken: 0,
            });
        }
        queue.store.reserve(count, bytes);
        let stream = queue.stream();
        let peer = self.conns[&id].peer;
        let short = self.peers[&peer].short;
        let batch = Batch::queue(peer, short, now.wall_ns, parked.payload.clone(), parked.at);
        let ticket = self.ticket(Ticket::Append(Storing {
            queue: number,
            conn: id,
            correlation: parked.correlation,
            batch: batch.clone(),
            count,
            bytes,
        }));
        // What had to make room is settled before what takes it.
        self.after(number, now, fx);
        fx.persist.push(Persist::Append {
            stream,
            ticket,
            batch,
        });
        Ok(())
    }

    /// A batch is in the store, or not.
    pub(in super::super) fn queue_stored(
        &mut self,
        storing: Storing,
        outcome: Result<u64, PersistError>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Storing {
            queue: number,
            conn,
            correlation,
            batch,
            count,
            bytes,
        } = storing;
        let stored = match self.queues.get_mut(&number) {
            None => Err(Refusal::new(
                Status::NO_SUCH_QUEUE,
                "the queue was dropped while the messages were stored",
            )),
            Some(queue) => {
                queue.store.unreserve(count, bytes);
                if let Ok(first) = outcome {
                    for (offset, (priority, data)) in (first..).zip(batch.iter()) {
                        queue.store.push_as(Arriving {
                            id: offset,
                            sent_ns: batch.at_ns,
                            from: batch.short,
                            priority,
                            restored: false,
                            data,
                        });
                    }
                    queue.store.count_produced(count, bytes);
                }
                outcome.map_err(|error| Refusal::new(Status::NOT_STORED, error.to_string()))
            }
        };
        match stored {
            Ok(first) => {
                self.count_more_sent(batch.from, u64::from(count - 1));
                self.note_produced(batch.from, number, bytes, count, now, fx);
                self.answer_produced(conn, correlation, count, first, fx);
            }
            Err(refusal) => self.refuse_produce(conn, correlation, number, refusal, 0, now, fx),
        }
        self.after(number, now, fx);
    }

    /// Tells the store what became of messages. `true`: the reply goes out when it has that.
    pub(super) fn store_settled(
        &mut self,
        number: u32,
        reply: Option<(ConnId, u32, [u8; 4])>,
        fx: &mut Effects<F>,
    ) -> bool {
        let Some(queue) = self.queues.get_mut(&number) else {
            return false;
        };
        let settling = &mut queue.store.settling;
        queue.died.extend_from_slice(&settling.dead);
        if !queue.store.spec().durable {
            queue.store.settling.clear();
            return false;
        }
        let stream = queue.stream();
        let settling = std::mem::take(&mut queue.store.settling);
        let mut deferred = false;
        for (reason, ids) in settling.dead_by_reason() {
            fx.persist.push(Persist::Settle {
                stream: stream.clone(),
                ticket: 0,
                offsets: ranges(ids),
                how: Settled::Dead(reason),
            });
        }
        if !settling.requeued.is_empty() {
            fx.persist.push(Persist::Settle {
                stream: stream.clone(),
                ticket: 0,
                offsets: ranges(settling.requeued),
                how: Settled::Requeued,
            });
        }
        if !settling.gone.is_empty() {
            let ticket = match reply {
                Some((conn, correlation, result)) => {
                    deferred = true;
                    self.ticket(Ticket::Settle {
                        conn,
                        correlation,
                        result,
                    })
                }
                None => 0,
            };
            fx.persist.push(Persist::Settle {
                stream,
                ticket,
                offsets: ranges(settling.gone),
                how: Settled::Gone,
            });
        }
        deferred
    }

    /// A queue as the store has it. Before anybody connects.
    pub(in super::super) fn restore_queue(
        &mut self,
        stream: &StreamId,
        spec: QueueSpec,
        records: Vec<Restored>,
    ) {
        let number = match self.spaces.get(&stream.uid) {
            Some(space) if space.queues.contains_key(&stream.name) => return,
            _ => self.insert_queue(stream.uid, &stream.name, spec),
        };
        let queue = self.queues.get_mut(&number).expect("just made");
        for record in &records {
            let arriving = Arriving {
                id: record.offset,
                sent_ns: record.at_ns,
                from: record.short,
                priority: record.priority.min(3),
                restored: true,
                data: &record.data,
            };
            match record.dead {
                None => queue.store.push_as(arriving),
                Some(reason) => queue.store.push_dead(arriving, reason),
            }
        }
        let bytes = queue.store.live().1 + queue.store.dead().1;
        queue.charged = bytes;
        self.space(stream.uid).queue_bytes += bytes;
    }
}

/// Numbers in any order, as ranges.
fn ranges(mut ids: Vec<u64>) -> Vec<OffsetRange> {
    ids.sort_unstable();
    let mut ranges: Vec<OffsetRange> = Vec::new();
    for id in ids {
        match ranges.last_mut() {
            Some(last) if last.first + last.count == id => last.count += 1,
            _ => ranges.push(OffsetRange {
                first: id,
                count: 1,
            }),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_become_ranges() {
        let range = |first, count| OffsetRange { first, count };
        assert_eq!(
            ranges(vec![3, 1, 2, 9, 7, 8, 20]),
            [range(1, 3), range(7, 3), range(20, 1)]
        );
        assert!(ranges(Vec::new()).is_empty());
    }
}
