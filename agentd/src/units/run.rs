//! Carrying out what the engines say: launches, stops, restarts at their time.
//!
//! All state is behind one lock that is never held across an await. Each launch and each agent has a task that tells the
//! engine what came of it; one more task sleeps until the nearest deadline of all engines.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use agentd_api::units::UnitStatus;
use agentd_api::{Driver, Error, ExitCause, ExitInfo, LaunchSpec, StdioMode};
use agentd_kernel::grant::{self, Uses};
use agentd_orchestrator::unit::supervisor::{Action, End, Supervisor};
use agentd_orchestrator::unit::{Stdio, Unit, UnitName};
use agentd_storage::UnitRow;

use super::{Active, Context, Inner, Key, Owner, UnitChange, Units, public};
use crate::agents::agent::Command;
use crate::agents::{Agent, Caller};
use crate::daemon::Daemon;

/// Tells an agent what its start was for: `start`, `restart`, `task`, `schedule`, or `message TOPIC`.
const CAUSE_VARIABLE: &str = "AGENTD_TRIGGER";

impl Units {
    /// Starts a unit for `caller`, who must be whom it belongs to, with the caller's grants.
    ///
    /// # Errors
    /// When there is no such unit, it is another user's, or its first agent could not be launched.
    pub async fn start(
        &self,
        daemon: &Arc<Daemon>,
        caller: Caller,
        name: &str,
        spec: LaunchSpec,
        grants: Vec<OwnedFd>,
    ) -> Result<UnitStatus, Error> {
        for socket in &grants {
            let terms = grant::peek(socket.as_fd()).map_err(|e| {
                Error::InvalidArgument(format!("a path handed over is unusable: {e}"))
            })?;
            if terms.uses != Uses::Lasting {
                return Err(Error::InvalidArgument(format!(
                    "{} was granted for one launch; a unit is launched again when it restarts",
                    terms.dst.display()
                )));
            }
        }
        let (key, unit, uid) = self.find(&self.inner(), caller, name)?;
        if unit.name.is_template() {
            return Err(Error::InvalidArgument(format!(
                "{name} is a template; start an instance of it: agentctl agents start {name}INSTANCE"
            )));
        }
        if uid != caller.uid {
            return Err(Error::Denied(format!(
                "{name} belongs to uid {uid}, whose directories only that user can hand over; start it as that user"
            )));
        }
        self.identify(daemon, &key, None).await?;
        let context = Context {
            caller,
            spec,
            grants,
        };
        self.begin(daemon, &key, unit, uid, Some(context));
        self.write_wanted(daemon);
        self.settle(&key, |active| {
            use agentd_orchestrator::unit::supervisor::UnitState::{Starting, Stopping};
            !matches!(active.engine.state(), Starting | Stopping)
        })
        .await;
        let inner = self.inner();
        let failed = inner.active.get(&key).filter(|a| a.agents.is_empty());
        if let Some(End::LaunchFailed(why)) = failed.and_then(|a| a.last_end.clone()) {
            return Err(Error::LaunchFailed(why));
        }
        let (_, unit, uid) = self.find(&inner, caller, name)?;
        Ok(self.describe(&inner, key.0, &unit, uid))
    }

    /// Lets the engine of a unit start, under `context` if there is a new one.
    pub(super) fn begin(
        &self,
        daemon: &Arc<Daemon>,
        key: &Key,
        unit: Unit,
        uid: u32,
        context: Option<Context>,
    ) {
        let actions = {
            let mut inner = self.inner();
            let now = self.now();
            let active = inner
                .active
                .entry(key.clone())
                .or_insert_with(|| Active::new(unit.clone(), uid));
            if !active.removed {
                active.unit = unit;
            }
            if let Some(context) = context {
                active.context = Some(Arc::new(context));
            }
            active.last_end = None;
            active.engine.start(now)
        };
        for action in actions {
            self.perform(daemon, key, action);
        }
        self.changed(key);
    }

    /// Stops a unit; returns when nothing of its agents is left.
    ///
    /// # Errors
    /// When there is no such unit.
    pub async fn stop(
        &self,
        daemon: &Arc<Daemon>,
        caller: Caller,
        name: &str,
    ) -> Result<UnitStatus, Error> {
        let (key, unit, uid) = self.find(&self.inner(), caller, name)?;
        let actions = match self.inner().active.get_mut(&key) {
            Some(active) => active.engine.stop(),
            None => Vec::new(),
        };
        for action in actions {
            self.perform(daemon, &key, action);
        }
        self.changed(&key);
        self.write_wanted(daemon);
        self.settle(&key, |active| active.engine.is_empty()).await;
        let mut inner = self.inner();
        if inner.active.get(&key).is_some_and(|active| active.removed) {
            inner.active.remove(&key);
        }
        Ok(self.describe(&inner, key.0, &unit, uid))
    }

    /// Whether a unit is started with the daemon, from now on.
    ///
    /// # Errors
    /// When there is no such unit, or it cannot be kept.
    pub async fn set_enabled(
        &self,
        daemon: &Arc<Daemon>,
        caller: Caller,
        name: &str,
        enabled: bool,
    ) -> Result<UnitStatus, Error> {
        let (key, unit, uid) = self.find(&self.inner(), caller, name)?;
        if unit.name.is_template() {
            return Err(Error::InvalidArgument(format!(
                "{name} is a template; enable an instance of it: agentctl agents enable {name}INSTANCE"
            )));
        }
        self.identify(daemon, &key, Some(enabled)).await?;
        self.write_wanted(daemon);
        self.changed(&key);
        Ok(self.describe(&self.inner(), key.0, &unit, uid))
    }

    /// Sees to it that the unit has its UUID on record, and what was said of enabling it.
    async fn identify(
        &self,
        daemon: &Daemon,
        key: &Key,
        enabled: Option<bool>,
    ) -> Result<(), Error> {
        let row = {
            let inner = self.inner();
            let id = (key.0, key.1.as_str().to_owned());
            let known = inner.rows.get(&id);
            let stated = inner.sets.get(&key.0).and_then(|set| set.unit(&key.1).ok());
            let uuid = stated
                .and_then(|unit| unit.agent.uuid)
                .or_else(|| known.map(|row| row.uuid.clone()))
                .unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            let enabled = enabled.or(known.and_then(|row| row.enabled));
            if known.is_some_and(|row| row.uuid == uuid && row.enabled == enabled) {
                return Ok(());
            }
            UnitRow {
                owner: key.0.as_text(),
                name: id.1,
                uuid,
                enabled,
                changed_at_ms: agentd_storage::unix_ms(),
            }
        };
        daemon
            .store
            .keep_unit(row.clone())
            .await
            .map_err(|e| Error::Unavailable(format!("{} cannot be kept: {e}", key.1)))?;
        self.inner().rows.insert((key.0, row.name.clone()), row);
        Ok(())
    }

    /// Waits until `done`, or the unit is gone.
    async fn settle(&self, key: &Key, done: impl Fn(&Active) -> bool) {
        let mut changes = self.changes();
        loop {
            if self.inner().active.get(key).is_none_or(&done) {
                return;
            }
            // Missed changes are as good as seen ones: the state itself is looked at.
            if let Err(tokio::sync::broadcast::error::RecvError::Closed) = changes.recv().await {
                return;
            }
        }
    }

    /// Tells everybody who mirrors units, and whoever may lease from them.
    fn changed(&self, key: &Key) {
        let change = self
            .inner()
            .active
            .get(key)
            .map(|active| UnitChange::Changed {
                name: key.1.to_string(),
                uid: active.uid,
                state: public(active.engine.state()),
            });
        self.announce(change.unwrap_or(UnitChange::Reloaded));
        self.wake.notify_one();
    }

    /// Does one thing that an engine asked for, in the background.
    pub(super) fn perform(&self, daemon: &Arc<Daemon>, key: &Key, action: Action) {
        let (daemon, key) = (Arc::clone(daemon), key.clone());
        match action {
            Action::Launch { member } => {
                tokio::spawn(async move { daemon.units.launch(&daemon, key, member).await });
            }
            Action::Stop { member } => {
                let found = {
                    let inner = self.inner();
                    inner.active.get(&key).and_then(|active| {
                        Some((
                            Arc::clone(active.agents.get(&member)?),
                            active.unit.run.stop_grace,
                        ))
                    })
                };
                if let Some((agent, grace)) = found {
                    tokio::spawn(async move {
                        let stop = Command::Stop {
                            grace,
                            by: format!("its unit {}", key.1),
                        };
                        // One that has ended meanwhile needs no stopping; its watcher tells the engine.
                        if agent.command(stop).await.is_err() {
                            tracing::debug!(unit = %key.1, "its agent had ended already");
                        }
                    });
                }
            }
        }
    }

    async fn launch(&self, daemon: &Arc<Daemon>, key: Key, member: u32) {
        let prepared = {
            let mut inner = self.inner();
            let closed = inner.closed;
            inner.active.get_mut(&key).map(|active| {
                let cause = active.cause.remove(&member).unwrap_or_else(|| "start".to_owned());
                match &active.context {
                    _ if closed => Err("agentd is ending".to_owned()),
                    None => Err(format!(
                        "nobody has handed over its directories since agentd was started; `agentctl agents start {}` does",
                        key.1
                    )),
                    Some(context) => Ok((spec(&active.unit, member, &cause, &context.spec), Arc::clone(context))),
                }
            })
        };
        let launched = match prepared {
            None => return,
            Some(Err(why)) => Err(Error::LaunchFailed(why)),
            Some(Ok((spec, context))) => match copies(&context.grants) {
                Ok(grants) => daemon.launch(context.caller, spec, grants).await,
                Err(error) => Err(Error::LaunchFailed(format!(
                    "cannot copy its grants: {error}"
                ))),
            },
        };
        match launched {
            Ok(launched) => self.took_off(daemon, &key, member, launched.agent),
            Err(error) => {
                tracing::warn!(unit = %key.1, member, "not launched: {error}");
                self.ended(daemon, &key, member, End::LaunchFailed(error.text()));
            }
        }
    }

    /// An agent of the unit runs: the engine hears of it, and of its end.
    pub(super) fn took_off(&self, daemon: &Arc<Daemon>, key: &Key, member: u32, agent: Arc<Agent>) {
        let action = {
            let mut inner = self.inner();
            let now = self.now();
            inner.active.get_mut(key).and_then(|active| {
                active.agents.insert(member, Arc::clone(&agent));
                active.engine.running(member, now)
            })
        };
        let (watcher, watched) = (Arc::clone(daemon), key.clone());
        tokio::spawn(async move {
            let exit = agent.wait().await;
            watcher
                .units
                .ended(&watcher, &watched, member, end_of(&exit));
        });
        if let Some(action) = action {
            self.perform(daemon, key, action);
        }
        self.changed(key);
        daemon.fleet_changed.notify();
    }

    fn ended(&self, daemon: &Arc<Daemon>, key: &Key, member: u32, end: End) {
        let actions = {
            let mut inner = self.inner();
            let now = self.now();
            let Some(active) = inner.active.get_mut(key) else {
                return;
            };
            active.agents.remove(&member);
            active.cause.insert(member, "restart".to_owned());
            let actions = active.engine.ended(member, &end, now, random());
            active.last_end = Some(end);
            if let Some(failure) = super::why(active).filter(|_| active.engine.failure().is_some())
            {
                tracing::warn!(unit = %key.1, "{failure}");
            }
            actions
        };
        for action in actions {
            self.perform(daemon, key, action);
        }
        self.changed(key);
        daemon.fleet_changed.notify();
    }

    /// Wakes the engines at their times, until the daemon ends.
    pub async fn run(&self, daemon: &Arc<Daemon>) {
        loop {
            let next = {
                let inner = self.inner();
                inner
                    .active
                    .values()
                    .filter_map(|active| active.engine.next_deadline())
                    .min()
            };
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(self.epoch + at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.wake.notified() => continue,
            }
            let now = self.now();
            let mut actions = Vec::new();
            {
                let mut inner = self.inner();
                if inner.closed {
                    return;
                }
                for (key, active) in &mut inner.active {
                    let before = active.engine.next_restart();
                    for action in active.engine.tick(now) {
                        if let Action::Launch { member } = action
                            && before.is_none()
                        {
                            active.cause.insert(member, "schedule".to_owned());
                        }
                        actions.push((key.clone(), action));
                    }
                }
            }
            for (key, action) in actions {
                self.perform(daemon, &key, action);
                self.changed(&key);
            }
        }
    }

    /// Links an agent that outlived an earlier agentd to its unit again, as far as the unit is still known.
    pub fn adopted(&self, daemon: &Arc<Daemon>, agent: &Arc<Agent>, unit: &str) {
        let Ok(name) = UnitName::parse(unit) else {
            return;
        };
        let found = {
            let mut inner = self.inner();
            let now = self.now();
            let uid = agent.identity.uid;
            let owners = [Owner::User(uid), Owner::System];
            let unit = owners.into_iter().find_map(|owner| {
                let unit = inner.sets.get(&owner)?.unit(&name).ok()?;
                (self.uid_of(owner, &unit).ok()? == uid).then_some((owner, unit))
            });
            unit.map(|(owner, unit)| {
                let member = member_of(&unit, &agent.identity.name);
                let key = (owner, name.clone());
                let active = inner
                    .active
                    .entry(key.clone())
                    .or_insert_with(|| Active::new(unit, uid));
                active.engine.adopt(member, now);
                (key, member)
            })
        };
        match found {
            Some((key, member)) => self.took_off(daemon, &key, member, Arc::clone(agent)),
            None => {
                tracing::warn!(agent = %agent.identity, unit, "its unit is not known any more; it runs on without")
            }
        }
    }

    /// What agents of a unit run, for members of the pool that are wanted for `cause`.
    pub(super) fn demand(
        &self,
        daemon: &Arc<Daemon>,
        inner: &mut Inner,
        key: &Key,
        cause: String,
    ) -> Result<u32, String> {
        let uid = inner.active.get(key).map(|active| active.uid);
        let up: u32 = inner
            .active
            .values()
            .filter(|a| Some(a.uid) == uid)
            .map(|a| a.engine.up())
            .sum();
        let Some(active) = inner.active.get_mut(key) else {
            return Err(format!("{} is not started", key.1));
        };
        if up >= self.pool_ceiling && active.engine.up() > 0 {
            return Err(format!(
                "{up} agents of units run already, as many as `[units] pool_ceiling` allows"
            ));
        }
        let (member, action) = active
            .engine
            .demand()
            .map_err(|why| format!("{}: {why}", key.1))?;
        active.cause.insert(member, cause);
        self.perform_later(daemon, key, action);
        Ok(member)
    }

    /// As [`Self::perform`], for a caller that holds the lock: only launches come from a demand.
    fn perform_later(&self, daemon: &Arc<Daemon>, key: &Key, action: Action) {
        if let Action::Launch { member } = action {
            let (daemon, key) = (Arc::clone(daemon), key.clone());
            tokio::spawn(async move {
                daemon.units.changed(&key);
                daemon.units.launch(&daemon, key, member).await;
            });
        }
    }
}

impl Active {
    fn new(unit: Unit, uid: u32) -> Self {
        Self {
            engine: Supervisor::new(unit.rules()),
            unit,
            uid,
            context: None,
            agents: BTreeMap::new(),
            last_end: None,
            removed: false,
            cause: BTreeMap::new(),
        }
    }
}

/// The launch of one member: what the unit says, where only the caller knows `context`.
fn spec(unit: &Unit, member: u32, cause: &str, context: &LaunchSpec) -> LaunchSpec {
    let mut argv = unit.run.command.clone();
    if let Some(text) = &unit.run.system_prompt {
        argv.extend(["--append-system-prompt".to_owned(), text.clone()]);
    }
    let mut settings = unit.run.settings.clone();
    settings.push((format!("env.set.{CAUSE_VARIABLE}"), cause.to_owned()));
    let driver: Driver = unit.run.driver.parse().unwrap_or(Driver::None);
    LaunchSpec {
        exe: context.exe.clone(),
        policy: Some(unit.run.policy.clone()),
        policy_text: context.policy_text.clone(),
        policy_origin: context.policy_origin.clone(),
        workspace: context.workspace.clone(),
        name: Some(unit.agent_name(member)),
        driver: Some(driver),
        prompt: unit.run.prompt.clone(),
        stdio: (driver == Driver::None).then_some(match unit.run.stdio {
            Stdio::Pipes => StdioMode::Pipes,
            Stdio::Pty => StdioMode::Pty,
            Stdio::Null => StdioMode::Null,
        }),
        timeout_ms: unit
            .run
            .timeout
            .map(|t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX)),
        env: context.env.clone(),
        settings: Some(settings),
        home: context.home.clone(),
        user: context.user.clone(),
        detach: Some(true),
        unit: Some(unit.name.to_string()),
        subscriptions: Some(unit.subscriptions.clone()).filter(|s| !s.is_empty()),
        ..LaunchSpec::new(argv)
    }
}

/// The pool's number in an agent's name.
fn member_of(unit: &Unit, agent: &str) -> u32 {
    let number = agent
        .rsplit_once('.')
        .and_then(|(_, number)| number.parse().ok());
    number.filter(|n| unit.agent_name(*n) == agent).unwrap_or(1)
}

fn copies(grants: &[OwnedFd]) -> std::io::Result<Vec<OwnedFd>> {
    grants.iter().map(OwnedFd::try_clone).collect()
}

/// An exit, as the engine sees it.
fn end_of(exit: &ExitInfo) -> End {
    let text = || exit.text.clone().unwrap_or_else(|| exit.cause.to_string());
    match exit.cause {
        ExitCause::Exited => match exit.code {
            Some(0) => End::Clean,
            code => End::Code(code.unwrap_or(1)),
        },
        ExitCause::Signaled => End::Signal(exit.signal.unwrap_or(0)),
        ExitCause::TimedOut => End::TimedOut,
        // A conversation that broke down is nobody's wish.
        ExitCause::Stopped
            if exit
                .text
                .as_deref()
                .is_some_and(|t| t.starts_with("stopped by its driver")) =>
        {
            End::Lost
        }
        ExitCause::Stopped => End::Stopped,
        ExitCause::Limit => End::Limit,
        ExitCause::LaunchFailed | ExitCause::NotExecutable | ExitCause::NotFound => {
            End::LaunchFailed(text())
        }
        ExitCause::Lost => End::Lost,
    }
}

/// From 0 to 1. Without randomness, which no Linux lacks, the jitter is none.
fn random() -> f64 {
    let mut bytes = [0u8; 4];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::NONBLOCK) {
        Ok(4) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        _ => 0.5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_orchestrator::unit::{UnitFile, UnitSet};

    fn unit(text: &str) -> Unit {
        let file = UnitFile {
            place: "x.toml".into(),
            origin: "x.toml".into(),
            text: text.into(),
        };
        let set = UnitSet::load(&[file], 10).expect("loads");
        set.unit(&UnitName::parse("x").expect("a name"))
            .expect("is there")
    }

    #[test]
    fn a_launch_says_what_the_unit_says_and_takes_the_rest_from_the_caller() {
        let unit = unit(
            "[run]\ndriver = \"claude\"\nsystem_prompt = \"Be %n.\"\ntimeout = \"1h\"\n[pool]\nmax = 2\n[budget]\ntokens = 5\n\
             [bus]\nsubscriptions = [\"a.#\"]\n",
        );
        let context = LaunchSpec {
            home: Some("/home/a".into()),
            workspace: Some("/home/a/w".into()),
            prompt: Some("of the caller".into()),
            name: Some("of the caller".into()),
            ..LaunchSpec::new(vec!["of the caller".into()])
        };
        let spec = spec(&unit, 2, "task", &context);
        assert_eq!(spec.argv, ["claude", "--append-system-prompt", "Be x."]);
        assert_eq!(
            (spec.name.as_deref(), spec.unit.as_deref()),
            (Some("x.2"), Some("x"))
        );
        assert_eq!((spec.prompt, spec.home.as_deref()), (None, Some("/home/a")));
        assert_eq!(spec.timeout_ms, Some(3_600_000));
        let settings = spec.settings.expect("settings");
        assert!(settings.contains(&("limits.tokens".into(), "5".into())));
        assert!(settings.contains(&("env.set.AGENTD_TRIGGER".into(), "task".into())));
        assert_eq!(spec.subscriptions, Some(vec!["a.#".to_owned()]));
        assert_eq!(member_of(&unit, "x.2"), 2);
        assert_eq!(member_of(&unit, "x"), 1);
    }

    #[test]
    fn the_engine_learns_why_an_agent_ended() {
        let exit = |cause| ExitInfo::new(cause);
        assert_eq!(end_of(&exit(ExitCause::Stopped)), End::Stopped);
        let broken = exit(ExitCause::Stopped).because(
            ExitCause::Stopped,
            "stopped by its driver: it broke the protocol",
        );
        assert_eq!(end_of(&broken), End::Lost);
        assert_eq!(end_of(&ExitInfo::from_wait_status(7 << 8)), End::Code(7));
        assert_eq!(end_of(&ExitInfo::from_wait_status(9)), End::Signal(9));
    }

    #[test]
    fn a_unit_may_name_every_driver_there_is() {
        let words: Vec<&str> = Driver::ALL.iter().map(|d| d.as_str()).collect();
        assert_eq!(words, agentd_orchestrator::unit::DRIVERS);
    }

    #[test]
    fn draws_lie_between_zero_and_one() {
        assert!((0..64).map(|_| random()).all(|r| (0.0..=1.0).contains(&r)));
    }
}
