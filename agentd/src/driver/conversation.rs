//! One conversation with a driven agent: runs a [`Machine`] over the agent's pipes and carries out what it says.
//!
//! The order that makes it safe to die at any point: a line from the agent is on the disk before the machine sees it;
//! an answer, and the decision it carries, is on the disk before it is written. If the record can't be written,
//! questions are still answered, with a refusal. Work comes one turn at a time: the prompt of the launch, or else
//! requests of other agents and tasks, in order of arrival. A task's turn is on record as such before it is written, and
//! its outcome before anything follows from it.
//!
//! Runs as one task per driven agent in the daemon, plus one task for each question that needs the bus or a person and
//! one that writes to the agent, so that an agent which doesn't read can't stop us from reading it.

mod questions;

use std::sync::Arc;
use std::time::Duration;

use agentd_api::approvals::{self, QuestionKind};
use agentd_orchestrator::driver::{
    self, Action, Answer, Asker, Cut, Lines, Machine, PeerRequest, RequestId, ToolRequest, Turn,
    TurnId, TurnOutcome,
};
use agentd_sandbox::{ToolDecision, ToolRule, ToolRules};
use agentd_storage::{Direction, Event, Fact, Store, Usage, UsageSource};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::questions::{Fallback, Questions, Reply, allowance, mcp_error, refusal};
use super::alarm::Alarm;
use crate::approvals::{Answered, Approvals, Ask};
use crate::bus::{AgentPort, IncomingRequest, Requests};
use crate::driver::{History, Taking, TaskSink, Work, WorkInbox};
use crate::mcp::{InBand, Rights};
use crate::revocation::Live;
use crate::tasks::Delegation;

/// Bytes read from the agent at once.
const READ_BYTES: usize = 64 * 1024;
/// Lines that may wait for the agent to read them.
const UNREAD_LINES: usize = 1024;
/// How long a request to another agent waits when the agent does not say.
const PEER_TIMEOUT: Duration = Duration::from_secs(600);
/// A bus error text of the protocol is bounded.
const ERROR_BYTES: usize = 256;

/// What the agent, or the driver about it, says to people.
#[derive(Debug)]
pub enum Said {
    /// The agent's words.
    Words(String),
    /// A line of the driver.
    Log(String),
}

/// Why the conversation is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The turn of the launch's prompt has ended; the agent's stdin is closed.
    PromptDone(TurnOutcome),
    /// The agent closed its stdout.
    AgentClosed,
    /// The protocol could not be set up, or the pipes failed.
    Failed(String),
}

/// Everything one conversation needs.
#[derive(Debug)]
pub struct Conversation {
    pub machine: Box<dyn Machine>,
    pub port: AgentPort,
    pub store: Store,
    pub tools: Live<ToolRules>,
    /// Where people are asked what `tools` leaves to them.
    pub approvals: Arc<Approvals>,
    /// The unit the agent was started from.
    pub unit: Option<String>,
    pub workspace: Option<String>,
    /// With a prompt, the conversation ends with its turn. Without, the agent serves the requests of others.
    pub prompt: Option<String>,
    /// Tasks for this agent, and where their ends are reported.
    pub work: WorkInbox,
    pub tasks: Arc<dyn TaskSink>,
    /// What the agent may give to others.
    pub delegation: Option<Delegation>,
    pub said: mpsc::Sender<Said>,
    /// How long the agent may take until it is ready for its first turn.
    pub start_limit: Duration,
    /// Bytes that the agent's stdin was given before.
    pub sent: u64,
    /// What was said so far, if an earlier agentd began the conversation.
    pub history: Option<History>,
    /// The offset in the agent's protocol journal at which reading begins: 0, or where the last line on record ends.
    pub from: u64,
}

impl Conversation {
    /// Talks until there is nothing left to say. Returns after the agent closed its stdout, so every line it wrote is
    /// on record.
    pub async fn run<R, W>(self, from_agent: R, to_agent: W) -> Outcome
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (lines, queue) = mpsc::channel(UNREAD_LINES);
        let writer = tokio::spawn(write_lines(queue, to_agent));
        let mut state = State {
            launch: self.port.identity().id.to_string(),
            mcp: InBand::new(Rights {
                port: self.port.clone(),
                delegation: self.delegation.clone(),
            }),
            conversation: self,
            lines: Some(lines),
            questions: Questions::default(),
            requests: None,
            current: None,
            ready: false,
            turns: 0,
            record_broken: None,
            outcome: None,
        };
        let outcome = state.talk(from_agent).await;
        drop(state);
        if let Err(error) = writer.await {
            tracing::error!("writing to a driven agent failed: {error}");
        }
        outcome
    }
}

/// Writes lines until the queue is closed, then closes the agent's stdin.
async fn write_lines<W: AsyncWrite + Unpin>(mut queue: mpsc::Receiver<String>, mut to_agent: W) {
    // What an earlier agentd accepted and the agent has not been given yet.
    if let Err(error) = to_agent.flush().await {
        tracing::debug!("a driven agent does not take input any more: {error}");
    }
    while let Some(mut line) = queue.recv().await {
        line.push('\n');
        let written = async {
            to_agent.write_all(line.as_bytes()).await?;
            to_agent.flush().await
        };
        // The agent may have closed its stdin or died; its stdout or its pidfd will tell.
        if let Err(error) = written.await {
            tracing::debug!("a driven agent does not take input any more: {error}");
            queue.close();
        }
    }
    if let Err(error) = to_agent.shutdown().await {
        tracing::debug!("the stdin of a driven agent could not be closed: {error}");
    }
}

/// Whose turn it is.
#[derive(Debug)]
enum Current {
    Prompt,
    Request(IncomingRequest),
    Task(Work),
    /// Its asker is gone.
    Unwanted,
}

struct State {
    launch: String,
    conversation: Conversation,
    mcp: InBand,
    /// Dropped to close the agent's stdin.
    lines: Option<mpsc::Sender<String>>,
    questions: Questions,
    requests: Option<Requests>,
    current: Option<(TurnId, Current)>,
    ready: bool,
    turns: u64,
    /// Why the record can't be written, as long as it can't.
    record_broken: Option<String>,
    outcome: Option<Outcome>,
}

impl State {
    async fn talk<R: AsyncRead + Unpin>(&mut self, mut from_agent: R) -> Outcome {
        let mut cutter = Lines::starting_at(self.conversation.from);
        let mut buffer = vec![0; READ_BYTES];
        match self.conversation.history.take() {
            None => {
                let first = self.conversation.machine.start();
                self.perform(first).await;
            }
            Some(history) => self.go_on(&history).await,
        }
        let limit = self.conversation.start_limit;
        let late = match Alarm::after(limit) {
            Ok(alarm) => alarm,
            Err(error) => {
                let why = format!("no timer for its start: {error}");
                return self.fail(why).await;
            }
        };
        loop {
            // Nothing that it still says matters, and it may never close its stdout.
            if let Some(Outcome::Failed(_)) = self.outcome {
                break;
            }
            let idle = self.ready && self.current.is_none() && self.outcome.is_none();
            // Who serves requests takes tasks too; who was launched for a prompt takes neither.
            let serves = self.requests.is_some();
            self.conversation.work.set(match (idle, serves) {
                _ if self.outcome.is_some() => Taking::Over,
                (true, true) => Taking::Idle,
                (false, true) => Taking::Busy,
                (_, false) => Taking::NotYet,
            });
            tokio::select! {
                read = from_agent.read(&mut buffer) => {
                    let lines = match read {
                        Ok(0) => break,
                        Ok(n) => cutter.push(&buffer[..n]),
                        Err(error) => {
                            self.outcome.get_or_insert_with(|| Outcome::Failed(format!("reading the agent failed: {error}")));
                            break;
                        }
                    };
                    self.receive(lines).await;
                }
                reply = self.questions.next() => {
                    let actions = self.answer(reply).await;
                    self.perform(actions).await;
                }
                request = next_request(&mut self.requests), if idle => match request {
                    Some(request) => self.begin_request(request).await,
                    // Detached from the bus: the agent is ending.
                    None => self.requests = None,
                },
                work = self.conversation.work.next(), if idle && serves => self.begin_task(work).await,
                came = late.come(), if !self.ready && self.outcome.is_none() => {
                    let why = match came {
                        Ok(()) => format!(
                            "it was not ready within {} s (daemon.driver_start_ms); its stderr may say why (agentctl logs)",
                            limit.as_secs_f64()
                        ),
                        Err(error) => format!("the timer for its start: {error}"),
                    };
                    return self.fail(why).await;
                }
                () = withdrawn(&self.current) => {
                    // Nobody wants the answer any more. The turn still ends in the agent's own words.
                    if let Some((turn, current)) = self.current.take() {
                        let unwanted = match current {
                            // The task's seat is taken until the turn is really over.
                            Current::Task(work) => Current::Task(Work { cancel: CancellationToken::new(), ..work }),
                            Current::Prompt | Current::Request(_) | Current::Unwanted => Current::Unwanted,
                        };
                        self.current = Some((turn, unwanted));
                        let actions = self.conversation.machine.interrupt();
                        self.perform(actions).await;
                    }
                }
            }
        }
        if let Some(line) = cutter.finish() {
            self.receive(vec![line]).await;
        }
        let last = self.conversation.machine.close();
        self.perform(last).await;
        self.outcome.take().unwrap_or(Outcome::AgentClosed)
    }

    /// The end of a conversation that can't begin.
    async fn fail(&mut self, why: String) -> Outcome {
        self.perform(vec![Action::Failed(why.clone())]).await;
        Outcome::Failed(why)
    }

    /// Takes a conversation up that an earlier agentd began.
    async fn go_on(&mut self, history: &History) {
        let machine = self.conversation.machine.as_mut();
        let resumed = match driver::resume(machine, history.recorded()) {
            Ok(resumed) => resumed,
            Err(why) => {
                let why = format!("agentd was restarted, and it can't go on: {why}");
                return self.perform(vec![Action::Failed(why)]).await;
            }
        };
        self.note(format!(
            "driver: goes on after a restart of agentd, turn {}",
            resumed.turns
        ))
        .await;
        self.ready = resumed.ready;
        self.turns = resumed.turns;
        let mut actions = resumed.actions;
        let prompted = self.conversation.prompt.is_some() && self.turns > 0;
        let launch = self.conversation.port.identity().id;
        let tasks = Arc::clone(&self.conversation.tasks);
        let work = tasks.resume(launch, TurnId(resumed.turns)).await;
        match (resumed.open, work) {
            (Some(turn), Some(work)) if work.turn == turn => {
                let work = Work {
                    task: work.task,
                    attempt: work.attempt,
                    text: String::new(),
                    cancel: work.cancel,
                };
                self.current = Some((turn, Current::Task(work)));
            }
            (Some(turn), _) if prompted => self.current = Some((turn, Current::Prompt)),
            (Some(turn), _) => {
                // Asked by an agent whose request ended with the earlier agentd.
                self.current = Some((turn, Current::Unwanted));
                actions.extend(self.conversation.machine.interrupt());
            }
            (None, work) => {
                // The end may be on record as a line and not as what follows from it.
                if let Some((turn, outcome)) = resumed.last_end {
                    match work {
                        Some(work) if work.turn == turn => {
                            tasks.ended(work.task, work.attempt, outcome).await;
                        }
                        _ if prompted => {
                            self.current = Some((turn, Current::Prompt));
                            self.end_turn(turn, outcome).await;
                        }
                        _ => {}
                    }
                }
            }
        }
        if prompted {
            self.conversation.prompt = None;
        } else if self.ready {
            actions.extend(self.first_turn());
        }
        self.perform(actions).await;
    }

    /// Puts lines on record, then acts on them.
    async fn receive(&mut self, lines: Vec<Cut>) {
        if lines.is_empty() {
            return;
        }
        let facts = lines
            .iter()
            .map(|cut| Fact::DriverLine {
                direction: Direction::In,
                line: cut.line.record().to_owned(),
                end: Some(cut.end),
            })
            .collect();
        self.record(facts).await;
        for cut in &lines {
            let actions = self.conversation.machine.receive(&cut.line);
            self.perform(actions).await;
        }
    }

    /// Carries actions out, and those that they lead to.
    async fn perform(&mut self, actions: Vec<Action>) {
        let mut actions = std::collections::VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            match action {
                Action::Write(line) => self.write(line, Vec::new()).await,
                Action::Ready => {
                    self.ready = true;
                    actions.extend(self.first_turn());
                }
                Action::Failed(why) => {
                    self.say(Said::Log(why.clone())).await;
                    self.note(format!("driver: {why}")).await;
                    self.outcome.get_or_insert(Outcome::Failed(why));
                    self.lines = None;
                }
                Action::Session(session) => {
                    let mcp: Vec<String> = session
                        .mcp
                        .iter()
                        .map(|(name, state)| format!("{name} {state}"))
                        .collect();
                    self.note(format!(
                        "driver: session {} of version {}, model {}, mcp {}",
                        session.id,
                        session.version,
                        session.model,
                        mcp.join(", ")
                    ))
                    .await;
                }
                Action::Text(text) => self.say(Said::Words(text)).await,
                Action::ToolUse { tool } => tracing::debug!(agent = self.launch, "uses {tool}"),
                Action::AskTool(request) => actions.extend(self.decide(request).await),
                Action::Mcp { id, message } => self.ask_mcp(id, message),
                Action::AskPeer(request) => self.ask_peer(request),
                Action::Withdrawn(id) => self.questions.withdraw(&id),
                Action::TurnEnded { turn, outcome } => self.end_turn(turn, outcome).await,
                Action::Usage(usage) => {
                    self.record(vec![Fact::Usage(Usage {
                        source: UsageSource::Protocol,
                        model: usage.model,
                        input: usage.input,
                        output: usage.output,
                        cache_read: usage.cache_read,
                        cache_write: usage.cache_write,
                        ..Usage::default()
                    })])
                    .await;
                }
                Action::Log(text) => self.say(Said::Log(text)).await,
                Action::Ignored { kind } => tracing::trace!(agent = self.launch, "ignored {kind}"),
                Action::ProtocolError { what, line } => {
                    tracing::warn!(agent = self.launch, "its protocol: {what}: {line}");
                    self.note(format!("driver: protocol error: {what}: {line}"))
                        .await;
                }
                other => tracing::warn!(agent = self.launch, "the driver can't do {other:?}"),
            }
        }
    }

    /// The agent is ready: its prompt, or the requests of others from now on.
    fn first_turn(&mut self) -> Vec<Action> {
        if let Some(text) = self.conversation.prompt.take() {
            return self.begin(None, text, Current::Prompt);
        }
        match self.conversation.port.serve_requests(1) {
            Ok(requests) => {
                self.requests = Some(requests);
                Vec::new()
            }
            Err(error) => vec![Action::Failed(format!("it can't serve requests: {error}"))],
        }
    }

    async fn begin_request(&mut self, request: IncomingRequest) {
        let text = match std::str::from_utf8(&request.payload) {
            Ok(text) => text.to_owned(),
            Err(_) => {
                respond(request, Err("this agent takes text only".to_owned())).await;
                return;
            }
        };
        let asker = Asker {
            name: request.from.clone(),
            method: request.method.clone(),
        };
        let actions = self.begin(Some(asker), text, Current::Request(request));
        self.perform(actions).await;
    }

    /// Begins a task's turn: first on record, then in the agent's hands.
    async fn begin_task(&mut self, work: Work) {
        let (task, attempt) = (work.task, work.attempt);
        let (launch, turn) = (self.conversation.port.identity().id, TurnId(self.turns + 1));
        let tasks = Arc::clone(&self.conversation.tasks);
        if let Err(why) = tasks.begun(launch, task, attempt, turn).await {
            tracing::debug!(agent = self.launch, %task, "its turn does not begin: {why}");
            tasks.ended(task, attempt, not_begun(why.to_string())).await;
            return;
        }
        let text = work.text.clone();
        let actions = self.begin(None, text, Current::Task(work));
        if self.current.is_none() {
            let why = "the agent could not take a turn".to_owned();
            tasks.ended(task, attempt, not_begun(why)).await;
        }
        self.perform(actions).await;
    }

    fn begin(&mut self, asked_by: Option<Asker>, text: String, current: Current) -> Vec<Action> {
        let id = TurnId(self.turns + 1);
        let turn = Turn { id, asked_by, text };
        match self.conversation.machine.begin_turn(&turn) {
            Ok(actions) => {
                // Counted by what is written, as a later agentd counts them from the record.
                self.turns = id.0;
                self.current = Some((id, current));
                actions
            }
            // Dropping a request tells its sender that it failed.
            Err(refused) => vec![Action::Log(format!("a turn could not begin: {refused}"))],
        }
    }

    async fn end_turn(&mut self, turn: TurnId, outcome: TurnOutcome) {
        self.note(format!("driver: turn {} ended: {}", turn.0, outcome.kind))
            .await;
        match self.current.take() {
            Some((id, Current::Request(request))) if id == turn => {
                let result = answer_of(&outcome, self.conversation.port.max_payload());
                respond(request, result).await;
            }
            Some((id, Current::Prompt)) if id == turn => {
                if outcome.is_error {
                    self.say(Said::Log(format!("the turn failed: {}", outcome.text)))
                        .await;
                }
                self.outcome.get_or_insert(Outcome::PromptDone(outcome));
                self.lines = None;
            }
            Some((id, Current::Task(work))) if id == turn => {
                self.conversation
                    .tasks
                    .ended(work.task, work.attempt, outcome)
                    .await;
            }
            Some((id, Current::Unwanted)) if id == turn => {}
            other => self.current = other,
        }
    }

    /// Answers a question about a tool by the policy, or asks a person while everything else goes on.
    async fn decide(&mut self, request: ToolRequest) -> Vec<Action> {
        let ToolRequest { id, tool, input } = request;
        let decision = match &self.record_broken {
            Some(why) => ToolDecision::Deny {
                why: format!("agentd can't put this on record: {why}"),
                origin: None,
            },
            None => self.conversation.tools.now().decide(
                &tool,
                &input,
                self.conversation.workspace.as_deref(),
            ),
        };
        let reply = match decision {
            ToolDecision::Allow => allowance(id, tool, "policy", "no rule against it".to_owned()),
            ToolDecision::Deny { why, origin } => {
                let origin = origin.map(|origin| origin.to_string());
                refusal(id, tool, &input, "policy", why, origin)
            }
            ToolDecision::Ask { rule } => {
                self.ask_person(id, tool, input, rule);
                return Vec::new();
            }
        };
        self.answer(reply).await
    }

    fn ask_person(&mut self, id: RequestId, tool: String, input: Value, rule: ToolRule) {
        let approvals = Arc::clone(&self.conversation.approvals);
        let ask = Ask {
            identity: self.conversation.port.identity().clone(),
            unit: self.conversation.unit.clone(),
            request_id: id.0.clone(),
            kind: QuestionKind::Tool,
            tool: tool.clone(),
            input: input.clone(),
            rule: format!("{} ({})", rule.text, rule.origin),
            workspace: self.conversation.workspace.clone(),
            timeout: self.conversation.tools.now().ask_timeout,
        };
        let fallback = Fallback::Tool(tool.clone(), input.clone());
        let rules = self.conversation.tools.clone();
        let workspace = self.conversation.workspace.clone();
        self.questions.ask(id.clone(), fallback, async move {
            let Answered { answer, by, reason } = approvals.ask(ask).await;
            // A person may have taken long: what is denied by now stays denied.
            let now = rules.now().decide(&tool, &input, workspace.as_deref());
            if let (approvals::Answer::Allow, ToolDecision::Deny { why, origin }) = (answer, now) {
                let origin = origin.map(|origin| origin.to_string());
                return refusal(id, tool, &input, "policy", why, origin);
            }
            match answer {
                approvals::Answer::Allow => allowance(id, tool, &by, reason),
                approvals::Answer::Deny => {
                    refusal(id, tool, &input, &by, reason, Some(rule.origin.to_string()))
                }
            }
        });
    }

    /// Tells the agent; what was decided is on record in the same commit as the line that says so.
    /// What else follows from the answer is returned.
    async fn answer(&mut self, reply: Reply) -> Vec<Action> {
        let Reply { answer, mut facts } = reply;
        let mut rest = Vec::new();
        for action in self.conversation.machine.answer(answer) {
            match action {
                Action::Write(line) => self.write(line, std::mem::take(&mut facts)).await,
                other => rest.push(other),
            }
        }
        // One of several questions that the agent asked as one: it hears nothing until the last is decided.
        if !facts.is_empty() {
            self.record(facts).await;
        }
        rest
    }

    fn ask_mcp(&mut self, id: RequestId, message: Value) {
        let mcp = self.mcp.clone();
        let fallback = Fallback::Mcp(message.clone());
        let broken = self.record_broken.clone();
        self.questions.ask(id.clone(), fallback, async move {
            let reply = match broken {
                Some(why) => {
                    mcp_error(&message, &format!("agentd can't put this on record: {why}"))
                }
                None => mcp.handle(message).await,
            };
            Reply::from(Answer::Mcp { id, reply })
        });
    }

    fn ask_peer(&mut self, request: PeerRequest) {
        let port = self.conversation.port.clone();
        let broken = self.record_broken.clone();
        self.questions
            .ask(request.id.clone(), Fallback::Peer, async move {
                let timeout = match request.timeout_ms {
                    0 => PEER_TIMEOUT,
                    ms => Duration::from_millis(ms),
                };
                let result = match broken {
                    Some(why) => Err(format!("agentd can't put this on record: {why}")),
                    None => match port
                        .request(&request.to, &request.method, request.payload, timeout)
                        .await
                    {
                        Ok(reply) => String::from_utf8(reply.payload)
                            .map_err(|_| format!("{} did not answer with text", request.to)),
                        Err(error) => Err(error.to_string()),
                    },
                };
                Reply::from(Answer::Peer {
                    id: request.id,
                    result,
                })
            });
    }

    /// Puts the line and `facts` on record in one commit, then queues the line for the agent.
    async fn write(&mut self, line: String, mut facts: Vec<Fact>) {
        // Counted also where the record fails, so that offsets stay those of the agent's stdin.
        self.conversation.sent += line.len() as u64 + 1;
        facts.push(Fact::DriverLine {
            direction: Direction::Out,
            line: line.clone(),
            end: Some(self.conversation.sent),
        });
        self.record(facts).await;
        if let Some(lines) = &self.lines
            && lines.send(line).await.is_err()
        {
            tracing::debug!(
                agent = self.launch,
                "a line was dropped: the agent's stdin is closed"
            );
        }
    }

    async fn record(&mut self, facts: Vec<Fact>) {
        let events = facts
            .into_iter()
            .map(|fact| Event::now(self.launch.clone(), fact))
            .collect();
        match self.conversation.store.record_all_durable(events).await {
            Ok(()) => self.record_broken = None,
            Err(error) => {
                tracing::error!(
                    agent = self.launch,
                    "its protocol can't be recorded: {error}"
                );
                self.record_broken = Some(error.to_string());
            }
        }
    }

    async fn note(&mut self, text: String) {
        if let Err(error) = self
            .conversation
            .store
            .record(Event::now(self.launch.clone(), Fact::Note { text }))
            .await
        {
            tracing::error!(agent = self.launch, "the record is incomplete: {error}");
        }
    }

    async fn say(&self, said: Said) {
        if self.conversation.said.send(said).await.is_err() {
            tracing::debug!(agent = self.launch, "nobody takes its words any more");
        }
    }
}

/// The next request; never resolves while none are served.
async fn next_request(requests: &mut Option<Requests>) -> Option<IncomingRequest> {
    match requests {
        Some(requests) => requests.next().await,
        None => std::future::pending().await,
    }
}

/// The end of a turn that never was.
fn not_begun(why: String) -> TurnOutcome {
    TurnOutcome {
        text: why,
        is_error: true,
        kind: "not-begun".to_owned(),
    }
}

/// Resolves when nobody waits for the present turn any more.
async fn withdrawn(current: &Option<(TurnId, Current)>) {
    match current {
        Some((_, Current::Request(request))) => request.cancelled().await,
        Some((_, Current::Task(work))) => work.cancel.cancelled().await,
        _ => std::future::pending().await,
    }
}

async fn respond(request: IncomingRequest, result: Result<Vec<u8>, String>) {
    let from = request.from.clone();
    if let Err(error) = request.respond(result).await {
        tracing::debug!("the answer to {from} was not taken: {error}");
    }
}

/// The bus answer that a turn's end means.
fn answer_of(outcome: &TurnOutcome, limit: usize) -> Result<Vec<u8>, String> {
    if outcome.is_error {
        return Err(cut(&outcome.text, ERROR_BYTES).to_owned());
    }
    if outcome.text.len() > limit {
        return Err(format!(
            "the answer of {} bytes is over the bus's limit of {limit}",
            outcome.text.len()
        ));
    }
    Ok(outcome.text.clone().into_bytes())
}

/// At most `limit` bytes of `text`, whole characters.
fn cut(text: &str, limit: usize) -> &str {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
