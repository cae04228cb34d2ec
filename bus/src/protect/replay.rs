//! What a receiver remembers so that no message is taken twice.
//!
//! For each session a window over its latest [`WINDOW`] counters, as in IPsec and WireGuard: messages may overtake each other
//! within it; one further behind is refused, because nobody knows any more whether it came before. Requests and events of a
//! session come by different queues and have windows of their own.
//!
//! Sessions are bounded. The one that was silent the longest is forgotten, and from then on a session that is not known may only
//! begin with messages sealed after everything that was forgotten: the *floor*. At the start the floor is the receiver's own
//! beginning less an allowance for what was under way; within that allowance, and only there, a replay of what an
//! earlier receiver took can't be told (compare RFC 8446, section 8).
//!
//! Pure: the caller verifies first, then asks here.

#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::ProtectError;
use super::envelope::{Fixed, What};
use super::key::KeyId;

/// Counters remembered per session.
pub const WINDOW: u64 = 1024;
/// Sessions remembered per receiver.
pub const SESSIONS_MAX: usize = 1024;

const LIMBS: usize = (WINDOW / 64) as usize;

/// What was received of one session.
#[derive(Clone, Debug)]
struct Window {
    /// The highest counter taken.
    latest: u64,
    /// Bit `n % WINDOW` stands for counter n, of those within the window.
    taken: [u64; LIMBS],
    /// The latest time of sealing among them.
    sealed_at_ns: u64,
}

impl Window {
    fn new() -> Self {
        Self {
            latest: 0,
            taken: [0; LIMBS],
            sealed_at_ns: 0,
        }
    }

    fn bit(counter: u64) -> (usize, u64) {
        let at = counter % WINDOW;
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn admit(&mut self, key: KeyId, counter: u64) -> Result<(), ProtectError> {
        if counter > self.latest {
            let ahead = counter - self.latest;
            if ahead >= WINDOW {
                self.taken = [0; LIMBS];
            } else {
                for passed in self.latest + 1..=counter {
                    let (limb, mask) = Self::bit(passed);
                    self.taken[limb] &= !mask;
                }
            }
            self.latest = counter;
        } else if self.latest - counter >= WINDOW {
            return Err(ProtectError::TooFarBehind {
                key,
                counter,
                behind: self.latest - counter,
            });
        }
        let (limb, mask) = Self::bit(counter);
        if self.taken[limb] & mask != 0 {
            return Err(ProtectError::Replayed { key, counter });
        }
        self.taken[limb] |= mask;
        Ok(())
    }
}

/// One receiver's memory.
#[derive(Debug)]
pub struct Replay {
    windows: HashMap<(KeyId, [u8; 16], What), Window>,
    sessions_max: usize,
    floor_ns: u64,
}

impl Replay {
    /// Nothing received; sessions may begin with messages sealed at `floor_ns` or later.
    pub fn new(floor_ns: u64) -> Self {
        Self::with_sessions(floor_ns, SESSIONS_MAX)
    }

    pub(super) fn with_sessions(floor_ns: u64, sessions_max: usize) -> Self {
        Self {
            windows: HashMap::new(),
            sessions_max,
            floor_ns,
        }
    }

    /// Takes note of a message *that has been verified*, unless it was taken before or nobody can tell.
    pub fn admit(&mut self, fixed: &Fixed, what: What) -> Result<(), ProtectError> {
        let name = (fixed.key, fixed.id.session, what);
        if let Some(window) = self.windows.get_mut(&name) {
            window.admit(fixed.key, fixed.id.counter)?;
            window.sealed_at_ns = window.sealed_at_ns.max(fixed.sealed_at_ns);
            return Ok(());
        }
        if fixed.sealed_at_ns < self.floor_ns {
            return Err(ProtectError::TooEarly {
                key: fixed.key,
                early_ms: (self.floor_ns - fixed.sealed_at_ns).div_ceil(1_000_000),
            });
        }
        if self.windows.len() >= self.sessions_max {
            self.forget_oldest();
        }
        let mut window = Window::new();
        window.admit(fixed.key, fixed.id.counter)?;
        window.sealed_at_ns = fixed.sealed_at_ns;
        self.windows.insert(name, window);
        Ok(())
    }

    fn forget_oldest(&mut self) {
        let oldest = self
            .windows
            .iter()
            .min_by_key(|(_, window)| window.sealed_at_ns)
            .map(|(name, window)| (*name, window.sealed_at_ns));
        if let Some((name, sealed_at_ns)) = oldest {
            self.windows.remove(&name);
            self.floor_ns = self.floor_ns.max(sealed_at_ns.saturating_add(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::envelope::MessageId;
    use super::super::key::Scheme;
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn message(session: u8, counter: u64, sealed_at_ns: u64) -> Fixed {
        Fixed {
            scheme: Scheme::HmacSha256,
            key: KeyId(1),
            id: MessageId {
                session: [session; 16],
                counter,
            },
            sealed_at_ns,
        }
    }

    #[test]
    fn a_message_far_behind_is_refused_and_one_within_the_window_taken_once() {
        let mut replay = Replay::new(0);
        for counter in [0, 5, WINDOW + 4, 5 + 1] {
            assert_eq!(replay.admit(&message(1, counter, 1), What::Send), Ok(()));
        }
        assert!(matches!(
            replay.admit(&message(1, 4, 1), What::Send),
            Err(ProtectError::TooFarBehind { behind: WINDOW, .. })
        ));
        assert!(matches!(
            replay.admit(&message(1, 5, 1), What::Send),
            Err(ProtectError::Replayed { counter: 5, .. })
        ));
        assert_eq!(replay.admit(&message(1, 5, 1), What::Request), Ok(()));
    }

    #[test]
    fn the_last_counter_of_all_is_taken_once() {
        let mut replay = Replay::new(0);
        assert_eq!(replay.admit(&message(1, u64::MAX, 1), What::Send), Ok(()));
        assert!(replay.admit(&message(1, u64::MAX, 1), What::Send).is_err());
        assert_eq!(
            replay.admit(&message(1, u64::MAX - 1, 1), What::Send),
            Ok(())
        );
    }

    #[test]
    fn a_forgotten_session_can_not_be_replayed() {
        let mut replay = Replay::with_sessions(100, 2);
        assert!(matches!(
            replay.admit(&message(9, 0, 99), What::Send),
            Err(ProtectError::TooEarly { early_ms: 1, .. })
        ));
        assert_eq!(replay.admit(&message(1, 0, 100), What::Send), Ok(()));
        assert_eq!(replay.admit(&message(1, 1, 150), What::Send), Ok(()));
        assert_eq!(replay.admit(&message(2, 0, 200), What::Send), Ok(()));
        assert_eq!(replay.admit(&message(3, 0, 300), What::Send), Ok(()));
        for sealed in [100, 150] {
            assert!(matches!(
                replay.admit(&message(1, 0, sealed), What::Send),
                Err(ProtectError::TooEarly { .. })
            ));
        }
        assert_eq!(replay.admit(&message(2, 1, 120), What::Send), Ok(()));
    }

    proptest! {
        #[test]
        fn nothing_is_taken_twice_and_everything_new_within_the_window_is(
            counters in proptest::collection::vec(0u64..4 * WINDOW, 1..400),
        ) {
            let mut replay = Replay::new(0);
            let (mut taken, mut latest) = (HashSet::new(), 0);
            for counter in counters {
                let admitted = replay.admit(&message(1, counter, 1), What::Send).is_ok();
                let expected = counter + WINDOW > latest && !taken.contains(&counter);
                prop_assert_eq!(admitted, expected);
                taken.insert(counter);
                latest = latest.max(counter);
            }
        }
    }
}
