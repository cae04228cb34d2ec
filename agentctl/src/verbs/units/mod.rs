//! `agents …`: units over the daemon that runs.
//!
//! Whatever the caller's rights are needed for is done here, as the caller: reading the unit files, opening workspaces.
//! They go to the daemon as open files and as lasting grants, which serve every restart.

pub mod files;
pub mod show;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use agentd_api::units::{UnitState, UnitStatus};
use agentd_api::{Error, ErrorCode, LaunchSpec, UnitsProxy};
use agentd_kernel::grant::Uses;
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyError, PolicyRef};
use serde_json::{Value, json};

use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, print_failure, stderr_line};
use crate::resolve::{Context, Input, workspace};
use crate::run::grants;
use crate::terminal::DetachKeys;
use crate::verbs::policy::{own_folder, sources};

/// What to do with units.
#[derive(Debug)]
pub enum UnitsTask {
    List {
        from: Option<PathBuf>,
    },
    Show {
        unit: String,
        from: Option<PathBuf>,
    },
    Cat {
        unit: String,
        from: Option<PathBuf>,
    },
    Start {
        units: Vec<String>,
        from: Option<PathBuf>,
    },
    Stop {
        units: Vec<String>,
    },
    Restart {
        units: Vec<String>,
        from: Option<PathBuf>,
    },
    Enable {
        units: Vec<String>,
        from: Option<PathBuf>,
        start: bool,
    },
    Disable {
        units: Vec<String>,
        stop: bool,
    },
    Logs {
        unit: String,
        member: Option<u32>,
        follow: bool,
        tail: Option<u64>,
    },
    Attach {
        unit: String,
        member: Option<u32>,
        input: Input,
        detach_keys: DetachKeys,
    },
    Reload {
        from: Option<PathBuf>,
    },
}

/// Does one of them.
pub async fn perform(context: &Context, task: UnitsTask) -> Result<u8, Failure> {
    match task {
        UnitsTask::Logs {
            unit,
            member,
            follow,
            tail,
        } => {
            let agent = agent_of(context, &unit, member).await?;
            return super::logs::logs(context, &agent, follow, tail, None).await;
        }
        UnitsTask::Attach {
            unit,
            member,
            input,
            detach_keys,
        } => {
            let agent = agent_of(context, &unit, member).await?;
            return super::agents::attach(
                context,
                &agent,
                input,
                crate::resolve::Replay::Latest,
                &detach_keys,
            )
            .await;
        }
        _ => {}
    }
    let starts = matches!(
        task,
        UnitsTask::Start { .. } | UnitsTask::Restart { .. } | UnitsTask::Enable { .. }
    );
    let daemon = if starts {
        crate::run::reach(context).await?
    } else {
        Daemon::connect(context).await?
    };
    let units = Client {
        context,
        proxy: proxy(&daemon).await?,
    };
    match task {
        UnitsTask::List { from } => units.list(from.as_deref()).await,
        UnitsTask::Show { unit, from } => {
            let document = units.document(&unit, from.as_deref()).await?;
            show::show(context, &document)
        }
        UnitsTask::Cat { unit, from } => {
            let document = units.document(&unit, from.as_deref()).await?;
            show::cat(context, &document)
        }
        UnitsTask::Start { units: names, from } => {
            units.hand_over(from.as_deref()).await?;
            units.each(&names, Verb::Start).await
        }
        UnitsTask::Restart { units: names, from } => {
            units.hand_over(from.as_deref()).await?;
            units.each(&names, Verb::Restart).await
        }
        UnitsTask::Stop { units: names } => units.each(&names, Verb::Stop).await,
        UnitsTask::Enable {
            units: names,
            from,
            start,
        } => {
            units.hand_over(from.as_deref()).await?;
            units.each(&names, Verb::Enable { start }).await
        }
        UnitsTask::Disable { units: names, stop } => {
            units.each(&names, Verb::Disable { stop }).await
        }
        UnitsTask::Reload { from } => units.reload(from.as_deref()).await,
        UnitsTask::Logs { .. } | UnitsTask::Attach { .. } => unreachable!("done above"),
    }
}

/// The proxy of the units of `daemon`.
pub async fn proxy(daemon: &Daemon) -> Result<UnitsProxy<'_>, Failure> {
    UnitsProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't talk with agentd about units", &e.into()))
}

/// The agent of a unit: one that lives, or the last one of that name.
async fn agent_of(context: &Context, unit: &str, member: Option<u32>) -> Result<String, Failure> {
    let daemon = Daemon::connect(context).await?;
    let status = proxy(&daemon).await?.status(unit).await;
    let status = status.map_err(|e| failed(format!("can't find unit {unit:?}"), &e))?;
    let wanted = |number: &u32| member.is_none_or(|m| m == *number);
    if let Some((_, _, id)) = status.agents.iter().find(|(number, _, _)| wanted(number)) {
        return Ok(id.clone());
    }
    // None lives: the name finds the one that ended last.
    let document = proxy(&daemon).await?.show(unit).await;
    let document = document.map_err(|e| failed(format!("can't find unit {unit:?}"), &e))?;
    let document: Value = parse(&document)?;
    let named = show::value_of(&document, "agent.name").unwrap_or_else(|| unit.to_owned());
    Ok(if status.max == 1 {
        named
    } else {
        format!("{named}.{}", member.unwrap_or(1))
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Start,
    Restart,
    Stop,
    Enable { start: bool },
    Disable { stop: bool },
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Restart => "restart",
            Self::Stop => "stop",
            Self::Enable { .. } => "enable",
            Self::Disable { .. } => "disable",
        }
    }
}

struct Client<'a> {
    context: &'a Context,
    proxy: UnitsProxy<'a>,
}

impl Client<'_> {
    /// Hands over the units in `dir`, if one was named.
    async fn hand_over(&self, dir: Option<&Path>) -> Result<(), Failure> {
        match dir {
            Some(dir) => self.load(dir).await.map(drop),
            None => Ok(()),
        }
    }

    /// Hands over every unit in `dir` in place of the caller's earlier ones.
    async fn load(&self, dir: &Path) -> Result<Value, Failure> {
        let opened = files::open(dir)?;
        self.context.tell(&format!(
            "handing over {} files of {}",
            opened.len(),
            dir.display()
        ));
        let places = opened
            .iter()
            .map(|f| (f.unit.place.clone(), f.unit.origin.clone()))
            .collect();
        let fds = opened.iter().map(|f| f.file.as_fd().into()).collect();
        let diff = self.proxy.load(places, fds).await.map_err(|e| {
            Failure::api(format!("the units in {} were not taken", dir.display()), &e)
                .try_next(format!("agentctl config check --from {}", dir.display()))
        })?;
        parse(&diff)
    }

    /// Everything about a unit. One that the daemon does not know yet may be in the caller's own directory.
    async fn document(&self, unit: &str, from: Option<&Path>) -> Result<Value, Failure> {
        self.hand_over(from).await?;
        let what = || format!("can't find unit {unit:?}");
        let document = match self.proxy.show(unit).await {
            Err(e) if e.code() == ErrorCode::NotFound && from.is_none() => {
                match files::own_dir(self.context).filter(|dir| dir.is_dir()) {
                    Some(dir) => {
                        self.load(&dir).await?;
                        self.proxy.show(unit).await
                    }
                    None => Err(e),
                }
            }
            other => other,
        };
        parse(&document.map_err(|e| failed(what(), &e))?)
    }

    async fn list(&self, from: Option<&Path>) -> Result<u8, Failure> {
        self.hand_over(from).await?;
        let list = self
            .proxy
            .list()
            .await
            .map_err(|e| Failure::api("can't list units", &e))?;
        let overview = self
            .proxy
            .overview()
            .await
            .map_err(|e| Failure::api("can't list units", &e))?;
        let overview = parse(&overview)?;
        if let Some(trouble) = overview["trouble"].as_str() {
            stderr_line(&format!(
                "agentctl: the system's units are not as their files say:\n{trouble}"
            ));
        }
        show::list(self.context, &list)
    }

    async fn reload(&self, from: Option<&Path>) -> Result<u8, Failure> {
        let own = from
            .map(Path::to_owned)
            .or_else(|| files::own_dir(self.context));
        let mut report = serde_json::Map::new();
        if let Some(dir) = own.filter(|dir| from.is_some() || dir.is_dir()) {
            report.insert("own".into(), self.load(&dir).await?);
        }
        match self.proxy.reload().await {
            Ok(diff) => {
                report.insert("system".into(), parse(&diff)?);
            }
            // The system's units are not an ordinary user's to reload.
            Err(e) if e.code() == ErrorCode::Denied && !report.is_empty() => {}
            Err(e) => {
                return Err(Failure::api("the system's units stay as they were", &e)
                    .try_next("agentctl config check"));
            }
        }
        show::reloaded(self.context, &Value::Object(report))
    }

    /// Does `verb` to each unit: what became of each on stdout, each failure on stderr.
    async fn each(&self, names: &[String], verb: Verb) -> Result<u8, Failure> {
        let mut out = Out::stdout();
        let (mut done, mut last_failure): (Vec<UnitStatus>, Option<Failure>) = (Vec::new(), None);
        for name in names {
            match self.one(name, verb).await {
                Ok(status) if self.context.is_json() => done.push(status),
                Ok(status) => {
                    show::line(&mut out, &status)?;
                    out.flush()?;
                }
                Err(failure) => {
                    if let Some(earlier) = last_failure.replace(failure) {
                        print_failure(&earlier, self.context.is_json());
                    }
                }
            }
        }
        if self.context.is_json() && (last_failure.is_none() || !done.is_empty()) {
            let units: Vec<Value> = done.iter().map(UnitStatus::to_json).collect();
            out.json(&json!({ "units": units }))?;
        }
        match last_failure {
            None => Ok(0),
            Some(failure) => Err(failure),
        }
    }

    async fn one(&self, name: &str, verb: Verb) -> Result<UnitStatus, Failure> {
        let what = || format!("can't {} unit {name:?}", verb.word());
        let api = |e: Error| failed(what(), &e);
        match verb {
            Verb::Start => self.start(name).await,
            Verb::Restart => {
                self.proxy.stop(name).await.map_err(api)?;
                self.start(name).await
            }
            Verb::Stop => self.proxy.stop(name).await.map_err(api),
            Verb::Enable { start } => {
                self.document(name, None).await?;
                let enabled = self.proxy.set_enabled(name, true).await.map_err(api)?;
                if start {
                    self.start(name).await
                } else {
                    Ok(enabled)
                }
            }
            Verb::Disable { stop } => {
                let disabled = self.proxy.set_enabled(name, false).await.map_err(api)?;
                if stop {
                    self.proxy.stop(name).await.map_err(api)
                } else {
                    Ok(disabled)
                }
            }
        }
    }

    /// Opens what the unit's policy wants, as the caller, and starts it.
    async fn start(&self, name: &str) -> Result<UnitStatus, Failure> {
        let document = self.document(name, None).await?;
        let launch = &document["launch"];
        let what = || format!("can't start unit {name:?}");
        if launch["template"] == true {
            return Err(
                Failure::usage(what(), "it is a template: start an instance of it")
                    .try_next(format!("agentctl agents start {name}INSTANCE")),
            );
        }
        let settings: Vec<(String, String)> = serde_json::from_value(launch["settings"].clone())
            .map_err(|e| Failure::local(what(), e))?;
        let policy_name = launch["policy"].as_str().unwrap_or("coding").to_owned();
        let own_text = own_policy(self.context, &policy_name);
        let reference = match &own_text {
            Some((origin, text)) => PolicyRef::Text {
                origin: origin.clone(),
                text: text.clone(),
            },
            None => PolicyRef::Name(policy_name),
        };
        let policy = match EffectivePolicy::load(&reference, &sources(self.context, &settings)) {
            Ok(policy) => Some(policy),
            Err(PolicyError::NotFound { .. }) => None,
            Err(e) => return Err(crate::verbs::policy::failure(&reference, &e)),
        };
        let dir = match launch["workspace"].as_str() {
            None => None,
            Some(text) => {
                let path = match (text.strip_prefix("~/"), &self.context.dirs.home) {
                    (Some(rest), Some(home)) => home.join(rest),
                    _ => PathBuf::from(text),
                };
                workspace(Some(&path), self.context)?
                    .path()
                    .map(Path::to_owned)
            }
        };
        let caller = CallerContext {
            home: self.context.dirs.home.clone(),
            workspace: dir,
            exe: launch["program"].as_str().and_then(grants::find_program),
            keep: Vec::new(),
        };
        let grants = grants::open_all(self.context, &caller, policy.as_ref(), Uses::Lasting)?;
        let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
        let spec = LaunchSpec {
            exe: text(&caller.exe),
            policy_text: own_text.as_ref().map(|(_, text)| text.clone()),
            policy_origin: own_text.map(|(origin, _)| origin),
            workspace: text(&caller.workspace),
            home: text(&caller.home),
            user: std::env::var("USER").ok().filter(|u| !u.is_empty()),
            env: Some(crate::run::env(policy.as_ref())),
            ..LaunchSpec::new(Vec::new())
        };
        let fds = grants.iter().map(|g: &OwnedFd| g.as_fd().into()).collect();
        let status = self
            .proxy
            .start(name, &spec, fds)
            .await
            .map_err(|e| failed(what(), &e))?;
        match (&status.why, status.state) {
            (Some(why), UnitState::Failed) => {
                Err(Failure::of_code(ErrorCode::LaunchFailed, what(), why)
                    .try_next(format!("agentctl agents logs {name}")))
            }
            _ => Ok(status),
        }
    }
}

/// A policy in the caller's own folder, which the daemon does not read.
fn own_policy(context: &Context, name: &str) -> Option<(String, String)> {
    let path = own_folder(context)?.join(format!("{name}.toml"));
    let text = std::fs::read_to_string(&path).ok()?;
    Some((path.display().to_string(), text))
}

fn failed(what: String, error: &Error) -> Failure {
    let failure = Failure::api(what, error);
    match error.code() {
        ErrorCode::NotFound => failure.try_next("agentctl agents list"),
        _ => failure,
    }
}

/// A JSON document of the daemon.
pub fn parse(text: &str) -> Result<Value, Failure> {
    serde_json::from_str(text).map_err(|e| Failure::local("can't read agentd's answer", e))
}
