//! What a lane costs between two processes, beside what the machine itself costs: the cache-line ping-pong, a
//! bare ring without any feature, and a futex.
//!
//! `cargo bench -p agentd-bus --bench lane [-- FILTER]`. Prints one JSON object per row: the median of short
//! alternating samples with their spread, and for a lane the median of its ratios to the floor measured just
//! before. Both processes are pinned, to CPU 0 and 1. Figures are of this machine and this run.

use std::hint::{black_box, spin_loop};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentd_bus::channel::Waiting;
use agentd_bus::lane::ring::{Consumer, Producer, Tag, format_cursor, format_data};
use agentd_bus::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;
use agentd_bus::shm::region::Words;
use rustix::thread::futex;

const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};
const FOREVER: Duration = Duration::from_secs(600);
const SLOTS: usize = 1024;
const ROUNDS: usize = 21;
const INLINE: usize = 48;

type Ends = (Producer<Mapping, Mapping>, Consumer<Mapping, Mapping>);

fn lane(waiting: Waiting) -> Ends {
    let sender = SenderOptions {
        waiting,
        ..SenderOptions::default()
    };
    let receiver = ReceiverOptions {
        waiting,
        ..ReceiverOptions::default()
    };
    let (data, data_fd) =
        memfd::create("bench-data", data_words(SLOTS, Inline::Small)).expect("memfd");
    let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words()).expect("memfd");
    format_data(&data, SLOTS, &sender).expect("data");
    format_cursor(&cursor, &receiver).expect("cursor");
    let data_there = memfd::open(data_fd.as_fd()).expect("map");
    let cursor_there = memfd::open(cursor_fd.as_fd()).expect("map");
    let consumer = Consumer::new(data_there, cursor, Closer::default(), receiver);
    let producer = Producer::new(data, cursor_there, Closer::default(), sender);
    (producer.expect("producer"), consumer.expect("consumer"))
}

/// Memory that both processes write: for the floors.
fn memory() -> Mapping {
    memfd::create("bench-floor", data_words(SLOTS, Inline::Small))
        .expect("memfd")
        .0
}

/// The bare ring: sequence in the slot, all of 48 bytes, and nothing else.
struct Bare<'a> {
    words: &'a [AtomicU64],
    next: u64,
    consumed: u64,
}

impl<'a> Bare<'a> {
    fn new(memory: &'a Mapping) -> Self {
        Self {
            words: memory.words(),
            next: 0,
            consumed: 0,
        }
    }

    fn slot(&self) -> &'a [AtomicU64; 8] {
        let at = 512 + (self.next as usize % SLOTS) * 8;
        self.words[at..].first_chunk().expect("a slot")
    }

    #[inline]
    fn send(&mut self, payload: &[u8]) {
        while self.next - self.consumed == SLOTS as u64 {
            self.consumed = self.words[0].load(Ordering::Acquire);
        }
        let payload: &[u8; INLINE] = payload.try_into().expect("48 bytes");
        let slot = self.slot();
        for (word, bytes) in slot[2..].iter().zip(payload.as_chunks::<8>().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        self.next += 1;
        slot[0].store(self.next, Ordering::Release);
    }

    #[inline]
    fn recv(&mut self, take: impl FnOnce(&[u8])) {
        let slot = self.slot();
        while slot[0].load(Ordering::Acquire) != self.next + 1 {
            spin_loop();
        }
        let mut payload = [0; INLINE];
        for (bytes, word) in payload.as_chunks_mut::<8>().0.iter_mut().zip(&slot[2..]) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        self.next += 1;
        if self.next.is_multiple_of(SLOTS as u64 / 4) {
            self.words[0].store(self.next, Ordering::Release);
        }
        take(&payload);
    }
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("not pinned to CPU {cpu}: {errno}");
    }
}

/// Runs `child` in another process on CPU 1 while `parent` runs here on CPU 0.
fn beside<R>(child: impl FnOnce(), parent: impl FnOnce() -> R) -> R {
    // SAFETY: this process has one thread, so the child may do anything; it leaves by `_exit`.
    match unsafe { libc::fork() } {
        0 => {
            pin(1);
            child();
            // SAFETY: ends the process without running the parent's destructors twice.
            unsafe { libc::_exit(0) }
        }
        pid => {
            pin(0);
            let result = parent();
            let mut status = 0;
            // SAFETY: waits for our own child; `status` is a valid place for the answer.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(
                (waited, status),
                (pid, 0),
                "the other process finished well"
            );
            result
        }
    }
}

/// Messages per microsecond: the first tenth is not counted.
fn rate(count: u64, mut receive: impl FnMut(u64) -> u64) -> f64 {
    let mut got = 0;
    while got < count / 10 {
        got += receive(count / 10 - got);
    }
    let (start, before) = (Instant::now(), got);
    while got < count {
        got += receive(count - got);
    }
    (got - before) as f64 / start.elapsed().as_secs_f64() / 1e6
}

fn bare_throughput(count: u64) -> f64 {
    let memory = memory();
    let payload = black_box([7; INLINE]);
    beside(
        || {
            let mut ring = Bare::new(&memory);
            (0..count).for_each(|_| ring.send(black_box(&payload)));
        },
        || {
            let mut ring = Bare::new(&memory);
            rate(count, |_| {
                ring.recv(|payload| {
                    black_box(checksum(payload));
                });
                1
            })
        },
    )
}

/// Reads all of it.
#[inline]
fn checksum(payload: &[u8]) -> u64 {
    let words = payload.as_chunks::<8>().0;
    words
        .iter()
        .fold(0, |sum, word| sum ^ u64::from_le_bytes(*word))
}

fn throughput(bytes: usize, waiting: Waiting, batch: usize, count: u64) -> f64 {
    let (mut producer, mut consumer) = lane(waiting);
    let payload = black_box(vec![7; bytes]);
    beside(
        || {
            if batch == 1 {
                for _ in 0..count {
                    producer
                        .send(TAG, black_box(&payload), FOREVER)
                        .expect("lane");
                }
                return;
            }
            let messages = vec![(TAG, &payload[..]); batch];
            let mut left = count as usize;
            while left > 0 {
                left -= producer
                    .send_batch(black_box(&messages[..batch.min(left)]), FOREVER)
                    .expect("lane");
            }
        },
        || {
            rate(count, |left| {
                if batch == 1 {
                    consumer
                        .recv_with(FOREVER, |_, payload| {
                            black_box(checksum(payload));
                        })
                        .expect("lane");
                    return 1;
                }
                let max = batch.min(left as usize);
                let taken = consumer.for_each(max, |_, payload| {
                    black_box(checksum(payload));
                });
                taken.expect("lane") as u64
            })
        },
    )
}

/// Median and 99th percentile of half a round trip, nanoseconds; the first tenth is not counted.
fn half_trips(count: usize, mut trip: impl FnMut()) -> (f64, f64) {
    let mut times: Vec<f64> = (0..count)
        .map(|_| {
            let start = Instant::now();
            trip();
            start.elapsed().as_nanos() as f64 / 2.0
        })
        .skip(count / 10)
        .collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

fn pingpong(count: usize) -> (f64, f64) {
    let memory = memory();
    let (out, back) = (&memory.words()[0], &memory.words()[64]);
    let wait = |word: &AtomicU64, n| {
        while word.load(Ordering::Acquire) != n {
            spin_loop();
        }
    };
    beside(
        || {
            for n in 1..=count as u64 {
                wait(out, n);
                back.store(n, Ordering::Release);
            }
        },
        || {
            let mut n = 0;
            half_trips(count, || {
                n += 1;
                out.store(n, Ordering::Release);
                wait(back, n);
            })
        },
    )
}

fn bare_latency(count: usize) -> (f64, f64) {
    let (there, back) = (memory(), memory());
    let payload = black_box([7; INLINE]);
    let read = |payload: &[u8]| {
        black_box(checksum(payload));
    };
    let ends = || (Bare::new(&there), Bare::new(&back));
    beside(
        || {
            let (mut there, mut back) = ends();
            for _ in 0..count {
                there.recv(read);
                back.send(black_box(&payload));
            }
        },
        || {
            let (mut there, mut back) = ends();
            half_trips(count, || {
                there.send(black_box(&payload));
                back.recv(read);
            })
        },
    )
}

fn futexes(count: usize) -> (f64, f64) {
    let memory = memory();
    let half = |at: usize| {
        // SAFETY: the first half of a valid, aligned AtomicU64 is a valid, aligned AtomicU32; these words are
        // accessed through this half alone.
        unsafe { &*std::ptr::from_ref(&memory.words()[at]).cast::<AtomicU32>() }
    };
    let (out, back) = (half(0), half(64));
    let wait = |word: &AtomicU32, n: u32| {
        while word.load(Ordering::Acquire) != n {
            // Woken, or changed meanwhile: looks again in either case.
            futex::wait(word, futex::Flags::empty(), n.wrapping_sub(1), None).unwrap_or_default();
        }
    };
    let say = |word: &AtomicU32, n| {
        word.store(n, Ordering::Release);
        futex::wake(word, futex::Flags::empty(), 1).expect("futex");
    };
    beside(
        || {
            for n in 1..=count as u32 {
                wait(out, n);
                say(back, n);
            }
        },
        || {
            let mut n = 0;
            half_trips(count, || {
                n += 1;
                say(out, n);
                wait(back, n);
            })
        },
    )
}

fn latency(bytes: usize, waiting: Waiting, count: usize) -> (f64, f64) {
    let (mut out, mut there) = lane(waiting);
    let (mut back, mut home) = lane(waiting);
    let payload = black_box(vec![7; bytes]);
    fn hop(consumer: &mut Consumer<Mapping, Mapping>) {
        let read = |_, payload: &[u8]| {
            black_box(checksum(payload));
        };
        consumer.recv_with(FOREVER, read).expect("lane");
    }
    beside(
        || {
            for _ in 0..count {
                hop(&mut there);
                back.send(TAG, black_box(&payload), FOREVER).expect("lane");
            }
        },
        || {
            half_trips(count, || {
                out.send(TAG, black_box(&payload), FOREVER).expect("lane");
                hop(&mut home);
            })
        },
    )
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, mut values: Vec<f64>, unit: &str) {
    let middle = median(&mut values);
    println!(
        "{{\"id\":\"{id}\",\"value\":{middle:.2},\"unit\":\"{unit}\",\"spread\":[{:.2},{:.2}],\"limit\":null}}",
        values[0],
        values[values.len() - 1]
    );
}

/// Takes one sample.
type Measured = Box<dyn Fn() -> (f64, f64)>;

/// Measures `floor` and each of `ours` in turn, and prints them and their ratios.
fn compare(
    (floor, measure_floor): (&str, &dyn Fn() -> (f64, f64)),
    ours: &[(String, Measured)],
    parts: [&str; 2],
    unit: &str,
) {
    let mut floors = Vec::new();
    let mut found = vec![Vec::new(); ours.len()];
    for _ in 0..ROUNDS {
        floors.push(measure_floor());
        for (values, (_, measure)) in found.iter_mut().zip(ours) {
            values.push(measure());
        }
    }
    for (part, name) in parts.into_iter().enumerate() {
        if name.is_empty() {
            continue;
        }
        let pick = |values: &[(f64, f64)]| -> Vec<f64> {
            values
                .iter()
                .map(|value| if part == 0 { value.0 } else { value.1 })
                .collect()
        };
        let floor_values = pick(&floors);
        row(&format!("{floor}_{name}"), floor_values.clone(), unit);
        for ((id, _), values) in ours.iter().zip(&found) {
            let values = pick(values);
            let ratios = values.iter().zip(&floor_values).map(|(a, b)| a / b);
            row(&format!("{id}_{name}_ratio"), ratios.collect(), "×");
            row(&format!("{id}_{name}"), values, unit);
        }
    }
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("skipped: two processes that spin need two CPUs, there is {cpus}");
        return;
    }
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |group: &str| filter.as_deref().is_none_or(|filter| filter == group);
    let both = |name: &str, measure: Measured| (name.to_owned(), measure);
    if wanted("oneway") {
        let ours = [
            both("bare_ring", Box::new(|| bare_latency(3_000))),
            both(
                "lane_busy",
                Box::new(|| latency(INLINE, Waiting::Busy, 3_000)),
            ),
            both(
                "lane_adaptive",
                Box::new(|| latency(INLINE, Waiting::Adaptive, 3_000)),
            ),
        ];
        compare(
            ("pingpong", &|| pingpong(3_000)),
            &ours,
            ["p50", "p99"],
            "ns",
        );
    }
    if wanted("wake") {
        let ours = [both(
            "lane_blocking",
            Box::new(|| latency(INLINE, Waiting::Blocking, 300)),
        )];
        compare(("futex", &|| futexes(300)), &ours, ["p50", "p99"], "ns");
    }
    let rate = |bytes, waiting, batch, count| -> Measured {
        Box::new(move || (throughput(bytes, waiting, batch, count), 0.0))
    };
    if wanted("rate") {
        let ours = [
            both("lane_busy", rate(INLINE, Waiting::Busy, 1, 60_000)),
            both("lane_busy_batch16", rate(INLINE, Waiting::Busy, 16, 60_000)),
            both("lane_adaptive", rate(INLINE, Waiting::Adaptive, 1, 60_000)),
            both("lane_blocking", rate(INLINE, Waiting::Blocking, 1, 5_000)),
            both("lane_busy_8b", rate(8, Waiting::Busy, 1, 60_000)),
        ];
        compare(
            ("bare_ring", &|| (bare_throughput(60_000), 0.0)),
            &ours,
            ["rate", ""],
            "msg/us",
        );
    }
    if wanted("sizes") {
        let ours = [64, 128, 256, 1024, 4096].map(|bytes| {
            both(
                &format!("lane_busy_{bytes}b"),
                rate(bytes, Waiting::Busy, 1, 2_000_000 / bytes as u64),
            )
        });
        compare(
            ("lane_busy_48b", &|| {
                (throughput(INLINE, Waiting::Busy, 1, 30_000), 0.0)
            }),
            &ours,
            ["rate", ""],
            "msg/us",
        );
    }
}
