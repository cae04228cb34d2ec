//! Waiting on real lanes: by futex and by bell, between threads and between processes, with peers that die or
//! go mad. The watchdog is a failure, never a figure.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use super::waiter::{FUTEX_SOURCES_MAX, LOOK_EVERY, SOURCES_MAX};
use super::*;
use crate::channel::{Class, Waiting};
use crate::lane::ring::{
    Consumer, Producer, RecvError, SendError, Tag, format_cursor, format_data,
};
use crate::lane::{Inline, ReceiverOptions, SenderOptions, cursor_words, data_words};
use crate::message::Status;
use crate::shm::atomics::{AtomicU64, Ordering};
use crate::shm::memfd::{self, Mapping};
use crate::shm::park::Closer;
use crate::shm::region::{Heap, Words};

const WATCHDOG: Duration = Duration::from_secs(30);

/// The fewest that fill whole pages.
const SLOTS: usize = 64;

type Out = Producer<Mapping, Mapping>;
type In = Consumer<Mapping, Mapping>;

/// A lane in sealed memory whose producer holds a copy of the consumer's bell.
fn lane() -> (Out, In) {
    let (data, data_fd) = memfd::create("wait-data", data_words(SLOTS, Inline::Small)).unwrap();
    let (cursor, cursor_fd) = memfd::create("wait-cursor", cursor_words()).unwrap();
    format_data(&data, SLOTS, &SenderOptions::default()).unwrap();
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let cursor_there = memfd::open(cursor_fd.as_fd()).unwrap();
    let data_there = memfd::open(data_fd.as_fd()).unwrap();
    let mut producer = Producer::new(
        data,
        cursor_there,
        Closer::default(),
        SenderOptions::default(),
    )
    .unwrap();
    let mut consumer = Consumer::new(
        data_there,
        cursor,
        Closer::default(),
        ReceiverOptions::default(),
    )
    .unwrap();
    let bell = Bell::new().unwrap();
    producer.set_ringer(Ringer::from_fd(bell.share().unwrap()).unwrap());
    consumer.set_bell(bell);
    (producer, consumer)
}

fn tag(correlation: u32) -> Tag {
    Tag {
        correlation,
        ..Tag::default()
    }
}

/// The next event, of which there must be one.
fn next<S: Source>(waiter: &mut Waiter<S>) -> Event {
    waiter
        .next(Some(WATCHDOG))
        .unwrap()
        .expect("something happens before the watchdog")
}

fn ready<S: Source>(waiter: &mut Waiter<S>) -> Token {
    match next(waiter) {
        Event::Ready(token) => token,
        other => panic!("no source is ready: {other:?}"),
    }
}

/// A source made of nothing but a word: as many as one likes.
#[derive(Debug, Default)]
struct Word {
    word: AtomicU64,
    bell: Option<Bell>,
    never_parks: bool,
    closer: Closer,
}

impl Source for Word {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: &self.word,
            seen: 0,
        }
    }

    fn arm(&mut self, _how: Park) {}

    fn disarm(&mut self) {}

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        if self.never_parks {
            Parking::NeverParks
        } else {
            Parking::Light
        }
    }

    fn bell(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.bell.as_ref().map(AsFd::as_fd)
    }
}

fn add<S: Source>(waiter: &mut Waiter<S>, source: S, class: Class) -> Token {
    match waiter.add(source, class) {
        Ok(token) => token,
        Err((error, _)) => panic!("{error}"),
    }
}

/// `senders` threads share `lanes` lanes and send `each` messages on every one, with pauses that give the waiter
/// time to fall asleep at every point; all of them must arrive, in order.
fn everything_arrives(lanes: usize, senders: usize, each: u32, waiting: Waiting) -> Wakeups {
    everything_arrives_by(ready, lanes, senders, each, waiting)
}

fn everything_arrives_by(
    mut ready: impl FnMut(&mut Waiter<In>) -> Token,
    lanes: usize,
    senders: usize,
    each: u32,
    waiting: Waiting,
) -> Wakeups {
    let mut waiter = Waiter::new(waiting);
    let mut expected = HashMap::new();
    let mut outs: Vec<Vec<Out>> = (0..senders).map(|_| Vec::new()).collect();
    for n in 0..lanes {
        let (out, lane) = lane();
        outs[n % senders].push(out);
        let class = [Class::Bulk, Class::Normal, Class::High, Class::Control][n % 4];
        expected.insert(add(&mut waiter, lane, class), 0);
    }
    let sending: Vec<_> = outs
        .into_iter()
        .map(|mut outs| {
            thread::spawn(move || {
                let mut pause = 1u32;
                for n in 0..each {
                    for out in &mut outs {
                        // More than the slots hold by far: this also sleeps for room.
                        out.send(tag(n), &n.to_le_bytes(), WATCHDOG).unwrap();
                        pause = pause.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        match pause >> 28 {
                            0 => thread::yield_now(),
                            1 => (0..pause >> 18).for_each(|_| std::hint::spin_loop()),
                            _ => {}
                        }
                    }
                }
            })
        })
        .collect();
    let mut buffer = Vec::new();
    for _ in 0..lanes * each as usize {
        let token = ready(&mut waiter);
        let got = waiter.get_mut(token).unwrap().try_recv(&mut buffer);
        let n = expected.get_mut(&token).unwrap();
        assert_eq!(got, Ok(Some(tag(*n))));
        assert_eq!(buffer, n.to_le_bytes());
        *n += 1;
    }
    sending
        .into_iter()
        .for_each(|sender| sender.join().unwrap());
    assert_eq!(waiter.next(Some(Duration::from_millis(1))).unwrap(), None);
    waiter.wakeups()
}

#[test]
fn nothing_is_lost_between_threads_on_futexes() {
    let asleep = everything_arrives(5, 2, 1500, Waiting::Blocking);
    assert!(asleep.sleeps > 0, "the test never slept");
    let on_futexes = |waiter: &mut Waiter<In>| {
        waiter.prefer(Some(Park::Futex));
        ready(waiter)
    };
    everything_arrives_by(on_futexes, FUTEX_SOURCES_MAX, 3, 100, Waiting::Adaptive);
}

#[test]
fn nothing_is_lost_between_threads_on_bells() {
    everything_arrives(waiter::BELLS_PAY_FROM + 1, 2, 500, Waiting::Blocking);
    let asleep = everything_arrives(FUTEX_SOURCES_MAX + 1, 3, 200, Waiting::Blocking);
    assert!(asleep.sleeps > 0, "the test never slept");
    everything_arrives(500, 3, 20, Waiting::Adaptive);
}

#[test]
fn nothing_is_lost_in_an_event_loop() {
    let in_a_loop = |waiter: &mut Waiter<In>| {
        loop {
            match waiter.next(Some(Duration::ZERO)).unwrap() {
                Some(Event::Ready(token)) => return token,
                Some(other) => panic!("{other:?}"),
                None => {}
            }
            if waiter.arm().unwrap() == Armed::Asleep {
                assert!(readable(waiter, WATCHDOG), "nobody rang");
            }
        }
    };
    everything_arrives_by(in_a_loop, 5, 2, 1000, Waiting::Blocking);
    everything_arrives_by(in_a_loop, 300, 3, 20, Waiting::Blocking);
}

#[test]
fn nothing_is_lost_while_the_way_of_sleeping_changes() {
    let mut turns = 0;
    let changing = |waiter: &mut Waiter<In>| {
        turns += 1;
        waiter.prefer([None, Some(Park::Bell)][turns / 3 % 2]);
        ready(waiter)
    };
    everything_arrives_by(changing, 5, 2, 1500, Waiting::Blocking);
}

/// Whether an event loop would be woken within `timeout`.
fn readable(waiter: &mut Waiter<In>, timeout: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(
        waiter.poll_fd().unwrap(),
        PollFlags::IN,
    )];
    poll(&mut fds, Some(&timeout.try_into().unwrap())).unwrap() == 1
}

#[test]
fn a_busy_waiter_never_sleeps() {
    let asleep = everything_arrives(3, 2, 1000, Waiting::Busy);
    assert_eq!(asleep.sleeps, 0);
}

/// Another process, which is killed when this goes away.
struct Child(Option<rustix::process::Pid>);

impl Child {
    fn run(act: impl FnOnce()) -> Self {
        // SAFETY: the child of a threaded process may only do what is async-signal-safe: `act` sends on lanes, which
        // allocates nothing, takes no lock and calls the kernel for futexes and bells only; it leaves by `_exit`
        // without unwinding or running destructors.
        match unsafe { libc::fork() } {
            0 => {
                act();
                // SAFETY: ends the process at once.
                unsafe { libc::_exit(0) }
            }
            pid => Self(Some(rustix::process::Pid::from_raw(pid).expect("fork"))),
        }
    }

    fn end(&mut self, kill: bool) {
        if let Some(pid) = self.0.take() {
            if kill {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end(true);
    }
}

/// Processes send; one is killed in the middle of it, and only its own lanes end.
fn processes_send_and_one_dies(lanes_each: usize) {
    const EACH: u32 = 300;
    let mut waiter = Waiter::new(Waiting::Adaptive);
    let mut got = HashMap::new();
    let mut children = Vec::new();
    let mut doomed = Vec::new();
    for process in 0..3 {
        let mut outs = Vec::new();
        for _ in 0..lanes_each {
            let (out, lane) = lane();
            outs.push(out);
            let token = add(&mut waiter, lane, Class::Normal);
            got.insert(token, 0u32);
            if process == 0 {
                doomed.push(token);
            }
        }
        let last = if process == 0 { u32::MAX } else { EACH };
        children.push(Child::run(|| {
            for n in 0..last {
                for out in &mut outs {
                    if out.send(tag(n), b"from another process", WATCHDOG).is_err() {
                        return;
                    }
                }
            }
        }));
    }
    let mut buffer = Vec::new();
    let mut ended = 0;
    let living = 2 * lanes_each;
    let mut done = 0;
    let mut killed = false;
    while done < living || ended < doomed.len() {
        let token = ready(&mut waiter);
        let lane = waiter.get_mut(token).unwrap();
        match lane.try_recv(&mut buffer) {
            Ok(Some(tag)) => {
                let n = got.get_mut(&token).unwrap();
                assert_eq!(tag.correlation, *n);
                *n += 1;
                if *n == EACH && !doomed.contains(&token) {
                    done += 1;
                }
                if !killed && doomed.contains(&token) && *n == EACH / 2 {
                    killed = true;
                    children[0].end(true);
                    // What the daemon does when a pidfd tells it of a death, on a thread of the client.
                    let closers: Vec<_> = doomed
                        .iter()
                        .map(|token| waiter.get(*token).unwrap().closer().clone())
                        .collect();
                    thread::spawn(move || {
                        for closer in closers {
                            closer.close(Status::PEER_GONE);
                        }
                    });
                }
            }
            Err(RecvError::Closed(Status::PEER_GONE)) => {
                assert!(waiter.remove(token).is_some());
                ended += 1;
            }
            other => panic!("ready for nothing: {other:?}"),
        }
    }
    assert_eq!(waiter.len(), living);
    for token in &doomed {
        assert!(waiter.get(*token).is_none());
    }
    children
        .iter_mut()
        .skip(1)
        .for_each(|child| child.end(false));
}

#[test]
fn a_process_that_dies_ends_its_own_lanes_alone_on_futexes() {
    processes_send_and_one_dies(2);
}

#[test]
fn a_process_that_dies_ends_its_own_lanes_alone_on_bells() {
    processes_send_and_one_dies(FUTEX_SOURCES_MAX / 3 + 1);
}

#[test]
fn a_mad_peer_ends_its_own_source_and_keeps_nobody_from_being_served() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let (data, cursor) = (
        Heap::new(data_words(8, Inline::Small)),
        Heap::new(cursor_words()),
    );
    format_data(&data, 8, &SenderOptions::default()).unwrap();
    format_cursor(&cursor, &ReceiverOptions::default()).unwrap();
    let mad = Consumer::new(
        data.clone(),
        cursor,
        Closer::default(),
        ReceiverOptions::default(),
    )
    .unwrap();
    let mad = add(&mut waiter, mad, Class::Control);
    let (honest_data, honest_cursor) = (
        Heap::new(data_words(8, Inline::Small)),
        Heap::new(cursor_words()),
    );
    format_data(&honest_data, 8, &SenderOptions::default()).unwrap();
    format_cursor(&honest_cursor, &ReceiverOptions::default()).unwrap();
    let honest = Consumer::new(
        honest_data.clone(),
        honest_cursor.clone(),
        Closer::default(),
        ReceiverOptions::default(),
    )
    .unwrap();
    let mut producer = Producer::new(
        honest_data,
        honest_cursor,
        Closer::default(),
        SenderOptions::default(),
    )
    .unwrap();
    let honest = add(&mut waiter, honest, Class::Bulk);

    for word in data.words() {
        word.store(0x5EED_5EED_5EED_5EED, Ordering::Relaxed);
    }
    producer.try_send(tag(1), b"x").unwrap();
    // Nobody takes the mad one out: it stays ready, of the highest class, and the other is served all the same.
    let mut buffer = Vec::new();
    let mut served = false;
    for _ in 0..=order::PASSED_OVER_MAX {
        let token = ready(&mut waiter);
        let got = waiter.get_mut(token).unwrap().try_recv(&mut buffer);
        if token == mad {
            assert!(matches!(
                got,
                Err(RecvError::Sequence { .. } | RecvError::Closed(Status::MALFORMED))
            ));
        } else {
            assert_eq!((token, got), (honest, Ok(Some(tag(1)))));
            served = true;
            break;
        }
    }
    assert!(served);
    assert!(waiter.remove(mad).is_some());
    assert_eq!(waiter.next(Some(Duration::from_millis(1))).unwrap(), None);
}

#[test]
fn a_bell_that_rings_for_ever_only_wakes() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let (quiet, lane_quiet) = lane();
    let (mut other, lane_other) = lane();
    let ringer = Ringer::from_fd(lane_quiet.bell().unwrap().try_clone_to_owned().unwrap()).unwrap();
    add(&mut waiter, lane_quiet, Class::Normal);
    let token = add(&mut waiter, lane_other, Class::Normal);
    assert_eq!(waiter.next(Some(Duration::ZERO)).unwrap(), None);
    assert_eq!(waiter.arm().unwrap(), Armed::Asleep);
    // As many sources as need bells.
    let mut kept = Vec::new();
    for _ in 0..FUTEX_SOURCES_MAX {
        let (out, lane) = lane();
        kept.push(out);
        add(&mut waiter, lane, Class::Normal);
    }
    let stop = Closer::default();
    let stopped = stop.clone();
    let ringing = thread::spawn(move || {
        while stopped.status().is_none() {
            ringer.ring();
        }
    });
    // The other thread may not have begun yet: until its bell has woken us in vain.
    let begun = Instant::now();
    while waiter.wakeups().spurious == 0 {
        let at = Instant::now() + Duration::from_millis(20);
        assert_eq!(waiter.next(Some(Duration::from_millis(20))).unwrap(), None);
        assert!(Instant::now() >= at, "no earlier than asked");
        assert!(begun.elapsed() < WATCHDOG, "the bell woke nobody");
    }
    other.try_send(tag(7), b"x").unwrap();
    assert_eq!(ready(&mut waiter), token);
    stop.close(Status::OK);
    ringing.join().unwrap();
    drop(quiet);
}

#[test]
fn a_sleeping_waiter_has_told_its_producers_how_far_it_read() {
    for how in [Park::Futex, Park::Bell] {
        let (mut out, lane) = lane();
        let mut waiter = Waiter::new(Waiting::Blocking);
        waiter.prefer(Some(how));
        let token = add(&mut waiter, lane, Class::Normal);
        // Armed by now; what is then taken behind the waiter's back must be published all the same.
        assert_eq!(waiter.next(Some(Duration::from_millis(1))).unwrap(), None);
        out.try_send(tag(0), b"small").unwrap();
        let large = vec![7; out.message_limit()];
        assert_eq!(out.try_send(tag(1), &large), Err(SendError::Full));
        let mut buffer = Vec::new();
        let got = waiter.get_mut(token).unwrap().try_recv(&mut buffer);
        assert_eq!(got, Ok(Some(tag(0))));
        let sending = thread::spawn(move || out.send(tag(1), &large, WATCHDOG));
        assert_eq!(ready(&mut waiter), token);
        let got = waiter.get_mut(token).unwrap().try_recv(&mut buffer);
        assert_eq!(got, Ok(Some(tag(1))));
        assert_eq!(sending.join().unwrap(), Ok(()));
    }
}

#[test]
fn timers_and_wake_ups_come_beside_sources() {
    let (mut out, lane) = lane();
    let mut waiter = Waiter::new(Waiting::Adaptive);
    let token = add(&mut waiter, lane, Class::Normal);
    let start = Instant::now();
    let period = Duration::from_millis(2);
    let tick = waiter.start_timer(start + period, Some(period));
    let once = waiter.start_timer(start + period * 3, None);
    let (mut ticks, mut over) = (0, false);
    while ticks < 6 || !over {
        match next(&mut waiter) {
            Event::Timer(Expired { timer, times }) if timer == tick => {
                ticks += times;
                assert!(Instant::now() >= start + period * ticks as u32, "not early");
            }
            Event::Timer(Expired { timer, times }) => {
                assert_eq!((timer, times, over), (once, 1, false));
                assert!(Instant::now() >= start + period * 3, "not early");
                over = true;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(waiter.cancel_timer(tick));
    assert!(!waiter.cancel_timer(once));

    let waker = waiter.waker();
    waker.wake();
    waker.wake();
    assert_eq!(next(&mut waiter), Event::Woken);
    assert_eq!(waiter.next(Some(Duration::from_millis(1))).unwrap(), None);
    let waking = thread::spawn(move || waker.wake());
    assert_eq!(next(&mut waiter), Event::Woken);
    waking.join().unwrap();
    out.try_send(tag(0), b"x").unwrap();
    assert_eq!(ready(&mut waiter), token);
}

#[test]
fn what_is_ready_is_listed_by_class_each_once() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let mut outs = Vec::new();
    let mut tokens = Vec::new();
    for class in [Class::Bulk, Class::Control, Class::Normal, Class::High] {
        let (mut out, lane) = lane();
        out.try_send(tag(0), b"x").unwrap();
        outs.push(out);
        tokens.push(Event::Ready(add(&mut waiter, lane, class)));
    }
    let mut events = Vec::new();
    waiter.waker().wake();
    waiter.wait(&mut events, Some(WATCHDOG)).unwrap();
    let [bulk, control, normal, high] = tokens[..] else {
        unreachable!()
    };
    assert_eq!(events, [Event::Woken, control, high, normal, bulk]);
    waiter.wait(&mut events, Some(WATCHDOG)).unwrap();
    assert_eq!(events, [control, high, normal, bulk], "until it is taken");
}

#[test]
fn control_is_never_behind_data_and_the_others_not_for_long() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let (mut bulk_out, bulk) = lane();
    let (mut high_out, high) = lane();
    let (mut control_out, control) = lane();
    let bulk = add(&mut waiter, bulk, Class::Bulk);
    let high = add(&mut waiter, high, Class::High);
    let control = add(&mut waiter, control, Class::Control);
    let mut buffer = Vec::new();
    let mut take = |waiter: &mut Waiter<In>| {
        let token = ready(waiter);
        let lane = waiter.get_mut(token).unwrap();
        assert!(lane.try_recv(&mut buffer).unwrap().is_some());
        token
    };
    for n in 0..40 {
        bulk_out.try_send(tag(n), b"x").unwrap();
    }
    assert_eq!(take(&mut waiter), bulk);
    control_out.try_send(tag(0), b"x").unwrap();
    assert_eq!(take(&mut waiter), control, "in the very next turn");
    high_out.try_send(tag(0), b"x").unwrap();
    let turns = (1..).find(|_| take(&mut waiter) == high);
    assert!(turns.unwrap() <= LOOK_EVERY + 1);
    assert_eq!(take(&mut waiter), bulk);
}

#[test]
fn an_event_loop_is_told_once_and_not_before() {
    let (mut out, lane) = lane();
    let mut waiter = Waiter::new(Waiting::Blocking);
    let token = add(&mut waiter, lane, Class::Normal);
    assert_eq!(waiter.arm().unwrap(), Armed::Asleep);
    assert!(!readable(&mut waiter, Duration::ZERO));
    out.try_send(tag(0), b"x").unwrap();
    assert!(readable(&mut waiter, WATCHDOG));
    assert_eq!(next(&mut waiter), Event::Ready(token));
    assert_eq!(waiter.arm().unwrap(), Armed::Ready, "still there");
    let mut buffer = Vec::new();
    waiter
        .get_mut(token)
        .unwrap()
        .try_recv(&mut buffer)
        .unwrap();
    // The ring of before is no longer heard.
    assert_eq!(waiter.arm().unwrap(), Armed::Asleep);
    assert!(!readable(&mut waiter, Duration::ZERO));
    // A timer makes the same descriptor readable, and so do a wake-up and a close.
    loop {
        waiter.start_timer(Instant::now() + Duration::from_millis(1), None);
        let armed = waiter.arm().unwrap();
        if armed == Armed::Asleep {
            assert!(readable(&mut waiter, WATCHDOG));
        }
        assert!(matches!(next(&mut waiter), Event::Timer(_)));
        // Otherwise it was due before this thread came to arm: once more.
        if armed == Armed::Asleep {
            break;
        }
    }
    assert_eq!(waiter.arm().unwrap(), Armed::Asleep);
    waiter.waker().wake();
    assert!(readable(&mut waiter, WATCHDOG));
    assert_eq!(next(&mut waiter), Event::Woken);
    assert_eq!(waiter.arm().unwrap(), Armed::Asleep);
    waiter.get(token).unwrap().closer().close(Status::PEER_GONE);
    assert!(readable(&mut waiter, WATCHDOG));
    assert_eq!(ready(&mut waiter), token);
}

#[test]
fn sources_that_can_not_be_waited_for_are_refused_and_given_back() {
    let mut waiter = Waiter::new(Waiting::Adaptive);
    let promised = Word {
        never_parks: true,
        ..Word::default()
    };
    let (error, promised) = waiter.add(promised, Class::Normal).unwrap_err();
    assert!(matches!(error, WaitError::NeverParks), "{error}");
    let mut busy = Waiter::new(Waiting::Busy);
    add(&mut busy, promised, Class::Normal);
    assert!(matches!(
        busy.arm(),
        Err(WaitError::NoBell { deaf: 1, .. } | WaitError::NeverParks)
    ));

    for _ in 0..FUTEX_SOURCES_MAX {
        add(&mut waiter, Word::default(), Class::Normal);
    }
    let (error, source) = waiter.add(Word::default(), Class::Normal).unwrap_err();
    let deaf = FUTEX_SOURCES_MAX + 1;
    assert!(
        matches!(error, WaitError::NoBell { deaf: d, futexes: FUTEX_SOURCES_MAX } if d == deaf),
        "{error}"
    );
    source.word.store(1, Ordering::Relaxed);
    assert_eq!(waiter.len(), FUTEX_SOURCES_MAX, "nothing was changed");
    assert_eq!(waiter.next(Some(Duration::from_millis(1))).unwrap(), None);

    let mut full = Waiter::new(Waiting::Busy);
    for _ in 0..SOURCES_MAX {
        add(&mut full, Word::default(), Class::Normal);
    }
    let (error, _) = full.add(Word::default(), Class::Normal).unwrap_err();
    assert!(matches!(error, WaitError::TooMany { .. }), "{error}");
}

/// What the kernel says is in the epoll set `fd`.
fn members(fd: std::os::fd::BorrowedFd<'_>) -> usize {
    use std::os::fd::AsRawFd;
    let info = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap();
    info.lines().filter(|line| line.starts_with("tfd:")).count()
}

#[test]
fn sources_that_come_and_go_leave_nothing_behind() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let own = members(waiter.poll_fd().unwrap());
    let closer = Closer::default();
    let mut copies = Vec::new();
    let mut last = None;
    for _ in 0..500 {
        let bell = Bell::new().unwrap();
        // The peer's copy keeps the eventfd open: only taking it out of the set by hand removes it.
        copies.push(bell.share().unwrap());
        let source = Word {
            bell: Some(bell),
            closer: closer.clone(),
            ..Word::default()
        };
        let token = add(&mut waiter, source, Class::High);
        assert_eq!(members(waiter.poll_fd().unwrap()), own + 1);
        assert!(waiter.remove(token).is_some());
        assert!(waiter.remove(token).is_none(), "a name is used once");
        assert_ne!(last.replace(token), Some(token));
    }
    assert_eq!(members(waiter.poll_fd().unwrap()), own);
    assert!(waiter.is_empty());
    // Nobody is told of the close any more.
    closer.close(Status::PEER_GONE);
    assert_eq!(waiter.next(Some(Duration::ZERO)).unwrap(), None);
}

#[test]
fn senders_without_room_are_rung_as_soon_as_there_is_some() {
    let mut waiter = Waiter::new(Waiting::Blocking);
    waiter.prefer(Some(Park::Bell));
    let mut receivers = Vec::new();
    let mut tokens = Vec::new();
    for _ in 0..3 {
        let (mut producer, mut consumer) = lane();
        while producer.try_send(tag(0), b"full").is_ok() {}
        let bell = Bell::new().unwrap();
        consumer.set_ringer(Ringer::from_fd(bell.share().unwrap()).unwrap());
        producer.set_bell(bell);
        receivers.push(consumer);
        tokens.push(add(&mut waiter, producer, Class::Normal));
    }
    let asleep = waiter.next(Some(Duration::from_millis(20))).unwrap();
    assert_eq!(asleep, None, "no room anywhere");
    let mut last = receivers.remove(2);
    let reading = std::thread::spawn(move || {
        let mut buffer = Vec::new();
        while last.try_recv(&mut buffer).unwrap().is_some() {}
        last
    });
    assert_eq!(ready(&mut waiter), tokens[2]);
    let producer = waiter.get_mut(tokens[2]).unwrap();
    assert_eq!(producer.try_send(tag(1), b"there is"), Ok(()));
    drop(reading.join().unwrap());
}
