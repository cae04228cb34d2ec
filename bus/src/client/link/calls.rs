//! Questions to the bus: a frame under a fresh correlation id, and its answer.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use super::super::ClientError;
use super::{Arrived, Expected, Link, PIPELINED};
use crate::frame::{Frame, PeerId, kind};
use crate::message::Control;

impl Link {
    /// Sends a command under a fresh correlation id, its payload stays with the caller; [`Self::finish_call`] waits for the
    /// answer.
    pub fn start_command(&self, payload: &[u8]) -> Result<Receiver<Arrived>, ClientError> {
        let (correlation, receiver) = self.begin(None)?;
        if let Err(error) = self.send_parts((kind::COMMAND, 1, correlation), PeerId::BUS, payload) {
            self.abandon(correlation);
            return Err(error);
        }
        Ok(receiver)
    }

    /// Waits for the answer to a call that was started.
    pub fn finish_call(
        &self,
        receiver: &Receiver<Arrived>,
        wait: Duration,
    ) -> Result<Arrived, ClientError> {
        self.await_answer(receiver, Some(wait))
    }

    /// Sends `frame` under a fresh correlation id and waits for the answer.
    pub fn call(&self, frame: Frame, wait: Option<Duration>) -> Result<Frame, ClientError> {
        self.call_with(frame, None, wait)
            .map(|arrived| arrived.frame)
    }

    /// As [`Self::call`], with a descriptor each way.
    pub fn call_with(
        &self,
        frame: Frame,
        fd: Option<&OwnedFd>,
        wait: Option<Duration>,
    ) -> Result<Arrived, ClientError> {
        self.call_expecting(frame, fd, wait, None)
    }

    /// As [`Self::call_with`]; the answer brings the number of something that is registered with it.
    pub fn call_expecting(
        &self,
        mut frame: Frame,
        fd: Option<&OwnedFd>,
        wait: Option<Duration>,
        expected: Option<Expected>,
    ) -> Result<Arrived, ClientError> {
        let (correlation, receiver) = self.begin(expected)?;
        frame.header.correlation = correlation.into();
        let withdraw = frame.kind() == kind::REQUEST;
        let outcome = self
            .send(frame, fd)
            .and_then(|()| self.await_answer(&receiver, wait));
        if outcome.is_err() && self.abandon(correlation) && withdraw {
            let payload = Control::Cancel {
                request: correlation,
            }
            .encode()?;
            self.send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None)?;
        }
        outcome
    }

    /// Nobody waits for that answer any more; says whether it was still to come.
    fn abandon(&self, correlation: u32) -> bool {
        let mut state = self.lock();
        state.expected.remove(&correlation);
        state.calls.remove(&correlation).is_some()
    }

    fn begin(&self, expected: Option<Expected>) -> Result<(u32, Receiver<Arrived>), ClientError> {
        let (sender, receiver) = sync_channel(1);
        let mut state = self.lock();
        if let Some(why) = &state.closed {
            return Err(ClientError::Closed { why: why.clone() });
        }
        loop {
            let id = self.next_correlation.fetch_add(1, Ordering::Relaxed);
            if id != 0 && id & PIPELINED == 0 && !state.calls.contains_key(&id) {
                state.calls.insert(id, sender);
                state
                    .expected
                    .extend(expected.map(|expected| (id, expected)));
                return Ok((id, receiver));
            }
        }
    }

    fn await_answer(
        &self,
        receiver: &Receiver<Arrived>,
        wait: Option<Duration>,
    ) -> Result<Arrived, ClientError> {
        let wait = wait.unwrap_or(Duration::from_secs(30));
        if let Some(route) = self.route.get() {
            let answer = route.wait(self, Instant::now().checked_add(wait), || {
                match receiver.try_recv() {
                    Ok(answer) => Some(Ok(answer)),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => Some(Err(ClientError::Lost {
                        why: self.why_closed(),
                    })),
                }
            });
            return answer.unwrap_or(Err(ClientError::NoAnswer {
                seconds: wait.as_secs(),
            }));
        }
        receiver.recv_timeout(wait).map_err(|error| match error {
            RecvTimeoutError::Timeout => ClientError::NoAnswer {
                seconds: wait.as_secs(),
            },
            RecvTimeoutError::Disconnected => ClientError::Lost {
                why: self.why_closed(),
            },
        })
    }
}
