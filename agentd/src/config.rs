//! The daemon's configuration: TOML text → checked [`Config`].
//!
//! The file is small on purpose. What an agent may do is said in policies, not here; here is what the daemon itself
//! needs: which user it becomes, where the models are and where their keys lie. A key never stands in this file.
//! Every error names the file, the key, the value and what is allowed. Without a file the defaults hold.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_storage::stream::Compression;
use serde::Deserialize;

use crate::agents::log::MIN_LIMIT_BYTES;
use crate::bus::direct::Offer;
use crate::bus::gateway::config::GatewayConfig;
use crate::bus::{SHARDS_MAX, default_shards};
use crate::ceilings::Ceiling;
use crate::egress::NetConfig;
use crate::gateway::{ModelConfig, PriceConfig, PriceList};

/// The checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub daemon: DaemonConfig,
    pub units: UnitsConfig,
    pub logs: LogsConfig,
    pub retention: RetentionConfig,
    pub model: ModelConfig,
    pub net: NetConfig,
    /// Router threads.
    pub bus_shards: usize,
    /// Whether agents are offered the direct path.
    pub direct: Offer,
    /// The bus's way out of the host's sandboxes.
    pub gateway: GatewayConfig,
    /// Durable topics and queues.
    pub durable: DurableConfig,
    /// What launches of each user may be at most.
    pub ceilings: Vec<Ceiling>,
    /// `[[price]]`: what the tokens of models cost.
    pub prices: PriceList,
    /// The same for people and programs: `file`, `present`, `values` (key, value, file, line), `unit_dirs`,
    /// `pool_ceiling`.
    pub document: serde_json::Value,
}

/// Where durable topics and queues are kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableConfig {
    pub store: DurableStore,
    /// Of the segments; `None` is `streams` in the state directory.
    pub directory: Option<PathBuf>,
    /// What a durable topic keeps that says nothing itself.
    pub max_bytes: Option<u64>,
    pub max_age: Option<Duration>,
    pub compression: Compression,
    /// Smaller payloads are kept as they are.
    pub compress_above: u32,
}

impl Default for DurableConfig {
    fn default() -> Self {
        Self {
            store: DurableStore::default(),
            directory: None,
            max_bytes: Some(1 << 30),
            max_age: None,
            compression: Compression::None,
            compress_above: 4096,
        }
    }
}

/// Which store keeps durable topics and queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DurableStore {
    /// Append-only files of their own: the quick one.
    #[default]
    Segment,
    /// Rows of the record.
    Sqlite,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDurable {
    store: DurableStore,
    directory: Option<PathBuf>,
    max_bytes: u64,
    max_age_s: u64,
    compression: RawCompression,
    compress_above: u32,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawCompression {
    None,
    Lz4,
    Zstd,
}

impl Default for RawDurable {
    fn default() -> Self {
        Self {
            store: DurableStore::default(),
            directory: None,
            max_bytes: 1 << 30,
            max_age_s: 0,
            compression: RawCompression::None,
            compress_above: 4096,
        }
    }
}

impl RawDurable {
    /// 0 stands for "no bound".
    fn config(self) -> DurableConfig {
        DurableConfig {
            store: self.store,
            directory: self.directory,
            max_bytes: (self.max_bytes > 0).then_some(self.max_bytes),
            max_age: (self.max_age_s > 0).then(|| Duration::from_secs(self.max_age_s)),
            compression: match self.compression {
                RawCompression::None => Compression::None,
                RawCompression::Lz4 => Compression::Lz4,
                RawCompression::Zstd => Compression::Zstd,
            },
            compress_above: self.compress_above,
        }
    }
}

/// How much output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogsConfig {
    /// Of one launch, where its policy says nothing: the newest so many bytes. 256 KiB or more.
    pub limit_bytes: u64,
    /// Of all launches together; the logs of living agents stay whatever it says.
    pub total_bytes: u64,
}

impl Default for LogsConfig {
    fn default() -> Self {
        Self {
            limit_bytes: 256 << 20,
            total_bytes: 8 << 30,
        }
    }
}

/// How long ended launches are remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionConfig {
    /// Those that ended longer ago are forgotten; `None` = never.
    pub older_than: Option<Duration>,
    /// But never the newest so many of each user.
    pub keep: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonConfig {
    /// Name of the system user that agentd becomes when root starts it.
    pub user: String,
    /// How many agents may live at once, over all users. 1..=4096.
    pub max_agents: usize,
    /// How long an agent outlives one lost lifeline. 0..=10 min; 0 = it dies at once.
    pub lifeline_grace: Duration,
    /// What happens to the agents when agentd is told to end by SIGTERM or SIGINT.
    pub on_stop: OnStop,
    /// How long a driven agent may take until it is ready for work. 1 s..=1 h.
    pub driver_start: Duration,
    /// Root's broker gives agents the host's network where their policy asks for it.
    pub host_network: HostNetwork,
    /// Root's broker listens to the kernel's audit, and turns it on where it is off.
    pub kernel_audit: KernelAudit,
    /// Start even where the host cannot confine agentd itself.
    pub confine: Confine,
    /// Directories with the administrator's policies, searched before the shipped ones.
    pub policy_dirs: Vec<PathBuf>,
}

/// What holds for agent units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitsConfig {
    /// Directories with the system's units, the first one first; `None` means the defaults of the mode.
    pub dirs: Option<Vec<PathBuf>>,
    /// Most agents of one unit's pool, and most that pools may grow to for one user. 1..=1000.
    pub pool_ceiling: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confine {
    Required,
    Degrade,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelAudit {
    Off,
    On,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostNetwork {
    Refuse,
    Allow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// They are stopped.
    Stop,
    /// They go on for the lifeline's grace, and the next agentd takes them over.
    Keep,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: `{key} = {value}` is not allowed; {allowed}")]
    Range {
        path: PathBuf,
        key: &'static str,
        value: String,
        allowed: &'static str,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    daemon: RawDaemon,
    units: RawUnits,
    logs: LogsConfig,
    retention: RawRetention,
    model: ModelConfig,
    net: NetConfig,
    bus: RawBus,
    ceiling: Vec<Ceiling>,
    price: Vec<PriceConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawBus {
    shards: Option<usize>,
    direct: Offer,
    gateway: GatewayConfig,
    durable: RawDurable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRetention {
    older_than_days: u64,
    keep: u32,
}

impl Default for RawRetention {
    fn default() -> Self {
        Self {
            older_than_days: 0,
            keep: 100,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawDaemon {
    user: String,
    max_agents: usize,
    lifeline_grace_ms: u64,
    driver_start_ms: u64,
    on_stop: OnStop,
    host_network: HostNetwork,
    kernel_audit: KernelAudit,
    confine: Confine,
    policy_dirs: Vec<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawUnits {
    dirs: Option<Vec<PathBuf>>,
    pool_ceiling: u32,
}

impl Default for RawUnits {
    fn default() -> Self {
        Self {
            dirs: None,
            pool_ceiling: agentd_orchestrator::unit::POOL_CEILING,
        }
    }
}

impl Default for RawDaemon {
    fn default() -> Self {
        Self {
            user: "agentd".into(),
            max_agents: 256,
            lifeline_grace_ms: 30_000,
            driver_start_ms: 60_000,
            on_stop: OnStop::Stop,
            host_network: HostNetwork::Refuse,
            kernel_audit: KernelAudit::Off,
            confine: Confine::Required,
            policy_dirs: vec!["/etc/agentd/policy".into()],
        }
    }
}

impl Config {
    /// Reads `path`. A missing file means the defaults unless `required`.
    pub fn load(path: &Path, required: bool) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path).map(|config| config.found()),
            Err(e) if e.kind() == ErrorKind::NotFound && !required => Self::parse("", path),
            // HOME of somebody else, as `su` without `-` leaves it: no reason not to start.
            Err(e) if e.kind() == ErrorKind::PermissionDenied && !required => {
                tracing::warn!(
                    "{} cannot be read, so the defaults hold; name a file with --config",
                    path.display()
                );
                Self::parse("", path)
            }
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn found(mut self) -> Self {
        self.document["present"] = true.into();
        self
    }

    /// Parses and checks `text`; `path` is for messages.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|e| ConfigError::Parse {
            path: path.to_owned(),
            message: e.to_string().trim_end().to_owned(),
        })?;
        let range = |key, value: String, allowed| ConfigError::Range {
            path: path.to_owned(),
            key,
            value,
            allowed,
        };
        let bus_shards = raw.bus.shards.unwrap_or_else(default_shards);
        if !(1..=SHARDS_MAX).contains(&bus_shards) {
            let allowed =
                "1 to 64 router threads; without the key a quarter of the CPUs, at most 8";
            return Err(range("bus.shards", bus_shards.to_string(), allowed));
        }
        const DAY: Duration = Duration::from_secs(24 * 3600);
        const MAX_DAYS: u32 = 36_500;
        let older_than_days = u32::try_from(raw.retention.older_than_days).unwrap_or(u32::MAX);
        if older_than_days > MAX_DAYS {
            return Err(range(
                "retention.older_than_days",
                raw.retention.older_than_days.to_string(),
                "0 (never) to 36500 days",
            ));
        }
        if let Some(directory) = &raw.bus.durable.directory
            && !directory.is_absolute()
        {
            return Err(range(
                "bus.durable.directory",
                directory.display().to_string(),
                "an absolute path",
            ));
        }
        if raw.logs.limit_bytes < MIN_LIMIT_BYTES {
            return Err(range(
                "logs.limit_bytes",
                raw.logs.limit_bytes.to_string(),
                "262144 bytes (256 KiB) or more",
            ));
        }
        if raw.logs.total_bytes < raw.logs.limit_bytes {
            return Err(range(
                "logs.total_bytes",
                raw.logs.total_bytes.to_string(),
                "at least logs.limit_bytes",
            ));
        }
        let RawDaemon {
            user,
            max_agents,
            lifeline_grace_ms,
            driver_start_ms,
            on_stop,
            host_network,
            kernel_audit,
            confine,
            policy_dirs,
        } = raw.daemon;
        if !(1..=4096).contains(&max_agents) {
            return Err(range(
                "daemon.max_agents",
                max_agents.to_string(),
                "1 to 4096 agents",
            ));
        }
        if lifeline_grace_ms > 600_000 {
            return Err(range(
                "daemon.lifeline_grace_ms",
                lifeline_grace_ms.to_string(),
                "0 to 600000 milliseconds",
            ));
        }
        if !(1_000..=3_600_000).contains(&driver_start_ms) {
            return Err(range(
                "daemon.driver_start_ms",
                driver_start_ms.to_string(),
                "1000 to 3600000 milliseconds",
            ));
        }
        if user.is_empty() || user == "root" {
            return Err(range(
                "daemon.user",
                format!("{user:?}"),
                "the name of an unprivileged user",
            ));
        }
        if let Some(dir) = policy_dirs.iter().find(|d| !d.is_absolute()) {
            return Err(range(
                "daemon.policy_dirs",
                format!("{:?}", dir),
                "absolute directories",
            ));
        }
        raw.bus
            .gateway
            .check()
            .map_err(|wrong| range(wrong.key, wrong.value, wrong.allowed))?;
        let RawUnits { dirs, pool_ceiling } = raw.units;
        if !(1..=1000).contains(&pool_ceiling) {
            return Err(range(
                "units.pool_ceiling",
                pool_ceiling.to_string(),
                "1 to 1000 agents",
            ));
        }
        if let Some(dir) = dirs.iter().flatten().find(|d| !d.is_absolute()) {
            return Err(range(
                "units.dirs",
                format!("{:?}", dir),
                "absolute directories",
            ));
        }
        let document = {
            let defaults = [
                ("daemon.user", format!("{user:?}")),
                ("daemon.max_agents", max_agents.to_string()),
                ("daemon.lifeline_grace_ms", lifeline_grace_ms.to_string()),
                (
                    "daemon.confine",
                    format!(
                        "{:?}",
                        match confine {
                            Confine::Required => "required",
                            Confine::Degrade => "degrade",
                        }
                    ),
                ),
                (
                    "daemon.host_network",
                    format!(
                        "{:?}",
                        match host_network {
                            HostNetwork::Refuse => "refuse",
                            HostNetwork::Allow => "allow",
                        }
                    ),
                ),
                (
                    "daemon.kernel_audit",
                    format!(
                        "{:?}",
                        match kernel_audit {
                            KernelAudit::Off => "off",
                            KernelAudit::On => "on",
                        }
                    ),
                ),
                ("daemon.policy_dirs", format!("{policy_dirs:?}")),
                ("units.pool_ceiling", pool_ceiling.to_string()),
                ("logs.limit_bytes", raw.logs.limit_bytes.to_string()),
                ("logs.total_bytes", raw.logs.total_bytes.to_string()),
                ("retention.older_than_days", older_than_days.to_string()),
                ("retention.keep", raw.retention.keep.to_string()),
                ("bus.shards", bus_shards.to_string()),
                ("bus.direct", (raw.bus.direct == Offer::Yes).to_string()),
                (
                    "bus.durable.store",
                    format!(
                        "{:?}",
                        match raw.bus.durable.store {
                            DurableStore::Segment => "segment",
                            DurableStore::Sqlite => "sqlite",
                        }
                    ),
                ),
                (
                    "bus.durable.max_bytes",
                    raw.bus.durable.max_bytes.to_string(),
                ),
                (
                    "bus.durable.max_age_s",
                    raw.bus.durable.max_age_s.to_string(),
                ),
                (
                    "bus.durable.compression",
                    format!("{:?}", raw.bus.durable.compression).to_lowercase(),
                ),
                (
                    "bus.durable.compress_above",
                    raw.bus.durable.compress_above.to_string(),
                ),
            ];
            let mode = if rustix::process::geteuid().is_root() {
                agentd_api::DaemonMode::Root
            } else {
                agentd_api::DaemonMode::User
            };
            let unit_dirs = dirs
                .clone()
                .unwrap_or_else(|| crate::units::Units::default_dirs(mode, path));
            let dirs_shown = ("units.dirs", format!("{unit_dirs:?}"));
            serde_json::json!({
                "file": path,
                "present": false,
                "values": values(text, path, defaults.into_iter().chain([dirs_shown])),
                "unit_dirs": unit_dirs,
                "pool_ceiling": pool_ceiling,
            })
        };
        Ok(Self {
            document,
            units: UnitsConfig { dirs, pool_ceiling },
            daemon: DaemonConfig {
                user,
                max_agents,
                lifeline_grace: Duration::from_millis(lifeline_grace_ms),
                driver_start: Duration::from_millis(driver_start_ms),
                on_stop,
                host_network,
                kernel_audit,
                confine,
                policy_dirs,
            },
            logs: raw.logs,
            retention: RetentionConfig {
                older_than: (older_than_days > 0).then(|| DAY * older_than_days),
                keep: raw.retention.keep,
            },
            model: raw.model,
            net: raw.net,
            bus_shards,
            direct: raw.bus.direct,
            gateway: raw.bus.gateway,
            durable: raw.bus.durable.config(),
            ceilings: raw.ceiling,
            prices: PriceList::from_config(&raw.price),
        })
    }
}

/// Every value of the file with its line, and the defaults of what it leaves out.
fn values(
    text: &str,
    path: &Path,
    defaults: impl Iterator<Item = (&'static str, String)>,
) -> Vec<serde_json::Value> {
    fn walk(
        text: &str,
        before: &str,
        table: &toml::de::DeTable<'_>,
        found: &mut Vec<(String, String, usize)>,
    ) {
        for (name, value) in table {
            let key = format!("{before}{}", name.get_ref());
            match value.get_ref() {
                toml::de::DeValue::Table(inner) => walk(text, &format!("{key}."), inner, found),
                _ => {
                    let span = value.span();
                    let line = text[..span.start].matches('\n').count() + 1;
                    found.push((key, text[span].to_owned(), line));
                }
            }
        }
    }
    let mut found = Vec::new();
    // The text has been parsed before; errors were told there.
    let (root, _) = toml::de::DeTable::parse_recoverable(text);
    walk(text, "", root.get_ref(), &mut found);
    let file = path.display().to_string();
    let mut shown: Vec<serde_json::Value> = found
        .iter()
        .map(|(key, value, line)| serde_json::json!({ "key": key, "value": value, "file": file, "line": line }))
        .collect();
    for (key, value) in defaults {
        if !found.iter().any(|(known, _, _)| known == key) {
            shown.push(
                serde_json::json!({ "key": key, "value": value, "file": "default", "line": 0 }),
            );
        }
    }
    shown.sort_by(|a, b| a["key"].as_str().cmp(&b["key"].as_str()));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/agentd/agentd.toml"))
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.daemon.user, "agentd");
        assert_eq!(config.daemon.lifeline_grace, Duration::from_secs(30));
        assert_eq!(config.daemon.confine, Confine::Required);
    }

    #[test]
    fn every_value_says_where_it_stands() {
        let config = parse("[daemon]\n\nmax_agents = 3\n").unwrap();
        let values = config.document["values"].as_array().unwrap();
        let of = |key: &str| values.iter().find(|v| v["key"] == key).unwrap();
        assert_eq!(
            (
                of("daemon.max_agents")["value"].as_str(),
                of("daemon.max_agents")["line"].as_u64()
            ),
            (Some("3"), Some(3))
        );
        assert_eq!(of("daemon.user")["file"], "default");
        assert_eq!(of("units.pool_ceiling")["value"], "10");
    }

    #[test]
    fn the_number_of_router_threads_is_what_is_said_or_goes_by_the_cpus() {
        assert_eq!(parse("[bus]\nshards = 3\n").unwrap().bus_shards, 3);
        let config = parse("").unwrap();
        assert!((1..=8).contains(&config.bus_shards));
        assert_eq!(config.direct, Offer::No, "only where it is asked for");
        assert_eq!(parse("[bus]\ndirect = true\n").unwrap().direct, Offer::Yes);
        let values = config.document["values"].as_array().unwrap();
        let shown = values.iter().find(|v| v["key"] == "bus.shards").unwrap();
        assert_eq!(shown["value"], config.bus_shards.to_string());
    }

    #[test]
    fn ceilings_are_for_users_groups_or_everyone() {
        let text = "[[ceiling]]\npolicy = \"review\"\n[[ceiling]]\nusers = [\"ada\", 1001]\ngroups = [\"staff\"]\npolicy = \"coding\"\n";
        let config = parse(text).unwrap();
        assert_eq!(config.ceilings.len(), 2);
        assert!(config.ceilings[0].users.is_empty() && config.ceilings[1].users.len() == 2);
        assert!(
            parse("[[ceiling]]\nusers = [\"ada\"]\n").is_err(),
            "no policy"
        );
        assert!(
            parse("[[ceiling]]\nuser = \"ada\"\npolicy = \"x\"\n").is_err(),
            "no such key"
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = parse("[daemon]\nmax_agent = 3\n").unwrap_err().to_string();
        assert!(text.starts_with("/etc/agentd/agentd.toml: "), "{text}");
        assert!(
            text.contains("line 2") && text.contains("max_agent") && text.contains("max_agents"),
            "{text}"
        );
    }

    #[test]
    fn values_out_of_range_say_what_is_allowed() {
        for (text, needle) in [
            ("[daemon]\nmax_agents = 0\n", "1 to 4096"),
            ("[daemon]\nlifeline_grace_ms = 9999999\n", "0 to 600000"),
            ("[daemon]\ndriver_start_ms = 10\n", "1000 to 3600000"),
            ("[retention]\nolder_than_days = 99999\n", "0 (never)"),
            ("[logs]\nlimit_bytes = 10\n", "256 KiB"),
            ("[logs]\ntotal_bytes = 300000\n", "logs.limit_bytes"),
            ("[units]\npool_ceiling = 0\n", "1 to 1000"),
            ("[bus]\nshards = 0\n", "1 to 64 router threads"),
            ("[bus]\nshards = 65\n", "1 to 64 router threads"),
            ("[units]\ndirs = [\"agents\"]\n", "absolute"),
            ("[daemon]\nuser = \"root\"\n", "unprivileged"),
            ("[daemon]\npolicy_dirs = [\"policy\"]\n", "absolute"),
            ("[daemon]\non_stop = \"leave\"\n", "`stop` or `keep`"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(needle), "{text}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_an_error_only_when_it_was_named() {
        let path = Path::new("/nonexistent/agentd.toml");
        assert!(Config::load(path, false).is_ok());
        assert!(matches!(
            Config::load(path, true),
            Err(ConfigError::Read { .. })
        ));
    }
}
