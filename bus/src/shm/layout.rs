//! Why a memory is not the one of a channel: what lanes and logs check in the same way before they use one.
//!
//! Pure; what the right values are is theirs ([`crate::lane`], [`crate::log`]).

#![forbid(unsafe_code)]

use crate::lane::{CAPACITY_MAX, CAPACITY_MIN};

/// Why a memory is not the one of a lane or log, or can't be used with these options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error(
        "a lane or log has {CAPACITY_MIN} to {CAPACITY_MAX} slots, a power of two; not {found}"
    )]
    Capacity { found: u64 },
    #[error("the memory is {found} bytes, not {expected}")]
    Size { found: u64, expected: u64 },
    #[error("the memory does not begin as it should: {found:#018x}, expected {expected:#018x}")]
    Magic { found: u64, expected: u64 },
    #[error(
        "the memory was formatted for other options (set-up flags {found:#x}, these make {expected:#x}); format and use it with the same"
    )]
    SetUp { found: u64, expected: u64 },
    #[error(
        "this ring can't drop its oldest messages: that is a log with one lossy reader (`Writer::drop_oldest`)"
    )]
    DropOldest,
    #[error("a reliable reader may be {low} to {high} slots behind in this log, not {found}")]
    Lag { found: u64, low: u64, high: u64 },
    #[error("the producer says that it wrote {messages} messages in {slots} slots, which can't be")]
    Position { messages: u64, slots: u64 },
    #[error("the memory has slots of {found} bytes, but the lane was offered with {expected}")]
    Inline { found: u64, expected: u64 },
    #[error("the cursor page has its parked flag at word {found}, which is another's place")]
    Flag { found: u64 },
}

/// The number of slots, if a ring can have so many.
pub(crate) fn check_capacity(capacity: u64) -> Result<usize, LayoutError> {
    let wrong = LayoutError::Capacity { found: capacity };
    let slots = usize::try_from(capacity).map_err(|_| wrong)?;
    if slots.is_power_of_two() && (CAPACITY_MIN..=CAPACITY_MAX).contains(&slots) {
        Ok(slots)
    } else {
        Err(wrong)
    }
}

/// In words.
pub(crate) fn check_size(found: usize, expected: usize) -> Result<(), LayoutError> {
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::Size {
            found: found as u64 * 8,
            expected: expected as u64 * 8,
        })
    }
}

pub(crate) fn check_magic(found: u64, expected: u64) -> Result<(), LayoutError> {
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::Magic { found, expected })
    }
}

/// One's own page must say what one is about to do: the other side has settled by it who fences.
pub(crate) fn check_setup(found: u64, expected: u64) -> Result<(), LayoutError> {
    if found == expected {
        Ok(())
    } else {
        Err(LayoutError::SetUp { found, expected })
    }
}
