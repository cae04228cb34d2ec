//! What can be put on record: one [`Event`] = one fact about one launch at one moment.
//!
//! Plain data, made by whichever plane saw the fact (gateway, bus, egress proxy, driver, session) and handed to
//! [`crate::Store`]. Nothing here does I/O. Field names are the names in the JSON record (`docs/record.md`), so
//! renaming one is a change of a public format.

use std::{
    fmt,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use crate::approval::{Question, Settlement, StandingRule};

/// The id of one launch, unique for ever on this host (agentd makes it from a UUID of version 7).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LaunchId(String);

impl LaunchId {
    /// Wraps an id; the text is not interpreted.
    pub fn new(id: impl Into<String>) -> Self {
        Self(id.into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LaunchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LaunchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LaunchId({})", self.0)
    }
}

impl From<&str> for LaunchId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

impl From<String> for LaunchId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

/// One fact about one launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whose record this belongs to. For a message: the sender's launch.
    pub launch: LaunchId,
    /// Milliseconds since the Unix epoch, by the clock of whoever saw the fact.
    pub at_ms: i64,
    /// What happened.
    pub fact: Fact,
}

impl Event {
    /// An event that happened now.
    pub fn now(launch: impl Into<LaunchId>, fact: Fact) -> Self {
        Self {
            launch: launch.into(),
            at_ms: unix_ms(),
            fact,
        }
    }

    /// Bytes this event occupies in the writer's queue, roughly; what the queue's byte limit counts.
    pub(crate) fn weight(&self) -> usize {
        const FIXED: usize = 256;
        FIXED
            + match &self.fact {
                Fact::DriverLine { line, .. } => line.len(),
                Fact::Note { text } | Fact::Control { text } => text.len(),
                Fact::Asked(question) => question.input.to_string().len(),
                Fact::Launch(launch) => launch.argv.iter().map(String::len).sum(),
                _ => 0,
            }
    }
}

/// Milliseconds since the Unix epoch, now.
pub fn unix_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// The kinds of facts.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A launch was accepted. Must be the first event of its id.
    Launch(Launch),
    /// The sandbox stands and the agent's program runs.
    Ready(Ready),
    /// The launch came to nothing.
    LaunchFailed(LaunchFailure),
    /// The agent is gone. The last state of the launch.
    Exit(Exit),
    /// The agent's life cycle moved.
    State {
        /// The new state: starting, running, stopped, exited, failed.
        state: String,
        /// Why.
        cause: String,
    },
    /// A message went over the bus (metadata only; payloads are not kept).
    Message(Message),
    /// A model request was metered.
    Usage(Usage),
    /// Something was refused.
    Denial(Denial),
    /// A line of a driver's protocol, kept so that a restarted agentd knows what was asked and answered.
    DriverLine {
        /// Which way it went.
        direction: Direction,
        /// The line without its newline.
        line: String,
        /// Where it ends in its stream, its newline included: bytes of the agent's stdout for `In`, of its stdin for
        /// `Out`. `None` where the stream is not counted.
        end: Option<u64>,
    },
    /// A tool permission was decided.
    Approval(Approval),
    /// A person is asked. Recorded before anybody is shown the question.
    Asked(Box<Question>),
    /// A question ended. Recorded before the agent hears of it.
    Settled(Settlement),
    /// A decision is to be remembered.
    RuleMade(Box<StandingRule>),
    /// A remembered decision holds no more.
    RuleRevoked {
        /// Which rule.
        id: String,
        /// Who took it back.
        by: String,
    },
    /// A right on the bus was taken from the agent, for the names or topics that a pattern covers.
    RightRevoked {
        /// send, request, publish, subscribe.
        right: String,
        /// What it is taken for.
        pattern: String,
        /// Who took it: "uid 1000".
        by: String,
    },
    /// All that was taken from the agent was given back.
    RightsRestored {
        /// Who gave it back.
        by: String,
    },
    /// A person took something from the running agent, or gave it back.
    Control {
        /// One line for people: "network revoked by uid 1000".
        text: String,
    },
    /// Anything else worth reading later.
    Note {
        /// One line for people.
        text: String,
    },
}

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The agent's name; unique among the living agents of a user, not over time.
    pub name: String,
    /// The user who asked, as attested by the kernel. Every query is filtered by it.
    pub uid: u32,
    /// Name of the policy.
    pub policy: String,
    /// SHA-256 of the effective policy, hex.
    pub policy_hash: String,
    /// The command.
    pub argv: Vec<String>,
    /// The workspace as the caller named it.
    pub workspace: Option<String>,
    /// none, claude, codex, acp, jsonl.
    pub driver: String,
    /// root or user.
    pub mode: String,
    /// `uname -r` of the host.
    pub kernel: String,
    /// Anything else that explains the launch (settings, grants, versions): a JSON object or null.
    #[serde(default)]
    pub details: serde_json::Value,
}

/// What really stands, as reported by the launcher.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Process id of the sandbox's init, as the host sees it.
    pub pid: u32,
    /// The kernel uid the agent runs under.
    pub host_uid: u32,
    /// Names of the layers that are active.
    pub layers: Vec<String>,
    /// The Landlock ABI in use; 0 means none.
    pub landlock_abi: u32,
    /// Properties the policy wanted and allowed to be missing.
    pub degradations: Vec<Degradation>,
}

/// A property that the host could not give and the policy allowed to be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Degradation {
    /// Its name, as in `[degrade] allow`.
    pub property: String,
    /// What is lost and why.
    pub why: String,
}

/// Why a launch came to nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchFailure {
    /// The step that failed, such as "mount /usr".
    pub step: String,
    /// The errno, or 0.
    pub errno: i32,
    /// The whole sentence shown to the user.
    pub text: String,
}

/// How an agent ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// By itself, with a code.
    #[default]
    Exited,
    /// By a signal nobody in agentd sent.
    Signaled,
    /// Stopped or killed on request.
    Stopped,
    /// Its time was up.
    TimedOut,
    /// It died while nobody could see how.
    Lost,
}

/// The end of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// How it ended.
    pub kind: ExitKind,
    /// Exit code, when it exited.
    pub code: Option<i32>,
    /// Signal number, when one ended it.
    pub signal: Option<i32>,
    /// Why, in words: "program ended", "agentctl stop by uid 1000", "lifeline lost".
    pub cause: String,
    /// What it used.
    pub resources: Resources,
}

/// Kernel counters of the whole sandbox at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// User CPU time in microseconds.
    pub user_us: u64,
    /// System CPU time in microseconds.
    pub system_us: u64,
    /// Largest resident set of one process, in KiB.
    pub max_rss_kib: u64,
    /// Peak of the cgroup's memory in bytes, where the cgroup counts it.
    pub memory_peak_bytes: Option<u64>,
    /// What the scheduler did with it, where eBPF programs counted. Left out of older rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<Scheduled>,
    /// What went through its sockets and was refused in the kernel, where eBPF programs counted. Left out of older rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<Counted>,
}

/// What eBPF programs counted of a sandbox, since its launch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// IP packets that arrived at its sockets. What goes over its own loopback is counted where it leaves and where it arrives.
    pub packets_in: u64,
    /// IP packets that its sockets sent.
    pub packets_out: u64,
    /// Bytes of those that arrived, IP headers included.
    pub bytes_in: u64,
    /// Bytes of those that left, IP headers included.
    pub bytes_out: u64,
    /// Calls that live control or the guard refused, and packets that it dropped.
    pub refused: u64,
    /// Of those, how many nobody could be told of.
    pub untold: u64,
}

/// What the kernel's scheduler did with all tasks of a sandbox, from launch to end. Times in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// On a processor.
    pub run_ns: u64,
    /// In a run queue.
    pub wait_ns: u64,
    /// Half of the single waits were not longer.
    pub wait_p50_ns: u64,
    /// 99 of 100 single waits were not longer.
    pub wait_p99_ns: u64,
    /// The longest wait.
    pub wait_max_ns: u64,
    /// Asleep, as it asked.
    pub sleep_ns: u64,
    /// In an uninterruptible sleep that is not input or output.
    pub blocked_ns: u64,
    /// Waiting for a disk.
    pub io_ns: u64,
    /// Stopped by a signal or a debugger.
    pub stopped_ns: u64,
    /// Frozen.
    pub frozen_ns: u64,
    /// Switches away with nothing to do.
    pub voluntary: u64,
    /// Switches away with something to do.
    pub involuntary: u64,
    /// Wake-ups.
    pub wakeups: u64,
    /// Moves between processors.
    pub migrations: u64,
}

/// What a bus message is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MessageKind {
    /// One way, to one agent.
    #[default]
    Send,
    /// Wants an answer.
    Request,
    /// The answer.
    Response,
    /// To a topic.
    Publish,
}

/// Metadata of one bus message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Id of the message.
    pub id: String,
    /// Sender's name.
    pub from: String,
    /// Receiver's name, or the topic.
    pub to: String,
    /// The receiver's launch, if there is one: the message is then part of its record as well.
    pub to_launch: Option<LaunchId>,
    /// What it is.
    pub kind: MessageKind,
    /// Method or topic, where the kind has one.
    pub subject: Option<String>,
    /// Id of the request that a response answers.
    pub correlation: Option<String>,
    /// Length of the payload.
    pub bytes: u64,
    /// delivered, timed-out, refused: …, dropped: …
    pub outcome: String,
}

/// Who counted the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsageSource {
    /// The gateway, from the provider's answer. This is what budgets and totals count.
    #[default]
    Gateway,
    /// The agent's own account, through its protocol. Advisory; never in the totals.
    Protocol,
}

/// Tokens of one model request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Who counted.
    pub source: UsageSource,
    /// anthropic, openai.
    pub provider: String,
    /// The model's name as answered.
    pub model: String,
    /// The provider's id of the request, if it gave one.
    pub request_id: Option<String>,
    /// Fresh input tokens.
    pub input: u64,
    /// Output tokens.
    pub output: u64,
    /// Input tokens read from the provider's cache.
    pub cache_read: u64,
    /// Input tokens written to the provider's cache.
    pub cache_write: u64,
    /// The stream ended early: by a ceiling, the agent, or the provider.
    pub aborted: bool,
    /// The counts are an estimate, because the provider's never came.
    pub estimated: bool,
    /// What it cost at the configured prices, in billionths of a US dollar; `None` without a price.
    #[serde(default)]
    pub cost_nano_usd: Option<u64>,
}

/// One refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// egress, gateway, bus, driver, seccomp, landlock, …
    pub layer: String,
    /// What was tried: "connect", "tool Bash", "send".
    pub what: String,
    /// At what: host:port, tool input in short, agent name.
    pub target: String,
    /// The rule that refused, or "default".
    pub rule: String,
    /// Where the rule was written (`file:line`), if it was.
    pub origin: Option<String>,
}

/// Direction of a driver's line, seen from agentd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the agent.
    In,
    /// To the agent.
    Out,
}

/// One decision about a tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// Id of the request in the agent's protocol.
    pub request_id: String,
    /// The tool.
    pub tool: String,
    /// allow or deny.
    pub decision: String,
    /// Who decided: "policy", "uid 1000", "rule ID", "time-out".
    pub by: String,
    /// Why: the rule, or the trouble that turned it into a deny.
    pub reason: String,
}
