//! `cargo xtask attack`: the escape suite against this project's sandbox and, with `--peers`, against other people's.
//!
//! The suite is one static program ([`suite`]); its host side starts a session of the sandbox under test, which runs its
//! inside, and judges by what became of the victims. Here are only the command lines: agentd's ([`ours`]) and the peers'
//! ([`peers`]). As root the sessions run as an ordinary user, in root mode and in user mode. Exit code 0 means that nothing
//! escaped that no line of the policy opens. `docs/attacks.md` says how to read it.

pub mod ours;
mod peers;
pub mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

use self::suite::{Judgement, Outcome as Result_, Suite};
use crate::bench::report::{Form, Report};
use crate::lab::{Mode, Profile, Programs};
use crate::test::{Outcome, Skip};

#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Policies to attack [default: strict, coding]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    policy: Vec<String>,
    /// Modes to attack in [default: both as root, user otherwise]
    #[arg(long, value_enum, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// On whose kernel programs run
    #[arg(long, value_enum, default_value_t = Runtime::Native)]
    runtime: Runtime,
    /// Only these cases or families
    #[arg(long = "case", value_name = "ID", value_delimiter = ',')]
    cases: Vec<String>,
    /// Also attack bubblewrap, sandlock, Codex's sandbox and srt, with the same cases, victims and verdicts
    #[arg(long)]
    peers: bool,
    /// Attack nothing: which cases succeed without any sandbox
    #[arg(long)]
    none: bool,
    #[command(flatten)]
    form: Form,
    /// Use the programs in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Use this built agentd-escape
    #[arg(long, value_name = "FILE")]
    suite: Option<PathBuf>,
}

/// On whose kernel agentd runs what is attacked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    #[default]
    Native,
    Gvisor,
}

impl Runtime {
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Gvisor => "gvisor",
        }
    }

    /// Why it can't be had here.
    fn missing(self) -> Option<&'static str> {
        const RUNSC: [&str; 2] = ["/usr/local/bin/runsc", "/usr/bin/runsc"];
        let missing = self == Self::Gvisor && !RUNSC.iter().any(|path| Path::new(path).is_file());
        missing.then_some(
            "there is no runsc in /usr/local/bin or /usr/bin: sudo apt-get install -y runsc",
        )
    }
}

/// The report and, beside it, what escaped where.
#[derive(Debug, Serialize)]
struct Attacked {
    #[serde(flatten)]
    report: Report,
    suite: String,
    escaped: Vec<Escaped>,
    /// What the runtime's own kernel did, and why it reached nothing of the host's.
    contained: Vec<Escaped>,
}

#[derive(Debug, Serialize)]
struct Escaped {
    sandbox: String,
    id: String,
    title: String,
    detail: String,
    /// File, line, key and value of the policy; null for a hole.
    opened_by: Option<String>,
    /// Of what the runtime's own kernel did.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

pub fn attack(args: &Args) -> Result<ExitCode> {
    let suite = match &args.suite {
        Some(program) => Suite::at(program)?,
        None => Suite::build()?,
    };
    let mut attacked = Attacked {
        report: Report::new(),
        suite: String::new(),
        escaped: Vec::new(),
        contained: Vec::new(),
    };
    if args.none {
        let judgement = suite.judge(&suite::Subject::none(&args.cases))?;
        attacked.add("none", &judgement, Promise::None);
    } else {
        ours(&suite, args, &mut attacked)?;
    }
    if args.peers {
        peers(&suite, args, &mut attacked)?;
    }
    args.form
        .print(&attacked, || attacked.text())
        .map(|()| attacked.report.exit_code())
}

/// What is promised, as (row, policy, mode).
const PROMISED: [(&str, &str, Mode); 3] = [
    ("attacks_strict", "strict", Mode::Root),
    ("attacks_coding", "coding", Mode::Root),
    ("attacks_user", "coding", Mode::User),
];

fn ours(suite: &Suite, args: &Args, attacked: &mut Attacked) -> Result<()> {
    let programs = match &args.bin_dir {
        Some(directory) => Programs::in_directory(directory)?,
        None => Programs::build(Profile::Debug)?,
    };
    for (row, policy, mode) in sessions(args) {
        if let Some(why) = args.runtime.missing() {
            attacked.report.skip(&row, why);
            continue;
        }
        if mode == Mode::Root && !rustix::process::geteuid().is_root() {
            attacked
                .report
                .skip(&row, "root mode needs root: sudo cargo xtask attack");
            continue;
        }
        let (mode_name, runtime) = (mode.name(), args.runtime);
        eprintln!("== {policy}, {mode_name} mode, {}", runtime.name());
        let target = ours::Target {
            policy: &policy,
            mode,
            runtime,
        };
        let judgement = ours::judge(suite, &programs, target, &args.cases)?;
        attacked.add(&row, &judgement, Promise::NothingUnopened);
    }
    Ok(())
}

/// The promised sessions, unless others are asked for.
fn sessions(args: &Args) -> Vec<(String, String, Mode)> {
    let of_runtime = |row: &str| match args.runtime {
        Runtime::Native => row.to_owned(),
        Runtime::Gvisor => format!("gvisor.{row}"),
    };
    let wants = |mode: Mode| args.mode.is_empty() || args.mode.contains(&mode);
    if args.policy.is_empty() {
        return PROMISED
            .iter()
            .filter(|(_, _, mode)| wants(*mode))
            .map(|(row, policy, mode)| (of_runtime(row), (*policy).to_owned(), *mode))
            .collect();
    }
    let mut sessions = Vec::new();
    for policy in &args.policy {
        for mode in [Mode::Root, Mode::User] {
            if !wants(mode) {
                continue;
            }
            let promised = PROMISED
                .iter()
                .find(|(_, name, of)| name == policy && *of == mode);
            let row = promised.map_or_else(
                || format!("attacks_{policy}.{}", mode.name()),
                |(row, _, _)| (*row).to_owned(),
            );
            sessions.push((of_runtime(&row), policy.clone(), mode));
        }
    }
    sessions
}

fn peers(suite: &Suite, args: &Args, attacked: &mut Attacked) -> Result<()> {
    for peer in &peers::ALL {
        crate::stop::check()?;
        let row = format!("peer.{}", peer.name);
        eprintln!("== {}", peer.name);
        match peer.prepare() {
            Err(why) => {
                crate::stop::check()?;
                attacked.report.skip(&row, format!("{why:#}"));
            }
            Ok(prepared) => {
                let judgement = suite.judge(&suite::Subject {
                    command: prepared.command.clone(),
                    ..suite::Subject::none(&args.cases)
                })?;
                attacked.add(&row, &judgement, Promise::None);
            }
        }
    }
    Ok(())
}

/// What a session owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    NothingUnopened,
    None,
}

impl Attacked {
    fn add(&mut self, row: &str, judgement: &Judgement, promise: Promise) {
        #[expect(clippy::cast_precision_loss, reason = "hundreds of cases")]
        let count = |number: usize| [number as f64];
        let (stopped, unavailable) = (
            judgement.count(Result_::Stopped),
            judgement.count(Result_::Unavailable),
        );
        let unopened = judgement.unopened().count();
        let opened = judgement.count(Result_::Escaped) - unopened;
        let limit = (promise == Promise::NothingUnopened).then_some(0.0);
        self.suite.clone_from(&judgement.suite);
        if judgement.whole {
            self.report.row(row, "escaped", &count(unopened), limit);
        } else {
            let why = format!("the session did not come to its end: {}", judgement.session);
            self.report.skip(row, why);
        }
        let contained = judgement.count(Result_::Contained);
        for (name, number) in [
            ("stopped", stopped),
            ("contained", contained),
            ("opened", opened),
            ("unavailable", unavailable),
            ("cases", judgement.verdicts.len()),
        ] {
            self.report
                .row(&format!("{row}.{name}"), "cases", &count(number), None);
        }
        let told = |verdict: &suite::Verdict| Escaped {
            sandbox: row.to_owned(),
            id: verdict.id.clone(),
            title: verdict.title.clone(),
            detail: verdict.detail.clone(),
            opened_by: verdict.opened_by.clone(),
            why: verdict.contained.clone(),
        };
        self.escaped.extend(judgement.escaped().map(told));
        self.contained.extend(judgement.contained().map(told));
    }

    fn text(&self) -> String {
        let mut text = self.report.table();
        for escaped in self.escaped.iter().chain(&self.contained) {
            let by = escaped.opened_by.as_deref().or(escaped.why.as_deref());
            let why = by.unwrap_or("ESCAPED");
            text += &format!(
                "{:<20} {:<24} {why}: {} ({})\n",
                escaped.sandbox, escaped.id, escaped.title, escaped.detail
            );
        }
        text
    }
}

/// The tier: what is promised, each case a test.
pub fn tier() -> Result<Outcome> {
    let suite = Suite::build()?;
    let programs = Programs::build(Profile::Debug)?;
    let mut outcome = Outcome::default();
    for (_, policy, mode) in PROMISED {
        if mode == Mode::Root && !rustix::process::geteuid().is_root() {
            outcome.skip(Skip::new(
                "root",
                format!("{policy} in root mode needs root: sudo cargo xtask test attack"),
            ));
            continue;
        }
        eprintln!("-- {policy}, {} mode", mode.name());
        let target = ours::Target {
            policy,
            mode,
            runtime: Runtime::Native,
        };
        let judgement = ours::judge(&suite, &programs, target, &[])?;
        if !judgement.whole {
            bail!(
                "{policy}, {} mode: the session did not come to its end: {}",
                mode.name(),
                judgement.session
            );
        }
        for verdict in &judgement.verdicts {
            if verdict.outcome == Result_::Escaped && verdict.opened_by.is_none() {
                outcome.fail(format!(
                    "{policy}, {} mode: {} escaped ({}): {}; repeat it: cargo xtask attack --policy {policy} --mode {} --case {}",
                    mode.name(), verdict.id, verdict.title, verdict.detail, mode.name(), verdict.id
                ));
            } else {
                outcome.pass();
            }
        }
    }
    Ok(outcome)
}
