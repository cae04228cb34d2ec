//! A policy after inheritance: checked values, each with its origin, and its hash.

use super::merge::Merged;
use super::path::PathTemplate;
use super::{Origin, PolicyError, PolicyRef, Sources, Valued};
use crate::plan::{Access, Property};
use crate::rules::{EgressRules, HeldBy, IpcRules, ModelRules, SshRules, ToolRules};
use crate::runtime::RuntimeKind;
use crate::seccomp::SyscallSet;
use agentd_kernel::grant::Kind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that is counted. `None` means that the policy sets no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    /// 100 is one core kept busy.
    pub cpu_percent: Option<u64>,
    pub nofile: u64,
    /// The largest file that may be written.
    pub fsize_bytes: Option<u64>,
    /// Size of each private tmpfs (`/tmp`, HOME, …).
    pub tmp_bytes: u64,
    pub tmp_inodes: u64,
    pub wall_clock: Option<Duration>,
    /// What the agent may write to its terminal or pipes before the daemon stops it.
    pub output_bytes: Option<u64>,
    /// Input and output tokens of the whole launch.
    pub tokens: Option<u64>,
    /// What the models of the whole launch may cost, in millionths of a US dollar.
    #[serde(default)]
    pub cost_micro_usd: Option<u64>,
    /// What may be added to all writable places of the host together.
    #[serde(default)]
    pub disk_bytes: Option<u64>,
    #[serde(default)]
    pub disk_inodes: Option<u64>,
}

/// `[fs]`: what is seen, what may be changed, what may be executed, and what is hidden inside that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FsRules {
    pub read: Vec<Valued<PathTemplate>>,
    pub write: Vec<Valued<PathTemplate>>,
    pub exec: Vec<Valued<PathTemplate>>,
    /// Inside `write`: may be read, but neither changed nor renamed nor removed, nor made where it is not there yet.
    pub protect: Vec<Valued<PathTemplate>>,
    pub copy: Vec<Valued<PathTemplate>>,
    /// Shown as writable; the host's files never change.
    pub scratch: Vec<Valued<PathTemplate>>,
    pub deny: Vec<Valued<PathTemplate>>,
    /// Hidden, and all names of the same file that the view has are in this list.
    pub linked: Vec<Valued<PathTemplate>>,
    pub hard_links: HardLinks,
}

/// What becomes of a file in a granted folder that has another name elsewhere: through the one the other is read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HardLinks {
    /// It is hidden.
    Inside,
    /// It is shown as any other.
    #[default]
    Any,
}

/// What memory files (`memfd_create`) are good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Memfd {
    /// There are none.
    #[serde(rename = "none")]
    Refused,
    /// They hold data and are never executed.
    #[default]
    Data,
    /// They can be executed as well.
    Any,
}

impl std::fmt::Display for Memfd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refused => "none",
            Self::Data => "data",
            Self::Any => "any",
        })
    }
}

/// `[exec]`: where code may come from, beside the files of `fs.exec`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExecRules {
    pub memfd: Memfd,
    /// Memory that is written and then executed: just-in-time compilers.
    pub write_exec: bool,
}

/// The way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetMode {
    #[default]
    None,
    /// Through agentd, by `net.allow` and `net.ask`.
    Proxy,
    /// The host's own network namespace, with its operator's leave.
    Host,
}

impl std::fmt::Display for NetMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Proxy => "proxy",
            Self::Host => "host",
        })
    }
}

/// TCP ports of the sandbox's own loopback that its programs may listen on and connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoopbackPorts {
    #[default]
    Any,
    /// These, sorted, beside those of agentd's services.
    Only(Vec<u16>),
}

/// `[net]` as far as the kernel holds it; names and hosts are in [`EgressRules`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetRules {
    pub mode: NetMode,
    pub ports: LoopbackPorts,
}

/// `[env]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct EnvRules {
    /// Names taken over from the caller; a last `*` stands for any rest.
    pub pass: Vec<Valued<String>>,
    pub set: BTreeMap<String, Valued<String>>,
}

impl EnvRules {
    pub fn passes(&self, name: &str) -> bool {
        self.pass.iter().any(|p| match p.value.strip_suffix('*') {
            Some(stem) => name.starts_with(stem),
            None => name == p.value,
        })
    }
}

/// What agentctl knows when it opens paths for a launch.
#[derive(Debug, Clone, Default)]
pub struct CallerContext {
    /// The caller's own HOME.
    pub home: Option<PathBuf>,
    pub workspace: Option<PathBuf>,
    /// The program as resolved on the caller's side: it is granted read-only if the policy's view would hide it.
    pub exe: Option<PathBuf>,
    /// Files of agentd's own that an agent must not change even where its workspace holds them: the policy that it runs
    /// under, for one.
    pub keep: Vec<PathBuf>,
}

/// A path the caller is asked to open and hand over, because only the caller has the right to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedGrant {
    pub src: PathBuf,
    /// Where it appears inside; the same path unless said otherwise.
    pub dst: PathBuf,
    pub access: Access,
    #[serde(default)]
    pub kind: Kind,
    /// Skip it silently when it does not exist or cannot be opened.
    pub optional: bool,
}

/// One line of `policy show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownValue {
    /// Such as `limits.memory`.
    pub key: String,
    /// As it would be written in TOML.
    pub value: String,
    pub origin: Origin,
    /// Of a rule of `[tools]`: who holds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_by: Option<HeldBy>,
}

/// A policy that holds: every value is checked.
#[derive(Debug, Clone, Serialize)]
pub struct EffectivePolicy {
    pub name: String,
    pub description: Option<String>,
    /// The files it is made of, the most basic first.
    pub files: Vec<String>,
    pub fs: FsRules,
    pub exec: ExecRules,
    /// `[runtime] kind`.
    pub runtime: RuntimeKind,
    pub net: NetRules,
    /// `[ipc] sockets`: unix sockets of the host, opened by the caller.
    pub sockets: Vec<Valued<PathTemplate>>,
    /// `[devices] allow`: character devices of the host, opened by the caller.
    pub devices: Vec<Valued<PathTemplate>>,
    /// `[secrets] files`: shown as `/run/agentd/secrets/NAME`.
    pub secrets: BTreeMap<String, Valued<PathTemplate>>,
    pub env: EnvRules,
    pub syscalls: Vec<Valued<SyscallSet>>,
    pub limits: Limits,
    pub egress: EgressRules,
    pub model: ModelRules,
    pub ipc: IpcRules,
    pub tools: ToolRules,
    pub ssh: SshRules,
    /// Properties that a launch may go without.
    pub degrade: Vec<Valued<Property>>,
    /// How many mechanisms must hold each property, where there are as many: 1 or 2.
    pub mechanisms: u8,
    /// Every effective value in the order of the reference.
    pub shown: Vec<ShownValue>,
}

impl EffectivePolicy {
    /// Reads, checks and joins a policy and everything it extends.
    pub fn load(policy: &PolicyRef, sources: &Sources) -> Result<Self, PolicyError> {
        let chain = sources.chain(policy)?;
        let mut merged = Merged::default();
        for (_, layer) in &chain.layers {
            merged.lay_over(layer);
        }
        let files = chain
            .layers
            .iter()
            .map(|(f, _)| f.clone())
            .filter(|f| f != "--set")
            .collect();
        Ok(merged.into_policy(chain.name, files))
    }

    /// The canonical form that [`Self::hash`] is taken of: every effective value, without origins.
    pub fn canonical(&self) -> String {
        let mut lines: Vec<String> = self
            .shown
            .iter()
            .filter(|s| s.key != "description" && s.key != "extends")
            .map(|s| format!("{} = {}\n", s.key, s.value))
            .collect();
        lines.sort();
        lines.dedup();
        format!("agentd policy 1\n{}", lines.concat())
    }

    /// SHA-256 of [`Self::canonical`] in hex: the same for two texts that mean the same.
    pub fn hash(&self) -> String {
        use sha2::{Digest, Sha256};
        Sha256::digest(self.canonical())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect()
    }

    /// The line that set a key, or the last file when nothing did.
    pub fn origin_of(&self, key: &str) -> Origin {
        self.shown.iter().find(|s| s.key == key).map_or_else(
            || Origin::new(self.files.last().cloned().unwrap_or_default(), 0),
            |s| s.origin.clone(),
        )
    }

    /// The last line about a key, where somebody would add to it; the last file when nothing says a word about it.
    pub fn last_line_of(&self, key: &str) -> Origin {
        let last = self.shown.iter().rfind(|s| s.key == key);
        last.map_or_else(|| self.origin_of(key), |s| s.origin.clone())
    }

    /// `key = value  # origin`, aligned, for people.
    pub fn show(&self) -> String {
        let left: Vec<String> = self
            .shown
            .iter()
            .map(|s| format!("{} = {}", s.key, s.value))
            .collect();
        let width = left
            .iter()
            .map(|l| l.chars().count())
            .filter(|w| *w <= 60)
            .max()
            .unwrap_or(0);
        let mut out = format!("# policy {}, hash {}\n", self.name, self.hash());
        for (l, s) in left.iter().zip(&self.shown) {
            let held = s.held_by.map_or(String::new(), |by| format!(" ({by})"));
            out.push_str(&format!("{l:width$}  # {}{held}\n", s.origin));
        }
        out
    }
}
