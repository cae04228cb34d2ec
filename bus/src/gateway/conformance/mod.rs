//! What every transport must do, told once and run against each of them.
//!
//! A [`Rig`] makes a transport and dials it; the cases see nothing else of it. A watchdog ends a case that hangs; no case
//! asserts how fast anything is.

mod cases;
mod rigs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::*;

/// The far end of one connection. Nothing here blocks.
pub(super) trait Peer {
    /// How many bytes were taken; 0 when there is no room now.
    fn send(&mut self, bytes: &[u8]) -> usize;
    /// `None`: the other side has closed. Empty: nothing there now.
    fn receive(&mut self) -> Option<Vec<u8>>;
    /// Sends nothing more; still receives.
    fn finish(&mut self);
}

/// One kind of transport with its way in.
pub(super) trait Rig {
    fn transport(&mut self, limits: TransportLimits) -> Box<dyn Transport>;
    /// Connects; the transport need not have accepted yet. Dropping the peer closes.
    fn dial(&mut self) -> Box<dyn Peer>;
    /// Whether a connection of this rig would come from there.
    fn origin_is(&self, origin: Origin) -> bool;
}

/// Collects what happened and answers by a script.
#[derive(Default)]
pub(super) struct Log {
    pub accepted: Vec<ConnKey>,
    pub origins: Vec<Origin>,
    pub received: BTreeMap<ConnKey, Vec<u8>>,
    pub chunks: Vec<(ConnKey, usize)>,
    pub finished: Vec<ConnKey>,
    pub closed: Vec<(ConnKey, Ended)>,
    pub listening: Vec<Listening>,
    pub woken: usize,
    pub sent: Vec<(ConnKey, usize)>,
    /// Send everything back.
    pub echo: bool,
    /// Stop reading from each connection as it comes.
    pub pause_on_accept: bool,
    /// Don't drain those that have finished.
    pub keep_finished: bool,
}

impl Handler for Log {
    fn event(&mut self, event: Event<'_>, out: &mut Commands) {
        match event {
            Event::Accepted { conn, origin, .. } => {
                assert!(!self.accepted.contains(&conn), "{conn:?} came twice");
                self.accepted.push(conn);
                self.origins.push(origin);
                if self.pause_on_accept {
                    out.push(Command::Pause { conn });
                }
            }
            Event::Received { conn, bytes } => {
                assert!(!bytes.is_empty() && self.is_open(conn), "{conn:?}");
                assert!(!self.finished.contains(&conn), "{conn:?} goes on");
                self.received
                    .entry(conn)
                    .or_default()
                    .extend_from_slice(bytes);
                self.chunks.push((conn, bytes.len()));
                if self.echo {
                    let bytes = bytes.to_vec();
                    out.push(Command::Send { conn, bytes });
                }
            }
            Event::Sent { conn, waiting } => {
                assert!(self.is_open(conn), "{conn:?}");
                self.sent.push((conn, waiting));
            }
            Event::Finished { conn } => {
                assert!(self.is_open(conn), "{conn:?}");
                assert!(!self.finished.contains(&conn), "{conn:?} finished twice");
                self.finished.push(conn);
                if !self.keep_finished {
                    out.push(Command::Drain { conn });
                }
            }
            Event::Closed { conn, how } => {
                assert!(self.is_open(conn), "{conn:?} closed twice");
                self.closed.push((conn, how));
            }
            Event::Listening { state, .. } => self.listening.push(state),
            Event::Woken => self.woken += 1,
        }
    }
}

impl Log {
    fn is_open(&self, conn: ConnKey) -> bool {
        self.accepted.contains(&conn) && !self.closed.iter().any(|(closed, _)| *closed == conn)
    }

    pub fn of(&self, conn: ConnKey) -> &[u8] {
        self.received.get(&conn).map_or(&[], Vec::as_slice)
    }
}

/// A transport under test, with its log.
pub(super) struct Bed<'a> {
    pub rig: &'a mut dyn Rig,
    pub transport: Box<dyn Transport>,
    pub log: Log,
}

impl<'a> Bed<'a> {
    pub fn new(rig: &'a mut dyn Rig, limits: TransportLimits) -> Self {
        let transport = rig.transport(limits);
        let log = Log::default();
        Self {
            rig,
            transport,
            log,
        }
    }

    /// Turns until `done` holds, letting `drive` move the peers in between.
    pub fn until(&mut self, mut drive: impl FnMut(&mut Log), done: impl Fn(&Log) -> bool) {
        let watchdog = Instant::now() + Duration::from_secs(60);
        loop {
            drive(&mut self.log);
            if done(&self.log) {
                return;
            }
            assert!(Instant::now() < watchdog, "hangs");
            let wait = Some(Duration::from_millis(5));
            self.transport.turn(wait, &mut self.log).unwrap();
        }
    }

    /// Turns until nothing happens any more.
    pub fn settle(&mut self) {
        for _ in 0..8 {
            let wait = Some(Duration::from_millis(2));
            self.transport.turn(wait, &mut self.log).unwrap();
        }
    }

    pub fn command(&mut self, command: Command) {
        self.transport.command(&mut vec![command], &mut self.log);
    }

    /// A connection that is accepted.
    pub fn connected(&mut self) -> (Box<dyn Peer>, ConnKey) {
        let before = self.log.accepted.len();
        let peer = self.rig.dial();
        self.until(|_| (), |log| log.accepted.len() > before);
        (peer, self.log.accepted[before])
    }
}
