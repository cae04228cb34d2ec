//! Connections end: what is under way on one is cancelled, its descriptor closed, and its slot is free when the kernel
//! says so. A buffer that the network still reads from lives on without its connection.

use io_uring::opcode;
use io_uring::types::{CancelBuilder, Fixed};

use super::super::orders::Orders;
use super::super::outbox::Outbox;
use super::super::transport::{Commands, ConnKey, Ended, Event, Handler};
use super::{Conn, Op, Uring};

impl Uring {
    /// Of those that the handler may still speak of.
    fn live(&mut self, key: ConnKey) -> Option<&mut Conn> {
        let conn = self.shared.conns.get_mut(key);
        conn.filter(|conn| conn.told && !conn.ended)
    }

    /// Nothing is under way any more: the descriptor goes.
    pub(super) fn close(&mut self, key: ConnKey) {
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        if std::mem::replace(&mut conn.closing, true) {
            return;
        }
        let entry = opcode::Close::new(Fixed(key.slot))
            .build()
            .user_data(Op::of(key, Op::Close));
        self.push(&[entry]);
    }

    /// The kernel has closed it: the slot is free.
    pub(super) fn closed(&mut self, key: ConnKey, handler: &mut dyn Handler) {
        self.vacate(key);
        self.make_room(handler);
    }

    /// The slot is another connection's from here on.
    pub(super) fn vacate(&mut self, key: ConnKey) {
        if let Some(conn) = self.shared.conns.vacate(key)
            && conn.in_flight > 0
        {
            self.shared.lingering.insert(key, conn);
        }
    }
}

impl Orders for Uring {
    fn commands(&mut self) -> &mut Commands {
        &mut self.commands
    }

    fn outbox(&mut self, key: ConnKey) -> Option<&mut Outbox> {
        Some(&mut self.live(key)?.outbox)
    }

    fn mark_dirty(&mut self, key: ConnKey) {
        if let Some(conn) = self.shared.conns.get_mut(key)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push_back(key);
        }
    }

    fn set_reading(&mut self, key: ConnKey, reading: bool, _: &mut dyn Handler) {
        if let Some(conn) = self.live(key)
            && !conn.finished
        {
            conn.reading = reading;
            self.steer(key);
        }
    }

    /// Ends a connection: tells so, and cancels what is under way on it.
    fn end(&mut self, key: ConnKey, how: Ended, handler: &mut dyn Handler) {
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        if std::mem::replace(&mut conn.ended, true) {
            return;
        }
        let (told, busy) = (conn.told, conn.is_busy());
        if busy {
            conn.in_flight += 1;
            let entry = opcode::AsyncCancel2::new(CancelBuilder::fd(Fixed(key.slot)).all())
                .build()
                .user_data(Op::of(key, Op::Cancel));
            self.push(&[entry]);
        } else {
            self.close(key);
        }
        self.open -= 1;
        if told {
            self.counters.closed += 1;
            self.tell(Event::Closed { conn: key, how }, handler);
        }
    }
}
