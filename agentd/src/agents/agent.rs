//! What the rest of the daemon knows of one agent: its facts, its state, and the ways to reach its session.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use agentd_api::attach::{AttachFrame, MAX_FRAME};
use agentd_api::{AgentIdentity, AgentState, AgentSummary, ExitInfo};
use agentd_broker::protocol::Slot;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::attachment::Attachment;
use super::log::OutputLog;
use super::stdio::{Input, Stream};
use super::viewer::{Begin, Notice, Viewer};
use crate::driver::WorkPort;
use crate::gateway::TokenBudget;
use crate::revocation::Control;

/// Notices that may wait for a viewer. An agent that stops and continues itself faster than one reads loses some.
const NOTICES: usize = 64;

/// What a session can be asked to do.
#[derive(Debug)]
pub enum Command {
    /// Send a signal to the foreground process group (or to the program where there is no terminal).
    Signal(u32),
    /// TERM, then KILL after `grace`; KILL at once with none.
    Stop { grace: Duration, by: String },
}

/// What stays true of an agent from its launch to its end.
#[derive(Debug, Clone)]
pub struct Facts {
    pub argv: Vec<String>,
    pub policy: String,
    pub workspace: Option<String>,
    pub driver: Option<String>,
    pub started_at_ms: u64,
    /// The layers that the launcher found active.
    pub layers: Vec<&'static str>,
    /// The init's pid as the daemon's host sees it.
    pub host_pid: u32,
    /// Its rows in the kernel plane's tables, until it has ended.
    pub slot: Slot,
}

/// An agent, living or recently dead.
#[derive(Debug)]
pub struct Agent {
    pub identity: AgentIdentity,
    pub facts: Facts,
    pub budget: Arc<TokenBudget>,
    pub log: Arc<OutputLog>,
    pub input: Input,
    /// What can be taken from it while it runs.
    pub control: Control,
    commands: mpsc::Sender<Command>,
    state: watch::Sender<AgentState>,
    ended: watch::Sender<Option<(ExitInfo, u64)>>,
    /// Set when the output has ended: the packet that tells so.
    farewell: watch::Sender<Option<Arc<[u8]>>>,
    peers: Mutex<Peers>,
    /// Set once by its driver.
    work: OnceLock<WorkPort>,
}

#[derive(Debug, Default)]
struct Peers {
    attached: Vec<Peer>,
    /// Counts what peers do, to know who did something last.
    activity: u64,
    /// The window that the terminal has.
    window: Option<Window>,
}

/// A window in character cells: rows, columns.
type Window = (u16, u16);

#[derive(Debug)]
struct Peer {
    attachment: Attachment,
    notices: mpsc::Sender<Notice>,
    /// Its window, of one that may type.
    window: Option<Window>,
    /// When it last did something, by [`Peers::activity`].
    active: u64,
}

/// How somebody attaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    pub takes_input: TakesInput,
    pub from: Begin,
    /// The peer's window.
    pub window: Option<(u16, u16)>,
}

/// The session is over; there is nobody to take a command.
#[derive(Debug, thiserror::Error)]
#[error("the agent has already ended")]
pub struct Ended;

impl Agent {
    pub fn new(
        identity: AgentIdentity,
        facts: Facts,
        budget: Arc<TokenBudget>,
        log: Arc<OutputLog>,
        input: Input,
        control: Control,
    ) -> (Arc<Self>, Channels) {
        let (commands, command_receiver) = mpsc::channel(16);
        let agent = Self {
            identity,
            facts,
            budget,
            log,
            input,
            control,
            commands,
            state: watch::Sender::new(AgentState::Running),
            ended: watch::Sender::new(None),
            farewell: watch::Sender::new(None),
            peers: Mutex::default(),
            work: OnceLock::new(),
        };
        (
            Arc::new(agent),
            Channels {
                commands: command_receiver,
            },
        )
    }

    /// As the kernel and its init say. A frozen agent is stopped, whatever its init said last.
    pub fn state(&self) -> AgentState {
        match *self.state.borrow() {
            AgentState::Running if self.control.is_frozen() => AgentState::Stopped,
            state => state,
        }
    }

    /// It was frozen or thawed: those who follow its state look again.
    pub fn state_may_have_changed(&self) {
        self.state.send_modify(|_| {});
    }

    pub fn watch_state(&self) -> watch::Receiver<AgentState> {
        self.state.subscribe()
    }

    pub(super) fn set_state(&self, state: AgentState) {
        self.state.send_replace(state);
    }

    /// Where it takes tasks, if it is driven and not started for one prompt.
    pub fn work(&self) -> Option<&WorkPort> {
        self.work.get()
    }

    /// Its driver takes tasks for it from now on.
    pub(crate) fn takes_work(&self, port: WorkPort) {
        if self.work.set(port).is_err() {
            tracing::error!(agent = %self.identity, "a second driver wants to take its tasks");
        }
    }

    /// Hands `command` to the session.
    pub async fn command(&self, command: Command) -> Result<(), Ended> {
        self.commands.send(command).await.map_err(|_| Ended)
    }

    /// Resolves when the agent has ended: nothing of it is left, and its exit is on record.
    pub async fn wait(&self) -> ExitInfo {
        let mut ended = self.ended.subscribe();
        // The sender lives as long as `self`.
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some((exit, _))) => exit.clone(),
            _ => unreachable!("the sender is a field of self, and the value was waited for"),
        }
    }

    pub fn exit(&self) -> Option<ExitInfo> {
        self.ended.borrow().as_ref().map(|(exit, _)| exit.clone())
    }

    /// The program has ended: everybody attached learns it after the last byte of output. Nothing is waited for.
    pub(super) fn farewell(self: &Arc<Self>, exit: &ExitInfo, output: JoinHandle<()>) {
        let farewell: Arc<[u8]> = AttachFrame::Exit(Box::new(exit.clone())).to_vec().into();
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = output.await {
                tracing::error!(agent = %agent.identity, "reading its output failed: {error}");
            }
            agent.log.close();
            agent.farewell.send_replace(Some(farewell));
        });
    }

    /// Nothing of the agent is left and its exit is on record.
    pub(super) fn end(&self, exit: ExitInfo, at_ms: u64) {
        self.ended.send_replace(Some((exit, at_ms)));
    }

    /// Resolves when the record says of the agent what its state says: at once while it lives, after its exit is on
    /// record when its program has ended.
    pub async fn settled(&self) {
        if !self.state().is_live() {
            self.wait().await;
        }
    }

    /// Tells everybody attached, in order with the output that is in the log. Nobody is waited for.
    pub fn notify(&self, frame: AttachFrame<'static>) {
        let at = self.log.state().end;
        for peer in &self.peers().attached {
            let notice = Notice {
                at,
                frame: frame.clone(),
            };
            if peer.notices.try_send(notice).is_err() {
                tracing::debug!(agent = %self.identity, "a peer that does not read misses a notice");
            }
        }
    }

    pub fn summary(&self) -> AgentSummary {
        let tokens = self.budget.snapshot();
        let ended = self.ended.borrow();
        AgentSummary {
            id: self.identity.id,
            name: self.identity.name.clone(),
            uid: self.identity.uid,
            state: self.state(),
            policy: self.facts.policy.clone(),
            driver: self.facts.driver.clone(),
            pid: self.state().is_live().then_some(self.facts.host_pid),
            workspace: self.facts.workspace.clone(),
            argv: self.facts.argv.clone(),
            started_at_ms: self.facts.started_at_ms,
            ended_at_ms: ended.as_ref().map(|(_, at)| *at),
            input_tokens: tokens.spent.input,
            output_tokens: tokens.spent.output,
            cost_nano_usd: tokens.cost.map(|cost| cost.0),
            exit_cause: ended.as_ref().map(|(exit, _)| exit.cause),
            exit_code: ended.as_ref().map(|(exit, _)| exit.exit_code()),
        }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a peer: shows it the output and serves its input until it goes away.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn attach(self: &Arc<Self>, attachment: Attachment, how: Attach) -> std::io::Result<()> {
        let Attach {
            takes_input,
            from,
            window,
        } = how;
        let (notices, notice_receiver) = mpsc::channel(NOTICES);
        let farewell = self.farewell.subscribe();
        let viewer = Viewer::new(
            attachment.clone(),
            &self.log,
            from,
            notice_receiver,
            farewell,
        )?;
        self.peers().attached.push(Peer {
            attachment: attachment.clone(),
            notices,
            window: None,
            active: 0,
        });
        if let Some(window) = window.filter(|_| takes_input == TakesInput::Yes) {
            self.active(&attachment, Some(window));
        }
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            let gone = tokio::select! {
                shown = viewer.run() => shown.map_err(anyhow::Error::from),
                served = agent.serve_input(&attachment, takes_input) => served,
            };
            if let Err(error) = gone {
                tracing::debug!(agent = %agent.identity, "an attached peer left: {error}");
            }
            agent.forget(&attachment);
        });
        Ok(())
    }

    /// A peer did something, or its window changed. The terminal has the window of whoever did something last.
    fn active(&self, peer: &Attachment, window: Option<Window>) {
        let mut peers = self.peers();
        peers.activity += 1;
        let now = peers.activity;
        if let Some(peer) = peers.attached.iter_mut().find(|p| p.attachment.is(peer)) {
            peer.active = now;
            peer.window = window.or(peer.window);
        }
        self.fit_window(&mut peers);
    }

    /// Gives the terminal the window of the peer that was active last.
    fn fit_window(&self, peers: &mut Peers) {
        let latest = peers
            .attached
            .iter()
            .filter(|peer| peer.window.is_some())
            .max_by_key(|peer| peer.active)
            .and_then(|peer| peer.window);
        if let Some((rows, cols)) = latest.filter(|window| peers.window != Some(*window)) {
            peers.window = latest;
            self.to_agent(self.input.resize(rows, cols));
        }
    }

    async fn serve_input(&self, peer: &Attachment, takes_input: TakesInput) -> anyhow::Result<()> {
        let mut packet = vec![0; MAX_FRAME];
        loop {
            let n = peer.receive(&mut packet).await?;
            if n == 0 {
                return Ok(());
            }
            match AttachFrame::decode(&packet[..n])? {
                AttachFrame::Stdin(_) | AttachFrame::StdinEof | AttachFrame::Resize { .. }
                    if takes_input == TakesInput::No => {}
                AttachFrame::Stdin(bytes) => {
                    self.active(peer, None);
                    self.to_agent(self.input.write(bytes).await);
                }
                AttachFrame::StdinEof => self.to_agent(self.input.end().await),
                AttachFrame::Resize { rows, cols } => self.active(peer, Some((rows, cols))),
                AttachFrame::Signal(signal) => {
                    self.command(Command::Signal(signal.unsigned_abs())).await?
                }
                other => anyhow::bail!("frame only the daemon may send: {other:?}"),
            }
        }
    }

    /// A program that closed its stdin loses what is sent to it, as with a pipe in a shell; that is not the peer's fault.
    fn to_agent(&self, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::debug!(agent = %self.identity, "input not taken: {error}");
        }
    }

    fn forget(&self, peer: &Attachment) {
        let mut peers = self.peers();
        peers.attached.retain(|p| !p.attachment.is(peer));
        self.fit_window(&mut peers);
    }

    /// Puts what the daemon itself has to say into the log, and so before everybody attached.
    pub async fn emit(&self, stream: Stream, bytes: &[u8]) {
        self.log.room().await;
        self.log.append(stream, bytes);
    }
}

/// What the session receives from.
#[derive(Debug)]
pub struct Channels {
    pub commands: mpsc::Receiver<Command>,
}

/// Whether an attached peer may type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesInput {
    No,
    Yes,
}
