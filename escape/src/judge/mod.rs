//! The host's verdict: raise the victims, run one session of the sandbox under test, look at what became of them.
//!
//! Runs outside, with the rights of whoever judges. A case escaped when its effect is there, whatever the inside says;
//! only where no effect can show outside does the inside's word count. A case that the session never came to is
//! unavailable, which is never a pass.

mod options;
mod session;

use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use options::Options;

use crate::case::{Case, Effect};
use crate::openings::{on_own_kernel, opened_by};
use crate::report::{Judgement, Line, Outcome, Verdict};
use crate::victims::{Ground, RaiseError, Victims};
use crate::{catalogue, scene};

/// How long after the session's end a sandbox may take to clean up after itself.
const SETTLING: Duration = Duration::from_secs(2);

#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error("the victims could not be raised")]
    Raise(#[from] RaiseError),
    #[error("the session {command} could not be run: {source}")]
    Session {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}: {problem}")]
    Input { what: String, problem: String },
}

pub fn judge(options: &Options) -> Result<Judgement, JudgeError> {
    let policy = options.policy()?;
    let own_kernel = policy.as_ref().is_some_and(on_own_kernel);
    let words = match own_kernel && options.only.is_empty() {
        true => all_but_exhausting(),
        false => options.only.clone(),
    };
    let only: Vec<&str> = words.iter().map(String::as_str).collect();
    let cases = catalogue::select(&only).map_err(|problem| JudgeError::Input {
        what: "--only".into(),
        problem,
    })?;
    let ground = Ground {
        uid: options.uid,
        place: options.place.clone(),
        runtime_dir: options.runtime_dir.clone(),
        program: program()?,
    };
    let victims = Victims::raise(&ground, &cases)?;
    let ended =
        session::run(options, &victims, &cases, &words).map_err(|source| JudgeError::Session {
            command: options.command.join(" "),
            source,
        })?;
    let line_of = |case: &Case| ended.lines.iter().find(|line| line.id == case.id);
    let verdicts: Vec<Verdict> = cases
        .iter()
        .map(|case| {
            let line = line_of(case);
            let mut verdict = verdict(case, line, &victims, &ended.how, own_kernel);
            if verdict.outcome == Outcome::Escaped {
                verdict.opened_by = policy
                    .as_ref()
                    .and_then(|policy| opened_by(case.opens, policy, options.mode));
                verdict.contained = case
                    .emulated
                    .filter(|_| own_kernel && verdict.opened_by.is_none())
                    .map(str::to_owned);
                if verdict.contained.is_some() {
                    verdict.outcome = Outcome::Contained;
                }
            }
            verdict
        })
        .collect();
    session::end_survivors(&victims.scene.mark);
    // A case with a session of its own may end that session, and an effect speaks for itself.
    let came_to = |(case, verdict): (&Case, &Verdict)| {
        may_end(case, own_kernel)
            || verdict.outcome != Outcome::Unavailable
            || line_of(case).is_some()
    };
    Ok(Judgement {
        suite: catalogue::digest(),
        whole: !verdicts.is_empty() && cases.iter().zip(&verdicts).all(came_to),
        verdicts,
        session: ended.how,
    })
}

/// This program, under a path that a session may be shown.
fn program() -> Result<PathBuf, JudgeError> {
    std::env::current_exe().map_err(|error| JudgeError::Input {
        what: "this program's own path".into(),
        problem: error.to_string(),
    })
}

/// A runtime with a kernel of its own may end with one of them, and then the rest would not be tried.
fn all_but_exhausting() -> Vec<String> {
    let all = catalogue::all().into_iter();
    all.filter(|case| case.exhausts)
        .map(|case| format!("-{}", case.id))
        .collect()
}

/// Whether a session may break off at a case and prove something by it.
fn may_end(case: &Case, own_kernel: bool) -> bool {
    case.alone || (case.exhausts && own_kernel)
}

fn verdict(
    case: &Case,
    line: Option<&Line>,
    victims: &Victims,
    session: &str,
    own_kernel: bool,
) -> Verdict {
    let (outcome, detail) = match lasting_effect(case, line, victims) {
        Some(harm) => (Outcome::Escaped, told(case, harm, line)),
        None => match line {
            None if may_end(case, own_kernel) => {
                (Outcome::Stopped, format!("no session: {session}"))
            }
            None => (
                Outcome::Unavailable,
                "the session ended before this case".into(),
            ),
            Some(line) if line.outcome == Outcome::Unavailable => {
                (Outcome::Unavailable, line.detail.clone())
            }
            Some(line) if line.outcome == Outcome::Escaped => {
                (Outcome::Stopped, format!("without effect: {}", line.detail))
            }
            Some(line) => (Outcome::Stopped, line.detail.clone()),
        },
    };
    Verdict {
        id: case.id.to_owned(),
        family: case.family.to_owned(),
        title: case.title.to_owned(),
        outcome,
        errno: line.and_then(|line| line.errno),
        detail,
        opened_by: None,
        contained: None,
    }
}

/// An effect that stays. Where the inside says that it was refused, what is there may be the sandbox's own place for the
/// name, which goes away with it: that may take a moment after the session's end.
fn lasting_effect(case: &Case, line: Option<&Line>, victims: &Victims) -> Option<String> {
    let refused = line.is_some_and(|line| line.outcome == Outcome::Stopped);
    let deadline = Instant::now() + SETTLING;
    loop {
        let harm = effect(case, line, victims)?;
        let settled = !refused || !matches!(case.effect, Effect::Workspace(_) | Effect::Home(_));
        if settled || Instant::now() > deadline {
            return Some(harm);
        }
        std::thread::sleep(SETTLING / 100);
    }
}

/// The harm, and what the inside said when it did not mean to do any.
fn told(case: &Case, harm: String, line: Option<&Line>) -> String {
    match line {
        Some(line) if line.outcome != Outcome::Escaped && case.effect != Effect::Inside => {
            format!("{harm}, though inside: {}", line.detail)
        }
        _ => harm,
    }
}

/// What shows that the attack succeeded.
fn effect(case: &Case, line: Option<&Line>, victims: &Victims) -> Option<String> {
    let escaped = line.filter(|line| line.outcome == Outcome::Escaped);
    let loot = line.and_then(|line| line.loot.as_deref());
    match case.effect {
        Effect::Inside => escaped.map(|line| line.detail.clone()),
        Effect::Secret => loot
            .is_some_and(|loot| loot.contains(&victims.secret))
            .then(|| "the secret was read".to_owned()),
        Effect::SameAs(path) => {
            let own = std::fs::read_to_string(path).ok()?;
            loot.is_some_and(|loot| !own.trim().is_empty() && loot.trim() == own.trim())
                .then(|| format!("the host's {path} was read"))
        }
        Effect::Outside | Effect::Shared | Effect::Workspace(_) | Effect::Home(_) => {
            victims.files.harm(case)
        }
        Effect::SetId => {
            use std::os::unix::fs::PermissionsExt;
            let found = std::fs::symlink_metadata(victims.files.own(case.id)).ok()?;
            let mode = found.permissions().mode() & 0o7777;
            (mode & 0o6000 != 0).then(|| format!("the file has mode {mode:o}"))
        }
        Effect::GivenAway => {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::symlink_metadata(victims.files.own(case.id)).ok()?;
            let owner = found.uid();
            (owner != victims.scene.uid).then(|| format!("the file belongs to uid {owner}"))
        }
        Effect::HostFile(folder) => {
            let path =
                std::path::Path::new(folder).join(format!("{}-{}", victims.scene.mark, case.id));
            let there = std::fs::symlink_metadata(&path).is_ok();
            if there {
                // What the session left on the host is removed; what fails shows as a leftover.
                std::fs::remove_file(&path).ok();
            }
            there.then(|| format!("{} is there", path.display()))
        }
        Effect::Heard => victims.servers.heard(case.id),
        Effect::Victim(hurt) => victims.process.harm(hurt),
        Effect::Lives => {
            let scene = scene::Scene {
                case: case.id.to_owned(),
                ..victims.scene.clone()
            };
            let living = session::living(&scene.process_mark());
            (!living.is_empty()).then(|| format!("alive after the session: {living:?}"))
        }
        Effect::Disk(bytes) => {
            use std::os::unix::fs::MetadataExt;
            let found = std::fs::metadata(victims.files.own(case.id)).ok()?;
            let used = found.blocks() * 512;
            (used >= bytes).then(|| format!("{used} bytes on disk"))
        }
        Effect::Names(names) => {
            let found = std::fs::read_dir(victims.files.own(case.id)).ok()?.count();
            (found as u64 >= names).then(|| format!("{found} names"))
        }
    }
}
