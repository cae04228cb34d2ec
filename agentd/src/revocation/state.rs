//! What is taken from one agent, by whom, and who may give it back. Pure.
//!
//! A right belongs to the hand that took it. Only root lifts what root took; an owner's hand never replaces root's, root's
//! replaces any. Kept with the broker in the agent's document, so that it outlives agentd.

use std::collections::BTreeMap;

use agentd_api::Revocable;
use agentd_api::restriction::Hand as Told;
use agentd_bpf::layout::revoked;
use serde::{Deserialize, Serialize};

use crate::agents::Caller;

/// Who took something, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hand {
    pub uid: u32,
    /// Unix time.
    pub at_ms: i64,
}

impl Hand {
    /// Whether `caller` may undo what this hand did.
    fn yields_to(self, caller: Caller) -> bool {
        caller.uid == 0 || caller.uid == self.uid
    }

    pub fn told(self) -> Told {
        (self.uid, u64::try_from(self.at_ms).unwrap_or(0))
    }
}

/// Somebody else took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("uid {holder} took it, and only that user or root may give it back")]
pub struct NotYours {
    pub holder: u32,
}

/// What is taken from one agent. Nothing, for most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// By the right's word.
    #[serde(default)]
    revoked: BTreeMap<String, Hand>,
    #[serde(default)]
    pub frozen: Option<Hand>,
}

impl Taken {
    /// The `revoked` bits of the agent's row in the kernel.
    pub fn bits(&self) -> u32 {
        self.revoked()
            .map(|(right, _)| bit(right))
            .fold(0, |all, one| all | one)
    }

    pub fn revoked(&self) -> impl Iterator<Item = (Revocable, Hand)> + '_ {
        // A word of a later agentd means nothing to this one.
        let known = |(word, hand): (&String, &Hand)| Some((word.parse().ok()?, *hand));
        self.revoked.iter().filter_map(known)
    }

    pub fn is_revoked(&self, right: Revocable) -> bool {
        self.revoked.contains_key(right.as_str())
    }

    /// Takes a right.
    pub fn revoke(&mut self, right: Revocable, hand: Hand) {
        let now = self
            .revoked
            .entry(right.as_str().to_owned())
            .or_insert(hand);
        *now = stronger(*now, hand);
    }

    /// Gives rights back, all that are taken if none is named; those that were.
    ///
    /// # Errors
    /// [`NotYours`] when one of them is another's; then none is given back.
    pub fn restore(
        &mut self,
        rights: &[Revocable],
        caller: Caller,
    ) -> Result<Vec<Revocable>, NotYours> {
        let meant: Vec<(Revocable, Hand)> = self
            .revoked()
            .filter(|(right, _)| rights.is_empty() || rights.contains(right))
            .collect();
        if let Some((_, hand)) = meant.iter().find(|(_, hand)| !hand.yields_to(caller)) {
            return Err(NotYours { holder: hand.uid });
        }
        for (right, _) in &meant {
            self.revoked.remove(right.as_str());
        }
        Ok(meant.into_iter().map(|(right, _)| right).collect())
    }

    pub fn freeze(&mut self, hand: Hand) {
        self.frozen = Some(self.frozen.map_or(hand, |now| stronger(now, hand)));
    }

    /// # Errors
    /// [`NotYours`].
    pub fn thaw(&mut self, caller: Caller) -> Result<(), NotYours> {
        match self.frozen {
            Some(hand) if !hand.yields_to(caller) => Err(NotYours { holder: hand.uid }),
            _ => {
                self.frozen = None;
                Ok(())
            }
        }
    }
}

/// The one of two hands that fewer may undo; of two alike, the first.
fn stronger(first: Hand, second: Hand) -> Hand {
    if second.uid == 0 && first.uid != 0 {
        second
    } else {
        first
    }
}

/// What stands for a right in the kernel's table.
fn bit(right: Revocable) -> u32 {
    match right {
        Revocable::Net => revoked::NET,
        Revocable::Exec => revoked::EXEC,
        Revocable::Write => revoked::WRITE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Caller = Caller { uid: 0, gid: 0 };
    const ALICE: Caller = Caller {
        uid: 1000,
        gid: 1000,
    };

    fn by(caller: Caller) -> Hand {
        Hand {
            uid: caller.uid,
            at_ms: 7,
        }
    }

    #[test]
    fn who_took_it_gives_it_back_and_root_gives_back_anything() {
        for giver in [ALICE, ROOT] {
            let mut taken = Taken::default();
            taken.revoke(Revocable::Net, by(ALICE));
            assert_eq!(taken.bits(), revoked::NET);
            assert_eq!(taken.restore(&[], giver), Ok(vec![Revocable::Net]));
            assert_eq!(taken, Taken::default());
        }
    }

    #[test]
    fn what_root_took_stays_taken_whatever_its_owner_does() {
        let mut taken = Taken::default();
        taken.revoke(Revocable::Net, by(ROOT));
        taken.revoke(Revocable::Net, by(ALICE));
        taken.revoke(Revocable::Exec, by(ALICE));
        let before = taken.clone();
        assert_eq!(taken.restore(&[], ALICE), Err(NotYours { holder: 0 }));
        assert_eq!(taken, before, "all or nothing");
        assert_eq!(
            taken.restore(&[Revocable::Exec], ALICE),
            Ok(vec![Revocable::Exec])
        );
        taken.freeze(by(ALICE));
        taken.freeze(by(ROOT));
        assert_eq!(taken.thaw(ALICE), Err(NotYours { holder: 0 }));
        assert_eq!(taken.thaw(ROOT), Ok(()));
        assert_eq!(taken.bits(), revoked::NET);
    }

    #[test]
    fn a_document_of_an_agentd_without_live_control_takes_nothing() {
        let taken: Taken = serde_json::from_str("{}").expect("all fields have defaults");
        assert_eq!(taken.bits(), 0);
        let newer = r#"{"revoked":{"camera":{"uid":0,"at_ms":1},"net":{"uid":0,"at_ms":1}}}"#;
        let taken: Taken = serde_json::from_str(newer).expect("words are kept as they are");
        assert_eq!(taken.bits(), revoked::NET);
    }
}
