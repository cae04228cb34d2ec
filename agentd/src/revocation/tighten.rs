//! Tightening: a policy, or settings, laid over that of an agent that runs.
//!
//! Everything that agentd judges by while the agent runs has to pass both from then on; what is open and would not is closed.
//! Kept with the broker before it holds, and forgotten after it was lifted, as all that is taken ([`super`]).

use agentd_api::{Error, Restrictions, TightenSpec};
use agentd_bus::router::Closed;
use agentd_sandbox::{PolicyRef, Sources, Tightening, Unchanged};

use super::{Control, now, told};
use crate::agents::Caller;

/// What a change of the rules closed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ended {
    /// Connections through the egress proxy.
    pub shut: u32,
    /// Requests to models.
    pub cut: u32,
    /// Lanes, logs, subscriptions and requests on the bus.
    pub closed: u32,
}

impl Control {
    /// Lays a policy over that of the agent.
    ///
    /// # Errors
    /// What is wrong with the policy, or can't hold while an agent runs; then nothing has changed.
    pub async fn tighten(&self, spec: TightenSpec, caller: Caller) -> Result<Restrictions, Error> {
        let hold = self.held()?;
        let (rules, unchanged) = self.read(spec)?;
        let what = match rules.name.contains('=') {
            true => format!("`{}`", rules.name),
            false => format!("policy {} (hash {})", rules.name, rules.hash),
        };
        let mut taken = self.taken.lock().await;
        let mut next = taken.clone();
        next.tighten(rules, now(caller))
            .map_err(|e| Error::InvalidArgument(format!("`{}`: {e}", self.agent)))?;
        self.keep(&hold, &next).await?;
        if let Err(error) = self.hold_to(&hold, &taken, &next).await {
            self.keep(&hold, &taken).await?;
            return Err(self.cannot(&format!("it can't be tightened by {what}"), &error));
        }
        *taken = next;
        let ended = self.judge_anew(&taken).await;
        let mut told = told(&taken, Some(ended.shut));
        drop(taken);
        told.cut = Some(ended.cut);
        told.closed = Some(ended.closed);
        let lines = unchanged
            .into_iter()
            .map(|it| (it.key, it.origin.to_string(), it.instead.to_owned()));
        told.unchanged = Some(lines.collect()).filter(|lines: &Vec<_>| !lines.is_empty());
        self.record(format!(
            "tightened by uid {} with {what}; {} connections shut, {} requests to models cut, {} ended on the bus",
            caller.uid, ended.shut, ended.cut, ended.closed
        ))
        .await?;
        Ok(told)
    }

    /// The policy of a request.
    fn read(&self, spec: TightenSpec) -> Result<(Tightening, Vec<Unchanged>), Error> {
        let sources = Sources {
            folders: self.policy_dirs.clone(),
            settings: spec.settings.unwrap_or_default(),
        };
        let policy = match (spec.policy_text, spec.policy) {
            (Some(text), _) => {
                let origin = spec.policy_origin.unwrap_or_else(|| "policy".into());
                Some(PolicyRef::Text { origin, text })
            }
            (None, Some(name)) => Some(PolicyRef::Name(name)),
            (None, None) if sources.settings.is_empty() => {
                return Err(Error::InvalidArgument(
                    "there is nothing to tighten by: name a policy, or settings".into(),
                ));
            }
            (None, None) => None,
        };
        let loaded = Tightening::load(policy.as_ref(), &sources, &self.beyond);
        let (rules, mut unchanged) = loaded.map_err(|e| Error::InvalidPolicy(e.to_string()))?;
        if self.network_is_ours || !rules.is_about_net() {
            return Ok((rules, unchanged));
        }
        // Its packets don't come by agentd.
        const INSTEAD: &str = "its policy has net.mode = \"host\", past agentd's proxy: `agentctl revoke net` takes the \
                               network from it";
        let lines = rules
            .lines()
            .filter(|(key, _)| key.starts_with("net."))
            .map(|(key, origin)| Unchanged {
                key: key.to_owned(),
                origin: origin.clone(),
                instead: INSTEAD,
            });
        unchanged.extend(lines);
        if policy.is_none() {
            let first = unchanged.first().map(|it| it.origin.to_string());
            return Err(Error::InvalidPolicy(format!(
                "{}: is not changed while `{}` runs; {INSTEAD}",
                first.unwrap_or_default(),
                self.agent
            )));
        }
        Ok((rules.without_net(), unchanged))
    }

    /// Puts what is laid over the policy now into force, and closes what it does not allow.
    pub(super) async fn judge_anew(&self, taken: &super::Taken) -> Ended {
        let before = self.rules.egress.now();
        self.rules.set(&self.own, &taken.tightenings());
        let model = self.rules.model.now();
        let reached = self.budget.limit_to(&*model);
        let cut = self.under_way.judge(&model, reached);
        let shut = self.network.judge(&before, &self.rules.egress.now());
        let ipc = self.rules.ipc.now();
        let closed = match self.bus.set_rules(self.id, (*ipc).clone()).await {
            Ok(Closed {
                lanes,
                logs,
                subscriptions,
                requests,
            }) => lanes + logs + subscriptions + requests,
            // It has left the bus: its end is on the way.
            Err(error) => {
                tracing::debug!(agent = self.agent, "{error}");
                0
            }
        };
        Ended { shut, cut, closed }
    }
}
