//! Shared memory of a peer that writes while we read: a script of stores, each carried out in front of a certain access.
//!
//! The code under test asks [`Words::words`] before every load, so a store can come between any two of them: what one word said a
//! moment ago need not be true of the next. The script is finite, so an honest loop ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use agentd_bus::shm::region::{Heap, Words};

use crate::input::Input;

/// Most stores of one script.
const STORES_MAX: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Store {
    /// Accesses that pass before it.
    after: u8,
    at: usize,
    how: How,
}

#[derive(Debug, Clone, Copy)]
enum How {
    Set(u64),
    Add(u64),
    Flip(u32),
}

impl Store {
    fn parse(input: &mut Input<'_>, words: usize) -> Self {
        let after = input.u8();
        let at = usize::from(input.u16()) % words;
        let how = match input.u8() % 6 {
            0 => How::Set(0),
            1 => How::Set(u64::from(input.u16())),
            2 => How::Set(input.u64()),
            3 => How::Add(u64::from(input.u8())),
            4 => How::Add(u64::from(input.u8()).wrapping_neg()),
            _ => How::Flip(u32::from(input.u8() % 64)),
        };
        Self { after, at, how }
    }

    fn carry_out(self, words: &[AtomicU64]) {
        let word = &words[self.at];
        let old = word.load(Ordering::Relaxed);
        let new = match self.how {
            How::Set(value) => value,
            How::Add(value) => old.wrapping_add(value),
            How::Flip(bit) => old ^ 1 << bit,
        };
        word.store(new, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Script {
    /// The next one last.
    stores: Vec<Store>,
}

/// Memory that its peer writes by script.
#[derive(Debug, Clone)]
pub struct Hostile {
    memory: Heap,
    script: Arc<Mutex<Script>>,
}

impl Hostile {
    /// Honest as yet.
    pub fn new(memory: Heap) -> Self {
        let script = Arc::default();
        Self { memory, script }
    }

    /// What the peer does from now on.
    pub fn follow(&self, input: &mut Input<'_>) {
        let words = self.memory.words().len();
        let mut stores = Vec::new();
        while !input.is_empty() && stores.len() < STORES_MAX {
            stores.push(Store::parse(input, words));
        }
        stores.reverse();
        self.script.lock().expect("no panic holds it").stores = stores;
    }

    /// Carries out the next store now.
    pub fn store_now(&self) {
        let next = self.script.lock().expect("no panic holds it").stores.pop();
        if let Some(store) = next {
            store.carry_out(self.memory.words());
        }
    }

    /// Whether the peer has stores to come.
    pub fn is_done(&self) -> bool {
        let script = self.script.lock().expect("no panic holds it");
        script.stores.is_empty()
    }
}

impl Words for Hostile {
    fn words(&self) -> &[AtomicU64] {
        let mut script = self.script.lock().expect("no panic holds it");
        while let Some(next) = script.stores.last_mut() {
            if next.after > 0 {
                next.after -= 1;
                break;
            }
            next.carry_out(self.memory.words());
            script.stores.pop();
        }
        self.memory.words()
    }
}
