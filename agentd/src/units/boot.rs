//! Units that start with the daemon.
//!
//! A restarted agentd has no agentctl at hand that would open directories for it. So, while agentd still has the rights
//! of whoever started it, [`Boot::prepare`] reads the system's units and opens what the enabled ones need, as lasting
//! grants in that user's name; [`Boot::start`] comes later, on the confined daemon. Only units of that very user are
//! opened for: root's in root mode, one's own in user mode. A unit with `user` waits for its user.
//!
//! Which instances of templates are enabled stands in the database, which nobody can read this early; a copy lies in
//! `units.enabled` in the state directory, written whenever it changes.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentd_api::{DaemonMode, LaunchSpec};
use agentd_kernel::grant::{self, Uses};
use agentd_orchestrator::unit::{Unit, UnitFile, UnitName, UnitSet};
use agentd_sandbox::{Access, CallerContext, EffectivePolicy, PolicyRef, Sources};
use rustix::fs::{Access as Check, AtFlags, Mode, OFlags};

use super::load::read_dirs;
use super::{Context, Owner, Units};
use crate::agents::Caller;
use crate::config::Config;
use crate::daemon::Daemon;

/// The copy of what is enabled.
const ENABLED: &str = "units.enabled";

/// What was read and opened before agentd confined itself.
#[derive(Debug, Default)]
pub struct Boot {
    files: Vec<UnitFile>,
    trouble: Option<String>,
    contexts: BTreeMap<String, Result<Opened, String>>,
}

#[derive(Debug)]
struct Opened {
    spec: LaunchSpec,
    grants: Vec<OwnedFd>,
}

impl Boot {
    /// Reads units and opens what they need, as whoever started agentd.
    pub fn prepare(dirs: &[PathBuf], config: &Config, state_dir: &Path) -> Self {
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
        let listed = std::fs::read_to_string(state_dir.join(ENABLED)).unwrap_or_default();
        let listed: Vec<UnitName> = listed
            .lines()
            .filter_map(|l| UnitName::parse(l).ok())
            .collect();
        for name in set.startable().chain(&listed) {
            let Ok(unit) = set.unit(name) else { continue };
            let wanted = unit.agent.enabled || listed.contains(name);
            if wanted && unit.agent.user.is_none() {
                boot.contexts.insert(name.to_string(), open(&unit, config));
            }
        }
        boot
    }

    /// Takes the units in on the running daemon, and starts the enabled ones. Nothing here keeps agentd from serving:
    /// what is wrong is said in the log and in `agentctl agents list`.
    pub async fn start(self, daemon: &Arc<Daemon>) {
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
        let own = rustix::process::geteuid().as_raw();
        let caller = match daemon.mode {
            DaemonMode::Root => Caller { uid: 0, gid: 0 },
            DaemonMode::User => Caller {
                uid: own,
                gid: rustix::process::getegid().as_raw(),
            },
        };
        for (name, opened) in self.contexts {
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
                unit.filter(|unit| disabled.unwrap_or(unit.agent.enabled))
            };
            let Some(unit) = unit else { continue };
            match opened {
                Ok(Opened { spec, grants }) => {
                    let context = Context {
                        caller,
                        spec,
                        grants,
                    };
                    units.begin(daemon, &key, unit, caller.uid, Some(context));
                }
                Err(why) => {
                    tracing::error!(unit = %key.1, "enabled, but not started: {why}");
                    let mut inner = units.inner();
                    inner.trouble = Some(format!("{} is enabled, but not started: {why}", key.1));
                }
            }
        }
        units.write_enabled(daemon);
    }
}

impl Units {
    /// Writes the copy that the next start reads. Losing it costs an instance of a template its start at boot, no more.
    pub(super) fn write_enabled(&self, daemon: &Daemon) {
        let text: String = {
            let inner = self.inner();
            let enabled = inner
                .rows
                .iter()
                .filter(|((owner, _), row)| *owner == Owner::System && row.enabled == Some(true));
            enabled.map(|((_, name), _)| format!("{name}\n")).collect()
        };
        let (path, aside) = (
            daemon.state_dir.join(ENABLED),
            daemon.state_dir.join("units.enabled.new"),
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
    };
    let mut grants = Vec::new();
    for want in policy.wanted_grants(&caller) {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", want.src.display());
        let opened = rustix::fs::open(&want.src, flags, Mode::empty()).and_then(|object| {
            if want.access == Access::ReadWrite {
                rustix::fs::accessat(
                    rustix::fs::CWD,
                    &want.src,
                    Check::WRITE_OK,
                    AtFlags::EACCESS,
                )?;
            }
            Ok(File::from(object))
        });
        let access = match want.access {
            Access::ReadOnly => grant::Access::ReadOnly,
            Access::ReadWrite => grant::Access::ReadWrite,
        };
        match opened {
            Ok(object) => match grant::send(object.as_fd(), access, &want.dst, Uses::Lasting) {
                Ok(socket) => grants.push(socket),
                Err(_) if want.optional => {}
                Err(error) => return Err(fail(&error)),
            },
            Err(_) if want.optional => {}
            Err(error) => return Err(fail(&error)),
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
