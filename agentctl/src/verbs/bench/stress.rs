//! `bench stress`: many agents in all patterns, some of them killed, and the books balanced at the end.
//!
//! A run has four parts: all are launched and ready; they talk, and some are killed and replaced; they send no more and
//! say what they sent; they receive to the end and say what they got. [`Books`] joins both sides. What a killed agent
//! knew is gone with it, so only what passed between agents that live to the end is promised and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use agentd_api::bus::{BusProxy, DaemonUsage};
use serde_json::json;
use tokio::time::Instant;

use super::crew::{Crew, Heard, PATIENCE, Seat};
use super::flow::{INTERRUPTED, Interrupt, MARGIN, Progress, finish, run_name};
use super::orders::{Chance, END, GO, Got, Mixed, MixedReport, Orders, Report, STOP, Sent};
use super::{Kills, StressRequest};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, Style, grouped, per_second, size, span};
use crate::resolve::Context;

/// Pauses between two kills are drawn from this range, in ms, for eight agents; more agents are killed more often.
const KILL_EVERY_MS: std::ops::Range<u64> = 250..1_250;

/// After the last agent has ended agentd may take so long to let go of everything.
const LETTING_GO: Duration = Duration::from_secs(60);

pub async fn stress(context: &Context, request: &StressRequest) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let proxy = BusProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api("can't ask agentd about the bus", &e.into()))?;
    let mut interrupt = Interrupt::watch()?;
    let before = usage(&proxy).await?;
    let mut crew = Crew::new(context, &daemon, request.duration + MARGIN)?;
    let outcome = tokio::select! {
        outcome = run(&mut crew, request) => Some(outcome),
        () = interrupt.came() => None,
    };
    let Some(books) = finish(crew, outcome).await? else {
        return Ok(INTERRUPTED);
    };
    let after = settled(&proxy, &before).await?;
    let leaks = leaks(&before, &after);
    let verdict = books.verdict();
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({
            "bench": "stress",
            "agents": request.agents,
            "duration_ms": u64::try_from(request.duration.as_millis()).unwrap_or(u64::MAX),
            "size": request.size,
            "waiting": request.mode.as_str(),
            "seed": request.seed,
            "launched": books.launched,
            "killed": books.killed,
            "survivors": books.survivors,
            "elapsed_ns": u64::try_from(books.elapsed.as_nanos()).unwrap_or(u64::MAX),
            "messages_per_second": books.rate(),
            "lanes": {
                "lanes": books.lanes,
                "messages": books.lane_messages,
                "compared": books.compared,
            },
            "logs": {
                "readers": books.logs,
                "messages": books.log_messages,
                "cut_off": books.cut_off,
            },
            "requests": {
                "made": books.rest.requests,
                "answered": books.rest.answered,
                "wrong": books.rest.wrong,
                "failed": books.rest.failed,
                "served": books.rest.served,
            },
            "topics": {
                "published": books.rest.published,
                "received": books.rest.followed,
                "dropped_and_told": books.rest.told_lost,
                "missing_and_not_told": books.untold(),
            },
            "lost": verdict.lost,
            "broken": verdict.broken,
            "hangs": verdict.hangs,
            "leaks": leaks,
            "daemon": { "before": before.to_json(), "after": after.to_json() },
            "grumbles": books.grumbles,
        }))?;
    } else {
        books.print(request, &before, &after, &mut out)?;
        let text = format!(
            "{} lost, {} broken, {} hangs, {leaks} leaks",
            verdict.lost, verdict.broken, verdict.hangs
        );
        let style = if verdict.is_clean() && leaks == 0 {
            Style::Good
        } else {
            Style::Bad
        };
        out.line(out.colour.paint(style, &text))?;
    }
    out.flush()?;
    Ok(u8::from(!verdict.is_clean() || leaks > 0))
}

async fn usage(proxy: &BusProxy<'_>) -> Result<DaemonUsage, Failure> {
    let usage = proxy.usage().await;
    usage.map_err(|e| Failure::api("can't ask what agentd holds", &e))
}

/// What agentd holds once it has let go of everything, or could have.
async fn settled(proxy: &BusProxy<'_>, before: &DaemonUsage) -> Result<DaemonUsage, Failure> {
    let end = Instant::now() + LETTING_GO;
    loop {
        let now = usage(proxy).await?;
        if leaks(before, &now) == 0 || Instant::now() > end {
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Descriptors, peers, connections, channels and requests that were not there before.
fn leaks(before: &DaemonUsage, after: &DaemonUsage) -> u64 {
    let more = |before: u32, after: u32| u64::from(after.saturating_sub(before));
    let descriptors = after.descriptors.unwrap_or(0);
    descriptors.saturating_sub(before.descriptors.unwrap_or(descriptors))
        + more(before.peers, after.peers)
        + more(before.connections, after.connections)
        + more(before.channels, after.channels)
        + more(before.requests, after.requests)
}

/// What became of everything.
#[derive(Debug, Default)]
struct Books {
    launched: u64,
    killed: u64,
    survivors: u64,
    elapsed: Duration,
    lanes: u64,
    lane_messages: u64,
    /// Lanes of which both sides reported.
    compared: u64,
    logs: u64,
    log_messages: u64,
    /// Readers of logs that were cut off, and told.
    cut_off: u64,
    /// Messages that were sent over a lane whose two sides live, and did not come.
    lost: u64,
    broken: u64,
    hangs: u64,
    rest: MixedReport,
    grumbles: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Verdict {
    lost: u64,
    broken: u64,
    hangs: u64,
}

impl Verdict {
    fn is_clean(self) -> bool {
        self.lost == 0 && self.broken == 0 && self.hangs == 0
    }
}

impl Books {
    /// Joins what senders and receivers say.
    fn balance(&mut self, sent: &BTreeMap<Seat, Vec<Sent>>, reports: BTreeMap<Seat, MixedReport>) {
        let mut got: BTreeMap<u64, Got> = BTreeMap::new();
        let mut reliable: Vec<Got> = Vec::new();
        for report in reports.into_values() {
            for lane in report.lanes {
                self.lanes += 1;
                self.lane_messages += lane.messages;
                self.lost += lane.missing;
                self.broken += lane.broken;
                self.hangs += u64::from(!lane.complete);
                got.insert(lane.key, lane);
            }
            for log in report.logs {
                self.logs += 1;
                self.log_messages += log.messages;
                self.rest.told_lost += log.told;
                // A reliable reader misses nothing; a lossy one nothing without a word.
                let allowed = if log.reliable { 0 } else { log.told };
                self.lost += log.missing.saturating_sub(allowed);
                self.broken += log.broken;
                self.cut_off += u64::from(log.cut_off);
                self.hangs += u64::from(!log.complete && !log.cut_off);
                if log.reliable && log.complete {
                    reliable.push(log);
                }
            }
            let rest = &mut self.rest;
            rest.requests += report.requests;
            rest.answered += report.answered;
            rest.wrong += report.wrong;
            rest.failed += report.failed;
            rest.hung += report.hung;
            rest.served += report.served;
            rest.published += report.published;
            rest.followed += report.followed;
            rest.gaps += report.gaps;
            rest.told_lost += report.told_lost;
            rest.broken += report.broken;
        }
        let all: BTreeMap<u64, &Sent> = sent.values().flatten().map(|s| (s.key, s)).collect();
        let complete = |key: u64| all.get(&key).filter(|sent| sent.complete);
        for log in reliable {
            if let Some(sent) = complete(log.key) {
                let reached = log.first + log.messages + log.missing;
                self.lost += sent.messages.saturating_sub(reached);
            }
        }
        for lane in all.values().filter(|sent| sent.complete && !sent.is_log()) {
            self.compared += 1;
            let came = got
                .get(&lane.key)
                .map_or(0, |lane| lane.messages + lane.missing);
            self.lost += lane.messages.saturating_sub(came);
            // More than was sent can't be what was sent.
            self.broken += came.saturating_sub(lane.messages);
        }
        self.hangs += self.rest.hung;
        self.broken += self.rest.wrong + self.rest.broken;
    }

    /// Topic messages that are missing without a word.
    fn untold(&self) -> u64 {
        self.rest.gaps.saturating_sub(self.rest.told_lost)
    }

    fn verdict(&self) -> Verdict {
        Verdict {
            lost: self.lost + self.untold(),
            broken: self.broken,
            hangs: self.hangs,
        }
    }

    fn rate(&self) -> f64 {
        let routed = self.rest.followed + self.rest.answered * 2;
        (self.lane_messages + self.log_messages + routed) as f64
            / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn print(
        &self,
        request: &StressRequest,
        before: &DaemonUsage,
        after: &DaemonUsage,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let rest = &self.rest;
        out.line(format!(
            "{} agents for {}, {} killed and replaced, seed {}: {} msg/s",
            request.agents,
            span(u64::try_from(self.elapsed.as_millis()).unwrap_or(u64::MAX)),
            self.killed,
            request.seed,
            per_second(self.rate()),
        ))?;
        out.line(format!(
            "lanes     {} messages over {}, {} with both ends alive",
            grouped(self.lane_messages),
            self.lanes,
            self.compared
        ))?;
        out.line(format!(
            "logs      {} messages to {} readers, {} of them cut off",
            grouped(self.log_messages),
            self.logs,
            self.cut_off
        ))?;
        out.line(format!(
            "requests  {} made, {} answered, {} refused or broken off",
            grouped(rest.requests),
            grouped(rest.answered),
            grouped(rest.failed)
        ))?;
        out.line(format!(
            "topics    {} published, {} received; {} dropped and told, those of logs included",
            grouped(rest.published),
            grouped(rest.followed),
            grouped(rest.told_lost)
        ))?;
        let shown = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        let memory = |n: Option<u64>| n.map_or_else(|| "?".to_owned(), size);
        out.line(format!(
            "agentd    {} → {} descriptors, {} → {} resident",
            shown(before.descriptors),
            shown(after.descriptors),
            memory(before.resident_bytes),
            memory(after.resident_bytes)
        ))?;
        for grumble in self.grumbles.iter().take(10) {
            out.line(out.colour.paint(Style::Warn, grumble))?;
        }
        Ok(())
    }
}

async fn run(crew: &mut Crew<'_>, request: &StressRequest) -> Result<Books, Failure> {
    let name = run_name("stress");
    let orders = |slot, generation| {
        Orders::Mixed(Mixed {
            run: name.clone(),
            slot,
            agents: request.agents,
            generation,
            seed: request.seed,
            size: request.size as usize,
            mode: request.mode,
        })
    };
    let progress = Progress::new();
    let mut books = Books::default();
    for slot in 0..request.agents {
        progress.show(&format!(
            "launching agent {} of {}",
            slot + 1,
            request.agents
        ));
        crew.launch((slot, 0), &format!("{name}-{slot}"), &orders(slot, 0))
            .await?;
    }
    let mut waiting: BTreeSet<Seat> = crew.seats().into_iter().collect();
    while let Some(first) = waiting.first().copied() {
        progress.show(&format!("{} agents are getting ready", waiting.len()));
        let (seat, report) = crew.report("stress").await?;
        if report == Report::Ready {
            waiting.remove(&seat);
        } else {
            return Err(Failure::local(
                "can't finish the stress bench",
                format!(
                    "agent {} said {report:?} before {first:?} was ready",
                    seat.0
                ),
            ));
        }
    }
    crew.tell_all(GO);
    let begin = Instant::now();
    let end = begin + request.duration;
    let mut chance = Chance::new(request.seed);
    let mut next_kill = match request.kills {
        Kills::None => None,
        Kills::Random => Some(begin + pause(&mut chance, request.agents)),
    };
    let mut generations = vec![0_u32; request.agents as usize];
    // Those that came in the place of killed ones, and did not begin yet.
    let mut coming: BTreeSet<Seat> = BTreeSet::new();
    loop {
        let now = Instant::now();
        progress.show(&format!(
            "{} of {}, {} killed",
            span(u64::try_from((now - begin).as_millis()).unwrap_or(u64::MAX)),
            span(u64::try_from(request.duration.as_millis()).unwrap_or(u64::MAX)),
            books.killed
        ));
        // A kill that was due before the end is made, however late this looks at the clock.
        let due = next_kill.is_some_and(|at| at < end && now >= at);
        if now >= end && !due {
            break;
        }
        if due {
            let slot = chance.below(request.agents.into()) as u32;
            let generation = &mut generations[slot as usize];
            crew.kill((slot, *generation)).await?;
            coming.remove(&(slot, *generation));
            books.killed += 1;
            *generation += 1;
            coming.insert((slot, *generation));
            crew.launch(
                (slot, *generation),
                &format!("{name}-{slot}"),
                &orders(slot, *generation),
            )
            .await?;
            next_kill = Some(Instant::now() + pause(&mut chance, request.agents));
            continue;
        }
        let until = next_kill
            .map_or(end, |at| at.min(end))
            .min(now + Duration::from_millis(500));
        match crew.hear(until - now).await {
            Some((seat, Heard::Said(Report::Ready))) => {
                coming.remove(&seat);
                crew.tell(seat, GO);
            }
            Some((seat, heard)) => unexpected(&mut books, seat, heard)?,
            None => {}
        }
    }
    // Nobody stops before it has begun.
    while !coming.is_empty() {
        match crew.hear(PATIENCE).await {
            Some((seat, Heard::Said(Report::Ready))) => {
                coming.remove(&seat);
                crew.tell(seat, GO);
            }
            Some((seat, heard)) => unexpected(&mut books, seat, heard)?,
            None => {
                books.hangs += coming.len() as u64;
                return Ok(books);
            }
        }
    }
    books.elapsed = begin.elapsed();
    close(crew, &mut books, &progress).await?;
    Ok(books)
}

/// The two steps by which a run ends: all say what they sent, then what they got.
async fn close(crew: &mut Crew<'_>, books: &mut Books, progress: &Progress) -> Result<(), Failure> {
    books.launched = crew.launched();
    let all: BTreeSet<Seat> = crew.seats().into_iter().collect();
    books.survivors = all.len() as u64;
    crew.tell_all(STOP);
    let mut sent: BTreeMap<Seat, Vec<Sent>> = BTreeMap::new();
    while sent.len() < all.len() {
        progress.show(&format!("{} of {} have stopped", sent.len(), all.len()));
        match crew.hear(PATIENCE).await {
            Some((seat, Heard::Said(Report::Stopped(lanes)))) => {
                sent.insert(seat, lanes);
            }
            Some((seat, heard)) => unexpected(books, seat, heard)?,
            None => {
                books.hangs += (all.len() - sent.len()) as u64;
                return Ok(());
            }
        }
    }
    crew.tell_all(END);
    let mut reports: BTreeMap<Seat, MixedReport> = BTreeMap::new();
    while reports.len() < all.len() {
        progress.show(&format!("{} of {} have reported", reports.len(), all.len()));
        match crew.hear(PATIENCE).await {
            Some((seat, Heard::Said(Report::Mixed(report)))) => {
                reports.insert(seat, *report);
            }
            Some((seat, Heard::Ended)) if reports.contains_key(&seat) => {}
            Some((seat, heard)) => unexpected(books, seat, heard)?,
            None => {
                books.hangs += (all.len() - reports.len()) as u64;
                break;
            }
        }
    }
    books.balance(&sent, reports);
    Ok(())
}

/// What no agent should say. A few words are kept for whoever reads the report; an end is the end of the run.
fn unexpected(books: &mut Books, seat: Seat, heard: Heard) -> Result<(), Failure> {
    let failed = |why| Err(Failure::local("can't finish the stress bench", why));
    match heard {
        Heard::Grumbled(text) => {
            books.grumbles.push(format!("agent {}: {text}", seat.0));
            Ok(())
        }
        Heard::Said(Report::Failed(why)) => failed(format!("agent {}: {why}", seat.0)),
        Heard::Said(report) => failed(format!("agent {} said {report:?}", seat.0)),
        Heard::Ended => failed(format!(
            "agent {} ended in the middle; nobody killed it{}",
            seat.0,
            books
                .grumbles
                .last()
                .map_or_else(String::new, |g| format!(" ({g})"))
        )),
    }
}

fn pause(chance: &mut Chance, agents: u32) -> Duration {
    let width = KILL_EVERY_MS.end - KILL_EVERY_MS.start;
    let ms = KILL_EVERY_MS.start + chance.below(width);
    Duration::from_millis(ms * 8 / u64::from(agents.max(8)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::bench::orders::{LOGS_FROM, key};

    fn sent(messages: u64, complete: bool) -> BTreeMap<Seat, Vec<Sent>> {
        let lane = Sent {
            key: key(0, 0, 1),
            to: 1,
            messages,
            complete,
        };
        BTreeMap::from([((0, 0), vec![lane])])
    }

    fn got(messages: u64, missing: u64) -> BTreeMap<Seat, MixedReport> {
        let lane = Got {
            key: key(0, 0, 1),
            messages,
            missing,
            reliable: true,
            complete: true,
            ..Got::default()
        };
        let report = MixedReport {
            lanes: vec![lane],
            ..MixedReport::default()
        };
        BTreeMap::from([((1, 0), report)])
    }

    fn lost(sent: &BTreeMap<Seat, Vec<Sent>>, got: BTreeMap<Seat, MixedReport>) -> Verdict {
        let mut books = Books::default();
        books.balance(sent, got);
        books.verdict()
    }

    #[test]
    fn what_was_sent_and_did_not_come_is_lost_once() {
        assert!(lost(&sent(10, true), got(10, 0)).is_clean());
        assert_eq!(lost(&sent(10, true), got(7, 0)).lost, 3, "at the end");
        assert_eq!(lost(&sent(10, true), got(7, 3)).lost, 3, "in the middle");
        assert_eq!(lost(&sent(10, true), BTreeMap::new()).lost, 10);
        assert_eq!(
            lost(&sent(5, true), got(7, 0)).broken,
            2,
            "more than was sent"
        );
    }

    #[test]
    fn what_a_killed_side_knew_is_not_promised() {
        assert!(lost(&sent(10, false), BTreeMap::new()).is_clean());
        assert!(lost(&BTreeMap::new(), got(7, 0)).is_clean());
        assert_eq!(lost(&BTreeMap::new(), got(7, 1)).lost, 1, "but no gaps");
    }

    #[test]
    fn a_reliable_log_may_miss_nothing_a_lossy_one_nothing_untold() {
        let log = |reliable, first, missing, told| {
            let got = Got {
                key: key(0, 0, LOGS_FROM),
                first,
                messages: 5,
                missing,
                told,
                reliable,
                complete: true,
                ..Got::default()
            };
            let report = MixedReport {
                logs: vec![got],
                ..MixedReport::default()
            };
            BTreeMap::from([((1, 0), report)])
        };
        let writer = |messages| {
            let sent = Sent {
                key: key(0, 0, LOGS_FROM),
                to: 0,
                messages,
                complete: true,
            };
            BTreeMap::from([((0, 0), vec![sent])])
        };
        assert!(lost(&writer(8), log(true, 3, 0, 0)).is_clean(), "came late");
        assert_eq!(lost(&writer(9), log(true, 3, 0, 0)).lost, 1, "at the end");
        assert_eq!(lost(&writer(8), log(true, 2, 1, 1)).lost, 1, "told or not");
        assert!(lost(&writer(8), log(false, 0, 3, 3)).is_clean());
        assert_eq!(lost(&writer(8), log(false, 0, 3, 2)).lost, 1);
    }

    #[test]
    fn topics_may_drop_what_they_tell() {
        let mut books = Books::default();
        books.rest.gaps = 5;
        books.rest.told_lost = 5;
        assert!(books.verdict().is_clean());
        books.rest.gaps = 6;
        assert_eq!(books.verdict().lost, 1);
    }

    #[test]
    fn leaks_are_what_was_not_there_before() {
        let before = DaemonUsage {
            descriptors: Some(30),
            resident_bytes: None,
            peers: 1,
            connections: 1,
            channels: 0,
            requests: 0,
        };
        let mut after = before.clone();
        assert_eq!(leaks(&before, &after), 0);
        after.descriptors = Some(33);
        after.channels = 1;
        assert_eq!(leaks(&before, &after), 4);
        after.descriptors = None;
        assert_eq!(leaks(&before, &after), 1, "unknown is not a leak");
    }
}
