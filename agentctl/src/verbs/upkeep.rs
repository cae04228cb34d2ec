//! `prune` and `db`: keeping what agentd has written small and whole.
//!
//! The daemon does the work where one runs. Without one, `db` starts `agentd` for this one task: only the daemon's
//! program knows how to read the record.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentd_api::upkeep::PruneOptions;
use agentd_api::{ErrorCode, UpkeepProxy};
use serde_json::json;

use crate::cli::upkeep::{DbArgs, LowDbVerb, PruneArgs};
use crate::connect::{Daemon, find_socket};
use crate::failure::Failure;
use crate::output::Out;
use crate::resolve::Context;
use crate::start::find_program;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    Prune {
        options: PruneOptions,
        ask: Ask,
    },
    Check {
        state_dir: Option<PathBuf>,
    },
    Backup {
        state_dir: Option<PathBuf>,
        file: PathBuf,
    },
    Recover {
        state_dir: Option<PathBuf>,
    },
}

/// Whether the user is asked before something is gone for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    Yes,
    No,
}

pub fn resolve_prune(args: PruneArgs) -> Result<Task, Failure> {
    let older_than = crate::resolve::time("--older-than", &args.older_than)?;
    Ok(Task::Prune {
        options: PruneOptions {
            older_than_ms: u64::try_from(older_than.as_millis()).ok(),
            keep: Some(args.keep),
            dry_run: Some(args.dry_run),
        },
        ask: if args.yes || args.dry_run {
            Ask::No
        } else {
            Ask::Yes
        },
    })
}

pub fn resolve_db(args: DbArgs) -> Result<Task, Failure> {
    let absolute = |path: PathBuf| crate::resolve::absolute(path);
    let state_dir = args.state_dir.map(absolute).transpose()?;
    Ok(match args.verb {
        LowDbVerb::Check => Task::Check { state_dir },
        LowDbVerb::Backup(a) => Task::Backup {
            state_dir,
            file: absolute(a.file)?,
        },
        LowDbVerb::Recover => Task::Recover { state_dir },
    })
}

pub async fn run(context: &Context, task: Task) -> Result<u8, Failure> {
    match task {
        Task::Prune { options, ask } => prune(context, options, ask).await,
        Task::Check { state_dir } => check(context, state_dir.as_deref()).await,
        Task::Backup { state_dir, file } => backup(context, state_dir.as_deref(), &file).await,
        Task::Recover { state_dir } => recover(context, state_dir.as_deref()),
    }
}

pub(super) async fn upkeep(daemon: &Daemon) -> Result<UpkeepProxy<'_>, Failure> {
    UpkeepProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't talk with agentd", &e.into()))
}

async fn prune(context: &Context, options: PruneOptions, ask: Ask) -> Result<u8, Failure> {
    let failed = |e: agentd_api::Error| Failure::api("can't prune", &e);
    let daemon = Daemon::connect(context).await?;
    let proxy = upkeep(&daemon).await?;
    if ask == Ask::Yes {
        if !io::stdin().is_terminal() {
            return Err(Failure::usage(
                "can't prune",
                "there is nobody to ask; say --yes, or look first with --dry-run",
            ));
        }
        let dry_run = PruneOptions {
            dry_run: Some(true),
            ..options.clone()
        };
        let would = proxy.prune(&dry_run).await.map_err(failed)?;
        if would.ids.is_empty() {
            return report(context, &would, "forgot");
        }
        eprint!(
            "agentctl: forget {} launches and {} bytes of output for ever? [y/N] ",
            would.ids.len(),
            would.log_bytes
        );
        let local = |e| Failure::local("can't ask", e);
        io::stderr().flush().map_err(local)?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map_err(local)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            eprintln!("agentctl: nothing was forgotten");
            return Ok(1);
        }
    }
    let pruned = proxy.prune(&options).await.map_err(failed)?;
    let verb = if options.dry_run == Some(true) {
        "would forget"
    } else {
        "forgot"
    };
    report(context, &pruned, verb)
}

fn report(
    context: &Context,
    pruned: &agentd_api::upkeep::Pruned,
    verb: &str,
) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&pruned.to_json())?;
        return Ok(0);
    }
    for (id, name) in pruned.ids.iter().zip(&pruned.names) {
        out.line(format_args!("{id} {name}"))?;
    }
    out.flush()?;
    crate::output::stderr_line(&format!(
        "agentctl: {verb} {} launches and {} bytes of output",
        pruned.ids.len(),
        pruned.log_bytes
    ));
    Ok(0)
}

/// Whether a daemon is there to ask; with a state directory of somebody's own, that is what is meant.
pub(super) fn daemon_runs(context: &Context, state_dir: Option<&Path>) -> bool {
    state_dir.is_none() && find_socket(context).is_ok()
}

async fn check(context: &Context, state_dir: Option<&Path>) -> Result<u8, Failure> {
    let result = if daemon_runs(context, state_dir) {
        let daemon = Daemon::connect(context).await?;
        let checked = upkeep(&daemon).await?.check_record().await;
        checked.map_err(|e| damaged(&e.text()))?
    } else {
        offline(context, state_dir, &["--check-record".as_ref()])?
    };
    if result.trim() != "ok" {
        return Err(damaged(&result));
    }
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "record": "ok" }))?;
    } else {
        out.line("ok")?;
    }
    out.flush()?;
    Ok(0)
}

fn damaged(why: &str) -> Failure {
    Failure::of_code(ErrorCode::Internal, "the record is damaged", why)
        .try_next("agentctl shutdown; agentctl db recover")
}

async fn backup(context: &Context, state_dir: Option<&Path>, file: &Path) -> Result<u8, Failure> {
    let what = || format!("can't write {}", file.display());
    let mut to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .map_err(|e| Failure::local(what(), e))?;
    let copied = async {
        if daemon_runs(context, state_dir) {
            let daemon = Daemon::connect(context).await?;
            let copy = upkeep(&daemon).await?.backup_record().await;
            let copy = copy.map_err(|e| Failure::api("can't copy the record", &e))?;
            io::copy(&mut File::from(OwnedFd::from(copy)), &mut to)
                .and_then(|_bytes| to.sync_all())
                .map_err(|e| Failure::local(what(), e))
        } else {
            let args = ["--backup-record".as_ref(), file.as_os_str()];
            offline(context, state_dir, &args).map(drop)
        }
    };
    if let Err(failure) = copied.await {
        // What is there is no copy.
        std::fs::remove_file(file).map_err(|e| Failure::local(what(), e))?;
        return Err(failure);
    }
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "backup": file }))?;
    } else {
        out.line(file.display())?;
    }
    out.flush()?;
    Ok(0)
}

fn recover(context: &Context, state_dir: Option<&Path>) -> Result<u8, Failure> {
    if daemon_runs(context, state_dir) {
        return Err(Failure::of_code(
            ErrorCode::Unavailable,
            "can't recover the record",
            "agentd runs and has it open",
        )
        .try_next("agentctl shutdown; agentctl db recover"));
    }
    let report = offline(context, state_dir, &["--recover-record".as_ref()])?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "recovered": report.lines().collect::<Vec<_>>() }))?;
    } else {
        out.line(report.trim_end())?;
    }
    out.flush()?;
    Ok(0)
}

/// Has `agentd` do one task on a record that no daemon has open; what it printed.
pub(super) fn offline(
    context: &Context,
    state_dir: Option<&Path>,
    args: &[&std::ffi::OsStr],
) -> Result<String, Failure> {
    let what = "can't work on the record";
    let state_dir = context
        .dirs
        .state_dir(state_dir)
        .map_err(|e| Failure::local(what, io::Error::other(e)))?;
    let output = Command::new(find_program()?)
        .arg("--state-dir")
        .arg(state_dir)
        .args(args)
        .output()
        .map_err(|e| Failure::local(what, e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("agentd: ").to_owned();
    Err(Failure::of_code(ErrorCode::Unavailable, what, &said))
}
