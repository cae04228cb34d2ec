//! What a producer knows of its readers: where their flags are, how far the reliable ones have read, and how
//! long each has held it up.
//!
//! Their pages are theirs: every word is copied once and then checked, and a reader that goes backwards or
//! ahead of the producer is cut off. What one reader says changes nothing for another.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::doorbell::Sleeper;
use super::{
    CURSOR_MAGIC, Delivery, KEY_WORD, LayoutError, PARKED_AT_WORD, PLACES_WORD, READERS_MAX,
    ReaderId, ReaderSnapshot, check_magic, check_size, cursor_words,
};
use crate::shm::atomics::{AtomicU64, Ordering};
use crate::shm::bell::Ringer;
use crate::shm::counters::{
    CONSUMED_WORD, COUNTERS_WORD, MAGIC_WORD, PARKED_WORD, Received, SETUP_WORD,
};
use crate::shm::histogram::{FIRST_WORD, Latency};
use crate::shm::region::{Own, Peers, Words};
use crate::wait::Parking;

/// State of a reader's place in the data page, in the low bits of its first word; the rest is the key.
pub(super) mod place {
    pub const HELD: u64 = 1;
    pub const CUT_OFF: u64 = 2;
    pub const STATE: u64 = 3;
}

/// One reader, as its producer sees it.
#[derive(Debug)]
pub(super) struct Attached<C> {
    pub id: ReaderId,
    pub delivery: Delivery,
    pub parking: Parking,
    cursor: Peers<Arc<C>>,
    key: u64,
    /// Which of the data page's places is this reader's.
    place: usize,
    /// The word of its parked flag.
    parked_at: usize,
    ringer: Option<Arc<Ringer>>,
    /// How far it had read when last looked at; for a reliable one nothing after this is overwritten.
    consumed: u64,
    /// What its page said then.
    said: u64,
    /// How long it has held the producer up since it was last well ahead.
    held: Duration,
}

impl<C: Words> Attached<C> {
    /// Checks a reader's page. `head` is where it begins to be held.
    pub fn new(
        id: ReaderId,
        cursor: C,
        delivery: Delivery,
        place: usize,
        head: u64,
    ) -> Result<Self, LayoutError> {
        let cursor = Peers(Arc::new(cursor));
        check_size(cursor.len(), cursor_words())?;
        check_magic(cursor.load(MAGIC_WORD, Ordering::Relaxed), CURSOR_MAGIC)?;
        let found = cursor.load(PARKED_AT_WORD, Ordering::Relaxed);
        let parked_at = usize::try_from(found)
            .ok()
            .filter(|at| is_flag_place(*at))
            .ok_or(LayoutError::Flag { found })?;
        Ok(Self {
            id,
            delivery,
            parking: Parking::from_setup(cursor.load(SETUP_WORD, Ordering::Relaxed)),
            key: cursor.load(KEY_WORD, Ordering::Relaxed) & !place::STATE,
            cursor,
            place,
            parked_at,
            ringer: None,
            consumed: head,
            said: 0,
            held: Duration::ZERO,
        })
    }

    pub fn key(&self) -> u64 {
        self.key
    }

    pub fn place(&self) -> usize {
        self.place
    }

    /// Tells the reader from where on it is attached.
    pub fn show<D: Words>(&self, data: &Own<D>, first_slot: u64, first_message: u64) {
        let at = PLACES_WORD + 3 * self.place;
        data.store(at + 1, first_slot, Ordering::Relaxed);
        data.store(at + 2, first_message, Ordering::Relaxed);
        // SYNC: attached. Pairs with the acquire load in `Reader::place`.
        data.store(at, self.key | place::HELD, Ordering::Release);
    }

    /// Tells the reader that nobody waits for it any more.
    pub fn show_cut_off<D: Words>(&self, data: &Own<D>) {
        // SYNC: cut-off. Ordered before whatever is overwritten next by the release fence in `Writer::write`.
        data.store(
            PLACES_WORD + 3 * self.place,
            self.key | place::CUT_OFF,
            Ordering::Release,
        );
    }

    /// Frees the reader's place.
    pub fn hide<D: Words>(&self, data: &Own<D>) {
        data.store(PLACES_WORD + 3 * self.place, 0, Ordering::Release);
    }

    /// Where it says that it sleeps, if it ever does.
    pub fn sleeper(&self) -> Option<Sleeper<C>> {
        (self.parking != Parking::NeverParks).then(|| {
            let cursor = Arc::clone(&self.cursor.0);
            Sleeper::new(cursor, self.parked_at, self.place, self.ringer.clone())
        })
    }

    pub fn set_ringer(&mut self, ringer: Ringer) {
        self.ringer = Some(Arc::new(ringer));
    }

    /// Looks how far it has read. `None`: it says what can't be.
    pub fn look(&mut self, head: u64) -> Option<u64> {
        // SYNC: consumed. Pairs with the release store in `Reader::publish`: its reads of the slots are done
        // before they are written again.
        let found = self.cursor.load(CONSUMED_WORD, Ordering::Acquire);
        if found > head {
            return None;
        }
        self.said = found;
        // What it had read before its attachment holds nobody.
        self.consumed = self.consumed.max(found);
        Some(self.consumed)
    }

    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    /// The word that it stores its position in, what a producer without room sleeps on, and its value when last
    /// looked at.
    pub fn position(&self) -> (&AtomicU64, u64) {
        (self.cursor.word(CONSUMED_WORD), self.said)
    }

    /// It held the producer up for this much longer.
    pub fn charge(&mut self, time: Duration) {
        self.held = self.held.saturating_add(time);
    }

    pub fn forgive(&mut self) {
        self.held = Duration::ZERO;
    }

    pub fn held(&self) -> Duration {
        self.held
    }

    pub fn snapshot(&self, head: u64) -> ReaderSnapshot {
        let consumed = self.cursor.load(CONSUMED_WORD, Ordering::Relaxed);
        ReaderSnapshot {
            id: self.id,
            delivery: self.delivery,
            behind: head.saturating_sub(consumed),
            counters: Received::read(&self.cursor),
            latency: Latency::read(&self.cursor),
        }
    }
}

/// Is this word the first of a line that has no other use? Readers put their flags into different lines, so
/// that a producer that looks at many finds them in different sets of its cache.
pub(super) fn is_flag_place(at: usize) -> bool {
    at.is_multiple_of(8)
        && (PARKED_WORD..FIRST_WORD).contains(&at)
        && at != COUNTERS_WORD
        && at < cursor_words()
}

/// Who holds the producer up, and since when.
#[derive(Debug, Default)]
pub(super) struct Stall {
    since: Option<Instant>,
}

impl Stall {
    /// The time since the last look, if the producer was without room then too.
    pub fn continues(&mut self) -> Duration {
        let now = Instant::now();
        let since = self.since.replace(now);
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    pub fn ends(&mut self) {
        self.since = None;
    }
}

const _: () = assert!(READERS_MAX <= 1 << 16);
