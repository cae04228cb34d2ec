//! The first word of a log's slot: which message it holds, and in what state.
//!
//! `(message number + 1) << 2`, with bit 0 set while the slot is being written and bit 1 in further slots of
//! a message. 0: never written. Message numbers count from 0 and never wrap (2^61 messages outlast any
//! machine). A slot's sequence only ever grows, with one exception: the mark of a slot being written goes.

#![forbid(unsafe_code)]

const WRITING: u64 = 1;
const FURTHER: u64 = 2;
/// Where a reader begins, larger message numbers are the work of a broken or hostile producer. Half of what a
/// sequence can hold: nobody gets from here to its end.
pub const NUMBER_MAX: u64 = u64::MAX >> 3;

/// A head slot that is committed.
pub const fn committed(number: u64) -> u64 {
    (number + 1) << 2
}

/// A further slot of a message, valid if its head slot is.
pub const fn further(number: u64) -> u64 {
    committed(number) | FURTHER
}

/// A slot that is being overwritten for this message.
pub const fn writing(number: u64) -> u64 {
    committed(number) | WRITING
}

/// What a reader that expects a message's head slot makes of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// The message, committed.
    Ready,
    /// An older message, or the one expected but not yet committed.
    NotYet,
    /// A later message: the one expected has been overwritten.
    Overrun,
}

/// Looks at `sequence` for the head of message `number`.
pub const fn look(sequence: u64, number: u64) -> Found {
    let expected = committed(number);
    if sequence == expected {
        Found::Ready
    } else if sequence > (expected | WRITING | FURTHER) {
        Found::Overrun
    } else {
        Found::NotYet
    }
}

/// The number of the message that begins in this slot, if one does.
pub const fn begins(sequence: u64) -> Option<u64> {
    if sequence & (WRITING | FURTHER) == 0 && sequence != 0 {
        Some((sequence >> 2) - 1)
    } else {
        None
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn each_sequence_means_one_thing_to_each_reader() {
        let at = |base: u64| (0..5).map(move |n| base + n);
        for number in at(0).chain(at(NUMBER_MAX - 5)) {
            assert_eq!(begins(committed(number)), Some(number));
            assert_eq!(begins(further(number)), None);
            assert_eq!(begins(writing(number)), None);
            for expected in at(0).chain(at(NUMBER_MAX - 5)) {
                let found = if number > expected {
                    Found::Overrun
                } else {
                    Found::NotYet
                };
                assert_eq!(look(writing(number), expected), found);
                assert_eq!(look(further(number), expected), found);
                let found = if number == expected {
                    Found::Ready
                } else {
                    found
                };
                assert_eq!(look(committed(number), expected), found);
            }
        }
        assert_eq!(begins(0), None);
        assert_eq!(look(0, 0), Found::NotYet);
        assert_eq!(look(u64::MAX, 0), Found::Overrun);
    }

    #[test]
    fn every_step_of_a_slot_changes_the_half_that_is_slept_on() {
        for number in [0, 1, (1 << 30) - 2, 1 << 30] {
            let steps = [
                committed(number),
                writing(number + 1),
                further(number + 1),
                committed(number + 1),
            ];
            for (at, one) in steps.iter().enumerate() {
                assert!(steps[..at].iter().all(|other| *other as u32 != *one as u32));
            }
        }
    }
}
