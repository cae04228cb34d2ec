//! The keys that a receiver believes, by id; shared by all its openers.
//!
//! Session keys are derived once and kept, bounded, *after* a message has verified: a forger can make us derive, never remember.

#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::ProtectError;
use super::envelope::{FIXED_LEN, Fixed, Transcript};
use super::key::{Key, KeyId, SessionKey};

/// Session keys kept.
const SESSIONS_KEPT: usize = 256;

/// Session keys by key and session.
type Sessions = HashMap<(KeyId, [u8; 16]), Arc<SessionKey>>;

/// Keys to verify and open with.
#[derive(Debug, Default)]
pub struct Keyring {
    keys: RwLock<BTreeMap<KeyId, Key>>,
    sessions: Mutex<Sessions>,
}

impl Keyring {
    /// Adds a key. The same key twice is fine, two keys of one id are not.
    pub fn add(&self, key: Key) -> Result<(), ProtectError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        match keys.get(&key.id()) {
            Some(held) if !held.is_same(&key) => Err(ProtectError::IdTaken { key: key.id() }),
            Some(_) => Ok(()),
            None => {
                keys.insert(key.id(), key);
                Ok(())
            }
        }
    }

    /// Forgets a key: nothing under it is believed any more. `false`: it was not held.
    pub fn retire(&self, id: KeyId) -> bool {
        // `open` holds the keys while it keeps a session, so no session key outlives its key here.
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        self.sessions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|(key, _), _| *key != id);
        keys.remove(&id).is_some()
    }

    /// The key of that id.
    pub fn get(&self, id: KeyId) -> Option<Key> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        keys.get(&id).cloned()
    }

    fn unknown(&self, key: KeyId) -> ProtectError {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let known: Vec<String> = keys.keys().map(KeyId::to_string).collect();
        let known = if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        };
        ProtectError::UnknownKey { key, known }
    }

    /// Verifies an envelope and appends its plain body to `out`. Replays are not looked for.
    pub fn open(
        &self,
        transcript: &Transcript<'_>,
        envelope: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Fixed, ProtectError> {
        let (fixed, body, tag) = Fixed::parse(envelope)?;
        // Held to the end, so that `retire` is not overtaken.
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let Some(key) = keys.get(&fixed.key) else {
            drop(keys);
            return Err(self.unknown(fixed.key));
        };
        if key.scheme() != fixed.scheme {
            return Err(ProtectError::WrongScheme {
                key: fixed.key,
                expected: key.scheme(),
                found: fixed.scheme,
            });
        }
        let name = (fixed.key, fixed.id.session);
        let sessions = || self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = sessions().get(&name).cloned();
        let session = match &kept {
            Some(session) => session.clone(),
            None => Arc::new(key.session(&fixed.id.session)),
        };
        let fixed_bytes: &[u8; FIXED_LEN] = envelope.first_chunk().expect("parsed above");
        let covered = transcript.encode(fixed_bytes, body.len());
        session.open(fixed.key, fixed.id.counter, &covered, body, tag, out)?;
        if kept.is_none() {
            let mut sessions = sessions();
            if sessions.len() >= SESSIONS_KEPT {
                sessions.clear();
            }
            sessions.insert(name, session);
        }
        Ok(fixed)
    }
}
