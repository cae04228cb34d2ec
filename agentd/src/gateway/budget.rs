//! Tokens of one agent: what it spent, what its running requests may still spend, and its ceiling.
//!
//! Every request first takes a [`Reservation`] for its estimated input and the most it may write, so requests that
//! run side by side can't spend the same tokens twice. When the tokens are merely reserved by others, a request
//! waits for them to be settled; when they are spent, it is refused. A reservation that is dropped bills what was
//! seen so far: no path out of a request is free. Counts all kinds of tokens alike, cached ones included.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use tokio::sync::Notify;

/// Tokens by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TokenCounts {
    /// Fresh input.
    pub input: u64,
    /// Output.
    pub output: u64,
    /// Input read from the provider's cache.
    pub cache_read: u64,
    /// Input written to the provider's cache.
    pub cache_write: u64,
}

impl TokenCounts {
    /// All kinds together: what the ceiling counts.
    pub fn total(&self) -> u64 {
        [self.input, self.output, self.cache_read, self.cache_write]
            .into_iter()
            .fold(0, u64::saturating_add)
    }

    fn add(&mut self, other: &Self) {
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        self.cache_read = self.cache_read.saturating_add(other.cache_read);
        self.cache_write = self.cache_write.saturating_add(other.cache_write);
    }
}

/// The state of a budget at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BudgetSnapshot {
    /// The ceiling; `None` means there is none.
    pub limit: Option<u64>,
    /// Tokens billed so far.
    pub spent: TokenCounts,
    /// Tokens that running requests may still spend.
    pub reserved: u64,
    /// Requests billed so far.
    pub requests: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// The ceiling is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the token ceiling of this agent is reached: {spent} of {limit} tokens are spent and {wanted} more are needed"
)]
pub struct Exhausted {
    /// The ceiling.
    pub limit: u64,
    /// Billed so far, running requests included.
    pub spent: u64,
    /// The least the refused step needs.
    pub wanted: u64,
}

/// The tokens of one agent. Shared by its gateway and whoever shows the figures.
#[derive(Debug)]
pub struct TokenBudget {
    limit: Option<u64>,
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    spent: TokenCounts,
    reserved: u64,
    requests: u64,
    in_flight: u64,
}

impl TokenBudget {
    /// A budget with nothing spent.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Self::resumed(limit, TokenCounts::default())
    }

    /// A budget of which `spent` is gone already.
    pub fn resumed(limit: Option<u64>, spent: TokenCounts) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::new(State {
                spent,
                ..State::default()
            }),
            settled: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is plain counters, consistent after each statement: a panic elsewhere can't spoil it.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The figures now.
    pub fn snapshot(&self) -> BudgetSnapshot {
        let s = self.lock();
        BudgetSnapshot {
            limit: self.limit,
            spent: s.spent,
            reserved: s.reserved,
            requests: s.requests,
            in_flight: s.in_flight,
        }
    }

    /// Sets tokens aside for a request of about `input` tokens that wants to write up to `output`.
    ///
    /// Grants less output where less is left, but at least one token. Waits while only the reservations of
    /// running requests stand in the way.
    pub async fn reserve(
        self: &Arc<Self>,
        input: u64,
        output: u64,
    ) -> Result<Reservation, Exhausted> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // Registered before the look, so that no settlement in between is missed.
            settled.as_mut().enable();
            if let Some(reservation) = self.try_reserve(input, output)? {
                return Ok(reservation);
            }
            settled.await;
        }
    }

    /// `Ok(None)`: not now, but perhaps once a running request is settled.
    fn try_reserve(
        self: &Arc<Self>,
        input: u64,
        output: u64,
    ) -> Result<Option<Reservation>, Exhausted> {
        let mut state = self.lock();
        let least = input.saturating_add(1);
        let granted = match self.limit {
            None => output,
            Some(limit) => {
                let unspent = limit.saturating_sub(state.spent.total());
                if least > unspent {
                    return Err(Exhausted {
                        limit,
                        spent: state.spent.total(),
                        wanted: least,
                    });
                }
                let free = unspent.saturating_sub(state.reserved);
                if least > free {
                    return Ok(None);
                }
                output.clamp(1, free - input)
            }
        };
        let held = input.saturating_add(granted);
        state.reserved = state.reserved.saturating_add(held);
        state.in_flight += 1;
        drop(state);
        let seen = TokenCounts {
            input,
            ..TokenCounts::default()
        };
        Ok(Some(Reservation {
            budget: self.clone(),
            held,
            granted_output: granted,
            seen,
        }))
    }
}

/// Tokens set aside for one request. Dropping it bills what was last [seen](Self::observe).
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<TokenBudget>,
    held: u64,
    granted_output: u64,
    seen: TokenCounts,
}

impl Reservation {
    /// The most tokens the answer may have.
    pub fn granted_output(&self) -> u64 {
        self.granted_output
    }

    /// Notes what the request has used by now; takes more from what is left when it is more than was set aside.
    ///
    /// With an error the request must be stopped: the ceiling is reached.
    pub fn observe(&mut self, seen: TokenCounts) -> Result<(), Exhausted> {
        self.seen = seen;
        let used = seen.total();
        if used <= self.held {
            return Ok(());
        }
        let mut state = self.budget.lock();
        let more = used - self.held;
        if let Some(limit) = self.budget.limit {
            let spent = state.spent.total();
            let free = limit.saturating_sub(spent).saturating_sub(state.reserved);
            if more > free {
                return Err(Exhausted {
                    limit,
                    spent: spent.saturating_add(used),
                    wanted: more,
                });
            }
        }
        state.reserved = state.reserved.saturating_add(more);
        self.held = used;
        Ok(())
    }

    /// Bills `counts` in place of what was seen.
    pub fn settle(mut self, counts: TokenCounts) {
        self.seen = counts;
    }

    /// Gives everything back: the provider did no work.
    pub fn release(mut self) {
        self.seen = TokenCounts::default();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.reserved = state.reserved.saturating_sub(self.held);
        state.in_flight = state.in_flight.saturating_sub(1);
        state.spent.add(&self.seen);
        if self.seen.total() > 0 {
            state.requests += 1;
        }
        drop(state);
        self.budget.settled.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(input: u64, output: u64) -> TokenCounts {
        TokenCounts {
            input,
            output,
            ..TokenCounts::default()
        }
    }

    #[tokio::test]
    async fn output_is_clamped_to_what_is_left() {
        let budget = TokenBudget::new(Some(100));
        let r = budget.reserve(40, 1000).await.unwrap();
        assert_eq!(r.granted_output(), 60);
        r.settle(counts(30, 20));
        let snap = budget.snapshot();
        assert_eq!(
            (snap.spent, snap.reserved, snap.requests),
            (counts(30, 20), 0, 1)
        );
        assert_eq!(
            budget.reserve(50, 1).await.unwrap_err(),
            Exhausted {
                limit: 100,
                spent: 50,
                wanted: 51
            }
        );
    }

    #[tokio::test]
    async fn without_a_ceiling_everything_is_granted() {
        let budget = TokenBudget::new(None);
        let mut r = budget.reserve(u64::MAX, u64::MAX).await.unwrap();
        assert_eq!(r.granted_output(), u64::MAX);
        assert!(r.observe(counts(u64::MAX, u64::MAX)).is_ok());
    }

    #[tokio::test]
    async fn a_request_waits_for_tokens_that_others_hold_and_gets_what_they_leave() {
        let budget = TokenBudget::new(Some(100));
        let first = budget.reserve(10, 90).await.unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.reserve(10, 50).await.map(|r| r.granted_output()) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.settle(counts(10, 60));
        assert_eq!(waiting.await.unwrap(), Ok(20));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_never_spend_more_than_the_ceiling() {
        let budget = TokenBudget::new(Some(1000));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let budget = budget.clone();
            tasks.spawn(async move {
                if let Ok(r) = budget.reserve(10, 30).await {
                    let out = r.granted_output();
                    tokio::task::yield_now().await;
                    r.settle(counts(10, out));
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        let snap = budget.snapshot();
        assert!(
            snap.spent.total() <= 1000 && snap.spent.total() > 980,
            "{snap:?}"
        );
        assert_eq!((snap.reserved, snap.in_flight), (0, 0));
    }

    #[tokio::test]
    async fn more_input_than_estimated_is_taken_from_the_rest_or_stops_the_request() {
        let budget = TokenBudget::new(Some(100));
        let mut r = budget.reserve(10, 20).await.unwrap();
        assert!(r.observe(counts(70, 5)).is_ok());
        assert_eq!(budget.snapshot().reserved, 75);
        let stop = r.observe(counts(70, 31)).unwrap_err();
        assert_eq!(stop.limit, 100);
        drop(r);
        assert_eq!(budget.snapshot().spent, counts(70, 31));
    }

    #[tokio::test]
    async fn a_dropped_reservation_bills_the_estimated_input_and_a_released_one_nothing() {
        let budget = TokenBudget::new(Some(100));
        drop(budget.reserve(10, 20).await.unwrap());
        budget.reserve(10, 20).await.unwrap().release();
        let snap = budget.snapshot();
        assert_eq!((snap.spent, snap.requests), (counts(10, 0), 1));
    }
}
