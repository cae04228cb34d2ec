//! What one client protects, with which key, and what it demands of others.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::ProtectError;
use super::key::{Key, KeyId};
use super::keyring::Keyring;
use super::open::Opener;
use super::seal::Sealer;
use crate::topic::matches;

/// How old a message may be at a receiver's beginning, unless set otherwise.
pub const ALLOWANCE: Duration = Duration::from_secs(10);

/// The least that is believed. A message that is protected must verify in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// Plain messages too.
    #[default]
    Nothing,
    /// Signed or sealed ones.
    Signed,
    /// Sealed ones only.
    Sealed,
}

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::Signed => "a signature",
            Self::Sealed => "sealing",
        })
    }
}

/// Which messages a key is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// To anyone and any topic.
    Everyone,
    /// To the agent of this name.
    Agent(String),
    /// To topics that the pattern covers.
    Topics(String),
}

/// To whom a message goes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Addressee<'a> {
    Agent(&'a str),
    Topic(&'a str),
    /// Every agent: only a key for everyone will do.
    All,
}

impl Scope {
    fn covers(&self, to: Addressee<'_>) -> bool {
        match (self, to) {
            (Self::Everyone, _) => true,
            (Self::Agent(name), Addressee::Agent(to)) => name == to,
            (Self::Topics(pattern), Addressee::Topic(topic)) => matches(pattern, topic),
            _ => false,
        }
    }
}

/// What protects what, in the order in which it was set.
type Sealers = Vec<(Scope, Arc<Sealer>)>;

/// Keys to protect with, keys to believe, and what is demanded. Clones share the keys, so that they can be changed while in use.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    sealers: Arc<RwLock<Sealers>>,
    /// Answers to requests under shared keys that nothing else is sent with.
    answering: Arc<Mutex<BTreeMap<KeyId, Arc<Sealer>>>>,
    keyring: Arc<Keyring>,
    demand: Demand,
    allowance: Option<Duration>,
}

impl Protection {
    /// No keys yet.
    pub fn new(demand: Demand) -> Self {
        Self {
            demand,
            ..Self::default()
        }
    }

    /// Another allowance than [`ALLOWANCE`] for messages sealed before a receiver began; zero shuts out every replay across
    /// a restart, and with it what was under way.
    #[must_use]
    pub fn with_allowance(mut self, allowance: Duration) -> Self {
        self.allowance = Some(allowance);
        self
    }

    /// From now on messages within `scope` are protected with `key`; a shared key is also believed.
    /// A key for an agent or a topic goes before the one for everyone. To rotate keys: everyone
    /// accepts the new one, each sends with it, the old one is retired.
    pub fn send_with(&self, scope: Scope, key: Key) -> Result<(), ProtectError> {
        let sealer = Arc::new(Sealer::new(key.clone())?);
        if key.public().is_none() {
            self.keyring.add(key)?;
        }
        let mut sealers = self.sealers.write().unwrap_or_else(PoisonError::into_inner);
        sealers.retain(|(held, _)| *held != scope);
        sealers.push((scope, sealer));
        Ok(())
    }

    /// From now on messages under `key` are believed.
    pub fn accept(&self, key: Key) -> Result<(), ProtectError> {
        self.keyring.add(key)
    }

    /// From now on nothing is believed under this key, nor sent with it.
    pub fn retire(&self, key: KeyId) {
        self.keyring.retire(key);
        self.answering
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
        self.sealers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(_, sealer)| sealer.key_id() != key);
    }

    pub fn demand(&self) -> Demand {
        self.demand
    }

    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
    }

    /// A new receiver.
    pub fn opener(&self) -> Opener {
        Opener::new(self.keyring.clone(), self.allowance.unwrap_or(ALLOWANCE))
    }

    /// What protects a message to `to`, if anything does.
    pub(crate) fn sealer(&self, to: Addressee<'_>) -> Option<Arc<Sealer>> {
        let sealers = self.sealers.read().unwrap_or_else(PoisonError::into_inner);
        let covering = || sealers.iter().rev().filter(|(scope, _)| scope.covers(to));
        covering()
            .find(|(scope, _)| *scope != Scope::Everyone)
            .or_else(|| covering().next())
            .map(|(_, sealer)| sealer.clone())
    }

    /// What protects the answer to a request under `key`: the same key if it is a shared one, otherwise a key of our own.
    pub(crate) fn sealer_for_answer(&self, key: KeyId) -> Result<Arc<Sealer>, ProtectError> {
        let sealers = self.sealers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, sealer)) = sealers.iter().find(|(_, sealer)| sealer.key_id() == key) {
            return Ok(sealer.clone());
        }
        match self.keyring.get(key) {
            Some(shared) if shared.public().is_none() => {
                let mut answering = self
                    .answering
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                match answering.entry(key) {
                    Entry::Occupied(held) => Ok(held.get().clone()),
                    Entry::Vacant(free) => Ok(free.insert(Arc::new(Sealer::new(shared)?)).clone()),
                }
            }
            _ => sealers
                .iter()
                .rev()
                .find(|(_, sealer)| sealer.scheme() == super::Scheme::Ed25519)
                .map(|(_, sealer)| sealer.clone())
                .ok_or(ProtectError::VerifyOnly { key }),
        }
    }
}
