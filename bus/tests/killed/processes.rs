//! Processes that die of SIGKILL in front of any store to shared memory, and processes that write
//! anything to all they can write.
//!
//! For each protocol and each side a child is forked that dies at its first store, another that
//! dies at its second, and so on until one lives to the end. Whoever survives must get every
//! message that was committed, whole and in order, then learn of the end by pidfd and closer, and
//! never hang; and nothing may be left of the dead. A program of its own without libtest: only a
//! process with one thread may fork and go on in Rust. Children end by `_exit`; a watchdog
//! (`alarm`) ends whatever hangs.

mod features;
mod hostile;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Duration;

use agentd_bus::arena::{self, Arena, Reference};
use agentd_bus::channel::Tag;
use agentd_bus::lane::ring::{Consumer, Producer, RecvError, SendError, message_limit};
use agentd_bus::lane::{self, Inline, ReceiverOptions, SenderOptions};
use agentd_bus::log::{
    self, Delivery, Hold, Reader, ReaderId, ReaderOptions, Start, Writer, WriterOptions,
};
use agentd_bus::message::Status;
use agentd_bus::shm::memfd;
use agentd_bus::shm::pages::{Mapping, PageKind};
use agentd_bus::shm::park::Closer;
use agentd_bus::shm::region::{Words, crash};
use agentd_bus::view::View;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};

const SLOTS: usize = 64;
/// Longer than anything takes; what runs into it has hung.
const PATIENCE: Duration = Duration::from_secs(60);
/// One slot, exactly one slot, two, several.
const SIZES: [usize; 6] = [0, 5, 48, 49, 200, 500];

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    (
        "a_lane_producer_killed_at_any_store_loses_nothing_committed",
        a_lane_producer_killed_at_any_store_loses_nothing_committed,
    ),
    (
        "a_lane_consumer_killed_at_any_store_never_holds_its_producer",
        a_lane_consumer_killed_at_any_store_never_holds_its_producer,
    ),
    (
        "a_log_writer_killed_at_any_store_loses_nothing_committed",
        a_log_writer_killed_at_any_store_loses_nothing_committed,
    ),
    (
        "a_log_reader_killed_at_any_store_harms_nobody",
        a_log_reader_killed_at_any_store_harms_nobody,
    ),
    (
        "an_arena_owner_killed_at_any_store_leaves_only_whole_payloads",
        an_arena_owner_killed_at_any_store_leaves_only_whole_payloads,
    ),
    ("a_hostile_lane_producer_harms_only_its_lane", hostile::a_hostile_lane_producer_harms_only_its_lane),
    ("a_hostile_lane_consumer_harms_only_its_lane", hostile::a_hostile_lane_consumer_harms_only_its_lane),
    ("a_hostile_log_reader_harms_nobody", hostile::a_hostile_log_reader_harms_nobody),
    ("a_hostile_log_writer_harms_only_its_log", hostile::a_hostile_log_writer_harms_only_its_log),
    ("a_hostile_arena_owner_yields_errors_or_whole_lengths", hostile::a_hostile_arena_owner_yields_errors_or_whole_lengths),
    ("a_producer_of_batches_killed_at_any_store_cuts_them_between_messages", features::a_producer_of_batches_killed_at_any_store_cuts_them_between_messages),
    ("a_consumer_that_gives_credit_killed_at_any_store_holds_its_producer_to_it_and_no_longer", features::a_consumer_that_gives_credit_killed_at_any_store_holds_its_producer_to_it_and_no_longer),
    ("a_producer_that_rings_killed_at_any_store_leaves_nobody_asleep", features::a_producer_that_rings_killed_at_any_store_leaves_nobody_asleep),
    ("a_consumer_of_references_killed_at_any_store_costs_the_arena_nothing", features::a_consumer_of_references_killed_at_any_store_costs_the_arena_nothing),
    ("a_consumer_killed_at_any_store_of_its_end_never_makes_its_producer_believe_too_much", features::a_consumer_killed_at_any_store_of_its_end_never_makes_its_producer_believe_too_much),
];

/// As libtest prints it, so that whoever counts tests counts these.
#[expect(clippy::print_stdout, reason = "a test program's report")]
pub fn main() {
    let filter = std::env::args()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let chosen = |name: &str| filter.as_deref().is_none_or(|filter| name.contains(filter));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| chosen(name)) {
        watchdog();
        let before = Held::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            test();
            assert_eq!(Held::now(), before, "something is left behind");
        }));
        if outcome.is_ok() {
            passed += 1;
            println!("test {name} ... ok");
        } else {
            failed += 1;
            println!("test {name} ... FAILED");
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    let filtered = TESTS.len() - passed - failed;
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out"
    );
    std::process::exit(i32::from(failed > 0) * 101);
}

/// Ends this process, in ten minutes from now.
fn watchdog() {
    // SAFETY: alarm has no precondition.
    unsafe { libc::alarm(600) };
}

/// What a process has that a test could leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    memfds_mapped: usize,
    children: usize,
}

impl Held {
    fn now() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        Self {
            descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
            memfds_mapped: maps.lines().filter(|line| line.contains("memfd:")).count(),
            children: children.split_whitespace().count(),
        }
    }
}

/// A forked process, and the pipe on which it says how far it got.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    acks: std::io::PipeReader,
}

/// How a child ended, and how often it had said `ack` by then.
struct Ended {
    killed: bool,
    acks: usize,
}

impl Child {
    fn fork(work: impl FnOnce(&mut dyn FnMut())) -> Self {
        let (acks, mut acking) = std::io::pipe().unwrap();
        // SAFETY: this process has one thread: there is no libtest here, and threads of tests are joined before the next fork. So
        // the child holds no lock that nobody will open.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            watchdog();
            drop(acks);
            let mut ack = || acking.write_all(&[1]).expect("the parent reads");
            let done = catch_unwind(AssertUnwindSafe(|| work(&mut ack)));
            // SAFETY: _exit has no precondition, and runs nothing of the parent's.
            unsafe { libc::_exit(i32::from(done.is_err())) };
        }
        let pid = Pid::from_raw(pid).expect("a child's pid is not 0");
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        Self { pid, pidfd, acks }
    }

    /// Closes `closer` once the child is dead, as the daemon does, while `work` runs here.
    fn with_closer<T>(&self, closer: &Closer, work: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
                while poll(&mut fds, None).is_err() {}
                closer.close(Status::PEER_GONE);
            });
            work()
        })
    }

    fn kill(&self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).unwrap();
    }

    fn reap(mut self) -> Ended {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty())
            .unwrap()
            .unwrap();
        assert_ne!(status.exit_status(), Some(1), "the child panicked");
        let mut acks = Vec::new();
        self.acks.read_to_end(&mut acks).unwrap();
        Ended {
            killed: status.terminating_signal() == Some(libc::SIGKILL),
            acks: acks.len(),
        }
    }
}

/// Runs `round(n)` for a child that dies at store n, for every n until one lived to the end.
fn at_every_store(mut round: impl FnMut(u64) -> Ended) {
    let mut stores = 0;
    while round(stores).killed {
        stores += 1;
    }
    assert!(stores > 4, "the hook counts no stores: {stores}");
}

fn payload(n: usize) -> Vec<u8> {
    let len = SIZES[n % SIZES.len()];
    (0..len).map(|at| (n * 31 + at) as u8).collect()
}

fn tag(n: usize) -> Tag {
    Tag {
        kind: n as u8,
        flags: 0,
        correlation: n as u32,
    }
}

/// The two memories of a lane, made by their owners: data of the sender, cursor of the receiver.
struct LaneMemory {
    data: Mapping,
    data_fd: OwnedFd,
    cursor: Mapping,
    cursor_fd: OwnedFd,
}

fn lane_memory() -> LaneMemory {
    lane_memory_of(Inline::Small)
}

fn sending(inline: Inline) -> SenderOptions {
    SenderOptions {
        inline,
        ..SenderOptions::default()
    }
}

fn lane_memory_of(inline: Inline) -> LaneMemory {
    let (data, data_fd) = memfd::create("killed-data", lane::data_words(SLOTS, inline)).unwrap();
    let (cursor, cursor_fd) = memfd::create("killed-cursor", lane::cursor_words()).unwrap();
    lane::ring::format_data(&data, SLOTS, &sending(inline)).unwrap();
    lane::ring::format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    LaneMemory {
        data,
        data_fd,
        cursor,
        cursor_fd,
    }
}

fn producer(data: Mapping, cursor_fd: &OwnedFd) -> Producer<Mapping, Mapping> {
    producer_of(Inline::Small, data, cursor_fd)
}

fn producer_of(inline: Inline, data: Mapping, cursor_fd: &OwnedFd) -> Producer<Mapping, Mapping> {
    let cursor = memfd::open(cursor_fd.as_fd()).unwrap();
    Producer::new(data, cursor, Closer::default(), sending(inline)).unwrap()
}

fn consumer(data_fd: &OwnedFd, cursor: Mapping) -> Consumer<Mapping, Mapping> {
    let data = memfd::open(data_fd.as_fd()).unwrap();
    Consumer::new(data, cursor, Closer::default(), ReceiverOptions::default()).unwrap()
}

fn a_lane_producer_killed_at_any_store_loses_nothing_committed() {
    for inline in [Inline::Small, Inline::Wide] {
        at_every_store(|stores| {
            let LaneMemory {
                data,
                data_fd,
                cursor,
                cursor_fd,
            } = lane_memory_of(inline);
            let mut consumer = consumer(&data_fd, cursor);
            let child = Child::fork(|ack| {
                crash::die_after(stores);
                let mut producer = producer_of(inline, data, &cursor_fd);
                for n in 0..12 {
                    producer.send(tag(n), &payload(n), PATIENCE).unwrap();
                    ack();
                }
            });
            let (mut received, mut buffer) = (0, Vec::new());
            let closer = consumer.closer().clone();
            let end = child.with_closer(&closer, || {
                loop {
                    match consumer.recv(&mut buffer, PATIENCE) {
                        Ok(got) => {
                            assert_eq!((got, &buffer), (tag(received), &payload(received)));
                            received += 1;
                        }
                        Err(error) => break error,
                    }
                }
            });
            assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
            let ended = child.reap();
            // One message may be committed and its sender dead before it could say so.
            assert!(
                (ended.acks..=ended.acks + 1).contains(&received),
                "store {stores}"
            );
            ended
        });
    }
}

fn a_lane_consumer_killed_at_any_store_never_holds_its_producer() {
    for inline in [Inline::Small, Inline::Wide] {
        at_every_store(|stores| {
            let LaneMemory {
                data,
                data_fd,
                cursor,
                cursor_fd,
            } = lane_memory_of(inline);
            const MESSAGES: usize = 60;
            let mut child = Child::fork(|ack| {
                crash::die_after(stores);
                let mut consumer = consumer(&data_fd, cursor);
                ack();
                let mut buffer = Vec::new();
                for n in 0..MESSAGES {
                    let got = consumer.recv(&mut buffer, PATIENCE).unwrap();
                    assert_eq!((got, &buffer), (tag(n), &payload(n)));
                    ack();
                }
            });
            // As over the bus: the sender gets the cursor memory once there is a receiver.
            // One that died before says nothing, and is told of below.
            child.acks.read_exact(&mut [0]).ok();
            let mut producer = producer_of(inline, data, &cursor_fd);
            let closer = producer.closer().clone();
            let mut sent = 0;
            let end = child.with_closer(&closer, || {
                // More than the lane holds, until its end is told.
                loop {
                    match producer.send(tag(sent), &payload(sent), PATIENCE) {
                        Ok(()) => sent += 1,
                        Err(error) => break error,
                    }
                }
            });
            assert_eq!(end, SendError::Closed(Status::PEER_GONE));
            let ended = child.reap();
            assert!(
                sent >= ended.acks,
                "store {stores}: nothing came that was not sent"
            );
            let view = View::new(
                memfd::open(data_fd.as_fd()).unwrap(),
                Some(memfd::open(cursor_fd.as_fd()).unwrap()),
            )
            .unwrap();
            // What the dead one left behind is all there to be counted: it had read `acks`, or published fewer.
            let unread = view.unread().messages as usize;
            assert!(
                unread + ended.acks + 1 >= sent,
                "store {stores}: {unread} of {sent} left"
            );
            ended
        });
    }
}

struct LogMemory {
    data: Mapping,
    data_fd: OwnedFd,
}

fn log_memory() -> LogMemory {
    let (data, data_fd) = memfd::create("killed-log", log::data_words(SLOTS)).unwrap();
    log::format_data(&data, SLOTS).unwrap();
    LogMemory { data, data_fd }
}

fn reading(delivery: Delivery) -> ReaderOptions {
    ReaderOptions {
        start: Start::Oldest,
        delivery,
        ..ReaderOptions::default()
    }
}

fn page(delivery: Delivery) -> (Mapping, OwnedFd) {
    let (page, fd) = memfd::create("killed-reader", log::cursor_words()).unwrap();
    log::format_cursor(&page, &reading(delivery)).unwrap();
    (page, fd)
}

fn reader(data_fd: &OwnedFd, page: Mapping, delivery: Delivery) -> Reader<Mapping, Mapping> {
    let data = memfd::open(data_fd.as_fd()).unwrap();
    Reader::new(data, page, Closer::default(), reading(delivery)).unwrap()
}

fn a_log_writer_killed_at_any_store_loses_nothing_committed() {
    for delivery in [Delivery::Lossy, Delivery::Reliable] {
        at_every_store(|stores| {
            let LogMemory { data, data_fd } = log_memory();
            let (own, page_fd) = page(delivery);
            let mut reader = reader(&data_fd, own, delivery);
            let child = Child::fork(|ack| {
                crash::die_after(stores);
                let options = WriterOptions::default();
                let mut writer = Writer::new(data, Closer::default(), options).unwrap();
                let cursor = memfd::open(page_fd.as_fd()).unwrap();
                writer.attach_reader(ReaderId(1), cursor, delivery).unwrap();
                for n in 0..12 {
                    writer.send(tag(n), &payload(n), PATIENCE).unwrap();
                    ack();
                }
            });
            let (mut received, mut buffer) = (0, Vec::new());
            let closer = reader.closer().clone();
            let end = child.with_closer(&closer, || {
                loop {
                    match reader.recv(&mut buffer, PATIENCE) {
                        Ok(got) => {
                            assert_eq!((got.tag, &buffer), (tag(received), &payload(received)));
                            assert_eq!((got.number, got.lost), (received as u64, 0));
                            received += 1;
                        }
                        Err(error) => break error,
                    }
                }
            });
            assert_eq!(
                end,
                log::RecvError::Closed(Status::PEER_GONE),
                "store {stores}"
            );
            let ended = child.reap();
            assert!(
                (ended.acks..=ended.acks + 1).contains(&received),
                "store {stores}"
            );
            ended
        });
    }
}

fn a_log_reader_killed_at_any_store_harms_nobody() {
    for delivery in [Delivery::Lossy, Delivery::Reliable] {
        at_every_store(|stores| {
            let LogMemory { data, data_fd } = log_memory();
            let (own, page_fd) = page(delivery);
            let (honest_page, honest_fd) = page(Delivery::Reliable);
            let mut honest = reader(&data_fd, honest_page, Delivery::Reliable);
            let options = WriterOptions {
                // How long the dead may hold the living up.
                hold: Hold {
                    lag: None,
                    time: Duration::from_millis(5),
                },
                ..WriterOptions::default()
            };
            let mut writer = Writer::new(data, Closer::default(), options).unwrap();
            for (id, fd, delivery) in [(1, &page_fd, delivery), (2, &honest_fd, Delivery::Reliable)]
            {
                let cursor = memfd::open(fd.as_fd()).unwrap();
                writer
                    .attach_reader(ReaderId(id), cursor, delivery)
                    .unwrap();
            }
            // What the child reads.
            const FIRST: usize = 12;
            for n in 0..FIRST {
                writer.send(tag(n), &payload(n), PATIENCE).unwrap();
            }
            let child = Child::fork(|ack| {
                crash::die_after(stores);
                let mut reader = reader(&data_fd, own, delivery);
                let mut buffer = Vec::new();
                for n in 0..FIRST {
                    let got = reader.recv(&mut buffer, PATIENCE).unwrap();
                    assert_eq!((got.tag, &buffer), (tag(n), &payload(n)));
                    ack();
                }
            });
            let ended = child.reap();
            // The writer goes round the ring over the place where the dead one stands.
            let mut buffer = Vec::new();
            for n in 0..100 {
                if n >= FIRST {
                    writer.send(tag(n), &payload(n), PATIENCE).unwrap();
                }
                let got = honest.recv(&mut buffer, PATIENCE).unwrap();
                assert_eq!((got.tag, &buffer, got.lost), (tag(n), &payload(n), 0));
            }
            ended
        });
    }
}

fn an_arena_owner_killed_at_any_store_leaves_only_whole_payloads() {
    let big = |n: usize| -> Vec<u8> { (0..1_000 + n * 700).map(|at| (n * 7 + at) as u8).collect() };
    at_every_store(|stores| {
        let LaneMemory {
            data,
            data_fd,
            cursor,
            cursor_fd,
        } = lane_memory();
        let (segment, segment_fd) =
            memfd::create_segment(64 * 1024, PageKind::Small, None).unwrap();
        let mut consumer = consumer(&data_fd, cursor);
        let mut reader = arena::Reader::new(1 << 20);
        reader
            .add(0, memfd::open_segment(segment_fd.as_fd()).unwrap())
            .unwrap();
        let child = Child::fork(|ack| {
            crash::die_after(stores);
            let mut producer = producer(data, &cursor_fd);
            let mut arena = Arena::new(SLOTS);
            assert_eq!(arena.add(segment).unwrap(), 0);
            for n in 0..8 {
                let stored = arena.store(&big(n)).unwrap();
                let slot = producer.next_slot();
                let reference = stored.reference();
                producer
                    .try_send_reference(tag(n), &reference.to_bytes(), reference.length)
                    .unwrap();
                arena.hold(slot, stored);
                ack();
            }
        });
        let (mut received, mut buffer) = (0, Vec::new());
        let closer = consumer.closer().clone();
        let end = child.with_closer(&closer, || {
            loop {
                let got = consumer.next(PATIENCE, |message| {
                    assert!(message.reference);
                    (message.tag, Reference::parse(message.payload).unwrap())
                });
                match got {
                    Ok((got, reference)) => {
                        reader.read(&reference, &mut buffer).unwrap();
                        assert_eq!((got, &buffer), (tag(received), &big(received)));
                        received += 1;
                    }
                    Err(error) => break error,
                }
            }
        });
        assert_eq!(end, RecvError::Closed(Status::PEER_GONE));
        let ended = child.reap();
        assert!(
            (ended.acks..=ended.acks + 1).contains(&received),
            "store {stores}"
        );
        ended
    });
}
