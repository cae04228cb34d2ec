//! A bounded queue between the reading thread and whoever waits for what it reads.
//!
//! The reading thread never waits: a full mailbox drops its oldest entry and counts it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a wait on a mailbox gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<T> {
    Item(T),
    /// So many entries were dropped, here or by the bus, before the next one.
    Lost(u64),
    /// The bus was restarted, and the subscription made anew. How much was published meanwhile is not known.
    Replaced,
    /// Nothing came in time.
    TimedOut,
    /// The connection is closed and nothing more will come.
    Closed,
}

/// How long a wait lasts. Who does not want to wait does not look at the clock either.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    Now,
    Then(Instant),
    Ever,
}

impl Until {
    pub fn after(timeout: Duration) -> Self {
        if timeout.is_zero() {
            return Self::Now;
        }
        let then = Instant::now().checked_add(timeout);
        then.map_or(Self::Ever, Self::Then)
    }

    /// What is left of it; `None`: it has no end.
    pub fn left(self) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::Then(then) => Some(then.saturating_duration_since(Instant::now())),
            Self::Ever => None,
        }
    }
}

/// What is left until a deadline; `None`: there is none.
pub(super) fn left(deadline: Option<Instant>) -> Duration {
    deadline.map_or(Duration::MAX, |deadline| {
        deadline.saturating_duration_since(Instant::now())
    })
}

#[derive(Debug)]
pub(super) struct Mailbox<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    /// Threads in [`Mailbox::take`]: whoever puts something in makes no system call for nobody.
    waiting: usize,
    lost: u64,
    closed: bool,
}

impl<T> Mailbox<T> {
    pub fn new(capacity: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            waiting: 0,
            lost: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            capacity,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn push(&self, item: T) {
        let mut state = self.lock();
        if state.items.len() >= self.capacity && state.items.pop_front().is_some() {
            state.lost += 1;
        }
        state.items.push_back(item);
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.changed.notify_one();
        }
    }

    pub fn add_lost(&self, count: u64) {
        self.lock().lost += count;
        self.changed.notify_one();
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// What there is, without waiting; `None`: nothing.
    pub fn try_take(&self) -> Option<Received<T>> {
        self.lock().next()
    }

    /// Moves everything that is there into `items`, which is empty. After a loss nothing: that is told first.
    pub fn take_items(&self, items: &mut VecDeque<T>) {
        let mut state = self.lock();
        if state.lost == 0 {
            std::mem::swap(&mut state.items, items);
        }
    }

    /// Waits for the next item; without a time-out, for ever.
    pub fn take(&self, timeout: Option<Duration>) -> Received<T> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return self.try_take().unwrap_or(Received::TimedOut);
        }
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut state = self.lock();
        loop {
            if let Some(received) = state.next() {
                return received;
            }
            state.waiting += 1;
            let woken = wait_changed(&self.changed, state, deadline);
            state = woken.unwrap_or_else(|| self.lock());
            state.waiting -= 1;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return state.next().unwrap_or(Received::TimedOut);
            }
        }
    }
}

impl<T> State<T> {
    fn next(&mut self) -> Option<Received<T>> {
        if self.lost > 0 {
            return Some(Received::Lost(std::mem::take(&mut self.lost)));
        }
        match self.items.pop_front() {
            Some(item) => Some(Received::Item(item)),
            None => self.closed.then_some(Received::Closed),
        }
    }
}

/// Waits for `changed`, or for ever with no `deadline`; `None` once it has passed. May come back early.
pub(super) fn wait_changed<'a, S>(
    changed: &Condvar,
    state: MutexGuard<'a, S>,
    deadline: Option<Instant>,
) -> Option<MutexGuard<'a, S>> {
    let Some(deadline) = deadline else {
        let woken = changed.wait(state);
        return Some(woken.unwrap_or_else(PoisonError::into_inner));
    };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return None;
    }
    let woken = changed.wait_timeout(state, left);
    Some(woken.unwrap_or_else(PoisonError::into_inner).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_mailbox_drops_the_oldest_and_says_so_first() {
        let mailbox = Mailbox::new(2);
        for n in 0..5 {
            mailbox.push(n);
        }
        mailbox.add_lost(10);
        mailbox.close();
        let now = Some(Duration::ZERO);
        assert_eq!(mailbox.take(now), Received::Lost(13));
        assert_eq!(mailbox.take(now), Received::Item(3));
        assert_eq!(mailbox.take(now), Received::Item(4));
        assert_eq!(mailbox.take(now), Received::Closed);
    }

    #[test]
    fn an_empty_mailbox_times_out() {
        assert_eq!(
            Mailbox::<u8>::new(1).take(Some(Duration::from_millis(1))),
            Received::TimedOut
        );
    }
}
