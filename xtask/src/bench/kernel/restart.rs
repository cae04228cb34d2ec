//! Row `restart`: what is lost in silence while agentd and its broker are ended and started again,
//! under steady traffic.
//!
//! Two pairs of agents (`tests/kit`'s `traffic-agent`): one sends numbered messages over a lane
//! that outlives agentd, under `coding`; the other asks requests, under a policy without shared
//! memory, by the direct path where the host has it. Meanwhile agentd is killed and ended in good
//! order, and so is the broker, one after the other as long as the traffic goes on: both at once
//! end every agent, by design. What the bus took and neither delivered nor said to be lost is the
//! row.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::report::Report;
use super::super::{Effort, WATCHDOG};
use super::number;
use crate::child;
use crate::lab::{Lab, Programs, Setup};

/// Messages a second, of both kinds: a request and its answer are two.
const LANE: u64 = 52_000;
const REQUESTS: u64 = 2_000;
const PROMISED: f64 = 50_000.0;
/// How far the traffic is to get between two ends.
const MESSAGES: u64 = 20_000;
const MESSAGES_ASKED: u64 = 500;
/// What has no lanes.
const NO_LANES: &str = "extends = \"coding\"\n[ipc]\nshared_memory = false\n";

/// How a part of agentd ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    KilledAgentd,
    StoppedAgentd,
    KilledBroker,
    ReplacedBroker,
}

const ENDS: [End; 4] = [
    End::KilledAgentd,
    End::KilledBroker,
    End::StoppedAgentd,
    End::ReplacedBroker,
];

pub fn measure(report: &mut Report, programs: &Programs, effort: Effort) -> Result<()> {
    let setup = Setup {
        daemon: "on_stop = \"keep\"\n[bus]\ndirect = true",
        ..Setup::default()
    };
    let mut lab = Lab::start(programs.clone(), &setup)?;
    let policy = lab.directory().join("no-lanes.toml");
    std::fs::write(&policy, NO_LANES).context("write a policy")?;
    let policy = policy.to_string_lossy().into_owned();
    let rates = [LANE.to_string(), REQUESTS.to_string()];
    let receiver = start(&lab, "receiver", "coding", &["receive"])?;
    let sender = start(
        &lab,
        "sender",
        "coding",
        &["send", "receiver", "--lane", &rates[0]],
    )?;
    start(&lab, "answerer", &policy, &["receive", "--no-lanes"])?;
    let asker = start(
        &lab,
        "asker",
        &policy,
        &["send", "answerer", "--requests", &rates[1]],
    )?;
    let traffic = [
        (sender.as_path(), "lane", MESSAGES),
        (receiver.as_path(), "lane", MESSAGES),
        (asker.as_path(), "requests", MESSAGES_ASKED),
    ];
    let mut ends = 0;
    for _ in 0..effort.rounds(10) {
        for end in ENDS {
            go_on(&lab, &traffic)?;
            bring_about(&mut lab, end).with_context(|| format!("{end:?}"))?;
            ends += 1;
        }
    }
    go_on(&lab, &traffic)?;
    let in_kernel = in_kernel(&lab)?;
    for work in [&sender, &asker] {
        std::fs::write(work.join("stop"), "").context("tell a sender to stop")?;
    }
    let (mut sent, asked, received) = (
        told(&lab, &sender, "sent.json")?,
        told(&lab, &asker, "sent.json")?,
        told(&lab, &receiver, "received.json")?,
    );
    sent["requests"] = asked["requests"].clone();
    rows(report, &Account::of(&sent, &received)?, ends);
    let row = "restart.in_kernel";
    match in_kernel {
        Ok(sent) => report.row(row, "messages", &[sent], None),
        Err(why) => report.skip(row, why),
    }
    Ok(())
}

/// How many requests of the asker's the kernel has handed over; or why none takes that path.
fn in_kernel(lab: &Lab) -> Result<Result<f64, String>> {
    let peers = child::capture(lab.agentctl().args(["--json", "bus", "peers"]))?;
    let peers: Value = serde_json::from_str(&peers).context("agentctl bus peers")?;
    let all = peers["peers"].as_array().context("no list of peers")?;
    let asker = all.iter().find(|peer| peer["name"] == "asker");
    let asker = asker.context("the asker is not on the bus")?;
    Ok(asker["direct_sent"]
        .as_f64()
        .ok_or_else(|| format!("requests go over the bus: {}", asker["direct_why"])))
}

fn start(lab: &Lab, name: &str, policy: &str, arguments: &[&str]) -> Result<PathBuf> {
    let work = lab.directory().join(name);
    std::fs::create_dir(&work).context("make the workspace")?;
    let program = lab.program("traffic-agent");
    std::fs::copy(&program, work.join("traffic-agent"))
        .with_context(|| format!("copy {}", program.display()))?;
    let mut run = lab.agentctl();
    run.args(["run", "--detach", "--no-tty", "--policy", policy, "--name"])
        .arg(name)
        .arg("--workspace")
        .arg(&work)
        .args(["--", "./traffic-agent"])
        .args(arguments);
    child::capture(&mut run)?;
    Ok(work)
}

/// The last message of a kind that an agent noted. What went wrong in it is an error.
fn noted(notes: &str, kind: &str) -> Result<u64> {
    let mut last = 0;
    // The last line may be half written.
    let whole = notes.rfind('\n').map_or("", |end| &notes[..end]);
    for line in whole.lines() {
        ensure!(!line.starts_with("error"), "{line}");
        if let Some(number) = line.strip_prefix(kind) {
            // "open" is no number.
            last = number.trim().parse().unwrap_or(last);
        }
    }
    Ok(last)
}

/// Waits until each of them has noted so many more messages of a kind.
fn go_on(lab: &Lab, traffic: &[(&Path, &str, u64)]) -> Result<()> {
    for (work, kind, more) in traffic {
        let read = || -> Result<u64> {
            let notes = std::fs::read_to_string(work.join("notes")).unwrap_or_default();
            noted(&notes, kind).with_context(|| work.display().to_string())
        };
        let before = read()?;
        wait(lab, "the traffic goes on", || {
            Ok((read()? >= before + more).then_some(()))
        })?;
    }
    Ok(())
}

fn wait<T>(lab: &Lab, what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + WATCHDOG;
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("{what}: not within {WATCHDOG:?}\n{}", lab.log_tail());
        }
        std::thread::sleep(Duration::from_millis(10));
        crate::stop::check()?;
    }
}

fn bring_about(lab: &mut Lab, end: End) -> Result<()> {
    match end {
        End::KilledAgentd => {
            lab.kill_agentd()?;
            lab.restart()
        }
        End::StoppedAgentd => {
            lab.stop_agentd()?;
            lab.restart()
        }
        End::KilledBroker | End::ReplacedBroker => {
            let before = lab.broker()?;
            match end {
                End::KilledBroker => lab.kill_broker_worker()?,
                _ => lab.replace_broker()?,
            }
            wait(lab, "another worker", || {
                let is_another = lab.broker().is_ok_and(|worker| worker != before);
                Ok(is_another.then_some(()))
            })?;
            // What agentd launches now it launches by that one, after it has handed over those that live.
            let mut run = lab.agentctl();
            child::capture(run.args(["run", "--no-workspace", "--", "true"])).map(drop)
        }
    }
}

fn told(lab: &Lab, work: &Path, file: &str) -> Result<Value> {
    let path = work.join(file);
    wait(lab, file, || {
        let notes = std::fs::read_to_string(work.join("notes")).unwrap_or_default();
        noted(&notes, "lane")?;
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(Some(serde_json::from_str(&text).context("a report")?)),
            Err(_) => Ok(None),
        }
    })
}

/// What became of the messages.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Account {
    seconds: f64,
    /// The bus took them.
    lane: f64,
    requests: f64,
    /// Its sender was told so.
    said_lost: f64,
    /// Neither delivered nor said to be lost.
    silent: f64,
    /// Delivered more than once.
    twice: f64,
    repeated: f64,
    longest_ms: f64,
}

impl Account {
    fn of(sent: &Value, received: &Value) -> Result<Self> {
        let (lane, asked, came) = (&sent["lane"], &sent["requests"], &received["lane"]);
        let lane_lost = number(lane, "said_lost")?;
        let asked_lost = number(asked, "said_lost")?;
        let (taken, distinct) = (number(lane, "taken")?, number(came, "distinct")?);
        let (requests, answered) = (number(asked, "taken")?, number(asked, "answered")?);
        // What was said to be lost may have arrived all the same, so each kind is at least 0.
        let silent =
            (taken - distinct - lane_lost).max(0.0) + (requests - answered - asked_lost).max(0.0);
        Ok(Self {
            seconds: number(sent, "seconds")?,
            lane: taken,
            requests,
            said_lost: lane_lost + asked_lost,
            silent,
            twice: number(came, "twice")?,
            repeated: number(lane, "repeated")?,
            longest_ms: number(lane, "longest_ms")?.max(number(asked, "longest_ms")?),
        })
    }

    fn rate(&self) -> f64 {
        (self.lane + 2.0 * self.requests) / self.seconds
    }
}

fn rows(report: &mut Report, account: &Account, ends: usize) {
    report.row("restart", "messages", &[account.silent], Some(0.0));
    report.row("restart.twice", "messages", &[account.twice], Some(0.0));
    report.row_at_least("restart.rate", "msg/s", &[account.rate()], PROMISED);
    for (name, unit, value) in [
        ("ends", "", ends as f64),
        ("lane", "messages", account.lane),
        ("requests", "messages", account.requests),
        ("said_lost", "messages", account.said_lost),
        ("repeated", "messages", account.repeated),
        ("longest_wait", "ms", account.longest_ms),
    ] {
        report.row(&format!("restart.{name}"), unit, &[value], None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent() -> Value {
        json!({
            "seconds": 2.0,
            "lane": {"taken": 100, "said_lost": 3, "repeated": 7, "longest_ms": 4.0},
            "requests": {"taken": 10, "answered": 8, "said_lost": 2, "longest_ms": 5.0},
        })
    }

    fn received(distinct: u64) -> Value {
        json!({"lane": {"distinct": distinct, "twice": 0}, "requests": 9})
    }

    #[test]
    fn what_is_neither_delivered_nor_said_to_be_lost_is_silent() {
        let account = Account::of(&sent(), &received(97)).expect("an account");
        assert_eq!((account.silent, account.said_lost), (0.0, 5.0));
        assert_eq!((account.rate(), account.longest_ms), (60.0, 5.0));
        let account = Account::of(&sent(), &received(95)).expect("an account");
        assert_eq!(account.silent, 2.0);
        // One that was given up arrived after all; it does not make up for another kind.
        let mut worse = sent();
        worse["requests"]["answered"] = 7.into();
        let account = Account::of(&worse, &received(99)).expect("an account");
        assert_eq!(account.silent, 1.0);
        assert!(Account::of(&sent(), &json!({})).is_err());
    }

    #[test]
    fn one_silent_loss_or_too_little_traffic_misses_the_promise() {
        let good = Account {
            seconds: 1.0,
            lane: 60_000.0,
            ..Account::default()
        };
        let met = |account: Account| {
            let mut report = Report::new();
            rows(&mut report, &account, 4);
            report.all_met()
        };
        assert!(met(good));
        assert!(!met(Account {
            silent: 1.0,
            ..good
        }));
        assert!(!met(Account { twice: 1.0, ..good }));
        assert!(!met(Account {
            lane: 40_000.0,
            ..good
        }));
    }

    #[test]
    fn notes_say_how_far_an_agent_is_and_what_went_wrong() {
        let notes = "receiving\nlane open\nlane 500\nrequests 70\nlane 10";
        assert_eq!(noted(notes, "lane").expect("notes"), 500);
        assert_eq!(noted(notes, "requests").expect("notes"), 70);
        assert_eq!(noted("", "lane").expect("notes"), 0);
        assert!(noted("lane 500\nerror: torn\n", "lane").is_err());
    }
}
