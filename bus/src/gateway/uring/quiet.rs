//! Connections that say nothing: rounds that find them, and a poll in place of their receive.
//!
//! A receive that waits holds a message header and a poll entry of the kernel's besides its request, 600 bytes more than a
//! poll. So whoever has said nothing yet, or nothing since the round before the last, is polled, and received from again
//! when it speaks: one operation more then, none while it goes on. A round goes in steps between other work.

use std::time::{Duration, Instant};

use io_uring::opcode;

use super::{Op, Uring};

/// From one round to the next.
const EVERY: Duration = Duration::from_secs(5);
/// Slots looked at, and receives taken back, in one turn.
const STEP: u32 = 4096;
const TAKEN_BACK: usize = 64;

/// Where the rounds are.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// `None`: nobody is received from.
    pub due: Option<Instant>,
    next: u32,
    /// The turn in which the last round ended.
    last: u64,
    /// This round has seen somebody who is received from.
    seen: bool,
}

impl Rounds {
    /// Somebody is received from.
    pub fn begin(&mut self) {
        if self.due.is_none() {
            self.due = Some(Instant::now() + EVERY);
        }
    }
}

impl Uring {
    /// The next step of a round, if it is time.
    pub(super) fn go_round(&mut self) {
        let Some(due) = self.rounds.due else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        let end = self.shared.conns.slots();
        let until = end.min(self.rounds.next + STEP);
        let mut taken_back = 0;
        while self.rounds.next < until && taken_back < TAKEN_BACK {
            let slot = self.rounds.next;
            self.rounds.next += 1;
            let Some(key) = self.shared.conns.key_at(slot) else {
                continue;
            };
            let Some(conn) = self.shared.conns.get_mut(key) else {
                continue;
            };
            if !conn.receiving || conn.polled || conn.ended {
                continue;
            }
            self.rounds.seen = true;
            if conn.turn < self.rounds.last && !conn.stopping {
                conn.quiet = true;
                conn.stopping = true;
                conn.in_flight += 1;
                taken_back += 1;
                let stop = opcode::AsyncCancel::new(Op::of(key, Op::Recv)).build();
                self.push(&[stop.user_data(Op::of(key, Op::Cancel))]);
            }
        }
        if self.rounds.next == end {
            self.rounds = Rounds {
                due: std::mem::take(&mut self.rounds.seen).then(|| now + EVERY),
                next: 0,
                last: self.counters.turns,
                seen: false,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::super::super::transport::{
        Commands, ConnKey, Event, Handler, Transport as _, TransportLimits,
    };
    use super::*;

    #[derive(Default)]
    struct Heard {
        conn: Option<ConnKey>,
        bytes: Vec<u8>,
    }

    impl Handler for Heard {
        fn event(&mut self, event: Event<'_>, _: &mut Commands) {
            match event {
                Event::Accepted { conn, .. } => self.conn = Some(conn),
                Event::Received { bytes, .. } => self.bytes.extend_from_slice(bytes),
                _ => {}
            }
        }
    }

    /// Turns until the one connection is polled, or received from.
    fn until_polled(uring: &mut Uring, heard: &mut Heard, polled: bool) {
        let watchdog = Instant::now() + Duration::from_secs(60);
        loop {
            let conn = heard.conn.and_then(|key| uring.shared.conns.get(key));
            if conn.is_some_and(|conn| conn.receiving && conn.polled == polled) {
                return;
            }
            assert!(Instant::now() < watchdog, "hangs");
            let wait = Some(Duration::from_millis(1));
            uring.turn(wait, heard).unwrap();
        }
    }

    #[test]
    fn whoever_falls_silent_is_polled_and_heard_again_when_it_speaks() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut uring = Uring::new(TransportLimits::default()).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        uring.listen(listener.into()).unwrap();
        let (mut heard, mut peer) = (Heard::default(), UnixStream::connect(&path).unwrap());
        until_polled(&mut uring, &mut heard, true);
        assert_eq!(uring.rounds.due, None);
        for said in [&b"one"[..], b"onetwo"] {
            peer.write_all(&said[said.len() - 3..]).unwrap();
            until_polled(&mut uring, &mut heard, false);
            while heard.bytes != said {
                uring.turn(None, &mut heard).unwrap();
            }
            // Not yet after the first round that ends after its last word.
            for polled in [false, true] {
                uring.rounds.due = Some(Instant::now());
                uring.turn(Some(Duration::ZERO), &mut heard).unwrap();
                until_polled(&mut uring, &mut heard, polled);
            }
        }
        // Nobody is left to look after.
        uring.rounds.due = Some(Instant::now());
        uring.turn(Some(Duration::ZERO), &mut heard).unwrap();
        assert_eq!(uring.rounds.due, None);
    }
}
