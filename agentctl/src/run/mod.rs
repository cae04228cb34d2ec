//! `agentctl run`: launch, stay with the program, return its exit code.
//!
//! What the agent may touch of the caller's is opened here, as the caller, and handed over as grants;
//! the daemon never opens a path that somebody typed. One round trip launches and attaches.

pub mod files;
pub mod grants;
pub mod links;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use agentd_api::{
    AttachOptions, Driver, ExitCause, ExitInfo, LaunchReply, LaunchSpec, ManagerProxy, StdioMode,
};
use agentd_kernel::grant::Uses;
use agentd_kernel::signals::SignalFd;
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyError, PolicyRef, RuntimeKind};
use serde_json::{Value, json};

use crate::comeback::come_back;
use crate::connect::{Daemon, find_socket};
use crate::failure::Failure;
use crate::output::{Out, stderr_line};
use crate::resolve::{Context, Door, Input, RunRequest, Stay, signal_name};
use crate::start::start_daemon;
use crate::terminal::session::{SIGNALS, SessionEnd, SessionOutcome, Streams};
use crate::terminal::{DetachKeys, Session, raw};
use crate::verbs::policy::sources;

/// Runs the request and returns the exit code.
pub async fn run(context: &Context, request: &RunRequest) -> Result<u8, Failure> {
    run_inner(context, request).await.map_err(Failure::of_run)
}

async fn run_inner(context: &Context, request: &RunRequest) -> Result<u8, Failure> {
    let mut settings = request.settings.clone();
    let mut policy = load_policy(context, request, &settings)?;
    if let Some(setting) = runtime(request, policy.as_ref())? {
        settings.push(setting);
        policy = load_policy(context, request, &settings)?;
    }
    let caller = grants::caller(context, request);
    if let Some(loaded) = &policy {
        let mut more = links::settings(loaded, &caller)?;
        if let Some(workspace) = request.workspace.path() {
            more.extend(files::settings(loaded, workspace)?);
        }
        if !more.is_empty() {
            settings.extend(more);
            policy = load_policy(context, request, &settings)?;
        }
    }
    let grants = grants::open_all(context, &caller, policy.as_ref(), Uses::Once)?;
    let mut spec = spec(context, request, &caller, policy.as_ref())?;
    if !settings.is_empty() {
        spec.settings = Some(settings);
    }
    let daemon = reach(context).await?;
    let manager = daemon.manager().await?;
    // From here on signals are for the program, even while it is being launched.
    let signals = match request.stay {
        Stay::Attached => {
            Some(SignalFd::new(SIGNALS).map_err(|e| Failure::local("can't watch signals", e))?)
        }
        Stay::Detached => None,
    };
    let (reply, early) = launch(&manager, &spec, grants, signals.as_ref(), request).await?;
    if policy.as_ref().is_some_and(|p| p.ssh.enabled) {
        forward_ssh_agent(&manager, &reply).await;
    }
    for line in reply.degradations.iter().flatten() {
        context.tell(&format!("weaker than the policy wishes: {line}"));
    }
    match signals {
        None => {
            print_detached(context, &reply)?;
            Ok(0)
        }
        Some(signals) => {
            let dir = &daemon.runtime_dir;
            stay(context, request, dir, reply, &signals, early).await
        }
    }
}

/// The setting for the runtime that was asked for, where it is not the policy's already: only one that is further from the
/// host's kernel.
fn runtime(
    request: &RunRequest,
    policy: Option<&EffectivePolicy>,
) -> Result<Option<(String, String)>, Failure> {
    const KEY: &str = "runtime.kind";
    let Some(wanted) = request.runtime else {
        return Ok(None);
    };
    match policy {
        Some(policy) if policy.runtime == wanted => Ok(None),
        Some(policy) if policy.runtime < wanted => Err(Failure::usage(
            format!("can't run under {wanted}"),
            format!(
                "the policy says {KEY} = \"{}\" ({}), and --runtime only ever makes a launch tighter",
                policy.runtime,
                policy.origin_of(KEY)
            ),
        )
        .try_next("leave --runtime out, or name another policy: agentctl policy list")),
        None if wanted == RuntimeKind::Native => Err(Failure::usage(
            format!("can't run under {wanted}"),
            "only the daemon knows this policy, and it may keep programs off the host's kernel",
        )
        .try_next("leave --runtime out")),
        _ => Ok(Some((KEY.to_owned(), wanted.name().to_owned()))),
    }
}

/// Hands the caller's ssh-agent over, as the policy says. Without one the agent goes without, and is told by every
/// request that fails.
async fn forward_ssh_agent(manager: &ManagerProxy<'_>, reply: &LaunchReply) {
    let Some(path) = std::env::var_os("SSH_AUTH_SOCK") else {
        return stderr_line(
            "agentctl: the policy forwards your ssh-agent, but SSH_AUTH_SOCK is not set",
        );
    };
    let connected = std::os::unix::net::UnixStream::connect(&path).map_err(|e| e.to_string());
    let handed = match &connected {
        Ok(stream) => {
            let id = reply.id.to_string();
            let handed = manager.forward_ssh_agent(&id, stream.as_fd().into()).await;
            handed.map_err(|e| e.text())
        }
        Err(error) => Err(error.clone()),
    };
    if let Err(error) = handed {
        stderr_line(&format!(
            "agentctl: your ssh-agent is not forwarded: {error}"
        ));
    }
}

/// A connection to the daemon that is there, or to one started now.
pub async fn reach(context: &Context) -> Result<Daemon, Failure> {
    if context.door == Door::SystemBus {
        return Daemon::over_bus().await;
    }
    let (stream, dir) = match find_socket(context) {
        Ok(found) => found,
        Err(failure) if failure.is_unreachable() => start_daemon(context)?,
        Err(failure) => return Err(failure),
    };
    Daemon::over(stream, dir).await
}

/// The policy as this side knows it, for what it wants opened. A name that only the daemon knows is
/// left to the daemon.
fn load_policy(
    context: &Context,
    request: &RunRequest,
    settings: &[(String, String)],
) -> Result<Option<EffectivePolicy>, Failure> {
    let sources = sources(context, settings);
    match EffectivePolicy::load(&request.policy, &sources) {
        Ok(policy) => Ok(Some(policy)),
        Err(PolicyError::NotFound { .. }) if matches!(request.policy, PolicyRef::Name(_)) => {
            Ok(None)
        }
        Err(e) => Err(crate::verbs::policy::failure(&request.policy, &e)),
    }
}

fn spec(
    context: &Context,
    request: &RunRequest,
    caller: &CallerContext,
    policy: Option<&EffectivePolicy>,
) -> Result<LaunchSpec, Failure> {
    let text = |what: &str, path: &std::path::Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            Failure::usage(
                format!("can't use {what} {}", path.display()),
                "it is not UTF-8",
            )
        })
    };
    let mut spec = LaunchSpec::new(request.argv.clone());
    match &request.policy {
        PolicyRef::Name(name) => spec.policy = Some(name.clone()),
        PolicyRef::Text { origin, text } => {
            spec.policy_text = Some(text.clone());
            spec.policy_origin = Some(origin.clone());
        }
    }
    spec.exe = caller
        .exe
        .as_deref()
        .map(|p| text("program", p))
        .transpose()?;
    spec.workspace = request
        .workspace
        .path()
        .map(|p| text("workspace", p))
        .transpose()?;
    spec.name = request.name.clone();
    spec.driver = Some(request.driver);
    spec.prompt = request.prompt.clone();
    spec.stdio = Some(request.stdio);
    if request.stdio == StdioMode::Pty {
        let (rows, cols) = raw::window(std::io::stdout()).unwrap_or((24, 80));
        spec.rows = Some(rows);
        spec.cols = Some(cols);
    }
    spec.timeout_ms = request.timeout.map(|t| t.as_millis() as u64);
    spec.env = Some(env(policy));
    spec.home = context
        .dirs
        .home
        .as_deref()
        .map(|p| text("HOME", p))
        .transpose()?;
    spec.user = std::env::var("USER").ok().filter(|u| !u.is_empty());
    spec.suite = request.suite.clone();
    spec.detach = Some(request.stay == Stay::Detached);
    spec.attach = Some(request.stay == Stay::Attached);
    Ok(spec)
}

/// What of our environment goes to the daemon: what the policy passes on. All else, keys above all,
/// stays here. Under a policy that only the daemon knows it is what describes the terminal.
pub fn env(policy: Option<&EffectivePolicy>) -> HashMap<String, String> {
    let terminal = ["TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ"];
    let passes = |name: &str| match policy {
        Some(policy) => policy.env.passes(name),
        None => terminal.contains(&name) || name.starts_with("LC_"),
    };
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| passes(name))
        .collect()
}

/// Calls Launch. A request to end that arrives meanwhile is kept for the program; a second gives up.
async fn launch(
    manager: &ManagerProxy<'_>,
    spec: &LaunchSpec,
    grants: Vec<OwnedFd>,
    signals: Option<&SignalFd>,
    request: &RunRequest,
) -> Result<(LaunchReply, Vec<i32>), Failure> {
    let fds = grants.iter().map(|g| g.as_fd().into()).collect();
    let what = || format!("can't run {:?}", request.argv[0]);
    let mut early = Vec::new();
    let call = manager.launch(spec, fds);
    let result = match signals {
        None => call.await,
        Some(signals) => {
            tokio::pin!(call);
            loop {
                let signo = tokio::select! {
                    biased;
                    result = &mut call => break result,
                    signo = asked_to_end(signals) => signo,
                };
                if !early.is_empty() {
                    let why = format!("given up by {} during the launch", signal_name(signo));
                    return Err(Failure::local(what(), why).try_next("agentctl ps"));
                }
                early.push(signo);
            }
        }
    };
    let result = result.map(|reply| (reply, early));
    result.map_err(|e| {
        let failure = Failure::api(what(), &e);
        match e.code() {
            agentd_api::ErrorCode::LaunchRefused | agentd_api::ErrorCode::LaunchFailed => {
                failure.try_next("agentctl doctor")
            }
            agentd_api::ErrorCode::InvalidPolicy => match &request.policy {
                PolicyRef::Name(_) => failure.try_next("agentctl policy list"),
                PolicyRef::Text { origin, .. } => {
                    failure.try_next(format!("agentctl policy lint {origin}"))
                }
            },
            agentd_api::ErrorCode::Exists => failure.try_next("agentctl ps"),
            agentd_api::ErrorCode::ProgramNotFound => {
                failure.try_next("agentctl policy show --plan, for what is visible inside")
            }
            _ => failure,
        }
    })
}

/// Resolves when somebody wants the launch, or the wait for a new agentd, to end.
async fn asked_to_end(signals: &SignalFd) -> i32 {
    use tokio::io::Interest;
    use tokio::io::unix::AsyncFd;
    #[expect(
        deprecated,
        reason = "its replacement is unsafe; a borrowed descriptor stays open for as long as it is borrowed"
    )]
    let Ok(readiness) = AsyncFd::with_interest(signals.as_fd(), Interest::READABLE) else {
        // Without it the launch can't be interrupted; it still ends by itself.
        return std::future::pending().await;
    };
    loop {
        let Ok(mut guard) = readiness.readable().await else {
            return std::future::pending().await;
        };
        while let Ok(Some(arrival)) = signals.try_next() {
            let signo = arrival.signo;
            if matches!(
                signo,
                libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT
            ) {
                return signo;
            }
        }
        guard.clear_ready();
    }
}

async fn stay(
    context: &Context,
    request: &RunRequest,
    runtime_dir: &Path,
    mut reply: LaunchReply,
    signals: &SignalFd,
    early: Vec<i32>,
) -> Result<u8, Failure> {
    let attach = reply.attach.take().ok_or_else(|| {
        Failure::local("can't follow the agent", "agentd gave no attach socket")
            .try_next(format!("agentctl attach {}", reply.name))
    })?;
    let id = reply.id.to_string();
    let attached = Attached {
        runtime_dir,
        id: &id,
        name: &reply.name,
        streams: match request.stdio {
            StdioMode::Pty => Streams::Pty,
            StdioMode::Pipes | StdioMode::Null => Streams::Pipes,
        },
        input: if request.driver == Driver::None {
            Input::Send
        } else {
            Input::Nothing
        },
        detach_keys: &request.detach_keys,
        signals,
    };
    let outcome = attached.stay(context, attach.into(), early).await?;
    let launched = launched_json(&reply);
    finish(context, &reply.name, launched, outcome)
}

/// Somebody who stays with an agent, also when agentd is restarted.
#[derive(Debug)]
pub struct Attached<'a> {
    /// Of the daemon whose successor would be looked for.
    pub runtime_dir: &'a Path,
    /// The agent's id, by which a successor knows it.
    pub id: &'a str,
    /// For people.
    pub name: &'a str,
    pub streams: Streams,
    pub input: Input,
    pub detach_keys: &'a DetachKeys,
    pub signals: &'a SignalFd,
}

impl Attached<'_> {
    /// Carries bytes until the agent has ended or the user has left. After a restart of agentd the output goes on behind
    /// the last byte that was written here.
    pub async fn stay(
        &self,
        context: &Context,
        mut socket: OwnedFd,
        mut early: Vec<i32>,
    ) -> Result<SessionOutcome, Failure> {
        let failed = |e: &dyn std::fmt::Display| {
            Failure::local(format!("can't stay attached to {}", self.name), e)
                .try_next(format!("agentctl attach {}", self.name))
        };
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let mut lost_bytes = 0;
        loop {
            let session = Session {
                socket,
                signals: self.signals,
                early: std::mem::take(&mut early),
                streams: self.streams,
                input: self.input,
                detach_keys: self.detach_keys,
                stdin: stdin.as_fd(),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
            };
            let outcome = session.run(&mut |text| stderr_line(&format!("agentctl: {text}")));
            let mut outcome = outcome.map_err(|e| failed(&e))?;
            outcome.lost_bytes += lost_bytes;
            let (SessionEnd::Lost, Some(offset)) = (&outcome.end, outcome.offset) else {
                return Ok(outcome);
            };
            lost_bytes = outcome.lost_bytes;
            let daemon = tokio::select! {
                daemon = come_back(context, self.runtime_dir) => daemon?,
                signo = asked_to_end(self.signals) => {
                    let why = format!("{} while waiting for agentd to come back", signal_name(signo));
                    return Err(failed(&why));
                }
            };
            let window = raw::window(&stdout).filter(|_| self.streams == Streams::Pty);
            let options = AttachOptions {
                stdin: Some(self.input == Input::Send),
                rows: window.map(|(rows, _)| rows.saturating_add(1)),
                cols: window.map(|(_, cols)| cols),
                from_offset: Some(offset),
                lossless: Some(true),
                ..AttachOptions::default()
            };
            let attached = daemon.agent(self.id).await?.attach(&options).await;
            socket = attached
                .map_err(|e| Failure::api(format!("can't attach to {}", self.name), &e))?
                .into();
        }
    }
}

/// Says how a session ended and gives the exit code. Shared with `attach`.
pub fn finish(
    context: &Context,
    name: &str,
    mut about: Value,
    outcome: SessionOutcome,
) -> Result<u8, Failure> {
    let say = |text: &str| {
        let before = if outcome.mid_line { "\n" } else { "" };
        stderr_line(&format!("{before}agentctl: {text}"));
    };
    if outcome.lost_bytes > 0 {
        say(&format!(
            "{} bytes of output were not read in time and are missing here; agentctl logs {name} has them",
            outcome.lost_bytes
        ));
    }
    let code = match &outcome.end {
        SessionEnd::Exited(info) => {
            about["exit"] = info.to_json();
            if !context.is_json()
                && let Some(line) = exit_line(info)
            {
                say(&line);
            }
            if outcome.broken_pipe && info.signal == Some(libc::SIGPIPE) {
                0
            } else {
                info.exit_code()
            }
        }
        SessionEnd::Detached => {
            about["detached"] = json!(true);
            if !context.is_json() {
                say(&format!(
                    "{name} runs on; come back with: agentctl attach {name}"
                ));
            }
            0
        }
        SessionEnd::Lost => {
            let failure = Failure::of_code(
                agentd_api::ErrorCode::Unreachable,
                format!("lost contact with {name}"),
                "agentd closed the connection before the program ended",
            );
            return Err(failure
                .try_next(format!("agentctl inspect {name}"))
                .of_run());
        }
    };
    if context.is_json() {
        stderr_line(&about.to_string());
    }
    Ok(code)
}

/// A line for ends that the program itself can't have explained.
fn exit_line(info: &ExitInfo) -> Option<String> {
    let text = info.text.as_deref();
    match info.cause {
        ExitCause::Exited => None,
        // As a shell does: nothing for what the user typed.
        ExitCause::Signaled => match info.signal {
            Some(libc::SIGINT | libc::SIGPIPE) | None => None,
            Some(signo) => Some(format!("the program was ended by {}", signal_name(signo))),
        },
        ExitCause::TimedOut => Some(format!(
            "time is up: {}",
            text.unwrap_or("the agent was ended")
        )),
        cause => Some(text.map_or_else(|| format!("the agent ended: {cause}"), str::to_owned)),
    }
}

fn launched_json(reply: &LaunchReply) -> Value {
    json!({
        "id": reply.id,
        "record": reply.id,
        "name": reply.name,
        "layers": reply.layers,
        "degradations": reply.degradations,
    })
}

fn print_detached(context: &Context, reply: &LaunchReply) -> Result<(), Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        return out.json(&launched_json(reply));
    }
    out.line(reply.id)?;
    out.flush()
}
