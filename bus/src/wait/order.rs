//! Who is served next among those that are ready: the higher class first, but nobody never.
//!
//! Within a class sources take turns. Between classes the highest is served, except that a class that was
//! passed over [`PATIENCE`] times in a row while it had something ready goes first once. At most two others can be
//! overdue at the same time, so whoever is ready in any class is served after at most [`PASSED_OVER_MAX`]
//! turns of other classes and then in its turn within its own.
//!
//! Pure; allocates only when a class holds more ready sources than ever before.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::channel::Class;

/// Times that a class with something ready is passed over before it goes first.
pub const PATIENCE: u32 = 16;
/// Most turns of other classes before one of a class with something ready.
pub const PASSED_OVER_MAX: u32 = PATIENCE + 2;

const CLASSES: usize = 4;
const _: () = assert!(Class::Control as usize + 1 == CLASSES && Class::Bulk as usize == 0);

/// The ready ones, by class. What is queued is the caller's number for a source.
#[derive(Debug, Default)]
pub(crate) struct Order {
    queues: [VecDeque<u32>; CLASSES],
    passed_over: [u32; CLASSES],
}

impl Order {
    /// Queues a source that is not queued.
    pub fn push(&mut self, class: Class, source: u32) {
        self.queues[class as usize].push_back(source);
    }

    /// Forgets a source.
    pub fn remove(&mut self, class: Class, source: u32) {
        self.queues[class as usize].retain(|other| *other != source);
        self.settle(class as usize);
    }

    /// Whose turn it is. Asks `stays` whether it is ready still: one that is not leaves the queue, the one served
    /// goes to its end.
    pub fn turn(&mut self, mut stays: impl FnMut(u32) -> bool) -> Option<u32> {
        loop {
            let class = self.pick()?;
            let queue = &mut self.queues[class];
            let source = queue.pop_front()?;
            if !stays(source) {
                self.settle(class);
                continue;
            }
            queue.push_back(source);
            self.passed_over[class] = 0;
            for other in 0..CLASSES {
                if other != class && !self.queues[other].is_empty() {
                    self.passed_over[other] += 1;
                }
            }
            return Some(source);
        }
    }

    /// All, the highest class first, each class in the order of its turns.
    pub fn queued(&self) -> impl Iterator<Item = u32> {
        self.queues.iter().rev().flatten().copied()
    }

    fn pick(&self) -> Option<usize> {
        let waiting = |class: &usize| !self.queues[*class].is_empty();
        let overdue = |class: &usize| self.passed_over[*class] >= PATIENCE;
        let highest_first = || (0..CLASSES).rev();
        highest_first()
            .filter(waiting)
            .find(overdue)
            .or_else(|| highest_first().find(waiting))
    }

    /// An empty class is not being passed over.
    fn settle(&mut self, class: usize) {
        if self.queues[class].is_empty() {
            self.passed_over[class] = 0;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BY_NUMBER: [Class; CLASSES] = [Class::Bulk, Class::Normal, Class::High, Class::Control];

    fn turn(order: &mut Order) -> Option<u32> {
        order.turn(|_| true)
    }

    #[test]
    fn the_highest_class_goes_first_and_the_lowest_gets_its_share() {
        let mut order = Order::default();
        order.push(Class::Bulk, 0);
        order.push(Class::Control, 3);
        for _ in 0..PATIENCE {
            assert_eq!(turn(&mut order), Some(3));
        }
        assert_eq!(turn(&mut order), Some(0), "after {PATIENCE} of Control");
        assert_eq!(turn(&mut order), Some(3));
    }

    #[test]
    fn sources_of_a_class_take_turns_and_leave_when_they_are_done() {
        let mut order = Order::default();
        for source in 0..3 {
            order.push(Class::Normal, source);
        }
        let turns: Vec<_> = (0..6).map_while(|_| turn(&mut order)).collect();
        assert_eq!(turns, [0, 1, 2, 0, 1, 2]);
        assert_eq!(order.turn(|source| source == 1), Some(1));
        assert_eq!(order.queued().collect::<Vec<_>>(), [2, 1]);
        order.remove(Class::Normal, 1);
        assert_eq!(order.turn(|_| false), None);
        assert_eq!(order.queued().count(), 0);
    }

    proptest! {
        /// Whatever comes and goes, nobody waits longer than promised.
        #[test]
        fn no_class_is_passed_over_longer_than_promised(
            steps in proptest::collection::vec((0usize..CLASSES, any::<bool>(), 1usize..40), 1..200)
        ) {
            let mut order = Order::default();
            let mut queued = [false; CLASSES];
            let mut waited = [0; CLASSES];
            for (class, comes, turns) in steps {
                if comes != queued[class] {
                    queued[class] = comes;
                    waited[class] = 0;
                    if comes {
                        order.push(BY_NUMBER[class], class as u32);
                    } else {
                        order.remove(BY_NUMBER[class], class as u32);
                    }
                }
                for _ in 0..turns {
                    let served = turn(&mut order);
                    prop_assert_eq!(served.is_none(), queued == [false; CLASSES]);
                    let Some(served) = served else { break };
                    for class in 0..CLASSES {
                        if class as u32 == served {
                            waited[class] = 0;
                        } else if queued[class] {
                            waited[class] += 1;
                            prop_assert!(waited[class] <= PASSED_OVER_MAX, "class {}", class);
                        }
                    }
                }
            }
        }
    }
}
