//! What a consumer's connection is given when it is asked what it has to write.
//!
//! Deliveries are built as late as this, so that a batch is as large as what waits, a slow connection holds nothing
//! that another could take, and no copy lies in between. Which queue is served first goes by their classes.

#![forbid(unsafe_code)]

use crate::frame::{Frame, kind};

use super::super::{ConnId, Descriptor, Effects, Outgoing, Router};

/// The verb of [`crate::message::Control::Delivered`], and the reserved field behind it.
const DELIVERED: [u8; 4] = [27, 0, 0, 0];
/// Bytes of one batch, unless a single message is larger: with its header it fits into one message of a lane.
const BATCH_BYTES: usize = 48 * 1024;

impl<F: Descriptor> Router<F> {
    /// The next batch for this connection.
    pub(in super::super) fn deliver(
        &mut self,
        id: ConnId,
        fx: &mut Effects<F>,
    ) -> Option<Outgoing<F>> {
        let conn = self.conns.get_mut(&id)?;
        let queues = &mut self.queues;
        loop {
            let number = conn.order.turn(|number| {
                let Some(queue) = queues.get_mut(&number) else {
                    return false;
                };
                let Some(consumer) = queue.store.consumer(id) else {
                    return false;
                };
                let stays = queue.store.share(consumer) > 0;
                queue.store.consumers[consumer].woken = stays;
                stays
            })?;
            let queue = queues.get_mut(&number).expect("its turn came");
            let consumer = queue.store.consumer(id).expect("its turn came");
            let mut head = [0; 8];
            head[..4].copy_from_slice(&DELIVERED);
            head[4..].copy_from_slice(&number.to_le_bytes());
            let given = queue
                .store
                .deliver(consumer, &head, BATCH_BYTES, self.clock.mono_ns);
            let Some((payload, count)) = given else {
                // What waits fits into no batch of this size, which one message always does.
                debug_assert!(false, "a consumer with a share is given something");
                queue.store.consumers[consumer].woken = false;
                conn.order.remove(queue.store.spec().class, number);
                continue;
            };
            let bytes = payload.len();
            let owner = conn.peer;
            let mut frame = Frame::new(kind::COMMAND, owner, 0, payload);
            frame.header.timestamp_ns = self.clock.wall_ns.into();
            conn.delivered();
            let out = conn.finish(Outgoing { frame, fd: None });
            if let Some(peer) = self.peers.get_mut(&owner) {
                peer.counters.received += u64::from(count);
                peer.counters.received_bytes += bytes as u64;
            }
            // Nothing else follows from a delivery but its time-out, and what is told of it.
            self.arm(number, self.clock);
            if !self.queues[&number].store.steps.is_empty() {
                self.tell_steps(number, fx);
            }
            return Some(out);
        }
    }
}
