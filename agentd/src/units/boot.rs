//! Units that start with the daemon.
//!
//! A restarted agentd has no agentctl at hand that would open directories for it. So, while agentd still has the rights
//! of whoever started it, [`Boot::prepare`] reads the system's units and opens what the enabled ones need, as lasting
//! grants in that user's name; [`Boot::start`] comes later, on the confined daemon. Only units of that very user are
//! opened for: root's in root mode, one's own in user mode. A unit with `user` waits for its user.
//!
//! Which units are enabled stands in the database, which nobody can read this early; a copy lies in `units.wanted` in
//! the state directory, with the started ones, whose agents may outlive agentd and want to be restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::{DaemonMode, LaunchSpec};
use agentd_kernel::grant::{self, Uses};
use agentd_orchestrator::unit::{Unit, UnitFile, UnitName, UnitSet};
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyRef, Sources};
use rustix::fs::Access as Check;

use super::load::read_dirs;
use super::{Context, Owner, Units};
use crate::agents::Caller;
use crate::config::Config;
use crate::daemon::Daemon;

/// The copy of what is enabled or started.
const WANTED: &str = "units.wanted";

/// What was read and opened before agentd confined itself.
#[derive(Debug, Default)]
pub struct Boot {
    files: Vec<UnitFile>,
    trouble: Option<String>,
    contexts: BTreeMap<String, Result<Opened, String>>,
}

/// Whether agentd is, at first, whom the system's units belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    Own,
    None,
}

#[derive(Debug)]
struct Opened {
    spec: LaunchSpec,
    grants: Vec<OwnedFd>,
}

impl Boot {
    /// Reads units and opens what they need, as whoever started agentd. A system's agentd that was not started by root
    /// has nothing to open in root's name.
    pub fn prepare(dirs: &[PathBuf], config: &Config, state_dir: &Path, rights: Rights) -> Self {
        let mut boot = Self::default();
        let set = match read_dirs(dirs) {
            Ok(files) => {
                boot.files = files;
                UnitSet::load(&boot.files, config.units.pool_ceiling)
            }
            Err(error) => Err(error),
        };
        let set = match set {
            Ok(set) => set,
            Err(error) => {
                boot.trouble = Some(error.to_string());
                return boot;
            }
        };
        let listed = std::fs::read_to_string(state_dir.join(WANTED)).unwrap_or_default();
        let listed: Vec<UnitName> = listed
            .lines()
            .filter_map(|l| UnitName::parse(l).ok())
            .collect();
        for name in set.startable().chain(&listed) {
            let Ok(unit) = set.unit(name) else { continue };
            let wanted = unit.agent.enabled || listed.contains(name);
            if wanted && unit.agent.user.is_none() {
                let opened = match (rights, &unit.run.workspace) {
                    (Rights::Own, _) => open(&unit, config),
                    (Rights::None, None) => Ok(Opened {
                        spec: LaunchSpec::new(Vec::new()),
                        grants: Vec::new(),
                    }),
                    (Rights::None, Some(dir)) => Err(format!(
                        "this agentd was not started by root, so root must hand over {dir}: agentctl agents start {name}"
                    )),
                };
                boot.contexts.insert(name.to_string(), opened);
            }
        }
        boot
    }

    /// Takes the units in on the running daemon. Agents that outlived an earlier one are linked to them next, and then
    /// come those that are to be started. Nothing here keeps agentd from serving: what is wrong is said in the log and
    /// in `agentctl agents list`.
    pub async fn load(self, daemon: &Arc<Daemon>) -> Enabled {
        let units = &daemon.units;
        match daemon.store.unit_rows().await {
            Ok(rows) => {
                let mut inner = units.inner();
                for row in rows {
                    if let Some(owner) = Owner::parse(&row.owner) {
                        inner.rows.insert((owner, row.name.clone()), row);
                    }
                }
            }
            Err(error) => tracing::error!("which units are enabled is not known: {error}"),
        }
        let mut sets = match daemon.store.unit_texts().await {
            Ok(texts) => Units::sets_of_users(texts),
            Err(error) => {
                tracing::error!("the users' units are not known: {error}");
                BTreeMap::new()
            }
        };
        sets.insert(Owner::System, self.files);
        let mut trouble = self.trouble;
        for (owner, files) in sets {
            match units.check(daemon, owner, &files) {
                Ok(set) => drop(units.replace(daemon, owner, set)),
                Err(error) if owner == Owner::System => trouble = Some(error.to_string()),
                Err(error) => {
                    tracing::warn!("units of {} do not load any more: {error}", owner.as_text())
                }
            }
        }
        if let Some(trouble) = &trouble {
            tracing::error!("the system's units do not load:\n{trouble}");
        }
        units.inner().trouble = trouble;
        Enabled(self.contexts)
    }
}

/// What the enabled units need, opened before agentd confined itself.
#[derive(Debug)]
pub struct Enabled(BTreeMap<String, Result<Opened, String>>);

impl Enabled {
    /// Starts every enabled unit, with what was opened for it.
    pub fn start(self, daemon: &Arc<Daemon>) {
        let units = &daemon.units;
        let own = rustix::process::geteuid().as_raw();
        let caller = match daemon.mode {
            DaemonMode::Root => Caller { uid: 0, gid: 0 },
            DaemonMode::User => Caller {
                uid: own,
                gid: rustix::process::getegid().as_raw(),
            },
        };
        for (name, opened) in self.0 {
            let Ok(name) = UnitName::parse(&name) else {
                continue;
            };
            let key = (Owner::System, name);
            let unit = {
                let inner = units.inner();
                let disabled = inner
                    .rows
                    .get(&(Owner::System, key.1.to_string()))
                    .and_then(|row| row.enabled);
                let unit = inner
                    .sets
                    .get(&Owner::System)
                    .and_then(|set| set.unit(&key.1).ok());
                unit.map(|unit| (disabled.unwrap_or(unit.agent.enabled), unit))
            };
            let Some((enabled, unit)) = unit else {
                continue;
            };
            match opened {
                Ok(Opened { spec, grants }) => {
                    let context = Context {
                        caller,
                        spec,
                        grants,
                    };
                    if enabled {
                        units.begin(daemon, &key, unit, caller.uid, Some(context));
                    } else if let Some(active) = units.inner().active.get_mut(&key) {
                        // Its agents outlived the last agentd: this is for their restarts.
                        active.context = Some(Arc::new(context));
                    }
                }
                Err(why) if !enabled => {
                    tracing::debug!(unit = %key.1, "what its restarts need cannot be opened: {why}");
                }
                Err(why) => {
                    tracing::error!(unit = %key.1, "enabled, but not started: {why}");
                    let mut inner = units.inner();
                    inner.trouble = Some(format!("{} is enabled, but not started: {why}", key.1));
                }
            }
        }
        units.write_wanted(daemon);
    }
}

impl Units {
    /// Writes the copy that the next start reads. Losing it costs a unit its start with the daemon, no more.
    pub(super) fn write_wanted(&self, daemon: &Daemon) {
        let text: String = {
            let inner = self.inner();
            let rows = inner
                .rows
                .iter()
                .filter(|(_, row)| row.enabled == Some(true));
            let enabled = rows.map(|((owner, name), _)| (*owner, name.as_str()));
            let active = inner.active.iter().filter(|(_, a)| a.engine.is_on());
            let started = active.map(|((owner, name), _)| (*owner, name.as_str()));
            let system = enabled
                .chain(started)
                .filter(|(owner, _)| *owner == Owner::System);
            let names: BTreeSet<&str> = system.map(|(_, name)| name).collect();
            names.into_iter().map(|name| format!("{name}\n")).collect()
        };
        let (path, aside) = (
            daemon.state_dir.join(WANTED),
            daemon.state_dir.join("units.wanted.new"),
        );
        let written = std::fs::write(&aside, text).and_then(|()| std::fs::rename(&aside, &path));
        if let Err(error) = written {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

/// What agentctl would bring along, from the environment of whoever started agentd.
fn open(unit: &Unit, config: &Config) -> Result<Opened, String> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute());
    let workspace = match unit.run.workspace.as_deref() {
        None => None,
        Some(text) => {
            let named = match (text.strip_prefix("~/"), &home) {
                (Some(rest), Some(home)) => home.join(rest),
                (Some(_), None) => {
                    return Err(format!(
                        "run.workspace = {text:?}: agentd was started without HOME"
                    ));
                }
                (None, _) => PathBuf::from(text),
            };
            let real = named.canonicalize();
            Some(real.map_err(|e| format!("run.workspace = {text:?}: {e}"))?)
        }
    };
    let sources = Sources {
        folders: config.daemon.policy_dirs.clone(),
        settings: unit.run.settings.clone(),
    };
    let policy = EffectivePolicy::load(&PolicyRef::Name(unit.run.policy.clone()), &sources)
        .map_err(|e| e.to_string())?;
    let exe = find_program(&unit.run.command[0]);
    let caller = CallerContext {
        home: home.clone(),
        workspace: workspace.clone(),
        exe: exe.clone(),
        keep: Vec::new(),
    };
    let mut grants = Vec::new();
    for want in policy.wanted_grants(&caller) {
        let opened = grant::open(&want.src, want.kind, want.access)
            .and_then(|object| grant::send(object.as_fd(), want.access, &want.dst, Uses::Lasting));
        match opened {
            Ok(socket) => grants.push(socket),
            Err(_) if want.optional => {}
            Err(error) => return Err(format!("{}: {error}", want.src.display())),
        }
    }
    let text = |path: Option<PathBuf>| path.and_then(|p| p.into_os_string().into_string().ok());
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| policy.env.passes(name))
        .collect();
    Ok(Opened {
        spec: LaunchSpec {
            exe: text(exe),
            workspace: text(workspace),
            home: text(home),
            user: std::env::var("USER").ok().filter(|user| !user.is_empty()),
            env: Some(env),
            ..LaunchSpec::new(Vec::new())
        },
        grants,
    })
}

/// The program as a shell of whoever started agentd would find it.
fn find_program(name: &str) -> Option<PathBuf> {
    let is_program =
        |path: &PathBuf| rustix::fs::access(path, Check::EXEC_OK).is_ok() && path.is_file();
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(is_program)
}
