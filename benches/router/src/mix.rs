//! A hundred agents, each a process of its own, doing everything that the router has, all at once.
//!
//! In each round of its loop an agent puts a batch of 32 messages into one of ten queues, publishes to one of ten topics (each
//! with ten followers); every fourth it sends to another agent's inbox and asks another one; now and then it broadcasts. It has
//! up to [`WINDOW`] messages under way, and hears of each that was refused. In each round it takes what has come from its
//! queue, its topic and its inbox, and answers what others ask. Payloads are 64 bytes, and every one is read.
//!
//! What counts is what has arrived: messages taken from queues, topics and inboxes, requests served and answers received, while
//! all run and the queues are as long as they stay; every agent says how many. A message that was refused or dropped because
//! somebody was slow does not count.

use std::time::{Duration, Instant};

use agentd_bus::client::{
    Answer, Client, Consumer, Done, Pipeline, ProduceError, Producer, Received, Requests, Routing,
    Subscription,
};
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
/// Messages of one agent under way, queues left out: those go in batches, of which 64 are.
const WINDOW: usize = 256;
/// Messages that an agent has put into queues and not seen as many of come out: the queues stay short.
const AHEAD: u64 = 6144;
/// So much of a sample's length is worked before it begins, and not counted: until the queues are as long as they stay.
const WARM_UP: f64 = 0.5;
/// An agent that is that far ahead looks again after this at the latest, whatever comes.
const WAIT: Duration = Duration::from_millis(20);
const WATCHDOG: Duration = Duration::from_secs(30);

/// What one agent received.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    queue: u64,
    topic: u64,
    inbox: u64,
    served: u64,
    answers: u64,
    /// Topic messages for which it was too slow.
    lost: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            queue: self.queue - before.queue,
            topic: self.topic - before.topic,
            inbox: self.inbox - before.inbox,
            served: self.served - before.served,
            answers: self.answers - before.answers,
            lost: self.lost - before.lost,
        }
    }
}

pub fn measure(report: &mut Report, agents: usize, rounds: usize, length: Duration) {
    let mut samples = Vec::new();
    let mut parts: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..rounds {
        match round(agents, length) {
            Ok(rates) => {
                let arrived = rates.iter().filter(|(name, _)| name != "lost");
                samples.push(arrived.map(|(_, rate)| rate).sum());
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
            // Nobody leaves while others count.
            meet.wait();
            Ok(said)
        })
    });
    let said = play(sides.collect())?;
    let names = ["queue", "topic", "inbox", "requests", "answers", "lost"];
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
    number: usize,
    agents: usize,
    producer: Producer,
    consumer: Consumer,
    topic: Subscription,
    requests: Requests,
    pipeline: Pipeline,
    counts: Counts,
    /// Messages put into queues.
    put: u64,
    /// Of everything that was received, so that it is all read.
    sum: u64,
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
        Ok(Self {
            topic: client.subscribe(&format!("t{}", number % TOPICS))?,
            requests: client.serve(16)?,
            producer: produces.producer()?,
            consumer: consumes.consume(1024)?,
            pipeline: client.pipeline(WINDOW)?,
            number,
            agents,
            counts: Counts::default(),
            put: 0,
            sum: 0,
        })
    }

    fn run(&mut self, length: Duration) -> Result<Value> {
        self.pipeline.read_inbox(256, WATCHDOG)?;
        self.work(length.mul_f64(WARM_UP))?;
        let before = self.counts;
        let seconds = self.work(length)?;
        let Counts {
            queue,
            topic,
            inbox,
            served,
            answers,
            lost,
        } = self.counts.since(before);
        std::hint::black_box(self.sum);
        Ok(json!({
            "queue": queue, "topic": topic, "inbox": inbox, "answers": answers,
            "requests": served, "lost": lost, "seconds": seconds,
        }))
    }

    /// Rounds for so long; for how many seconds it was in the end.
    fn work(&mut self, length: Duration) -> Result<f64> {
        let payload = bench_kit::measure::payload(64);
        let topic = format!("t{}", (self.number + 1) % TOPICS);
        let other = format!("a{}", (self.number + 7) % self.agents);
        let begun = Instant::now();
        let mut round = 0_u64;
        while begun.elapsed() < length {
            if self.put > self.counts.queue + AHEAD {
                self.wait()?;
                self.take(&payload)?;
                continue;
            }
            self.put += BATCH as u64;
            for _ in 0..BATCH {
                self.producer.push(&payload)?;
            }
            match self.producer.send() {
                Ok(()) | Err(ProduceError::Refused { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.pipeline.publish(&topic, "tick", &payload)?;
            if round.is_multiple_of(ASK_EVERY) {
                self.pipeline.send(&other, "note", &payload)?;
                self.pipeline.request(&other, "echo", &payload, WATCHDOG)?;
            }
            if round % BROADCAST_EVERY == BROADCAST_EVERY - 1 {
                self.pipeline.broadcast("all", &payload)?;
            }
            self.take(&payload)?;
            round += 1;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Until there is something to take: this agent is as far ahead as it may be.
    fn wait(&mut self) -> Result<()> {
        let Self { consumer, sum, .. } = self;
        let taken = consumer.for_each(WAIT, |delivery| {
            *sum = sum.wrapping_add(bench_kit::sum(delivery.data));
            Outcome::Ack
        })?;
        self.counts.queue += taken as u64;
        Ok(())
    }

    /// Answers what others ask, after the end too: they wait for it.
    fn serve(&mut self) -> Result<()> {
        while let Some(request) = self.requests.next(Duration::ZERO)? {
            self.sum = self.sum.wrapping_add(bench_kit::sum(&request.params));
            let echo = request.params.clone();
            request.respond(Ok(&echo))?;
            self.counts.served += 1;
        }
        Ok(())
    }

    /// What has come, without waiting for more.
    fn take(&mut self, payload: &[u8]) -> Result<()> {
        let Self { consumer, sum, .. } = self;
        loop {
            let taken = consumer.for_each(Duration::ZERO, |delivery| {
                *sum = sum.wrapping_add(bench_kit::sum(delivery.data));
                Outcome::Ack
            })?;
            self.counts.queue += taken as u64;
            if taken == 0 {
                break;
            }
        }
        loop {
            let Self { topic, sum, .. } = self;
            match topic.for_each(Duration::ZERO, |frame| {
                *sum = sum.wrapping_add(bench_kit::sum(&frame.payload));
            }) {
                Received::Item(count) => self.counts.topic += count as u64,
                Received::Lost(n) => self.counts.lost += n,
                Received::TimedOut => break,
                other => bail!("a subscription ended: {other:?}"),
            }
        }
        self.serve()?;
        while let Some(done) = self.pipeline.next(Duration::ZERO)? {
            self.told(done, payload)?;
        }
        Ok(())
    }

    /// An answer, or a refusal.
    fn told(&mut self, done: Done, payload: &[u8]) -> Result<()> {
        match done.outcome {
            Ok(Answer::Reply(reply)) => {
                if reply.result != payload {
                    bail!("the answer is not what was asked");
                }
                self.counts.answers += 1;
            }
            Ok(Answer::Inbox(inbox)) => {
                for (_, frame) in &inbox.messages {
                    self.sum = self.sum.wrapping_add(bench_kit::sum(&frame.payload));
                }
                self.counts.inbox += inbox.messages.len() as u64;
                self.pipeline.read_inbox(256, WATCHDOG)?;
            }
            // An inbox, or what waits for a server, was full: the message does not count.
            Err(error) if error.status() == Some(Status::QUEUE_FULL) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
