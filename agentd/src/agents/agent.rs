//! What the rest of the daemon knows of one agent: its facts, its state, and the ways to reach its session.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use agentd_api::attach::{AttachFrame, MAX_FRAME, MAX_PAYLOAD};
use agentd_api::{AgentIdentity, AgentState, AgentSummary, ExitInfo};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::attachment::Attachment;
use super::log::OutputLog;
use super::stdio::{Input, OpenStreams, Output, Stream};
use crate::driver::WorkPort;
use crate::gateway::TokenBudget;

/// Notices that may wait for the pump. An agent that stops and continues itself faster than its viewers read loses some.
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
}

/// An agent, living or recently dead.
#[derive(Debug)]
pub struct Agent {
    pub identity: AgentIdentity,
    pub facts: Facts,
    pub budget: Arc<TokenBudget>,
    pub log: Arc<OutputLog>,
    pub input: Input,
    commands: mpsc::Sender<Command>,
    state: watch::Sender<AgentState>,
    ended: watch::Sender<Option<(ExitInfo, u64)>>,
    /// What the session wants everybody attached to know; the pump sends it, so that it keeps its place in the output
    /// and a peer that does not read holds up nobody else.
    notices: mpsc::Sender<AttachFrame<'static>>,
    attachments: Mutex<Attachments>,
    /// Set once by its driver.
    work: OnceLock<WorkPort>,
}

#[derive(Debug, Default)]
struct Attachments {
    peers: Vec<Attachment>,
    /// Set when the output has ended: the packet that tells a latecomer so.
    farewell: Option<Arc<[u8]>>,
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
    ) -> (Arc<Self>, Channels) {
        let (commands, command_receiver) = mpsc::channel(16);
        let (notices, notice_receiver) = mpsc::channel(NOTICES);
        let agent = Self {
            identity,
            facts,
            budget,
            log,
            input,
            commands,
            state: watch::Sender::new(AgentState::Running),
            ended: watch::Sender::new(None),
            notices,
            attachments: Mutex::default(),
            work: OnceLock::new(),
        };
        (
            Arc::new(agent),
            Channels {
                commands: command_receiver,
                notices: notice_receiver,
            },
        )
    }

    pub fn state(&self) -> AgentState {
        *self.state.borrow()
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
            let peers = {
                let mut attachments = agent.attachments();
                attachments.farewell = Some(Arc::clone(&farewell));
                std::mem::take(&mut attachments.peers)
            };
            for peer in peers {
                send_farewell(peer, Arc::clone(&farewell));
            }
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

    /// Tells everybody attached, in order with the output.
    pub(crate) fn notify(&self, frame: AttachFrame<'static>) {
        if self.notices.try_send(frame).is_err() {
            tracing::debug!(agent = %self.identity, "its output has ended, or nobody reads; a notice was dropped");
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
            exit_cause: ended.as_ref().map(|(exit, _)| exit.cause),
            exit_code: ended.as_ref().map(|(exit, _)| exit.exit_code()),
        }
    }

    fn attachments(&self) -> MutexGuard<'_, Attachments> {
        self.attachments
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a peer and serves its input until it goes away.
    pub fn attach(self: &Arc<Self>, attachment: Attachment, takes_input: TakesInput) {
        {
            let mut attachments = self.attachments();
            if let Some(farewell) = &attachments.farewell {
                return send_farewell(attachment, Arc::clone(farewell));
            }
            attachments.peers.push(attachment.clone());
        }
        let agent = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = agent.serve_input(&attachment, takes_input).await {
                tracing::debug!(agent = %agent.identity, "an attached peer left: {error}");
            }
            agent.forget(&attachment);
        });
    }

    async fn serve_input(&self, peer: &Attachment, takes_input: TakesInput) -> anyhow::Result<()> {
        let mut packet = vec![0; MAX_FRAME];
        loop {
            let n = peer.receive(&mut packet).await?;
            if n == 0 {
                return Ok(());
            }
            match AttachFrame::decode(&packet[..n])? {
                AttachFrame::Stdin(_) | AttachFrame::StdinEof if takes_input == TakesInput::No => {}
                AttachFrame::Stdin(bytes) => self.to_agent(self.input.write(bytes).await),
                AttachFrame::StdinEof => self.to_agent(self.input.end().await),
                AttachFrame::Resize { rows, cols } => self.to_agent(self.input.resize(rows, cols)),
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
        self.attachments().peers.retain(|a| !a.is(peer));
    }

    /// Sends `frame` to everybody attached, waiting for the lossless ones.
    pub async fn tell(&self, frame: &AttachFrame<'_>) {
        let packet = frame.to_vec();
        let output_bytes = match frame {
            AttachFrame::Stdout(bytes) | AttachFrame::Stderr(bytes) => Some(bytes.len() as u64),
            _ => None,
        };
        let peers = self.attachments().peers.clone();
        for peer in peers {
            let sent = match output_bytes {
                Some(len) => peer.send_output(&packet, len).await,
                None => peer.send(&packet).await,
            };
            if sent.is_err() {
                self.forget(&peer);
            }
        }
    }

    /// Reads the agent's output to its end, into the log and to everybody attached. Runs as its own task, so that a
    /// full attachment holds back the agent and not the session.
    pub async fn pump(
        self: Arc<Self>,
        mut output: Output,
        mut notices: mpsc::Receiver<AttachFrame<'static>>,
    ) {
        let (mut out, mut err) = (vec![0; MAX_PAYLOAD], vec![0; MAX_PAYLOAD]);
        let mut open = OpenStreams::default();
        loop {
            let read = tokio::select! {
                read = output.read(&mut out, &mut err, &mut open) => read,
                // The agent itself holds a sender: this never ends before the output does.
                Some(notice) = notices.recv() => {
                    self.tell(&notice).await;
                    continue;
                }
            };
            match read {
                Ok(Some((stream, n))) => {
                    let bytes = match stream {
                        Stream::Stdout => &out[..n],
                        Stream::Stderr => &err[..n],
                    };
                    self.emit(stream, bytes).await;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(agent = %self.identity, "its output cannot be read further: {error}");
                    return;
                }
            }
        }
    }

    /// Puts output into the log and on every attachment.
    pub async fn emit(&self, stream: Stream, bytes: &[u8]) {
        self.log.append(bytes);
        for piece in bytes.chunks(MAX_PAYLOAD) {
            let frame = match stream {
                Stream::Stdout => AttachFrame::Stdout(piece),
                Stream::Stderr => AttachFrame::Stderr(piece),
            };
            self.tell(&frame).await;
        }
    }
}

/// What the session and the pump receive from.
#[derive(Debug)]
pub struct Channels {
    pub commands: mpsc::Receiver<Command>,
    pub notices: mpsc::Receiver<AttachFrame<'static>>,
}

/// Not awaited by anyone: a peer that never reads must not keep the others waiting.
fn send_farewell(peer: Attachment, farewell: Arc<[u8]>) {
    tokio::spawn(async move {
        if let Err(error) = peer.send(&farewell).await {
            tracing::debug!("an attached peer left before the exit: {error}");
        }
    });
}

/// Whether an attached peer may type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakesInput {
    No,
    Yes,
}
