//! Logs in a stress run: each agent writes one; one neighbour reads it reliably, another with losses that it is told.

use std::time::{Duration, Instant};

use agentd_bus::client::{Client, FollowOptions, LogOptions, LogReader, LogReaders};
use agentd_bus::log::{Delivery, RecvError, SendError, Start};

use super::mixed::{LOOK, Shared, locked};
use super::{Done, WATCHDOG, tag, waiting};
use crate::verbs::bench::orders::{Got, HEAD, LOGS_FROM, Mixed, Sent, check, fill, key};

/// Messages in one go, and the pause after them.
const BURST: u64 = 16;
const BETWEEN_BURSTS: Duration = Duration::from_millis(10);

fn topic(orders: &Mixed, slot: u32) -> String {
    format!("{}.log.s{slot}", orders.run)
}

/// Writes one log after the other until it is told to stop.
pub fn write(shared: &Shared<'_>) {
    let orders = shared.orders;
    let topic = topic(orders, orders.slot);
    let options = LogOptions {
        waiting: waiting(orders.mode),
        ..LogOptions::default()
    };
    let mut message = vec![0; orders.size.max(HEAD)];
    let mut serial = LOGS_FROM;
    while !shared.is_stopping() {
        let Ok(mut log) = shared.client.publish_log(&topic, options) else {
            std::thread::sleep(LOOK);
            continue;
        };
        let key = key(orders.slot, orders.generation, serial);
        serial += 1;
        let mut number = 0;
        let ended = loop {
            if shared.is_stopping() {
                break false;
            }
            fill(&mut message, number, key);
            match log.send(tag(), &message, LOOK) {
                Ok(()) => number += 1,
                Err(SendError::Full { .. }) => continue,
                Err(_) => break true,
            }
            if number.is_multiple_of(BURST) {
                shared.pause(BETWEEN_BURSTS);
            }
        };
        drop(log);
        locked(&shared.sent).push(Sent {
            key,
            to: orders.slot,
            messages: number,
            complete: !ended,
        });
    }
}

/// Logs of one neighbour, as they come.
pub struct Followed {
    readers: LogReaders,
    delivery: Delivery,
}

/// Follows the logs of two neighbours; with two agents, of the one there is.
pub fn follow(client: &Client, orders: &Mixed) -> Done<Vec<Followed>> {
    let neighbours = [(1, Delivery::Reliable), (2, Delivery::Lossy)];
    let mut followed = Vec::new();
    for (distance, delivery) in neighbours {
        let slot = (orders.slot + distance) % orders.agents;
        if slot == orders.slot {
            continue;
        }
        let options = FollowOptions {
            delivery,
            start: Start::Oldest,
            waiting: waiting(orders.mode),
        };
        let readers = client
            .follow_log(&topic(orders, slot), options)
            .map_err(|e| format!("can't follow a log: {e}"))?;
        followed.push(Followed { readers, delivery });
    }
    Ok(followed)
}

impl Followed {
    /// Reads each log to its end, until it is over.
    pub fn read_all(mut self, shared: &Shared<'_>) {
        std::thread::scope(|logs| {
            while !shared.is_over() {
                if let Ok(Some(reader)) = self.readers.next(LOOK) {
                    let delivery = self.delivery;
                    logs.spawn(move || read(shared, reader, delivery));
                }
            }
        });
    }
}

fn read(shared: &Shared<'_>, mut log: LogReader, delivery: Delivery) {
    let mut got = Got {
        reliable: delivery == Delivery::Reliable,
        ..Got::default()
    };
    let mut next = None;
    let mut buffer = Vec::new();
    let mut patience: Option<Instant> = None;
    loop {
        match log.recv(&mut buffer, LOOK) {
            Ok(message) => {
                got.messages += 1;
                // What it lost before its first message was never promised to it.
                if next.is_some() {
                    got.told += message.lost;
                }
                let sound = (buffer.len() >= HEAD).then(|| check(&buffer)).flatten();
                let Some((number, from)) = sound.filter(|(number, _)| *number == message.number)
                else {
                    got.broken += 1;
                    continue;
                };
                got.key = from;
                match number.checked_sub(next.unwrap_or(number)) {
                    Some(skipped) => got.missing += skipped,
                    None => got.broken += 1,
                }
                if next.is_none() {
                    got.first = number;
                }
                next = Some(number + 1);
            }
            Err(RecvError::TimedOut) => {
                // All writers have ended by then: a log that does not end hangs.
                let end = shared.is_over().then(|| Instant::now() + WATCHDOG);
                patience = patience.or(end);
                if patience.is_some_and(|end| Instant::now() > end) {
                    break;
                }
            }
            Err(RecvError::Closed(_)) => {
                got.complete = true;
                break;
            }
            Err(RecvError::CutOff) => {
                got.cut_off = true;
                break;
            }
            Err(_) => {
                got.broken += 1;
                break;
            }
        }
    }
    // A log of which nothing came names nobody, and nothing is missing.
    if got.messages > 0 {
        locked(&shared.read).push(got);
    }
}
