//! What a lane costs between two processes: throughput of small messages and round trips, busy and blocking.
//!
//! `cargo bench -p agentd-bus --bench lane`. Prints one JSON object per row; both processes are pinned where
//! there are two CPUs. Figures are of this machine and this run; they are no promise.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentd_bus::lane::ring::{Consumer, Producer, Tag, format_cursor, format_data};
use agentd_bus::lane::{ReceiverOptions, SenderOptions, cursor_words, data_words};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;

const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};
const FOREVER: Duration = Duration::from_secs(600);

type Ends = (Producer<Mapping, Mapping>, Consumer<Mapping, Mapping>);

fn lane(slots: usize) -> Ends {
    let (sender, receiver) = (SenderOptions::default(), ReceiverOptions::default());
    let (data, data_fd) = memfd::create("bench-data", data_words(slots)).expect("memfd");
    let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words()).expect("memfd");
    format_data(&data, slots, &sender).expect("data");
    format_cursor(&cursor, &receiver).expect("cursor");
    let data_there = memfd::open(data_fd.as_fd()).expect("map");
    let cursor_there = memfd::open(cursor_fd.as_fd()).expect("map");
    let closer = Closer::default;
    (
        Producer::new(data, cursor_there, closer(), sender).expect("producer"),
        Consumer::new(data_there, cursor, closer(), receiver).expect("consumer"),
    )
}

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("not pinned to CPU {cpu}: {errno}");
    }
}

/// Runs `child` in another process on CPU 1 while `parent` runs here on CPU 0.
fn beside(child: impl FnOnce(), parent: impl FnOnce()) {
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
            parent();
            let mut status = 0;
            // SAFETY: waits for our own child; `status` is a valid place for the answer.
            let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!(
                (waited, status),
                (pid, 0),
                "the other process finished well"
            );
        }
    }
}

fn busy_recv(consumer: &mut Consumer<Mapping, Mapping>, buffer: &mut Vec<u8>) {
    while consumer.try_recv(buffer).expect("lane").is_none() {
        std::hint::spin_loop();
    }
}

fn busy_send(producer: &mut Producer<Mapping, Mapping>, payload: &[u8]) {
    while producer.try_send(TAG, payload).is_err() {
        std::hint::spin_loop();
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Busy,
    Blocking,
}

fn throughput(bytes: usize, waiting: Waiting, count: u64) -> f64 {
    let (mut producer, mut consumer) = lane(1024);
    let payload = vec![7; bytes];
    let mut rate = 0.0;
    beside(
        || {
            for _ in 0..count {
                match waiting {
                    Waiting::Busy => busy_send(&mut producer, &payload),
                    Waiting::Blocking => producer.send(TAG, &payload, FOREVER).expect("lane"),
                }
            }
        },
        || {
            let mut buffer = Vec::with_capacity(bytes);
            busy_recv(&mut consumer, &mut buffer);
            let start = Instant::now();
            for _ in 1..count {
                match waiting {
                    Waiting::Busy => busy_recv(&mut consumer, &mut buffer),
                    Waiting::Blocking => drop(consumer.recv(&mut buffer, FOREVER).expect("lane")),
                }
            }
            rate = (count - 1) as f64 / start.elapsed().as_secs_f64();
        },
    );
    rate
}

/// Median and 99th percentile of half a round trip, nanoseconds.
fn latency(bytes: usize, waiting: Waiting, count: usize) -> (f64, f64) {
    let (mut out, mut there) = lane(64);
    let (mut back, mut home) = lane(64);
    let payload = vec![7; bytes];
    let mut times = Vec::with_capacity(count);
    let warm_up = count / 10;
    beside(
        || {
            let mut buffer = Vec::with_capacity(bytes);
            for _ in 0..count + warm_up {
                match waiting {
                    Waiting::Busy => busy_recv(&mut there, &mut buffer),
                    Waiting::Blocking => drop(there.recv(&mut buffer, FOREVER).expect("lane")),
                }
                back.send(TAG, &payload, FOREVER).expect("lane");
            }
        },
        || {
            let mut buffer = Vec::with_capacity(bytes);
            for n in 0..count + warm_up {
                let start = Instant::now();
                out.send(TAG, &payload, FOREVER).expect("lane");
                match waiting {
                    Waiting::Busy => busy_recv(&mut home, &mut buffer),
                    Waiting::Blocking => drop(home.recv(&mut buffer, FOREVER).expect("lane")),
                }
                if n >= warm_up {
                    times.push(start.elapsed().as_nanos() as f64 / 2.0);
                }
            }
        },
    );
    times.sort_by(f64::total_cmp);
    (times[count / 2], times[count * 99 / 100])
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, value: f64, unit: &str, spread: (f64, f64)) {
    println!(
        "{{\"id\":\"{id}\",\"value\":{value:.0},\"unit\":\"{unit}\",\"spread\":[{:.0},{:.0}],\"limit\":null}}",
        spread.0, spread.1
    );
}

fn rounds(mut measure: impl FnMut() -> f64) -> (f64, (f64, f64)) {
    let mut values: Vec<f64> = (0..5).map(|_| measure()).collect();
    values.sort_by(f64::total_cmp);
    (values[2], (values[0], values[4]))
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("skipped: two processes that spin need two CPUs, there is {cpus}");
        return;
    }
    for (bytes, count) in [(48, 5_000_000), (1024, 300_000)] {
        let (value, spread) = rounds(|| throughput(bytes, Waiting::Busy, count));
        row(&format!("lane_busy_{bytes}"), value, "msg/s", spread);
        let (value, spread) = rounds(|| throughput(bytes, Waiting::Blocking, count));
        row(&format!("lane_adaptive_{bytes}"), value, "msg/s", spread);
    }
    for (waiting, name, count) in [
        (Waiting::Busy, "busy", 500_000),
        (Waiting::Blocking, "adaptive", 100_000),
    ] {
        let mut tails = Vec::new();
        let (value, spread) = rounds(|| {
            let (median, tail) = latency(48, waiting, count);
            tails.push(tail);
            median
        });
        row(&format!("lane_oneway_{name}_p50"), value, "ns", spread);
        tails.sort_by(f64::total_cmp);
        row(
            &format!("lane_oneway_{name}_p99"),
            tails[2],
            "ns",
            (tails[0], tails[4]),
        );
    }
}
