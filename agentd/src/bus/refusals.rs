//! What the router refused an agent, or the scheduler by the same rules, on its way to whoever tells of it.
//!
//! A queue for each agent, and a short one: the router's thread puts into it and never waits, what finds it full is counted, and
//! nothing of it is touched for what is allowed. It ends when the agent has left the bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentd_bus::access::Right;
use tokio::sync::mpsc;

/// Refusals that wait to be told, of one agent.
const HELD: usize = 1024;

/// One refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub right: Right,
    /// The name, topic or pattern.
    pub what: String,
    /// `None`: the policy does not give it.
    pub taken: Option<TakenBack>,
    /// The line of what was laid over the policy, if that refuses it.
    pub tightened: Option<String>,
}

/// A right that was taken from an agent while it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakenBack {
    pub right: Right,
    /// The names or topics that it is taken for.
    pub pattern: String,
    /// Whose hand it was, such as `uid 0`.
    pub by: String,
}

/// The router's end.
#[derive(Clone, Debug)]
pub struct RefusalSink {
    sender: mpsc::Sender<Refused>,
    lost: Arc<AtomicU64>,
}

/// The other end.
#[derive(Debug)]
pub struct Refusals {
    receiver: mpsc::Receiver<Refused>,
    lost: Arc<AtomicU64>,
}

/// A queue.
pub fn refusals() -> (RefusalSink, Refusals) {
    let (sender, receiver) = mpsc::channel(HELD);
    let lost = Arc::new(AtomicU64::new(0));
    let sink = RefusalSink {
        sender,
        lost: Arc::clone(&lost),
    };
    (sink, Refusals { receiver, lost })
}

impl RefusalSink {
    /// `make` is called only if there is room.
    pub fn put(&self, make: impl FnOnce() -> Refused) {
        match self.sender.try_reserve() {
            Ok(room) => room.send(make()),
            Err(_) => {
                self.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Refusals {
    /// The next one; `None` when the agent has left the bus. Cancel safe.
    pub async fn next(&mut self) -> Option<Refused> {
        self.receiver.recv().await
    }

    /// How many found the queue full so far.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_the_queue_full_is_counted_and_made_for_nobody() {
        let (sink, mut refusals) = refusals();
        let mut made = 0;
        for _ in 0..HELD + 3 {
            sink.put(|| {
                made += 1;
                Refused {
                    right: Right::Send,
                    what: "b".into(),
                    taken: None,
                    tightened: None,
                }
            });
        }
        assert_eq!((made, refusals.lost()), (HELD, 3));
        drop(sink);
        let mut told = 0;
        while refusals.next().await.is_some() {
            told += 1;
        }
        assert_eq!(told, HELD);
    }
}
