//! What is taken from one agent, by whom, and who may give it back. Pure.
//!
//! A right belongs to the hand that took it. Only root lifts what root took; an owner's hand never replaces root's, root's
//! replaces any. Kept with the broker in the agent's document, so that it outlives agentd.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentd_api::Revocable;
use agentd_api::restriction::Hand as Told;
use agentd_bpf::layout::revoked;
use agentd_sandbox::Tightening;
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

/// Tightenings that one agent can have: each is asked at each question.
pub const MAX_TIGHTENINGS: usize = 16;

/// The most bytes that what is kept of an agent's tightenings may have.
const MAX_TIGHTENING_BYTES: usize = 1 << 20;

/// What was laid over an agent's policy, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Laid {
    pub hand: Hand,
    pub rules: Tightening,
}

/// There is no room for another tightening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    #[error(
        "{MAX_TIGHTENINGS} tightenings hold already, and there can't be more; `agentctl restore policy` takes them off"
    )]
    Many,
    #[error("the tightenings of one agent can't have more than {MAX_TIGHTENING_BYTES} bytes")]
    Long,
}

/// What is taken from one agent. Nothing, for most.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// By the right's word.
    #[serde(default)]
    revoked: BTreeMap<String, Hand>,
    #[serde(default)]
    pub frozen: Option<Hand>,
    #[serde(default)]
    tightened: Vec<Laid>,
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

    /// What is laid over its policy, in the order in which it came.
    pub fn tightened(&self) -> &[Laid] {
        &self.tightened
    }

    /// The same, for those who judge by it.
    pub fn tightenings(&self) -> Vec<Arc<Tightening>> {
        let rules = self.tightened.iter().map(|laid| laid.rules.clone());
        rules.map(Arc::new).collect()
    }

    /// Lays rules over the agent's policy. The same rules again are laid once.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn tighten(&mut self, rules: Tightening, hand: Hand) -> Result<(), TooMuch> {
        if let Some(laid) = self.tightened.iter_mut().find(|laid| laid.rules == rules) {
            laid.hand = stronger(laid.hand, hand);
            return Ok(());
        }
        if self.tightened.len() == MAX_TIGHTENINGS {
            return Err(TooMuch::Many);
        }
        self.tightened.push(Laid { hand, rules });
        let bytes = serde_json::to_vec(&self.tightened).map_or(usize::MAX, |text| text.len());
        if bytes > MAX_TIGHTENING_BYTES {
            self.tightened.pop();
            return Err(TooMuch::Long);
        }
        Ok(())
    }

    /// A key of a tightening that only a later agentd knows.
    pub fn unknown_key(&self) -> Option<&str> {
        self.tightened
            .iter()
            .find_map(|laid| laid.rules.unknown_key())
    }

    /// Gives rights back, all that are taken if none is named; those that were. Of the tightenings, if they are named, those
    /// that are the caller's to lift.
    ///
    /// # Errors
    /// [`NotYours`] when a right is another's, or a tightening and all were meant, or every tightening; then nothing is given
    /// back.
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
        let mut back: Vec<Revocable> = meant.into_iter().map(|(right, _)| right).collect();
        if rights.is_empty() || rights.contains(&Revocable::Policy) {
            let (mine, others): (Vec<&Laid>, Vec<&Laid>) = self
                .tightened
                .iter()
                .partition(|laid| laid.hand.yields_to(caller));
            match others.first() {
                Some(other) if rights.is_empty() || mine.is_empty() => {
                    return Err(NotYours {
                        holder: other.hand.uid,
                    });
                }
                _ => {}
            }
            if !mine.is_empty() {
                back.push(Revocable::Policy);
                self.tightened.retain(|laid| !laid.hand.yields_to(caller));
            }
        }
        for right in &back {
            self.revoked.remove(right.as_str());
        }
        Ok(back)
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
        // agentd holds it, not the kernel.
        Revocable::Policy => 0,
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

    fn tight(setting: (&str, &str)) -> Tightening {
        let sources = agentd_sandbox::Sources {
            settings: vec![(setting.0.to_owned(), setting.1.to_owned())],
            ..agentd_sandbox::Sources::default()
        };
        Tightening::load(None, &sources, &[]).expect("a setting").0
    }

    #[test]
    fn each_lifts_what_it_laid_over_the_policy_and_root_lifts_all() {
        let (first, second) = (
            tight(("ipc.publish", "a")),
            tight(("net.allow", "a.example")),
        );
        let mut taken = Taken::default();
        taken.tighten(first.clone(), by(ALICE)).expect("room");
        taken.tighten(second.clone(), by(ROOT)).expect("room");
        taken
            .tighten(first.clone(), by(ALICE))
            .expect("the same again");
        assert_eq!(taken.tightened().len(), 2);
        assert_eq!(taken.bits(), 0, "nothing of it is the kernel's");
        assert_eq!(taken.restore(&[], ALICE), Err(NotYours { holder: 0 }));
        assert_eq!(
            taken.restore(&[Revocable::Policy], ALICE),
            Ok(vec![Revocable::Policy])
        );
        assert_eq!(taken.tightened()[0].rules, second);
        assert_eq!(
            taken.restore(&[Revocable::Policy], ALICE),
            Err(NotYours { holder: 0 })
        );
        let kept = serde_json::to_string(&taken).expect("plain data");
        assert_eq!(
            serde_json::from_str::<Taken>(&kept).expect("its own"),
            taken
        );
        taken.tighten(first.clone(), by(ALICE)).expect("room");
        taken.tighten(first, by(ROOT)).expect("the stronger hand");
        assert_eq!(taken.restore(&[], ROOT), Ok(vec![Revocable::Policy]));
        assert_eq!(taken, Taken::default());
    }

    #[test]
    fn there_is_a_last_tightening() {
        let mut taken = Taken::default();
        for n in 0..MAX_TIGHTENINGS {
            let rules = tight(("limits.tokens", &format!("{}", n + 1)));
            taken.tighten(rules, by(ALICE)).expect("room");
        }
        let before = taken.clone();
        let more = taken.tighten(tight(("limits.tokens", "99")), by(ALICE));
        assert_eq!(more, Err(TooMuch::Many));
        let known = taken.tighten(tight(("limits.tokens", "1")), by(ALICE));
        assert_eq!((known, taken), (Ok(()), before));
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
