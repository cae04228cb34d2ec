//! From what was typed to what was meant: paths absolute, defaults chosen, times and signals parsed,
//! the terminal looked at. After this nothing depends on how it was typed.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentd_api::dirs::DirEnv;
use agentd_api::{Driver, StdioMode};
use agentd_sandbox::policy::read_policy_file;
use agentd_sandbox::{PolicyError, PolicyRef, RuntimeKind};

use crate::cli::units::{ConfigFileArgs, FromArg, LowConfigVerb, LowUnitsVerb};
use crate::cli::{LowArgs, LowVerb, RunArgs};
use crate::failure::Failure;
use crate::terminal::keys::DetachKeys;
use crate::verbs::config::{ConfigFiles, ConfigTask};
use crate::verbs::units::UnitsTask;
use crate::verbs::units::show::Origins;

/// What every verb knows.
#[derive(Debug, Clone)]
pub struct Context {
    pub dirs: DirEnv,
    /// `--runtime-dir`.
    pub runtime_dir: Option<PathBuf>,
    pub door: Door,
    pub format: Format,
    pub verbosity: Verbosity,
}

/// By which way the daemon is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The control socket of the first daemon that is there.
    Socket,
    /// `--bus`: the system bus.
    SystemBus,
}

/// For whom data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    People,
    Json,
}

/// Whether steps are told on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Quiet,
    Verbose,
}

impl Context {
    pub fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Tells a step, if asked to.
    pub fn tell(&self, text: &str) {
        if self.verbosity == Verbosity::Verbose {
            crate::output::stderr_line(&format!("agentctl: {text}"));
        }
    }
}

/// One resolved command line.
#[derive(Debug)]
pub struct Invocation {
    pub context: Context,
    pub task: Task,
}

/// What to do.
#[derive(Debug)]
pub enum Task {
    Run(Box<RunRequest>),
    Ps {
        which: Which,
        ids_only: bool,
    },
    Inspect {
        agent: String,
    },
    Logs {
        agent: String,
        follow: bool,
        tail: Option<u64>,
        since: Option<Duration>,
    },
    Attach {
        agent: String,
        input: Input,
        replay: Replay,
        detach_keys: DetachKeys,
    },
    Stop {
        agents: Vec<String>,
        grace: Duration,
    },
    Kill {
        agents: Vec<String>,
    },
    Signal {
        agent: String,
        signo: i32,
    },
    Wait {
        agent: String,
    },
    Records {
        limit: Option<usize>,
    },
    Approvals(crate::verbs::approvals::Task),
    Tasks(crate::verbs::tasks::Task),
    Control(crate::verbs::control::Task),
    Bus(crate::verbs::bus::Task),
    Bench(crate::verbs::bench::Task),
    Units(UnitsTask),
    Config(ConfigTask),
    Sched(crate::verbs::sched::Task),
    Upkeep(crate::verbs::upkeep::Task),
    Policy(crate::verbs::policy::Task),
    Audit(crate::verbs::audit::Task),
    Denials(crate::verbs::denials::Task),
    Selftest(crate::verbs::selftest::Task),
    Doctor,
    Version,
    Shutdown,
    Completions(clap_complete::Shell),
}

/// Which agents to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Live,
    All,
}

/// What somebody who attaches is shown of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// The latest output.
    Latest,
    Nothing,
}

/// What an attached terminal sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    Send,
    Nothing,
}

/// The directory an agent works in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Workspace {
    None,
    /// Absolute, without links.
    Dir(PathBuf),
}

impl Workspace {
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::None => None,
            Self::Dir(path) => Some(path),
        }
    }
}

/// Whether agentctl stays with the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    Attached,
    Detached,
}

/// One launch as it was meant.
#[derive(Debug)]
pub struct RunRequest {
    pub argv: Vec<String>,
    pub policy: PolicyRef,
    pub settings: Vec<(String, String)>,
    /// Asked for over the policy's.
    pub runtime: Option<RuntimeKind>,
    pub workspace: Workspace,
    pub name: Option<String>,
    pub timeout: Option<Duration>,
    pub driver: Driver,
    pub prompt: Option<String>,
    pub stdio: StdioMode,
    pub stay: Stay,
    pub detach_keys: DetachKeys,
    /// Digest of the escape suite, for the record.
    pub suite: Option<String>,
}

impl Invocation {
    /// Resolves against this process's environment, directory and terminal.
    pub fn resolve(low: LowArgs) -> Result<Self, Failure> {
        let context = Context {
            dirs: DirEnv::from_process(),
            runtime_dir: low.runtime_dir.map(absolute).transpose()?,
            door: if low.bus {
                Door::SystemBus
            } else {
                Door::Socket
            },
            format: if low.json {
                Format::Json
            } else {
                Format::People
            },
            verbosity: if low.verbose {
                Verbosity::Verbose
            } else {
                Verbosity::Quiet
            },
        };
        let task = resolve_task(low.verb, &context)?;
        Ok(Self { context, task })
    }
}

fn resolve_task(verb: LowVerb, context: &Context) -> Result<Task, Failure> {
    Ok(match verb {
        LowVerb::Run(args) => Task::Run(Box::new(resolve_run(args, context)?)),
        LowVerb::Ps(args) => Task::Ps {
            which: if args.all { Which::All } else { Which::Live },
            ids_only: args.quiet,
        },
        LowVerb::Inspect(a) => Task::Inspect { agent: a.agent },
        LowVerb::Logs(a) => Task::Logs {
            agent: a.agent.agent,
            follow: a.follow,
            tail: a.tail,
            since: a.since.map(|t| time("--since", &t)).transpose()?,
        },
        LowVerb::Attach(a) => Task::Attach {
            agent: a.agent.agent,
            input: if a.no_stdin {
                Input::Nothing
            } else {
                Input::Send
            },
            replay: if a.no_replay {
                Replay::Nothing
            } else {
                Replay::Latest
            },
            detach_keys: detach_keys(&a.detach_keys)?,
        },
        LowVerb::Stop(a) => Task::Stop {
            agents: a.agents.agents,
            grace: time("--grace", &a.grace)?,
        },
        LowVerb::Kill(a) => Task::Kill { agents: a.agents },
        LowVerb::Revoke(a) => Task::Control(crate::verbs::control::resolve_revoke(a)?),
        LowVerb::Tighten(a) => Task::Control(crate::verbs::control::resolve_tighten(a)?),
        LowVerb::Restore(a) => Task::Control(crate::verbs::control::resolve_restore(a)?),
        LowVerb::Freeze(a) => Task::Control(crate::verbs::control::freeze(a.agents)),
        LowVerb::Thaw(a) => Task::Control(crate::verbs::control::thaw(a.agents)),
        LowVerb::Signal(a) => Task::Signal {
            agent: a.agent.agent,
            signo: parse_signal(&a.signal).ok_or_else(|| {
                Failure::usage(
                    format!("can't send signal {:?}", a.signal),
                    "allowed: a name such as INT or SIGTERM, or a number from 1 to 64",
                )
            })?,
        },
        LowVerb::Wait(a) => Task::Wait { agent: a.agent },
        LowVerb::Records(a) => Task::Records { limit: a.limit },
        LowVerb::Tasks(a) => Task::Tasks(crate::verbs::tasks::resolve(a.verb)?),
        LowVerb::Bus(a) => Task::Bus(crate::verbs::bus::resolve(a.verb)?),
        LowVerb::Bench(a) => Task::Bench(crate::verbs::bench::resolve(a.verb)?),
        LowVerb::Selftest(a) => Task::Selftest(crate::verbs::selftest::resolve(a)?),
        LowVerb::Audit(a) => Task::Audit(crate::verbs::audit::resolve(a)?),
        LowVerb::Denials(a) => Task::Denials(crate::verbs::denials::resolve(a)),
        LowVerb::Sched(a) => Task::Sched(crate::verbs::sched::resolve(a)?),
        LowVerb::Prune(a) => Task::Upkeep(crate::verbs::upkeep::resolve_prune(a)?),
        LowVerb::Db(a) => Task::Upkeep(crate::verbs::upkeep::resolve_db(a)?),
        LowVerb::Approvals(a) => Task::Approvals(crate::verbs::approvals::resolve(a.verb)?),
        LowVerb::Agents(a) => Task::Units(resolve_units(a.verb)?),
        LowVerb::Config(a) => Task::Config(resolve_config(a.verb)?),
        LowVerb::Policy(a) => Task::Policy(crate::verbs::policy::resolve(a.verb, context)?),
        LowVerb::Doctor => Task::Doctor,
        LowVerb::Version => Task::Version,
        LowVerb::Shutdown => Task::Shutdown,
        LowVerb::Completions(a) => Task::Completions(a.shell),
    })
}

/// What a driver runs when no program is named.
fn own_program(driver: Driver) -> Option<&'static str> {
    match driver {
        Driver::Claude => Some("claude"),
        Driver::Codex => Some("codex"),
        Driver::None | Driver::Acp | Driver::Jsonl => None,
    }
}

fn resolve_units(verb: LowUnitsVerb) -> Result<UnitsTask, Failure> {
    let dir = |from: FromArg| from.from.map(absolute).transpose();
    Ok(match verb {
        LowUnitsVerb::List(a) => UnitsTask::List { from: dir(a)? },
        LowUnitsVerb::Show(a) => UnitsTask::Show {
            unit: a.unit,
            from: dir(a.from)?,
        },
        LowUnitsVerb::Cat(a) => UnitsTask::Cat {
            unit: a.unit,
            from: dir(a.from)?,
        },
        LowUnitsVerb::Start(a) => UnitsTask::Start {
            units: a.units.units,
            from: dir(a.from)?,
        },
        LowUnitsVerb::Stop(a) => UnitsTask::Stop { units: a.units },
        LowUnitsVerb::Restart(a) => UnitsTask::Restart {
            units: a.units.units,
            from: dir(a.from)?,
        },
        LowUnitsVerb::Enable(a) => UnitsTask::Enable {
            units: a.units.units.units,
            from: dir(a.units.from)?,
            start: a.now,
        },
        LowUnitsVerb::Disable(a) => UnitsTask::Disable {
            units: a.units.units,
            stop: a.now,
        },
        LowUnitsVerb::Logs(a) => UnitsTask::Logs {
            unit: a.unit,
            member: a.member,
            follow: a.follow,
            tail: a.tail,
        },
        LowUnitsVerb::Attach(a) => UnitsTask::Attach {
            unit: a.unit,
            member: a.member,
            input: if a.no_stdin {
                Input::Nothing
            } else {
                Input::Send
            },
            detach_keys: detach_keys(&a.detach_keys)?,
        },
        LowUnitsVerb::Reload(a) => UnitsTask::Reload { from: dir(a)? },
    })
}

fn resolve_config(verb: LowConfigVerb) -> Result<ConfigTask, Failure> {
    let files = |a: ConfigFileArgs| -> Result<ConfigFiles, Failure> {
        Ok(ConfigFiles {
            config: a.config.map(absolute).transpose()?,
            from: a.from.from.map(absolute).transpose()?,
        })
    };
    Ok(match verb {
        LowConfigVerb::Check(a) => ConfigTask::Check(files(a)?),
        LowConfigVerb::Show(a) => ConfigTask::Show {
            unit: a.unit,
            origins: if a.origin {
                Origins::Shown
            } else {
                Origins::Hidden
            },
            files: files(a.files)?,
        },
        LowConfigVerb::Diff(a) => ConfigTask::Diff(files(a)?),
    })
}

fn resolve_run(args: RunArgs, context: &Context) -> Result<RunRequest, Failure> {
    let driver: Driver = args
        .driver
        .parse()
        .map_err(|e| Failure::usage("can't run", e))?;
    let mut argv = args.command;
    if argv.is_empty()
        && let Some(program) = own_program(driver)
    {
        argv.push(program.to_owned());
    }
    if argv.is_empty() {
        return Err(
            Failure::usage("can't run", "no program is given").try_next("agentctl run -- claude")
        );
    }
    if args.prompt.is_some() && driver == Driver::None {
        return Err(Failure::usage(
            "can't pass --prompt",
            "without a driver nobody would hand it to the program",
        )
        .try_next("agentctl run --driver claude --prompt '…' -- claude"));
    }
    let on_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let wants_tty = args.tty || (on_terminal && !args.no_tty && !args.detach);
    let stdio = if wants_tty && driver == Driver::None {
        StdioMode::Pty
    } else {
        StdioMode::Pipes
    };
    let workspace = if args.no_workspace {
        Workspace::None
    } else {
        workspace(args.workspace.as_deref(), context)?
    };
    let mut settings = settings(&args.settings)?;
    settings.extend(env(&args.env)?);
    settings.extend(hidden(context, &workspace));
    Ok(RunRequest {
        argv,
        policy: policy_ref(&args.policy)?,
        settings,
        runtime: args.runtime.as_deref().and_then(runtime),
        workspace,
        name: args.name,
        timeout: args.timeout.map(|t| time("--timeout", &t)).transpose()?,
        driver,
        prompt: args.prompt,
        stdio,
        stay: if args.detach {
            Stay::Detached
        } else {
            Stay::Attached
        },
        detach_keys: detach_keys(&args.detach_keys)?,
        suite: args.suite,
    })
}

pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(&path).map_err(|e| Failure::usage(format!("can't use {path:?}"), e))
}

/// The workspace that was typed, or the current directory if that is no risk.
pub fn workspace(typed: Option<&Path>, context: &Context) -> Result<Workspace, Failure> {
    let named = typed.unwrap_or(Path::new("."));
    let path = named.canonicalize().map_err(|e| {
        Failure::usage(format!("can't use {} as workspace", named.display()), e)
            .try_next("agentctl run --workspace DIR, or --no-workspace")
    })?;
    let shown = path.display();
    if !path.is_dir() {
        return Err(Failure::usage(
            format!("can't use {shown} as workspace"),
            "it is not a directory",
        ));
    }
    if path == Path::new("/") {
        return Err(Failure::usage(
            "can't use / as workspace",
            "an agent never gets the whole file system",
        )
        .try_next("cd to the project, or name it with --workspace DIR; or --no-workspace"));
    }
    let home = context
        .dirs
        .home
        .as_deref()
        .and_then(|h| h.canonicalize().ok());
    if typed.is_none() && home.is_some_and(|home| home.starts_with(&path)) {
        return Err(Failure::usage(
            format!("can't use the current directory {shown} as workspace"),
            "it holds your home directory, with your keys and settings",
        )
        .try_next("cd to the project, or name it with --workspace DIR; or --no-workspace"));
    }
    Ok(Workspace::Dir(path))
}

/// Names hold letters, digits, `-` and `_`; everything else is a file, read here, as the caller.
pub(crate) fn policy_ref(typed: &str) -> Result<PolicyRef, Failure> {
    let is_file = typed.contains('/') || typed.ends_with(".toml");
    if !is_file {
        return Ok(PolicyRef::Name(typed.to_owned()));
    }
    match read_policy_file(Path::new(typed)) {
        Ok(text) => Ok(PolicyRef::Text {
            origin: typed.to_owned(),
            text,
        }),
        Err(PolicyError::Read { source, .. }) => Err(Failure::usage(
            format!("can't read policy file {typed}"),
            source,
        )
        .try_next("agentctl policy list")),
        Err(PolicyError::Untrusted {
            problem, remedy, ..
        }) => {
            let what = format!("can't use policy file {typed}");
            Err(Failure::usage(what, problem).try_next(remedy))
        }
        Err(e) => Err(Failure::usage(format!("can't use policy file {typed}"), e)),
    }
}

pub(crate) fn settings(typed: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |s: &String| match s.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Failure::usage(
            format!("can't set {s:?}"),
            "it must be KEY=VALUE, such as limits.memory=2GiB",
        )),
    };
    typed.iter().map(split).collect()
}

/// clap has refused every other name.
fn runtime(typed: &str) -> Option<RuntimeKind> {
    RuntimeKind::ALL
        .into_iter()
        .find(|kind| kind.name() == typed)
}

/// The daemon's own folders are no part of a workspace, even of one that holds them: through its socket an agent could
/// ask for anything.
fn hidden(context: &Context, workspace: &Workspace) -> Vec<(String, String)> {
    let mut dirs = vec![context.dirs.runtime_dir(context.runtime_dir.as_deref())];
    dirs.extend(context.dirs.state_dir(None));
    let dirs = dirs.into_iter().filter_map(|d| d.canonicalize().ok());
    dirs.filter(|d| workspace.path().is_some_and(|w| d != w && d.starts_with(w)))
        .filter_map(|d| Some(("fs.deny".to_owned(), d.to_str()?.to_owned())))
        .collect()
}

/// `--env` is a setting of the policy: what is named by hand gets in, whatever else is passed on.
fn env(typed: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let mut settings = Vec::new();
    for item in typed {
        let (name, value) = match item.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => match std::env::var(item) {
                Ok(value) => (item.clone(), value),
                // As docker does: a name that is not set here is not set there.
                Err(std::env::VarError::NotPresent) => continue,
                Err(e) => return Err(Failure::usage(format!("can't pass {item}"), e)),
            },
        };
        settings.push((format!("env.set.{name}"), value));
    }
    Ok(settings)
}

fn detach_keys(typed: &str) -> Result<DetachKeys, Failure> {
    typed
        .parse()
        .map_err(|e| Failure::usage("can't use --detach-keys", e))
}

pub fn time(option: &str, typed: &str) -> Result<Duration, Failure> {
    parse_time(typed).ok_or_else(|| {
        Failure::usage(
            format!("can't use {option} {typed:?}"),
            "allowed: seconds, or numbers with ms, s, m, h or d: 90, 500ms, 30m, 1h30m",
        )
    })
}

/// `90`, `500ms`, `30m`, `1h30m`; more than nothing, less than a thousand years.
pub fn parse_time(typed: &str) -> Option<Duration> {
    const LIMIT_MS: u64 = 1000 * 365 * 24 * 3600 * 1000;
    let mut rest = typed;
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = rest.get(..digits)?.parse().ok()?;
        rest = &rest[digits..];
        let letters = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let unit_ms = match &rest[..letters] {
            "" if digits == typed.len() => 1000,
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        rest = &rest[letters..];
        total_ms = total_ms.checked_add(number.checked_mul(unit_ms)?)?;
    }
    (1..=LIMIT_MS)
        .contains(&total_ms)
        .then(|| Duration::from_millis(total_ms))
}

/// `INT`, `sigint`, `2`.
pub fn parse_signal(typed: &str) -> Option<i32> {
    if let Ok(number) = typed.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = typed.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = SIGNALS.iter().find(|(_, n)| *n == name);
    known.map(|(number, _)| *number)
}

/// `SIGINT`, or the number.
pub fn signal_name(signo: i32) -> String {
    let known = SIGNALS.iter().find(|(number, _)| *number == signo);
    known.map_or_else(
        || format!("signal {signo}"),
        |(_, name)| format!("SIG{name}"),
    )
}

const SIGNALS: &[(i32, &str)] = &[
    (libc::SIGHUP, "HUP"),
    (libc::SIGINT, "INT"),
    (libc::SIGQUIT, "QUIT"),
    (libc::SIGILL, "ILL"),
    (libc::SIGTRAP, "TRAP"),
    (libc::SIGABRT, "ABRT"),
    (libc::SIGBUS, "BUS"),
    (libc::SIGFPE, "FPE"),
    (libc::SIGKILL, "KILL"),
    (libc::SIGUSR1, "USR1"),
    (libc::SIGSEGV, "SEGV"),
    (libc::SIGUSR2, "USR2"),
    (libc::SIGPIPE, "PIPE"),
    (libc::SIGALRM, "ALRM"),
    (libc::SIGTERM, "TERM"),
    (libc::SIGCHLD, "CHLD"),
    (libc::SIGCONT, "CONT"),
    (libc::SIGSTOP, "STOP"),
    (libc::SIGTSTP, "TSTP"),
    (libc::SIGTTIN, "TTIN"),
    (libc::SIGTTOU, "TTOU"),
    (libc::SIGURG, "URG"),
    (libc::SIGXCPU, "XCPU"),
    (libc::SIGXFSZ, "XFSZ"),
    (libc::SIGVTALRM, "VTALRM"),
    (libc::SIGPROF, "PROF"),
    (libc::SIGWINCH, "WINCH"),
    (libc::SIGIO, "IO"),
    (libc::SIGPWR, "PWR"),
    (libc::SIGSYS, "SYS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_people_write_them() {
        let ms = |t| parse_time(t).map(|d| d.as_millis());
        assert_eq!(ms("90"), Some(90_000));
        assert_eq!(ms("500ms"), Some(500));
        assert_eq!(ms("1h30m"), Some(5_400_000));
        assert_eq!(ms("2d"), Some(172_800_000));
        for wrong in [
            "",
            "0",
            "0s",
            "s",
            "1x",
            "1.5h",
            "-1",
            "1h30",
            "99999999999999999999s",
            "5é",
        ] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn signals_by_name_and_number() {
        assert_eq!(parse_signal("INT"), Some(2));
        assert_eq!(parse_signal("sigterm"), Some(15));
        assert_eq!(parse_signal("9"), Some(9));
        assert_eq!(parse_signal("0"), None);
        assert_eq!(parse_signal("65"), None);
        assert_eq!(parse_signal("FOO"), None);
        assert_eq!(signal_name(2), "SIGINT");
        assert_eq!(signal_name(40), "signal 40");
    }

    #[test]
    fn a_workspace_that_would_hand_over_the_home_must_be_typed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let home = dir.path().join("home");
        std::fs::create_dir(&home).expect("mkdir");
        let context = Context {
            dirs: DirEnv {
                home: Some(home.clone()),
                ..DirEnv::default()
            },
            runtime_dir: None,
            door: Door::Socket,
            format: Format::People,
            verbosity: Verbosity::Quiet,
        };
        let typed = workspace(Some(&home), &context).expect("typed on purpose");
        assert_eq!(
            typed.path(),
            Some(home.canonicalize().expect("exists").as_path())
        );
        let err = workspace(Some(Path::new("/")), &context).expect_err("never");
        assert!(err.to_string().contains("whole file system"), "{err}");
        let err = workspace(Some(Path::new("/no/such")), &context).expect_err("missing");
        assert_eq!(err.exit_code(), 2);
    }
}
