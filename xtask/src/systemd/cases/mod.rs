//! The tests of the bed, in the order of a service's life: installed, started, used, disturbed, upgraded, removed.
//!
//! Each is a function that fails with what it saw; a later one builds on what earlier ones left, so when the service
//! does not come up at all the rest is not tried. Everything is asked of the bed's own systemd, journal, bus and kernel.

mod agents;
mod audit;
mod bus;
mod install;
mod life;
mod plane;
mod service;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use super::bed::Bed;
use super::install::Item;
use crate::child::{self, Child};
use crate::lab::{Programs, read_line};
use crate::test::{Outcome, Skip};

/// How long anything in the bed may take before it counts as hung. Nothing is paced by it.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The users of the bed besides root.
const USERS: [&str; 2] = ["alice", "bob"];

/// What a case works with.
struct Lab<'a> {
    bed: &'a Bed,
    programs: &'a Programs,
    items: Vec<Item>,
    /// The model key of this run, found nowhere else.
    key: String,
}

/// This machine can't show it.
#[derive(Debug)]
struct NotHere(Skip);

impl std::fmt::Display for NotHere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.0.feature, self.0.why)
    }
}

impl std::error::Error for NotHere {}

type Case = (&'static str, fn(&Lab<'_>) -> Result<()>);

/// Without these nothing else makes sense.
const FIRST: [Case; 2] = [
    (
        "install puts every file, the user and the directories",
        install::everything_is_there,
    ),
    (
        "the first call starts daemon and broker",
        service::the_first_call_starts_both,
    ),
];

const REST: [Case; 20] = [
    ("agentd says that it is ready", service::it_says_ready),
    (
        "agentd runs as its user without capabilities",
        service::it_has_no_rights,
    ),
    (
        "an ordinary user runs an agent on its own files",
        agents::an_ordinary_user_runs_an_agent,
    ),
    (
        "agents live in their own unit",
        agents::agents_live_in_their_own_unit,
    ),
    (
        "the model key reaches the gateway and nothing else",
        agents::the_key_reaches_the_gateway_alone,
    ),
    (
        "the journal has the log with priorities",
        service::the_journal_has_priorities,
    ),
    (
        "the system bus serves the same agents",
        bus::the_same_agents_over_the_bus,
    ),
    (
        "users on the bus don't see each other's agents",
        bus::users_are_isolated,
    ),
    (
        "the bus passes nothing but the documented interfaces",
        bus::the_policy_denies_by_default,
    ),
    (
        "polkit refuses, and lets an administrator in",
        bus::polkit_decides,
    ),
    (
        "reload keeps the daemon and says so",
        service::reload_keeps_the_daemon,
    ),
    (
        "a daemon that hangs is ended and started again",
        service::the_watchdog_restarts_a_stopped_daemon,
    ),
    (
        "agents outlive a restart of the daemon",
        life::agents_outlive_the_daemon,
    ),
    (
        "agents outlive a restart of the broker",
        life::agents_outlive_the_broker,
    ),
    (
        "a killed daemon finds its agents again",
        life::agents_outlive_a_killed_daemon,
    ),
    (
        "new binaries take over in place",
        life::new_binaries_take_over,
    ),
    (
        "the kernel plane is loaded, and taken over by the next broker",
        plane::programs_are_loaded_and_taken_over,
    ),
    (
        "the kernel's audit is asked for by a drop-in, and what stands in its way is named",
        audit::kernel_audit_is_asked_for_and_its_lack_is_named,
    ),
    (
        "stopping the agents' unit ends every agent",
        life::stopping_the_agents_unit_ends_all,
    ),
    (
        "uninstall leaves nothing",
        install::uninstall_leaves_nothing,
    ),
];

/// Runs every case; each counts as one test.
pub fn all(bed: &Bed, programs: &Programs, outcome: &mut Outcome) -> Result<()> {
    let lab = Lab {
        bed,
        programs,
        items: super::install::items(programs)?,
        key: crate::lab::random_key()?,
    };
    for case in &FIRST {
        if !lab.try_case(case, outcome)? {
            for (name, _) in FIRST
                .iter()
                .chain(&REST)
                .skip_while(|c| c.0 != case.0)
                .skip(1)
            {
                outcome.fail(format!("{name}: not tried, since the service is not up"));
            }
            return Ok(());
        }
    }
    for case in &REST {
        lab.try_case(case, outcome)?;
    }
    Ok(())
}

impl Lab<'_> {
    /// Whether it passed; an error only when the person asked to stop.
    fn try_case(&self, (name, case): &Case, outcome: &mut Outcome) -> Result<bool> {
        let begun = Instant::now();
        let result = case(self);
        crate::stop::check()?;
        let took = begun.elapsed().as_secs_f32();
        match result {
            Ok(()) => {
                eprintln!("case {name}: ok ({took:.1} s)");
                outcome.pass();
                Ok(true)
            }
            Err(error) if error.is::<NotHere>() => {
                let NotHere(skip) = error.downcast()?;
                eprintln!("case {name}: skipped: {}", skip.why);
                outcome.skip(skip);
                Ok(true)
            }
            Err(error) => {
                eprintln!("case {name}: FAILED ({took:.1} s): {error:#}");
                for unit in ["agentd.service", "agentd-broker.service"] {
                    let journal = self.bed.journal(unit).unwrap_or_default();
                    let lines: Vec<&str> = journal.lines().collect();
                    for line in &lines[lines.len().saturating_sub(12)..] {
                        eprintln!("  {line}");
                    }
                }
                eprint!("{}", self.bed.console_tail());
                outcome.fail(format!("{name}: {error:#}"));
                Ok(false)
            }
        }
    }

    fn systemctl(&self, words: &[&str]) -> Result<String> {
        self.bed.run(&[&["systemctl"], words].concat())
    }

    /// The main process of a unit, in the bed's numbers.
    fn main_pid(&self, unit: &str) -> Result<String> {
        let pid = self.bed.property(unit, "MainPID")?;
        ensure!(pid != "0", "{unit} has no main process");
        Ok(pid)
    }

    fn is_active(&self, unit: &str) -> Result<bool> {
        Ok(self.bed.property(unit, "ActiveState")? == "active")
    }

    /// `agentctl` in the bed as `user`.
    fn agentctl(&self, user: &str, words: &[&str]) -> Command {
        let mut command = match user {
            "root" => self.bed.command("agentctl"),
            _ => self.bed.command_as(user, "agentctl"),
        };
        command.args(words);
        command
    }

    /// Standard output of an `agentctl` that must succeed.
    fn ask(&self, user: &str, words: &[&str]) -> Result<String> {
        Ok(child::capture(&mut self.agentctl(user, words))?
            .trim_end()
            .to_owned())
    }

    /// Exit code and standard error of an `agentctl` that may fail.
    fn try_ask(&self, user: &str, words: &[&str]) -> Result<(i32, String)> {
        let output = child::capture_any(&mut self.agentctl(user, words))?;
        let code = output.status.code().unwrap_or(-1);
        Ok((code, String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Starts a detached agent that stays, with `words` as its program.
    fn start_agent(&self, user: &str, name: &str, words: &[&str]) -> Result<()> {
        let run = ["run", "--detach", "--no-workspace", "--name", name, "--"];
        self.ask(user, &[&run, words].concat()).map(drop)
    }

    /// One field of a living agent's row of `agentctl ps`.
    fn field(&self, user: &str, agent: &str, field: &str) -> Result<String> {
        let text = self.ask(user, &["--json", "ps", "--all"])?;
        let rows = rows(&text)?;
        let row = rows
            .iter()
            .find(|row| row["name"] == agent && row["ended_at_ms"].is_null())
            .with_context(|| format!("{user} has no living agent {agent}: {text}"))?;
        Ok(match &row[field] {
            serde_json::Value::String(text) => text.clone(),
            value => value.to_string(),
        })
    }

    /// Runs `act`, then waits until `unit` has logged a line with `needle` since it began.
    fn until_logged(
        &self,
        unit: &str,
        needle: &str,
        act: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        // By time, not by cursor: journalctl looks for a cursor among the unit's own lines, and skips one if it is another's.
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .context("a clock before 1970")?;
        let since = format!("@{}.{:06}", since.as_secs(), since.subsec_micros());
        act()?;
        let mut command = self.bed.command("journalctl");
        command
            .args(["--follow", "--no-tail", "--output=cat", "--unit", unit])
            .arg(format!("--since={since}"))
            .stdout(Stdio::piped());
        let mut follow = Child::start("journalctl", &mut command)?;
        let mut stdout = follow.take_stdout().context("not piped")?;
        loop {
            let line = read_line(&mut stdout, WATCHDOG)
                .with_context(|| format!("{unit} did not log {needle:?}"))?;
            if line.contains(needle) {
                return Ok(());
            }
        }
    }
}

/// The rows of `agentctl --json ps`.
fn rows(text: &str) -> Result<Vec<serde_json::Value>> {
    let mut listing: serde_json::Value =
        serde_json::from_str(text).with_context(|| format!("no JSON: {text}"))?;
    match listing["agents"].take() {
        serde_json::Value::Array(rows) => Ok(rows),
        _ => bail!("no list of agents: {text}"),
    }
}
