//! What waits for the durable store: who is to be told what when its answer comes.
//!
//! A ticket is answered once. The store may answer in any order between streams; a stream's own order is kept by
//! whoever carries the effects out. A ticket whose connection has gone is answered to nobody, and does all else.

#![forbid(unsafe_code)]

use crate::message::{Replayed, Status, StreamKind};

use super::events::Ack;
use super::persist::{Persist, PersistError, Restored, StreamId, StreamSpec};
use super::queue::Storing;
use super::topics::StoringEvent;
use super::{ConnId, Descriptor, Effects, Now, Router};

#[derive(Debug)]
pub(super) enum Ticket {
    /// A durable queue was declared.
    Queue {
        queue: u32,
        conn: ConnId,
        correlation: u32,
    },
    /// A durable topic was declared, or is one no more.
    Topic {
        conn: ConnId,
        correlation: u32,
    },
    Append(Storing),
    Event(StoringEvent),
    Settle {
        conn: ConnId,
        correlation: u32,
        result: [u8; 4],
    },
    Read {
        conn: ConnId,
        correlation: u32,
    },
}

impl Ticket {
    /// Who is answered when it is; `None`: nobody.
    pub fn conn(&self) -> Option<ConnId> {
        match self {
            Self::Queue { conn, .. }
            | Self::Topic { conn, .. }
            | Self::Settle { conn, .. }
            | Self::Read { conn, .. } => Some(*conn),
            Self::Append(storing) => Some(storing.conn),
            Self::Event(storing) => (storing.how != Ack::No).then_some(storing.conn),
        }
    }
}

impl<F: Descriptor> Router<F> {
    pub(super) fn ticket(&mut self, ticket: Ticket) -> u64 {
        let number = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(number, ticket);
        number
    }

    /// Tickets that have no answer yet, for tests and counters.
    pub fn open_tickets(&self) -> usize {
        self.tickets.len()
    }

    /// The store has done what [`Persist`] `ticket` asked, or not. A ticket that is not open is ignored.
    pub fn persisted(
        &mut self,
        ticket: u64,
        outcome: Result<u64, PersistError>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        self.clock(now);
        match self.tickets.remove(&ticket) {
            None => {}
            Some(Ticket::Queue {
                queue,
                conn,
                correlation,
            }) => self.queue_declared(queue, conn, correlation, outcome, fx),
            Some(Ticket::Append(storing)) => self.queue_stored(storing, outcome, now, fx),
            Some(Ticket::Event(storing)) => self.event_stored(storing, outcome, now, fx),
            Some(Ticket::Topic { conn, correlation }) => {
                self.answer_stored(conn, correlation, outcome.map(|_| [0; 4]), fx);
            }
            Some(Ticket::Settle {
                conn,
                correlation,
                result,
            }) => self.answer_stored(conn, correlation, outcome.map(|_| result), fx),
            Some(Ticket::Read { conn, correlation }) => {
                let error = outcome.err().unwrap_or(PersistError::NoStore);
                self.answer_stored(conn, correlation, Err(error), fx);
            }
        }
    }

    fn answer_stored(
        &mut self,
        conn: ConnId,
        correlation: u32,
        outcome: Result<[u8; 4], PersistError>,
        fx: &mut Effects<F>,
    ) {
        match outcome {
            Ok(result) => self.answer(conn, correlation, Status::OK, "", &result, fx),
            Err(error) => {
                let text = error.to_string();
                self.answer(conn, correlation, Status::NOT_STORED, &text, &[], fx);
            }
        }
    }

    /// What the store has read for `ticket`: the offset to go on from, and the records.
    pub fn records(
        &mut self,
        ticket: u64,
        outcome: Result<(u64, Vec<Replayed>), PersistError>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        self.clock(now);
        let Some(Ticket::Read { conn, correlation }) = self.tickets.remove(&ticket) else {
            return;
        };
        let (next, list) = match outcome {
            Ok(read) => read,
            Err(error) => {
                self.answer_stored(conn, correlation, Err(error), fx);
                return;
            }
        };
        // Room for the response around it; what does not fit is asked for again from the offset that is given.
        let room = self.limits.max_payload as usize - 64;
        let mut result = vec![0; 8];
        let mut go_on = next;
        for record in list {
            if result.len() + Replayed::HEADER + record.data.len() > room && result.len() > 8 {
                go_on = record.offset;
                break;
            }
            record.encode_into(&mut result);
        }
        result[..8].copy_from_slice(&go_on.to_le_bytes());
        self.answer(conn, correlation, Status::OK, "", &result, fx);
    }

    /// A stream as the store has it, with what was not settled when the last daemon ended: of a queue all of that, of
    /// a topic the last messages, as many as it retains. Before anybody connects; a stream that is there is left alone.
    pub fn restore(&mut self, stream: StreamId, spec: StreamSpec, records: Vec<Restored>) {
        match spec {
            StreamSpec::Queue(spec) => self.restore_queue(&stream, spec, records),
            StreamSpec::Topic(spec) => self.restore_topic(&stream, spec, records),
        }
    }

    /// Asks the store for what it has of a stream.
    pub(super) fn read_stream(
        &mut self,
        conn: ConnId,
        correlation: u32,
        (uid, kind, name): (u32, StreamKind, &str),
        (from, max): (crate::message::ReplayFrom, u32),
        fx: &mut Effects<F>,
    ) {
        let ticket = self.ticket(Ticket::Read { conn, correlation });
        fx.persist.push(Persist::Read {
            stream: StreamId {
                uid,
                kind,
                name: name.into(),
            },
            ticket,
            from,
            max: max.clamp(1, crate::message::BATCH_MAX as u32),
            max_bytes: self.limits.max_payload / 2,
        });
    }
}
