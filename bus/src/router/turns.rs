//! Who goes first: the higher level, but nobody never; and, among senders of one level, each its share of bytes.
//!
//! [`Turns`] picks among levels of which some have something: the highest, except that one that was passed over
//! [`PATIENCE`] times in a row goes first once. [`Fair`] holds what waits for one receiver, by class and, within a class,
//! by sender: deficit round robin, so that who sends much or large messages delays the others by one turn of
//! [`QUANTUM`] bytes, however much of it waits. Within a sender and class the order is kept. Pure.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use super::numbers::ByNumber;
use crate::frame::PeerId;

/// Times that a level with something ready is passed over before it goes first.
pub(super) const PATIENCE: u8 = 16;
/// Bytes that a sender may pass on in one turn.
pub(super) const QUANTUM: usize = 16 * 1024;
/// Priorities of a frame.
pub(super) const CLASSES: usize = 4;

/// How often each level was passed over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turns<const N: usize>([u8; N]);

impl<const N: usize> Default for Turns<N> {
    fn default() -> Self {
        Self([0; N])
    }
}

impl<const N: usize> Turns<N> {
    /// Whose turn it is among the levels of which `waits` says so; the last is the highest.
    #[inline]
    pub fn pick(&self, waits: impl Fn(usize) -> bool) -> Option<usize> {
        let mut highest = None;
        for level in (0..N).rev().filter(|level| waits(*level)) {
            if self.0[level] >= PATIENCE {
                return Some(level);
            }
            highest = highest.or(Some(level));
        }
        highest
    }

    /// That level was served; `waits` is as it was before.
    #[inline]
    pub fn served(&mut self, level: usize, waits: impl Fn(usize) -> bool) {
        for other in 0..N {
            self.0[other] = if other != level && waits(other) {
                self.0[other].saturating_add(1)
            } else {
                0
            };
        }
    }
}

#[derive(Debug)]
struct Flow<T> {
    items: VecDeque<(usize, u64, T)>,
    deficit: usize,
}

#[derive(Debug)]
struct Class<T> {
    flows: ByNumber<PeerId, Flow<T>>,
    /// Senders with something, in the order of their turns.
    ring: VecDeque<PeerId>,
}

impl<T> Default for Class<T> {
    fn default() -> Self {
        Self {
            flows: ByNumber::default(),
            ring: VecDeque::new(),
        }
    }
}

/// What waits for one receiver.
#[derive(Debug)]
pub(super) struct Fair<T> {
    classes: [Class<T>; CLASSES],
    turns: Turns<CLASSES>,
    len: usize,
    bytes: usize,
    next: u64,
}

impl<T> Default for Fair<T> {
    fn default() -> Self {
        Self {
            classes: Default::default(),
            turns: Turns::default(),
            len: 0,
            bytes: 0,
            next: 0,
        }
    }
}

impl<T> Fair<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What all that waits costs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds one of `bytes`, of class 0 to 3.
    pub fn push(&mut self, class: usize, from: PeerId, bytes: usize, item: T) {
        let seq = self.next;
        self.next += 1;
        self.len += 1;
        self.bytes += bytes;
        let class = &mut self.classes[class & 3];
        let flow = class.flows.entry(from).or_insert_with(|| {
            class.ring.push_back(from);
            Flow {
                items: VecDeque::new(),
                deficit: 0,
            }
        });
        flow.items.push_back((bytes, seq, item));
    }

    /// Which one [`Self::pop`] gives; moves the turn on to whoever may go.
    pub fn peek(&mut self) -> Option<&T> {
        let class = self.next_class()?;
        let sender = self.classes[class].settle_turn()?;
        let flow = self.classes[class].flows.get(&sender)?;
        flow.items.front().map(|(_, _, item)| item)
    }

    /// Takes the next one.
    pub fn pop(&mut self) -> Option<T> {
        let class = self.next_class()?;
        let sender = self.classes[class].settle_turn()?;
        let classes = &self.classes;
        self.turns
            .served(class, |other| !classes[other].ring.is_empty());
        let entry = &mut self.classes[class];
        let flow = entry.flows.get_mut(&sender)?;
        let (bytes, _, item) = flow.items.pop_front()?;
        flow.deficit -= bytes.min(flow.deficit);
        if flow.items.is_empty() {
            entry.flows.remove(&sender);
            entry.ring.pop_front();
        }
        self.len -= 1;
        self.bytes -= bytes;
        Some(item)
    }

    /// Removes the longest waiting one that `is` says yes to, of the lowest class that has one.
    pub fn remove_oldest(&mut self, is: impl Fn(&T) -> bool) -> Option<T> {
        let (class, sender, at) = self.classes.iter().enumerate().find_map(|(class, entry)| {
            let found = entry.flows.iter().filter_map(|(sender, flow)| {
                let at = flow.items.iter().position(|(_, _, item)| is(item))?;
                Some((flow.items[at].1, *sender, at))
            });
            found.min().map(|(_, sender, at)| (class, sender, at))
        })?;
        let entry = &mut self.classes[class];
        let flow = entry.flows.get_mut(&sender)?;
        let (bytes, _, item) = flow.items.remove(at)?;
        if flow.items.is_empty() {
            entry.flows.remove(&sender);
            entry.ring.retain(|other| *other != sender);
        }
        self.len -= 1;
        self.bytes -= bytes;
        Some(item)
    }

    fn next_class(&self) -> Option<usize> {
        self.turns
            .pick(|class| !self.classes[class].ring.is_empty())
    }
}

impl<T> Class<T> {
    /// Goes round until the first sender's deficit covers what it has first.
    fn settle_turn(&mut self) -> Option<PeerId> {
        loop {
            let sender = *self.ring.front()?;
            let flow = self.flows.get_mut(&sender)?;
            let (bytes, _, _) = flow.items.front()?;
            if self.ring.len() == 1 || flow.deficit >= *bytes {
                return Some(sender);
            }
            flow.deficit += QUANTUM;
            self.ring.rotate_left(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 16])
    }

    #[test]
    fn a_light_sender_waits_for_one_turn_of_a_flooder() {
        let mut fair = Fair::default();
        for n in 0..1000 {
            fair.push(1, peer(1), 1024, ("flood", n));
        }
        fair.push(1, peer(2), 100, ("light", 0));
        let before = (0..)
            .take_while(|_| fair.pop().is_some_and(|(who, _)| who == "flood"))
            .count();
        assert!(before <= QUANTUM / 1024, "{before} of the flood came first");
        assert_eq!(
            (fair.len(), fair.bytes()),
            (1000 - before, (1000 - before) * 1024)
        );
    }

    #[test]
    fn each_sender_keeps_its_order_and_large_messages_their_share() {
        let mut fair = Fair::default();
        for n in 0..64 {
            fair.push(1, peer(1), 16 * 1024, (1, n));
            fair.push(1, peer(2), 1024, (2, n));
        }
        let mut last = [None, None];
        let mut bytes = [0usize; 2];
        for _ in 0..40 {
            let (who, n) = fair.pop().unwrap();
            assert!(last[who - 1].replace(n) < Some(n));
            bytes[who - 1] += if who == 1 { 16 * 1024 } else { 1024 };
        }
        assert!(bytes[0].abs_diff(bytes[1]) <= 2 * QUANTUM, "{bytes:?}");
    }

    #[test]
    fn a_higher_class_goes_first_and_a_lower_one_gets_its_turn() {
        let mut fair = Fair::default();
        fair.push(0, peer(1), 10, 0);
        for _ in 0..40 {
            fair.push(3, peer(1), 10, 3);
        }
        let before = (0..).take_while(|_| fair.pop() == Some(3)).count();
        assert_eq!(before, usize::from(PATIENCE));
    }

    #[test]
    fn the_oldest_of_the_lowest_class_makes_room() {
        let mut fair = Fair::default();
        fair.push(2, peer(1), 1, 'a');
        fair.push(1, peer(1), 1, 'x');
        fair.push(1, peer(2), 1, 'b');
        fair.push(1, peer(1), 1, 'c');
        assert_eq!(fair.remove_oldest(|item| *item != 'x'), Some('b'));
        assert_eq!(fair.remove_oldest(|item| *item != 'x'), Some('c'));
        assert_eq!(fair.remove_oldest(|item| *item != 'x'), Some('a'));
        assert_eq!(fair.remove_oldest(|item| *item != 'x'), None);
        assert_eq!((fair.pop(), fair.pop(), fair.bytes()), (Some('x'), None, 0));
    }
}
