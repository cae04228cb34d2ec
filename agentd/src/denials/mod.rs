//! Denial events: what the kernel's layers refused an agent, joined with the line of its policy and
//! with everything that agentd itself refuses.
//!
//! The kernel's sources are one file each: calls that the filter holds ([`seccomp`]), the ring of
//! the kernel plane's programs ([`bpf`]), and Landlock's records in the kernel's audit
//! ([`landlock`]). The bus's router has a queue for each agent ([`bus`]). What else agentd refuses
//! (proxy, gateway, tools, ssh) is recorded where it is refused. All end in
//! [`agentd_storage::Store`], which tells those who follow (`control::denials`), so the stream has
//! one order and nobody is left out. A source never decides anything: when all of this stands
//! still, everything is refused as before, and what could not be told is counted
//! ([`Denials::lost`]).
//!
//! Runs in the daemon's runtime, without privilege. Text that came out of a sandbox is cut and
//! cleaned before it goes anywhere. Start reading at [`Witness`].

mod allowance;
mod bpf;
mod bus;
mod domains;
mod landlock;
mod news;
mod seccomp;

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentd_api::{AgentId, AgentIdentity};
use agentd_broker::protocol::Slot;
use agentd_kernel::probe::{Feature, HostCaps, Probe};
use agentd_sandbox::{DenialRules, Reason};
use agentd_storage::{Denial, Event, Fact, Store};
use tokio::sync::oneshot;

pub use bus::follow as follow_bus;
pub use news::News;
pub use seccomp::follow as follow_refusals;

use crate::plane::KernelPlane;

/// A layer that tells of refusals without waiting for the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// The system call filter.
    Seccomp,
    /// Programs in the kernel: live control, and the guard.
    Bpf,
    /// The bus's router. No part of the kernel, but on a thread that waits for nobody.
    Bus,
    /// Landlock.
    Landlock,
}

impl Layer {
    /// As it is on record.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::Bpf => "bpf",
            Self::Bus => "bus",
            Self::Landlock => "landlock",
        }
    }
}

/// Everybody of whom refusals by the kernel may come.
#[derive(Debug)]
pub struct Denials {
    store: Store,
    /// The last agent in each slot of the broker: what it was refused may be read when it has ended.
    witnesses: Mutex<BTreeMap<Slot, Arc<Witness>>>,
    /// The kernel plane's programs, or why they can't be heard.
    bpf: Result<bpf::Source, String>,
    /// Landlock's records, or why they can't be heard.
    landlock: Result<landlock::Source, String>,
}

/// An agent of whom refusals may come.
#[derive(Debug)]
pub struct Suspect {
    pub identity: AgentIdentity,
    pub slot: Slot,
    /// The lines that its plan was made from.
    pub rules: DenialRules,
    /// The sandbox's init, on the host.
    pub init: u32,
    /// Its Landlock domain, where an earlier agentd learned it.
    pub domain: Option<u64>,
}

impl Denials {
    /// Of agents whose record is `store`. `audit` is the socket with Landlock's records, or why there is none.
    pub fn new(store: Store, plane: &KernelPlane, audit: Result<OwnedFd, String>) -> Self {
        Self {
            store,
            witnesses: Mutex::default(),
            bpf: bpf::Source::of(plane),
            landlock: audit.map(landlock::Source::new),
        }
    }

    /// For an agent: it is known until its slot has another one. And where its domain, once it is learned, comes from.
    pub fn witness(&self, suspect: Suspect) -> (Arc<Witness>, oneshot::Receiver<u64>) {
        let Suspect {
            identity,
            slot,
            rules,
            init,
            domain,
        } = suspect;
        let (learned, learns) = oneshot::channel();
        let witness = Arc::new(Witness {
            identity,
            rules,
            store: self.store.clone(),
            news: News::default(),
            lost: Mutex::default(),
            learned: Mutex::new(Some(learned)),
        });
        self.lock().insert(slot, Arc::clone(&witness));
        let source = self.landlock.as_ref().ok();
        if let Some(domain) = source.and_then(|source| source.arrive(init, &witness, domain)) {
            witness.learn(domain);
        }
        (witness, learns)
    }

    /// An agent has ended; its sandbox's init is no more.
    pub fn ended(&self, init: u32) {
        if let Ok(source) = &self.landlock {
            source.leave(init);
        }
    }

    /// Tells of what Landlock refuses, for as long as agentd runs. Returns at once where it can't be heard.
    pub async fn follow_landlock(&self) {
        let Ok(source) = &self.landlock else { return };
        if let Err(error) = landlock::follow(source).await {
            tracing::error!("what Landlock refuses can't be read further: {error}");
        }
    }

    /// Tells of what the kernel plane's programs refuse, for as long as agentd runs. Returns at once where there are none.
    pub async fn follow_programs(&self) {
        let Ok(source) = &self.bpf else { return };
        if let Err(error) = bpf::follow(source, self).await {
            tracing::error!("what the kernel plane refuses can't be read further: {error}");
        }
    }

    /// Refusals for an agent since its launch that nobody could be told of. They were refused all the same.
    pub fn lost(&self, id: AgentId) -> Vec<(Layer, u64)> {
        let witnesses = self.lock();
        let found = witnesses.iter().find(|(_, one)| one.identity.id == id);
        let Some((slot, witness)) = found else {
            return Vec::new();
        };
        let lost = witness.lost.lock().unwrap_or_else(PoisonError::into_inner);
        let told = lost.iter().map(|(layer, lost)| (*layer, *lost));
        let programs = self.bpf.as_ref().map_or(0, |source| source.lost(*slot));
        told.chain((programs > 0).then_some((Layer::Bpf, programs)))
            .collect()
    }

    /// Refusals that nobody could be told of and of which nobody knows whose they were. `kernel`:
    /// what the kernel's audit itself lost.
    pub fn lost_of_anybody(&self, kernel: u64) -> Vec<(Layer, u64)> {
        // An agent whose slot another one has is shown no more: what it lost is nobody's in particular again.
        let witnesses = self.lock();
        let owned = witnesses
            .values()
            .filter_map(|one| one.lost_of(Layer::Landlock));
        let owned = owned.sum();
        drop(witnesses);
        let source = self.landlock.as_ref();
        let lost = source.map_or(0, |source| source.lost(kernel, owned));
        let lost = (lost > 0).then_some((Layer::Landlock, lost));
        lost.into_iter().collect()
    }

    /// Whether Landlock's records are heard.
    pub fn hears_landlock(&self) -> bool {
        self.landlock.is_ok()
    }

    fn of_slot(&self, slot: Slot) -> Option<Arc<Witness>> {
        self.lock().get(&slot).cloned()
    }

    /// Every layer that refuses, and why its refusals can't be seen here, where they can't.
    pub fn observable(&self, host: &HostCaps) -> Vec<(&'static str, Option<String>)> {
        let seccomp = host.probe(Feature::SeccompNotify).and_then(Probe::why);
        vec![
            ("egress", None),
            ("gateway", None),
            ("driver", None),
            ("ssh", None),
            (Layer::Bus.as_str(), None),
            (Layer::Seccomp.as_str(), seccomp),
            (
                Layer::Landlock.as_str(),
                self.landlock.as_ref().err().cloned(),
            ),
            (Layer::Bpf.as_str(), self.bpf.as_ref().err().cloned()),
            (
                "mounts",
                Some("what is not in the view does not exist, which nobody is told of".into()),
            ),
        ]
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Slot, Arc<Witness>>> {
        // A panic leaves nothing half done here.
        self.witnesses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What puts one agent's refusals by the kernel on record, and tells of them.
#[derive(Debug)]
pub struct Witness {
    identity: AgentIdentity,
    rules: DenialRules,
    store: Store,
    news: News,
    lost: Mutex<BTreeMap<Layer, u64>>,
    /// Who waits for the number of its Landlock domain.
    learned: Mutex<Option<oneshot::Sender<u64>>>,
}

impl Witness {
    /// Tells of a refusal, and records it unless the same one was recorded a moment ago. `same` is what makes two the same.
    async fn tell(&self, layer: Layer, what: &str, target: String, reason: Reason, same: &str) {
        let denial = Denial {
            layer: layer.as_str().into(),
            what: what.into(),
            target,
            rule: reason.rule,
            origin: reason.origin,
        };
        let event = Event::now(self.identity.id.to_string(), Fact::Denial(denial));
        if !self
            .news
            .is_new(format!("{} {what} {same}", layer.as_str()))
        {
            self.store.tell_repeated(event);
        } else if let Err(error) = self.store.record(event).await {
            tracing::error!(agent = %self.identity.name, %error, "a refusal can't be recorded");
        }
    }

    /// The number of the agent's Landlock domain.
    fn learn(&self, domain: u64) {
        let waits = self
            .learned
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if waits.is_some_and(|waits| waits.send(domain).is_err()) {
            tracing::debug!(agent = %self.identity.name, "it ended before its Landlock domain was known");
        }
    }

    fn lost_of(&self, layer: Layer) -> Option<u64> {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.get(&layer).copied()
    }

    /// How many of this layer's were lost since the launch.
    fn set_lost(&self, layer: Layer, total: u64) {
        if total > 0 {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.insert(layer, total);
        }
    }
}

/// A name that a program gave itself, for people and records.
fn shown_name(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0);
    let name = &name[..end.unwrap_or(name.len())];
    let shown = String::from_utf8_lossy(name);
    shown
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_name_for_itself_can_do_no_harm() {
        assert_eq!(shown_name(b"cargo\0\0\0"), "cargo");
        assert_eq!(shown_name(b"\x1b[2Jx\n"), "?[2Jx?");
        assert_eq!(shown_name(&[0xff; 16]).chars().count(), 16);
    }
}
