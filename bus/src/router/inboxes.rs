//! Inboxes: reads that wait for a message, and what one read is given.

#![forbid(unsafe_code)]

use crate::frame::PeerId;
use crate::listing::InboxBatch;
use crate::message::Status;

use super::{ConnId, Descriptor, Effects, Now, PendingState, Router, Timer};

impl<F: Descriptor> Router<F> {
    /// Answers reads of `peer`'s inbox that wait, while there is something to give.
    pub(super) fn serve_waiters(&mut self, peer: PeerId, now: Now, fx: &mut Effects<F>) {
        while let Some(entry) = self.peers.get(&peer) {
            let has_request = !entry.waiting.is_empty() && !self.is_serving(entry);
            if entry.inbox.is_empty() && !has_request {
                return;
            }
            let Some(waiter) = self
                .peers
                .get_mut(&peer)
                .and_then(|entry| entry.waiters.pop_front())
            else {
                return;
            };
            self.timers.remove(&(
                waiter.deadline_ns,
                Timer::InboxWait(peer, waiter.conn, waiter.correlation),
            ));
            self.answer_inbox(waiter.conn, waiter.correlation, waiter.max, now, fx);
        }
    }

    /// Answers the reads that waited for what came just now.
    pub(super) fn serve_roused(&mut self, now: Now, fx: &mut Effects<F>) {
        while let Some(peer) = self.roused.pop() {
            self.serve_waiters(peer, now, fx);
        }
    }

    /// Takes up to `max` messages for a read of the inbox and answers it. Requests that nobody serves
    /// come first: someone waits for them.
    pub(super) fn answer_inbox(
        &mut self,
        id: ConnId,
        correlation: u32,
        max: u32,
        _now: Now,
        fx: &mut Effects<F>,
    ) {
        let Some(peer_id) = self.conns.get(&id).map(|conn| conn.peer) else {
            return;
        };
        let Some(peer) = self.peers.get(&peer_id) else {
            return;
        };
        let takes_requests = !self.is_serving(peer);
        let mut result = vec![0; 8];
        let mut count = 0;
        let mut room = self.limits.max_payload as usize;
        while takes_requests && count < max {
            let waiting = &mut self
                .peers
                .get_mut(&peer_id)
                .expect("looked up above")
                .waiting;
            let Some(wire) = waiting.peek().copied() else {
                break;
            };
            let open = self
                .pending
                .get_mut(&wire)
                .expect("a waiting request is open");
            let PendingState::Waiting(frame) = &open.state else {
                unreachable!("a queued request is Waiting")
            };
            let name = self
                .peers
                .get(&open.asker)
                .map_or_else(|| "".into(), |peer| peer.name.clone());
            let len = InboxBatch::entry_len(&name, frame);
            if len > room && count > 0 {
                break;
            }
            let PendingState::Waiting(frame) =
                std::mem::replace(&mut open.state, PendingState::Taken)
            else {
                unreachable!("checked above")
            };
            room = room.saturating_sub(len);
            count += 1;
            InboxBatch::encode_entry(&name, &frame, &mut result);
            self.peers
                .get_mut(&peer_id)
                .expect("looked up above")
                .waiting
                .pop();
        }
        let peer = self.peers.get_mut(&peer_id).expect("looked up above");
        while count < max {
            // The first message always goes, however large: otherwise it would block the inbox for ever.
            let allowed = if count == 0 { usize::MAX } else { room };
            let Some((name, frame)) = peer.take_message(allowed) else {
                break;
            };
            room = room.saturating_sub(InboxBatch::entry_len(&name, &frame));
            count += 1;
            InboxBatch::encode_entry(&name, &frame, &mut result);
        }
        result[..8].copy_from_slice(&std::mem::take(&mut peer.lost).to_le_bytes());
        self.answer(id, correlation, Status::OK, "", &result, fx);
    }
}
