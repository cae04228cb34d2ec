//! Protection at the ends of a client: what goes out is protected as [`Protection`] says, what
//! comes in is verified before the program sees any of it.
//!
//! Whatever does not verify is dropped, counted and kept for [`super::Client::refused`]; a request
//! is answered with the reason as well. Without keys everything goes out plain, and what comes
//! protected is refused: there is nobody here who could read it.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::ClientError;
use crate::frame::{Frame, PeerId, flags, kind};
use crate::protect::policy::Addressee;
use crate::protect::{
    MessageId, Opened, Opener, ProtectError, Protection, Sealer, Verified, open_answer, open_frame,
    protect_frame,
};

/// Refusals kept until somebody asks.
const REFUSALS_KEPT: usize = 64;
/// Requests from the inbox whose answers are to be protected.
const ANSWERS_HELD: usize = 1024;

/// A message that was not believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Who sent it, as the bus says.
    pub from: PeerId,
    pub why: ProtectError,
}

/// What was refused since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    pub count: u64,
    /// The latest of them.
    pub latest: Vec<Refusal>,
}

/// How the answer to one request is protected.
#[derive(Clone, Debug)]
pub(super) struct Answering {
    sealer: Arc<Sealer>,
    asker: PeerId,
    asked: MessageId,
}

/// A request that went out protected: what its answer must prove.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    server: PeerId,
    id: MessageId,
    scheme: crate::protect::Scheme,
}

#[derive(Debug)]
pub(super) struct Guard {
    protection: Protection,
    inbox: Opener,
    answers: Mutex<VecDeque<(u32, Answering)>>,
    refusals: Mutex<Refusals>,
}

impl Guard {
    pub fn new(protection: Protection) -> Self {
        Self {
            inbox: protection.opener(),
            protection,
            answers: Mutex::default(),
            refusals: Mutex::default(),
        }
    }

    /// A receiver of its own for one subscription or one connection that serves.
    pub fn opener(&self) -> Opener {
        self.protection.opener()
    }

    /// Whether there is a key for what goes to `to`.
    pub fn protects(&self, to: Addressee<'_>) -> bool {
        self.protection.sealer(to).is_some()
    }

    /// Protects what goes from `me` to `id`, if there is a key for `to`.
    pub fn outgoing(
        &self,
        frame: Frame,
        me: PeerId,
        id: PeerId,
        to: Addressee<'_>,
    ) -> Result<(Frame, Option<Asked>), ProtectError> {
        let Some(sealer) = self.protection.sealer(to) else {
            return Ok((frame, None));
        };
        let is_request = frame.kind() == kind::REQUEST;
        let (frame, message) = protect_frame(&sealer, frame, me, id, None)?;
        let asked = is_request.then(|| Asked {
            server: id,
            id: message,
            scheme: sealer.scheme(),
        });
        Ok((frame, asked))
    }

    /// The plain form of the answer to what went out as `asked`.
    pub fn answer(
        &self,
        frame: Frame,
        me: PeerId,
        asked: Option<Asked>,
    ) -> Result<Frame, ProtectError> {
        match asked {
            Some(Asked { server, id, scheme }) => {
                open_answer(self.protection.keyring(), frame, (server, me), id, scheme)
            }
            None if frame.header.flags.get() & (flags::SIGNED | flags::SEALED) != 0 => {
                // It answers nothing that we protected, so there is nothing it could be bound to.
                Err(ProtectError::FlagsDisagree)
            }
            None => Ok(frame),
        }
    }

    /// Verifies what came to `opener`. The answer to a request comes with it: how to protect it.
    pub fn incoming(
        &self,
        opener: &Opener,
        frame: Frame,
        me: PeerId,
    ) -> Result<(Opened, Option<Answering>), ProtectError> {
        let asker = frame.header.source;
        let opened = open_frame(opener, self.protection.demand(), frame, me)?;
        let answering = match opened.verified {
            Some(Verified { key, id, .. }) if opened.frame.kind() == kind::REQUEST => {
                Some(Answering {
                    sealer: self.protection.sealer_for_answer(key)?,
                    asker,
                    asked: id,
                })
            }
            _ => None,
        };
        Ok((opened, answering))
    }

    /// As [`Self::incoming`], for what was read from the inbox: remembers how requests are to be answered.
    pub fn open_from_inbox(&self, frame: Frame, me: PeerId) -> Result<Frame, ProtectError> {
        let id = frame.correlation();
        let (opened, answering) = self.incoming(&self.inbox, frame, me)?;
        if let Some(answering) = answering {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.truncate(ANSWERS_HELD - 1);
            answers.push_front((id, answering));
        }
        Ok(opened.frame)
    }

    /// How the request that was read from the inbox under `id` is to be answered.
    pub fn answering(&self, id: u32) -> Option<Answering> {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let at = answers.iter().position(|(held, _)| *held == id)?;
        answers.remove(at).map(|(_, answering)| answering)
    }

    pub fn refuse(&self, from: PeerId, why: ProtectError) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.count += 1;
        if refusals.latest.len() >= REFUSALS_KEPT {
            refusals.latest.remove(0);
        }
        refusals.latest.push(Refusal { from, why });
    }

    pub fn take_refusals(&self) -> Refusals {
        std::mem::take(&mut self.refusals.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Answering {
    /// Protects an answer from `me`.
    pub fn protect(&self, frame: Frame, me: PeerId) -> Result<Frame, ClientError> {
        let (frame, _) = protect_frame(&self.sealer, frame, me, self.asker, Some(self.asked))?;
        Ok(frame)
    }
}
