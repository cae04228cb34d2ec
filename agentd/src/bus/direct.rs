//! The direct path between agents, as the daemon has it: who may ask whom, and the other ends of
//! the connections.
//!
//! The kernel carries the frames (ADR 38); here is what it is told. A right of the path is exactly
//! a right to make requests by the bus, of one agent of a user to another, with what was taken back
//! while they run. It is given once both are there, and goes with either. The broker writes it;
//! changes wait in one table, a pair at most once, and one task carries them out, those that take
//! first.
//!
//! An agent's direct connection ends here: it is accepted, never written to and kept until it is
//! closed. Nothing comes on it, because the kernel takes all that is sent; if something does, it is
//! not the agent's direct connection, and is ended so that its client knows.
//!
//! Runs in the daemon's runtime, without privilege. Where there is no path everything here is idle,
//! and says why.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::AgentId;
use agentd_bpf::layout::route::{SLOTS, Traffic, address, slot_of};
use agentd_bpf::{Group, Right, Rows, Table};
use agentd_broker::client::ClientError;
use agentd_broker::protocol::{ErrorCode, Launched};
use agentd_bus::access::Access;
use agentd_bus::frame::PeerId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agents::broker::{BrokerError, BrokerLink};
use crate::plane::KernelPlane;

/// Connections of one agent that are kept: its direct one, and some that are about to be ended.
const CONNECTIONS: usize = 8;

/// Whether agents are offered the direct path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(from = "bool")]
pub enum Offer {
    #[default]
    No,
    /// To those of the socket tier, where the kernel carries it.
    Yes,
}

impl From<bool> for Offer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Where an agent came from that is on the path now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Came {
    /// Launched just now: the kernel knows of no right of it.
    New,
    /// Taken over: whatever an earlier agentd gave is still there.
    Adopted,
}

/// The direct path. Clones share it.
#[derive(Debug, Clone)]
pub struct Paths {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// The figures of the programs; or why there is no path.
    traffic: Result<Rows<Traffic>, String>,
    table: Mutex<Members>,
    work: Notify,
    /// How many changes have been carried out.
    done: watch::Sender<u64>,
}

/// The addresses of whoever may ask whom, and whether it may.
type Change = ((u64, u64), Right);

#[derive(Debug, Default)]
struct Members {
    members: HashMap<PeerId, Member>,
    /// Those who are about to be on the bus.
    expected: HashMap<PeerId, (u64, Came)>,
    due: BTreeMap<(u64, u64), Right>,
    /// Changes that were ever due.
    asked: u64,
}

#[derive(Debug, Clone)]
struct Member {
    uid: u32,
    name: String,
    address: u64,
    rights: Arc<dyn Access>,
}

/// What an agent did on the path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Frames of its own that reached a peer, frames that reached it, and the content of both.
    pub sent: u64,
    pub sent_bytes: u64,
    pub received: u64,
    pub received_bytes: u64,
    /// Frames of its own that came back or were refused.
    pub refused: u64,
}

impl Members {
    /// Makes a change due, in place of one of the same pair.
    fn set(&mut self, from: u64, to: u64, right: Right) {
        self.due.insert((from, to), right);
        self.asked += 1;
    }

    /// What `member` may ask of each other, or, with `both`, also what they may ask of it.
    fn judge(&mut self, id: PeerId, both: bool, came: Came) {
        let Some(member) = self.members.get(&id).cloned() else {
            return;
        };
        let others: Vec<Member> = self
            .members
            .iter()
            .filter(|(other, entry)| **other != id && entry.uid == member.uid)
            .map(|(_, entry)| entry.clone())
            .collect();
        for other in others {
            let mut pairs = vec![(&member, &other)];
            if both {
                pairs.push((&other, &member));
            }
            for (from, to) in pairs {
                let right = if from.rights.may_request(&to.name) {
                    Right::Yes
                } else {
                    Right::No
                };
                if right == Right::Yes || came == Came::Adopted {
                    self.set(from.address, to.address, right);
                }
            }
        }
    }
}

impl Paths {
    /// The path as this host and the configuration have it; its rights are written through `broker`.
    pub fn start(offer: Offer, plane: &KernelPlane, broker: BrokerLink) -> Self {
        let traffic = match offer {
            Offer::No => Err("agentd's configuration has [bus] direct = false".to_owned()),
            Offer::Yes if !plane.has(Group::Route) => Err(format!(
                "this host has none: {}",
                plane.why_not(Group::Route)
            )),
            Offer::Yes => plane
                .table(Table::RouteTraffic)
                .ok_or_else(|| "agentd-broker handed over no figures of it".to_owned())
                .and_then(|fd| {
                    let rows = Rows::map(fd, Table::RouteTraffic.name(), SLOTS);
                    rows.map_err(|error| error.to_string())
                }),
        };
        let paths = Self::with(traffic);
        if paths.are_offered() {
            let inner = Arc::clone(&paths.inner);
            tokio::spawn(async move { inner.carry_out(&broker).await });
        }
        paths
    }

    fn with(traffic: Result<Rows<Traffic>, String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                traffic,
                table: Mutex::default(),
                work: Notify::new(),
                done: watch::Sender::new(0),
            }),
        }
    }

    /// Whether new agents get a listener for it.
    pub fn are_offered(&self) -> bool {
        self.inner.traffic.is_ok()
    }

    /// Why an agent without an address has none.
    pub fn why_not(&self) -> String {
        match &self.inner.traffic {
            Err(why) => why.clone(),
            Ok(_) => {
                "its policy shares memory, which is quicker, or it is in gVisor, in the host's network, or older than the path".to_owned()
            }
        }
    }

    /// The address of a launched agent; `None` for one whose slot takes no part.
    pub fn address_of(&self, launched: &Launched) -> Option<u64> {
        let slot = launched.slot.0;
        let takes_part = self.are_offered() && (1..SLOTS as u32).contains(&slot);
        takes_part.then(|| address(slot, launched.cgroup_id))
    }

    /// An agent will be on the path as soon as it is on the bus: before it can ask whether it is.
    pub fn expect(&self, agent: AgentId, address: u64, came: Came) {
        let id = PeerId(*agent.0.as_bytes());
        self.inner.table().expected.insert(id, (address, came));
    }

    pub(super) fn take_expected(&self, id: PeerId) -> Option<(u64, Came)> {
        self.inner.table().expected.remove(&id)
    }

    /// An agent is on the path from here on.
    pub(super) fn begin(
        &self,
        id: PeerId,
        (uid, name): (u32, String),
        address: u64,
        rights: Arc<dyn Access>,
        came: Came,
    ) {
        let mut table = self.inner.table();
        let member = Member {
            uid,
            name,
            address,
            rights,
        };
        table.members.insert(id, member);
        table.judge(id, true, came);
        self.inner.work.notify_one();
    }

    /// An agent's rights are others now.
    pub(super) fn change(&self, id: PeerId, rights: Arc<dyn Access>) {
        let mut table = self.inner.table();
        let Some(member) = table.members.get_mut(&id) else {
            return;
        };
        member.rights = rights;
        // What was taken is not known to be, until it was said again.
        table.judge(id, false, Came::Adopted);
        self.inner.work.notify_one();
    }

    /// An agent has gone; the broker has taken its rights.
    pub(super) fn end(&self, id: PeerId) {
        self.inner.table().members.remove(&id);
    }

    /// Returns once every change so far is in the kernel.
    pub async fn settle(&self) {
        let asked = self.inner.table().asked;
        let mut done = self.inner.done.subscribe();
        // The sender lives in `inner`.
        if self.are_offered() && done.wait_for(|done| *done >= asked).await.is_err() {
            tracing::debug!("the direct path has gone");
        }
    }

    /// What an agent did on the path.
    pub fn figures(&self, address: u64) -> Figures {
        let Ok(traffic) = &self.inner.traffic else {
            return Figures::default();
        };
        let row = traffic.get(slot_of(address) as usize).unwrap_or_default();
        Figures {
            sent: row.sent,
            sent_bytes: row.sent_bytes,
            received: row.received,
            received_bytes: row.received_bytes,
            refused: row.refused.iter().sum(),
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Members> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next changes, those that take first, and how many there were with them.
    fn next(&self) -> (Vec<Change>, u64) {
        let mut table = self.table();
        let (takes, gives): (Vec<_>, Vec<_>) = std::mem::take(&mut table.due)
            .into_iter()
            .partition(|(_, right)| *right == Right::No);
        ([takes, gives].concat(), table.asked)
    }

    async fn carry_out(&self, broker: &BrokerLink) {
        loop {
            let (changes, asked) = self.next();
            if changes.is_empty() {
                self.done.send_replace(asked);
                self.work.notified().await;
                continue;
            }
            for ((from, to), right) in changes {
                match broker.route(from, to, right).await {
                    Ok(()) => {}
                    // One of the two has ended meanwhile, and its rights with it.
                    Err(BrokerError::Client(ClientError::Refused(failure)))
                        if failure.code == ErrorCode::NoSuchSlot => {}
                    Err(BrokerError::Gone) => return,
                    Err(error) => tracing::error!(
                        "a right on the direct path is not as it should be ({right:?} from {from:#x} to {to:#x}): {error}"
                    ),
                }
            }
            self.done.send_replace(asked);
        }
    }
}

/// Keeps the daemon's ends of an agent's direct connections until `cancel`.
pub async fn keep(listener: TcpListener, cancel: CancellationToken) -> io::Result<()> {
    let mut kept = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Some(_) = kept.join_next() => continue,
            accepted = listener.accept(), if kept.len() < CONNECTIONS => accepted,
        };
        let (stream, _) = accepted?;
        kept.spawn(until_it_ends(stream));
    }
}

/// Until the agent closes it, or something comes that should not.
async fn until_it_ends(stream: TcpStream) {
    let mut byte = [0];
    loop {
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Ok(0) => return,
            Ok(_) => {
                tracing::debug!("a second direct connection of an agent is ended");
                return;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use agentd_sandbox::IpcRules;
    use agentd_sandbox::rules::ipc::NamePattern;

    use super::super::rights::{Revoked, Rights};
    use super::*;

    fn rights(request: &[&str]) -> Rights {
        let request = request
            .iter()
            .map(|text| NamePattern::parse(text).expect("a pattern"));
        Rights::new(IpcRules {
            request: request.collect(),
            ..IpcRules::default()
        })
    }

    fn begin(paths: &Paths, n: u8, uid: u32, request: &[&str], came: Came) {
        let who = (uid, format!("agent-{n}"));
        paths.begin(
            PeerId([n; 16]),
            who,
            address(n.into(), 100),
            Arc::new(rights(request)),
            came,
        );
    }

    /// The pairs that are due, by slots.
    fn due(paths: &Paths) -> Vec<(u32, u32, Right)> {
        let (changes, _) = paths.inner.next();
        changes
            .into_iter()
            .map(|((from, to), right)| (slot_of(from), slot_of(to), right))
            .collect()
    }

    #[test]
    fn a_right_is_given_for_each_ordered_pair_that_may_ask_and_to_no_other_user() {
        let paths = Paths::with(Err("a test".into()));
        begin(&paths, 1, 1000, &["#"], Came::New);
        begin(&paths, 2, 1000, &["agent-3"], Came::New);
        begin(&paths, 4, 1001, &["#"], Came::New);
        assert_eq!(due(&paths), [(1, 2, Right::Yes)]);
        begin(&paths, 3, 1000, &[], Came::New);
        assert_eq!(due(&paths), [(1, 3, Right::Yes), (2, 3, Right::Yes)]);
        paths.end(PeerId([3; 16]));
        begin(&paths, 5, 1000, &["agent-3"], Came::New);
        assert_eq!(due(&paths), [(1, 5, Right::Yes)]);
    }

    #[test]
    fn a_revocation_takes_and_a_restoration_gives_and_only_the_last_word_counts() {
        let paths = Paths::with(Err("a test".into()));
        begin(&paths, 1, 1000, &["#"], Came::New);
        begin(&paths, 2, 1000, &["#"], Came::New);
        due(&paths);
        let all = rights(&["#"]);
        let less = all.without(Revoked {
            right: agentd_bus::access::Right::Request,
            pattern: NamePattern::parse("agent-2").expect("a pattern"),
            by: "uid 0".into(),
        });
        paths.change(PeerId([1; 16]), Arc::new(less.clone()));
        assert_eq!(due(&paths), [(1, 2, Right::No)]);
        paths.change(PeerId([1; 16]), Arc::new(less.restored()));
        paths.change(PeerId([1; 16]), Arc::new(less));
        assert_eq!(due(&paths), [(1, 2, Right::No)]);
    }

    #[tokio::test]
    async fn other_rules_are_in_the_kernel_before_anybody_hears_that_they_hold() {
        let bus = super::super::fixture::Fixture::new();
        let rows = rustix::fs::memfd_create(c"traffic", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let bytes = SLOTS * size_of::<Traffic>();
        rustix::fs::ftruncate(&rows, bytes.next_multiple_of(4096) as u64).unwrap();
        let rows = Rows::map(&rows, "traffic", SLOTS).unwrap();
        let paths = Paths::with(Ok(rows));
        bus.server.connect_paths(paths.clone());
        let ports = ["agent-1", "agent-2"].map(|name| bus.attach(name).0);
        let ids = [0, 1].map(|n: usize| ports[n].identity().id);
        for (slot, id) in (1..).zip(ids) {
            let who = (1000, format!("agent-{slot}"));
            let rights = Arc::new(rights(&["#"]));
            let id = PeerId(*id.0.as_bytes());
            paths.begin(id, who, address(slot, 100), rights, Came::New);
        }
        let carried_out = |wanted: &[(u32, u32, Right)]| {
            let (changes, asked) = paths.inner.next();
            let changes: Vec<_> = changes
                .into_iter()
                .map(|((from, to), right)| (slot_of(from), slot_of(to), right))
                .collect();
            assert_eq!(changes, wanted);
            paths.inner.done.send_replace(asked);
        };
        carried_out(&[(1, 2, Right::Yes), (2, 1, Right::Yes)]);
        let mut changing = std::pin::pin!(bus.server.set_rules(ids[0], IpcRules::default()));
        tokio::select! {
            biased;
            _ = &mut changing => panic!("the kernel lets it ask still"),
            () = std::future::ready(()) => {}
        }
        carried_out(&[(1, 2, Right::No)]);
        changing.await.unwrap();
    }

    #[test]
    fn after_a_restart_each_pair_is_said_and_what_takes_comes_first() {
        let paths = Paths::with(Err("a test".into()));
        begin(&paths, 1, 1000, &["#"], Came::Adopted);
        begin(&paths, 2, 1000, &[], Came::Adopted);
        assert_eq!(due(&paths), [(2, 1, Right::No), (1, 2, Right::Yes)]);
    }
}
