//! `cargo xtask workloads`: real programs in real sandboxes. What a policy is for has to work under it.
//!
//! Each [`Workload`] is a launch by `agentctl run` in a fresh workspace, and a look from outside at what came of it. As root
//! everything runs twice, in root mode and as an ordinary user ([`Somebody`]). Missing programs are installed by apt where
//! that may be done; elsewhere their workloads are skipped by name. `--json` prints the report of `docs/testing.md`: a row
//! for each workload, and `workloads` for those under `coding`. Exit code 0 means that all ran and none failed.
//!
//! The real Claude Code and Codex are workloads too ([`agents`]); in `cargo xtask test` they are tiers of their own.
//!
//! Where to start reading: [`table`], then [`stage`].

mod agents;
mod host;
mod needs;
mod stage;
mod table;
mod workload;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::stage::Stage;
use self::workload::Workload;
use crate::bench::report::{Form, Report};
use crate::child::Child;
use crate::lab::{Mode, Profile, Programs};
use crate::somebody::Somebody;
use crate::test::{Outcome, Skip};

/// The policy that the row `workloads` is about.
const MAIN_POLICY: &str = "coding";
/// The ordinary user's run hangs if it takes longer.
const LIMIT: Duration = Duration::from_secs(15 * 60);

#[derive(Debug, Default, clap::Args)]
pub struct Args {
    /// Only those under this policy
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// Only in these modes [default: both as root, user otherwise]
    #[arg(long, value_enum, value_delimiter = ',')]
    mode: Vec<Mode>,
    /// Only these, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    form: Form,
    /// Use the programs in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Print the results as the calling xtask reads them
    #[arg(long, hide = true)]
    results: bool,
}

impl Args {
    /// Whether a workload of this name and policy is asked for.
    fn names(&self, name: &str, policy: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|only| only == name))
            && self.policy.as_deref().is_none_or(|only| only == policy)
    }

    fn programs(&self) -> Result<Programs> {
        match &self.bin_dir {
            Some(directory) => Programs::in_directory(directory),
            None => Programs::build(Profile::Debug),
        }
    }

    fn wants(&self, mode: Mode) -> bool {
        self.mode.is_empty() || self.mode.contains(&mode)
    }
}

/// How one workload ended in one mode.
#[derive(Debug, Serialize, Deserialize)]
struct Ended {
    mode: Mode,
    name: String,
    policy: String,
    verdict: Verdict,
    seconds: f64,
}

impl Ended {
    fn tell(&self) {
        let told = match &self.verdict {
            Verdict::Passed => "works".to_owned(),
            Verdict::Failed(why) => format!("FAILED: {why}"),
            Verdict::Skipped { why, .. } => format!("skipped: {why}"),
        };
        eprintln!(
            "{} {:<24} {:>6.2} s  {told}",
            self.mode.name(),
            self.name,
            self.seconds
        );
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Passed,
    Failed(String),
    Skipped { feature: String, why: String },
}

#[expect(clippy::print_stdout, reason = "the report is this verb's data")]
pub fn workloads(args: &Args) -> Result<ExitCode> {
    let mut ended = run(args)?;
    if !args.results {
        ended.extend(agents::run(args)?);
    }
    if args.results {
        println!(
            "{}",
            serde_json::to_string(&ended).context("write the results")?
        );
        return Ok(ExitCode::SUCCESS);
    }
    report(&ended).conclude(args.form)
}

/// Installs what workloads need, where that may be done.
pub fn fetch_programs() {
    if rustix::process::geteuid().is_root() {
        needs::install_missing(table::all().flat_map(|workload| workload.needs).copied());
    }
}

/// The tier of `cargo xtask test`.
pub fn tier() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for ended in run(&Args::default())? {
        match ended.verdict {
            Verdict::Passed => outcome.pass(),
            Verdict::Failed(why) => outcome.fail(format!(
                "{} in {} mode: {why}",
                ended.name,
                ended.mode.name()
            )),
            Verdict::Skipped { feature, why } => outcome.skip(Skip::new(&feature, why)),
        }
    }
    Ok(outcome)
}

fn run(args: &Args) -> Result<Vec<Ended>> {
    let chosen = choose(args)?;
    if chosen.is_empty() {
        return Ok(Vec::new());
    }
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        needs::install_missing(chosen.iter().flat_map(|workload| workload.needs).copied());
    }
    let programs = args.programs()?;
    let mut ended = Vec::new();
    if args.wants(Mode::Root) {
        if is_root {
            ended.extend(perform(&chosen, programs.clone(), Mode::Root)?);
        } else {
            ended.push(Ended {
                mode: Mode::Root,
                name: "all".to_owned(),
                policy: String::new(),
                verdict: Verdict::Skipped {
                    feature: "root".to_owned(),
                    why: "root mode needs root: sudo cargo xtask workloads".to_owned(),
                },
                seconds: 0.0,
            });
        }
    }
    if args.wants(Mode::User) {
        if is_root {
            ended.extend(perform_as_somebody(&chosen, &programs)?);
        } else {
            ended.extend(perform(&chosen, programs, Mode::User)?);
        }
    }
    Ok(ended)
}

/// The workloads of the table that the arguments name; a name that is none is an error.
fn choose(args: &Args) -> Result<Vec<&'static Workload>> {
    let names: Vec<&str> = table::all()
        .map(|workload| workload.name)
        .chain(agents::NAMES)
        .collect();
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| !names.contains(&name.as_str()))
    {
        bail!(
            "there is no workload {unknown}; there are {}",
            names.join(", ")
        );
    }
    let mut policies: Vec<&str> = table::all().map(|workload| workload.policy).collect();
    policies.sort_unstable();
    policies.dedup();
    if let Some(policy) = args
        .policy
        .as_deref()
        .filter(|policy| !policies.contains(policy))
    {
        bail!(
            "no workload runs under {policy}; there are some under {}",
            policies.join(", ")
        );
    }
    let chosen = table::all().filter(|workload| args.names(workload.name, workload.policy));
    Ok(chosen.collect())
}

/// Runs them here, as many at a time as there are CPUs.
fn perform(chosen: &[&Workload], programs: Programs, mode: Mode) -> Result<Vec<Ended>> {
    let stage = Stage::start(programs)?;
    let next = AtomicUsize::new(0);
    let ended = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(chosen.len()) {
            scope.spawn(|| {
                while let Some(workload) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if crate::stop::check().is_err() {
                        return;
                    }
                    let one = perform_one(&stage, workload, mode);
                    ended.lock().expect("no worker panics").push(one);
                }
            });
        }
    });
    crate::stop::check()?;
    let ended = ended.into_inner().expect("no worker panics");
    if ended
        .iter()
        .any(|one| matches!(one.verdict, Verdict::Failed(_)))
    {
        eprint!("the end of the daemon's log:\n{}", stage.log_tail());
    }
    Ok(ended)
}

fn perform_one(stage: &Stage, workload: &Workload, mode: Mode) -> Ended {
    let begun = Instant::now();
    let verdict = match workload
        .needs
        .iter()
        .find(|program| needs::find(program).is_none())
    {
        Some(program) => Verdict::Skipped {
            feature: (*program).to_owned(),
            why: format!(
                "{} needs {program}: {}",
                workload.name,
                needs::hint(program)
            ),
        },
        None => match stage.run(workload) {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("{error:#}")),
        },
    };
    let ended = Ended {
        mode,
        name: workload.name.to_owned(),
        policy: workload.policy.to_owned(),
        verdict,
        seconds: begun.elapsed().as_secs_f64(),
    };
    ended.tell();
    ended
}

/// Runs them in user mode for a root caller: this program again, as an ordinary user.
fn perform_as_somebody(chosen: &[&Workload], programs: &Programs) -> Result<Vec<Ended>> {
    let mut somebody = Somebody::make(programs)?;
    let uses_rust = |workload: &&&Workload| {
        workload
            .needs
            .iter()
            .any(|need| matches!(*need, "cargo" | "rustc"))
    };
    if chosen.iter().any(|workload| uses_rust(&workload))
        && let Err(error) = somebody.lend_rust()
    {
        eprintln!("no Rust for the ordinary user: {error:#}");
    }
    let mut command = somebody.xtask(&["workloads", "--results", "--mode", "user"]);
    for workload in chosen {
        command.args(["--only", workload.name]);
    }
    let mut child = Child::start(
        "workloads as an ordinary user",
        command.stdin(Stdio::null()).stdout(Stdio::piped()),
    )?;
    let mut stdout = child
        .take_stdout()
        .context("its standard output is piped")?;
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stdout, &mut text).map(|_| text)
    });
    let Some(status) = child.wait(LIMIT)? else {
        bail!("the workloads of the ordinary user did not end within {LIMIT:?}");
    };
    let text = reader
        .join()
        .expect("the reader does not panic")
        .context("read the results of the ordinary user")?;
    if !status.success() {
        bail!(
            "the workloads of the ordinary user: {}",
            crate::child::outcome(status)
        );
    }
    serde_json::from_str(&text).context("read the results of the ordinary user")
}

fn report(ended: &[Ended]) -> Report {
    let mut report = Report::new();
    let counted = |ended: &&Ended| !matches!(ended.verdict, Verdict::Skipped { .. });
    let passed = |ended: &&Ended| matches!(ended.verdict, Verdict::Passed);
    let mut sum = |id: &str, mode: Option<Mode>, is_main: bool| {
        let part: Vec<&Ended> = ended
            .iter()
            .filter(counted)
            .filter(|one| {
                (one.policy == MAIN_POLICY) == is_main && mode.is_none_or(|mode| one.mode == mode)
            })
            .collect();
        if part.is_empty() {
            return;
        }
        let works = part.iter().copied().filter(|one| passed(one)).count() as f64;
        report.row_at_least(id, "working", &[works], part.len() as f64);
    };
    sum("workloads", None, true);
    sum("workloads.root", Some(Mode::Root), true);
    sum("workloads.user", Some(Mode::User), true);
    sum("workloads.presets", None, false);
    for one in ended {
        let id = format!("{}.{}.{}", one.mode.name(), one.policy, one.name);
        match &one.verdict {
            Verdict::Passed => report.row_at_least(&id, "working", &[1.0], 1.0),
            Verdict::Failed(_) => report.row_at_least(&id, "working", &[0.0], 1.0),
            Verdict::Skipped { why, .. } => report.skip(&id, why.as_str()),
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(policy: &str, mode: Mode, verdict: Verdict) -> Ended {
        Ended {
            mode,
            name: "one".to_owned(),
            policy: policy.to_owned(),
            verdict,
            seconds: 0.1,
        }
    }

    #[test]
    fn a_failure_or_a_skip_is_not_met_and_only_coding_counts_for_the_promise() {
        let good = || ended("coding", Mode::Root, Verdict::Passed);
        let report = super::report(&[good(), ended("review", Mode::User, Verdict::Passed)]);
        assert!(report.all_met());
        assert_eq!(
            (report.rows[0].id.as_str(), report.rows[0].value),
            ("workloads", 1.0)
        );
        assert!(
            !super::report(&[
                good(),
                ended("coding", Mode::User, Verdict::Failed("why".to_owned()))
            ])
            .all_met()
        );
        let skip = Verdict::Skipped {
            feature: "go".to_owned(),
            why: "none".to_owned(),
        };
        assert!(!super::report(&[good(), ended("coding", Mode::User, skip)]).all_met());
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_there_are() {
        let error = choose(&Args {
            only: vec!["bash".to_owned(), "nope".to_owned()],
            ..Args::default()
        })
        .expect_err("refused");
        assert!(
            error
                .to_string()
                .contains("no workload nope; there are cargo,"),
            "{error}"
        );
        assert!(
            choose(&Args {
                policy: Some("nope".to_owned()),
                ..Args::default()
            })
            .is_err()
        );
        assert_eq!(
            choose(&Args {
                only: vec!["bash".to_owned()],
                ..Args::default()
            })
            .expect("one")
            .len(),
            1
        );
    }
}
