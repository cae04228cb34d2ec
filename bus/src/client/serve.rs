//! The receiving half of the client: requests to answer, and topics that are followed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::link::{EVENTS_HELD, Link};
use super::mailbox::{Mailbox, Received};
use super::{Client, ClientError, command, ok_result};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Delivery, ERROR_MAX, Request, Response, Status};

/// Requests to this agent, as they come.
#[derive(Debug)]
pub struct Requests {
    client: Client,
    window: u32,
    /// The connection that serves them.
    link: Mutex<Arc<Link>>,
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
    pub(super) fn start(client: Client, window: u32) -> Result<Self, ClientError> {
        let link = Mutex::new(serve(&client, window)?);
        Ok(Self {
            client,
            window,
            link,
        })
    }

    fn link(&self) -> MutexGuard<'_, Arc<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next request; `None` after `timeout`.
    pub fn next(&self, timeout: Duration) -> Result<Option<Incoming>, ClientError> {
        loop {
            let link = self.link().clone();
            match link.requests.take(Some(timeout)) {
                Received::Item(frame) => {
                    let request = Request::parse(&frame.payload)?;
                    return Ok(Some(Incoming {
                        link: link.clone(),
                        max_payload: self.client.max_payload(),
                        from: frame.header.source,
                        method: request.method.to_owned(),
                        params: request.params.to_vec(),
                        timeout_ms: request.timeout_ms,
                        id: frame.correlation(),
                        answered: false,
                    }));
                }
                Received::Lost(_) | Received::Replaced => {}
                Received::TimedOut => return Ok(None),
                Received::Closed => {
                    let anew = serve(&self.client, self.window)?;
                    *self.link() = anew;
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
                        // The requester was told when the connection went.
                        Ok(()) | Err(ClientError::TooLarge { .. } | ClientError::Closed { .. }) => {
                        }
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
            self.link()
                .send(Frame::new(kind::COMMAND, PeerId::BUS, 0, payload), None),
        );
    }
}

/// Has the bus send requests over the connection that is returned.
fn serve(client: &Client, window: u32) -> Result<Arc<Link>, ClientError> {
    let link = client.link()?;
    ok_result(&command(&link, Control::Serve { window })?)?;
    Ok(link)
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
    client: Client,
    pattern: String,
    now: Mutex<Followed>,
}

/// The connection over which the messages come, and where its thread puts them.
#[derive(Debug, Clone)]
struct Followed {
    link: Arc<Link>,
    mailbox: Arc<Mailbox<Frame>>,
}

impl Followed {
    fn start(client: &Client, pattern: &str) -> Result<Self, ClientError> {
        let followed = Self {
            link: client.link()?,
            mailbox: Arc::new(Mailbox::new(EVENTS_HELD)),
        };
        // Before the bus is asked, so that no message falls between.
        followed.link.add_subscriber(Subscriber {
            pattern: pattern.to_owned(),
            mailbox: followed.mailbox.clone(),
        });
        let subscribe = Control::Subscribe {
            delivery: Delivery::Push,
            pattern,
        };
        let answer = command(&followed.link, subscribe);
        match answer.and_then(|answer| ok_result(&answer).map(drop)) {
            Ok(()) => Ok(followed),
            Err(error) => {
                followed.end(pattern);
                Err(error)
            }
        }
    }

    fn end(&self, pattern: &str) {
        if self.link.remove_subscriber(&self.mailbox) {
            return;
        }
        let control = Control::Unsubscribe {
            delivery: Delivery::Push,
            pattern,
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

impl Subscription {
    pub(super) fn start(client: Client, pattern: &str) -> Result<Self, ClientError> {
        let now = Mutex::new(Followed::start(&client, pattern)?);
        Ok(Self {
            client,
            pattern: pattern.to_owned(),
            now,
        })
    }

    /// The next message (an EVENT frame; read it with [`crate::message::Event::parse`]), or how many
    /// were lost before it.
    pub fn next(&self, timeout: Duration) -> Received<Frame> {
        let followed = self.now().clone();
        match followed.mailbox.take(Some(timeout)) {
            Received::Closed => match Followed::start(&self.client, &self.pattern) {
                Ok(anew) => {
                    *self.now() = anew;
                    Received::Replaced
                }
                // Nobody listens any more, or the policy of the successor forbids it.
                Err(_) => Received::Closed,
            },
            received => received,
        }
    }

    fn now(&self) -> MutexGuard<'_, Followed> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.now().end(&self.pattern);
    }
}
