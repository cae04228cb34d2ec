//! The other end: agentctl inside a sandbox, as an agent of a bench.
//!
//! It has what any agent has: a bus socket, three streams, no more. Orders came as an argument; commands come as lines of
//! stdin, reports go out as lines of stdout ([`super::orders`]). Threads: one reads stdin, one watches that somebody
//! still speaks, the others are those of the orders. It ends with its work, or when nobody has spoken for a while: then
//! whoever launched it is dead.

mod flow;
mod logs;
mod mixed;

use std::io::Write as _;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use agentd_bus::channel::{Tag, Waiting};
use agentd_bus::client::{Client, LaneOffer, LaneOffers, LaneOptions, LaneReceiver, LaneSender};
use agentd_bus::frame::kind;
use agentd_bus::lane::ReceiverOptions;

use super::figures::Latencies;
use super::orders::{self, HEAD, Mode, Orders, Received, Report};
use crate::failure::Failure;

/// An agent to which nobody has spoken for so long has been left alone. Generous: agentd, which carries the signs of life,
/// shares an overloaded machine with the agents.
const ABANDONED: Duration = Duration::from_secs(120);

/// A wait that ends by itself only when something is wrong; long, because the machine may be overloaded.
const WATCHDOG: Duration = Duration::from_secs(45);

/// Slots of the lanes here: messages of up to 57 KiB.
const SLOTS: usize = 1024;

/// How often a receiver says how far it is.
const PROGRESS: Duration = Duration::from_millis(250);

/// Does as ordered. Fails in a report, for the one who can tell it.
pub fn perform(orders: &str) -> Result<u8, Failure> {
    let orders: Orders = serde_json::from_str(orders)
        .map_err(|e| Failure::usage("can't read the orders of a bench", e))?;
    let commands = Commands::listen();
    let done = match orders {
        Orders::Receive { lanes, mode } => flow::receive(lanes, mode),
        Orders::Send {
            to,
            lanes,
            messages,
            size,
            mode,
        } => flow::send(&commands, &to, lanes, messages, size, mode),
        Orders::Pace {
            to,
            rate,
            duration_ns,
            size,
            mode,
        } => flow::pace(&commands, &to, rate, duration_ns, size, mode),
        Orders::Echo { to, mode } => flow::echo(&to, mode),
        Orders::Bounce {
            to,
            duration_ns,
            size,
            mode,
        } => flow::bounce(&commands, &to, duration_ns, size, mode),
        Orders::Mixed(mixed) => mixed::run(&commands, &mixed),
    };
    match done {
        Ok(()) => Ok(0),
        Err(why) => {
            say(&Report::Failed(why));
            Ok(1)
        }
    }
}

/// What fails here is told to the other side in words.
type Done<T = ()> = Result<T, String>;

/// One line on stdout. Without a reader there is nothing more to do.
fn say(report: &Report) {
    let line = serde_json::to_string(report).expect("reports are plain data");
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Lines of stdin.
struct Commands(Receiver<String>);

impl Commands {
    fn listen() -> Self {
        let (sender, receiver) = channel();
        let (signs, watched) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lines().map_while(Result::ok) {
                let listened =
                    signs.send(()).is_ok() && (line.is_empty() || sender.send(line).is_ok());
                if !listened {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            while watched.recv_timeout(ABANDONED) == Ok(()) {}
            // Nobody speaks any more, or stdin is at its end.
            std::process::exit(1);
        });
        Self(receiver)
    }

    /// Waits for this command.
    fn expect(&self, command: &str) -> Done {
        match self.0.recv() {
            Ok(line) if line == command => Ok(()),
            Ok(line) => Err(format!("expected {command:?}, not {line:?}")),
            Err(_) => Err(format!("stdin ended before {command:?}")),
        }
    }

    /// Whether this command has come, after at most `patience`.
    fn came(&self, command: &str, patience: Duration) -> bool {
        matches!(self.0.recv_timeout(patience), Ok(line) if line == command)
    }

    /// Whether nothing can come any more.
    fn is_over(&self) -> bool {
        self.0.recv_timeout(Duration::ZERO) == Err(RecvTimeoutError::Disconnected)
    }
}

fn connect() -> Done<Client> {
    Client::connect().map_err(|e| format!("can't reach the bus: {e}"))
}

fn waiting(mode: Mode) -> Waiting {
    match mode {
        Mode::Busy => Waiting::Busy,
        Mode::Adaptive => Waiting::Adaptive,
        Mode::Blocking => Waiting::Blocking,
    }
}

/// How lanes are opened here.
fn lane_options(mode: Mode) -> LaneOptions {
    LaneOptions {
        waiting: waiting(mode),
        ..LaneOptions::with_slots(SLOTS)
    }
}

/// A lane to `to`, which may have to get ready first.
fn open_lane(client: &Client, to: &str, mode: Mode) -> Done<LaneSender> {
    let end = Instant::now() + WATCHDOG;
    loop {
        match client.open_lane(to, lane_options(mode)) {
            Ok(lane) => return Ok(lane),
            Err(e) if Instant::now() > end => return Err(format!("no lane to {to}: {e}")),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The next lane that somebody offers.
fn take_lane(offers: &LaneOffers, _mode: Mode) -> Done<LaneReceiver> {
    match offers.next(WATCHDOG) {
        Ok(Some(offer)) => offer
            .accept()
            .map_err(|e| format!("can't take a lane: {e}")),
        Ok(None) => Err("nobody offered a lane".to_owned()),
        Err(e) => Err(format!("can't wait for lanes: {e}")),
    }
}

fn accept(offer: LaneOffer, mode: Mode) -> Done<LaneReceiver> {
    let options = ReceiverOptions {
        waiting: waiting(mode),
        ..ReceiverOptions::default()
    };
    let taken = offer.accept_with(options);
    taken.map_err(|e| format!("can't take a lane: {e}"))
}

/// Of a message that is nothing in particular.
fn tag() -> Tag {
    Tag {
        kind: kind::EVENT as u8,
        ..Tag::default()
    }
}

/// CLOCK_MONOTONIC, which all sandboxes of a host share, in ns.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Counts and checks what comes from one sender, whose numbers begin at 0.
#[derive(Debug, Default)]
struct Checker {
    next: u64,
    got: Received,
}

impl Checker {
    /// The word of the message.
    fn take(&mut self, message: &[u8]) -> Option<u64> {
        self.got.messages += 1;
        self.got.bytes += message.len() as u64;
        let Some((number, word)) = (message.len() >= HEAD)
            .then(|| orders::check(message))
            .flatten()
        else {
            self.got.broken += 1;
            return None;
        };
        match number.checked_sub(self.next) {
            Some(skipped) => {
                self.got.missing += skipped;
                self.next = number + 1;
            }
            // Twice, or out of order: its contents belong elsewhere.
            None => self.got.broken += 1,
        }
        Some(word)
    }
}

/// What one thread received, from when to when (ns), and how long it was under way.
type Part = (Received, Option<(u64, u64)>, Latencies);

/// Joins what several threads have received.
fn join(parts: Vec<Part>) -> Received {
    let mut all = Received::default();
    let mut latencies = Latencies::new();
    let (mut first, mut last) = (u64::MAX, 0);
    for (part, span, latency) in parts {
        all.messages += part.messages;
        all.bytes += part.bytes;
        all.missing += part.missing;
        all.broken += part.broken;
        if let Some((from, to)) = span {
            first = first.min(from);
            last = last.max(to);
        }
        latencies.add(&latency.counts());
    }
    all.elapsed_ns = last.saturating_sub(first);
    all.latency = latencies.counts();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checker_tells_gaps_from_broken_messages() {
        let mut checker = Checker::default();
        let message = |number| {
            let mut message = [0; 32];
            orders::fill(&mut message, number, 9);
            message
        };
        assert_eq!(checker.take(&message(0)), Some(9));
        assert_eq!(checker.take(&message(3)), Some(9));
        checker.take(&message(3));
        let mut flipped = message(4);
        flipped[20] ^= 1;
        assert_eq!(checker.take(&flipped), None);
        checker.take(&[1, 2]);
        let got = checker.got;
        assert_eq!((got.messages, got.missing, got.broken), (5, 2, 3));
    }
}
