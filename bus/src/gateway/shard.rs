//! One shard of the gateway: a transport's bytes to frames for the desk, and the desk's frames back.
//!
//! Fair: a connection hands over a few frames, then the others have their turn; what it sent beyond that waits in its own
//! backlog, and reading stops while much does. New arrivals go before backlogs, so a flood delays a light sender by one
//! slice of work and not by the flood. Bounded: one unfinished frame and one read-ahead per connection, and a total over
//! all of them; what is sent is bounded by whoever posts ([`Desk::written`]).
//!
//! Runs on one thread, which is the only one that touches it; others use its [`Door`]. Reads the monotonic clock once per
//! turn. Fails only with its transport; a connection fails with an [`Ending`].

mod sessions;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use self::sessions::Sessions;
use super::desk::{Desk, Door};
use super::ending::Ending;
use super::stream::Interop;
use super::tls::TlsConfig;
use super::transport::{Commands, ConnKey, ListenerId, Transport, TransportError};

/// Bounds of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardLimits {
    /// Largest payload of one frame, bytes.
    pub max_payload: u32,
    /// From the connection to the end of the handshake, and from there to the first frame.
    pub greeting: Duration,
    /// From a frame's first byte to its last; and from the loss of a connection until what it had sent is handed over.
    pub frame: Duration,
    /// Frames that one connection hands over before the others have their turn.
    pub slice: usize,
    /// Bytes beyond them that are read ahead for one connection.
    pub read_ahead: usize,
    /// Bytes kept of unfinished frames and read ahead, over all connections.
    pub memory: usize,
}

impl Default for ShardLimits {
    fn default() -> Self {
        Self {
            max_payload: 1 << 20,
            greeting: Duration::from_secs(10),
            frame: Duration::from_secs(30),
            slice: 32,
            read_ahead: 64 << 10,
            memory: 64 << 20,
        }
    }
}

/// What one listener speaks.
#[derive(Clone, Debug, Default)]
pub struct ListenerOptions {
    pub tls: Option<TlsConfig>,
    pub interop: Interop,
}

/// What a shard did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardCounters {
    pub frames_in: u64,
    pub frames_out: u64,
    /// Connections that ended for a reason other than the ordinary ones.
    pub faults: u64,
}

/// A transport with everything above it. See the module's documentation.
#[derive(Debug)]
pub struct Shard<T, D> {
    transport: T,
    sessions: Sessions<D>,
    commands: Commands,
}

impl<T: Transport, D: Desk> Shard<T, D> {
    /// A shard without listeners.
    pub fn new(transport: T, desk: D, limits: ShardLimits) -> Self {
        let door = Door::new(transport.waker());
        Self {
            transport,
            sessions: Sessions::new(desk, door, limits),
            commands: Vec::new(),
        }
    }

    /// Takes over a listening socket.
    pub fn listen(
        &mut self,
        socket: OwnedFd,
        options: ListenerOptions,
    ) -> Result<ListenerId, TransportError> {
        let id = self.transport.listen(socket)?;
        self.sessions.listeners.push(options);
        Ok(id)
    }

    /// What a listener that the transport has by itself speaks; the loop-back has one.
    pub fn speak(&mut self, options: ListenerOptions) {
        self.sessions.listeners.push(options);
    }

    pub fn door(&self) -> Door {
        self.sessions.door.clone()
    }

    pub fn transport(&self) -> &T {
        &self.transport
    }

    pub fn desk(&mut self) -> &mut D {
        &mut self.sessions.desk
    }

    pub fn counters(&self) -> ShardCounters {
        self.sessions.counters
    }

    /// Serves until [`Door::stop`].
    pub fn run(&mut self) -> Result<(), TransportError> {
        while !self.sessions.door.is_stopped() {
            self.step(None)?;
        }
        let keys: Vec<ConnKey> = self.sessions.keys().collect();
        for key in keys {
            self.sessions.end(key, Ending::Stopped, &mut self.commands);
        }
        // What is queued goes out if its receivers take it soon.
        let until = Instant::now() + Duration::from_secs(1);
        self.obey();
        while self.transport.connections() > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.transport.turn(Some(left), &mut self.sessions)?;
        }
        Ok(())
    }

    /// One turn: posts, a slice of the backlogs, the deadlines, then what the transport has. Waits at most `most`.
    pub fn step(&mut self, most: Option<Duration>) -> Result<(), TransportError> {
        let sessions = &mut self.sessions;
        sessions.now = Instant::now();
        for (key, post) in sessions.door.take() {
            sessions.post(key, post, &mut self.commands);
        }
        sessions.serve_backlogs(&mut self.commands);
        sessions.expire(&mut self.commands);
        self.obey();
        let sessions = &mut self.sessions;
        let wait = if sessions.backlogs.is_empty() {
            let due = sessions.next_due();
            let due = due.map(|at| at.saturating_duration_since(Instant::now()));
            [most, due].into_iter().flatten().min()
        } else {
            Some(Duration::ZERO)
        };
        let sleeps = wait.is_none_or(|wait| !wait.is_zero()) && sessions.door.may_sleep();
        let wait = if sleeps { wait } else { Some(Duration::ZERO) };
        let turned = self.transport.turn(wait, &mut self.sessions);
        self.sessions.door.awake();
        turned
    }

    fn obey(&mut self) {
        if !self.commands.is_empty() {
            self.transport
                .command(&mut self.commands, &mut self.sessions);
        }
    }
}
