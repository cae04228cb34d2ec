//! The requests of one agent that are under way, for whoever changes its rules meanwhile.
//!
//! A request is entered *before* the rules are asked for it, so a change finds it or it finds the change. Who cuts one says
//! why once; the exchange itself leaves the provider, settles the bill, and tells agent and record. Never waits for either.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use agentd_sandbox::ModelRules;
use agentd_sandbox::rules::tighten;
use tokio_util::sync::CancellationToken;

use super::budget::Exhausted;

/// What is under way.
#[derive(Debug, Default)]
pub struct UnderWay(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By number.
    open: BTreeMap<u64, Open>,
    last: u64,
}

#[derive(Debug)]
struct Open {
    call: &'static str,
    /// Once it is known.
    model: Option<String>,
    is_metered: bool,
    cut: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// Set before the token is cancelled.
    why: OnceLock<Cut>,
    token: CancellationToken,
}

/// Why a request is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// By the rules as they are now.
    Rule {
        /// What of it, and which: for the record.
        what: &'static str,
        target: String,
        by: tighten::Refused,
    },
    /// Of tokens or dollars.
    Ceiling(Exhausted),
}

/// One request under way; it has left when this is dropped.
#[derive(Debug)]
pub(super) struct Entered {
    under_way: Arc<UnderWay>,
    number: u64,
    cut: Arc<Pending>,
}

impl UnderWay {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(self: &Arc<Self>, call: &'static str) -> Entered {
        let mut inner = self.inner();
        inner.last += 1;
        let number = inner.last;
        let cut = Arc::new(Pending::default());
        let open = Open {
            call,
            model: None,
            is_metered: false,
            cut: Arc::clone(&cut),
        };
        inner.open.insert(number, open);
        Entered {
            under_way: Arc::clone(self),
            number,
            cut,
        }
    }

    /// Cuts what these rules, which are in force already, refuse; and, where a ceiling was lowered and is reached, what spends.
    /// How many requests that were.
    pub fn judge(&self, rules: &ModelRules, reached: Option<Exhausted>) -> u32 {
        let mut cut = 0;
        for open in self.inner().open.values() {
            let ceiling = || reached.filter(|_| open.is_metered).map(Cut::Ceiling);
            if let Some(why) = open.refused_by(rules).or_else(ceiling)
                && open.cut.why.set(why).is_ok()
            {
                open.cut.token.cancel();
                cut += 1;
            }
        }
        cut
    }
}

impl Open {
    fn refused_by(&self, rules: &ModelRules) -> Option<Cut> {
        if let Some(by) = rules.closed_by() {
            return Some(Cut::Rule {
                what: "call",
                target: self.call.into(),
                by,
            });
        }
        let model = self.model.as_deref()?;
        let by = rules.refused_by(model)?;
        Some(Cut::Rule {
            what: "model",
            target: model.into(),
            by,
        })
    }
}

impl Entered {
    /// It asks for this model, and its tokens are counted or not. Said before the rules are asked.
    pub(super) fn asks_for(&self, model: &str, is_metered: bool) {
        if let Some(open) = self.under_way.inner().open.get_mut(&self.number) {
            open.model = Some(model.to_owned());
            open.is_metered = is_metered;
        }
    }

    /// Why it is to end, once somebody has cut it. Cancel safe.
    pub(super) async fn cut(&self) -> Cut {
        self.cut.token.cancelled().await;
        let why = self.cut.why.get();
        why.cloned().expect("the reason is set before it is cut")
    }

    /// Why, if somebody has.
    #[cfg(test)]
    pub(super) fn is_cut(&self) -> Option<Cut> {
        self.cut.why.get().cloned()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.under_way.inner().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use agentd_sandbox::{Sources, Tightening};

    use super::super::budget::Reached;
    use super::*;

    fn under(setting: (&str, &str)) -> ModelRules {
        let sources = Sources {
            settings: vec![(setting.0.to_owned(), setting.1.to_owned())],
            ..Sources::default()
        };
        let (rules, _) = Tightening::load(None, &sources, &[]).expect("a setting");
        let own = ModelRules {
            enabled: true,
            ..ModelRules::default()
        };
        own.under(&[Arc::new(rules)])
    }

    const REACHED: Exhausted = Exhausted::Tokens(Reached {
        limit: 1,
        spent: 1,
        wanted: 1,
    });

    #[tokio::test]
    async fn what_the_rules_refuse_now_is_cut_once_and_the_rest_goes_on() {
        let under_way = Arc::new(UnderWay::default());
        let [kept, gone, unknown] = [(); 3].map(|()| under_way.enter("/v1/messages"));
        kept.asks_for("a-1", true);
        gone.asks_for("b-1", true);
        let rules = under(("model.models", "a-*"));
        assert_eq!(under_way.judge(&rules, None), 1);
        assert_eq!((kept.is_cut(), unknown.is_cut()), (None, None));
        let Cut::Rule { what, target, by } = gone.cut().await else {
            panic!("by a rule");
        };
        assert_eq!((what, &*target), ("model", "b-1"));
        assert_eq!(by.origin.to_string(), "--set model.models");
        assert_eq!(under_way.judge(&rules, None), 0, "it is cut already");
        drop(gone);
        let closed = under(("model.access", "none"));
        assert_eq!(under_way.judge(&closed, None), 2, "all that is open");
        let Some(Cut::Rule { what, .. }) = unknown.is_cut() else {
            panic!("by a rule");
        };
        assert_eq!(what, "call");
    }

    #[test]
    fn a_ceiling_cuts_what_spends_and_what_has_left_is_not_there() {
        let under_way = Arc::new(UnderWay::default());
        let [spends, lists, left] = [(); 3].map(|()| under_way.enter("/v1/messages"));
        spends.asks_for("a", true);
        lists.asks_for("a", false);
        left.asks_for("a", true);
        drop(left);
        let rules = under(("limits.tokens", "1"));
        assert_eq!(under_way.judge(&rules, Some(REACHED)), 1);
        assert_eq!(spends.is_cut(), Some(Cut::Ceiling(REACHED)));
        assert_eq!(lists.is_cut(), None);
    }
}
