//! One agent of a stress run: every pattern at once, each with numbers that show what is missing.
//!
//! Threads: two that send over lanes, one per lane that comes, and one each that asks, answers, publishes and follows.
//! Others may be killed at any moment; what that breaks off is begun anew with whoever comes in their place.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentd_bus::client::{Client, ClientError, LaneReceiver, Received};
use agentd_bus::lane::ring::{RecvError, SendError};
use agentd_bus::message::{Event, Status};

use super::{Checker, Commands, Done, WATCHDOG, accept, connect, lane_options, logs, say, tag};
use crate::verbs::bench::orders::{
    Chance, END, GO, Got, HEAD, Mixed, MixedReport, Report, STOP, Sent, check, fill, generation_of,
    key, slot_of,
};

/// Messages in one go over a lane, and the pause after them: load from everybody, and room for everybody.
const BURST: u64 = 64;
const BETWEEN_BURSTS: Duration = Duration::from_millis(5);
const BETWEEN_REQUESTS: Duration = Duration::from_millis(20);
const BETWEEN_EVENTS: Duration = Duration::from_millis(25);
/// Pauses are meant for so many agents, and longer with more.
const A_FEW: u32 = 8;
/// Looks at whether it is over, in waits that nothing else ends.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// No pace: whoever is asked answers at once, or its end is told.
const REQUEST_TIMEOUT: Duration = WATCHDOG;
/// Requests taken at a time.
const WINDOW: u32 = 8;
const METHOD: &str = "twice";
const TYPE: &str = "bench";
/// Topics of one run.
const TOPICS: u32 = 8;

/// What the threads of one agent share.
pub(super) struct Shared<'a> {
    pub orders: &'a Mixed,
    pub client: Client,
    /// Begin nothing more.
    stopping: AtomicBool,
    /// Receive nothing more either.
    over: AtomicBool,
    pub sent: Mutex<Vec<Sent>>,
    got: Mutex<Vec<Got>>,
    /// Of logs.
    pub read: Mutex<Vec<Got>>,
    report: Mutex<MixedReport>,
    served: AtomicU64,
}

impl Shared<'_> {
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A pause that leaves the machine the same room however many agents share it.
    pub fn pause(&self, of_a_few: Duration) {
        std::thread::sleep(of_a_few * self.orders.agents.div_ceil(A_FEW));
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn count(&self, change: impl FnOnce(&mut MixedReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

pub(super) fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn run(commands: &Commands, orders: &Mixed) -> Done {
    let client = connect()?;
    let shared = Shared {
        orders,
        client,
        stopping: AtomicBool::new(false),
        over: AtomicBool::new(false),
        sent: Mutex::default(),
        got: Mutex::default(),
        read: Mutex::default(),
        report: Mutex::default(),
        served: AtomicU64::new(0),
    };
    let failed = |what: &'static str| move |e: ClientError| format!("{what}: {e}");
    let offers = shared
        .client
        .accept_lanes()
        .map_err(failed("can't take lanes"))?;
    let requests = shared
        .client
        .serve(WINDOW)
        .map_err(failed("can't take requests"))?;
    let topic = format!("{}.t{}", orders.run, (orders.slot + 1) % TOPICS);
    let following = shared
        .client
        .subscribe(&topic)
        .map_err(failed("can't follow a topic"))?;
    let followed = logs::follow(&shared.client, orders)?;
    say(&Report::Ready);
    commands.expect(GO)?;
    std::thread::scope(|scope| {
        let shared = &shared;
        // Two neighbours, so that each agent also receives from two; with two agents it is twice the same.
        let senders = [1, 2].map(|distance| {
            let to = (orders.slot + distance) % orders.agents;
            let to = if to == orders.slot {
                (to + 1) % orders.agents
            } else {
                to
            };
            scope.spawn(move || send_lanes(shared, to, distance))
        });
        let asker = scope.spawn(move || ask(shared));
        let publisher = scope.spawn(move || publish(shared));
        let writer = scope.spawn(move || logs::write(shared));
        let readers: Vec<_> = followed
            .into_iter()
            .map(|followed| scope.spawn(move || followed.read_all(shared)))
            .collect();
        let acceptor = scope.spawn(move || {
            std::thread::scope(|lanes| {
                while !shared.is_over() {
                    if let Ok(Some(offer)) = offers.next(LOOK)
                        && let Ok(lane) = accept(offer, shared.orders.mode)
                    {
                        lanes.spawn(move || receive(shared, lane));
                    }
                }
            });
        });
        let server = scope.spawn(move || {
            while !shared.is_over() {
                if let Ok(Some(incoming)) = requests.next(LOOK) {
                    let answer = twice(&incoming.params);
                    // The asker may have gone; then nobody misses the answer.
                    if incoming.respond(Ok(&answer)).is_ok() {
                        shared.served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        let follower = scope.spawn(move || follow(shared, &following));
        let panicked = |_| "a thread of this agent panicked".to_owned();
        let stopped = wait_for(commands, STOP);
        shared.stopping.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().map_err(panicked)?;
        }
        asker.join().map_err(panicked)?;
        publisher.join().map_err(panicked)?;
        writer.join().map_err(panicked)?;
        say(&Report::Stopped(std::mem::take(&mut *locked(&shared.sent))));
        let ended = stopped.and_then(|()| wait_for(commands, END));
        shared.over.store(true, Ordering::Relaxed);
        acceptor.join().map_err(panicked)?;
        server.join().map_err(panicked)?;
        follower.join().map_err(panicked)?;
        for reader in readers {
            reader.join().map_err(panicked)?;
        }
        ended
    })?;
    let mut report = std::mem::take(&mut *locked(&shared.report));
    report.lanes = std::mem::take(&mut *locked(&shared.got));
    report.logs = std::mem::take(&mut *locked(&shared.read));
    report.served = shared.served.load(Ordering::Relaxed);
    say(&Report::Mixed(Box::new(report)));
    Ok(())
}

fn wait_for(commands: &Commands, command: &str) -> Done {
    while !commands.came(command, LOOK) {
        if commands.is_over() {
            return Err(format!("stdin ended before {command:?}"));
        }
    }
    Ok(())
}

/// Sends over one lane after the other to whoever has this slot.
fn send_lanes(shared: &Shared<'_>, to: u32, distance: u32) {
    let orders = shared.orders;
    let name = orders.name(to);
    let mut message = vec![0; orders.size.max(HEAD)];
    let mut serial = distance << 16;
    while !shared.is_stopping() {
        let Ok(mut lane) = shared.client.open_lane(&name, lane_options(orders.mode)) else {
            // Killed, and its successor is not there yet.
            std::thread::sleep(LOOK);
            continue;
        };
        serial += 1;
        let key = key(orders.slot, orders.generation, serial);
        let mut number = 0;
        let ended = loop {
            if shared.is_stopping() {
                break false;
            }
            fill(&mut message, number, key);
            match lane.send(tag(), &message, LOOK) {
                Ok(()) => number += 1,
                Err(SendError::Full) => continue,
                Err(_) => break true,
            }
            if number.is_multiple_of(BURST) {
                shared.pause(BETWEEN_BURSTS);
            }
        };
        // Before it is told: the receiver reads it to its end.
        drop(lane);
        locked(&shared.sent).push(Sent {
            key,
            to,
            messages: number,
            complete: !ended,
        });
    }
}

/// Reads one lane to its end.
fn receive(shared: &Shared<'_>, mut lane: LaneReceiver) {
    let mut checker = Checker::default();
    let mut buffer = Vec::new();
    let mut from = None;
    let mut patience: Option<Instant> = None;
    let complete = loop {
        match lane.recv(&mut buffer, LOOK) {
            Ok(_) => {
                let word = checker.take(&buffer);
                from = from.or(word);
            }
            Err(RecvError::TimedOut) => {
                // All senders have closed by then: a lane that does not end hangs.
                let end = shared.is_over().then(|| Instant::now() + WATCHDOG);
                patience = patience.or(end);
                if patience.is_some_and(|end| Instant::now() > end) {
                    break false;
                }
            }
            Err(RecvError::Closed(_)) => break true,
            Err(_) => {
                checker.got.broken += 1;
                break false;
            }
        }
    };
    // A lane over which nothing came names nobody, and nothing is missing.
    if let Some(key) = from {
        locked(&shared.got).push(Got {
            key,
            messages: checker.got.messages,
            missing: checker.got.missing,
            broken: checker.got.broken,
            reliable: true,
            complete,
            ..Got::default()
        });
    }
}

/// What a server answers.
fn twice(params: &[u8]) -> Vec<u8> {
    [params, params].concat()
}

fn ask(shared: &Shared<'_>) {
    let orders = shared.orders;
    let mut chance = Chance::new(orders.seed ^ key(orders.slot, orders.generation, 0));
    let mut params = vec![0; orders.size.max(HEAD)];
    let mut number = 0;
    while !shared.is_stopping() {
        let other = chance.below(u64::from(orders.agents) - 1) as u32;
        let other = if other >= orders.slot {
            other + 1
        } else {
            other
        };
        fill(&mut params, number, 0);
        number += 1;
        let answer = shared
            .client
            .request(&orders.name(other), METHOD, &params, REQUEST_TIMEOUT);
        shared.count(|report| {
            report.requests += 1;
            match answer {
                Ok(reply) if reply.result == twice(&params) => report.answered += 1,
                Ok(_) => report.wrong += 1,
                // No word of anybody: not even that time is up.
                Err(ClientError::NoAnswer { .. }) => report.hung += 1,
                Err(error) if error.status() == Some(Status::DEADLINE) => report.hung += 1,
                Err(_) => report.failed += 1,
            }
        });
        shared.pause(BETWEEN_REQUESTS);
    }
}

fn publish(shared: &Shared<'_>) {
    let orders = shared.orders;
    let topic = format!("{}.t{}", orders.run, orders.slot % TOPICS);
    let mut message = vec![0; orders.size.max(HEAD)];
    let mut number = 0;
    while !shared.is_stopping() {
        fill(&mut message, number, key(orders.slot, orders.generation, 0));
        if shared.client.publish(&topic, TYPE, &message).is_ok() {
            number += 1;
            shared.count(|report| report.published += 1);
        }
        shared.pause(BETWEEN_EVENTS);
    }
}

/// Follows a topic: each publisher's numbers go up by one, except for what was told to be lost.
fn follow(shared: &Shared<'_>, following: &agentd_bus::client::Subscription) {
    let mut next: HashMap<u64, u64> = HashMap::new();
    while !shared.is_over() {
        match following.next(LOOK) {
            Received::Item(frame) => {
                let data = Event::parse(&frame.payload).ok();
                let message =
                    data.and_then(|event| (event.data.len() >= HEAD).then(|| check(event.data)));
                let Some(Some((number, from))) = message else {
                    shared.count(|report| report.broken += 1);
                    continue;
                };
                debug_assert!(
                    slot_of(from) < shared.orders.agents,
                    "generation {}",
                    generation_of(from)
                );
                // One that was there before counts from what is heard of it first.
                let expected = next.insert(from, number + 1).unwrap_or(number);
                shared.count(|report| {
                    report.followed += 1;
                    match number.checked_sub(expected) {
                        Some(skipped) => report.gaps += skipped,
                        None => report.broken += 1,
                    }
                });
            }
            Received::Lost(n) => shared.count(|report| report.told_lost += n),
            Received::Replaced | Received::TimedOut => {}
            Received::Closed => return,
        }
    }
}
