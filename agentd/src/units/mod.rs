//! Agent units in the daemon: which there are, whose they are, and what each is doing.
//!
//! The language and the engine are pure and in `agentd_orchestrator::unit`; here they meet files, the clock, the record
//! and `Daemon::launch`. [`load`] takes texts in, whole sets at a time; [`run`] carries out what the engines say;
//! [`boot`] opens, before agentd gives up its rights, what units need that start with it; [`fleet`] lends their agents
//! to tasks; [`triggers`] starts them for messages.
//!
//! A unit belongs to one uid. System units (`[units] dirs`) are root's, or those of the `user` that they name, or in
//! user mode the daemon's owner's; anybody else's units arrive as open files over the control socket. Whoever may not
//! touch a unit is told that it does not exist. A unit runs with the grants of whoever started it, who must be the uid
//! that it belongs to: agentd can add nothing to them.

pub mod boot;
pub mod fleet;
pub mod load;
mod run;
mod triggers;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agentd_api::units::{UnitState, UnitStatus};
use agentd_api::{DaemonMode, Error, LaunchSpec};
use agentd_orchestrator::unit::supervisor::{self, End, Failure, Supervisor};
use agentd_orchestrator::unit::{Unit, UnitName, UnitSet, show_duration};
use agentd_storage::UnitRow;
use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

use crate::agents::{Agent, Caller};
use crate::config::UnitsConfig;

/// Who declared a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    System,
    User(u32),
}

impl Owner {
    fn as_text(self) -> String {
        match self {
            Self::System => "system".to_owned(),
            Self::User(uid) => format!("uid:{uid}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix("uid:") {
            Some(uid) => uid.parse().ok().map(Self::User),
            None => (text == "system").then_some(Self::System),
        }
    }
}

/// One unit of one owner.
pub type Key = (Owner, UnitName);

/// What whoever started a unit brought along.
#[derive(Debug)]
pub struct Context {
    pub caller: Caller,
    /// HOME, user, environment, program, policy text: what only the caller knows.
    pub spec: LaunchSpec,
    /// Lasting grants: each launch gets copies.
    pub grants: Vec<OwnedFd>,
}

/// A unit that was started, or whose agents were found running.
#[derive(Debug)]
struct Active {
    unit: Unit,
    uid: u32,
    engine: Supervisor,
    context: Option<Arc<Context>>,
    agents: BTreeMap<u32, Arc<Agent>>,
    last_end: Option<End>,
    /// Its file is gone.
    removed: bool,
    /// What the next launch of a member is for.
    cause: BTreeMap<u32, String>,
}

/// What became of units, for whoever mirrors them.
#[derive(Debug, Clone)]
pub enum UnitChange {
    Changed {
        name: String,
        uid: u32,
        state: UnitState,
    },
    Reloaded,
}

/// Every unit that this daemon knows.
#[derive(Debug)]
pub struct Units {
    dirs: Vec<PathBuf>,
    pool_ceiling: u32,
    mode: DaemonMode,
    epoch: Instant,
    inner: Mutex<Inner>,
    /// The engines' deadlines may have moved.
    wake: Notify,
    changes: broadcast::Sender<UnitChange>,
}

#[derive(Debug, Default)]
struct Inner {
    sets: BTreeMap<Owner, Arc<UnitSet>>,
    rows: BTreeMap<(Owner, String), UnitRow>,
    active: BTreeMap<Key, Active>,
    /// Why the system's directories could not be taken, when they could not.
    trouble: Option<String>,
    /// The daemon is ending: nothing is started any more.
    closed: bool,
}

impl Units {
    /// No units yet; [`boot::Boot`] brings the first.
    pub fn new(config: &UnitsConfig, dirs: Vec<PathBuf>, mode: DaemonMode) -> Self {
        Self {
            dirs,
            pool_ceiling: config.pool_ceiling,
            mode,
            epoch: Instant::now(),
            inner: Mutex::default(),
            wake: Notify::new(),
            changes: broadcast::Sender::new(256),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engines' clock: it does not jump.
    fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// Follows what becomes of units.
    pub fn changes(&self) -> broadcast::Receiver<UnitChange> {
        self.changes.subscribe()
    }

    /// From here on nothing is started.
    pub fn close(&self) {
        self.inner().closed = true;
    }

    /// Whose agents a unit's are.
    fn uid_of(&self, owner: Owner, unit: &Unit) -> Result<u32, Error> {
        let own = rustix::process::geteuid().as_raw();
        match (owner, self.mode, unit.agent.user.as_deref()) {
            (Owner::User(uid), _, None) => Ok(uid),
            (Owner::User(_), _, Some(_)) => Err(Error::InvalidArgument(format!(
                "{}: agent.user is for system units; your own run as you",
                unit.name
            ))),
            (Owner::System, DaemonMode::Root, None) => Ok(0),
            (Owner::System, DaemonMode::User, None) => Ok(own),
            (Owner::System, mode, Some(name)) => {
                let uid = uid_of_user(name).ok_or_else(|| {
                    Error::InvalidArgument(format!(
                        "{}: agent.user = {name:?}: there is no such user in /etc/passwd",
                        unit.name
                    ))
                })?;
                if mode == DaemonMode::User && uid != own {
                    return Err(Error::InvalidArgument(format!(
                        "{}: agent.user = {name:?}: an agentd of uid {own} can't run agents of others",
                        unit.name
                    )));
                }
                Ok(uid)
            }
        }
    }

    /// The unit that `name` means for `caller`: its own before the system's, and for root anybody's.
    fn find(&self, inner: &Inner, caller: Caller, name: &str) -> Result<(Key, Unit, u32), Error> {
        let parsed =
            UnitName::parse(name).map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let mut owners = vec![Owner::User(caller.uid), Owner::System];
        if caller.uid == 0 {
            owners.extend(
                inner
                    .sets
                    .keys()
                    .filter(|o| !owners.contains(o))
                    .copied()
                    .collect::<Vec<_>>(),
            );
        }
        let mut visible: Vec<String> = Vec::new();
        for owner in owners {
            let key = (owner, parsed.clone());
            if let Some(active) = inner.active.get(&key)
                && caller.may_touch(active.uid)
            {
                return Ok((key, active.unit.clone(), active.uid));
            }
            let Some(set) = inner.sets.get(&owner) else {
                continue;
            };
            if let Ok(unit) = set.unit(&parsed) {
                let uid = self.uid_of(owner, &unit)?;
                if caller.may_touch(uid) {
                    return Ok((key, unit, uid));
                }
            } else {
                for known in set.names() {
                    let seen = set
                        .unit(known)
                        .ok()
                        .and_then(|unit| self.uid_of(owner, &unit).ok());
                    if seen.is_some_and(|uid| caller.may_touch(uid)) {
                        visible.push(known.to_string());
                    }
                }
            }
        }
        let there = if visible.is_empty() {
            "there are none; `agentctl agents reload` hands yours over".to_owned()
        } else {
            format!("there are {}", visible.join(", "))
        };
        Err(Error::NotFound(format!(
            "no unit is called `{name}`; {there}"
        )))
    }

    /// Every unit, instance and template that `caller` may see, by name.
    pub fn list(&self, caller: Caller) -> Vec<UnitStatus> {
        let inner = self.inner();
        let mut list: Vec<UnitStatus> = Vec::new();
        for ((owner, _), active) in &inner.active {
            if caller.may_touch(active.uid) {
                list.push(self.describe(&inner, *owner, &active.unit, active.uid));
            }
        }
        for (owner, set) in &inner.sets {
            let enabled = inner
                .rows
                .iter()
                .filter(|((of, _), row)| of == owner && row.enabled == Some(true));
            let instances: Vec<UnitName> = enabled
                .filter_map(|((_, name), _)| UnitName::parse(name).ok())
                .collect();
            let mut names: Vec<&UnitName> = set
                .names()
                .chain(set.startable())
                .chain(&instances)
                .collect();
            names.sort();
            names.dedup();
            for name in names {
                if inner.active.contains_key(&(*owner, name.clone())) {
                    continue;
                }
                let Ok(unit) = set.unit(name) else { continue };
                let Ok(uid) = self.uid_of(*owner, &unit) else {
                    continue;
                };
                if caller.may_touch(uid) {
                    list.push(self.describe(&inner, *owner, &unit, uid));
                }
            }
        }
        list.sort_by(|a, b| (&a.name, a.uid).cmp(&(&b.name, b.uid)));
        list
    }

    /// One unit's line.
    pub fn status(&self, caller: Caller, name: &str) -> Result<UnitStatus, Error> {
        let inner = self.inner();
        let ((owner, _), unit, uid) = self.find(&inner, caller, name)?;
        Ok(self.describe(&inner, owner, &unit, uid))
    }

    /// Everything about one unit.
    pub fn show(&self, caller: Caller, name: &str) -> Result<Value, Error> {
        let inner = self.inner();
        let ((owner, name), unit, uid) = self.find(&inner, caller, name)?;
        let values: Vec<Value> = unit
            .values()
            .iter()
            .map(|v| json!({ "key": v.key, "value": v.value, "file": v.origin.file, "line": v.origin.line }))
            .collect();
        let files: Vec<Value> = inner
            .sets
            .get(&owner)
            .map(|set| set.texts(&name))
            .unwrap_or_default()
            .into_iter()
            .map(|(file, text)| json!({ "file": file, "text": text }))
            .collect();
        let mut notes = Vec::new();
        if unit.cores.any() {
            notes.push("[cores] is not applied yet: core steering is not in this version");
        }
        Ok(json!({
            "status": self.describe(&inner, owner, &unit, uid).to_json(),
            "values": values,
            "files": files,
            "launch": {
                "policy": unit.run.policy,
                "settings": unit.run.settings,
                "workspace": unit.run.workspace,
                "program": unit.run.command[0],
                "user": unit.agent.user,
                "template": unit.name.is_template(),
            },
            "notes": notes,
        }))
    }

    /// Why the system's units are not what their files say, if so.
    pub fn trouble(&self) -> Option<String> {
        self.inner().trouble.clone()
    }

    fn describe(&self, inner: &Inner, owner: Owner, unit: &Unit, uid: u32) -> UnitStatus {
        let name = unit.name.as_str().to_owned();
        let active = inner.active.get(&(owner, unit.name.clone()));
        let row = inner.rows.get(&(owner, name.clone()));
        let enabled = row
            .and_then(|row| row.enabled)
            .unwrap_or(unit.agent.enabled);
        let state = match active {
            _ if unit.name.is_template() => UnitState::Template,
            Some(active) => public(active.engine.state()),
            None => UnitState::Inactive,
        };
        let until_restart = active.and_then(|a| a.engine.next_restart()).map(|at| {
            let rest = at.saturating_sub(self.now());
            u64::try_from(rest.as_millis()).unwrap_or(u64::MAX)
        });
        UnitStatus {
            uid,
            system: owner == Owner::System,
            state,
            enabled,
            status: unit.agent.status.as_str().to_owned(),
            uuid: unit
                .agent
                .uuid
                .clone()
                .or_else(|| row.map(|row| row.uuid.clone())),
            description: unit.agent.description.clone(),
            role: unit.agent.role.clone(),
            capabilities: Some(unit.agent.capabilities.clone()).filter(|c| !c.is_empty()),
            driver: Some(unit.run.driver.clone()),
            agents: active
                .map(|active| {
                    let one = |(member, agent): (&u32, &Arc<Agent>)| {
                        (
                            *member,
                            agent.identity.name.clone(),
                            agent.identity.id.to_string(),
                        )
                    };
                    active.agents.iter().map(one).collect()
                })
                .unwrap_or_default(),
            max: unit.pool.max,
            restarts: active.map_or(0, |a| a.engine.total_restarts()),
            next_restart_ms: until_restart,
            why: active.and_then(why),
            removed: active.map(|a| a.removed).filter(|removed| *removed),
            name,
        }
    }

    fn announce(&self, change: UnitChange) {
        // Nobody listening is the normal case.
        drop(self.changes.send(change));
    }
}

/// Why a unit is not well, or what it waits for.
fn why(active: &Active) -> Option<String> {
    match active.engine.failure() {
        Some(Failure::StartLimit {
            burst,
            interval,
            last,
        }) => Some(format!(
            "start limit reached: restarted {burst} times within {}, and then it {last}; \
             `agentctl agents start {}` begins anew",
            show_duration(*interval),
            active.unit.name
        )),
        Some(Failure::Ended(end)) => Some(end.to_string()),
        None => match (&active.last_end, active.engine.next_restart()) {
            (Some(end), Some(_)) => Some(end.to_string()),
            _ => None,
        },
    }
}

fn public(state: supervisor::UnitState) -> UnitState {
    match state {
        supervisor::UnitState::Inactive => UnitState::Inactive,
        supervisor::UnitState::Waiting => UnitState::Waiting,
        supervisor::UnitState::Starting => UnitState::Starting,
        supervisor::UnitState::Running => UnitState::Running,
        supervisor::UnitState::Restarting => UnitState::Restarting,
        supervisor::UnitState::Stopping => UnitState::Stopping,
        supervisor::UnitState::Failed => UnitState::Failed,
    }
}

/// The uid of a login name, as /etc/passwd has it.
fn uid_of_user(name: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}
