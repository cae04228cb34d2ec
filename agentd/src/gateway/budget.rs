//! What one agent spends: tokens and their price, spent and set aside for running requests, and its ceilings on both.
//!
//! Every request first takes a [`Reservation`] for its estimated input and the most it may write, so requests that
//! run side by side can't spend the same tokens or dollars twice. When they are merely reserved by others, a request
//! waits for them to be settled; when they are spent, it is refused. A reservation that is dropped bills what was
//! seen so far: no path out of a request is free. Counts all kinds of tokens alike, cached ones included; dollars by
//! kind, where the model has a price.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use agentd_api::NanoUsd;
use agentd_sandbox::ModelRules;
use serde::Serialize;
use tokio::sync::Notify;

use super::price::Price;

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

/// The most that an agent may spend; `None` means that there is no ceiling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ceilings {
    /// `limits.tokens`.
    pub tokens: Option<u64>,
    /// `limits.cost`.
    pub cost: Option<NanoUsd>,
}

impl From<Option<u64>> for Ceilings {
    /// Of tokens alone.
    fn from(tokens: Option<u64>) -> Self {
        Self { tokens, cost: None }
    }
}

impl From<&ModelRules> for Ceilings {
    fn from(rules: &ModelRules) -> Self {
        Self {
            tokens: rules.max_tokens_total,
            cost: rules.max_cost_nano_usd.map(NanoUsd),
        }
    }
}

/// What an agent has spent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Spent {
    pub tokens: TokenCounts,
    /// Of the requests whose model has a price; `None` while there was none.
    pub cost: Option<NanoUsd>,
}

/// The state of a budget at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BudgetSnapshot {
    /// The ceiling of tokens; `None` means there is none.
    pub limit: Option<u64>,
    /// Tokens billed so far.
    pub spent: TokenCounts,
    /// Tokens that running requests may still spend.
    pub reserved: u64,
    /// The ceiling of dollars.
    pub cost_limit: Option<NanoUsd>,
    /// Dollars billed so far.
    pub cost: Option<NanoUsd>,
    /// Dollars that running requests may still cost.
    pub cost_reserved: NanoUsd,
    /// Requests billed so far.
    pub requests: u64,
    /// Requests under way.
    pub in_flight: u64,
}

/// A ceiling is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exhausted {
    Tokens(Reached<u64>),
    Cost(Reached<NanoUsd>),
}

/// How far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached<T> {
    /// The ceiling.
    pub limit: T,
    /// Billed so far, running requests included.
    pub spent: T,
    /// The least the refused step needs.
    pub wanted: T,
}

impl Exhausted {
    /// The policy's key.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "limits.tokens",
            Self::Cost(_) => "limits.cost",
        }
    }

    /// For the record.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Tokens(_) => "tokens",
            Self::Cost(_) => "cost",
        }
    }
}

impl std::error::Error for Exhausted {}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(Reached {
                limit,
                spent,
                wanted,
            }) => write!(
                f,
                "the token ceiling of this agent is reached: {spent} of {limit} tokens are spent and {wanted} more are needed"
            ),
            Self::Cost(Reached {
                limit,
                spent,
                wanted,
            }) => write!(
                f,
                "the cost ceiling of this agent is reached: {spent} of {limit} are spent and {wanted} more may be needed"
            ),
        }
    }
}

/// The tokens and dollars of one agent. Shared by its gateway and whoever shows the figures.
#[derive(Debug)]
pub struct TokenBudget {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    ceilings: Ceilings,
    spent: Spent,
    reserved: u64,
    cost_reserved: NanoUsd,
    /// What running requests have used of that by now.
    used: u64,
    cost_used: NanoUsd,
    requests: u64,
    in_flight: u64,
    /// A ceiling was lowered under requests that run: what was set aside for them may be more than is left.
    lowered: bool,
}

impl State {
    fn cost(&self) -> NanoUsd {
        self.spent.cost.unwrap_or_default()
    }

    /// The ceiling that is passed once so many more tokens are used, those of running requests included.
    fn passed_by(&self, more: u64) -> Option<Exhausted> {
        let used = self.spent.tokens.total().saturating_add(self.used);
        let tokens = self
            .ceilings
            .tokens
            .filter(|limit| used.saturating_add(more) > *limit);
        if let Some(limit) = tokens {
            return Some(Exhausted::Tokens(Reached {
                limit,
                spent: used,
                wanted: more.max(1),
            }));
        }
        let cost = self.cost().plus(self.cost_used);
        // A token is never free where there is a ceiling of dollars.
        let least = NanoUsd(more.min(1));
        let limit = self
            .ceilings
            .cost
            .filter(|limit| cost.plus(least) > *limit)?;
        Some(Exhausted::Cost(Reached {
            limit,
            spent: cost,
            wanted: NanoUsd(1),
        }))
    }
}

impl TokenBudget {
    /// A budget with nothing spent.
    pub fn new(ceilings: impl Into<Ceilings>) -> Arc<Self> {
        Self::resumed(ceilings, Spent::default())
    }

    /// A budget of which `spent` is gone already.
    pub fn resumed(ceilings: impl Into<Ceilings>, spent: Spent) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                ceilings: ceilings.into(),
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
            limit: s.ceilings.tokens,
            spent: s.spent.tokens,
            reserved: s.reserved,
            cost_limit: s.ceilings.cost,
            cost: s.spent.cost,
            cost_reserved: s.cost_reserved,
            requests: s.requests,
            in_flight: s.in_flight,
        }
    }

    /// From now on these are the ceilings; what is spent stays spent. A request under way has what is left, however much was set
    /// aside for it. Returned is a ceiling that was lowered and leaves nothing.
    pub fn limit_to(&self, ceilings: impl Into<Ceilings>) -> Option<Exhausted> {
        let ceilings = ceilings.into();
        let mut state = self.lock();
        let before = std::mem::replace(&mut state.ceilings, ceilings);
        let lowered =
            is_lower(ceilings.tokens, before.tokens) || is_lower(ceilings.cost, before.cost);
        state.lowered |= lowered && state.in_flight > 0;
        let reached = state.passed_by(1).filter(|_| lowered);
        drop(state);
        // Who waits for others to be settled may have to be refused now, or let by.
        self.settled.notify_waiters();
        reached
    }

    /// Sets aside what a request of about `input` tokens that wants to write up to `output` may
    /// spend, at this price.
    ///
    /// Grants less output where less is left, but at least one token. Waits while only the
    /// reservations of running requests stand in the way. Under a ceiling of dollars the caller
    /// knows the price: without one a request costs nothing.
    pub async fn reserve(
        self: &Arc<Self>,
        input: u64,
        output: u64,
        price: Option<Price>,
    ) -> Result<Reservation, Exhausted> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            // Registered before the look, so that no settlement in between is missed.
            settled.as_mut().enable();
            if let Some(reservation) = self.try_reserve(input, output, price)? {
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
        price: Option<Price>,
    ) -> Result<Option<Reservation>, Exhausted> {
        let mut state = self.lock();
        let (Some(by_tokens), Some(by_cost)) = (
            self.tokens_for(&state, input)?,
            self.output_paid(&state, input, price)?,
        ) else {
            return Ok(None);
        };
        let most = by_tokens.min(by_cost);
        let granted = match state.ceilings {
            Ceilings {
                tokens: None,
                cost: None,
            } => output,
            _ => output.clamp(1, most.max(1)),
        };
        let held = input.saturating_add(granted);
        let cost_held = price.map_or(NanoUsd::default(), |p| {
            p.most_for_input(input).plus(p.for_output(granted))
        });
        state.reserved = state.reserved.saturating_add(held);
        state.cost_reserved = state.cost_reserved.plus(cost_held);
        state.in_flight += 1;
        let seen = TokenCounts {
            input,
            ..TokenCounts::default()
        };
        let counted = (input, price.map_or(NanoUsd::default(), |p| p.cost(&seen)));
        state.used = state.used.saturating_add(counted.0);
        state.cost_used = state.cost_used.plus(counted.1);
        drop(state);
        Ok(Some(Reservation {
            budget: self.clone(),
            price,
            held,
            cost_held,
            granted_output: granted,
            seen,
            counted,
        }))
    }

    /// The most output that the ceiling of tokens leaves; `None` while others hold what is needed.
    fn tokens_for(&self, state: &State, input: u64) -> Result<Option<u64>, Exhausted> {
        let Some(limit) = state.ceilings.tokens else {
            return Ok(Some(u64::MAX));
        };
        let least = input.saturating_add(1);
        let spent = state.spent.tokens.total();
        let unspent = limit.saturating_sub(spent);
        if least > unspent {
            return Err(Exhausted::Tokens(Reached {
                limit,
                spent,
                wanted: least,
            }));
        }
        let free = unspent.saturating_sub(state.reserved);
        Ok((least <= free).then(|| free - input))
    }

    /// The most output that the ceiling of dollars leaves; `None` while others hold what is needed.
    fn output_paid(
        &self,
        state: &State,
        input: u64,
        price: Option<Price>,
    ) -> Result<Option<u64>, Exhausted> {
        let (Some(limit), Some(price)) = (state.ceilings.cost, price) else {
            return Ok(Some(u64::MAX));
        };
        let input = price.most_for_input(input);
        let least = input.plus(price.for_output(1));
        let unspent = limit.less(state.cost());
        if least > unspent {
            return Err(Exhausted::Cost(Reached {
                limit,
                spent: state.cost(),
                wanted: least,
            }));
        }
        let free = unspent.less(state.cost_reserved);
        Ok((least <= free).then(|| price.output_for(free.less(input))))
    }
}

/// What is set aside for one request. Dropping it bills what was last [seen](Self::observe).
#[derive(Debug)]
pub struct Reservation {
    budget: Arc<TokenBudget>,
    price: Option<Price>,
    held: u64,
    cost_held: NanoUsd,
    granted_output: u64,
    seen: TokenCounts,
    /// What of `seen` the budget knows.
    counted: (u64, NanoUsd),
}

/// Whether a ceiling is below another; none is no ceiling.
fn is_lower<T: Ord>(now: Option<T>, before: Option<T>) -> bool {
    now.is_some_and(|now| before.is_none_or(|before| now < before))
}

impl Reservation {
    /// The most tokens the answer may have.
    pub fn granted_output(&self) -> u64 {
        self.granted_output
    }

    /// What so many tokens cost here; `None` where the model has no price.
    pub fn cost(&self, counts: &TokenCounts) -> Option<NanoUsd> {
        self.price.map(|price| price.cost(counts))
    }

    /// Notes what the request has used by now; takes more from what is left when it is more than was set aside.
    ///
    /// With an error the request must be stopped: a ceiling is reached.
    pub fn observe(&mut self, seen: TokenCounts) -> Result<(), Exhausted> {
        self.seen = seen;
        let used = seen.total();
        let cost = self.cost(&seen).unwrap_or_default();
        let more = used.saturating_sub(self.held);
        let dearer = cost.less(self.cost_held);
        let mut state = self.budget.lock();
        let counted = std::mem::replace(&mut self.counted, (used, cost));
        state.used = state.used.saturating_sub(counted.0).saturating_add(used);
        state.cost_used = state.cost_used.less(counted.1).plus(cost);
        if state.lowered
            && let Some(passed) = state.passed_by(0)
        {
            return Err(passed);
        }
        if more == 0 && dearer == NanoUsd(0) {
            return Ok(());
        }
        if let Some(limit) = state.ceilings.tokens {
            let spent = state.spent.tokens.total();
            let free = limit.saturating_sub(spent).saturating_sub(state.reserved);
            if more > free {
                return Err(Exhausted::Tokens(Reached {
                    limit,
                    spent: spent.saturating_add(used),
                    wanted: more,
                }));
            }
        }
        if let Some(limit) = state.ceilings.cost {
            let free = limit.less(state.cost()).less(state.cost_reserved);
            if dearer > free {
                return Err(Exhausted::Cost(Reached {
                    limit,
                    spent: state.cost().plus(cost),
                    wanted: dearer,
                }));
            }
        }
        state.reserved = state.reserved.saturating_add(more);
        state.cost_reserved = state.cost_reserved.plus(dearer);
        self.held = self.held.max(used);
        self.cost_held = self.cost_held.max(cost);
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
        let cost = self.cost(&self.seen);
        let mut state = self.budget.lock();
        state.reserved = state.reserved.saturating_sub(self.held);
        state.cost_reserved = state.cost_reserved.less(self.cost_held);
        state.used = state.used.saturating_sub(self.counted.0);
        state.cost_used = state.cost_used.less(self.counted.1);
        state.in_flight = state.in_flight.saturating_sub(1);
        // Whatever is set aside from here on is set aside under the ceilings as they are.
        state.lowered &= state.in_flight > 0;
        state.spent.tokens.add(&self.seen);
        if self.seen.total() > 0 {
            state.requests += 1;
            if let Some(cost) = cost {
                state.spent.cost = Some(state.cost().plus(cost));
            }
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
        let r = budget.reserve(40, 1000, None).await.unwrap();
        assert_eq!(r.granted_output(), 60);
        r.settle(counts(30, 20));
        let snap = budget.snapshot();
        assert_eq!(
            (snap.spent, snap.reserved, snap.requests),
            (counts(30, 20), 0, 1)
        );
        assert_eq!(
            budget.reserve(50, 1, None).await.unwrap_err(),
            Exhausted::Tokens(Reached {
                limit: 100,
                spent: 50,
                wanted: 51
            })
        );
    }

    #[tokio::test]
    async fn without_a_ceiling_everything_is_granted() {
        let budget = TokenBudget::new(None);
        let mut r = budget.reserve(u64::MAX, u64::MAX, None).await.unwrap();
        assert_eq!(r.granted_output(), u64::MAX);
        assert!(r.observe(counts(u64::MAX, u64::MAX)).is_ok());
    }

    #[tokio::test]
    async fn a_request_waits_for_tokens_that_others_hold_and_gets_what_they_leave() {
        let budget = TokenBudget::new(Some(100));
        let first = budget.reserve(10, 90, None).await.unwrap();
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move {
                budget
                    .reserve(10, 50, None)
                    .await
                    .map(|r| r.granted_output())
            }
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
                if let Ok(r) = budget.reserve(10, 30, None).await {
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
    async fn a_lowered_ceiling_holds_requests_under_way_to_what_is_left() {
        let budget = TokenBudget::new(Some(1000));
        let mut first = budget.reserve(10, 400, None).await.unwrap();
        let mut second = budget.reserve(10, 400, None).await.unwrap();
        assert!(first.observe(counts(10, 20)).is_ok());
        assert_eq!(budget.limit_to(Some(100)), None, "there is room still");
        assert!(second.observe(counts(10, 60)).is_ok());
        let passed = first.observe(counts(10, 21)).unwrap_err();
        assert_eq!(
            passed,
            Exhausted::Tokens(Reached {
                limit: 100,
                spent: 101,
                wanted: 1
            })
        );
        drop(first);
        assert!(
            second.observe(counts(10, 61)).is_err(),
            "what was used stays used"
        );
        drop(second);
        assert_eq!(budget.snapshot().spent.total(), 102);
    }

    #[tokio::test]
    async fn a_ceiling_that_leaves_nothing_is_named_when_it_is_lowered_and_no_other() {
        let budget = TokenBudget::new(Some(100));
        let running = budget.reserve(40, 60, None).await.unwrap();
        assert_eq!(budget.limit_to(Some(100)), None, "as before");
        let reached = budget.limit_to(Some(40)).expect("nothing is left");
        assert_eq!(reached.key(), "limits.tokens");
        assert_eq!(budget.limit_to(Some(41)), None, "raised");
        drop(running);
        assert_eq!(budget.limit_to(None), None);
        let budget = TokenBudget::new(None);
        let mut running = budget.reserve(100, 10, price()).await.unwrap();
        let reached = budget.limit_to(dollars(100_000)).expect("$0.0001 is spent");
        assert_eq!(reached.key(), "limits.cost");
        assert!(running.observe(counts(100, 0)).is_ok(), "and not more");
        assert!(running.observe(counts(100, 1)).is_err());
    }

    #[tokio::test]
    async fn more_input_than_estimated_is_taken_from_the_rest_or_stops_the_request() {
        let budget = TokenBudget::new(Some(100));
        let mut r = budget.reserve(10, 20, None).await.unwrap();
        assert!(r.observe(counts(70, 5)).is_ok());
        assert_eq!(budget.snapshot().reserved, 75);
        let stop = r.observe(counts(70, 31)).unwrap_err();
        assert_eq!(stop.key(), "limits.tokens");
        drop(r);
        assert_eq!(budget.snapshot().spent, counts(70, 31));
    }

    #[tokio::test]
    async fn a_dropped_reservation_bills_the_estimated_input_and_a_released_one_nothing() {
        let budget = TokenBudget::new(Some(100));
        drop(budget.reserve(10, 20, None).await.unwrap());
        budget.reserve(10, 20, None).await.unwrap().release();
        let snap = budget.snapshot();
        assert_eq!((snap.spent, snap.requests), (counts(10, 0), 1));
    }

    /// $1 for a million tokens of input, $10 of output.
    fn price() -> Option<Price> {
        let text = "[[price]]\nmodel = '*'\ninput = 1\noutput = 10\ncache_write = 1\n";
        #[derive(serde::Deserialize)]
        struct File {
            price: Vec<super::super::price::PriceConfig>,
        }
        let file: File = toml::from_str(text).unwrap();
        super::super::price::PriceList::from_config(&file.price).of("any")
    }

    fn dollars(nano: u64) -> Ceilings {
        Ceilings {
            tokens: None,
            cost: Some(NanoUsd(nano)),
        }
    }

    #[tokio::test]
    async fn a_ceiling_of_dollars_clamps_the_output_and_bills_by_kind() {
        // 1,000 nanodollars a token of input, 10,000 of output.
        let budget = TokenBudget::new(dollars(1_000_000));
        let r = budget.reserve(100, 1_000_000, price()).await.unwrap();
        assert_eq!(r.granted_output(), 90);
        assert_eq!(budget.snapshot().cost_reserved, NanoUsd(1_000_000));
        r.settle(counts(100, 30));
        let snap = budget.snapshot();
        assert_eq!(
            (snap.cost, snap.cost_reserved),
            (Some(NanoUsd(400_000)), NanoUsd(0))
        );
        let refused = budget.reserve(600, 1, price()).await.unwrap_err();
        assert_eq!(refused.key(), "limits.cost");
        assert_eq!(
            refused.to_string(),
            "the cost ceiling of this agent is reached: $0.0004 of $0.001 are spent and $0.00061 more may be needed"
        );
        let r = budget.reserve(590, 50, price()).await.unwrap();
        assert_eq!(r.granted_output(), 1);
    }

    #[tokio::test]
    async fn the_nearer_of_both_ceilings_holds() {
        let both = Ceilings {
            tokens: Some(150),
            ..dollars(1_000_000)
        };
        let budget = TokenBudget::new(both);
        let r = budget.reserve(100, 1000, price()).await.unwrap();
        assert_eq!(r.granted_output(), 50);
        r.release();
        assert_eq!(budget.snapshot().cost, None);
    }

    #[tokio::test]
    async fn a_dearer_answer_is_paid_from_the_rest_or_stopped_and_billed_all_the_same() {
        let budget = TokenBudget::new(dollars(1_000_000));
        let mut r = budget.reserve(100, 10, price()).await.unwrap();
        assert!(r.observe(counts(100, 90)).is_ok());
        assert_eq!(r.observe(counts(100, 91)).unwrap_err().key(), "limits.cost");
        drop(r);
        assert_eq!(budget.snapshot().cost, Some(NanoUsd(1_010_000)));
        let resumed = TokenBudget::resumed(
            dollars(2_000_000),
            Spent {
                tokens: counts(100, 91),
                cost: Some(NanoUsd(1_010_000)),
            },
        );
        let r = resumed.reserve(0, 1000, price()).await.unwrap();
        assert_eq!(r.granted_output(), 99);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_at_once_never_cost_more_than_the_ceiling() {
        let budget = TokenBudget::new(dollars(10_000_000));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let budget = budget.clone();
            tasks.spawn(async move {
                if let Ok(r) = budget.reserve(10, 30, price()).await {
                    let out = r.granted_output();
                    tokio::task::yield_now().await;
                    r.settle(counts(10, out));
                }
            });
        }
        while tasks.join_next().await.is_some() {}
        let snap = budget.snapshot();
        let cost = snap.cost.unwrap();
        assert!(
            cost <= NanoUsd(10_000_000) && cost > NanoUsd(9_900_000),
            "{snap:?}"
        );
        assert_eq!((snap.cost_reserved, snap.in_flight), (NanoUsd(0), 0));
    }
}
