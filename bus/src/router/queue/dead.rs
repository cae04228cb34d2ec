//! Looking into a queue, and what becomes of its dead letters: for consumers, and for the user it belongs to.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use crate::message::{DELIVERY_HEADER, DeadAction, Numbers, QueuePart};

use super::super::dispatch::Refusal;
use super::super::{ConnId, Descriptor, Effects, Now, Router};
use super::Wish;
use super::slab::State;

/// Most messages in one look.
const PEEK_MAX: u32 = 256;

impl<F: Descriptor> Router<F> {
    /// Messages as they lie, each as a delivery whose tag is 0, or of a dead letter its reason.
    pub(in super::super) fn queue_peek(
        &self,
        id: ConnId,
        number: u32,
        part: QueuePart,
        from: u64,
        max: u32,
    ) -> Result<Vec<u8>, Refusal> {
        self.opened_to(Wish::Consume, id, number)?;
        let store = &self.queues[&number].store;
        let max = max.clamp(1, PEEK_MAX) as usize;
        let mut out = Vec::new();
        // Room for the response around it.
        let room = self.limits.max_payload as usize - 64;
        for slot in store.peek(part == QueuePart::Dead, from, max) {
            let len = DELIVERY_HEADER + slot.data().len();
            if out.len() + len > room {
                break;
            }
            let tag = match slot.state {
                State::Dead(reason) => u64::from(reason.code()),
                _ => 0,
            };
            let at = out.len();
            out.resize(at + len, 0);
            slot.delivery(tag).write(&mut out[at..]);
        }
        Ok(out)
    }

    /// Dead letters live again or go for good. Without ids: all.
    pub(in super::super) fn queue_dead(
        &mut self,
        id: ConnId,
        number: u32,
        action: DeadAction,
        ids: Numbers<'_>,
        now: Now,
        fx: &mut Effects<F>,
    ) -> Result<Vec<u8>, Refusal> {
        self.opened_to(Wish::Consume, id, number)?;
        self.opened_to(Wish::Produce, id, number)?;
        let ids: BTreeSet<u64> = ids.iter().collect();
        let store = &mut self.queues.get_mut(&number).expect("it is open").store;
        let count = match action {
            DeadAction::Requeue => store.requeue(&ids),
            DeadAction::Drop => store.drop_letters(&ids),
        };
        self.after(number, now, fx);
        Ok(count.to_le_bytes().to_vec())
    }
}
