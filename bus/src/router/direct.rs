//! The direct path, as far as the router has to do with it: who has which address, who has a direct
//! connection, and answers that did not get through. What the path carries is never seen here.

#![forbid(unsafe_code)]

use crate::access::Wish;
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Direct, Response, Status};

use super::dispatch::Refusal;
use super::{ConnId, Descriptor, Effects, Now, Router, clip};

/// An agent on the direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectPlace {
    /// Slot and cgroup.
    pub address: u64,
    /// The connection of the process that says it has the agent's direct connection.
    pub held_by: Option<ConnId>,
}

impl<F: Descriptor> Router<F> {
    /// The agent is on the direct path under this address. It stays so until it is detached.
    pub fn set_direct(&mut self, peer: PeerId, address: u64) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.direct = Some(DirectPlace {
                address,
                held_by: None,
            });
        }
    }

    pub(super) fn direct(
        &mut self,
        id: ConnId,
        correlation: u32,
        said: Direct<'_>,
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let me = self.conns[&id].peer;
        let outcome = match said {
            Direct::Own { held } => self
                .hold_direct(id, me, held)
                .map(|address| address.to_le_bytes().to_vec()),
            Direct::Peer { id: peer } => self
                .direct_address(me, peer)
                .map(|address| address.to_le_bytes().to_vec()),
            Direct::Whose { address } => self.at_address(me, address).map(|peer| peer.0.to_vec()),
            Direct::Answer {
                to,
                correlation: asked,
                response,
            } => return self.pass_answer(me, to, asked, response, now, fx),
            Direct::Answered { .. } | Direct::Gone { .. } => Err(Refusal::new(
                Status::MALFORMED,
                "that is said by the bus to a client, not to it",
            )),
        };
        match outcome {
            Ok(result) => self.answer(id, correlation, Status::OK, "", &result, fx),
            Err(Refusal { status, text }) => self.answer(id, correlation, status, &text, &[], fx),
        }
    }

    fn hold_direct(&mut self, id: ConnId, me: PeerId, held: bool) -> Result<u64, Refusal> {
        let peer = self.peers.get_mut(&me).expect("its connection is there");
        let Some(place) = &mut peer.direct else {
            let text = "this agent has no direct path; `agentctl bus peers` says why";
            return Err(Refusal::new(Status::UNSUPPORTED, text));
        };
        if held {
            place.held_by = Some(id);
        }
        Ok(place.address)
    }

    fn direct_address(&self, me: PeerId, to: PeerId) -> Result<u64, Refusal> {
        self.may_address(me, to, Wish::Request)?;
        let peer = &self.peers[&to];
        match peer.direct {
            Some(DirectPlace {
                address,
                held_by: Some(_),
            }) => Ok(address),
            _ => {
                let text = format!("{} has no direct connection", peer.name);
                Err(Refusal::new(Status::UNSUPPORTED, text))
            }
        }
    }

    /// The agent of the same user that has this address.
    fn at_address(&self, me: PeerId, address: u64) -> Result<PeerId, Refusal> {
        let uid = self.peers[&me].uid;
        let found = self.peers.iter().find(|(_, peer)| {
            peer.uid == uid && peer.direct.is_some_and(|place| place.address == address)
        });
        found.map(|(id, _)| *id).ok_or_else(|| {
            let text = format!("no agent of yours has address {address:#x} on the direct path");
            Refusal::new(Status::NO_SUCH_AGENT, text)
        })
    }

    /// Nothing is due to whoever answers: if nobody is there who asked, nobody waits.
    fn pass_answer(
        &mut self,
        me: PeerId,
        to: u64,
        correlation: u64,
        response: &[u8],
        now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(DirectPlace { address: from, .. }) = self.peers[&me].direct else {
            return;
        };
        let Ok(asker) = self.at_address(me, to) else {
            return;
        };
        let Some(conn) = self.peers[&asker].direct.and_then(|place| place.held_by) else {
            return;
        };
        let checked = Response::parse(response)
            .map_err(|error| Refusal::new(Status::MALFORMED, error.to_string()))
            .and_then(|response| {
                if response.status.is_bus_only() {
                    let text = format!("status {} is the bus's own", response.status.0);
                    return Err(Refusal::new(Status::MALFORMED, text));
                }
                // What it may no longer ask it is no longer told.
                self.may_address(asker, me, Wish::Request)?;
                Ok(response.status)
            })
            .and_then(|status| {
                let room = self.conns[&conn].has_room_for(response.len() + HEAD, &self.limits);
                let text = "the answer found no room: read this connection faster";
                room.then_some(status)
                    .ok_or_else(|| Refusal::new(Status::QUEUE_FULL, text))
            });
        let (outcome, instead) = match checked {
            Ok(status) => (status, None),
            Err(Refusal { status, text }) => {
                let refusal = Response {
                    status,
                    error: clip(&text),
                    result: &[],
                };
                let payload = refusal.encode().expect("the text was clipped");
                (status, Some(payload))
            }
        };
        let answered = Direct::Answered {
            from,
            correlation,
            response: instead.as_deref().unwrap_or(response),
        };
        let payload = Control::Direct(answered).encode();
        let payload = payload.expect("no field has a limit");
        let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload);
        self.push_must(conn, frame, None, fx);
        let (what, asker) = (self.words.get("direct"), Some((asker, self.name_of(asker))));
        let bytes = response.len() as u32;
        self.note(
            me, asker, None, "response", what, bytes, 0, outcome, 1, now, fx,
        );
    }

    /// A connection has closed: whoever asked its process by the direct path learns that no answer comes.
    pub(super) fn leaves_direct_path(&mut self, peer: PeerId, conn: ConnId, fx: &mut Effects<F>) {
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        let uid = entry.uid;
        let Some(place) = entry
            .direct
            .as_mut()
            .filter(|place| place.held_by == Some(conn))
        else {
            return;
        };
        place.held_by = None;
        let gone = Direct::Gone {
            address: place.address,
        };
        let payload = Control::Direct(gone).encode().expect("fixed size");
        let others: Vec<ConnId> = self
            .peers
            .values()
            .filter(|other| other.uid == uid)
            .filter_map(|other| other.direct?.held_by)
            .collect();
        for other in others {
            let frame = Frame::new(kind::COMMAND, PeerId::BUS, 0, payload.clone());
            self.push_must(other, frame, None, fx);
        }
    }
}

/// What is in front of a response on its way to whoever asked.
const HEAD: usize = crate::frame::HEADER_LEN + 20;
