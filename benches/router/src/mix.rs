//! A hundred agents, each a process of its own, doing everything that the router has, all at once.
//!
//! In each round of its loop an agent puts a batch of 32 messages into one of ten queues, publishes to one of ten topics (each
//! with ten followers), sends to another agent's inbox and asks another one; now and then it broadcasts. A thread of its own answers
//! what others ask. It takes from its queue, its topic and its inbox in each round. Payloads are 64 bytes.
//!
//! What counts is what has arrived: messages taken from queues, topics and inboxes, requests served and answers received, while
//! all run; every agent says how many. A message that was refused or dropped because somebody was slow does not count.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentd_bus::client::{Client, ClientError, Received, Routing};
use agentd_bus::message::{Full, Outcome, QueueSpec, Status};
use anyhow::{Context, Result, bail};
use bench_kit::report::{Limit, Report};
use bench_kit::stage::{Side, play};
use serde_json::{Value, json};

use crate::server::Server;

const TOPICS: usize = 10;
const BATCH: usize = 32;
/// Rounds between two broadcasts of one agent.
const BROADCAST_EVERY: u64 = 256;
/// Rounds between two requests, and two messages to an inbox.
const ASK_EVERY: u64 = 4;
const WATCHDOG: Duration = Duration::from_secs(30);

/// What one agent received.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    queue: u64,
    topic: u64,
    inbox: u64,
    answers: u64,
}

pub fn measure(report: &mut Report, agents: usize, rounds: usize, length: Duration) {
    let mut samples = Vec::new();
    let mut parts: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        match round(agents, length) {
            Ok(rates) => {
                samples.push(rates.iter().map(|(_, rate)| rate).sum());
                for (name, rate) in rates {
                    match parts.iter_mut().find(|(known, _)| *known == name) {
                        Some((_, rates)) => rates.push(rate),
                        None => parts.push((name, vec![rate])),
                    }
                }
            }
            Err(error) => return report.skip("router_mix", error),
        }
    }
    let limit = Limit::AtLeast(2_500_000.0);
    report.row("router_mix", "msg/s", samples, Some(limit));
    for (name, rates) in parts {
        report.figure(format!("mix.{name}"), "msg/s", rates);
    }
}

/// Messages per second of each pattern.
fn round(agents: usize, length: Duration) -> Result<Vec<(String, f64)>> {
    let server = Server::start(agents)?;
    let sides = (0..agents).map(|number| {
        let path = server.socket(number);
        Side::new(number % 2, move |meet| {
            let client = Client::connect_with(&path, Routing::Whole)?;
            if !client.is_routed() {
                bail!("the bus gave no shared memory");
            }
            let mut agent = Agent::start(client, number, agents)?;
            meet.wait();
            let said = agent.run(length)?;
            // Whoever has asked is answered before anybody leaves.
            meet.wait();
            agent.stop.store(true, Ordering::Relaxed);
            Ok(said)
        })
    });
    let said = play(sides.collect())?;
    let names = ["queue", "topic", "inbox", "requests", "answers"];
    names
        .iter()
        .map(|name| {
            let counts = said.iter().map(|one| one[*name].as_f64());
            let sum: Option<f64> = counts.sum();
            let seconds = said.iter().filter_map(|one| one["seconds"].as_f64());
            let longest = seconds.fold(0.0, f64::max);
            Ok((
                (*name).to_owned(),
                sum.context("a count is missing")? / longest,
            ))
        })
        .collect()
}

struct Agent {
    client: Client,
    number: usize,
    agents: usize,
    producer: agentd_bus::client::Producer,
    consumer: agentd_bus::client::Consumer,
    topic: agentd_bus::client::Subscription,
    served: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    counts: Counts,
}

impl Agent {
    fn start(client: Client, number: usize, agents: usize) -> Result<Self> {
        let spec = QueueSpec {
            full: Full::Reject,
            ..QueueSpec::default()
        };
        let name = |of: usize| format!("q{}", of % TOPICS);
        let produces = client.declare_queue(&name(number + 1), spec)?;
        let consumes = client.declare_queue(&name(number), spec)?;
        let (served, stop): (Arc<AtomicU64>, Arc<AtomicBool>) = Default::default();
        let requests = client.serve(16)?;
        let (counting, stopping) = (served.clone(), stop.clone());
        std::thread::spawn(move || -> Result<(), ClientError> {
            while !stopping.load(Ordering::Relaxed) {
                if let Some(request) = requests.next(Duration::from_millis(200))? {
                    let echo = request.params.clone();
                    request.respond(Ok(&echo))?;
                    counting.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        Ok(Self {
            topic: client.subscribe(&format!("t{}", number % TOPICS))?,
            producer: produces.producer()?,
            consumer: consumes.consume(1024)?,
            client,
            number,
            agents,
            served,
            stop,
            counts: Counts::default(),
        })
    }

    fn run(&mut self, length: Duration) -> Result<Value> {
        let payload = bench_kit::measure::payload(64);
        let topic = format!("t{}", (self.number + 1) % TOPICS);
        let other = format!("a{}", (self.number + 7) % self.agents);
        let begun = Instant::now();
        let mut round = 0;
        while begun.elapsed() < length {
            for _ in 0..BATCH {
                self.producer.push(&payload)?;
            }
            match self.producer.send() {
                Ok(()) => {}
                Err(agentd_bus::client::ProduceError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.client.publish(&topic, "tick", &payload)?;
            if round.is_multiple_of(ASK_EVERY) {
                self.ask(&other, &payload)?;
            }
            if round % BROADCAST_EVERY == 0 {
                self.client.broadcast("all", &payload)?;
            }
            self.take(round)?;
            round += 1;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let Counts {
            queue,
            topic,
            inbox,
            answers,
        } = self.counts;
        Ok(json!({
            "queue": queue, "topic": topic, "inbox": inbox, "answers": answers,
            "requests": self.served.load(Ordering::Relaxed), "seconds": seconds,
        }))
    }

    fn ask(&mut self, other: &str, payload: &[u8]) -> Result<()> {
        match self.client.send(other, "note", payload) {
            Err(error) if error.status() != Some(Status::QUEUE_FULL) => return Err(error.into()),
            _ => {}
        }
        let reply = match self.client.request(other, "echo", payload, WATCHDOG) {
            Err(error) if error.status() == Some(Status::QUEUE_FULL) => return Ok(()),
            reply => reply?,
        };
        if reply.result != payload {
            bail!("the answer is not what was asked");
        }
        self.counts.answers += 1;
        Ok(())
    }

    /// What has come, without waiting for more.
    fn take(&mut self, round: u64) -> Result<()> {
        let mut sum = 0_u64;
        let taken = self.consumer.for_each(Duration::ZERO, |delivery| {
            sum = sum.wrapping_add(bench_kit::sum(delivery.data));
            Outcome::Ack
        })?;
        self.counts.queue += taken as u64;
        loop {
            match self.topic.next(Duration::ZERO) {
                Received::Item(frame) => {
                    sum = sum.wrapping_add(bench_kit::sum(&frame.payload));
                    self.counts.topic += 1;
                }
                Received::Lost(_) => {}
                Received::TimedOut => break,
                other => bail!("a subscription ended: {other:?}"),
            }
        }
        if round.is_multiple_of(ASK_EVERY) {
            let inbox = self.client.inbox(256, Duration::ZERO)?;
            self.counts.inbox += inbox.messages.len() as u64;
        }
        std::hint::black_box(sum);
        Ok(())
    }
}
