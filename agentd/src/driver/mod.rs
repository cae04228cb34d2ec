//! Speaking an agent's own protocol over its stdin and stdout.
//!
//! [`prepare`] says what a driver adds to a launch; [`start`] runs the conversation of a launched agent. The protocols
//! themselves are pure state machines in `agentd_orchestrator::driver`; [`Conversation`] joins one to the pipes, the
//! policy, the bus and the record. `docs/drivers.md` is the description for users.
//!
//! An agent that is not driven is left alone, with one exception: a `claude` that a person runs in a terminal gets the
//! same seeded HOME, so that no first-run dialog stands in the way.

pub mod acp;
mod alarm;
pub mod claude;
pub mod codex;
mod conversation;
mod resume;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::{Driver, Error, LaunchSpec};
use agentd_orchestrator::driver::Machine;
use agentd_orchestrator::driver::acp::{Acp, Setting};
use agentd_orchestrator::driver::{claude::Claude, codex::Codex, jsonl::Jsonl};
use agentd_sandbox::{HomeFile, ToolRules, ports};
use agentd_storage::Store;
use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::either::Either;

use crate::agents::Agent;
use crate::agents::agent::Command;
use crate::agents::feed::Feed;
use crate::agents::log::{self, OutputLog};
use crate::agents::pump::Pump;
use crate::agents::stdio::{Output, Stream};
use crate::approvals::Approvals;
use crate::bus::AgentPort;
use crate::revocation::Live;
use crate::tasks::{Delegation, FleetChanged};

pub use conversation::{Conversation, Outcome, Said};
pub use resume::History;
pub use work::{
    NoTasks, NotBegun, OpenWork, Recording, Taking, TaskSink, Work, WorkInbox, WorkLease, WorkPort,
    work_port,
};

/// Words of the agent that may wait for slow readers.
const UNSAID: usize = 256;
/// How long an agent whose conversation failed may take to end by itself.
const FAILED_GRACE: Duration = Duration::from_secs(5);

/// What a driver adds to a launch.
#[derive(Debug)]
pub struct Driven {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    pub home_files: Vec<HomeFile>,
}

/// The command line, environment and HOME that `driver` needs.
///
/// # Errors
/// [`Error::InvalidArgument`] when the command collides with the driver.
pub fn prepare(driver: Driver, spec: &LaunchSpec) -> Result<Driven, Error> {
    if driver == Driver::None && spec.prompt.is_some() {
        return Err(Error::InvalidArgument(
            "a prompt needs a driver: add --driver claude, codex, acp or jsonl".into(),
        ));
    }
    let reserved = |error: ReservedOption| Error::InvalidArgument(error.to_string());
    Ok(match driver {
        Driver::Claude => Driven {
            argv: claude::command_line(&spec.argv).map_err(reserved)?,
            ..seeded_claude(spec)
        },
        Driver::Codex => Driven {
            argv: codex::command_line(&spec.argv).map_err(reserved)?,
            env: codex::environment(),
            home_files: codex::home_files(),
        },
        Driver::Acp => Driven {
            argv: acp::command_line(&spec.argv).map_err(reserved)?,
            env: acp::environment(&spec.argv),
            home_files: acp::home_files(&spec.argv),
        },
        Driver::None if claude::is_program(&spec.argv) => seeded_claude(spec),
        Driver::None | Driver::Jsonl => Driven {
            argv: spec.argv.clone(),
            env: BTreeMap::new(),
            home_files: Vec::new(),
        },
    })
}

/// Claude Code as it is given, with its environment and HOME.
fn seeded_claude(spec: &LaunchSpec) -> Driven {
    let trusted: Vec<&str> = [&spec.workspace, &spec.cwd]
        .into_iter()
        .filter_map(Option::as_deref)
        .collect();
    Driven {
        argv: spec.argv.clone(),
        env: claude::environment(),
        home_files: claude::home_files(&trusted),
    }
}

/// An option that collides with a driver's own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {driver} driver sets {option} itself; leave it out after --, or run without --driver")]
pub struct ReservedOption {
    /// The driver.
    pub driver: &'static str,
    /// The option as given.
    pub option: String,
}

/// `argv` with the words `added` behind the program, unless it has one of `reserved` itself.
fn driven_line(
    driver: &'static str,
    argv: &[String],
    added: &[&str],
    reserved: &[&str],
) -> Result<Vec<String>, ReservedOption> {
    let Some((program, rest)) = argv.split_first() else {
        return Ok(Vec::new());
    };
    let is_reserved = |arg: &&String| reserved.contains(&arg.split('=').next().unwrap_or_default());
    if let Some(option) = rest.iter().find(is_reserved) {
        return Err(ReservedOption {
            driver,
            option: option.clone(),
        });
    }
    let mut line = vec![program.clone()];
    line.extend(added.iter().map(|&word| word.to_owned()));
    line.extend(rest.iter().cloned());
    Ok(line)
}

/// A machine for `driver`, for an agent that works in `cwd` inside its sandbox; none where nobody drives.
pub fn machine(driver: Driver, cwd: &str) -> Option<Box<dyn Machine>> {
    Some(match driver {
        Driver::None => return None,
        Driver::Claude => Box::new(Claude::new()),
        Driver::Codex => Box::new(Codex::new()),
        Driver::Acp => Box::new(Acp::new(Setting {
            cwd: cwd.to_owned(),
            mcp_url: ports::MCP_URL.to_owned(),
        })),
        Driver::Jsonl => Box::new(Jsonl::new()),
    })
}

/// A launched agent that is to be driven.
#[derive(Debug)]
pub struct Start {
    pub driver: Driver,
    pub prompt: Option<String>,
    pub workspace: Option<String>,
    /// The unit it was started from.
    pub unit: Option<String>,
    /// What was said so far, if an earlier agentd launched the agent.
    pub history: Option<History>,
    /// Where it works, inside.
    pub cwd: String,
    /// How long it may take until it is ready.
    pub start_limit: Duration,
    pub agent: Arc<Agent>,
    pub output: Output,
    /// Where its side of the protocol goes on its way to the conversation.
    pub journal: Arc<OutputLog>,
    pub port: AgentPort,
    pub tools: Live<ToolRules>,
    pub approvals: Arc<Approvals>,
    pub store: Store,
    /// Where its work is reported, and who is told when it is free for more.
    pub tasks: (Arc<dyn TaskSink>, FleetChanged),
    /// What it may give to others.
    pub delegation: Option<Delegation>,
}

/// Starts the driver's task, which owns the agent's streams and ends when they have ended.
///
/// # Errors
/// When the agent has no pipes, or no driver.
pub async fn start(start: Start) -> anyhow::Result<JoinHandle<()>> {
    let machine = machine(start.driver, &start.cwd)
        .context("an agent without a driver has no conversation")?;
    let Output::Pipes(_) = &start.output else {
        anyhow::bail!("a driven agent needs pipes");
    };
    let mut stdin = start.agent.input.take_feed().await;
    if let (Some(history), Some(feed)) = (&start.history, &mut stdin) {
        history.settle(feed)?;
    }
    let sent = stdin.as_ref().map_or(0, Feed::end);
    let stdin = match stdin {
        Some(feed) => Either::Left(feed),
        // Closed by an earlier agentd: the agent was told all that it will be told.
        None if start.history.is_some() => Either::Right(tokio::io::sink()),
        None => anyhow::bail!("a driven agent needs pipes"),
    };
    let from = start.history.as_ref().map_or(0, History::read_to);
    let (said, words) = mpsc::channel(UNSAID);
    let (tasks, changed) = start.tasks;
    let (work_port, work) = work_port(changed.0);
    // Whoever was launched for a prompt ends with it.
    if start.prompt.is_none() {
        start.agent.takes_work(work_port);
    }
    let store = start.store.clone();
    let conversation = Conversation {
        machine,
        port: start.port,
        store: start.store,
        tools: start.tools,
        approvals: start.approvals,
        unit: start.unit,
        workspace: start.workspace,
        prompt: start.prompt,
        work,
        tasks,
        delegation: start.delegation,
        said,
        sent,
        from,
        history: start.history,
        start_limit: start.start_limit,
    };
    let agent = start.agent;
    let journal = Arc::clone(&start.journal);
    let from_agent = log::follow(&start.journal, from);
    let pump = Pump {
        output: start.output,
        stdout_to: Arc::clone(&start.journal),
        stderr_to: Arc::clone(&agent.log),
    };
    Ok(tokio::spawn(async move {
        let pumped = async {
            if let Err(error) = pump.run().await {
                tracing::warn!(agent = %agent.identity, "its output cannot be read further: {error}");
            }
        };
        let spoken = relay(&agent, words);
        let talk = async {
            let outcome = conversation.run(from_agent, stdin).await;
            tracing::debug!(agent = %agent.identity, "its conversation is over: {outcome:?}");
            if let Outcome::Failed(why) = outcome {
                let stop = Command::Stop {
                    grace: FAILED_GRACE,
                    by: format!("its driver: {why}"),
                };
                // An agent that has ended meanwhile needs no stopping.
                if agent.command(stop).await.is_err() {
                    tracing::debug!(agent = %agent.identity, "it had ended already");
                }
            }
        };
        tokio::join!(pumped, spoken, talk);
        // Every line is on record. While the record is in trouble some may not be; then pruning removes the journal.
        if store.health().trouble.is_none() {
            journal.remove();
        }
    }))
}

/// Carries the agent's words to the log, and so to everybody attached, until the conversation is over.
async fn relay(agent: &Agent, mut words: mpsc::Receiver<Said>) {
    while let Some(said) = words.recv().await {
        match said {
            Said::Words(text) => {
                agent
                    .emit(Stream::Stdout, format!("{text}\n").as_bytes())
                    .await;
            }
            Said::Log(text) => {
                agent
                    .emit(Stream::Stderr, format!("agentd: {text}\n").as_bytes())
                    .await;
            }
        }
    }
}
