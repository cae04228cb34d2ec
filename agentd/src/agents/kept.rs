//! What the broker keeps of a living agent for the next agentd: one JSON document, and the descriptors that it names.
//!
//! The record says what happened; this says what goes on: whose sandbox it is, by which rules its gateway, proxy and bus
//! judge, which descriptor is which, until when it may run. It is written before the agent is anybody's, and again
//! whenever a descriptor goes or its end is decided.
//!
//! The reader may be another version of agentd. Unknown fields are ignored, and a field that was added later has a
//! default; a document of another [`FORMAT`] is refused, and its agent is ended. Plain data, no privilege. Holds no
//! secret: keys are read from the configuration at each start.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentd_api::{AgentIdentity, Driver, ExitCause};
use agentd_sandbox::{
    DenialRules, EgressRules, IpcRules, LimitRules, ModelRules, SandboxPlan, SshRules, StdioMode,
    ToolRules,
};
use agentd_storage::Ready;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::revocation::Taken;

/// Raised only when an older document can't be understood any more.
pub const FORMAT: u32 = 1;

/// A document is a few kilobytes; rules of a very long policy some hundred.
const MAX_BYTES: u64 = 4 << 20;

/// One living agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub format: u32,
    /// The version of agentd that wrote it, for messages.
    pub agentd: String,
    pub identity: AgentIdentity,
    pub argv: Vec<String>,
    pub policy: String,
    pub workspace: Option<String>,
    /// Where it works, inside.
    #[serde(default)]
    pub cwd: String,
    /// The unit it was started from.
    #[serde(default)]
    pub unit: Option<String>,
    /// Topics that were followed for it from its start.
    #[serde(default)]
    pub subscriptions: Vec<String>,
    pub driver: Driver,
    /// First turn of a driven agent.
    pub prompt: Option<String>,
    pub started_at_ms: u64,
    /// `LAYER_*` bits that are active.
    pub layers: u64,
    /// The fact of its standing, in case it did not get on record.
    pub ready: Ready,
    pub rules: Rules,
    pub stdio: StdioMode,
    /// Kept output in bytes.
    pub output_bytes: u64,
    pub deadline: Option<Deadline>,
    /// The broker has placeholders to remove when it has ended.
    #[serde(default)]
    pub keeps_names: bool,
    /// Somebody has asked for its end.
    #[serde(default)]
    pub ending: Option<Ending>,
    /// What was taken from it while it ran.
    #[serde(default)]
    pub taken: Taken,
    /// The number of its Landlock domain, once it is known.
    #[serde(default)]
    pub landlock_domain: Option<u64>,
    /// What the descriptors behind this one are, in their order.
    pub descriptors: Vec<String>,
    /// What other parts of agentd want to find again, by their names.
    #[serde(default)]
    pub links: serde_json::Map<String, serde_json::Value>,
}

/// By what the daemon judges the agent while it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
    #[serde(default)]
    pub ssh: SshRules,
    /// Where the rules of the kernel's layers were written.
    #[serde(default)]
    pub denials: DenialRules,
    /// What its cgroup was held to at the launch; unknown for one of an agentd that kept none.
    #[serde(default)]
    pub limits: Option<LimitRules>,
}

impl From<&SandboxPlan> for Rules {
    fn from(plan: &SandboxPlan) -> Self {
        Self {
            egress: plan.egress.clone(),
            model: plan.model.clone(),
            ipc: plan.ipc.clone(),
            tools: plan.tools.clone(),
            ssh: plan.ssh.clone(),
            denials: plan.denials.clone(),
            limits: Some(plan.cgroup),
        }
    }
}

/// The latest moment at which the agent may run, on the clock that counts suspended time and never jumps. An agent does
/// not outlive its boot, so the moment means the same to every agentd that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// Nanoseconds of `CLOCK_BOOTTIME`.
    pub boot_ns: u64,
    /// The same moment by the wall clock of the launch, for people.
    pub unix_ms: i64,
    /// How long it was from the launch on.
    pub limit_ms: u64,
}

impl Deadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Self {
        let ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        Self {
            boot_ns: boot_ns().saturating_add(ns),
            unix_ms: agentd_storage::unix_ms().saturating_add_unsigned(ms),
            limit_ms: ms,
        }
    }

    /// What is left of it; nothing once it has passed.
    pub fn left(&self) -> Duration {
        Duration::from_nanos(self.boot_ns.saturating_sub(boot_ns()))
    }

    pub fn limit(&self) -> Duration {
        Duration::from_millis(self.limit_ms)
    }
}

/// Nanoseconds since boot, suspended time included.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Why the agent was going to end when agentd did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub cause: ExitCause,
    /// In words.
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    #[error("cannot write what is kept of an agent")]
    Write(#[source] std::io::Error),
    #[error("cannot read what is kept of an agent")]
    Read(#[source] std::io::Error),
    #[error("what is kept of an agent is not a document of agentd: {0}")]
    Parse(String),
    #[error("what is kept of an agent has format {found}, and this agentd reads format {FORMAT}")]
    Format { found: u32 },
    #[error("{descriptors} descriptors are kept of an agent whose document names {names}")]
    Descriptors { descriptors: usize, names: usize },
}

impl Kept {
    /// The document in a sealed memfd.
    ///
    /// # Errors
    /// [`KeptError::Write`].
    pub fn to_fd(&self) -> Result<OwnedFd, KeptError> {
        // Plain data with string keys: serialising it can't fail.
        let bytes = serde_json::to_vec(self).expect("kept state is plain data");
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let write = || -> std::io::Result<OwnedFd> {
            let memfd = rustix::fs::memfd_create(c"agentd-kept", flags | MemfdFlags::NOEXEC_SEAL)
                .or_else(|_| rustix::fs::memfd_create(c"agentd-kept", flags))?;
            let mut file = File::from(memfd);
            file.write_all(&bytes)?;
            let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
            rustix::fs::fcntl_add_seals(&file, seals)?;
            Ok(file.into())
        };
        write().map_err(KeptError::Write)
    }

    /// The document and the descriptors by their names, out of what the broker kept. `None` when nothing was kept: the
    /// agent was still being launched.
    ///
    /// # Errors
    /// [`KeptError`] when it is not what another agentd would have left.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Option<(Self, Descriptors)>, KeptError> {
        let mut fds = fds.into_iter();
        let Some(document) = fds.next() else {
            return Ok(None);
        };
        let mut file = File::from(document);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.take(MAX_BYTES).read_to_end(&mut bytes))
            .map_err(KeptError::Read)?;
        let kept = Self::parse(&bytes)?;
        let named: Vec<(String, OwnedFd)> =
            kept.descriptors.iter().cloned().zip(&mut fds).collect();
        let descriptors = named.len() + fds.len();
        if descriptors != kept.descriptors.len() {
            let names = kept.descriptors.len();
            return Err(KeptError::Descriptors { descriptors, names });
        }
        Ok(Some((kept, named)))
    }

    fn parse(bytes: &[u8]) -> Result<Self, KeptError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let parse = |error: serde_json::Error| KeptError::Parse(error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(parse)?;
        if format != FORMAT {
            return Err(KeptError::Format { found: format });
        }
        serde_json::from_slice(bytes).map_err(parse)
    }
}

/// Descriptors and what they are, in the order of [`Kept::descriptors`].
pub type Descriptors = Vec<(String, OwnedFd)>;

/// The name of a listener's descriptor.
pub fn listener_name(tag: u16) -> String {
    format!("listener-{tag}")
}

/// The tag in the name of a listener's descriptor.
pub fn listener_tag(name: &str) -> Option<u16> {
    name.strip_prefix("listener-")?.parse().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use agentd_api::AgentId;

    use super::*;

    pub fn kept() -> Kept {
        Kept {
            format: FORMAT,
            agentd: agentd_api::VERSION.into(),
            identity: AgentIdentity::new(AgentId::new(), "coder", 1000),
            argv: vec!["sh".into(), "-c".into(), "true".into()],
            policy: "coding".into(),
            workspace: Some("/w".into()),
            cwd: "/w".into(),
            unit: None,
            subscriptions: Vec::new(),
            driver: Driver::Jsonl,
            prompt: None,
            started_at_ms: 1,
            layers: 7,
            ready: Ready::default(),
            rules: Rules {
                egress: EgressRules::default(),
                model: ModelRules::default(),
                ipc: IpcRules::default(),
                tools: ToolRules::default(),
                ssh: SshRules::default(),
                denials: DenialRules::default(),
                limits: Some(LimitRules::default()),
            },
            stdio: StdioMode::Pty { rows: 24, cols: 80 },
            output_bytes: 1 << 20,
            deadline: Some(Deadline::after(Duration::from_secs(60))),
            keeps_names: true,
            ending: None,
            taken: Taken::default(),
            landlock_domain: None,
            descriptors: vec!["stdin".into(), listener_name(3)],
            links: serde_json::Map::new(),
        }
    }

    fn some_fd() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_document_and_its_descriptors_come_back() {
        let it = kept();
        let fds = vec![it.to_fd().unwrap(), some_fd(), some_fd()];
        let (back, named) = Kept::from_fds(fds).unwrap().unwrap();
        assert_eq!(back, it);
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["stdin", "listener-3"]);
        assert_eq!(listener_tag(names[1]), Some(3));
        assert_eq!(listener_tag(names[0]), None);
    }

    #[test]
    fn a_later_version_may_add_fields_and_an_earlier_one_lacks_them() {
        let mut document = serde_json::to_value(kept()).unwrap();
        document["invented_later"] = serde_json::json!({"x": 1});
        document["rules"]["tools"]["invented_later"] = serde_json::json!([]);
        let earlier = document.as_object_mut().unwrap();
        earlier.remove("links");
        earlier.remove("ending");
        earlier.remove("taken");
        let back = Kept::parse(document.to_string().as_bytes()).unwrap();
        assert_eq!(back.ending, None);
    }

    #[test]
    fn another_format_a_wrong_count_and_nonsense_are_named() {
        let mut it = kept();
        let missing = Kept::from_fds(vec![it.to_fd().unwrap(), some_fd()]);
        let text = missing.unwrap_err().to_string();
        assert!(
            text.contains("1 descriptors") && text.contains("names 2"),
            "{text}"
        );
        it.format = 9;
        let text = Kept::from_fds(vec![it.to_fd().unwrap()])
            .unwrap_err()
            .to_string();
        assert!(text.contains("format 9"), "{text}");
        assert!(matches!(Kept::parse(b"{"), Err(KeptError::Parse(_))));
        assert!(Kept::from_fds(Vec::new()).unwrap().is_none());
    }

    #[test]
    fn a_deadline_runs_down_and_not_below_nothing() {
        let deadline = Deadline::after(Duration::from_secs(3600));
        assert!(deadline.left() <= Duration::from_secs(3600));
        assert!(deadline.left() > Duration::from_secs(3000));
        let passed = Deadline {
            boot_ns: 1,
            ..deadline
        };
        assert_eq!(passed.left(), Duration::ZERO);
    }
}
