//! Slots with generations: what a [`ConnKey`] names in a transport.
//!
//! A slot is used again, a key never is: the generation counts up when the slot is emptied, so whoever still holds the
//! old key finds nothing. Either the slab chooses the slot ([`Slab::insert`], [`Slab::remove`]) or somebody else does,
//! as the kernel with direct descriptors ([`Slab::place`], [`Slab::vacate`]); one slab knows one of the two. Pure; memory
//! grows with the highest slot in use and is kept.

use super::transport::ConnKey;

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Slab<T> {
    /// Into a free slot.
    pub fn insert(&mut self, value: T) -> ConnKey {
        let slot = self.free.pop().unwrap_or(self.slots.len() as u32);
        self.place(slot, value)
    }

    /// Takes the value out; its slot is free.
    pub fn remove(&mut self, key: ConnKey) -> Option<T> {
        let value = self.vacate(key)?;
        self.free.push(key.slot);
        Some(value)
    }

    /// Into `slot`, which somebody else chose and which is empty.
    pub fn place(&mut self, slot: u32, value: T) -> ConnKey {
        let at = slot as usize;
        if self.slots.len() <= at {
            let empty = || Slot {
                generation: 0,
                value: None,
            };
            self.slots.resize_with(at + 1, empty);
        }
        let entry = &mut self.slots[at];
        assert!(entry.value.is_none(), "slot {slot} is in use");
        entry.value = Some(value);
        self.len += 1;
        let generation = entry.generation;
        ConnKey { slot, generation }
    }

    /// Takes the value out of a slot that somebody else will use again.
    pub fn vacate(&mut self, key: ConnKey) -> Option<T> {
        let entry = self.slots.get_mut(key.slot as usize)?;
        let value = entry
            .value
            .take_if(|_| entry.generation == key.generation)?;
        entry.generation = ConnKey::next_generation(key.generation);
        self.len -= 1;
        Some(value)
    }

    /// Who is in `slot` now.
    pub fn key_at(&self, slot: u32) -> Option<ConnKey> {
        let entry = self.slots.get(slot as usize)?;
        let generation = entry.generation;
        entry.value.as_ref().map(|_| ConnKey { slot, generation })
    }

    pub fn get(&self, key: ConnKey) -> Option<&T> {
        let entry = self.slots.get(key.slot as usize)?;
        let value = entry.value.as_ref()?;
        (entry.generation == key.generation).then_some(value)
    }

    pub fn get_mut(&mut self, key: ConnKey) -> Option<&mut T> {
        let entry = self.slots.get_mut(key.slot as usize)?;
        let value = entry.value.as_mut()?;
        (entry.generation == key.generation).then_some(value)
    }

    /// Slots there have been, from 0 on.
    pub fn slots(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Values that are in.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn iter(&self) -> impl Iterator<Item = (ConnKey, &T)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(at, entry)| {
            let (slot, generation) = (at as u32, entry.generation);
            let value = entry.value.as_ref()?;
            Some((ConnKey { slot, generation }, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_is_used_again_under_another_key() {
        let mut slab = Slab::default();
        let old = slab.insert("old");
        let other = slab.insert("other");
        assert_eq!((slab.remove(old), slab.remove(old)), (Some("old"), None));
        let new = slab.insert("new");
        assert_eq!((new.slot, new == old), (old.slot, false));
        assert_eq!(slab.get(old), None);
        assert_eq!(slab.get_mut(old), None);
        assert_eq!(
            (slab.get(new), slab.get(other)),
            (Some(&"new"), Some(&"other"))
        );
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.iter().count(), 2);
    }

    #[test]
    fn slots_that_others_choose_are_not_given_out() {
        let mut slab = Slab::default();
        let key = slab.place(7, 'a');
        assert_eq!(
            (slab.key_at(7), slab.key_at(3), slab.key_at(8)),
            (Some(key), None, None)
        );
        assert_eq!(slab.vacate(key), Some('a'));
        assert_eq!((slab.key_at(7), slab.len()), (None, 0));
        assert_ne!(slab.place(7, 'b'), key);
    }
}
