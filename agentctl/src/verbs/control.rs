//! `revoke`, `tighten`, `restore`, `freeze`, `thaw`: what a running agent may no longer do.

use agentd_api::{AgentProxy, Error, Restrictions, Revocable, TightenSpec};
use agentd_sandbox::PolicyRef;
use serde_json::{Value, json};

use crate::cli::control::{RestoreArgs, RevokeArgs, TightenArgs};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, print_failure};
use crate::resolve::Context;

/// One change, made to each of some agents.
#[derive(Debug)]
pub struct Task {
    change: Change,
    agents: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    Revoke(Vec<Revocable>),
    Tighten(TightenSpec),
    /// Everything if it is empty.
    Restore(Vec<Revocable>),
    Freeze,
    Thaw,
}

pub fn resolve_revoke(args: RevokeArgs) -> Result<Task, Failure> {
    let change = Change::Revoke(rights("revoke", &args.rights)?);
    let agents = args.agents.agents;
    Ok(Task { change, agents })
}

pub fn resolve_tighten(args: TightenArgs) -> Result<Task, Failure> {
    let settings = crate::resolve::settings(&args.settings)?;
    let mut spec = TightenSpec {
        settings: Some(settings).filter(|settings| !settings.is_empty()),
        ..TightenSpec::default()
    };
    let policy = args.policy.as_deref().map(crate::resolve::policy_ref);
    match policy.transpose()? {
        Some(PolicyRef::Name(name)) => spec.policy = Some(name),
        Some(PolicyRef::Text { origin, text }) => {
            spec.policy_text = Some(text);
            spec.policy_origin = Some(origin);
        }
        None => {}
    }
    Ok(Task {
        change: Change::Tighten(spec),
        agents: args.agents.agents,
    })
}

pub fn resolve_restore(args: RestoreArgs) -> Result<Task, Failure> {
    let all = args.rights.iter().any(|right| right == "all");
    let rights = if all {
        Vec::new()
    } else {
        rights("restore", &args.rights)?
    };
    Ok(Task {
        change: Change::Restore(rights),
        agents: args.agents.agents,
    })
}

pub fn freeze(agents: Vec<String>) -> Task {
    Task {
        change: Change::Freeze,
        agents,
    }
}

pub fn thaw(agents: Vec<String>) -> Task {
    Task {
        change: Change::Thaw,
        agents,
    }
}

fn rights(verb: &str, typed: &[String]) -> Result<Vec<Revocable>, Failure> {
    let parse = |word: &String| {
        word.parse()
            .map_err(|e| Failure::usage(format!("can't {verb} {word:?}"), e))
    };
    typed.iter().map(parse).collect()
}

impl Change {
    fn verb(&self) -> &'static str {
        match self {
            Self::Revoke(_) => "revoke",
            Self::Tighten(_) => "tighten",
            Self::Restore(_) => "restore",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }

    async fn make(&self, agent: &AgentProxy<'_>) -> Result<Restrictions, Error> {
        match self {
            Self::Revoke(rights) => agent.revoke(rights).await,
            Self::Tighten(spec) => agent.tighten(spec).await,
            Self::Restore(rights) => agent.restore(rights).await,
            Self::Freeze => agent.freeze().await,
            Self::Thaw => agent.thaw().await,
        }
    }
}

/// Every agent is tried; each failure is told, the last one returned.
pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let mut out = Out::stdout();
    let mut done: Vec<Value> = Vec::new();
    let mut last_failure = None;
    for agent in &task.agents {
        let made = async {
            let proxy = daemon.agent(agent).await?;
            let made = task.change.make(&proxy).await;
            made.map_err(|e| Failure::api(format!("can't {} {agent:?}", task.change.verb()), &e))
        };
        match made.await {
            Ok(now) if context.is_json() => {
                let mut one = now.to_json();
                one["agent"] = json!(agent);
                done.push(one);
            }
            Ok(now) => {
                out.line(format!("{agent}: {}", told(&now)))?;
                for (key, line, instead) in now.unchanged.iter().flatten() {
                    out.line(format!(
                        "{agent}: {line}: {key} is not changed while it runs; {instead}"
                    ))?;
                }
                out.flush()?;
            }
            Err(failure) => {
                if let Some(earlier) = last_failure.replace(failure) {
                    print_failure(&earlier, context.is_json());
                }
            }
        }
    }
    if context.is_json() && (last_failure.is_none() || !done.is_empty()) {
        out.json(&json!({ "agents": done }))?;
    }
    match last_failure {
        None => Ok(0),
        Some(failure) => Err(failure),
    }
}

/// How an agent stands now.
fn told(now: &Restrictions) -> String {
    let mut parts = Vec::new();
    if now.frozen.is_some() {
        parts.push("frozen".to_owned());
    }
    let revoked: Vec<&str> = now
        .revoked
        .iter()
        .map(|(right, _)| right.as_str())
        .collect();
    if !revoked.is_empty() {
        parts.push(format!("{} revoked", revoked.join(", ")));
    }
    if let Some(laid) = &now.tightened {
        let names: Vec<&str> = laid.iter().map(|(name, _)| name.as_str()).collect();
        parts.push(format!("tightened by {}", names.join(", ")));
    }
    match now.shut {
        Some(1) => parts.push("1 connection shut".to_owned()),
        Some(shut) if shut > 1 => parts.push(format!("{shut} connections shut")),
        _ => {}
    }
    match now.cut {
        Some(1) => parts.push("1 request to a model cut".to_owned()),
        Some(cut) if cut > 1 => parts.push(format!("{cut} requests to models cut")),
        _ => {}
    }
    if let Some(closed) = now.closed.filter(|closed| *closed > 0) {
        parts.push(format!("{closed} closed on the bus"));
    }
    if parts.is_empty() {
        "nothing is taken from it".to_owned()
    } else {
        parts.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_an_agent_stands_is_one_line() {
        let mut now = Restrictions::default();
        assert_eq!(told(&now), "nothing is taken from it");
        now.revoked = vec![(Revocable::Net, (0, 1)), (Revocable::Exec, (0, 1))];
        now.shut = Some(2);
        assert_eq!(told(&now), "net, exec revoked, 2 connections shut");
        now.frozen = Some((0, 1));
        now.shut = Some(0);
        assert_eq!(told(&now), "frozen, net, exec revoked");
        let now = Restrictions {
            tightened: Some(vec![
                ("careful".into(), (0, 1)),
                ("net.mode=none".into(), (0, 1)),
            ]),
            shut: Some(1),
            cut: Some(2),
            closed: Some(3),
            ..Restrictions::default()
        };
        assert_eq!(
            told(&now),
            "tightened by careful, net.mode=none, 1 connection shut, 2 requests to models cut, 3 closed on the bus"
        );
    }
}
