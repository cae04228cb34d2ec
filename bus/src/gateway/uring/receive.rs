//! Bytes come: multishot receive into buffers of the shared ring, and one buffer at a time from whoever sends more than
//! its share.

use io_uring::types::Fixed;
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;

use super::super::orders::Orders;
use super::super::transport::{ConnKey, Ended, Event, Handler};
use super::{Op, Uring, outcome, ring};

/// One receive buffer.
pub(super) const BUFFER: usize = 4096;
impl Uring {
    /// Arms or stops receiving, as the connection wants it.
    pub(super) fn steer(&mut self, key: ConnKey) {
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        let wanted = conn.reading && !conn.ended;
        let entry = if wanted && !conn.receiving {
            conn.receiving = true;
            let fd = Fixed(key.slot);
            conn.polled = conn.quiet;
            if !conn.polled {
                self.rounds.begin();
            }
            let entry = if conn.polled {
                opcode::PollAdd::new(fd, libc::POLLIN as u32).build()
            } else if conn.heavy > 0 {
                opcode::Recv::new(fd, std::ptr::null_mut(), BUFFER as u32)
                    .buf_group(ring::GROUP)
                    .build()
                    .flags(squeue::Flags::BUFFER_SELECT)
            } else {
                opcode::RecvMulti::new(fd, ring::GROUP).build()
            };
            entry.user_data(Op::of(key, Op::Recv))
        } else if !wanted && conn.receiving && !conn.stopping {
            conn.stopping = true;
            opcode::AsyncCancel::new(Op::of(key, Op::Recv))
                .build()
                .user_data(Op::of(key, Op::Cancel))
        } else {
            return;
        };
        conn.in_flight += 1;
        self.push(&[entry]);
    }

    pub(super) fn received(
        &mut self,
        key: ConnKey,
        result: i32,
        flags: u32,
        handler: &mut dyn Handler,
    ) {
        let more = cqueue::more(flags);
        let (turn, budget) = (self.counters.turns, self.limits.read_budget);
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        if !more {
            conn.receiving = false;
            conn.stopping = false;
        }
        let live = !conn.ended;
        if std::mem::take(&mut conn.polled) {
            // It speaks, or there is something else that a receive will tell.
            conn.quiet = outcome(result) == Err(Errno::CANCELED);
            return self.steer(key);
        }
        conn.quiet &= result <= 0;
        let count = usize::try_from(result).unwrap_or(0);
        conn.share(turn, count, budget);
        if conn.heavy > 0 && more && !conn.stopping && live {
            conn.stopping = true;
            conn.in_flight += 1;
            let stop = opcode::AsyncCancel::new(Op::of(key, Op::Recv))
                .build()
                .user_data(Op::of(key, Op::Cancel));
            self.push(&[stop]);
        }
        if let Some(id) = cqueue::buffer_select(flags) {
            if live && result > 0 {
                self.counters.received_bytes += result as u64;
                // Commands wait until the buffer is no longer looked at.
                let mut commands = std::mem::take(&mut self.commands);
                let bytes = self.shared.buffers.bytes(id, result as usize);
                handler.event(Event::Received { conn: key, bytes }, &mut commands);
                self.commands = commands;
            }
            self.shared.buffers.give(id);
            self.obey(handler);
        }
        match outcome(result) {
            _ if !live => {}
            Ok(0) => return self.finish(key, handler),
            Ok(_) | Err(Errno::CANCELED | Errno::NOBUFS | Errno::INTR | Errno::AGAIN) => {}
            Err(errno) => return self.end(key, Ended::from_errno(errno), handler),
        }
        if !more {
            self.steer(key);
        }
    }

    /// The peer has said all that it will say. That it has gone too is learned by sending: a poll on a ring always waits
    /// for `POLLRDHUP` as well, and so can't wait for the other half.
    fn finish(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        if let Some(conn) = self.shared.conns.get_mut(key) {
            conn.finished = true;
            conn.reading = false;
        }
        self.tell(Event::Finished { conn: key }, handler);
    }
}
