//! What bulk costs between two processes, beside memcpy of the same shape: one process copies in, the other out.
//!
//! `cargo bench -p agentd-bus --bench arena`. Prints one JSON object per row; the processes are pinned where there
//! are two CPUs, and the two ways alternate. Ratios are of this run; figures are of this machine and no promise.

use std::hint::{black_box, spin_loop};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agentd_bus::arena::segment::{Announce, FdArrivals, MemfdSupply, Segment, SegmentOptions};
use agentd_bus::arena::{BulkOptions, BulkReceiver, BulkSender};
use agentd_bus::channel::{Tag, Waiting};
use agentd_bus::lane::ring::{Consumer, Producer, format_cursor, format_data};
use agentd_bus::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use agentd_bus::shm::memfd;
use agentd_bus::shm::pages::PageKind;
use agentd_bus::shm::park::Closer;

/// More than the caches that the two processes share.
const SEGMENT: u64 = 16 << 20;
const SLOTS: usize = 64;
/// Bytes that one sample of throughput moves.
const SAMPLE: usize = 96 << 20;
const ROUNDS: usize = 9;

/// Hands segments over within this process, before it forks.
#[derive(Debug)]
struct Kept(std::sync::mpsc::Sender<(u32, OwnedFd)>);

impl Announce for Kept {
    fn segment(&mut self, number: u32, fd: BorrowedFd<'_>) -> std::io::Result<()> {
        let fd = fd.try_clone_to_owned()?;
        self.0.send((number, fd)).map_err(std::io::Error::other)
    }

    fn dropped(&mut self, _number: u32) {}
}

type Receive = Box<dyn FnMut(&mut Vec<u8>) -> bool>;
type Send = Box<dyn FnMut(&[u8]) -> bool>;

/// A lane with an arena, as its two ends.
fn bulk(threshold: usize, largest: PageKind) -> (Send, Receive) {
    let (sender, receiver) = (
        SenderOptions {
            waiting: Waiting::Busy,
            ..SenderOptions::default()
        },
        ReceiverOptions {
            waiting: Waiting::Busy,
            ..ReceiverOptions::default()
        },
    );
    let (data, data_fd) =
        memfd::create("bench-data", data_words(SLOTS, Inline::Small)).expect("memfd");
    let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words()).expect("memfd");
    format_data(&data, SLOTS, &sender).expect("data");
    format_cursor(&cursor, &receiver).expect("cursor");
    let data_there = memfd::open(data_fd.as_fd()).expect("map");
    let cursor_there = memfd::open(cursor_fd.as_fd()).expect("map");
    let closer = Closer::default;
    let producer = Producer::new(data, cursor_there, closer(), sender).expect("producer");
    let consumer = Consumer::new(data_there, cursor, closer(), receiver).expect("consumer");
    let (kept, arrived) = std::sync::mpsc::channel();
    let options = SegmentOptions {
        bytes: SEGMENT,
        largest,
        ..SegmentOptions::default()
    };
    let bulk = BulkOptions {
        threshold,
        first: SEGMENT,
        grow_to: 0,
    };
    let supply = MemfdSupply::new(options, Kept(kept));
    let mut out = BulkSender::new(producer, supply, bulk).expect("arena");
    let arrivals = FdArrivals::new(move |_| arrived.try_recv().ok());
    let mut back = BulkReceiver::new(consumer, arrivals, 1 << 30);
    let tag = Tag::default();
    (
        Box::new(move |payload| out.try_send(tag, payload).is_ok()),
        Box::new(move |buffer| back.try_recv(buffer).expect("lane").is_some()),
    )
}

/// The same with `memcpy`, a ring of blocks and two counters: what the hardware gives to whoever trusts its peer.
fn plain(bytes: usize) -> (Send, Receive) {
    let blocks = (SEGMENT as usize / 2 / bytes).clamp(2, SLOTS);
    let stride = (bytes + 64).next_multiple_of(64);
    let memory: &'static Shared = Box::leak(Box::new(Shared::new(8192 + blocks * stride)));
    let (mut sent, mut free) = (0u64, blocks as u64);
    let send: Send = Box::new(move |payload: &[u8]| {
        if sent == free {
            free = memory.word(512).load(Ordering::Acquire) + blocks as u64;
            if sent == free {
                return false;
            }
        }
        memory.put(4096 + sent as usize % blocks * stride, payload);
        sent += 1;
        memory.word(0).store(sent, Ordering::Release);
        true
    });
    let (mut got, mut there, mut told) = (0u64, 0u64, 0u64);
    let receive: Receive = Box::new(move |buffer: &mut Vec<u8>| {
        if got == there {
            there = memory.word(0).load(Ordering::Acquire);
            if got == there {
                if told != got {
                    told = got;
                    memory.word(512).store(got, Ordering::Release);
                }
                return false;
            }
        }
        memory.get(4096 + got as usize % blocks * stride, bytes, buffer);
        got += 1;
        if got - told >= (blocks as u64 / 4).max(1) {
            told = got;
            memory.word(512).store(got, Ordering::Release);
        }
        true
    });
    (send, receive)
}

/// Anonymous memory that a forked child shares.
struct Shared(*mut u8);

// SAFETY: the memory stays mapped until the process ends, and is reached as `plain` orders it.
unsafe impl std::marker::Sync for Shared {}

impl Shared {
    fn new(bytes: usize) -> Self {
        let rights = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let flags = rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::POPULATE;
        // SAFETY: a null hint maps fresh addresses, which are never unmapped.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, rights, flags) };
        Self(start.expect("memory").cast())
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        // SAFETY: `at` is 0 or 512, within the first page, aligned, and only used as an atomic.
        unsafe { &*self.0.add(at).cast::<AtomicU64>() }
    }

    fn put(&self, at: usize, payload: &[u8]) {
        // SAFETY: `at` begins a block that is longer than the payload and that the counters leave to the sender.
        unsafe { std::ptr::copy_nonoverlapping(payload.as_ptr(), self.0.add(at), payload.len()) };
    }

    fn get(&self, at: usize, bytes: usize, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.reserve(bytes);
        // SAFETY: `at` begins a block of `bytes` that the counters leave to the receiver; there is room for them.
        unsafe {
            std::ptr::copy_nonoverlapping(self.0.add(at), buffer.as_mut_ptr(), bytes);
            buffer.set_len(bytes);
        }
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
fn beside(child: impl FnOnce(), parent: impl FnOnce()) {
    // The child begins where it will run, and never has to wait for this process to give up its CPU.
    pin(1);
    // SAFETY: this process has one thread, so the child may do anything; it leaves by `_exit`.
    match unsafe { libc::fork() } {
        0 => {
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

/// Gigabytes per second that come out.
fn throughput(bytes: usize, (mut send, mut receive): (Send, Receive)) -> f64 {
    let count = (SAMPLE / bytes).max(64);
    let payload = vec![7; bytes];
    let mut rate = 0.0;
    beside(
        || {
            for _ in 0..count {
                while !send(black_box(&payload)) {
                    spin_loop();
                }
            }
        },
        || {
            let mut buffer = Vec::with_capacity(bytes);
            let mut next = || {
                while !receive(&mut buffer) {
                    spin_loop();
                }
                assert!(black_box(&buffer).len() == bytes);
            };
            // The sender tries both kinds of stores in its first 16 MiB.
            let warm_up = count / 4;
            (0..warm_up).for_each(|_| next());
            let start = Instant::now();
            (warm_up..count).for_each(|_| next());
            rate = ((count - warm_up) * bytes) as f64 / start.elapsed().as_secs_f64() / 1e9;
        },
    );
    rate
}

/// Median of half a round trip, nanoseconds.
fn latency(bytes: usize, ends: impl Fn() -> (Send, Receive)) -> f64 {
    let (mut out, mut there) = ends();
    let (mut back, mut home) = ends();
    let payload = vec![7; bytes];
    let count = 4_000;
    let mut times: Vec<Duration> = Vec::with_capacity(count);
    let turn = |send: &mut Send| {
        while !send(black_box(&payload)) {
            spin_loop();
        }
    };
    let take = |receive: &mut Receive, buffer: &mut Vec<u8>| {
        while !receive(buffer) {
            spin_loop();
        }
        assert!(black_box(&*buffer).len() == bytes);
    };
    beside(
        || {
            let mut buffer = Vec::with_capacity(bytes);
            for _ in 0..count {
                take(&mut there, &mut buffer);
                turn(&mut back);
            }
        },
        || {
            let mut buffer = Vec::with_capacity(bytes);
            for _ in 0..count {
                let start = Instant::now();
                turn(&mut out);
                take(&mut home, &mut buffer);
                times.push(start.elapsed());
            }
        },
    );
    times.sort();
    times[count / 2].as_nanos() as f64 / 2.0
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, values: &mut [f64], unit: &str) {
    values.sort_by(f64::total_cmp);
    let (least, median, most) = (
        values[0],
        values[values.len() / 2],
        values[values.len() - 1],
    );
    println!(
        "{{\"id\":\"{id}\",\"value\":{median:.2},\"unit\":\"{unit}\",\"spread\":[{least:.2},{most:.2}],\"limit\":null}}"
    );
}

/// Alternates ours and the plain way, and prints both and the ratio of each round.
fn side_by_side(
    id: &str,
    unit: &str,
    mut ours: impl FnMut() -> f64,
    mut peer: impl FnMut() -> f64,
) {
    let (mut a, mut b, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        a.push(ours());
        b.push(peer());
        ratio.push(a[a.len() - 1] / b[b.len() - 1]);
    }
    row(id, &mut a, unit);
    row(&format!("{id}_memcpy"), &mut b, unit);
    row(&format!("{id}_ratio"), &mut ratio, "x");
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("skipped: two processes that spin need two CPUs, there is {cpus}");
        return;
    }
    let options = SegmentOptions {
        bytes: SEGMENT,
        ..SegmentOptions::default()
    };
    match Segment::create(&options, SEGMENT) {
        Ok((segment, _)) => eprintln!("segments: {:?}", segment.report()),
        Err(error) => eprintln!("no segment: {error}"),
    }
    let only = std::env::args()
        .nth(1)
        .filter(|name| !name.starts_with('-'));
    let wanted = |id: &str| only.as_deref().is_none_or(|part| id.contains(part));
    for bytes in [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20] {
        let id = format!("bulk_{}k", bytes >> 10);
        if wanted(&id) {
            let ours = || throughput(bytes, bulk(512, PageKind::Huge));
            side_by_side(&id, "GB/s", ours, || throughput(bytes, plain(bytes)));
        }
    }
    for bytes in [4 << 10, 64 << 10] {
        let id = format!("oneway_{}k", bytes >> 10);
        if wanted(&id) {
            let ours = || latency(bytes, || bulk(512, PageKind::Huge));
            side_by_side(&id, "ns", ours, || latency(bytes, || plain(bytes)));
        }
    }
    // Where the ring stops to pay.
    for bytes in [128, 256, 384, 512, 768, 1024, 2048] {
        for (way, threshold) in [("ring", bytes), ("arena", bytes - 1)] {
            let id = format!("threshold_{bytes}_{way}");
            if wanted(&id) {
                let mut rates: Vec<f64> = (0..ROUNDS)
                    .map(|_| throughput(bytes, bulk(threshold, PageKind::Huge)))
                    .collect();
                row(&id, &mut rates, "GB/s");
                let mut times: Vec<f64> = (0..ROUNDS)
                    .map(|_| latency(bytes, || bulk(threshold, PageKind::Huge)))
                    .collect();
                row(&format!("{id}_oneway"), &mut times, "ns");
            }
        }
    }
}
