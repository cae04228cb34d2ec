//! The receiving half of the client: requests to answer, and topics that are followed.

use std::sync::Arc;
use std::time::Duration;

use super::ClientError;
use super::link::{EVENTS_HELD, Link};
use super::mailbox::{Mailbox, Received};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Delivery, ERROR_MAX, Request, Response, Status};

/// Requests to this agent, as they come.
#[derive(Debug)]
pub struct Requests {
    link: Arc<Link>,
    max_payload: u32,
}

/// One request in hand. Dropping it unanswered tells the requester that it failed.
#[derive(Debug)]
pub struct Incoming {
    link: Arc<Link>,
    max_payload: u32,
    /// Who asks.
    pub from: PeerId,
    pub method: String,
    pub params: Vec<u8>,
    /// How long the requester waits, as it said; 0 is the bus's default.
    pub timeout_ms: u32,
    id: u32,
    answered: bool,
}

impl Requests {
    pub(super) fn new(link: Arc<Link>, max_payload: u32) -> Self {
        Self { link, max_payload }
    }

    /// Waits for the next request; `None` after `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Option<Incoming>, ClientError> {
        loop {
            match self.link.requests.take(Some(timeout)) {
                Received::Item(frame) => {
                    let request = Request::parse(&frame.payload)?;
                    return Ok(Some(Incoming {
                        link: self.link.clone(),
                        max_payload: self.max_payload,
                        from: frame.header.source,
                        method: request.method.to_owned(),
                        params: request.params.to_vec(),
                        timeout_ms: request.timeout_ms,
                        id: frame.correlation(),
                        answered: false,
                    }));
                }
                Received::Lost(_) => {}
                Received::TimedOut => return Ok(None),
                Received::Closed => {
                    return Err(ClientError::Closed {
                        why: self.link.why_closed(),
                    });
                }
            }
        }
    }

    /// Answers requests with `answer` until the connection ends; the error says why it did.
    pub fn answer_all(
        &self,
        mut answer: impl FnMut(&Incoming) -> Result<Vec<u8>, String>,
    ) -> ClientError {
        loop {
            match self.next(Duration::MAX) {
                Ok(Some(incoming)) => {
                    let result = answer(&incoming);
                    let sent = match &result {
                        Ok(result) => incoming.respond(Ok(result)),
                        Err(text) => incoming.respond(Err(text)),
                    };
                    match sent {
                        Ok(()) | Err(ClientError::TooLarge { .. }) => {}
                        Err(error) => return error,
                    }
                }
                Ok(None) => {}
                Err(error) => return error,
            }
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        let Ok(payload) = (Control::Serve { window: 0 }).encode() else {
            return;
        };
        // The answer goes to nobody; a lost connection has stopped serving anyway.
        drop(
            self.link
                .send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None),
        );
    }
}

impl Incoming {
    /// Answers. An `Err` text of any length goes along whole.
    pub fn respond(mut self, result: Result<&[u8], &str>) -> Result<(), ClientError> {
        self.answered = true;
        respond(&self.link, self.max_payload, self.id, result)
    }

    /// True once the requester no longer waits: it cancelled, ended, or its deadline passed.
    pub fn is_cancelled(&self) -> bool {
        self.link.is_cancelled(self.id)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.link.forget_request(self.id);
        if !self.answered {
            // If the connection is lost, the bus has told the requester already.
            drop(respond(
                &self.link,
                self.max_payload,
                self.id,
                Err("the agent gave no answer to the request"),
            ));
        }
    }
}

pub(super) fn respond(
    link: &Link,
    max_payload: u32,
    id: u32,
    result: Result<&[u8], &str>,
) -> Result<(), ClientError> {
    let response = match result {
        Ok(bytes) => Response::ok(bytes),
        Err(text) if text.len() <= ERROR_MAX => Response {
            status: Status::FAILED,
            error: text,
            result: &[],
        },
        Err(text) => Response {
            status: Status::FAILED,
            error: "",
            result: text.as_bytes(),
        },
    };
    let payload = response.encode()?;
    let (len, limit) = (payload.len(), max_payload as usize);
    if len > limit {
        let error = format!("the answer of {len} bytes is over the bus's limit of {limit}");
        let payload = Response {
            status: Status::FAILED,
            error: &error,
            result: &[],
        }
        .encode()?;
        link.send(
            Frame::new(kind::RESPONSE | kind::ERROR, PeerId::BUS, id, payload),
            None,
        )?;
        return Err(ClientError::TooLarge { len, limit });
    }
    link.send(Frame::new(kind::RESPONSE, PeerId::BUS, id, payload), None)
}

/// Where the reading thread puts the messages of one subscription.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub pattern: String,
    pub mailbox: Arc<Mailbox<Frame>>,
}

/// A followed pattern. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    link: Arc<Link>,
    pattern: String,
    mailbox: Arc<Mailbox<Frame>>,
}

impl Subscription {
    /// Before the bus is asked, so that no message falls between.
    pub(super) fn register(link: Arc<Link>, pattern: &str) -> Self {
        let mailbox = Arc::new(Mailbox::new(EVENTS_HELD));
        link.add_subscriber(Subscriber {
            pattern: pattern.to_owned(),
            mailbox: mailbox.clone(),
        });
        Self {
            link,
            pattern: pattern.to_owned(),
            mailbox,
        }
    }

    /// The next message (an EVENT frame; read it with [`crate::message::Event::parse`]), or how many
    /// were lost before it.
    pub fn next(&self, timeout: Duration) -> Received<Frame> {
        self.mailbox.take(Some(timeout))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.link.remove_subscriber(&self.mailbox) {
            return;
        }
        let control = Control::Unsubscribe {
            delivery: Delivery::Push,
            pattern: &self.pattern,
        };
        let Ok(payload) = control.encode() else {
            return;
        };
        // The answer goes to nobody; on a lost connection the subscription is gone too.
        drop(
            self.link
                .send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None),
        );
    }
}
