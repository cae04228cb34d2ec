//! Where a queue keeps its messages: a slab of slots, and lists through it.
//!
//! A message of up to [`INLINE`] bytes lies in its slot, so that putting it in is one copy and no allocation; a larger
//! one has its own. Each slot is in at most one list, by links that it has itself: it leaves in constant time from
//! anywhere, and no list ever holds a trace of what has gone. A slot counts how often it was used, and a tag is that
//! count with the slot's number, so a tag of a message that has gone means nothing. Pure; indices come from the slab itself.

#![forbid(unsafe_code)]

use super::super::ConnId;
use super::super::persist::DeadReason;
use crate::message::QueueDelivery;

/// No slot.
const NONE: u32 = u32::MAX;
/// Bytes of data that lie in the slot: with them a slot is two cache lines.
pub(super) const INLINE: usize = 70;

/// Slots that an empty queue keeps.
const SLOTS_KEPT: usize = 16_384;

/// Where a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    /// In the list of its class, never delivered or requeued.
    Ready,
    /// In the list of its class of those that came back.
    Again,
    /// In a consumer's hands, in the list by time of delivery.
    Held,
    /// In a consumer's hands for longer than the queue's own time-out; in the set of times.
    Extended,
    /// Given back, not to be delivered before its time; in the set of times.
    Delayed,
    /// In the list of dead letters.
    Dead(DeadReason),
}

#[derive(Debug)]
enum Data {
    Inline { len: u8, bytes: [u8; INLINE] },
    Heap(Box<[u8]>),
}

#[derive(Debug)]
pub(super) struct Slot {
    data: Data,
    pub id: u64,
    pub sent_ns: u64,
    /// When it may be, or must be, delivered again.
    pub due_ns: u64,
    pub holder: ConnId,
    pub from: u32,
    uses: u32,
    prev: u32,
    next: u32,
    pub deliveries: u16,
    pub priority: u8,
    pub restored: bool,
    pub state: State,
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Slot {
    pub fn data(&self) -> &[u8] {
        match &self.data {
            Data::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Data::Heap(bytes) => bytes,
        }
    }

    /// As it goes out under this tag.
    #[inline]
    pub fn delivery(&self, tag: u64) -> QueueDelivery<'_> {
        QueueDelivery {
            tag,
            id: self.id,
            sent_ns: self.sent_ns,
            from: self.from,
            deliveries: self.deliveries,
            priority: self.priority,
            restored: self.restored,
            data: self.data(),
        }
    }

    /// Somebody has it now.
    pub fn is_held(&self) -> bool {
        matches!(self.state, State::Held | State::Extended)
    }
}

impl Data {
    fn new(data: &[u8]) -> Self {
        if data.len() > INLINE {
            return Self::Heap(data.into());
        }
        let mut bytes = [0; INLINE];
        bytes[..data.len()].copy_from_slice(data);
        Self::Inline {
            len: data.len() as u8,
            bytes,
        }
    }
}

/// A list of slots, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct List {
    head: u32,
    tail: u32,
    pub len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }
}

impl List {
    pub fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

/// A message on its way into a slab.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arriving<'a> {
    pub id: u64,
    pub sent_ns: u64,
    pub from: u32,
    pub priority: u8,
    pub restored: bool,
    pub data: &'a [u8],
}

#[derive(Debug, Default)]
pub(super) struct Slab {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The use that a slot which is made now begins with: above those of slots that were given back.
    first_use: u32,
}

impl Slab {
    /// Puts a message into a slot that is in no list yet.
    pub fn insert(&mut self, message: Arriving<'_>) -> u32 {
        let Arriving {
            id,
            sent_ns,
            from,
            priority,
            restored,
            data,
        } = message;
        let mut slot = Slot {
            data: Data::new(data),
            id,
            sent_ns,
            due_ns: 0,
            holder: ConnId(0),
            from,
            uses: self.first_use.max(1),
            prev: NONE,
            next: NONE,
            deliveries: 0,
            priority,
            restored,
            state: State::Free,
        };
        match self.free.pop() {
            Some(index) => {
                let old = &mut self.slots[index as usize];
                // 0 is skipped, so that no tag is 0.
                slot.uses = old.uses.wrapping_add(1).max(1);
                *old = slot;
                index
            }
            None => {
                let index = self.slots.len() as u32;
                self.slots.push(slot);
                index
            }
        }
    }

    /// Frees a slot that is in no list any more.
    pub fn remove(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.state = State::Free;
        if let Data::Heap(_) = slot.data {
            slot.data = Data::new(&[]);
        }
        self.free.push(index);
    }

    pub fn get(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }

    pub fn get_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// Names what is in the slot now.
    pub fn tag(&self, index: u32) -> u64 {
        u64::from(self.slots[index as usize].uses) << 32 | u64::from(index)
    }

    /// The slot of a tag that came from outside, if what it named is still there.
    pub fn find(&self, tag: u64) -> Option<u32> {
        let index = tag as u32;
        let slot = self.slots.get(index as usize)?;
        (slot.state != State::Free && u64::from(slot.uses) == tag >> 32).then_some(index)
    }

    /// Slots in use, in no order.
    pub fn used(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let all = self.slots.iter().enumerate();
        all.filter(|(_, slot)| slot.state != State::Free)
            .map(|(index, slot)| (index as u32, slot))
    }

    /// Slots in use and free.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Gives memory back once none of it is in use.
    pub fn shrink(&mut self) {
        if self.free.len() == self.slots.len() && self.slots.len() > SLOTS_KEPT {
            let given_back = self.slots.iter().skip(SLOTS_KEPT);
            let uses = given_back.map(|slot| slot.uses).max().unwrap_or(0);
            self.first_use = self.first_use.max(uses.wrapping_add(1));
            self.slots.truncate(SLOTS_KEPT);
            self.slots.shrink_to_fit();
            self.free = (0..SLOTS_KEPT as u32).collect();
        }
    }

    pub fn push_back(&mut self, list: &mut List, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.prev = list.tail;
        slot.next = NONE;
        match list.tail {
            NONE => list.head = index,
            tail => self.slots[tail as usize].next = index,
        }
        list.tail = index;
        list.len += 1;
    }

    pub fn unlink(&mut self, list: &mut List, index: u32) {
        let slot = &self.slots[index as usize];
        let (prev, next) = (slot.prev, slot.next);
        match prev {
            NONE => list.head = next,
            prev => self.slots[prev as usize].next = next,
        }
        match next {
            NONE => list.tail = prev,
            next => self.slots[next as usize].prev = prev,
        }
        list.len -= 1;
    }

    /// The slots of a list, oldest first.
    pub fn walk(&self, list: &List) -> impl Iterator<Item = u32> {
        let mut at = list.head;
        std::iter::from_fn(move || {
            let index = (at != NONE).then_some(at)?;
            at = self.slots[index as usize].next;
            Some(index)
        })
    }
}
