//! The receiving half of the client: requests to answer, and topics that are followed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::direct::Return;
use super::guard::Answering;
use super::link::{EVENTS_HELD, Link};
use super::mailbox::{Mailbox, Received, Until};
use super::{Client, ClientError, command, ok_result};
use crate::channel::{SocketOnly, Tier};
use crate::frame::{Frame, PeerId, kind};
use crate::message::{Control, Delivery, ERROR_MAX, Request, Response, Status, SubscribeOptions};
use crate::protect::{Opener, Verified};

/// Requests to this agent, as they come.
#[derive(Debug)]
pub struct Requests {
    client: Client,
    opener: Opener,
    window: u32,
    /// The connection that serves them.
    link: Mutex<Arc<Link>>,
}

/// A request as it comes, and how its answer goes back if not by the bus.
#[derive(Debug)]
pub(super) struct Asked {
    pub frame: Frame,
    pub by: Option<Return>,
}

/// One request in hand. Dropping it unanswered tells the requester that it failed.
#[derive(Debug)]
pub struct Incoming {
    link: Arc<Link>,
    client: Client,
    answering: Option<Answering>,
    /// Who asks.
    pub from: PeerId,
    /// How the request was protected; its answer will be too. `None`: it came plain.
    pub verified: Option<Verified>,
    pub method: String,
    pub params: Vec<u8>,
    /// How long the requester waits, as it said; 0 is the bus's default.
    pub timeout_ms: u32,
    id: u32,
    /// It came by the direct path.
    by: Option<Return>,
    answered: bool,
}

impl Requests {
    pub(super) fn start(client: Client, window: u32) -> Result<Self, ClientError> {
        let link = Mutex::new(serve(&client, window)?);
        Ok(Self {
            opener: client.guard.opener(),
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
        let until = Until::after(timeout);
        loop {
            let link = self.link().clone();
            match link.take(&link.requests, until.left()) {
                Received::Item(Asked { frame, by }) => {
                    let (from, id) = (frame.header.source, frame.correlation());
                    let guard = &self.client.guard;
                    let opened = guard.incoming(&self.opener, frame, self.client.id());
                    let (opened, answering) = match opened {
                        Ok(opened) => opened,
                        Err(why) => {
                            let text = why.to_string();
                            guard.refuse(from, why);
                            let back = (id, by.as_ref());
                            answer(&link, &self.client, None, back, Err(&text))?;
                            link.forget_request(id);
                            continue;
                        }
                    };
                    let (frame, verified) = (opened.frame, opened.verified);
                    let request = Request::parse(&frame.payload)?;
                    return Ok(Some(Incoming {
                        link: link.clone(),
                        client: self.client.clone(),
                        answering,
                        verified,
                        from,
                        method: request.method.to_owned(),
                        params: request.params.to_vec(),
                        timeout_ms: request.timeout_ms,
                        id,
                        by,
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
        self.link().direct.serve(0);
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
    if client.tier() == Tier::Socket(SocketOnly::Policy) {
        link.direct.serve(window);
        // Others ask by it once it stands; until then they ask the bus.
        link.direct.ensure(&link);
    }
    Ok(link)
}

impl Incoming {
    /// Answers. An `Err` text of any length goes along whole.
    pub fn respond(mut self, result: Result<&[u8], &str>) -> Result<(), ClientError> {
        self.answered = true;
        let answering = self.answering.as_ref();
        let back = (self.id, self.by.as_ref());
        answer(&self.link, &self.client, answering, back, result)
    }

    /// True once the requester no longer waits: it cancelled, ended, or its deadline passed.
    pub fn is_cancelled(&self) -> bool {
        match &self.by {
            Some(back) => back.is_over(),
            None => self.link.is_cancelled(self.id),
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.link.forget_request(self.id);
        if !self.answered {
            // If the connection is lost, the bus has told the requester already.
            drop(answer(
                &self.link,
                &self.client,
                self.answering.as_ref(),
                (self.id, self.by.as_ref()),
                Err("the agent gave no answer to the request"),
            ));
        }
    }
}

pub(super) fn respond(
    link: &Link,
    client: &Client,
    answering: Option<&Answering>,
    id: u32,
    result: Result<&[u8], &str>,
) -> Result<(), ClientError> {
    answer(link, client, answering, (id, None), result)
}

/// Answers by the way that the request came.
fn answer(
    link: &Link,
    client: &Client,
    answering: Option<&Answering>,
    (id, by): (u32, Option<&Return>),
    result: Result<&[u8], &str>,
) -> Result<(), ClientError> {
    let limit = client.max_payload() as usize;
    let frame = |response: Response<'_>| {
        let bits = if response.status == Status::OK {
            kind::RESPONSE
        } else {
            kind::RESPONSE | kind::ERROR
        };
        let frame = Frame::new(bits, PeerId::BUS, id, response.encode()?);
        match answering {
            Some(answering) => answering.protect(frame, client.id()),
            None => Ok(frame),
        }
    };
    let send = |frame: Frame| match by {
        Some(back) => back.answer(link, &frame.payload, limit),
        None if frame.payload.len() > limit => Err(ClientError::TooLarge {
            len: frame.payload.len(),
            limit,
        }),
        None => link.send(frame, None),
    };
    let sent = send(frame(match result {
        Ok(bytes) => Response::ok(bytes),
        Err(text) if text.len() <= ERROR_MAX => failed(text),
        Err(text) => Response {
            status: Status::FAILED,
            error: "",
            result: text.as_bytes(),
        },
    })?);
    if let Err(ClientError::TooLarge { len, limit }) = &sent {
        let error = format!("the answer of {len} bytes is over the bus's limit of {limit}");
        send(frame(failed(&error))?)?;
    }
    sent
}

fn failed(text: &str) -> Response<'_> {
    Response {
        status: Status::FAILED,
        error: text,
        result: &[],
    }
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
    opener: Opener,
    pattern: String,
    options: SubscribeOptions,
    now: Mutex<Followed>,
    /// Room for what is being handed out.
    spare: Mutex<VecDeque<Frame>>,
}

/// The connection over which the messages come, and where its thread puts them.
#[derive(Debug, Clone)]
struct Followed {
    link: Arc<Link>,
    mailbox: Arc<Mailbox<Frame>>,
}

impl Followed {
    fn start(
        client: &Client,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Self, ClientError> {
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
            options,
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
    pub(super) fn start(
        client: Client,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Self, ClientError> {
        let now = Mutex::new(Followed::start(&client, pattern, options)?);
        Ok(Self {
            opener: client.guard.opener(),
            client,
            pattern: pattern.to_owned(),
            options,
            now,
            spare: Mutex::default(),
        })
    }

    /// The next message (an EVENT frame; read it with [`crate::message::Event::parse`]), or how many
    /// were lost before it. One that does not verify is left out (see [`Client::refused`]).
    pub fn next(&self, timeout: Duration) -> Received<Frame> {
        let until = Until::after(timeout);
        loop {
            match self.take(until) {
                Received::Item(frame) => {
                    let (from, guard) = (frame.header.source, &self.client.guard);
                    match guard.incoming(&self.opener, frame, self.client.id()) {
                        Ok((opened, _)) => return Received::Item(opened.frame),
                        Err(why) => guard.refuse(from, why),
                    }
                }
                other => return other,
            }
        }
    }

    /// Hands every message that is there, or the first that comes within `timeout`, to `work`; how many there were. The way for
    /// many small messages. What else [`Self::next`] says comes alone, with nothing handed out.
    pub fn for_each(&self, timeout: Duration, mut work: impl FnMut(&Frame)) -> Received<usize> {
        let first = match self.take(Until::after(timeout)) {
            Received::Item(frame) => frame,
            Received::Lost(count) => return Received::Lost(count),
            Received::Replaced => return Received::Replaced,
            Received::TimedOut => return Received::TimedOut,
            Received::Closed => return Received::Closed,
        };
        let mut items = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        self.now().mailbox.take_items(&mut items);
        let guard = &self.client.guard;
        let mut count = 0;
        for frame in std::iter::once(first).chain(items.drain(..)) {
            let from = frame.header.source;
            match guard.incoming(&self.opener, frame, self.client.id()) {
                Ok((opened, _)) => {
                    work(&opened.frame);
                    count += 1;
                }
                Err(why) => guard.refuse(from, why),
            }
        }
        Received::Item(count)
    }

    fn take(&self, until: Until) -> Received<Frame> {
        let followed = self.now().clone();
        match followed.link.take(&followed.mailbox, until.left()) {
            Received::Closed => match Followed::start(&self.client, &self.pattern, self.options) {
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
