//! `selftest`: the shipped escape suite against a throw-away launch under a policy, on this host, now.
//!
//! `agentd-escape judge` raises the victims, starts one `agentctl run`, and judges by what became of them; this verb gives
//! it the command line and the effective policy, and tells what it found. Whose program ran is on record: the SHA-256 of
//! the suite's program goes into the launch. As root the session runs as an ordinary user. What is made for it lies in one
//! temporary directory. Nothing here decides what counts as an escape.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentd_api::DaemonMode;
use agentd_sandbox::PolicyRef;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::cli::selftest::SelftestArgs;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table};
use crate::resolve::Context;
use crate::run::reach;

const PROGRAM: &str = "agentd-escape";
/// Stands in for root where nobody is named: a uid that no distribution hands out. Not `nobody`'s, which is also what the
/// kernel says of uids that it can't show.
const SOMEBODY: u32 = 61_234;
/// What the suite needs from any policy: something to read only, and something hidden inside the workspace.
const ADDED: [&str; 3] = [
    "fs.read={shared}",
    "fs.deny=${workspace}/.env",
    "fs.deny=${workspace}/conf/secret.key",
];

const WHAT: &str = "can't test the sandbox";

/// What was meant.
#[derive(Debug)]
pub struct Task {
    policy: String,
    cases: Vec<String>,
    user: Option<u32>,
}

pub fn resolve(args: SelftestArgs) -> Result<Task, Failure> {
    // Files are named from another directory later.
    let policy = match crate::resolve::policy_ref(&args.policy)? {
        PolicyRef::Name(name) => name,
        PolicyRef::Text { .. } => {
            let path = crate::resolve::absolute(PathBuf::from(&args.policy))?;
            path.display().to_string()
        }
    };
    Ok(Task {
        policy,
        cases: args.cases,
        user: args.user,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Stopped,
    Escaped,
    /// Done by the runtime's own kernel, in user space, and nothing of the host's was reached.
    Contained,
    Unavailable,
}

#[derive(Debug, Deserialize, Serialize)]
struct Verdict {
    id: String,
    family: String,
    title: String,
    outcome: Outcome,
    detail: String,
    opened_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contained: Option<String>,
}

/// What `agentd-escape judge` prints.
#[derive(Debug, Deserialize)]
struct Judgement {
    suite: String,
    verdicts: Vec<Verdict>,
    whole: bool,
    session: String,
}

/// What of the launch's record belongs into the report.
#[derive(Debug, Deserialize, Serialize)]
struct Launched {
    id: String,
    policy_hash: String,
    kernel: String,
    mode: String,
    #[serde(default)]
    layers: Vec<String>,
    landlock_abi: Option<u32>,
    #[serde(default)]
    degradations: Vec<Value>,
}

#[derive(Debug, Default, Serialize)]
struct Family {
    family: String,
    stopped: usize,
    opened: usize,
    escaped: usize,
    contained: usize,
    unavailable: usize,
}

/// The document of `--json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    policy: &'a str,
    /// SHA-256 of the suite's program, as in the launch's record.
    suite: &'a str,
    /// The catalogue's own digest.
    catalogue: &'a str,
    launch: Option<&'a Launched>,
    session: &'a str,
    whole: bool,
    families: Vec<Family>,
    opened: Vec<&'a Verdict>,
    escaped: Vec<&'a Verdict>,
    contained: Vec<&'a Verdict>,
    unavailable: Vec<&'a Verdict>,
}

pub async fn run(context: &Context, task: &Task) -> Result<u8, Failure> {
    let program = find()?;
    let daemon = reach(context).await?;
    let manager = daemon.manager().await?;
    let info = manager.ping().await;
    let info = info.map_err(|e| Failure::api(WHAT, &e))?;
    let own = std::env::current_exe().map_err(|e| Failure::local(WHAT, e))?;
    let place = place(context)?;
    // Where any sandbox may be shown it and any user may execute it.
    let suite = place.path().join(PROGRAM);
    let digest = copy(&program, &suite)?;
    let effective = place.path().join("policy.json");
    show_policy(&own, &task.policy, &effective)?;

    let name = format!("selftest-{}", std::process::id());
    let mut command = Command::new(&suite);
    command.arg("judge").arg("--place").arg(place.path());
    command.arg("--policy").arg(&effective);
    let mode = match info.mode {
        DaemonMode::Root => "root",
        DaemonMode::User => "user",
    };
    command.args(["--mode", mode, "--runtime-dir"]);
    command.arg(&daemon.runtime_dir);
    if context.dirs.uid == 0 {
        let user = task.user.or_else(sudo_uid).unwrap_or(SOMEBODY);
        command.args(["--user", &user.to_string()]);
    }
    if !task.cases.is_empty() {
        command.args(["--only", &task.cases.join(",")]);
    }
    command.arg("--").arg(&own).arg("--runtime-dir");
    command.arg(&daemon.runtime_dir);
    command.args(["run", "-T", "--policy", &task.policy, "--name", &name]);
    command.args(["--suite", &digest, "--workspace", "{work}"]);
    for line in ADDED {
        command.args(["--set", line]);
    }
    command.args(["--", "{program}", "inside", "{scene}", "{cases}"]);
    let judgement = judge(command)?;

    // Without a record the launch never began; the session's own words say why.
    let launched = manager.record(&name).await.ok();
    let launched: Option<Launched> = launched
        .map(|text| serde_json::from_str(&text))
        .transpose()
        .map_err(|e| Failure::local(WHAT, e))?;
    report(context, task, &digest, &judgement, launched.as_ref())
}

/// Next to agentctl, or where programs for programs are installed.
fn find() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let beside = own.and_then(|exe| exe.parent().map(Path::to_owned));
    let places = beside
        .iter()
        .flat_map(|dir| [dir.clone(), dir.join("../libexec/agentd")])
        .chain([PathBuf::from("/usr/libexec/agentd")]);
    let found = places.map(|dir| dir.join(PROGRAM)).find(|it| it.is_file());
    found.ok_or_else(|| {
        Failure::local(
            WHAT,
            format!("no program `{PROGRAM}` next to agentctl, in ../libexec/agentd or in /usr/libexec/agentd"),
        )
        .try_next("cargo xtask install, or build it beside agentctl: cargo build -p agentd-escape")
    })
}

fn sudo_uid() -> Option<u32> {
    std::env::var("SUDO_UID").ok()?.parse().ok()
}

/// Not below /tmp, which sandboxes replace: a victim there would be out of reach by accident.
fn place(context: &Context) -> Result<tempfile::TempDir, Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let parent = match (&context.dirs.home, context.dirs.uid) {
        (Some(home), 1..) => home.clone(),
        _ => PathBuf::from("/var/lib"),
    };
    tempfile::Builder::new()
        .prefix("agentd-selftest-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(&parent)
        .map_err(|e| Failure::local(format!("can't make a directory in {}", parent.display()), e))
}

/// Copies the suite; the SHA-256 of what will run.
fn copy(program: &Path, to: &Path) -> Result<String, Failure> {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |e| Failure::local(format!("can't copy {}", program.display()), e);
    let bytes = std::fs::read(program).map_err(failed)?;
    std::fs::write(to, &bytes).map_err(failed)?;
    std::fs::set_permissions(to, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    let digest = Sha256::digest(&bytes);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The effective policy with its lines, which say what is open on purpose.
fn show_policy(own: &Path, policy: &str, to: &Path) -> Result<(), Failure> {
    let output = Command::new(own)
        .args(["--json", "policy", "show", policy])
        .output()
        .map_err(|e| Failure::local(WHAT, e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::local(WHAT, said.trim().to_owned())
            .try_next(format!("agentctl policy lint {policy}")));
    }
    std::fs::write(to, &output.stdout).map_err(|e| Failure::local(WHAT, e))
}

fn judge(mut command: Command) -> Result<Judgement, Failure> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .map_err(|e| Failure::local(WHAT, e))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(Failure::local(WHAT, said.trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| {
        Failure::local("can't read what the suite found", e)
            .try_next("install agentctl and agentd-escape of the same version")
    })
}

fn report(
    context: &Context,
    task: &Task,
    digest: &str,
    judgement: &Judgement,
    launched: Option<&Launched>,
) -> Result<u8, Failure> {
    let of = |outcome, opened: bool| -> Vec<&Verdict> {
        let verdicts = judgement.verdicts.iter();
        verdicts
            .filter(|it| it.outcome == outcome && it.opened_by.is_some() == opened)
            .collect()
    };
    let escaped = of(Outcome::Escaped, false);
    let report = Report {
        ok: judgement.whole && escaped.is_empty(),
        policy: &task.policy,
        suite: digest,
        catalogue: &judgement.suite,
        launch: launched,
        session: &judgement.session,
        whole: judgement.whole,
        families: families(&judgement.verdicts),
        opened: of(Outcome::Escaped, true),
        escaped,
        contained: of(Outcome::Contained, false),
        unavailable: of(Outcome::Unavailable, false),
    };
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!(report))?;
    } else {
        show(&report, &mut out)?;
    }
    out.flush()?;
    Ok(u8::from(!report.ok))
}

fn families(verdicts: &[Verdict]) -> Vec<Family> {
    let mut families: BTreeMap<&str, Family> = BTreeMap::new();
    for verdict in verdicts {
        let family = families.entry(&verdict.family).or_default();
        family.family.clone_from(&verdict.family);
        *match (verdict.outcome, &verdict.opened_by) {
            (Outcome::Stopped, _) => &mut family.stopped,
            (Outcome::Contained, _) => &mut family.contained,
            (Outcome::Unavailable, _) => &mut family.unavailable,
            (Outcome::Escaped, Some(_)) => &mut family.opened,
            (Outcome::Escaped, None) => &mut family.escaped,
        } += 1;
    }
    families.into_values().collect()
}

fn show(report: &Report<'_>, out: &mut Out) -> Result<(), Failure> {
    let mut table = Table::new(&["FAMILY", "STOPPED", "OPENED", "ESCAPED", "NOT HERE"]);
    let number = |n: usize| match n {
        0 => "-".to_owned(),
        n => n.to_string(),
    };
    for family in &report.families {
        let escaped = match family.escaped {
            0 => "-".into(),
            n => Cell::styled(Style::Bad, n.to_string()),
        };
        table.row(vec![
            family.family.clone().into(),
            number(family.stopped).into(),
            number(family.opened).into(),
            escaped,
            number(family.unavailable).into(),
        ]);
    }
    table.print(out)?;
    for verdict in &report.opened {
        let by = verdict.opened_by.as_deref().unwrap_or_default();
        out.line(format!("opened   {}: {} ({by})", verdict.id, verdict.title))?;
    }
    for verdict in &report.escaped {
        let word = out.colour.paint(Style::Bad, "ESCAPED");
        out.line(format!(
            "{word}  {}: {}: {}",
            verdict.id, verdict.title, verdict.detail
        ))?;
    }
    for verdict in &report.contained {
        let why = verdict.contained.as_deref().unwrap_or_default();
        out.line(format!(
            "contained {}: {} ({why})",
            verdict.id, verdict.title
        ))?;
    }
    if !report.whole {
        let word = out.colour.paint(Style::Bad, "BROKEN OFF");
        out.line(format!("{word}  the session: {}", report.session))?;
    }
    out.line(format!("suite    {}", report.suite))?;
    if let Some(launch) = report.launch {
        out.line(format!(
            "launch   {}: {} mode, Linux {}, Landlock ABI {}",
            launch.id,
            launch.mode,
            launch.kernel,
            launch.landlock_abi.unwrap_or(0)
        ))?;
        out.line(format!("policy   {} {}", report.policy, launch.policy_hash))?;
        out.line(format!("layers   {}", launch.layers.join(" ")))?;
    }
    let count = |pick: fn(&Family) -> usize| report.families.iter().map(pick).sum::<usize>();
    let (stopped, unavailable) = (count(|it| it.stopped), count(|it| it.unavailable));
    let contained = match report.contained.len() {
        0 => String::new(),
        n => format!(" {n} contained by the runtime's own kernel,"),
    };
    out.line(format!(
        "{stopped} stopped, {} open by the policy, {} escaped,{contained} {unavailable} not possible on this host",
        report.opened.len(),
        report.escaped.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(family: &str, outcome: Outcome, opened_by: Option<&str>) -> Verdict {
        Verdict {
            id: "c".into(),
            family: family.into(),
            title: "a case".into(),
            outcome,
            detail: String::new(),
            opened_by: opened_by.map(Into::into),
            contained: None,
        }
    }

    #[test]
    fn what_a_line_opens_is_counted_apart_from_what_escaped() {
        let verdicts = [
            verdict("fs", Outcome::Stopped, None),
            verdict("fs", Outcome::Escaped, Some("coding.toml:3")),
            verdict("fs", Outcome::Escaped, None),
            verdict("net", Outcome::Unavailable, None),
            verdict("net", Outcome::Contained, None),
        ];
        let families = families(&verdicts);
        let counts: Vec<_> = families
            .iter()
            .map(|it| {
                (
                    it.family.as_str(),
                    it.stopped,
                    it.opened,
                    it.escaped,
                    it.contained,
                    it.unavailable,
                )
            })
            .collect();
        assert_eq!(counts, [("fs", 1, 1, 1, 0, 0), ("net", 0, 0, 0, 1, 1)]);
    }
}
