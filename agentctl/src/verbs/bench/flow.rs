//! `bench throughput` and `bench latency`: two agents, and what the receiving one says.

use std::io::IsTerminal as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::crew::{Crew, Seat};
use super::figures::Latencies;
use super::orders::{GO, Orders, Received, Report};
use super::{LatencyRequest, ThroughputRequest};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, Style, count, grouped, per_second, size, span, stderr_line};
use crate::resolve::Context;

/// Agents outlive the run they are for by so much at most, however it ends.
pub const MARGIN: Duration = Duration::from_secs(300);

/// Exit code of a run that was interrupted, as a shell would say it of SIGINT.
pub const INTERRUPTED: u8 = 130;

const RECEIVER: Seat = (0, 0);
const SENDER: Seat = (1, 0);

/// SIGINT or SIGTERM.
pub struct Interrupt {
    int: Signal,
    term: Signal,
}

impl Interrupt {
    pub fn watch() -> Result<Self, Failure> {
        let failed = |e| Failure::local("can't watch signals", e);
        Ok(Self {
            int: signal(SignalKind::interrupt()).map_err(failed)?,
            term: signal(SignalKind::terminate()).map_err(failed)?,
        })
    }

    pub async fn came(&mut self) {
        tokio::select! {
            _ = self.int.recv() => {}
            _ = self.term.recv() => {}
        }
    }
}

/// A line on stderr that is written over and over, on a terminal only.
pub struct Progress {
    shown: bool,
}

impl Progress {
    pub fn new() -> Self {
        Self {
            shown: std::io::stderr().is_terminal(),
        }
    }

    pub fn show(&self, text: &str) {
        use std::io::Write as _;
        if self.shown {
            let mut stderr = std::io::stderr().lock();
            // A stderr that nobody reads is no reason to fail.
            drop(write!(stderr, "\r{text}\x1b[K").and_then(|()| stderr.flush()));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.show("");
    }
}

/// A name that no other run has.
pub fn run_name(what: &str) -> String {
    format!("{what}-{}", std::process::id())
}

/// Ends the crew however the run ended, and gives the run's outcome; `None`: it was interrupted.
pub async fn finish<T>(
    crew: Crew<'_>,
    outcome: Option<Result<T, Failure>>,
) -> Result<Option<T>, Failure> {
    let launched = crew.launched();
    let ended = crew.end().await;
    match outcome {
        Some(Err(failure)) => Err(failure),
        Some(Ok(value)) => ended.map(|()| Some(value)),
        None => {
            ended?;
            stderr_line(&format!(
                "agentctl: interrupted; all {launched} agents of the bench were ended"
            ));
            Ok(None)
        }
    }
}

/// What two agents made of it.
struct Flow {
    sent: Option<(u64, u64)>,
    received: Received,
}

/// Launches the receiving agent and then the sending one, and lets them run.
async fn run(
    crew: &mut Crew<'_>,
    what: &str,
    receiver: Orders,
    sender: impl FnOnce(&str) -> Orders,
    total: Option<u64>,
) -> Result<Flow, Failure> {
    let progress = Progress::new();
    progress.show("launching two agents");
    let name = run_name(what);
    crew.launch(RECEIVER, &format!("{name}-receiver"), &receiver)
        .await?;
    until_ready(crew, what, RECEIVER).await?;
    let to = crew.name(RECEIVER).to_owned();
    crew.launch(SENDER, &format!("{name}-sender"), &sender(&to))
        .await?;
    until_ready(crew, what, SENDER).await?;
    crew.tell(SENDER, GO);
    let mut sent = None;
    loop {
        let (_, report) = crew.report(what).await?;
        match report {
            Report::Progress(messages) => progress.show(&match total {
                Some(total) => format!(
                    "{} of {} messages, {} %",
                    grouped(messages),
                    grouped(total),
                    messages * 100 / total.max(1)
                ),
                None => format!("{} messages", grouped(messages)),
            }),
            Report::Sent {
                messages,
                elapsed_ns,
            } => {
                sent = Some((messages, elapsed_ns));
                // The sender may end before or after the receiver is done.
            }
            Report::Received(received) => {
                while sent.is_none() {
                    if let (
                        _,
                        Report::Sent {
                            messages,
                            elapsed_ns,
                        },
                    ) = crew.report(what).await?
                    {
                        sent = Some((messages, elapsed_ns));
                    }
                }
                return Ok(Flow { sent, received });
            }
            Report::Bounced(received) => return Ok(Flow { sent, received }),
            Report::Ready
            | Report::Echoed
            | Report::Stopped(_)
            | Report::Mixed(_)
            | Report::Failed(_) => {}
        }
    }
}

async fn until_ready(crew: &mut Crew<'_>, what: &str, seat: Seat) -> Result<(), Failure> {
    loop {
        if let (from, Report::Ready) = crew.report(what).await?
            && from == seat
        {
            return Ok(());
        }
    }
}

pub async fn throughput(context: &Context, request: &ThroughputRequest) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let mut interrupt = Interrupt::watch()?;
    // However slow the machine: a thousand messages a second.
    let longest = Duration::from_secs(request.messages / 1000) + MARGIN;
    let mut crew = Crew::new(context, &daemon, longest)?;
    let orders = Orders::Receive {
        lanes: request.threads,
        mode: request.mode,
    };
    let sender = |to: &str| Orders::Send {
        to: to.to_owned(),
        lanes: request.threads,
        messages: request.messages,
        size: request.size as usize,
        mode: request.mode,
    };
    let flow = tokio::select! {
        flow = run(&mut crew, "throughput", orders, sender, Some(request.messages)) => Some(flow),
        () = interrupt.came() => None,
    };
    let Some(flow) = finish(crew, flow).await? else {
        return Ok(INTERRUPTED);
    };
    let received = &flow.received;
    let lost = request.messages.saturating_sub(received.messages) + received.missing;
    let seconds = (received.elapsed_ns.max(1)) as f64 / 1e9;
    let rate = received.messages as f64 / seconds;
    let bytes = received.bytes as f64 / seconds;
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({
            "bench": "throughput",
            "messages": request.messages,
            "threads": request.threads,
            "size": request.size,
            "waiting": request.mode.as_str(),
            "received": received.messages,
            "lost": lost,
            "broken": received.broken,
            "elapsed_ns": received.elapsed_ns,
            "messages_per_second": rate,
            "bytes_per_second": bytes,
        }))?;
    } else {
        out.line(format!(
            "{} messages of {} in {}: {} msg/s, {}B/s  ({} {}, {} waiting)",
            grouped(received.messages),
            size(request.size.into()),
            span(received.elapsed_ns / 1_000_000),
            per_second(rate),
            per_second(bytes),
            request.threads,
            if request.threads == 1 {
                "lane"
            } else {
                "lanes"
            },
            request.mode.as_str(),
        ))?;
        verdict(&mut out, lost, received.broken)?;
    }
    out.flush()?;
    Ok(u8::from(lost > 0 || received.broken > 0))
}

fn verdict(out: &mut Out, lost: u64, broken: u64) -> Result<(), Failure> {
    let colour = out.colour;
    if lost == 0 && broken == 0 {
        return out.line(colour.paint(Style::Good, "nothing lost, nothing broken"));
    }
    out.line(colour.paint(
        Style::Bad,
        &format!("{} lost, {} broken", grouped(lost), grouped(broken)),
    ))
}

pub async fn latency(context: &Context, request: &LatencyRequest) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let mut interrupt = Interrupt::watch()?;
    let mut crew = Crew::new(context, &daemon, request.duration + MARGIN)?;
    let duration_ns = u64::try_from(request.duration.as_nanos())
        .map_err(|_| Failure::usage("can't run that long", "allowed are 500 years"))?;
    let (size_, mode) = (request.size as usize, request.mode);
    let outcome = match request.rate {
        Some(rate) => {
            let due = u128::from(rate) * u128::from(duration_ns) / 1_000_000_000;
            let due = u64::try_from(due).unwrap_or(u64::MAX);
            if due == 0 {
                return Err(Failure::usage(
                    "can't measure nothing",
                    "at this rate no message is due in that time",
                )
                .try_next("a higher --rate or a longer --duration"));
            }
            let orders = Orders::Receive { lanes: 1, mode };
            let sender = |to: &str| Orders::Pace {
                to: to.to_owned(),
                rate,
                duration_ns,
                size: size_,
                mode,
            };
            tokio::select! {
                flow = run(&mut crew, "latency", orders, sender, Some(due)) => Some(flow),
                () = interrupt.came() => None,
            }
        }
        None => {
            // Who bounces is named before it is there: the echo offers a lane back to it.
            let sender_name = format!("{}-sender", run_name("latency"));
            let orders = Orders::Echo {
                to: sender_name,
                mode,
            };
            let sender = |to: &str| Orders::Bounce {
                to: to.to_owned(),
                duration_ns,
                size: size_,
                mode,
            };
            tokio::select! {
                flow = run(&mut crew, "latency", orders, sender, None) => Some(flow),
                () = interrupt.came() => None,
            }
        }
    };
    let Some(flow) = finish(crew, outcome).await? else {
        return Ok(INTERRUPTED);
    };
    let received = &flow.received;
    let mut latencies = Latencies::new();
    latencies.add(&received.latency);
    let sent = flow
        .sent
        .map_or(received.messages, |(messages, _)| messages);
    let lost = sent.saturating_sub(received.messages) + received.missing;
    let what = match request.rate {
        Some(_) => "one-way, from when each message was due",
        None => "round trip",
    };
    let mut out = Out::stdout();
    if context.is_json() {
        let rate = request.rate.map_or(Value::Null, Value::from);
        out.json(&json!({
            "bench": "latency",
            "loop": if request.rate.is_some() { "open" } else { "closed" },
            "measures": if request.rate.is_some() { "one-way" } else { "round-trip" },
            "rate": rate,
            "duration_ms": u64::try_from(request.duration.as_millis()).unwrap_or(u64::MAX),
            "size": request.size,
            "waiting": mode.as_str(),
            "sent": sent,
            "received": received.messages,
            "lost": lost,
            "broken": received.broken,
            "latency_ns": latencies.to_json(),
        }))?;
    } else {
        out.line(format!(
            "{} messages of {}, {what} ({} waiting)",
            grouped(received.messages),
            size(request.size.into()),
            mode.as_str()
        ))?;
        for (name, value) in latencies.lines() {
            out.line(format!("  {name:<7} {value:>9}"))?;
        }
        if let (Some(rate), Some((messages, elapsed_ns))) = (request.rate, flow.sent) {
            let reached = messages as f64 / (elapsed_ns.max(1) as f64 / 1e9);
            if reached < rate as f64 * 0.99 {
                let text = format!(
                    "the sender reached {} of {} messages per second; latencies count from when they were due",
                    per_second(reached),
                    count(rate)
                );
                out.line(out.colour.paint(Style::Warn, &text))?;
            }
        }
        verdict(&mut out, lost, received.broken)?;
    }
    out.flush()?;
    Ok(u8::from(lost > 0 || received.broken > 0))
}
