//! What waits to be sent on one connection: owned buffers in order, small ones gathered into one.
//!
//! Bounded by its user, who sees [`Outbox::waiting`] grow. An empty outbox holds no memory. Pure.

use std::collections::VecDeque;

/// Up to this size buffers are copied together, so that many small frames cost one call.
const GATHER: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Empty when nothing waits. Most connections have one buffer at a time: the queue behind it costs them nothing.
    first: Vec<u8>,
    /// Sent of the first buffer.
    sent: usize,
    others: VecDeque<Vec<u8>>,
    waiting: usize,
    /// The kernel holds the first buffer: nothing may be appended to it.
    held: bool,
    draining: bool,
}

impl Outbox {
    pub fn push(&mut self, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        self.waiting += bytes.len();
        if self.first.is_empty() {
            self.first = bytes;
            return;
        }
        let last = match self.others.back_mut() {
            Some(last) => Some(last),
            None => Some(&mut self.first).filter(|_| !self.held),
        };
        match last {
            Some(last) if last.len() + bytes.len() <= GATHER => last.extend_from_slice(&bytes),
            _ => self.others.push_back(bytes),
        }
    }

    /// Nothing is put in any more; the connection closes when all is sent.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// All is sent, and nothing will be put in.
    pub fn is_drained(&self) -> bool {
        self.draining && self.waiting == 0
    }

    /// Bytes not yet sent.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// The next bytes to send; empty when there are none.
    pub fn front(&self) -> &[u8] {
        &self.first[self.sent..]
    }

    /// As [`Self::front`]; the buffer stays where it is in memory until [`Self::release`].
    pub fn hold(&mut self) -> &[u8] {
        self.held = !self.first.is_empty();
        self.front()
    }

    /// The kernel is done with what was held.
    pub fn release(&mut self) {
        self.held = false;
    }

    /// `count` bytes of the front are sent.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        self.waiting -= count;
        if self.sent == self.first.len() {
            self.sent = 0;
            self.first = self.others.pop_front().unwrap_or_default();
            if self.others.is_empty() {
                self.others = VecDeque::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_buffers_are_gathered_and_nothing_is_kept_when_empty() {
        let mut outbox = Outbox::default();
        outbox.push(vec![1; 10]);
        outbox.push(vec![2; 20]);
        assert_eq!((outbox.front().len(), outbox.waiting()), (30, 30));
        outbox.advance(29);
        assert_eq!(outbox.front(), [2]);
        outbox.advance(1);
        assert_eq!((outbox.front().len(), outbox.waiting()), (0, 0));
        assert_eq!((outbox.first.capacity(), outbox.others.capacity()), (0, 0));
    }

    #[test]
    fn a_held_buffer_does_not_move() {
        let mut outbox = Outbox::default();
        outbox.push(Vec::from("first"));
        let at = outbox.hold().as_ptr();
        outbox.push(Vec::from(" second"));
        outbox.push(Vec::from(" third"));
        assert_eq!(
            (outbox.front(), outbox.front().as_ptr()),
            (&b"first"[..], at)
        );
        outbox.release();
        outbox.advance(5);
        assert_eq!(outbox.front(), b" second third");
    }

    #[test]
    fn large_buffers_are_not_copied() {
        let mut outbox = Outbox::default();
        outbox.push(vec![0; GATHER]);
        outbox.push(vec![1; GATHER]);
        assert_eq!(outbox.front().len(), GATHER);
        outbox.advance(GATHER);
        assert_eq!(outbox.front(), vec![1; GATHER]);
    }
}
