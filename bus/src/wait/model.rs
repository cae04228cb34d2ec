//! The waiter under loom: every schedule and every permitted reordering of two peers, a waker or a closer, and one
//! waiter. A lost wake-up is a deadlock, which the checker reports.
//!
//! `RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=3 cargo test -p agentd-bus --lib --release wait::model`
//!
//! The sources are the least that the protocol needs: one word that the peer stores, one parked word.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::channel::{Class, Waiting};
use crate::message::Status;
use crate::shm::atomics::{AtomicU64, Ordering, fence};
use crate::shm::counters::parked;
use crate::shm::park::{Closer, wake_word};

#[derive(Debug, Default)]
struct Shared {
    word: AtomicU64,
    parked: AtomicU64,
}

/// What a producer does: store, fence, look at the parked word.
fn commit(shared: &Shared, value: u64) {
    shared.word.store(value, Ordering::Release);
    // SYNC: consumer-parks.
    fence(Ordering::SeqCst);
    if shared.parked.load(Ordering::Relaxed) != parked::AWAKE {
        wake_word(&shared.word);
    }
}

#[derive(Debug)]
struct Word {
    shared: Arc<Shared>,
    taken: u64,
    closer: Closer,
}

impl Word {
    fn new() -> Self {
        Self {
            shared: Arc::new(Shared::default()),
            taken: 0,
            closer: Closer::default(),
        }
    }

    fn try_take(&mut self) -> bool {
        let found = self.shared.word.load(Ordering::Acquire);
        let new = found != self.taken;
        self.taken = found;
        new
    }
}

impl Source for Word {
    fn watch(&self) -> Watch<'_> {
        Watch {
            word: &self.shared.word,
            seen: self.taken,
        }
    }

    fn arm(&mut self, how: Park) {
        self.shared.parked.store(how.flag(), Ordering::Relaxed);
    }

    fn disarm(&mut self) {
        self.shared.parked.store(parked::AWAKE, Ordering::Relaxed);
    }

    fn closer(&self) -> &Closer {
        &self.closer
    }

    fn parking(&self) -> Parking {
        Parking::Light
    }
}

fn two() -> (Waiter<Word>, [Token; 2], [Arc<Shared>; 2]) {
    let mut waiter = Waiter::new(Waiting::Blocking);
    let sources = [Word::new(), Word::new()];
    let shared = [sources[0].shared.clone(), sources[1].shared.clone()];
    let [a, b] = sources;
    let a = waiter.add(a, Class::Normal).expect("room");
    let b = waiter.add(b, Class::High).expect("room");
    (waiter, [a, b], shared)
}

fn ready(waiter: &mut Waiter<Word>) -> Token {
    match waiter.next(None).expect("futexes don't fail") {
        Some(Event::Ready(token)) => token,
        other => panic!("no source is ready: {other:?}"),
    }
}

#[test]
fn what_either_of_two_sources_gets_is_seen() {
    loom::model(|| {
        let (mut waiter, tokens, [a, b]) = two();
        let peers = [
            thread::spawn(move || commit(&a, 1)),
            thread::spawn(move || commit(&b, 1)),
        ];
        let mut left = 2;
        while left > 0 {
            let token = ready(&mut waiter);
            assert!(tokens.contains(&token));
            left -= usize::from(waiter.get_mut(token).expect("it is there").try_take());
        }
        for peer in peers {
            peer.join().expect("committed");
        }
    });
}

#[test]
fn one_source_again_and_again_while_the_other_sleeps() {
    loom::model(|| {
        let (mut waiter, [token, _], [a, _b]) = two();
        let peer = thread::spawn(move || {
            commit(&a, 1);
            commit(&a, 2);
        });
        while waiter.get(token).expect("it is there").taken != 2 {
            let ready = ready(&mut waiter);
            assert_eq!(ready, token);
            assert!(waiter.get_mut(token).expect("it is there").try_take());
        }
        peer.join().expect("committed");
    });
}

#[test]
fn a_wake_up_is_never_lost_beside_a_message() {
    loom::model(|| {
        let (mut waiter, [token, _], [a, _b]) = two();
        let waker = waiter.waker();
        let peer = thread::spawn(move || commit(&a, 1));
        let waking = thread::spawn(move || waker.wake());
        let (mut woken, mut taken) = (false, false);
        while !(woken && taken) {
            match waiter.next(None).expect("futexes don't fail") {
                Some(Event::Woken) => {
                    assert!(!woken, "one call, one event");
                    woken = true;
                }
                Some(Event::Ready(ready)) => {
                    assert_eq!(ready, token);
                    taken |= waiter.get_mut(token).expect("it is there").try_take();
                }
                other => panic!("{other:?}"),
            }
        }
        peer.join().expect("committed");
        waking.join().expect("woke");
    });
}

#[test]
fn a_close_from_another_thread_makes_its_source_ready() {
    loom::model(|| {
        let (mut waiter, [token, _], _) = two();
        let closer = waiter.get(token).expect("it is there").closer.clone();
        let closing = thread::spawn(move || closer.close(Status::PEER_GONE));
        assert_eq!(ready(&mut waiter), token);
        closing.join().expect("closed");
    });
}
