//! Our log read by many: what one message costs its producer, in CPU time of its process.
//!
//! The producer has CPU 0, all readers share CPU 1, each in a process of its own. Every reader is adaptive and
//! sums every message that it gets; the producer sends one message per call. A reliable reader gets all of them, and the
//! producer waits, asleep, for the slowest; a lossy one is overrun, and says exactly how many it lost. CPU time is the
//! kernel's account of the producer's process with all of its threads, between the end of the warm-up and the last send.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use agentd_bus::channel::{Tag, Waiting};
use agentd_bus::log::{
    self, Delivery, Hold, Reader, ReaderId, ReaderOptions, Writer, WriterOptions, cursor_words,
    data_words, format_cursor, format_data,
};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;
use anyhow::{Context, Result, bail};
use bench_kit::measure::{Sample, payload};
use bench_kit::stage::{Meet, RECEIVER_CPU, SENDER_CPU, Side, play};
use bench_kit::{clock, sum};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

const SLOTS: usize = 4096;
const BYTES: usize = 48;
/// Longer than the watchdog of any measurement.
const FOREVER: Duration = Duration::from_secs(600);
const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};

const fn options(delivery: Delivery) -> ReaderOptions {
    ReaderOptions {
        start: log::Start::Head,
        delivery,
        waiting: Waiting::Adaptive,
    }
}

/// Memory as its maker has it, and the descriptor that others map it from.
type Made = (Cell<Option<Mapping>>, OwnedFd);

fn made(name: &str, words: usize, format: impl Fn(&Mapping) -> Result<()>) -> Result<Made> {
    let (mapping, fd) = memfd::create(name, words)?;
    format(&mapping)?;
    Ok((Cell::new(Some(mapping)), fd))
}

/// Sends `messages` to `readers` processes; `cpu` of the sample is what one cost the producer.
pub fn fan_out(readers: u32, delivery: Delivery, messages: u64) -> Result<Sample> {
    let data = made("bench-log", data_words(SLOTS), |memory| {
        Ok(format_data(memory, SLOTS)?)
    })?;
    let cursors = (0..readers)
        .map(|_| {
            made("bench-cursor", cursor_words(), |memory| {
                Ok(format_cursor(memory, &options(delivery))?)
            })
        })
        .collect::<Result<Vec<Made>>>()?;
    let warm_up = messages / 10;
    let mut sides = vec![Side::new(SENDER_CPU, |meet| {
        produce(meet, &data, &cursors, delivery, warm_up, messages)
    })];
    for cursor in &cursors {
        let data = &data.1;
        sides.push(Side::new(RECEIVER_CPU, move |meet| {
            consume(meet, data, cursor, delivery, warm_up + messages)
        }));
    }
    let said = play(sides)?;
    let number = |value: &Value, key: &str| value[key].as_f64().with_context(|| key.to_owned());
    let (producer, readers) = said.split_first().context("no producer")?;
    if let Some(reader) = readers
        .iter()
        .find(|reader| delivery == Delivery::Reliable && reader["sum"] != producer["sum"])
    {
        bail!(
            "a reader found {}, sent was {}",
            reader["sum"],
            producer["sum"]
        );
    }
    Ok(Sample {
        rate: messages as f64 / number(producer, "seconds")?,
        cpu: number(producer, "cpu_ns")? / messages as f64,
        ..Sample::default()
    })
}

fn produce(
    meet: &mut Meet<'_>,
    data: &Made,
    cursors: &[Made],
    delivery: Delivery,
    warm_up: u64,
    messages: u64,
) -> Result<Value> {
    let memory = data.0.take().context("the log's memory")?;
    let options = WriterOptions {
        waiting: Waiting::Blocking,
        hold: Hold {
            time: FOREVER,
            ..Hold::default()
        },
        ..WriterOptions::default()
    };
    let mut writer = Writer::new(memory, Closer::default(), options)?;
    for (id, (_, cursor)) in (0..).zip(cursors) {
        let cursor = memfd::open(cursor.as_fd())?;
        writer.attach_reader(ReaderId(id), cursor, delivery)?;
    }
    meet.wait();
    let mut bytes = payload(BYTES);
    let mut total = 0_u64;
    let mut send = |from: u64, to: u64| -> Result<()> {
        for n in from..to {
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            total = total.wrapping_add(sum(&bytes));
            writer.send(TAG, &bytes, FOREVER)?;
        }
        Ok(())
    };
    send(0, warm_up)?;
    let (begun, used) = (clock::now(), cpu_ns());
    send(warm_up, warm_up + messages)?;
    let (cpu_ns, ticks) = (cpu_ns() - used, clock::now() - begun);
    meet.wait();
    let seconds = clock::nanoseconds(ticks) / 1e9;
    Ok(json!({ "sum": total, "cpu_ns": cpu_ns, "seconds": seconds }))
}

fn consume(
    meet: &mut Meet<'_>,
    data: &OwnedFd,
    cursor: &Made,
    delivery: Delivery,
    messages: u64,
) -> Result<Value> {
    let cursor = cursor.0.take().context("the reader's memory")?;
    let data = memfd::open(data.as_fd())?;
    let mut reader = Reader::new(data, cursor, Closer::default(), options(delivery))?;
    meet.wait();
    let mut buffer = Vec::with_capacity(BYTES);
    let mut total = 0_u64;
    let mut published = 0;
    while published < messages {
        let message = reader.recv(&mut buffer, FOREVER)?;
        if message.lost > 0 && delivery == Delivery::Reliable {
            bail!("a reliable reader lost {}", message.lost);
        }
        published += 1 + message.lost;
        total = total.wrapping_add(sum(&buffer));
    }
    if published != messages {
        bail!("a reader counted {published} messages, sent were {messages}");
    }
    meet.wait();
    Ok(json!({ "sum": total }))
}

/// CPU time of this process, all of its threads.
fn cpu_ns() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec.unsigned_abs() * 1_000_000_000 + used.tv_nsec.unsigned_abs()
}
