//! One answer from a shard to whoever asked: a thread waits for it, a task awaits it.
//!
//! Any thread; knows no runtime. Dropping the giving end without an answer ends the wait with `None`: the shard has
//! stopped, or what was asked of it panicked.

#![forbid(unsafe_code)]

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct State<R> {
    answer: Option<R>,
    /// Answered, or never will be.
    over: bool,
    task: Option<Waker>,
}

#[derive(Debug)]
struct Slot<R> {
    state: Mutex<State<R>>,
    changed: Condvar,
}

impl<R> Slot<R> {
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, answer: Option<R>) {
        let task = {
            let mut state = self.lock();
            state.answer = answer;
            state.over = true;
            state.task.take()
        };
        self.changed.notify_all();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// The end that waits.
#[derive(Debug)]
#[must_use = "an answer that nobody waits for need not be asked for"]
pub struct Answer<R>(Arc<Slot<R>>);

/// The end that answers: when it is dropped, so that what the answer stands for can be finished between setting it and
/// telling whoever waits.
#[derive(Debug)]
pub(super) struct Answering<R> {
    slot: Arc<Slot<R>>,
    answer: Option<R>,
}

pub(super) fn pair<R>() -> (Answering<R>, Answer<R>) {
    let slot = Arc::new(Slot {
        state: Mutex::new(State {
            answer: None,
            over: false,
            task: None,
        }),
        changed: Condvar::new(),
    });
    let giving = Answering {
        slot: slot.clone(),
        answer: None,
    };
    (giving, Answer(slot))
}

impl<R> Answering<R> {
    pub fn set(&mut self, answer: R) {
        self.answer = Some(answer);
    }
}

impl<R> Drop for Answering<R> {
    fn drop(&mut self) {
        self.slot.finish(self.answer.take());
    }
}

impl<R> Answer<R> {
    /// Blocks until it is there. `None`: it never will be.
    pub fn wait(self) -> Option<R> {
        let mut state = self.0.lock();
        while !state.over {
            state = self
                .0
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.answer.take()
    }
}

impl<R> Future for Answer<R> {
    type Output = Option<R>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<R>> {
        let mut state = self.0.lock();
        if state.over {
            return Poll::Ready(state.answer.take());
        }
        state.task = Some(context.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reaches_a_thread_that_waits_for_it() {
        let (mut give, take) = pair();
        let waiting = std::thread::spawn(move || take.wait());
        give.set(7);
        drop(give);
        assert_eq!(waiting.join().expect("the thread ran"), Some(7));
    }

    #[test]
    fn a_giver_that_goes_away_ends_the_wait() {
        let (give, take) = pair::<u8>();
        drop(give);
        assert_eq!(take.wait(), None);
    }
}
