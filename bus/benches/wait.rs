//! What it costs to be woken by one of many: a blocking waiter over 1 to 500 lanes, beside epoll over as many
//! sockets.
//!
//! `cargo bench -p agentd-bus --bench wait`. One process sends a time stamp on a channel picked at random, lets the other
//! fall asleep, and goes on; the other says how old the stamp is when it has it. Rounds alternate between ours and
//! the peer's. Prints one JSON object per row, medians of rounds with their spread; figures are of this machine and
//! this run.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agentd_bus::channel::{Class, Waiting};
use agentd_bus::lane::ring::{Consumer, Producer, Tag, format_cursor, format_data};
use agentd_bus::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use agentd_bus::shm::memfd::{self, Mapping};
use agentd_bus::shm::park::Closer;
use agentd_bus::wait::{Bell, Event, Park, Ringer, Waiter};
use rustix::event::epoll;

/// Time for the receiver to fall asleep before the next message.
const PAUSE: Duration = Duration::from_micros(200);
const MESSAGES: usize = 300;
const WARM_UP: usize = 30;
const ROUNDS: usize = 5;
const SLOTS: usize = 64;

type Out = Producer<Mapping, Mapping>;
type In = Consumer<Mapping, Mapping>;

fn lane() -> (Out, In) {
    let (data, data_fd) =
        memfd::create("bench-data", data_words(SLOTS, Inline::Small)).expect("memfd");
    let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words()).expect("memfd");
    format_data(&data, SLOTS, &SenderOptions::default()).expect("data");
    format_cursor(&cursor, &ReceiverOptions::default()).expect("cursor");
    let data_there = memfd::open(data_fd.as_fd()).expect("map");
    let cursor_there = memfd::open(cursor_fd.as_fd()).expect("map");
    let mut producer = Producer::new(
        data,
        cursor_there,
        Closer::default(),
        SenderOptions::default(),
    )
    .expect("producer");
    let mut consumer = Consumer::new(
        data_there,
        cursor,
        Closer::default(),
        ReceiverOptions::default(),
    )
    .expect("consumer");
    let bell = Bell::new().expect("bell");
    producer.set_ringer(Ringer::from_fd(bell.share().expect("dup")).expect("ringer"));
    consumer.set_bell(bell);
    (producer, consumer)
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

/// CLOCK_MONOTONIC, the same in every process.
fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Sends stamps on channels picked at random, each after the one before was taken and a pause.
fn send_all(channels: usize, mut taken: In, mut send: impl FnMut(usize, u64)) {
    let mut random = 1u64;
    let mut buffer = Vec::new();
    for n in 0..MESSAGES + WARM_UP {
        while n > 0 && taken.try_recv(&mut buffer).expect("lane").is_none() {
            std::hint::spin_loop();
        }
        let at = Instant::now();
        while at.elapsed() < PAUSE {
            std::hint::spin_loop();
        }
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        send((random >> 33) as usize % channels, now_ns());
    }
}

/// Median and 99th percentile, ns.
fn summary(mut ages: Vec<u64>) -> (f64, f64) {
    ages.drain(..WARM_UP);
    ages.sort_unstable();
    (
        ages[ages.len() / 2] as f64,
        ages[ages.len() * 99 / 100] as f64,
    )
}

fn ours(channels: usize, how: Park) -> (f64, f64) {
    let mut waiter = Waiter::new(Waiting::Blocking);
    waiter.prefer(Some(how));
    let mut outs = Vec::new();
    for _ in 0..channels {
        let (out, lane) = lane();
        outs.push(out);
        if waiter.add(lane, Class::Normal).is_err() {
            panic!("a lane was refused");
        }
    }
    let mut ages = Vec::new();
    let (mut taken, taken_there) = lane();
    beside(
        || {
            send_all(channels, taken_there, |at, stamp| {
                let sent = outs[at].try_send(Tag::default(), &stamp.to_le_bytes());
                sent.expect("room");
            });
        },
        || {
            let mut buffer = Vec::new();
            for _ in 0..MESSAGES + WARM_UP {
                let Ok(Some(Event::Ready(token))) = waiter.next(None) else {
                    panic!("no source became ready");
                };
                let lane = waiter.get_mut(token).expect("it is there");
                lane.try_recv(&mut buffer).expect("lane").expect("message");
                let stamp = u64::from_le_bytes(buffer[..].try_into().expect("8 bytes"));
                ages.push(now_ns() - stamp);
                taken.try_send(Tag::default(), &[]).expect("room");
            }
        },
    );
    summary(ages)
}

fn sockets(channels: usize) -> (f64, f64) {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).expect("epoll");
    let (mut outs, mut ins) = (Vec::new(), Vec::new());
    for n in 0..channels {
        let (out, there) = UnixStream::pair().expect("sockets");
        epoll::add(
            &set,
            &there,
            epoll::EventData::new_u64(n as u64),
            epoll::EventFlags::IN,
        )
        .expect("EPOLL_CTL_ADD");
        outs.push(out);
        ins.push(there);
    }
    let mut ages = Vec::new();
    let (mut taken, taken_there) = lane();
    beside(
        || {
            send_all(channels, taken_there, |at, stamp| {
                outs[at].write_all(&stamp.to_le_bytes()).expect("write");
            });
        },
        || {
            let mut events = Vec::with_capacity(16);
            while ages.len() < MESSAGES + WARM_UP {
                events.clear();
                epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None)
                    .expect("epoll_wait");
                for event in &events {
                    let mut stamp = [0; 8];
                    let data = event.data;
                    ins[data.u64() as usize]
                        .read_exact(&mut stamp)
                        .expect("read");
                    ages.push(now_ns() - u64::from_le_bytes(stamp));
                    taken.try_send(Tag::default(), &[]).expect("room");
                }
            }
        },
    );
    summary(ages)
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, unit: &str, values: &mut [f64]) {
    values.sort_by(f64::total_cmp);
    println!(
        "{{\"id\":\"{id}\",\"value\":{:.2},\"unit\":\"{unit}\",\"spread\":[{:.2},{:.2}],\"limit\":null}}",
        values[values.len() / 2],
        values[0],
        values[values.len() - 1]
    );
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("skipped: two processes that don't share a CPU need two, there is {cpus}");
        return;
    }
    for channels in [1, 16, 127, 500] {
        let mut ways: Vec<(&str, Vec<(f64, f64)>)> = Vec::new();
        if channels <= 127 {
            ways.push(("futex", Vec::new()));
        }
        ways.push(("bell", Vec::new()));
        ways.push(("sockets", Vec::new()));
        for _ in 0..ROUNDS {
            for (name, results) in &mut ways {
                results.push(match *name {
                    "futex" => ours(channels, Park::Futex),
                    "bell" => ours(channels, Park::Bell),
                    _ => sockets(channels),
                });
            }
        }
        for (name, results) in &ways {
            let mut p50: Vec<f64> = results.iter().map(|(p50, _)| *p50).collect();
            row(&format!("wake_{name}_{channels}_p50"), "ns", &mut p50);
            let mut p99: Vec<f64> = results.iter().map(|(_, p99)| *p99).collect();
            row(&format!("wake_{name}_{channels}_p99"), "ns", &mut p99);
        }
        let (_, theirs) = &ways[ways.len() - 1];
        for (name, results) in &ways[..ways.len() - 1] {
            let mut ratios: Vec<f64> = results.iter().zip(theirs).map(|(a, b)| a.0 / b.0).collect();
            row(
                &format!("wake_{name}_{channels}_against_sockets"),
                "ratio",
                &mut ratios,
            );
        }
    }
}
