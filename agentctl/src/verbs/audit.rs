//! `audit`: whether the record is as agentd wrote it.
//!
//! Verifying is done by `agentd --verify-record`, started as the caller: the daemon's program knows the record, and
//! a running daemon is not asked to judge itself, only where its record is. Heads and keys come from the daemon where
//! one runs, and from its files otherwise.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use agentd_api::upkeep::AuditHead;
use serde::Deserialize;
use serde_json::Value;

use super::inspect::moment;
use super::upkeep::{daemon_runs, offline, upkeep};
use crate::cli::audit::{AuditArgs, LowAuditVerb, VerifyArgs};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, Style, grouped};
use crate::resolve::Context;

/// What was meant.
#[derive(Debug)]
pub enum Task {
    Verify {
        state_dir: Option<PathBuf>,
        file: Option<PathBuf>,
        key: Option<OsString>,
        head: Option<String>,
        known: Vec<i64>,
    },
    Head {
        state_dir: Option<PathBuf>,
    },
    Key {
        state_dir: Option<PathBuf>,
    },
}

pub fn resolve(args: AuditArgs) -> Result<Task, Failure> {
    let absolute = |path: PathBuf| crate::resolve::absolute(path);
    let state_dir = args.state_dir.map(absolute).transpose()?;
    Ok(match args.verb {
        LowAuditVerb::Head => Task::Head { state_dir },
        LowAuditVerb::Key => Task::Key { state_dir },
        LowAuditVerb::Verify(VerifyArgs {
            file,
            key,
            head,
            known,
        }) => Task::Verify {
            state_dir,
            file: file.map(absolute).transpose()?,
            key: key.map(key_or_file).transpose()?,
            // As `head > file` leaves it.
            head: head.map(|head| head.trim().to_owned()),
            known,
        },
    })
}

/// Hex digits as they are; anything else is a file, whose path has a slash once it is absolute.
fn key_or_file(typed: String) -> Result<OsString, Failure> {
    const DIGITS: usize = 64;
    if typed.len() == DIGITS && typed.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(typed.into());
    }
    crate::resolve::absolute(typed.into()).map(PathBuf::into_os_string)
}

pub async fn run(context: &Context, task: Task) -> Result<u8, Failure> {
    match task {
        Task::Head { state_dir } => {
            let head = head(context, state_dir.as_deref()).await?;
            print(context, &head, &head.head)
        }
        Task::Key { state_dir } => {
            let head = head(context, state_dir.as_deref()).await?;
            print(context, &head, &head.key)
        }
        Task::Verify {
            mut state_dir,
            file,
            key,
            head: noted,
            known,
        } => {
            if file.is_none() && daemon_runs(context, state_dir.as_deref()) {
                let record = PathBuf::from(head(context, None).await?.record);
                state_dir = record.parent().map(Path::to_owned);
            }
            let mut args: Vec<OsString> = vec!["--verify-record".into()];
            let mut add = |name: &str, value: OsString| args.extend([name.into(), value]);
            if let Some(file) = file {
                add("--record", file.into());
            }
            if let Some(key) = key {
                add("--public-key", key);
            }
            if let Some(noted) = noted {
                add("--noted-head", noted.into());
            }
            for note in known {
                add("--known-note", note.to_string().into());
            }
            let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
            let text = offline(context, state_dir.as_deref(), &args)?;
            report(context, &text)
        }
    }
}

/// The head and the key, of the daemon or of its files.
async fn head(context: &Context, state_dir: Option<&Path>) -> Result<AuditHead, Failure> {
    if daemon_runs(context, state_dir) {
        let daemon = Daemon::connect(context).await?;
        let head = upkeep(&daemon).await?.audit_head().await;
        return head.map_err(|e| Failure::api("can't ask for the record's head", &e));
    }
    /// As `agentd --record-head` prints it.
    #[derive(Deserialize)]
    struct Document {
        record: String,
        key: String,
        head: String,
        at_ms: i64,
    }
    let text = offline(context, state_dir, &["--record-head".as_ref()])?;
    let it: Document = serde_json::from_str(&text).map_err(unreadable)?;
    Ok(AuditHead {
        record: it.record,
        key: it.key,
        head: it.head,
        at_ms: it.at_ms,
    })
}

fn unreadable(error: serde_json::Error) -> Failure {
    Failure::local("can't read the verdict of agentd", error)
        .try_next("install agentctl and agentd of the same version")
}

fn print(context: &Context, head: &AuditHead, text: &str) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&head.to_json())?;
    } else {
        out.line(text)?;
    }
    out.flush()?;
    Ok(0)
}

/// What of a verdict people are shown.
#[derive(Debug, Deserialize)]
struct Verdict {
    ok: bool,
    record: PathBuf,
    key: String,
    head: Option<String>,
    head_at_ms: Option<i64>,
    entries: u64,
    heads: u64,
    rows: u64,
    forgotten: Vec<Folded>,
    notes: Vec<Note>,
    noted_found: Option<bool>,
    findings: Vec<Finding>,
    found: u64,
}

#[derive(Debug, Deserialize)]
struct Folded {
    first: u64,
    last: u64,
}

#[derive(Debug, Deserialize)]
struct Note {
    seq: i64,
    at_ms: i64,
    kind: String,
    detail: String,
}

#[derive(Debug, Deserialize)]
struct Finding {
    entry: Option<u64>,
    kind: String,
    text: String,
}

fn report(context: &Context, text: &str) -> Result<u8, Failure> {
    let document: Value = serde_json::from_str(text).map_err(unreadable)?;
    let verdict: Verdict = serde_json::from_value(document.clone()).map_err(unreadable)?;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&document)?;
    } else {
        show(&verdict, &mut out)?;
        out.flush()?;
    }
    Ok(u8::from(!verdict.ok))
}

fn show(verdict: &Verdict, out: &mut Out) -> Result<(), Failure> {
    out.line(format!("record   {}", verdict.record.display()))?;
    out.line(format!("key      {}", verdict.key))?;
    if let (Some(head), Some(at_ms)) = (&verdict.head, verdict.head_at_ms) {
        out.line(format!("head     {head}"))?;
        out.line(format!("written  {}", moment(at_ms)))?;
    }
    let forgotten: u64 = verdict
        .forgotten
        .iter()
        .map(|it| (it.last + 1).saturating_sub(it.first))
        .sum();
    out.line(format!(
        "read     {} entries, {} signed heads, {} rows; {} entries forgotten, in {} checkpoints",
        grouped(verdict.entries),
        grouped(verdict.heads),
        grouped(verdict.rows),
        grouped(forgotten),
        grouped(verdict.forgotten.len() as u64),
    ))?;
    for note in verdict.notes.iter().filter(|it| it.kind != "forgot") {
        out.line(format!(
            "note     {}, {}: {}: {}",
            note.seq,
            moment(note.at_ms),
            note.kind,
            note.detail
        ))?;
    }
    for finding in &verdict.findings {
        let place = match finding.entry {
            Some(entry) => format!("entry {entry}"),
            None => "no entry".to_owned(),
        };
        let kind = out.colour.paint(Style::Bad, &finding.kind);
        out.line(format!("{place:<14} {kind}: {}", finding.text))?;
    }
    let told = verdict.findings.len() as u64;
    if verdict.found > told {
        out.line(format!("and {} more", grouped(verdict.found - told)))?;
    }
    match (verdict.ok, verdict.noted_found) {
        (true, Some(_)) => out.line("ok: nothing was changed since the noted head, or at all"),
        (true, None) => out.line("ok: nothing was changed"),
        (false, _) => out.line("the record is not as agentd wrote it"),
    }
}
