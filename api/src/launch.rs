//! What a launch is asked to be, and what comes back.
//!
//! Paths in a spec are names for the record and for the inside of the sandbox; they give no right.
//! The right to a directory arrives as a grant next to the spec, opened by whoever has it.

use std::collections::HashMap;

use zbus::{DeserializeDict, OwnedObjectPath, SerializeDict, Type};

use crate::AgentId;
use crate::vocabulary::words;

words! {
    /// Who talks with the program.
    pub enum Driver: "driver" {
        /// Nobody: its standard streams belong to the caller.
        None = "none",
        /// Claude Code over stream-json.
        Claude = "claude",
        /// Codex over its app-server.
        Codex = "codex",
        /// Any agent that speaks the Agent Client Protocol.
        Acp = "acp",
        /// One JSON object per line on stdin and stdout.
        Jsonl = "jsonl",
    }
}

words! {
    /// What the program finds as stdin, stdout and stderr.
    pub enum StdioMode: "stdio mode" {
        /// A terminal from the sandbox's own devpts.
        Pty = "pty",
        /// Three pipes; stdout and stderr stay apart.
        Pipes = "pipes",
        /// `/dev/null` to read from; output goes to the log alone.
        Null = "null",
    }
}

/// One launch. A key that the daemon does not know refuses the call: it may have been a limit.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct LaunchSpec {
    /// Program and arguments. May be empty only when the driver has a program of its own.
    pub argv: Vec<String>,
    /// Where the caller's own PATH finds the program, if it does: the policy lets it be granted.
    pub exe: Option<String>,
    /// Name of a policy that the daemon knows.
    pub policy: Option<String>,
    /// The text of a policy file, read by the caller. Wins over `policy`.
    pub policy_text: Option<String>,
    /// Where the text came from; used in messages only.
    pub policy_origin: Option<String>,
    /// Where the workspace appears inside; one of the grants is for it.
    pub workspace: Option<String>,
    /// Working directory inside; the workspace when absent.
    pub cwd: Option<String>,
    /// Unique among the user's live agents; made up when absent.
    pub name: Option<String>,
    pub driver: Option<Driver>,
    /// First turn of a driven agent.
    pub prompt: Option<String>,
    pub stdio: Option<StdioMode>,
    pub rows: Option<u16>,
    pub cols: Option<u16>,
    /// Wall clock in milliseconds; the policy may allow less, never more.
    pub timeout_ms: Option<u64>,
    /// Environment that the caller wishes; the policy decides what gets in.
    pub env: Option<HashMap<String, String>>,
    /// `--set key=value` in order: values of the policy, checked like the file.
    pub settings: Option<Vec<(String, String)>>,
    /// The caller's home directory, as it knows it: `~` in policies.
    pub home: Option<String>,
    /// The caller's login name, for the synthetic passwd.
    pub user: Option<String>,
    /// Nobody will attach at once: with pipes, stdin is at its end from the start. Output goes to
    /// the log, and to whoever attaches later.
    pub detach: Option<bool>,
    /// The unit that this launch belongs to. Set by agentd's units alone: from a client it is refused.
    pub unit: Option<String>,
    /// Topics whose messages go to the agent's inbox from its start, as far as the policy lets it follow them.
    pub subscriptions: Option<Vec<String>>,
    /// SHA-256 of the escape suite that this launch runs (`agentctl selftest`), for the record: the caller's word.
    pub suite: Option<String>,
    /// Put the attach socket into the reply, so that no output is lost and no round trip spent.
    pub attach: Option<bool>,
}

impl LaunchSpec {
    /// A spec with nothing but a command line.
    pub fn new(argv: Vec<String>) -> Self {
        Self {
            argv,
            exe: None,
            policy: None,
            policy_text: None,
            policy_origin: None,
            workspace: None,
            cwd: None,
            name: None,
            driver: None,
            prompt: None,
            stdio: None,
            rows: None,
            cols: None,
            timeout_ms: None,
            env: None,
            settings: None,
            home: None,
            user: None,
            detach: None,
            unit: None,
            subscriptions: None,
            suite: None,
            attach: None,
        }
    }
}

/// A launch that stands: every required layer is active.
#[derive(Debug, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct LaunchReply {
    /// Also the id of the record.
    pub id: AgentId,
    pub name: String,
    /// The agent's object, registered on the caller's connection.
    pub path: OwnedObjectPath,
    /// The attach socket, if the spec asked for it.
    pub attach: Option<zbus::OwnedFd>,
    /// Layers that are really active, by name.
    pub layers: Option<Vec<String>>,
    /// What the policy allowed to be weaker here, one line each.
    pub degradations: Option<Vec<String>>,
}

/// How to attach to a running agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct AttachOptions {
    /// Whether the client will send stdin; `false` watches only. Default true.
    pub stdin: Option<bool>,
    /// The client's window.
    pub rows: Option<u16>,
    pub cols: Option<u16>,
    /// Whether to send the scroll-back, the tail of the log, before live output. Default true.
    pub replay: Option<bool>,
    /// Send everything from this log offset on, as a client wants that was attached before and counted: nothing is
    /// missing, nothing comes twice. Overrides `replay`.
    pub from_offset: Option<u64>,
    /// Rather hold the program back than let this client miss output. Default false: a client that does not read
    /// skips.
    pub lossless: Option<bool>,
}

/// Which part of an agent's output to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct LogOptions {
    /// Stay and send what is still to come, until the agent has exited.
    pub follow: Option<bool>,
    /// Begin at the last so many lines.
    pub tail: Option<u64>,
    /// Begin at what was written at this Unix time, in milliseconds, or later; to the second.
    pub since_ms: Option<u64>,
    /// Begin at this offset of the log, as a follower wants that counted what it was sent. Overrides the others.
    pub from_offset: Option<u64>,
}
