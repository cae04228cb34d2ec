//! The direct path, as an agent has it: small requests and their answers, which the kernel puts
//! from one agent's socket into another's.
//!
//! Only where the daemon says that there is one. A link has at most one direct connection, which it
//! opens by itself, in a thread of its own that then reads it ([`Direct::ensure`]); until then, and
//! whenever a frame does not get through, the same request goes over the bus. Read on: [`choice`]
//! (which way), [`wire`] (frames), [`path`] (the connection), ADR 38 and 41.
//!
//! **Nothing is sent twice that may have been delivered once.** A request goes over the bus after
//! all only if the kernel or the other side said that it was not taken. When a connection is lost
//! under it, that is told, and so is a deadline that passes.

#![forbid(unsafe_code)]

mod choice;
mod path;
mod wire;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use agentd_ebpf_common::route::CONTENT_MAX;

use super::link::Link;
use super::{Client, ClientError, Reply, command, ok_result};
use crate::channel::{SocketOnly, Tier};
use crate::frame::PeerId;
use crate::message::{self, Control, MessageError};
use crate::protect::policy::Addressee;
use choice::Way;
use path::{Path, Target};

pub(super) use path::Return;

/// How often one link opens a direct connection: it is opened again after it was lost.
const TRIES: u32 = 8;
/// How long until it is tried again after it could not be opened; each time twice as long.
const RETRY: Duration = Duration::from_millis(10);

/// When a small request takes the direct path: one of at most 4 KiB, to an agent that has a direct
/// connection, of agents without shared memory. What does not get through goes over the bus,
/// whatever is said here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectUse {
    /// Where it was measured to be quicker to that agent, here and now.
    #[default]
    Measured,
    Always,
    Never,
}

/// The direct connection of one link.
#[derive(Debug, Default)]
pub(super) struct Direct {
    state: Mutex<State>,
    /// Requests that this link takes at a time; 0: it does not serve.
    window: AtomicU32,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Untried,
    Opening,
    Open(Arc<Path>),
    /// It can't be had, or the link is over.
    Without,
}

impl Direct {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, if it stands; the first call has it opened.
    pub fn ensure(&self, link: &Arc<Link>) -> Option<Arc<Path>> {
        let mut state = self.lock();
        match &*state {
            State::Open(path) => return Some(path.clone()),
            State::Opening | State::Without => return None,
            State::Untried => {}
        }
        let weak = Arc::downgrade(link);
        let thread = std::thread::Builder::new().name("agentd-direct".into());
        *state = match thread.spawn(move || keep(&weak)) {
            Ok(_) => State::Opening,
            // Without a thread to read it there is none; the bus does it all.
            Err(_) => State::Without,
        };
        None
    }

    fn open_now(&self) -> Option<Arc<Path>> {
        match &*self.lock() {
            State::Open(path) => Some(path.clone()),
            _ => None,
        }
    }

    /// How many requests are taken at a time from here on.
    pub fn serve(&self, window: u32) {
        self.window.store(window, Ordering::Relaxed);
    }

    /// The link is over, and its direct connection with it.
    pub fn end(&self, why: &str) {
        let before = std::mem::replace(&mut *self.lock(), State::Without);
        if let State::Open(path) = before {
            path.end(why);
        }
    }

    /// What the bus says of the path.
    pub fn heard(&self, said: message::Direct<'_>) {
        let Some(path) = self.open_now() else { return };
        match said {
            message::Direct::Answered {
                from,
                correlation,
                response,
            } => path.answered_by_bus(from, correlation, response),
            message::Direct::Gone { address } => path.peer_gone(address),
            _ => {}
        }
    }

    /// Puts `next` in place while the link lives.
    fn become_state(&self, next: State) -> bool {
        let mut state = self.lock();
        if matches!(*state, State::Without) {
            return false;
        }
        *state = next;
        true
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        self.end("closed by this program");
    }
}

/// Opens the direct connection of a link and reads it; again after it was lost, as long as the link stands.
fn keep(weak: &Weak<Link>) {
    for tried in 0..TRIES {
        let Some((own, id)) = place(weak) else { break };
        let Ok(path) = Path::connect(own, id) else {
            // The agent's last connection may still be closing, or be another process's.
            std::thread::sleep(RETRY * (1 << tried));
            continue;
        };
        let path = Arc::new(path);
        // The bus tells others from here on; what they send waits in its queue until it is read.
        let told = ask(weak, message::Direct::Own { held: true }).is_some();
        let Some(link) = weak.upgrade().filter(|_| told) else {
            break;
        };
        if !link.direct.become_state(State::Open(path.clone())) {
            return;
        }
        drop(link);
        let why = path.read_all(weak);
        path.end(&why);
        path.leave();
        let Some(link) = weak.upgrade() else { return };
        if !link.direct.become_state(State::Opening) {
            return;
        }
    }
    if let Some(link) = weak.upgrade() {
        link.direct.end("there is no direct connection");
    }
}

/// What the bus says; `None`: it refuses, or there is no link any more.
fn ask(weak: &Weak<Link>, said: message::Direct<'_>) -> Option<Vec<u8>> {
    let answer = command(&*weak.upgrade()?, Control::Direct(said)).ok()?;
    Some(ok_result(&answer).ok()?.result.to_vec())
}

/// This agent's address and id.
fn place(weak: &Weak<Link>) -> Option<(u64, PeerId)> {
    let own = ask(weak, message::Direct::Own { held: false })?;
    let own = u64::from_le_bytes(own.try_into().ok()?);
    let id = ask(weak, message::Direct::Whose { address: own })?;
    Some((own, PeerId(id.try_into().ok()?)))
}

/// A request that may go by the path.
pub(super) struct Asking {
    link: Arc<Link>,
    path: Arc<Path>,
    target: Arc<Target>,
    way: Way,
    began: Instant,
}

impl Asking {
    /// `None`: it is for the bus, and nothing is learned from it.
    pub fn about(client: &Client, to: &str, payload: &[u8]) -> Option<Self> {
        let how = client.direct_use();
        let by_policy = client.tier() == Tier::Socket(SocketOnly::Policy);
        let small = payload.len() <= CONTENT_MAX as usize;
        if how == DirectUse::Never
            || !by_policy
            || !small
            || client.guard.protects(Addressee::Agent(to))
        {
            return None;
        }
        let link = client.link().ok()?;
        let path = link.direct.ensure(&link)?;
        // Addressed for the first time, it goes over the bus, which knows the name.
        let target = path.target(client.remembered(to)?);
        let way = target.choose(how);
        Some(Self {
            link,
            path,
            target,
            way,
            began: Instant::now(),
        })
    }

    /// Asks by the path, if that is the way. `None`: it was not taken, and goes over the bus.
    pub fn ask(&self, payload: &[u8], timeout: Duration) -> Result<Option<Reply>, ClientError> {
        if self.way == Way::Bus {
            return Ok(None);
        }
        let Some(address) = self.address() else {
            self.target.came_back();
            return Ok(None);
        };
        let Some(answer) = self.path.ask(address, payload, timeout)? else {
            self.target.came_back();
            return Ok(None);
        };
        self.target.took(Way::Direct, self.began.elapsed());
        answer.reply(self.target.id).map(Some)
    }

    /// The bus has answered.
    pub fn answered_by_bus(&self) {
        if self.way == Way::Bus {
            self.target.took(Way::Bus, self.began.elapsed());
        }
    }

    fn address(&self) -> Option<u64> {
        if let Some(address) = self.target.address() {
            return Some(address);
        }
        let said = message::Direct::Peer { id: self.target.id };
        let answer = command(&self.link, Control::Direct(said)).ok()?;
        let address = ok_result(&answer).ok()?.result;
        let address = u64::from_le_bytes(address.try_into().ok()?);
        self.target.set_address(address);
        Some(address)
    }
}

/// Tells whoever asked by the direct path over the bus.
fn answer_by_bus(
    link: &Link,
    to: u64,
    correlation: u64,
    response: &[u8],
) -> Result<(), ClientError> {
    let answer = message::Direct::Answer {
        to,
        correlation,
        response,
    };
    let payload = Control::Direct(answer).encode()?;
    let frame = crate::frame::Frame::new(crate::frame::kind::COMMAND, PeerId::BUS, 0, payload);
    link.send(frame, None)
}

/// The agent behind an address, as the bus says.
fn whose(link: &Link, address: u64) -> Result<PeerId, ClientError> {
    let answer = command(link, Control::Direct(message::Direct::Whose { address }))?;
    let id = ok_result(&answer)?.result.try_into();
    Ok(PeerId(
        id.map_err(|_| MessageError::Missing { what: "agent id" })?,
    ))
}
