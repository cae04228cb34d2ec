//! Connections come: multishot accept into direct descriptors, who they are, and listeners that pause and resume.
//!
//! The kernel accepts on its own and hears of a limit late, so what came beyond it is parked, and taken up when a
//! connection ends. Fails per connection; a listener without descriptors or memory pauses and looks again.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::opcode;
use io_uring::types::{Fd, Fixed};
use rustix::io::Errno;

use super::super::orders::Orders;
use super::super::transport::{ConnKey, Ended, Event, Handler, ListenerId, Listening, Origin};
use super::{Conn, Op, Uring, outcome};

/// After running out of memory or descriptors, look again so often.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Listener {
    pub fd: OwnedFd,
    pub unix: bool,
    pub armed: bool,
    pub paused: bool,
}

impl Uring {
    pub(super) fn make_room(&mut self, handler: &mut dyn Handler) {
        if !self.parked.is_empty() {
            while self.open < self.limits.connections
                && let Some((slot, listener)) = self.parked.pop_front()
            {
                self.begin(slot, listener);
            }
            if !self.parked.is_empty() {
                return;
            }
        } else if self.retry_at.is_none() {
            return;
        }
        self.retry_at = None;
        for at in 0..self.listeners.len() {
            if std::mem::take(&mut self.listeners[at].paused) {
                self.arm_accept(at);
                let (listener, state) = (ListenerId(at as u16), Listening::Resumed);
                self.tell(Event::Listening { listener, state }, handler);
            }
        }
    }

    pub(super) fn arm_accept(&mut self, at: usize) {
        let listener = &mut self.listeners[at];
        if listener.paused || std::mem::replace(&mut listener.armed, true) {
            return;
        }
        let entry = opcode::AcceptMulti::new(Fd(listener.fd.as_raw_fd()))
            .allocate_file_index(true)
            .build()
            .user_data(u64::from(Op::Accept as u8) << 56 | at as u64);
        self.push(&[entry]);
    }

    pub(super) fn pause_listener(
        &mut self,
        at: usize,
        state: Listening,
        handler: &mut dyn Handler,
    ) {
        let listener = &mut self.listeners[at];
        if std::mem::replace(&mut listener.paused, true) {
            return;
        }
        if listener.armed {
            let accept = u64::from(Op::Accept as u8) << 56 | at as u64;
            let entry = opcode::AsyncCancel::new(accept)
                .build()
                .user_data(u64::from(Op::Cancel as u8) << 56 | u64::from(u32::MAX));
            self.push(&[entry]);
        }
        if !matches!(state, Listening::Full { .. }) {
            self.retry_at = Some(Instant::now() + RETRY);
        }
        let listener = ListenerId(at as u16);
        self.tell(Event::Listening { listener, state }, handler);
    }

    pub(super) fn accepted(
        &mut self,
        at: usize,
        result: i32,
        more: bool,
        handler: &mut dyn Handler,
    ) {
        if !more {
            self.listeners[at].armed = false;
        }
        match outcome(result) {
            Ok(slot) => {
                let slot = slot as u32;
                if self.open >= self.limits.connections {
                    self.parked.push_back((slot, at as u16));
                    let limit = self.limits.connections;
                    self.pause_listener(at, Listening::Full { limit }, handler);
                } else {
                    self.begin(slot, at as u16);
                }
            }
            Err(Errno::CANCELED | Errno::INTR | Errno::CONNABORTED | Errno::AGAIN) => {}
            Err(errno) => {
                if errno == Errno::NFILE || errno == Errno::MFILE {
                    // Accepted, but there was no place for it: the kernel closed it again.
                    self.counters.shed += 1;
                }
                self.pause_listener(at, Listening::Paused { errno }, handler);
            }
        }
        if !self.listeners[at].armed {
            self.arm_accept(at);
        }
    }

    /// A connection sits in `slot`: asks for a moment's ordinary descriptor, to learn who it is.
    pub(super) fn begin(&mut self, slot: u32, listener: u16) {
        if let Some(last) = self.shared.conns.key_at(slot) {
            // Its close has happened, only its completion has not been seen.
            self.vacate(last);
        }
        let key = self.shared.conns.place(slot, Conn::new(listener));
        self.open += 1;
        let install = opcode::FixedFdInstall::new(Fixed(slot), 0)
            .build()
            .user_data(Op::of(key, Op::Install));
        self.push(&[install]);
    }

    pub(super) fn installed(&mut self, key: ConnKey, result: i32, handler: &mut dyn Handler) {
        let Some(conn) = self.shared.conns.get_mut(key) else {
            return;
        };
        let at = usize::from(conn.listener);
        if let Err(errno) = outcome(result) {
            self.counters.shed += 1;
            self.end(key, Ended::Io(errno), handler);
            return self.pause_listener(at, Listening::Paused { errno }, handler);
        }
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(result) };
        self.counters.syscalls += 2;
        let origin = if self.listeners[at].unix {
            Origin::of_unix(fd.as_fd())
        } else {
            rustix::net::getpeername(&fd).and_then(Origin::of_tcp)
        };
        drop(fd);
        let origin = match origin {
            Ok(origin) => origin,
            // Gone already.
            Err(errno) => return self.end(key, Ended::from_errno(errno), handler),
        };
        if let Some(conn) = self.shared.conns.get_mut(key) {
            conn.told = true;
        }
        self.counters.accepted += 1;
        let listener = ListenerId(at as u16);
        self.tell(
            Event::Accepted {
                conn: key,
                listener,
                origin,
            },
            handler,
        );
        self.steer(key);
    }
}
