//! Speaking an agent's own protocol over its stdin and stdout.
//!
//! [`prepare`] says what a driver adds to a launch; [`start`] runs the conversation of a launched agent. The protocols
//! themselves are pure state machines in `agentd_orchestrator::driver`; [`Conversation`] joins one to the pipes, the
//! policy, the bus and the record. `docs/drivers.md` is the description for users.
//!
//! An agent that is not driven is left alone, with one exception: a `claude` that a person runs in a terminal gets the
//! same seeded HOME, so that no first-run dialog stands in the way.

pub mod claude;
mod conversation;
mod resume;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::attach::AttachFrame;
use agentd_api::{Driver, Error, LaunchSpec};
use agentd_orchestrator::driver::Machine;
use agentd_orchestrator::driver::{claude::Claude, jsonl::Jsonl};
use agentd_sandbox::{HomeFile, ToolRules};
use agentd_storage::Store;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::either::Either;

use crate::agents::Agent;
use crate::agents::agent::Command;
use crate::agents::feed::Feed;
use crate::agents::stdio::{Output, Stream};
use crate::approvals::Approvals;
use crate::bus::AgentPort;
use crate::tasks::FleetChanged;

pub use conversation::{Conversation, Outcome, Said};
pub use resume::History;
pub use work::{
    NoTasks, NotBegun, OpenWork, Recording, Taking, TaskSink, Work, WorkInbox, WorkLease, WorkPort,
    work_port,
};

/// Words of the agent that may wait for slow readers.
const UNSAID: usize = 256;
const STDERR_BYTES: usize = 16 * 1024;
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
            "a prompt needs a driver: add --driver claude or --driver jsonl".into(),
        ));
    }
    let argv = match driver {
        Driver::Claude => {
            claude::command_line(&spec.argv).map_err(|e| Error::InvalidArgument(e.to_string()))?
        }
        Driver::None | Driver::Jsonl => spec.argv.clone(),
    };
    if driver != Driver::Claude && !(driver == Driver::None && claude::is_program(&spec.argv)) {
        return Ok(Driven {
            argv,
            env: BTreeMap::new(),
            home_files: Vec::new(),
        });
    }
    let trusted: Vec<&str> = [&spec.workspace, &spec.cwd]
        .into_iter()
        .filter_map(Option::as_deref)
        .collect();
    Ok(Driven {
        argv,
        env: claude::environment(),
        home_files: claude::home_files(&trusted),
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
    pub agent: Arc<Agent>,
    pub output: Output,
    pub notices: mpsc::Receiver<AttachFrame<'static>>,
    pub port: AgentPort,
    pub tools: ToolRules,
    pub approvals: Arc<Approvals>,
    pub store: Store,
    /// Where its work is reported, and who is told when it is free for more.
    pub tasks: (Arc<dyn TaskSink>, FleetChanged),
}

/// Starts the driver's task, which owns the agent's streams and ends when they have ended.
///
/// # Errors
/// When the agent has no pipes, or no driver.
pub async fn start(start: Start) -> anyhow::Result<JoinHandle<()>> {
    let machine: Box<dyn Machine> = match start.driver {
        Driver::Claude => Box::new(Claude::new()),
        Driver::Jsonl => Box::new(Jsonl::new()),
        Driver::None => anyhow::bail!("an agent without a driver has no conversation"),
    };
    let Output::Pipes { stdout, stderr } = start.output else {
        anyhow::bail!("a driven agent needs pipes");
    };
    let mut stdin = start.agent.input.take_feed().await;
    if let (Some(history), Some(feed)) = (&start.history, &mut stdin) {
        history.settle(feed).await?;
    }
    let sent = stdin.as_ref().map_or(0, Feed::end);
    let stdin = match stdin {
        Some(feed) => Either::Left(feed),
        // Closed by an earlier agentd: the agent was told all that it will be told.
        None if start.history.is_some() => Either::Right(tokio::io::sink()),
        None => anyhow::bail!("a driven agent needs pipes"),
    };
    let (said, words) = mpsc::channel(UNSAID);
    let (tasks, changed) = start.tasks;
    let (work_port, work) = work_port(changed.0);
    // Whoever was launched for a prompt ends with it.
    if start.prompt.is_none() {
        start.agent.takes_work(work_port);
    }
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
        said,
        sent,
        history: start.history,
    };
    let agent = start.agent;
    let notices = start.notices;
    Ok(tokio::spawn(async move {
        let spoken = relay(Arc::clone(&agent), stderr, words, notices);
        let talk = async {
            let outcome = conversation.run(stdout, stdin).await;
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
        tokio::join!(spoken, talk);
    }))
}

/// Carries the agent's words, its stderr and notices to the log and to everybody attached, until the first two end.
async fn relay(
    agent: Arc<Agent>,
    mut stderr: pipe::Receiver,
    mut words: mpsc::Receiver<Said>,
    mut notices: mpsc::Receiver<AttachFrame<'static>>,
) {
    let mut buffer = vec![0; STDERR_BYTES];
    let (mut reading, mut talking) = (true, true);
    while reading || talking {
        tokio::select! {
            read = stderr.read(&mut buffer), if reading => match read {
                Ok(n) if n > 0 => agent.emit(Stream::Stderr, &buffer[..n]).await,
                _ => reading = false,
            },
            said = words.recv(), if talking => match said {
                Some(Said::Words(text)) => agent.emit(Stream::Stdout, format!("{text}\n").as_bytes()).await,
                Some(Said::Log(text)) => agent.emit(Stream::Stderr, format!("agentd: {text}\n").as_bytes()).await,
                None => talking = false,
            },
            Some(notice) = notices.recv() => agent.tell(&notice).await,
        }
    }
}
