//! `approvals`: questions of agents that a person decides.
//!
//! Everything is asked of the daemon, which knows who calls; nothing is decided here.

mod notify;
mod watch;

use agentd_api::approvals::{Answer, Approval, ApprovalRule, ApprovalsProxy, Decision, Scope};
use serde_json::{Value, json};

use crate::cli::approvals::{DecideArgs, LowApprovalsVerb};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, print_failure, shorten, span, visible};
use crate::resolve::Context;

pub use watch::Notify;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    List,
    Show {
        id: String,
    },
    Decide {
        ids: Vec<String>,
        decision: Decision,
    },
    Rules,
    Revoke {
        ids: Vec<String>,
    },
    Watch {
        notify: Notify,
    },
}

/// From what was typed.
pub fn resolve(verb: LowApprovalsVerb) -> Result<Task, Failure> {
    Ok(match verb {
        LowApprovalsVerb::List => Task::List,
        LowApprovalsVerb::Show(a) => Task::Show { id: a.id },
        LowApprovalsVerb::Allow(a) => decide(Answer::Allow, a)?,
        LowApprovalsVerb::Deny(a) => decide(Answer::Deny, a)?,
        LowApprovalsVerb::Rules => Task::Rules,
        LowApprovalsVerb::Revoke(a) => Task::Revoke { ids: a.ids },
        LowApprovalsVerb::Watch(a) => Task::Watch {
            notify: if a.notify {
                Notify::Desktop
            } else {
                Notify::No
            },
        },
    })
}

fn decide(answer: Answer, args: DecideArgs) -> Result<Task, Failure> {
    let always = args.always.as_deref().map(str::parse::<Scope>).transpose();
    let decision = Decision {
        answer,
        always: always.map_err(|e| Failure::usage(format!("can't {answer}"), e))?,
        rule: args.rule,
        reason: args.reason,
    };
    Ok(Task::Decide {
        ids: args.ids,
        decision,
    })
}

pub async fn perform(context: &Context, task: Task) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = ApprovalsProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't ask agentd for approvals", &e.into()))?;
    match task {
        Task::List => list(context, &proxy).await,
        Task::Show { id } => show(context, &proxy, &id).await,
        Task::Decide { ids, decision } => decide_all(context, &proxy, &ids, &decision).await,
        Task::Rules => rules(context, &proxy).await,
        Task::Revoke { ids } => revoke(context, &proxy, &ids).await,
        Task::Watch { notify } => watch::watch(context, &proxy, notify).await,
    }
}

async fn list(context: &Context, proxy: &ApprovalsProxy<'_>) -> Result<u8, Failure> {
    let open = proxy.list().await;
    let open = open.map_err(|e| Failure::api("can't list approvals", &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let open: Vec<Value> = open.iter().map(Approval::to_json).collect();
        out.json(&json!({ "approvals": open }))?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "AGENT", "WANTS", "WHAT", "ASKED", "LEFT"]);
    let now = now_ms();
    for a in &open {
        table.row(vec![
            Cell::styled(Style::Bold, a.short_id()),
            a.agent.as_str().into(),
            format!("{} {}", a.kind, a.tool).into(),
            shorten(&visible(&a.about()), 60).into(),
            format!("{} ago", span(now.saturating_sub(a.asked_at_ms))).into(),
            span(a.expires_at_ms.saturating_sub(now)).into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}

async fn show(context: &Context, proxy: &ApprovalsProxy<'_>, id: &str) -> Result<u8, Failure> {
    let found = proxy.find(id).await;
    let a = found.map_err(|e| unknown(format!("can't show {id:?}"), &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&a.to_json())?;
        return Ok(0);
    }
    let input: Value = serde_json::from_str(&a.input).unwrap_or(Value::Null);
    let mut fact = |name: &str, value: &str| out.line(format!("{name:<9} {}", visible(value)));
    fact("id", &a.id)?;
    fact("agent", &format!("{} (launch {})", a.agent, a.launch))?;
    fact("wants", &format!("{} {}", a.kind, a.tool))?;
    fact("rule", &a.rule)?;
    match (&a.decision, &a.by) {
        (Some(decision), Some(by)) => {
            let scope = a.scope.map(|s| format!(", remembered for {s}"));
            fact(
                "settled",
                &format!("{decision} by {by}{}", scope.unwrap_or_default()),
            )?;
            fact("reason", a.reason.as_deref().unwrap_or_default())?;
        }
        _ => fact("open for", &span(a.expires_at_ms.saturating_sub(now_ms())))?,
    }
    let pretty = serde_json::to_string_pretty(&input).unwrap_or_else(|_| a.input.clone());
    for line in pretty.lines() {
        out.line(visible(line))?;
    }
    out.flush()?;
    Ok(0)
}

async fn decide_all(
    context: &Context,
    proxy: &ApprovalsProxy<'_>,
    ids: &[String],
    decision: &Decision,
) -> Result<u8, Failure> {
    let mut several = Several::new(context);
    for id in ids {
        let decided = proxy.decide(id, decision).await;
        let decided = decided.map_err(|e| unknown(format!("can't {} {id:?}", decision.answer), &e));
        several.add(decided.map(|a| {
            let text = format!(
                "{} {} {} {}",
                a.short_id(),
                decision.answer,
                a.tool,
                a.about()
            );
            (shorten(&visible(&text), 120), a.to_json())
        }))?;
    }
    several.finish("approvals")
}

async fn rules(context: &Context, proxy: &ApprovalsProxy<'_>) -> Result<u8, Failure> {
    let rules = proxy.rules().await;
    let rules = rules.map_err(|e| Failure::api("can't list what is remembered", &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let rules: Vec<Value> = rules.iter().map(ApprovalRule::to_json).collect();
        out.json(&json!({ "rules": rules }))?;
        return Ok(0);
    }
    let mut table = Table::new(&["ID", "ANSWER", "FOR", "KIND", "COVERS", "AGE", "BY"]);
    let now = now_ms();
    for rule in &rules {
        let style = match rule.answer {
            Answer::Allow => Style::Good,
            Answer::Deny => Style::Bad,
        };
        table.row(vec![
            Cell::styled(Style::Bold, rule.short_id()),
            Cell::styled(style, rule.answer.as_str()),
            format!("{} {}", rule.scope, rule.subject).trim_end().into(),
            rule.kind.as_str().into(),
            shorten(&visible(&rule.covers), 60).into(),
            span(now.saturating_sub(rule.made_at_ms)).into(),
            rule.made_by.as_str().into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}

async fn revoke(
    context: &Context,
    proxy: &ApprovalsProxy<'_>,
    ids: &[String],
) -> Result<u8, Failure> {
    let mut several = Several::new(context);
    for id in ids {
        let revoked = proxy.revoke(id).await;
        let revoked = revoked.map_err(|e| {
            Failure::api(format!("can't revoke {id:?}"), &e).try_next("agentctl approvals rules")
        });
        several.add(revoked.map(|r| {
            let text = format!("{} forgotten: {} {}", r.short_id(), r.answer, r.covers);
            (shorten(&visible(&text), 120), r.to_json())
        }))?;
    }
    several.finish("revoked")
}

/// Several ids in one command: each success on stdout, each failure on stderr, the last one returned.
struct Several {
    out: Out,
    json: bool,
    done: Vec<Value>,
    last_failure: Option<Failure>,
}

impl Several {
    fn new(context: &Context) -> Self {
        Self {
            out: Out::stdout(),
            json: context.is_json(),
            done: Vec::new(),
            last_failure: None,
        }
    }

    fn add(&mut self, result: Result<(String, Value), Failure>) -> Result<(), Failure> {
        match result {
            Ok((_, value)) if self.json => self.done.push(value),
            Ok((text, _)) => {
                self.out.line(text)?;
                self.out.flush()?;
            }
            Err(failure) => {
                if let Some(earlier) = self.last_failure.replace(failure) {
                    print_failure(&earlier, self.json);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self, word: &str) -> Result<u8, Failure> {
        if self.json && (self.last_failure.is_none() || !self.done.is_empty()) {
            self.out.json(&json!({ (word): self.done }))?;
        }
        self.last_failure.map_or(Ok(0), Err)
    }
}

fn unknown(what: String, error: &agentd_api::Error) -> Failure {
    Failure::api(what, error).try_next("agentctl approvals list")
}

fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
}
