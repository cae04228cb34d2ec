//! The agents of this daemon: who lives, who just died, and who may see whom.
//!
//! [`launch`] brings one up and [`session`] follows it to its end; [`agent`] is what everybody else holds.
//! Authorisation is here and nowhere else: every look-up takes the caller's uid, root sees all, anyone else only what
//! it launched, and what it may not see does not exist for it.

pub mod adopt;
pub mod agent;
pub mod attachment;
pub mod broker;
pub mod descriptors;
pub mod feed;
pub mod hold;
pub mod kept;
pub mod launch;
pub mod log;
pub mod pump;
pub mod session;
pub mod standing;
pub mod status;
pub mod stdio;
pub mod viewer;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::{AgentId, Error};
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, watch};

pub use agent::Agent;
pub use kept::Rules;

/// Watches a non-blocking descriptor for readiness on the current runtime.
#[expect(
    deprecated,
    reason = "the successor is unsafe for types that may lie about their descriptor; OwnedFd cannot"
)]
pub(crate) fn watch_fd(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

/// How many ended agents stay at hand for `wait`, `logs` and `attach`; older ones are only on record.
const KEEP_ENDED: usize = 128;

/// A user as the kernel attested it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

impl Caller {
    /// Whether this caller may see and touch what `uid` launched.
    pub fn may_touch(self, uid: u32) -> bool {
        self.uid == 0 || self.uid == uid
    }
}

/// What changed, for those who mirror the list.
#[derive(Debug, Clone)]
pub enum Change {
    Added(Arc<Agent>),
    /// Fell out of the list of the ended.
    Forgotten(Arc<Agent>),
}

#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    changes: broadcast::Sender<Change>,
    live: watch::Sender<usize>,
    max_live: usize,
}

#[derive(Debug, Default)]
struct Inner {
    live: BTreeMap<AgentId, Arc<Agent>>,
    ended: VecDeque<Arc<Agent>>,
    /// Names and places promised to launches that are still under way.
    reserved: Vec<(u32, String)>,
}

/// A name and a place among the living, held while a launch is under way.
#[derive(Debug)]
pub struct Reservation<'a> {
    registry: &'a Registry,
    uid: u32,
    name: String,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.registry
            .inner()
            .reserved
            .retain(|(uid, name)| (*uid, name) != (self.uid, &self.name));
    }
}

impl Reservation<'_> {
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Registry {
    pub fn new(max_live: usize) -> Self {
        Self {
            inner: Mutex::default(),
            changes: broadcast::Sender::new(256),
            live: watch::Sender::new(0),
            max_live,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `name` for a launch by `uid`; without one, a free name made from `program`.
    pub fn reserve(
        &self,
        uid: u32,
        name: Option<&str>,
        program: &str,
    ) -> Result<Reservation<'_>, Error> {
        if let Some(name) = name {
            check_name(name)?;
        }
        let mut inner = self.inner();
        if inner.live.len() + inner.reserved.len() >= self.max_live {
            return Err(Error::Unavailable(format!(
                "{} agents live already, as many as `daemon.max_agents` allows; stop one (`agentctl ps`) or raise it",
                self.max_live
            )));
        }
        let taken = |name: &str| {
            inner.reserved.iter().any(|(u, n)| *u == uid && n == name)
                || inner.live.values().any(|a| {
                    a.identity.uid == uid && a.identity.name == name && a.state().is_live()
                })
        };
        let name = match name {
            Some(name) if taken(name) => {
                return Err(Error::Exists(format!(
                    "an agent named `{name}` is already running; stop it (`agentctl stop {name}`) or choose another --name"
                )));
            }
            Some(name) => name.to_owned(),
            None => free_name(program, taken),
        };
        inner.reserved.push((uid, name.clone()));
        Ok(Reservation {
            registry: self,
            uid,
            name,
        })
    }

    /// Turns a reservation into a living agent.
    pub fn add(&self, reservation: Reservation<'_>, agent: &Arc<Agent>) {
        let mut inner = self.inner();
        inner.live.insert(agent.identity.id, Arc::clone(agent));
        self.live.send_replace(inner.live.len());
        drop(inner);
        drop(reservation);
        self.announce(Change::Added(Arc::clone(agent)));
    }

    /// Adds an agent that an earlier agentd launched. Its name was free then, and nobody else could take it since.
    pub fn restore(&self, agent: &Arc<Agent>) {
        let mut inner = self.inner();
        inner.live.insert(agent.identity.id, Arc::clone(agent));
        self.live.send_replace(inner.live.len());
        drop(inner);
        self.announce(Change::Added(Arc::clone(agent)));
    }

    /// Whether the agent of the launch `id` lives.
    pub fn is_live(&self, id: &str) -> bool {
        let id: Result<AgentId, _> = id.parse();
        id.is_ok_and(|id| self.inner().live.contains_key(&id))
    }

    /// The agent of the launch `id`, if it lives or has ended lately.
    pub fn of_launch(&self, id: &str) -> Option<Arc<Agent>> {
        let id: AgentId = id.parse().ok()?;
        let inner = self.inner();
        let ended = || inner.ended.iter().find(|agent| agent.identity.id == id);
        inner.live.get(&id).or_else(ended).cloned()
    }

    /// Moves an agent from the living to the recently ended.
    pub fn retire(&self, agent: &Arc<Agent>) {
        let mut inner = self.inner();
        inner.live.remove(&agent.identity.id);
        inner.ended.push_back(Arc::clone(agent));
        let forgotten = if inner.ended.len() > KEEP_ENDED {
            inner.ended.pop_front()
        } else {
            None
        };
        self.live.send_replace(inner.live.len());
        drop(inner);
        if let Some(agent) = forgotten {
            self.announce(Change::Forgotten(agent));
        }
    }

    fn announce(&self, change: Change) {
        // Nobody listening is the normal case.
        drop(self.changes.send(change));
    }

    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Resolves when no agent lives.
    pub async fn all_ended(&self) {
        let mut live = self.live.subscribe();
        if live.wait_for(|n| *n == 0).await.is_err() {
            unreachable!("the sender is a field of self");
        }
    }

    /// Everything `caller` may see, living first, oldest first.
    pub fn visible(&self, caller: Caller) -> Vec<Arc<Agent>> {
        let inner = self.inner();
        inner
            .live
            .values()
            .chain(&inner.ended)
            .filter(|a| caller.may_touch(a.identity.uid))
            .cloned()
            .collect()
    }

    /// Finds by name (the living win) or by id, of which the first or last four hex digits are enough.
    pub fn find(&self, caller: Caller, name_or_id: &str) -> Result<Arc<Agent>, Error> {
        let mut visible = self.visible(caller);
        // The newest first. Who has just ended still stands among the living for a moment, behind those who ended before.
        visible.sort_by_key(|a| std::cmp::Reverse(a.identity.id));
        let by_name = |live: bool| {
            visible
                .iter()
                .find(move |a| a.identity.name == name_or_id && a.state().is_live() == live)
        };
        if let Some(agent) = by_name(true).or_else(|| by_name(false)) {
            return Ok(Arc::clone(agent));
        }
        let matches: Vec<_> = visible
            .iter()
            .filter(|a| a.identity.id.is_meant_by(name_or_id))
            .collect();
        match matches.as_slice() {
            [agent] => Ok(Arc::clone(agent)),
            [] => Err(Error::NotFound(format!(
                "no agent is called `{name_or_id}`; `agentctl ps -a` lists them"
            ))),
            several => Err(Error::InvalidArgument(format!(
                "`{name_or_id}` could be any of {} agents; type more of the id (`agentctl ps -a`)",
                several.len()
            ))),
        }
    }
}

/// A name is what fits into a host name, a D-Bus argument and a shell word without quoting.
fn check_name(name: &str) -> Result<(), Error> {
    let fits = (1..=63).contains(&name.len())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if crate::bus::is_users_name(name) {
        return Err(Error::InvalidArgument(format!(
            "`{name}` is what you yourself are called on the bus; choose another name for the agent"
        )));
    }
    if fits {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "`{}` cannot name an agent; allowed are 1 to 63 letters, digits and `-_.@`, beginning with a letter or digit",
        name.escape_debug()
    )))
}

/// `claude`, `claude-2`, `claude-3`, …
fn free_name(program: &str, taken: impl Fn(&str) -> bool) -> String {
    let base: String = program
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(40)
        .collect();
    let base = if base.is_empty() {
        "agent".to_owned()
    } else {
        base
    };
    if !taken(&base) {
        return base;
    }
    (2u32..)
        .map(|n| format!("{base}-{n}"))
        .find(|name| !taken(name))
        .unwrap_or(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_names_come_from_the_program_and_count_up() {
        assert_eq!(free_name("/usr/bin/claude", |_| false), "claude");
        assert_eq!(
            free_name("claude", |n| n == "claude" || n == "claude-2"),
            "claude-3"
        );
        assert_eq!(free_name("/", |_| false), "agent");
        assert_eq!(free_name("--x y", |_| false), "xy");
    }

    #[test]
    fn a_name_is_taken_per_user_and_only_while_reserved() {
        let registry = Registry::new(8);
        let held = registry.reserve(1000, Some("coder"), "x").unwrap();
        assert!(matches!(
            registry.reserve(1000, Some("coder"), "x"),
            Err(Error::Exists(_))
        ));
        assert!(registry.reserve(1001, Some("coder"), "x").is_ok());
        drop(held);
        assert!(registry.reserve(1000, Some("coder"), "x").is_ok());
    }

    #[test]
    fn the_ceiling_counts_launches_under_way() {
        let registry = Registry::new(1);
        let _held = registry.reserve(1000, None, "x").unwrap();
        let error = registry.reserve(1000, None, "x").unwrap_err();
        assert!(error.text().contains("max_agents"), "{error}");
    }

    #[test]
    fn bad_names_are_refused_with_the_rule() {
        for name in ["", "-x", "a b", "ä", "../x", &"x".repeat(64)] {
            let error = check_name(name).unwrap_err().text();
            assert!(error.contains("1 to 63"), "{name}: {error}");
        }
        for name in ["a", "coder@1", "x.y-z_0", &"x".repeat(63)] {
            assert!(check_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn only_root_touches_what_others_launched() {
        let caller = |uid| Caller { uid, gid: uid };
        assert!(caller(0).may_touch(1000) && caller(1000).may_touch(1000));
        assert!(!caller(1001).may_touch(1000));
    }
}
