//! What a follow has had of lasting logs, so that what one repeats after a restart of agentd is not had twice.
//!
//! The logs of one series count their messages on; a reader hands out only what lies behind the last number that any
//! reader of the same follow had of that series. The numbers are the producer's: one that lies about them loses its own
//! messages. Any thread; bounded by [`SERIES_HELD`]; a message costs one atomic operation on private memory.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::frame::PeerId;
use crate::log::Message;

/// Beyond so many the one that was asked for longest ago is forgotten, and its successor repeats what was had.
const SERIES_HELD: usize = 256;

/// The number of the next message that was not had; 0 before the first.
#[derive(Debug, Default)]
pub(super) struct Reached(AtomicU64);

#[derive(Debug)]
struct Series {
    from: PeerId,
    topic: String,
    number: u64,
    reached: Arc<Reached>,
}

/// Those of one follow.
#[derive(Debug, Default)]
pub(super) struct Onces(VecDeque<Series>);

impl Onces {
    /// What was had of a series. Nobody else's can be named: the bus says whose a log is.
    pub fn of(&mut self, from: PeerId, topic: &str, number: u64) -> Arc<Reached> {
        let same = |s: &Series| s.from == from && s.number == number && s.topic == topic;
        let known = self.0.iter().position(same);
        let series = known.and_then(|at| self.0.remove(at));
        let series = series.unwrap_or_else(|| Series {
            from,
            topic: topic.to_owned(),
            number,
            reached: Arc::default(),
        });
        let reached = Arc::clone(&series.reached);
        self.0.push_back(series);
        if self.0.len() > SERIES_HELD {
            self.0.pop_front();
        }
        reached
    }
}

/// The message, unless it was had before; what it says was lost runs from the last one that was had.
#[inline]
pub(super) fn admit(reached: Option<&Reached>, mut message: Message) -> Option<Message> {
    let Some(Reached(reached)) = reached else {
        return Some(message);
    };
    // Two readers of a series may be in two threads for a moment; only the number itself passes between them.
    let due = reached.fetch_max(message.number + 1, Ordering::Relaxed);
    if due > 0 {
        message.lost = message.number.checked_sub(due)?;
    }
    Some(message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::channel::Tag;

    fn message(number: u64, lost: u64) -> Message {
        Message {
            tag: Tag::default(),
            reference: false,
            number,
            lost,
        }
    }

    #[test]
    fn each_number_is_had_once_and_what_is_missing_between_is_told() {
        let mut onces = Onces::default();
        let first = onces.of(PeerId([1; 16]), "ticks", 7);
        let admit = |reached: &Reached, number, lost| {
            admit(Some(reached), message(number, lost)).map(|message| message.lost)
        };
        assert_eq!(admit(&first, 5, 2), Some(2), "what the log itself says");
        assert_eq!(admit(&first, 6, 0), Some(0));
        // The next log of the series repeats one, and begins again behind a gap.
        let next = onces.of(PeerId([1; 16]), "ticks", 7);
        assert_eq!(admit(&next, 6, 0), None);
        assert_eq!(admit(&next, 9, 0), Some(2));
        assert_eq!(
            admit(&first, 7, 0),
            None,
            "had by the other or told as lost"
        );
        // Another's, another topic's and another series' numbers are their own.
        for (from, topic, number) in [(2, "ticks", 7), (1, "tocks", 7), (1, "ticks", 8)] {
            let other = onces.of(PeerId([from; 16]), topic, number);
            assert_eq!(admit(&other, 0, 0), Some(0));
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut onces = Onces::default();
        for number in 0..2 * SERIES_HELD as u64 {
            onces.of(PeerId::BUS, "ticks", number + 1);
        }
        assert_eq!(onces.0.len(), SERIES_HELD);
    }
}
