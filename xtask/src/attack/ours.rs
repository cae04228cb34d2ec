//! agentd under attack: a daemon of its own in root or user mode, and one `agentctl run` by an ordinary user.
//!
//! What the suite adds to the policy is on the command line: a folder for reading, and two denied files, so that there is
//! something to attack. Everything else is the policy as it is shipped, and its lines are asked of `agentctl policy show`.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::Runtime;
use super::suite::{Judgement, SOMEBODY, Subject, Suite};
use crate::lab::{Lab, Mode, Programs, Setup};

/// What the suite adds to any policy.
const ADDED: [&str; 3] = [
    "fs.read={shared}",
    "fs.deny=${workspace}/.env",
    "fs.deny=${workspace}/conf/secret.key",
];

/// The family that is also tried in a session that its time-out ends.
const LIFE: &str = "life";
/// That session's time-out: long enough for its few cases on a busy machine.
const TIME_OUT: &str = "20s";

/// Whose sandbox is attacked.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub policy: &'a str,
    pub mode: Mode,
    pub runtime: Runtime,
}

/// Starts a daemon, attacks it, ends it.
pub fn judge(
    suite: &Suite,
    programs: &Programs,
    target: Target<'_>,
    cases: &[String],
) -> Result<Judgement> {
    let as_root = rustix::process::geteuid().is_root();
    let setup = Setup {
        user: (as_root && target.mode == Mode::User).then_some(SOMEBODY),
        ..Setup::default()
    };
    // Where the ordinary user can execute them.
    let copies = tempfile::Builder::new()
        .prefix("agentd-attack-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir()
        .context("make a directory for the programs")?;
    for name in ["agentd", "agentctl", "agentd-broker"] {
        crate::somebody::place(&programs.path(name), &copies.path().join(name))?;
    }
    let lab = Lab::start(Programs::in_directory(copies.path())?, &setup)?;
    run(suite, &lab, target, None, cases)
}

/// Attacks a running daemon. With `place` the victims are raised there.
pub fn run(
    suite: &Suite,
    lab: &Lab,
    target: Target<'_>,
    place: Option<&Path>,
    cases: &[String],
) -> Result<Judgement> {
    let effective = lab.directory().join("attacked.json");
    let kind = format!("runtime.kind={}", target.runtime.name());
    let shown = lab.ask(&["policy", "show", target.policy, "--set", &kind])?;
    std::fs::write(&effective, shown.to_string())
        .with_context(|| format!("write {}", effective.display()))?;
    let mut judgement = session(suite, lab, (target, &effective), place, &[], cases)?;
    if cases.is_empty() {
        // Once more with an end from outside: a program that stays, and a time-out.
        let life = [LIFE.to_owned()];
        let time_out = ["--timeout", TIME_OUT];
        let ended = session(suite, lab, (target, &effective), place, &time_out, &life)?;
        judgement.merge(ended.labelled("@time-out"));
    }
    Ok(judgement)
}

/// One `agentctl run`. With a time-out the program inside does not end by itself.
fn session(
    suite: &Suite,
    lab: &Lab,
    (target, effective): (Target<'_>, &Path),
    place: Option<&Path>,
    time_out: &[&str],
    cases: &[String],
) -> Result<Judgement> {
    let runtime_dir = lab.directory().join("run");
    let mut command = vec![
        lab.program("agentctl").display().to_string(),
        "--runtime-dir".to_owned(),
        runtime_dir.display().to_string(),
    ];
    command.extend(["run", "-T", "--policy", target.policy].map(str::to_owned));
    command
        .extend(["--runtime", target.runtime.name(), "--workspace", "{work}"].map(str::to_owned));
    for line in ADDED {
        command.extend(["--set".to_owned(), line.to_owned()]);
    }
    command.extend(time_out.iter().map(|word| (*word).to_owned()));
    let inside = if time_out.is_empty() {
        "inside"
    } else {
        "hold"
    };
    command.extend(["--", "{program}", inside, "{scene}", "{cases}"].map(str::to_owned));
    suite.judge(&Subject {
        command,
        policy: Some(effective.to_owned()),
        mode: target.mode,
        runtime: target.runtime,
        runtime_dir: Some(runtime_dir),
        place: place.map(Path::to_owned),
        cases: cases.to_vec(),
    })
}
