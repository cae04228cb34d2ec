//! Bytes go: one send at a time per connection, without waiting first, then under a linked time-out; large ones to TCP
//! without a copy.

use std::time::Instant;

use io_uring::types::{Fixed, Timespec};
use io_uring::{cqueue, opcode, squeue};
use rustix::io::Errno;

use super::super::orders::Orders;
use super::super::transport::{ConnKey, Ended, Event, Handler};
use super::{Op, Uring, outcome};

/// From this size on TCP sends without copying. A quick run over loopback shows no gain (0.92 to 1.43 of a copy's
/// time): `bench gateway` has the rows (`send_zc`), a network card is where it could pay.
pub const ZERO_COPY_FROM: usize = 32 << 10;
const MSG: i32 = libc::MSG_NOSIGNAL;

impl Uring {
    /// Sends the front of the outbox, unless a send is under way.
    pub(super) fn flush(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        conn.dirty = false;
        if conn.sending || conn.ended {
            return;
        }
        if conn.outbox.waiting() == 0 {
            if conn.outbox.is_draining() {
                self.end(key, Ended::Asked, handler);
            }
            return;
        }
        let bytes = conn.outbox.hold();
        let (at, len) = (bytes.as_ptr(), bytes.len().min(1 << 30));
        let fd = Fixed(key.slot);
        let data = Op::of(key, Op::Send);
        conn.sending = true;
        if conn.blocked {
            let send = opcode::Send::new(fd, at, len as u32)
                .flags(MSG)
                .build()
                .flags(squeue::Flags::IO_LINK)
                .user_data(data);
            let stall: *const Timespec = &raw const *self.stall;
            let timeout = opcode::LinkTimeout::new(stall)
                .build()
                .user_data(Op::of(key, Op::Stall));
            conn.in_flight += 2;
            return self.push(&[send, timeout]);
        }
        conn.in_flight += 1;
        let flags = MSG | libc::MSG_DONTWAIT;
        let zero_copy =
            len >= self.zero_copy_from && !self.listeners[usize::from(conn.listener)].unix;
        let entry = if zero_copy {
            opcode::SendZc::new(fd, at, len as u32).flags(flags).build()
        } else {
            opcode::Send::new(fd, at, len as u32).flags(flags).build()
        };
        self.push(&[entry.user_data(data)]);
    }

    pub(super) fn sent(
        &mut self,
        key: ConnKey,
        result: i32,
        flags: u32,
        handler: &mut dyn Handler,
    ) {
        let stall = self.limits.stall;
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        if cqueue::more(flags) {
            // The result of a send_zc; the kernel still reads from the buffer.
            let by = Instant::now() + stall;
            conn.zero_copied = result;
            conn.notified_by = Some(by);
            self.unnotified.insert((by, key));
            return;
        }
        let result = match conn.notified_by.take() {
            Some(by) => {
                let result = conn.zero_copied;
                self.unnotified.remove(&(by, key));
                result
            }
            None => result,
        };
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        conn.sending = false;
        conn.outbox.release();
        if conn.ended {
            return;
        }
        match outcome(result) {
            Ok(count) => {
                conn.blocked = false;
                conn.outbox.advance(count);
                let waiting = conn.outbox.waiting();
                let again = waiting > 0 || conn.outbox.is_draining();
                self.counters.sent_bytes += count as u64;
                if again {
                    self.mark_dirty(key);
                }
                self.tell(Event::Sent { conn: key, waiting }, handler);
            }
            Err(Errno::AGAIN) => {
                conn.blocked = true;
                self.mark_dirty(key);
            }
            Err(Errno::INTR) if !conn.blocked => self.mark_dirty(key),
            // The linked time-out has come: nothing was taken for so long.
            Err(Errno::CANCELED | Errno::INTR) => {
                let seconds = stall.as_secs() as u32;
                self.end(key, Ended::Stalled { seconds }, handler);
            }
            Err(errno) => self.end(key, Ended::from_errno(errno), handler),
        }
    }

    pub(super) fn expire(&mut self, handler: &mut dyn Handler) {
        if self.unnotified.is_empty() && self.retry_at.is_none() {
            return;
        }
        let now = Instant::now();
        while let Some(&(at, key)) = self.unnotified.first() {
            if at > now {
                break;
            }
            self.unnotified.pop_first();
            let seconds = self.limits.stall.as_secs() as u32;
            self.end(key, Ended::Stalled { seconds }, handler);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.make_room(handler);
        }
    }

    pub(super) fn flush_dirty(&mut self, handler: &mut dyn Handler) {
        for _ in 0..self.dirty.len() {
            let Some(key) = self.dirty.pop_front() else {
                break;
            };
            self.flush(key, handler);
        }
        while let Some(entries) = self.overflow.pop_front() {
            if !self.try_push(&entries) {
                self.overflow.push_front(entries);
                break;
            }
        }
    }
}
