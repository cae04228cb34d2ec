//! The sources of a waiter: which are ready, which are armed, and how.
//!
//! On futexes all are armed for one sleep and disarmed after it. On bells a source **stays armed** until it is found
//! ready or its bell rings: a sleep costs what has happened since the last, not what is there. Those that are not armed are in a
//! list, `cold`; of the others the bells tell.
//!
//! Used by one thread, no privilege. No allocation but for lists that hold more than ever before.

#![forbid(unsafe_code)]

use super::order::Order;
use super::source::barrier_for;
use super::{Park, Parking, Source, Token};
use crate::channel::Class;
use crate::shm::atomics::AtomicU64;

#[derive(Debug)]
struct Entry<S> {
    source: S,
    class: Class,
    generation: u64,
    /// In `order`.
    queued: bool,
    /// Has told its other side to ring, and is not in `cold`.
    rings: bool,
    has_bell: bool,
}

#[derive(Debug)]
pub(crate) struct Sources<S> {
    /// By [`Token::index`]; never shrinks.
    entries: Vec<Option<Entry<S>>>,
    /// Free places in `entries`.
    free: Vec<u32>,
    /// Sources of class Control.
    control: Vec<u32>,
    /// Sources that don't ring.
    cold: Vec<u32>,
    order: Order,
    generation: u64,
    len: usize,
    deaf: usize,
}

impl<S> Default for Sources<S> {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            control: Vec::new(),
            cold: Vec::new(),
            order: Order::default(),
            generation: 0,
            len: 0,
            deaf: 0,
        }
    }
}

impl<S: Source> Sources<S> {
    /// The place that the next source gets.
    #[cfg(not(loom))]
    pub fn next_index(&self) -> u32 {
        let fresh = self.entries.len() as u32;
        self.free.last().copied().unwrap_or(fresh)
    }

    pub fn insert(&mut self, source: S, class: Class) -> Token {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(None);
                self.entries.len() as u32 - 1
            }
        };
        self.generation += 1;
        let generation = self.generation;
        let has_bell = source.bell().is_some();
        self.deaf += usize::from(!has_bell);
        self.len += 1;
        self.entries[index as usize] = Some(Entry {
            source,
            class,
            generation,
            queued: false,
            rings: false,
            has_bell,
        });
        self.cold.push(index);
        if class == Class::Control {
            self.control.push(index);
        }
        Token { index, generation }
    }

    /// Disarmed.
    pub fn remove(&mut self, token: Token) -> Option<S> {
        self.get_mut(token)?;
        let entry = self.entries[token.index as usize].take()?;
        if entry.queued {
            self.order.remove(entry.class, token.index);
        }
        self.control.retain(|index| *index != token.index);
        self.cold.retain(|index| *index != token.index);
        self.deaf -= usize::from(!entry.has_bell);
        self.len -= 1;
        self.free.push(token.index);
        Some(entry.source)
    }

    pub fn get(&self, token: Token) -> Option<&S> {
        let entry = self.entries.get(token.index as usize)?.as_ref()?;
        (entry.generation == token.generation).then_some(&entry.source)
    }

    /// To take from: it must be armed anew after that, to publish what was taken.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut S> {
        let entry = self.entries.get_mut(token.index as usize)?.as_mut()?;
        if entry.generation != token.generation {
            return None;
        }
        cool(entry, token.index, &mut self.cold);
        Some(&mut entry.source)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Those without a bell.
    pub fn deaf(&self) -> usize {
        self.deaf
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &S)> {
        let entries = self.entries.iter().enumerate();
        entries.filter_map(|(index, entry)| Some((index as u32, &entry.as_ref()?.source)))
    }

    /// What to sleep on by futex.
    pub fn words(&self) -> impl Iterator<Item = (&AtomicU64, u64)> {
        self.iter().map(|(_, source)| {
            let watch = source.watch();
            (watch.word, watch.seen)
        })
    }

    /// Looks at all. Whether any is ready.
    pub fn look_at_all(&mut self) -> bool {
        let mut any = false;
        for index in 0..self.entries.len() as u32 {
            any |= self.look_at(index);
        }
        any
    }

    /// Looks at those that no bell tells of. Whether any is ready.
    pub fn look_at_cold(&mut self) -> bool {
        let mut any = false;
        // Those that are looked at are in the list already, so it does not grow meanwhile.
        for at in 0..self.cold.len() {
            any |= self.look_at(self.cold[at]);
        }
        any
    }

    pub fn look_at_control(&mut self) {
        for at in 0..self.control.len() {
            self.look_at(self.control[at]);
        }
    }

    /// Queues the source at `index` if it is ready and not queued. Whether it is ready.
    pub fn look_at(&mut self, index: u32) -> bool {
        let Some(Some(entry)) = self.entries.get_mut(index as usize) else {
            return false;
        };
        let ready = entry.source.is_ready();
        if ready {
            if !entry.queued {
                entry.queued = true;
                self.order.push(entry.class, index);
            }
            // It will be served: ringing is wasted until it has nothing more.
            cool(entry, index, &mut self.cold);
        }
        ready
    }

    /// Its bell has rung. If it was for nothing it is armed anew all the same: the other side may ring only once for each
    /// time of arming.
    #[cfg(not(loom))]
    pub fn rung(&mut self, index: u32) {
        if !self.look_at(index)
            && let Some(Some(entry)) = self.entries.get_mut(index as usize)
        {
            cool(entry, index, &mut self.cold);
        }
    }

    /// Whose turn it is among the queued, if any of them is ready still.
    pub fn turn(&mut self) -> Option<Token> {
        let entries = &mut self.entries;
        let index = self.order.turn(|index| {
            let Some(entry) = &mut entries[index as usize] else {
                return false;
            };
            entry.queued = entry.source.is_ready();
            entry.queued
        })?;
        self.token(index)
    }

    /// The queued that are ready still, the highest class first.
    pub fn ready(&self) -> impl Iterator<Item = Token> {
        self.order.queued().filter_map(|index| {
            let entry = self.entries[index as usize].as_ref()?;
            entry.source.is_ready().then_some(())?;
            self.token(index)
        })
    }

    fn token(&self, index: u32) -> Option<Token> {
        let generation = self.entries[index as usize].as_ref()?.generation;
        Some(Token { index, generation })
    }

    /// Says to the other sides that this one is about to sleep, and looks once more. `true`: nothing is ready, and
    /// whatever becomes ready from now on wakes.
    pub fn arm(&mut self, how: Park) -> bool {
        let mut heavy = false;
        match how {
            Park::Futex => {
                for (index, entry) in self.entries.iter_mut().enumerate() {
                    let Some(entry) = entry else { continue };
                    entry.source.arm(how);
                    if std::mem::take(&mut entry.rings) {
                        // What made it ring was just overwritten.
                        self.cold.push(index as u32);
                    }
                    heavy |= entry.source.parking() == Parking::Heavy;
                }
                barrier_for(heavy);
                !self.look_at_all()
            }
            Park::Bell => {
                for index in &self.cold {
                    let Some(entry) = &mut self.entries[*index as usize] else {
                        continue;
                    };
                    entry.source.arm(how);
                    heavy |= entry.source.parking() == Parking::Heavy;
                }
                barrier_for(heavy);
                let mut ready = 0;
                for at in 0..self.cold.len() {
                    let index = self.cold[at];
                    let is_ready = self.look_at(index);
                    let Some(Some(entry)) = self.entries.get_mut(index as usize) else {
                        continue;
                    };
                    if is_ready {
                        entry.source.disarm();
                        self.cold[ready] = index;
                        ready += 1;
                    } else {
                        entry.rings = true;
                    }
                }
                self.cold.truncate(ready);
                ready == 0
            }
        }
    }

    /// After a sleep on futexes.
    pub fn disarm(&mut self) {
        for entry in self.entries.iter_mut().flatten() {
            entry.source.disarm();
        }
    }
}

/// Has its other side ring no longer.
fn cool<S: Source>(entry: &mut Entry<S>, index: u32, cold: &mut Vec<u32>) {
    if entry.rings {
        entry.rings = false;
        entry.source.disarm();
        cold.push(index);
    }
}
