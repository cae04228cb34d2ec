//! Carrying out commands: what each of them means for a connection is the same for every transport.
//!
//! An event may make commands, and a command (a close) an event: [`Orders::tell`] and [`Orders::obey`] take them in order,
//! without recursion deeper than that. A command for a connection that has ended is dropped.

use super::outbox::Outbox;
use super::transport::{Command, Commands, ConnKey, Ended, Event, Handler};

pub(super) trait Orders {
    /// What the handler wants done and nobody has done yet.
    fn commands(&mut self) -> &mut Commands;

    /// Of a connection that the handler may still speak of.
    fn outbox(&mut self, key: ConnKey) -> Option<&mut Outbox>;

    /// Something waits in its outbox, or it drains.
    fn mark_dirty(&mut self, key: ConnKey);

    fn set_reading(&mut self, key: ConnKey, reading: bool, handler: &mut dyn Handler);

    fn end(&mut self, key: ConnKey, how: Ended, handler: &mut dyn Handler);

    /// Hands one event over and does what the handler answers.
    fn tell(&mut self, event: Event<'_>, handler: &mut dyn Handler) {
        let mut commands = std::mem::take(self.commands());
        handler.event(event, &mut commands);
        *self.commands() = commands;
        self.obey(handler);
    }

    fn obey(&mut self, handler: &mut dyn Handler) {
        let mut commands = std::mem::take(self.commands());
        for command in commands.drain(..) {
            match command {
                Command::Send { conn, bytes } => {
                    if let Some(outbox) = self.outbox(conn)
                        && !outbox.is_draining()
                    {
                        outbox.push(bytes);
                        self.mark_dirty(conn);
                    }
                }
                Command::Pause { conn } => self.read(conn, false, handler),
                Command::Resume { conn } => self.read(conn, true, handler),
                Command::Drain { conn } => {
                    self.read(conn, false, handler);
                    if let Some(outbox) = self.outbox(conn) {
                        outbox.drain();
                        self.mark_dirty(conn);
                    }
                }
                Command::Close { conn } => {
                    if self.outbox(conn).is_some() {
                        self.end(conn, Ended::Asked, handler);
                    }
                }
            }
        }
        // Its room is kept.
        if self.commands().is_empty() {
            *self.commands() = commands;
        }
    }

    /// Nothing more is read from a connection that drains.
    fn read(&mut self, key: ConnKey, reading: bool, handler: &mut dyn Handler) {
        if self.outbox(key).is_some_and(|outbox| !outbox.is_draining()) {
            self.set_reading(key, reading, handler);
        }
    }
}
