//! What the router refused an agent: names and topics that its policy does not give, and rights that somebody took from it. And
//! whom it may not ask, it may not give tasks to.
//!
//! The refusals come through a queue of the agent's own, which is read no faster than its [`Allowance`]; what finds it full is
//! counted. The names in them are the agent's words, checked by the bus.

use std::sync::Arc;
use std::time::Instant;

use agentd_bus::topic::RESERVED_PREFIX;
use agentd_sandbox::Reason;

use super::allowance::Allowance;
use super::{Layer, Witness, shown_name};
use crate::bus::{Refusals, Refused, TakenBack};

/// Tells of what is refused until the agent has left the bus.
pub async fn follow(mut refusals: Refusals, witness: Arc<Witness>) {
    let mut allowance = Allowance::new(Instant::now());
    while let Some(refused) = refusals.next().await {
        witness.set_lost(Layer::Bus, refusals.lost());
        tell(&refused, &witness).await;
        while allowance.at(Instant::now()) == 0 {
            // Enough for this while: the queue fills, and the router counts.
            tokio::time::sleep_until(allowance.again().into()).await;
        }
        allowance.spend(1);
    }
    witness.set_lost(Layer::Bus, refusals.lost());
}

async fn tell(refused: &Refused, witness: &Witness) {
    let what = refused.right.as_str();
    let target = shown_name(refused.what.as_bytes());
    let reason = reason(refused, witness);
    witness
        .tell(Layer::Bus, what, target.clone(), reason, &target)
        .await;
}

fn reason(refused: &Refused, witness: &Witness) -> Reason {
    let of_nobody = |rule| Reason { rule, origin: None };
    let key = refused.right.as_str();
    match &refused.taken {
        Some(TakenBack { pattern, by, .. }) => of_nobody(format!(
            "{key} for {pattern} was revoked by {by}: agentctl bus restore gives it back"
        )),
        None if refused.what.starts_with(RESERVED_PREFIX) && key == "publish" => {
            of_nobody(format!(
                "the floor: topics under {RESERVED_PREFIX} are the bus's own; no policy allows it"
            ))
        }
        None => match &refused.tightened {
            Some(line) => Reason {
                rule: format!(
                    "not in [ipc] {key} of what was laid over the policy: agentctl restore policy lifts it"
                ),
                origin: Some(line.clone()),
            },
            None => witness.rules.ipc(key),
        },
    }
}
