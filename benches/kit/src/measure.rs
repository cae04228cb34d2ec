//! The three loops that every figure comes from.
//!
//! * **Round trip** (closed loop): one message is under way at a time; half of the time until its answer is one way.
//! * **Throughput**: one message per call, as fast as the receiver takes them; timed by the receiver.
//! * **Open loop**: messages are due at fixed times whatever became of those before, and latency runs from the time a
//!   message was *due*: a stall costs every message that it held up, not one (no coordinated omission).
//!
//! The first tenth of each is not counted. Both sides sum what they write and read; a difference is an error.

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::stage::{Meet, RECEIVER_CPU, SENDER_CPU, Side, play};
use crate::{Receiver, Sender, Setup, Transport, Waiting, clock, edges, sum};

/// What to measure of a transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    RoundTrip,
    Throughput,
    /// As throughput, of payloads that the sender copies in and the receiver copies out, and reads no more than that.
    Bulk,
    /// Messages due per second.
    OpenLoop(u64),
}

/// One measurement, small enough to be handed to another program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Task {
    pub shape: Shape,
    pub waiting: Waiting,
    pub bytes: usize,
    /// Messages that count; a tenth more go before them.
    pub messages: u64,
}

/// What one sample showed.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sample {
    /// One way, nanoseconds; 0 where the shape measures none.
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    /// Messages per second; of a round trip, how many there were.
    pub rate: f64,
    /// CPU time that a message cost its sender, nanoseconds; 0 where it was not asked for.
    pub cpu: f64,
}

impl Task {
    fn warm_up(&self) -> u64 {
        // At least a few laps of a small ring, so that no page is touched for the first time later.
        (self.messages / 10).clamp(64, 200_000)
    }

    fn all(&self) -> u64 {
        self.messages + self.warm_up()
    }
}

/// Takes one sample of `T`.
pub fn sample<T: Transport>(task: &Task) -> Result<Sample> {
    match task.shape {
        Shape::RoundTrip => round_trip::<T>(task),
        Shape::Throughput => throughput::<T>(task, sum),
        Shape::Bulk => throughput::<T>(task, edges),
        Shape::OpenLoop(rate) => open_loop::<T>(task, rate),
    }
}

/// A transport of one direction of this sample.
fn prepare<T: Transport>(task: &Task, direction: &str) -> Result<T> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static MADE: AtomicU64 = AtomicU64::new(0);
    let name = format!(
        "bench-{}-{}-{direction}",
        std::process::id(),
        MADE.fetch_add(1, Ordering::Relaxed)
    );
    T::prepare(&Setup {
        bytes: task.bytes,
        waiting: task.waiting,
        slots: match task.shape {
            Shape::Throughput => 1024,
            // Four blocks or a mebibyte, so that what is under way stays in a cache.
            Shape::Bulk => ((1 << 20) / task.bytes).max(4),
            // Enough to be fast, few enough to stay in the first-level cache.
            Shape::RoundTrip | Shape::OpenLoop(_) if task.bytes <= 64 => 64,
            Shape::RoundTrip | Shape::OpenLoop(_) => 256,
        },
        name,
    })
}

/// The payload, with `first` as its first word.
#[inline]
fn mark(payload: &mut [u8], first: u64) {
    let word = first.to_le_bytes();
    // The usual case without a call: at ten nanoseconds per message that shows.
    if let Some(whole) = payload.first_chunk_mut() {
        *whole = word;
        return;
    }
    let len = payload.len();
    payload.copy_from_slice(&word[..len]);
}

/// Not all zeroes, so that a sum says something.
pub fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7 + 1) as u8).collect()
}

pub fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).context("make a histogram")
}

/// Percentiles of a histogram of ticks, each divided by `parts`.
pub fn percentiles(times: &Histogram<u64>, parts: f64, rate: f64) -> Sample {
    let at = |quantile| value_at(times, quantile) / clock::ticks(1.0) / parts;
    Sample {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        rate,
        cpu: 0.0,
    }
}

/// The value at a quantile, interpolated between neighbouring values: some counters go in steps of ten nanoseconds, which
/// is too coarse for a ratio of two numbers of a hundred.
fn value_at(times: &Histogram<u64>, quantile: f64) -> f64 {
    let target = quantile * times.len() as f64;
    let (mut below, mut previous) = (0.0, None);
    for step in times.iter_recorded() {
        let (value, count) = (
            step.value_iterated_to() as f64,
            step.count_at_value() as f64,
        );
        if below + count >= target {
            // Further apart than that is a gap between samples, not a step of the counter.
            let low = previous.filter(|low| value - low <= value / 4.0);
            let low = low.unwrap_or(value);
            return low + (value - low) * (target - below) / count;
        }
        below += count;
        previous = Some(value);
    }
    0.0
}

#[derive(Serialize, Deserialize)]
struct Half {
    sum: u64,
    sample: Option<Sample>,
}

/// Runs a sending and a receiving process, and compares what was written with what was read.
fn both<'a>(
    sender: impl FnOnce(&mut Meet<'_>) -> Result<Half> + 'a,
    receiver: impl FnOnce(&mut Meet<'_>) -> Result<Half> + 'a,
) -> Result<Sample> {
    let said = play(vec![
        Side::new(SENDER_CPU, |meet| to_value(sender(meet)?)),
        Side::new(RECEIVER_CPU, |meet| to_value(receiver(meet)?)),
    ])?;
    let [sent, received]: [Value; 2] = said.try_into().ok().context("two processes")?;
    let (sent, received): (Half, Half) = (from_value(sent)?, from_value(received)?);
    if sent.sum != received.sum {
        bail!(
            "what was received is not what was sent: the sums are {:#x} and {:#x}",
            received.sum,
            sent.sum
        );
    }
    sent.sample.or(received.sample).context("no figures")
}

fn to_value(half: Half) -> Result<Value> {
    serde_json::to_value(half).context("write the figures")
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T> {
    serde_json::from_value(value).context("read the figures")
}

fn round_trip<T: Transport>(task: &Task) -> Result<Sample> {
    let (out, back) = (prepare::<T>(task, "out")?, prepare::<T>(task, "back")?);
    both(
        |meet| {
            let mut receiver = back.receiver()?;
            meet.wait();
            let mut sender = out.sender()?;
            meet.wait();
            let mut bytes = payload(task.bytes);
            let mut times = histogram()?;
            let mut total = 0_u64;
            let mut begun = clock::now();
            for n in 0..task.all() {
                if n == task.warm_up() {
                    begun = clock::now();
                    times.reset();
                }
                mark(&mut bytes, n);
                let start = clock::now();
                sender.send(&bytes)?;
                sender.flush()?;
                let answer = receiver.receive(sum)?;
                let took = clock::now() - start;
                total = total.wrapping_add(answer);
                times.saturating_record(took);
            }
            let seconds = clock::nanoseconds(clock::now() - begun) / 1e9;
            Ok(Half {
                sum: total,
                sample: Some(percentiles(&times, 2.0, task.messages as f64 / seconds)),
            })
        },
        |meet| {
            let mut receiver = out.receiver()?;
            meet.wait();
            let mut sender = back.sender()?;
            meet.wait();
            let mut bytes = payload(task.bytes);
            let mut total = 0_u64;
            for _ in 0..task.all() {
                let first = receiver.receive(|got| {
                    total = total.wrapping_add(sum(got));
                    first_word(got)
                })?;
                mark(&mut bytes, first);
                sender.send(&bytes)?;
                sender.flush()?;
            }
            Ok(Half {
                sum: total,
                sample: None,
            })
        },
    )
}

fn first_word(payload: &[u8]) -> u64 {
    payload
        .first_chunk::<8>()
        .map_or(0, |word| u64::from_le_bytes(*word))
}

fn throughput<T: Transport>(task: &Task, digest: impl Fn(&[u8]) -> u64 + Copy) -> Result<Sample> {
    let transport = prepare::<T>(task, "out")?;
    both(
        |meet| {
            meet.wait();
            let mut sender = transport.sender()?;
            meet.wait();
            let mut bytes = payload(task.bytes);
            give(&mut sender, &mut bytes, task.warm_up())?;
            // The warm-up has arrived: what counts begins with nothing under way.
            meet.wait();
            give(&mut sender, &mut bytes, task.messages)?;
            let sent = [task.warm_up(), task.messages];
            mark(&mut bytes, 0);
            let total = sent
                .map(|count| sum_of(count, digest(&bytes)))
                .iter()
                .fold(0, |total: u64, part| total.wrapping_add(*part));
            // All has been taken before this side lets go of it.
            meet.wait();
            Ok(Half {
                sum: total,
                sample: None,
            })
        },
        |meet| {
            let mut receiver = transport.receiver()?;
            meet.wait();
            meet.wait();
            let mut total = take(&mut receiver, task.warm_up(), digest)?;
            meet.wait();
            let begun = clock::now();
            total = total.wrapping_add(take(&mut receiver, task.messages, digest)?);
            let seconds = clock::nanoseconds(clock::now() - begun) / 1e9;
            meet.wait();
            Ok(Half {
                sum: total,
                sample: Some(Sample {
                    rate: task.messages as f64 / seconds,
                    ..Sample::default()
                }),
            })
        },
    )
}

/// Sends `count` messages, numbered in their first word.
#[inline]
fn give(sender: &mut impl Sender, bytes: &mut [u8], count: u64) -> Result<()> {
    for n in 0..count {
        mark(bytes, n);
        sender.send(bytes)?;
    }
    sender.flush()
}

/// What the receiver must find in `count` messages whose digest without their number is `one`.
fn sum_of(count: u64, one: u64) -> u64 {
    let numbers = u128::from(count) * u128::from(count.saturating_sub(1)) / 2;
    one.wrapping_mul(count).wrapping_add(numbers as u64)
}

/// Receives exactly `count` messages, and gives the sum of their digests.
#[inline]
fn take(
    receiver: &mut impl Receiver,
    count: u64,
    digest: impl Fn(&[u8]) -> u64 + Copy,
) -> Result<u64> {
    let (mut left, mut total) = (count, 0_u64);
    while left > 0 {
        left -= receiver.drain(left, |got| total = total.wrapping_add(digest(got)))?;
    }
    Ok(total)
}

fn open_loop<T: Transport>(task: &Task, rate: u64) -> Result<Sample> {
    let transport = prepare::<T>(task, "out")?;
    let interval = clock::ticks(1e9 / rate as f64);
    both(
        |meet| {
            meet.wait();
            let mut sender = transport.sender()?;
            meet.wait();
            let mut bytes = payload(task.bytes);
            let mut total = 0_u64;
            let begun = clock::now();
            for n in 0..task.all() {
                let due = begun + (n as f64 * interval) as u64;
                while clock::now() < due {}
                mark(&mut bytes, due);
                total = total.wrapping_add(sum(&bytes));
                sender.send(&bytes)?;
                sender.flush()?;
            }
            meet.wait();
            Ok(Half {
                sum: total,
                sample: None,
            })
        },
        |meet| {
            let mut receiver = transport.receiver()?;
            meet.wait();
            meet.wait();
            let mut times = histogram()?;
            let mut total = 0_u64;
            let mut begun = clock::now();
            for n in 0..task.all() {
                if n == task.warm_up() {
                    begun = clock::now();
                    times.reset();
                }
                let due = receiver.receive(|got| {
                    total = total.wrapping_add(sum(got));
                    first_word(got)
                })?;
                times.saturating_record(clock::now().saturating_sub(due).max(1));
            }
            let seconds = clock::nanoseconds(clock::now() - begun) / 1e9;
            meet.wait();
            let rate = task.messages as f64 / seconds;
            Ok(Half {
                sum: total,
                sample: Some(percentiles(&times, 1.0, rate)),
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_steps_of_a_coarse_counter() {
        let mut times = histogram().expect("a histogram");
        times.record_n(100, 10).expect("in range");
        times.record_n(120, 10).expect("in range");
        assert_eq!(value_at(&times, 0.5), 100.0);
        assert_eq!(value_at(&times, 0.75), 110.0);
        assert_eq!(value_at(&times, 1.0), 120.0);
    }

    #[test]
    fn a_gap_between_samples_is_not_interpolated() {
        let mut times = histogram().expect("a histogram");
        times.record_n(100, 1).expect("in range");
        times.record_n(1000, 3).expect("in range");
        assert_eq!(value_at(&times, 0.5), 1000.0);
    }

    #[test]
    fn the_expected_sum_is_that_of_every_message() {
        let mut bytes = payload(48);
        let mut total = 0_u64;
        for n in 0..1000 {
            mark(&mut bytes, n);
            total = total.wrapping_add(sum(&bytes));
        }
        mark(&mut bytes, 0);
        assert_eq!(sum_of(1000, sum(&bytes)), total);
    }
}
