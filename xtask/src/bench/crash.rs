//! `bench crash`: seeded kill -9 runs against agentd, its broker and the agents while 50 tasks are worked off.
//!
//! A run has its own daemon, four driven agents and one client that submits tasks by request id until each is
//! acknowledged. Meanwhile victims are killed at moments that the seed decides; agentd and agents that died are started
//! again. Then every acknowledged task must come to its end, no step of agentd may be on record twice, no turn may have
//! reached an agent more often than attempts were begun, and after the daemon's end no process of the run may be left.
//! What a tool inside an agent did is at-least-once, and not judged here.
//!
//! A run that breaks a promise names its seed on stderr: `--seed N` in front of a first run repeats its moments.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Effort;
use super::report::Report;
use crate::child::capture;
use crate::lab::{Lab, Profile, Programs, Setup, tree_of};
use crate::test::Outcome;

const RUNS: usize = 200;
/// Runs of the tier: enough for each kind of kill.
const TIER_RUNS: u64 = 6;
const TASKS: usize = 50;
const AGENTS: usize = 4;
const KILLS: usize = 6;
/// Longest pause between two kills.
const PAUSE_MS: u64 = 120;

/// A driven agent: answers each turn at once, and keeps what it was asked.
const AGENT: &str = r#"
echo '{"type":"ready"}'
while read -r turn; do
  id=${turn#*\"id\":\"}; id=${id%%\"*}
  printf '%s\n' "$turn" >>"turns-$AGENT_NAME"
  printf '{"type":"result","id":"%s","text":"ok"}\n' "$id"
done
"#;

/// What one run broke.
#[derive(Debug, Default)]
struct Broken {
    lost: usize,
    twice: usize,
    orphans: usize,
}

pub fn measure(report: &mut Report, programs: &Programs, effort: Effort, first: u64) -> Result<()> {
    let runs = match effort {
        Effort::Quick => 10,
        Effort::Full => RUNS,
    };
    let (mut lost, mut twice, mut orphans) = (0, 0, 0);
    for seed in (first..).take(runs) {
        let broken = run(programs.clone(), seed).with_context(|| format!("seed {seed}"))?;
        if broken.lost + broken.twice + broken.orphans > 0 {
            eprintln!("seed {seed}: {broken:?}");
        }
        lost += broken.lost;
        twice += broken.twice;
        orphans += broken.orphans;
        crate::stop::check()?;
    }
    report.row("crash.runs", "runs", &[runs as f64], None);
    report.row("crash.lost", "tasks", &[lost as f64], Some(0.0));
    report.row("crash.twice", "steps", &[twice as f64], Some(0.0));
    report.row("crash.orphans", "processes", &[orphans as f64], Some(0.0));
    Ok(())
}

/// The tier `crash`: a few of the same runs, with the debug build.
pub fn tier() -> Result<Outcome> {
    let programs = Programs::build(Profile::Debug)?;
    let mut outcome = Outcome::default();
    for seed in 1..=TIER_RUNS {
        let broken = run(programs.clone(), seed).with_context(|| format!("seed {seed}"))?;
        if broken.lost + broken.twice + broken.orphans == 0 {
            outcome.pass();
        } else {
            outcome.fail(format!(
                "{broken:?}; `cargo xtask bench crash --quick --seed {seed}` begins with the same moments"
            ));
        }
        crate::stop::check()?;
    }
    Ok(outcome)
}

/// splitmix64: small, and the same for ever.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

fn run(programs: Programs, seed: u64) -> Result<Broken> {
    let setup = Setup {
        lifeline_grace_ms: Some(20_000),
        ..Setup::default()
    };
    let mut lab = Lab::start(programs, &setup)?;
    let work = lab.directory().join("work");
    std::fs::create_dir(&work).context("make the workspace")?;
    for nth in 0..AGENTS {
        launch(&lab, &work, nth)?;
    }
    let mut dice = Dice(seed);
    let mut acknowledged: Vec<String> = Vec::new();
    let mut kills = 0;
    let mut next_kill = Instant::now() + Duration::from_millis(dice.below(PAUSE_MS));
    while acknowledged.len() < TASKS || kills < KILLS {
        if kills < KILLS && Instant::now() >= next_kill {
            kills += 1;
            strike(&mut lab, &work, &mut dice)?;
            next_kill = Instant::now() + Duration::from_millis(dice.below(PAUSE_MS));
        }
        let nth = acknowledged.len();
        if nth < TASKS {
            // Not acknowledged: said again under the same request id, which makes it one task.
            if let Some(id) = submit(&lab, seed, nth) {
                acknowledged.push(id);
            }
        }
        crate::stop::check()?;
    }
    revive(&lab, &work)?;
    let ended = settle(&lab, &work)?;
    let lost = acknowledged
        .iter()
        .filter(|id| {
            ended
                .get(*id)
                .is_none_or(|task| task["state"] != "succeeded")
        })
        .count();
    let mut twice = ended.len().saturating_sub(acknowledged.len());
    let turns = turns(&work)?;
    for (id, task) in &ended {
        twice += repeated_steps(&lab, id)?;
        let text = task["text"].as_str().unwrap_or_default();
        let attempts = task["attempt"].as_u64().unwrap_or(0);
        let asked = turns.get(text).copied().unwrap_or(0);
        twice += usize::try_from(asked.saturating_sub(attempts)).unwrap_or(usize::MAX);
    }
    let family = tree_of(lab.agentd())?;
    let at = lab.directory().to_owned();
    drop(lab);
    let orphans = left_of(&family, &at)?;
    Ok(Broken {
        lost,
        twice,
        orphans,
    })
}

fn launch(lab: &Lab, work: &Path, nth: usize) -> Result<()> {
    let name = format!("worker-{nth}");
    let script = AGENT.replace("$AGENT_NAME", &name);
    let mut command = lab.agentctl();
    command.args(["run", "--detach", "--driver", "jsonl", "--name", &name]);
    command.arg("--workspace").arg(work);
    capture(command.args(["--", "sh", "-c", &script])).map(drop)
}

/// Kills agentd, the broker's worker, both, or an agent, and starts what does not start by itself.
fn strike(lab: &mut Lab, work: &Path, dice: &mut Dice) -> Result<()> {
    match dice.below(6) {
        0 | 1 => {
            lab.kill_agentd()?;
            lab.restart()
        }
        2 => lab.kill_broker_worker(),
        // With no lifeline left the agents die at once.
        3 => {
            lab.kill_broker_worker()?;
            lab.kill_agentd()?;
            lab.restart()?;
            revive(lab, work)
        }
        4 => {
            let name = format!("worker-{}", dice.below(AGENTS as u64));
            let list = lab.ask(&["ps"])?;
            let agents = list["agents"].as_array().context("ps printed no list")?;
            let init = agents
                .iter()
                .find(|agent| agent["name"] == *name && agent["state"] == "running")
                .and_then(|agent| u32::try_from(agent["pid"].as_u64()?).ok());
            // It may have died meanwhile, with an agentd and a worker that were killed before.
            if let Some(Err(error)) = init.map(crate::lab::kill) {
                eprintln!("{name} was gone already: {error:#}");
            }
            revive(lab, work)
        }
        _ => {
            let nth = dice.below(AGENTS as u64);
            let mut kill = lab.agentctl();
            // It may have died already, or agentd may be without a broker for the moment.
            drop(capture(kill.args(["kill", &format!("worker-{nth}")])));
            revive(lab, work)
        }
    }
}

/// Starts the agents that are gone.
fn revive(lab: &Lab, work: &Path) -> Result<()> {
    let list = lab.ask(&["ps"])?;
    let agents = list["agents"].as_array().context("ps printed no list")?;
    for nth in 0..AGENTS {
        let name = format!("worker-{nth}");
        let lives = |agent: &Value| agent["name"] == *name && agent["state"] == "running";
        if !agents.iter().any(lives) {
            // A launch during which the broker dies is refused; the next round tries again.
            if let Err(error) = launch(lab, work, nth) {
                eprintln!("{name} is not back yet: {error:#}");
            }
        }
    }
    Ok(())
}

/// The id of the task, once it is acknowledged.
fn submit(lab: &Lab, seed: u64, nth: usize) -> Option<String> {
    let agent = format!("worker-{}", nth % AGENTS);
    let request = format!("{seed}-{nth}");
    let text = format!("task-{nth}");
    let submit = [
        "tasks",
        "submit",
        "--agent",
        &agent,
        "--request-id",
        &request,
    ];
    let options = ["--retries", "20", "--backoff", "20ms", &text];
    let answer = lab.ask(&[&submit[..], &options[..]].concat()).ok()?;
    answer["id"].as_str().map(str::to_owned)
}

/// Waits until every task has ended, and gives them by id.
fn settle(lab: &Lab, work: &Path) -> Result<BTreeMap<String, Value>> {
    const OVER: [&str; 4] = ["succeeded", "failed", "cancelled", "timed-out"];
    let limit = Instant::now() + super::WATCHDOG;
    loop {
        let list = lab.ask(&["tasks", "list", "--all"])?;
        let tasks = list["tasks"]
            .as_array()
            .context("tasks list printed no list")?;
        let over = |task: &&Value| OVER.iter().any(|state| task["state"] == **state);
        if tasks.iter().filter(over).count() == tasks.len() {
            return Ok(tasks
                .iter()
                .filter_map(|task| Some((task["id"].as_str()?.to_owned(), task.clone())))
                .collect());
        }
        if Instant::now() > limit {
            let waiting: Vec<&Value> = tasks.iter().filter(|task| !over(task)).collect();
            bail!("tasks did not end: {waiting:?}\n{}", lab.log_tail());
        }
        revive(lab, work)?;
        crate::stop::check()?;
    }
}

/// Transitions of a task that are on record more than once for one attempt. An attempt whose turn was linked and not
/// written when agentd died is taken back to `assigned` and begins again: that is one more `running`, and no repeat.
fn repeated_steps(lab: &Lab, id: &str) -> Result<usize> {
    let task = lab.ask(&["tasks", "show", id])?;
    let steps = task["transitions"].as_array().context("no transitions")?;
    let mut begun = BTreeMap::new();
    let mut ends = 0_usize;
    for step in steps {
        let attempt = step["attempt"].as_u64().unwrap_or(0);
        match (step["from"].as_str(), step["to"].as_str()) {
            (Some("running"), Some("assigned")) => *begun.entry(attempt).or_insert(0) -= 1,
            (_, Some("running")) => *begun.entry(attempt).or_insert(0) += 1,
            (_, Some("succeeded" | "failed" | "cancelled" | "timed-out")) => ends += 1,
            _ => {}
        }
    }
    let begun: i64 = begun.values().map(|times: &i64| (times - 1).max(0)).sum();
    Ok(ends.saturating_sub(1) + usize::try_from(begun).unwrap_or(0))
}

/// How often each task's text reached an agent.
fn turns(work: &Path) -> Result<BTreeMap<String, u64>> {
    let mut turns = BTreeMap::new();
    for nth in 0..AGENTS {
        let path = work.join(format!("turns-worker-{nth}"));
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            read => read.with_context(|| format!("read {}", path.display()))?,
        };
        for line in text.lines() {
            let turn: Value = serde_json::from_str(line).context("a turn that is no JSON")?;
            let text = turn["text"].as_str().context("a turn without text")?;
            *turns.entry(text.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(turns)
}

/// Processes of the run that outlive its daemon.
fn left_of(family: &[u32], at: &Path) -> Result<usize> {
    let limit = Instant::now() + super::WATCHDOG;
    loop {
        let left = family.iter().filter(|pid| {
            // A pid may have gone to somebody else meanwhile: whoever is ours works in the run's directory, or for it.
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains(&*at.to_string_lossy()) || command.contains("turns-worker-")
        });
        let left = left.count();
        if left == 0 || Instant::now() > limit {
            return Ok(left);
        }
        crate::stop::check()?;
    }
}
