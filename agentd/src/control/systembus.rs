//! `org.agentd1` on the system bus: a second door to the same trees.
//!
//! On a bus one connection serves every caller, while an object here belongs to one ([`super::Tree`]). So each peer of the
//! bus, by its unique name, gets a peer-to-peer tree of its own over an in-process channel, made for the uid and group
//! that the bus attests for it, and this module carries messages between the two as they are: calls in, answers out, and
//! signals out to that peer alone. What one user's tree holds can't reach another's: not by introspection, not by
//! ObjectManager, not by a broadcast signal. A peer's tree ends with its connection to the bus.
//!
//! polkit ([`super::polkit`]) is asked twice at most: before a launch, and when a caller's own rights were not enough for a
//! call that [`action_of`] names; if it agrees, the same call is made again with root's sight. Since a refused call did
//! nothing, nothing happens twice. A call for something that doesn't exist takes the same way, so the way tells nothing.
//!
//! Runs on the runtime, without privilege. Nothing waits for a peer: each has a queue of [`MAX_WAITING`] calls, then
//! `LimitsExceeded`. A bus that goes away is connected to again; where there is none, the control socket does.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use zbus::connection::Builder;
use zbus::connection::socket::channel::{Channel, Reader, Writer};
use zbus::connection::socket::{ReadHalf as _, Socket as _, WriteHalf as _};
use zbus::export::futures_core::Stream;
use zbus::fdo::{DBusProxy, RequestNameFlags, RequestNameReply};
use zbus::message::{Flags, Type};
use zbus::names::{BusName, OwnedUniqueName};
use zbus::{Connection, Guid, Message, MessageStream};

use super::polkit::{self, Action, Asked, Verdict};
use super::{Connections, Tree};
use crate::agents::Caller;
use crate::daemon::Daemon;

/// The name on the bus.
const NAME: &str = "org.agentd1";

/// Calls of one peer that wait to be taken, and calls of one peer that wait for polkit.
const MAX_WAITING: usize = 64;

/// Messages of the bus that wait to be sorted; beyond that the bus waits.
const MAX_UNSORTED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(1024).unwrap();

/// Pauses between attempts to reach a bus that has gone: doubled from the first to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));

#[derive(Debug, thiserror::Error)]
enum BusError {
    #[error(transparent)]
    Bus(#[from] zbus::Error),
    #[error("{NAME} belongs to another process")]
    Taken,
    #[error("the bus attests no user for {0}")]
    Unattested(OwnedUniqueName),
    #[error("too many connections of uid {0}")]
    TooMany(u32),
}

impl From<zbus::fdo::Error> for BusError {
    fn from(error: zbus::fdo::Error) -> Self {
        Self::Bus(error.into())
    }
}

/// Serves on the bus at `address` until aborted; returns where there is none, or none that lets us be [`NAME`].
pub async fn serve(address: String, daemon: Arc<Daemon>, connections: Arc<Connections>) {
    let mut pause = PAUSES.0;
    let mut served = false;
    loop {
        match connect(&address).await {
            Ok((bus, messages)) => {
                tracing::info!("serving {NAME} on the system bus");
                (served, pause) = (true, PAUSES.0);
                sort(&bus, messages, &daemon, &connections).await;
                tracing::warn!("the system bus has gone");
            }
            Err(BusError::Bus(
                zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _),
            )) if !served => {
                tracing::info!(
                    "no system bus at {address} ({error}): only the control socket is served"
                );
                return;
            }
            Err(error) if !served => {
                tracing::warn!("not on the system bus: {error}; is org.agentd1.conf installed?");
                return;
            }
            Err(error) => tracing::debug!("the system bus is not back: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

async fn connect(address: &str) -> Result<(Connection, MessageStream), BusError> {
    let bus = Builder::address(address)
        .max_queued(MAX_UNSORTED)
        .build()
        .await?;
    // Before the name, so that no call falls between the two.
    let messages = MessageStream::from(&bus);
    let flags = RequestNameFlags::DO_NOT_QUEUE;
    match bus.request_name_with_flags(NAME, flags).await? {
        RequestNameReply::PrimaryOwner | RequestNameReply::AlreadyOwner => Ok((bus, messages)),
        RequestNameReply::InQueue | RequestNameReply::Exists => Err(BusError::Taken),
    }
}

/// Hands each call to its sender's own task until the bus goes.
async fn sort(
    bus: &Connection,
    mut messages: MessageStream,
    daemon: &Arc<Daemon>,
    connections: &Arc<Connections>,
) {
    let mut peers: HashMap<OwnedUniqueName, mpsc::Sender<Message>> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let message = tokio::select! {
            message = next(&mut messages) => message,
            Some(ended) = tasks.join_next() => {
                if let Ok(name) = ended {
                    peers.remove::<OwnedUniqueName>(&name);
                }
                continue;
            }
        };
        let call = match message {
            None => return,
            Some(Ok(message)) if message.message_type() == Type::MethodCall => message,
            Some(Ok(_)) => continue,
            Some(Err(error)) => {
                tracing::debug!("system bus: {error}");
                continue;
            }
        };
        let Some(sender) = call.header().sender().map(|name| name.to_owned().into()) else {
            continue;
        };
        let queue = peers.entry(sender).or_insert_with_key(|name| {
            let (queue, calls) = mpsc::channel(MAX_WAITING);
            let peer = Peer {
                bus: bus.clone(),
                name: name.clone(),
                daemon: Arc::clone(daemon),
            };
            let connections = Arc::clone(connections);
            tasks.spawn(async move {
                let name = peer.name.clone();
                if let Err(error) = peer.serve(calls, &connections).await {
                    tracing::debug!(peer = %name, "system bus: {error}");
                }
                name
            });
            queue
        });
        if queue.try_send(call.clone()).is_err() {
            refuse(
                bus,
                &call,
                LIMITS,
                "too many of your calls wait already; wait for answers",
            )
            .await;
        }
    }
}

/// D-Bus's own error for a caller that asks for too much at once.
const LIMITS: &str = "org.freedesktop.DBus.Error.LimitsExceeded";
/// Of [`agentd_api::Error`].
const DENIED: &str = "org.agentd1.Error.Denied";

/// Errors that say: not with your rights, or not there for you.
const REFUSALS: [&str; 5] = [
    DENIED,
    "org.agentd1.Error.NotFound",
    "org.freedesktop.DBus.Error.UnknownObject",
    "org.freedesktop.DBus.Error.UnknownInterface",
    "org.freedesktop.DBus.Error.UnknownMethod",
];

/// One connection of somebody to the bus.
#[derive(Debug, Clone)]
struct Peer {
    bus: Connection,
    name: OwnedUniqueName,
    daemon: Arc<Daemon>,
}

/// Calls that polkit may still make possible, by their serial.
type Pending = Arc<Mutex<HashMap<NonZeroU32, Message>>>;

fn locked(pending: &Pending) -> MutexGuard<'_, HashMap<NonZeroU32, Message>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    /// Serves one peer until it leaves the bus.
    async fn serve(
        self,
        mut calls: mpsc::Receiver<Message>,
        connections: &Arc<Connections>,
    ) -> Result<(), BusError> {
        let dbus = DBusProxy::new(&self.bus).await?;
        // Watched before it is asked about, so that its end can't be missed.
        let mut owners = pin!(
            dbus.receive_name_owner_changed_with_args(&[(0, self.name.as_str())])
                .await?
        );
        let caller = self.caller(&dbus).await?;
        let Some(_seat) = connections.enter(caller.uid) else {
            while let Ok(call) = calls.try_recv() {
                refuse(&self.bus, &call, LIMITS, "too many connections of your uid").await;
            }
            return Err(BusError::TooMany(caller.uid));
        };
        let trusted = caller.uid == 0 || caller.uid == rustix::process::geteuid().as_raw();
        let pending = Pending::default();
        let (mut own, answers) = Line::open(caller, &self.daemon).await?;
        let mut outgoing = tokio::spawn(self.clone().answer(answers, Arc::clone(&pending)));
        let mut asking = JoinSet::new();
        let (gated, mut let_in) = mpsc::channel::<Message>(MAX_WAITING);
        let served = loop {
            tokio::select! {
                call = calls.recv() => {
                    let Some(call) = call else { break Ok(()) };
                    match action_of(&call).filter(|_| !trusted) {
                        Some(Action::Launch) if asking.len() >= MAX_WAITING => {
                            refuse(&self.bus, &call, LIMITS, "too many launches wait for polkit").await;
                        }
                        Some(Action::Launch) => {
                            asking.spawn(self.clone().gate(call, gated.clone()));
                        }
                        Some(_) if reply_expected(&call) => {
                            let serial = call.primary_header().serial_num();
                            locked(&pending).insert(serial, call.clone());
                            own.to.send_message(&call).await?;
                        }
                        _ => own.to.send_message(&call).await?,
                    }
                }
                Some(call) = let_in.recv() => own.to.send_message(&call).await?,
                Some(_) = asking.join_next() => {}
                change = next(&mut owners) => match change {
                    Some(change) if change.args().is_ok_and(|args| args.new_owner().is_some()) => {}
                    _ => break Ok(()),
                },
                ended = &mut outgoing => break ended.unwrap_or(Ok(())),
            }
        };
        outgoing.abort();
        served
    }

    /// Who the peer is, as the bus attests it.
    async fn caller(&self, dbus: &DBusProxy<'_>) -> Result<Caller, BusError> {
        let name = BusName::from(self.name.as_ref());
        let credentials = dbus.get_connection_credentials(name).await?;
        let unattested = || BusError::Unattested(self.name.clone());
        let uid = credentials.unix_user_id().ok_or_else(unattested)?;
        let groups = credentials.unix_group_ids().map_or(&[][..], Vec::as_slice);
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let gid = group_of(uid, groups, &passwd).ok_or_else(unattested)?;
        Ok(Caller { uid, gid })
    }

    /// Lets a launch in if polkit does, or if there is no polkit.
    async fn gate(self, call: Message, let_in: mpsc::Sender<Message>) {
        match self.ask(&call, Action::Launch).await {
            Verdict::Allowed | Verdict::Absent => drop(let_in.send(call).await),
            Verdict::Refused => {
                let why = "polkit does not let you launch agents over the system bus (action org.agentd1.launch); \
                           ask an administrator, or use the control socket";
                refuse(&self.bus, &call, DENIED, why).await;
            }
        }
    }

    /// Carries what the peer's own tree says to the peer.
    async fn answer(self, mut answers: Reader, pending: Pending) -> Result<(), BusError> {
        let raised: Arc<tokio::sync::Mutex<Option<Line>>> = Arc::default();
        let mut raising = JoinSet::new();
        loop {
            let answer = tokio::select! {
                answer = receive(&mut answers) => answer?,
                Some(_) = raising.join_next() => continue,
            };
            if answer.message_type() == Type::Signal {
                self.bus.send(&self.addressed(&answer)?).await?;
                continue;
            }
            let header = answer.header();
            let call = header
                .reply_serial()
                .and_then(|serial| locked(&pending).remove(&serial));
            let refused = header
                .error_name()
                .is_some_and(|name| REFUSALS.contains(&name.as_str()));
            match call {
                Some(call) if refused && raising.len() < MAX_WAITING => {
                    let raise = self
                        .clone()
                        .raise(call, answer.clone(), Arc::clone(&raised));
                    raising.spawn(async move {
                        if let Err(error) = raise.await {
                            tracing::debug!("system bus: {error}");
                        }
                    });
                }
                _ => self.bus.send(&answer).await?,
            }
        }
    }

    /// Makes a refused call again with root's sight if polkit agrees; else passes the refusal on.
    async fn raise(
        self,
        call: Message,
        refusal: Message,
        raised: Arc<tokio::sync::Mutex<Option<Line>>>,
    ) -> Result<(), BusError> {
        let action = action_of(&call);
        let verdict = match action {
            Some(action) => self.ask(&call, action).await,
            None => Verdict::Refused,
        };
        if verdict != Verdict::Allowed {
            return Ok(self.bus.send(&refusal).await?);
        }
        tracing::info!(peer = %self.name, ?action, "polkit allows: {}", told(&call));
        let mut line = raised.lock().await;
        if line.is_none() {
            let root = Caller { uid: 0, gid: 0 };
            let (mut opened, mut answers) = Line::open(root, &self.daemon).await?;
            let bus = self.bus.clone();
            opened.answers = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                // Answers only: signals of this tree tell of other users' agents.
                while let Ok(answer) = receive(&mut answers).await {
                    if answer.message_type() != Type::Signal && bus.send(&answer).await.is_err() {
                        return;
                    }
                }
            })));
            *line = Some(opened);
        }
        match line.as_mut() {
            Some(line) => Ok(line.to.send_message(&call).await?),
            None => Ok(()),
        }
    }

    async fn ask(&self, call: &Message, action: Action) -> Verdict {
        let interactive = call
            .primary_header()
            .flags()
            .contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let asked = if interactive {
            Asked::MayAskThePerson
        } else {
            Asked::Silently
        };
        polkit::check(&self.bus, &self.name, action, asked).await
    }

    /// A signal of the peer's own tree, sent to the peer and nobody else.
    fn addressed(&self, signal: &Message) -> zbus::Result<Message> {
        let builder = zbus::message::Builder::from(signal.header()).destination(self.name.as_ref());
        let body = signal.body();
        if body.is_empty() {
            return builder.build(&());
        }
        builder.build(&body.deserialize::<zbus::Structure<'_>>()?)
    }
}

/// An in-process connection to one tree; the tree goes with it.
#[derive(Debug)]
struct Line {
    to: Writer,
    _tree: AbortOnDropHandle<()>,
    answers: Option<AbortOnDropHandle<()>>,
}

impl Line {
    async fn open(caller: Caller, daemon: &Arc<Daemon>) -> zbus::Result<(Self, Reader)> {
        let (outer, inner) = Channel::pair();
        let builder = Builder::authenticated_socket(inner, Guid::generate());
        let tree = Tree::build(builder, caller, daemon).await?;
        let follow = tokio::spawn(async move {
            if let Err(error) = tree.follow().await {
                tracing::debug!(uid = caller.uid, "system bus tree: {error}");
            }
        });
        let (from, to) = outer.split().take();
        let line = Self {
            to,
            _tree: AbortOnDropHandle::new(follow),
            answers: None,
        };
        Ok((line, from))
    }
}

async fn receive(answers: &mut Reader) -> zbus::Result<Message> {
    answers
        .receive_message(0, &mut Vec::new(), &mut Vec::new())
        .await
}

/// What polkit is asked about a call: before it for a launch, after a refusal for the rest.
fn action_of(call: &Message) -> Option<Action> {
    let header = call.header();
    let interface = header.interface().map_or("", |name| name.as_str());
    let member = header.member().map_or("", |name| name.as_str());
    let path = header.path().map_or("", |path| path.as_str());
    match (interface, member) {
        ("org.agentd1.Manager", "Launch") => Some(Action::Launch),
        ("org.agentd1.Manager", "Shutdown") => Some(Action::Shutdown),
        ("org.agentd1.Manager", "Find" | "Record") => Some(Action::ManageAgents),
        ("org.agentd1.Units", _) => Some(Action::ManageUnits),
        ("org.agentd1.Approvals", _) => Some(Action::DecideApprovals),
        ("org.agentd1.Bus", "Send" | "Request" | "Revoke" | "Restore") => {
            Some(Action::ManageAgents)
        }
        ("org.agentd1.Agent" | "org.agentd1.Task" | "org.agentd1.Tasks", _) => {
            Some(Action::ManageAgents)
        }
        ("org.freedesktop.DBus.Properties", "Get" | "GetAll")
            if path.starts_with("/org/agentd1/agent/")
                || path.starts_with("/org/agentd1/task/") =>
        {
            Some(Action::ManageAgents)
        }
        _ => None,
    }
}

/// The caller's group for a launch without grants: that of its entry in `passwd` where it is one of those that the bus
/// attests, else any of them.
fn group_of(uid: u32, attested: &[u32], passwd: &str) -> Option<u32> {
    let own = passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let of: u32 = fields.next()?.parse().ok()?;
        (of == uid).then(|| fields.next()?.parse().ok())?
    });
    own.filter(|gid| attested.contains(gid))
        .or_else(|| attested.first().copied())
}

fn reply_expected(call: &Message) -> bool {
    !call
        .primary_header()
        .flags()
        .contains(Flags::NO_REPLY_EXPECTED)
}

fn told(call: &Message) -> String {
    let header = call.header();
    format!(
        "{}.{} on {}",
        header.interface().map_or("", |name| name.as_str()),
        header.member().map_or("", |name| name.as_str()),
        header.path().map_or("", |path| path.as_str())
    )
}

/// Answers a call with an error, if it wants an answer.
async fn refuse(bus: &Connection, call: &Message, name: &str, why: &str) {
    if !reply_expected(call) {
        return;
    }
    let refused = Message::error(&call.header(), name).build(&why);
    let sent = match refused {
        Ok(refusal) => bus.send(&refusal).await,
        Err(error) => Err(error),
    };
    if let Err(error) = sent {
        tracing::debug!("system bus: {error}");
    }
}

/// The next item of a stream.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|context| Pin::new(&mut *stream).poll_next(context)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(interface: &str, member: &str, path: &str) -> Message {
        Message::method_call(path, member)
            .interface(interface)
            .build(&())
            .unwrap()
    }

    #[test]
    fn what_polkit_is_asked_follows_from_the_call() {
        for (interface, member, path, action) in [
            (
                "org.agentd1.Manager",
                "Launch",
                "/org/agentd1",
                Some(Action::Launch),
            ),
            ("org.agentd1.Manager", "Ping", "/org/agentd1", None),
            (
                "org.agentd1.Manager",
                "Shutdown",
                "/org/agentd1",
                Some(Action::Shutdown),
            ),
            (
                "org.agentd1.Agent",
                "Stop",
                "/org/agentd1/agent/a",
                Some(Action::ManageAgents),
            ),
            (
                "org.freedesktop.DBus.Properties",
                "GetAll",
                "/org/agentd1/agent/a",
                Some(Action::ManageAgents),
            ),
            (
                "org.freedesktop.DBus.Properties",
                "GetAll",
                "/org/agentd1",
                None,
            ),
            (
                "org.freedesktop.DBus.ObjectManager",
                "GetManagedObjects",
                "/org/agentd1",
                None,
            ),
            (
                "org.agentd1.Units",
                "Start",
                "/org/agentd1",
                Some(Action::ManageUnits),
            ),
            (
                "org.agentd1.Approvals",
                "Decide",
                "/org/agentd1",
                Some(Action::DecideApprovals),
            ),
        ] {
            assert_eq!(
                action_of(&call(interface, member, path)),
                action,
                "{interface}.{member}"
            );
        }
    }

    #[test]
    fn a_group_that_the_bus_does_not_attest_is_never_taken() {
        let passwd = "root:x:0:0::/:\nalice:x:1000:1000::/:\nbob:x:1001:100::/:\nbroken:x\n";
        assert_eq!(group_of(1000, &[27, 1000], passwd), Some(1000));
        assert_eq!(
            group_of(1001, &[27, 44], passwd),
            Some(27),
            "its entry names a group it is not in"
        );
        assert_eq!(group_of(1002, &[5], passwd), Some(5));
        assert_eq!(group_of(1000, &[], passwd), None);
    }
}
