//! `ps`, `attach`, `stop`, `kill`, `signal`, `wait`: live agents.

use std::time::Duration;

use agentd_api::{AgentState, AgentSummary, AttachOptions, Error, ErrorCode};
use agentd_kernel::signals::SignalFd;
use serde_json::{Value, json};

use crate::comeback::{come_back, is_lost};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, command_line, grouped, shorten, span, stderr_line};
use crate::resolve::{Context, Input, Replay, Which};
use crate::run::{self, Attached};
use crate::terminal::session::{SIGNALS, Streams};
use crate::terminal::{DetachKeys, raw};

pub async fn ps(context: &Context, which: Which, ids_only: bool) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let agents = daemon.manager().await?.agents().await;
    let mut agents = agents.map_err(|e| Failure::api("can't list agents", &e))?;
    agents.retain(|a| which == Which::All || a.state.is_live());
    agents.sort_by_key(|a| std::cmp::Reverse((a.started_at_ms, a.id)));
    let mut out = Out::stdout();
    if context.is_json() {
        let agents: Vec<Value> = agents.iter().map(AgentSummary::to_json).collect();
        out.json(&json!({ "agents": agents }))?;
    } else if ids_only {
        for agent in &agents {
            out.line(agent.id)?;
        }
    } else {
        table(&agents, now_ms()).print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

fn table(agents: &[AgentSummary], now_ms: u64) -> Table {
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "STATE",
        "POLICY",
        "PID",
        "TOKENS",
        "AGE",
        "WORKSPACE",
        "COMMAND",
    ]);
    for agent in agents {
        let pid = agent.pid.map(|p| p.to_string()).unwrap_or_default();
        let tokens = agent.input_tokens.saturating_add(agent.output_tokens);
        table.row(vec![
            Cell::styled(Style::Bold, &agent.name),
            format!("{:08x}", agent.id.short()).into(),
            Cell::styled(state_style(agent), state_text(agent)),
            agent.policy.as_str().into(),
            pid.into(),
            grouped(tokens).into(),
            span(now_ms.saturating_sub(agent.started_at_ms)).into(),
            shorten(agent.workspace.as_deref().unwrap_or("-"), 40).into(),
            shorten(&command_line(&agent.argv), 50).into(),
        ]);
    }
    table
}

fn state_text(agent: &AgentSummary) -> String {
    match (agent.state, agent.exit_code) {
        (AgentState::Exited | AgentState::Failed, Some(code)) => {
            format!("{} ({code})", agent.state)
        }
        (state, _) => state.to_string(),
    }
}

fn state_style(agent: &AgentSummary) -> Style {
    match agent.state {
        AgentState::Running => Style::Good,
        AgentState::Starting | AgentState::Stopped => Style::Warn,
        AgentState::Failed => Style::Bad,
        AgentState::Exited if agent.exit_code.unwrap_or(0) != 0 => Style::Bad,
        AgentState::Exited => Style::Dim,
    }
}

pub(super) fn now_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_millis() as u64)
}

pub async fn attach(
    context: &Context,
    agent: &str,
    input: Input,
    replay: Replay,
    detach_keys: &DetachKeys,
) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = daemon.agent(agent).await?;
    let what = || format!("can't attach to {agent:?}");
    let stdio = proxy
        .stdio()
        .await
        .map_err(|e| Failure::api(what(), &e.into()))?;
    let streams = if stdio == "pty" {
        Streams::Pty
    } else {
        Streams::Pipes
    };
    let window = raw::window(std::io::stdout()).filter(|_| streams == Streams::Pty);
    let options = AttachOptions {
        stdin: Some(input == Input::Send),
        // One row more than there is: the session then sends the real size, and the program, told of a
        // change, draws its screen for us.
        rows: window.map(|(rows, _)| rows.saturating_add(1)),
        cols: window.map(|(_, cols)| cols),
        replay: Some(replay == Replay::Latest),
        ..AttachOptions::default()
    };
    let signals = SignalFd::new(SIGNALS).map_err(|e| Failure::local("can't watch signals", e))?;
    let socket = proxy
        .attach(&options)
        .await
        .map_err(|e| Failure::api(what(), &e).try_next(format!("agentctl logs {agent}")))?;
    let id = proxy.id().await.unwrap_or_else(|_| agent.to_owned());
    let attached = Attached {
        runtime_dir: &daemon.runtime_dir,
        id: &id,
        name: agent,
        streams,
        input,
        detach_keys,
        signals: &signals,
    };
    let outcome = attached.stay(context, socket.into(), Vec::new()).await?;
    run::finish(context, agent, json!({ "agent": agent }), outcome)
}

pub async fn stop(context: &Context, agents: &[String], grace: Duration) -> Result<u8, Failure> {
    let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
    let daemon = Daemon::connect(context).await?;
    let mut results = Results::new(context, "stopped");
    for agent in agents {
        let result = async {
            let stopped = daemon.agent(agent).await?.stop(grace_ms).await;
            ended_or(stopped, agent).map_err(|e| Failure::api(format!("can't stop {agent:?}"), &e))
        };
        results.add(agent, result.await)?;
    }
    results.finish()
}

pub async fn kill(context: &Context, agents: &[String]) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let mut results = Results::new(context, "killed");
    for agent in agents {
        let result = async {
            let killed = daemon.agent(agent).await?.kill().await;
            ended_or(killed, agent).map_err(|e| Failure::api(format!("can't kill {agent:?}"), &e))
        };
        results.add(agent, result.await)?;
    }
    results.finish()
}

/// An agent that has ended already is what the user wanted.
fn ended_or(result: Result<(), Error>, agent: &str) -> Result<(), Error> {
    match result {
        Err(error) if error.code() == ErrorCode::Unavailable => {
            stderr_line(&format!("agentctl: {agent}: {}", error.text()));
            Ok(())
        }
        other => other,
    }
}

/// What became of several agents: each name on stdout, each failure on stderr, the last one returned.
struct Results {
    out: Out,
    json: bool,
    word: &'static str,
    done: Vec<String>,
    last_failure: Option<Failure>,
}

impl Results {
    fn new(context: &Context, word: &'static str) -> Self {
        Self {
            out: Out::stdout(),
            json: context.is_json(),
            word,
            done: Vec::new(),
            last_failure: None,
        }
    }

    fn add(&mut self, agent: &str, result: Result<(), Failure>) -> Result<(), Failure> {
        match result {
            Ok(()) if self.json => self.done.push(agent.to_owned()),
            Ok(()) => {
                self.out.line(agent)?;
                self.out.flush()?;
            }
            Err(failure) => {
                if let Some(earlier) = self.last_failure.replace(failure) {
                    crate::output::print_failure(&earlier, self.json);
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> Result<u8, Failure> {
        if self.json && (self.last_failure.is_none() || !self.done.is_empty()) {
            self.out.json(&json!({ (self.word): self.done }))?;
        }
        match self.last_failure {
            None => Ok(0),
            Some(failure) => Err(failure),
        }
    }
}

pub async fn signal(context: &Context, agent: &str, signo: i32) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let sent = daemon.agent(agent).await?.signal(signo).await;
    sent.map_err(|e| Failure::api(format!("can't send a signal to {agent:?}"), &e))?;
    if context.is_json() {
        Out::stdout().json(&json!({ "signalled": agent, "signal": signo }))?;
    }
    Ok(0)
}

pub async fn wait(context: &Context, agent: &str) -> Result<u8, Failure> {
    let mut daemon = Daemon::connect(context).await?;
    // The id, because a name may have gone to another agent after a restart.
    let id = daemon.agent(agent).await?.id().await;
    let id = id.unwrap_or_else(|_| agent.to_owned());
    let info = loop {
        match daemon.agent(&id).await?.wait().await {
            Err(error) if is_lost(&error) => {
                daemon = come_back(context, &daemon.runtime_dir).await?;
            }
            info => break info,
        }
    };
    let info = info.map_err(|e| Failure::api(format!("can't wait for {agent:?}"), &e))?;
    if context.is_json() {
        Out::stdout().json(&info.to_json())?;
    }
    Ok(info.exit_code())
}
