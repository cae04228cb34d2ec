//! The kernel plane as the broker holds it: what there is of it, and the tables that only the
//! broker writes.
//!
//! Raised once, before privileges go: a child loads the programs (`child.rs`, ADR 33), this process
//! maps the tables. From then on a launch, an end and a revocation are stores to memory. The
//! mappings are shared by supervisor and workers, so a worker that dies takes nothing along; a
//! program that replaces this one in place is passed the descriptors ([`Plane::pass`]), as it could
//! not load anything any more.
//!
//! A plane that can't be is no error: agents run as before, and whatever needs a group is refused
//! with the reason. Only a plane that is attached and that this program doesn't understand is a
//! reason to launch nothing: its hooks refuse new agents, and taking them away would give running
//! ones back what was revoked.

mod child;

use crate::failure::{failed, refused};
use crate::log::log;
use agentd_bpf::layout::{LAYOUT, MAX_SLOT, revoked};
use agentd_bpf::{Clearable, Directory, Group, Groups, MapError, Policies, Right, Routes, Table};
use agentd_bpf_load::pins::{PinError, Pins};
use agentd_broker::protocol::{ErrorCode, Failure, Mode, Plane as Answer, Reply, Slot};
use agentd_kernel::cgroup::{Subtree, unified_depth, unified_mount};
use agentd_kernel::probe::Roots;
use rustix::fs::{Mode as FileMode, OFlags, open};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

/// What there is.
#[derive(Debug)]
pub enum Plane {
    Raised(Box<Raised>),
    /// None, and why.
    Absent(String),
    /// One is attached, of another program version, and this one can't use its tables.
    Foreign(String),
}

/// A plane whose tables this process has mapped.
#[derive(Debug)]
pub struct Raised {
    groups: Groups,
    /// Of the groups that are not there.
    reasons: BTreeMap<u32, String>,
    directory: Directory,
    policies: Policies,
    routes: Routes,
    /// Tables with a row for each slot.
    rows: Vec<Clearable>,
    /// For agentd, and for a program that replaces this one.
    tables: Vec<(Table, OwnedFd)>,
    pins: Pins,
}

/// The reason of everything where there is no plane.
fn absent(why: impl Into<String>) -> Plane {
    let why = why.into();
    log!("no kernel plane: {why}");
    Plane::Absent(why)
}

impl Plane {
    /// Loads, or takes over what a former broker left on the same subtree. Needs every privilege that root has.
    pub fn raise(mode: Mode, subtree: &Subtree) -> Self {
        if mode == Mode::User {
            // Known to everybody who runs it so: not worth a line in the log.
            return Self::Absent(
                "eBPF programs are loaded by root; this agentd runs as a user".into(),
            );
        }
        let Some(path) = subtree.unified_path() else {
            return absent(
                "it knows agents by their cgroup2 directory, and there is no cgroup2 hierarchy that agentd may write",
            );
        };
        let depth = match depth_of(path) {
            Ok(depth) => depth,
            Err(why) => return absent(why),
        };
        match Self::load(path, depth, subtree) {
            Ok(raised) => Self::Raised(Box::new(raised)),
            Err(error) => absent(error),
        }
    }

    fn load(path: &Path, depth: child::Depth, subtree: &Subtree) -> Result<Raised, String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, FileMode::empty())
            .map_err(|errno| format!("opening {}: {errno}", path.display()))?;
        let id = rustix::fs::fstat(&directory)
            .map_err(|errno| format!("fstat: {errno}"))?
            .st_ino;
        let pins = Pins::of(id);
        pins.make(|| living(path))
            .map_err(|error| error.to_string())?;
        let loaded = child::load(&child::Order {
            subtree: &directory,
            depth,
            agents: &agents(subtree),
            pins: &pins,
        });
        let raised = loaded.and_then(|message| {
            Raised::of(message, pins.clone()).map_err(|error| error.to_string())
        });
        raised.inspect_err(|_| {
            // A directory without anything in it; what can't be removed now is swept by the next broker.
            if let Err(error) = pins.remove() {
                log!("{error}");
            }
        })
    }

    /// Takes the plane of the program that this one replaced, from the descriptor that [`Plane::pass`] made.
    pub fn take_over(passed: OwnedFd, subtree: &Subtree) -> Self {
        let taken = child::receive(&passed).and_then(|message| {
            if message.layout != LAYOUT {
                return Err(format!(
                    "layout {} is attached and this version has layout {LAYOUT}",
                    message.layout
                ));
            }
            let id = subtree
                .unified_path()
                .and_then(|path| rustix::fs::stat(path).ok())
                .ok_or("its cgroup2 directory has gone")?
                .st_ino;
            Raised::of(message, Pins::of(id)).map_err(|error| error.to_string())
        });
        match taken {
            Ok(raised) => Self::Raised(Box::new(raised)),
            Err(error) => {
                let why = format!(
                    "the kernel plane of the version before can't be taken over in place: {error}; \
                     end this broker and start agentd again"
                );
                log!("{why}");
                Self::Foreign(why)
            }
        }
    }

    /// A descriptor from which the next program can take all of it over; `None` where there is nothing to take.
    pub fn pass(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Self::Raised(raised) => {
                child::send(&raised.groups, &raised.reasons, &raised.tables).map(Some)
            }
            Self::Absent(_) | Self::Foreign(_) => Ok(None),
        }
    }

    /// An agent is about to be in this cgroup. Its rows are new, then the programs know it.
    pub fn begin(&self, slot: Slot, cgroup_id: u64) -> Result<(), Failure> {
        let raised = match self {
            Self::Raised(raised) => raised,
            Self::Absent(_) => return Ok(()),
            Self::Foreign(why) => return Err(refused(ErrorCode::Unsupported, why.as_str())),
        };
        for rows in &raised.rows {
            rows.clear(slot.0);
        }
        self.admit(slot, cgroup_id)
    }

    /// An agent that is handed over is in this cgroup. Its rows are as they were.
    pub fn admit(&self, slot: Slot, cgroup_id: u64) -> Result<(), Failure> {
        let Self::Raised(raised) = self else {
            return Ok(());
        };
        if cgroup_id == 0 {
            return Err(refused(ErrorCode::Cgroup, "the agent's cgroup has no id"));
        }
        // Before the directory: a socket is marked with a slot that has its address.
        raised.routes.begin(slot.0, cgroup_id);
        let placed = raised.directory.insert(cgroup_id, slot.0);
        placed.map_err(|error| refused(ErrorCode::TooMany, error.to_string()))
    }

    /// Nobody is in this cgroup any more, or nobody who is known.
    pub fn end(&self, cgroup_id: u64) {
        if let Self::Raised(raised) = self {
            raised.directory.remove(cgroup_id);
            raised.routes.retain(|id| id != cgroup_id);
        }
    }

    /// Frees the places of agents that a former worker had and whose cgroups are no more.
    pub fn keep_only(&self, subtree: &Subtree) {
        if let Self::Raised(raised) = self {
            let agents = agents(subtree);
            let is_there = |id| agents.iter().any(|agent| agent.cgroup_id == id);
            raised.directory.retain(is_there);
            raised.routes.retain(is_there);
        }
    }

    /// See [`agentd_broker::protocol::Request::Restrict`].
    pub fn restrict(&self, slot: Slot, bits: u32, kept_ports: [u16; 8]) -> Result<(), Failure> {
        let needed = [
            (revoked::NET, Group::Net),
            (revoked::EXEC, Group::Exec),
            (revoked::WRITE, Group::Write),
        ];
        for (bit, group) in needed {
            if bits & bit != 0 && !self.groups().has(group) {
                let text = format!("this host can't revoke {group}: {}", self.why_absent(group));
                return Err(refused(ErrorCode::Unsupported, text));
            }
        }
        match self {
            Self::Raised(raised) => raised.policies.restrict(slot.0, bits, kept_ports),
            // Nothing is revoked and nothing is to be.
            Self::Absent(_) | Self::Foreign(_) => {}
        }
        Ok(())
    }

    /// See [`agentd_broker::protocol::Request::Route`]. To take back what can't have been given is done.
    pub fn route(&self, from: u64, to: u64, right: Right) -> Result<(), Failure> {
        let raised = match self {
            Self::Raised(raised) if raised.groups.has(Group::Route) => raised,
            _ if right == Right::No => return Ok(()),
            _ => {
                let why = self.why_absent(Group::Route);
                let text = format!("this host has no direct path between agents: {why}");
                return Err(refused(ErrorCode::Unsupported, text));
            }
        };
        let done = raised.routes.allow(from, to, right);
        done.map_err(|error| refused(ErrorCode::NoSuchSlot, error.to_string()))
    }

    /// The answer to [`agentd_broker::protocol::Request::Plane`].
    pub fn hand_over(&self) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let Self::Raised(raised) = self else {
            return Ok((Reply::Plane(Answer::default()), Vec::new()));
        };
        let handed: Vec<Table> = Table::handed_over().collect();
        let handed = raised
            .tables
            .iter()
            .filter(|(table, _)| handed.contains(table));
        let fds = handed.clone().map(|(_, fd)| fd.try_clone());
        let fds = fds.collect::<io::Result<Vec<_>>>().map_err(|error| {
            failed(
                ErrorCode::TooMany,
                "duplicating the tables of the kernel plane",
                &error,
            )
        })?;
        let answer = Answer {
            layout: LAYOUT,
            groups: raised.groups,
            tables: handed.fold(0, |bits, (table, _)| bits | table.bit()),
        };
        Ok((Reply::Plane(answer), fds))
    }

    fn groups(&self) -> Groups {
        match self {
            Self::Raised(raised) => raised.groups,
            Self::Absent(_) | Self::Foreign(_) => Groups::NONE,
        }
    }

    /// Empty if the group is there.
    pub fn why_absent(&self, group: Group) -> &str {
        match self {
            Self::Raised(raised) if raised.groups.has(group) => "",
            Self::Raised(raised) => {
                let reason = raised.reasons.get(&(group as u32));
                reason.map_or("it was not loaded", String::as_str)
            }
            Self::Absent(why) | Self::Foreign(why) => why,
        }
    }

    /// Detaches everything and removes the pins.
    pub fn remove(self) -> Result<(), PinError> {
        match self {
            Self::Raised(raised) => raised.pins.remove(),
            Self::Absent(_) | Self::Foreign(_) => Ok(()),
        }
    }
}

impl Raised {
    fn of(message: child::Message, pins: Pins) -> Result<Self, Broken> {
        let child::Message {
            groups,
            reasons,
            tables,
            ..
        } = message;
        let fd = |wanted: Table| {
            let found = tables.iter().find(|(table, _)| *table == wanted);
            found
                .map(|(_, fd)| fd)
                .ok_or(Broken::Missing(wanted.name()))
        };
        let directory = Directory::map(fd(Table::Directory)?)?;
        let policies = Policies::map(fd(Table::Policy)?)?;
        let routes = Routes::map(
            fd(Table::RouteGrants)?,
            fd(Table::RouteFlows)?,
            fd(Table::RouteTraffic)?,
        )?;
        let mut rows = Vec::new();
        for (table, fd) in &tables {
            if let Some(bytes) = table.row_bytes() {
                rows.push(Clearable::map(fd, table.name(), bytes)?);
            }
        }
        Ok(Self {
            groups,
            reasons,
            directory,
            policies,
            routes,
            rows,
            tables,
            pins,
        })
    }
}

/// Why tables can't be used.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("table {0} is missing")]
    Missing(&'static str),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// How deep the subtree is. In a cgroup namespace that is asked of the kernel from its mount on.
fn depth_of(subtree: &Path) -> Result<child::Depth, String> {
    let roots = Roots::default();
    if let Some(depth) = unified_depth(&roots, subtree) {
        return Ok(child::Depth::Known(depth));
    }
    let at = subtree.display();
    let (mount, below) = unified_mount(&roots, subtree).ok_or_else(|| {
        format!("{at} is below no mount of cgroup2 that /proc/self/mountinfo has")
    })?;
    let id = std::fs::metadata(&mount).map_err(|error| format!("{}: {error}", mount.display()))?;
    Ok(child::Depth::Below {
        ancestor: id.ino(),
        by: below,
    })
}

/// Whose cgroups are in the subtree.
fn agents(subtree: &Subtree) -> Vec<agentd_bpf_load::Agent> {
    let numbers = subtree.numbers().into_iter();
    let groups = numbers.filter_map(|slot| Some((slot, subtree.existing(slot)?.id())));
    groups
        .filter(|(slot, id)| (1..=MAX_SLOT).contains(slot) && *id != 0)
        .map(|(slot, cgroup_id)| agentd_bpf_load::Agent { cgroup_id, slot })
        .collect()
}

/// Ids of all cgroup2 directories; `None` where this process does not see the whole hierarchy.
fn living(subtree: &Path) -> Option<HashSet<u64>> {
    let device = |path: &Path| std::fs::metadata(path).ok().map(|metadata| metadata.dev());
    let own = device(subtree)?;
    let root = subtree
        .ancestors()
        .take_while(|path| device(path) == Some(own))
        .last()?;
    if unified_depth(&Roots::default(), root) != Some(0) {
        return None;
    }
    let mut ids = HashSet::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        // One that has gone meanwhile has nothing in it.
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                ids.insert(entry.ino());
                waiting.push(entry.path());
            }
        }
    }
    Some(ids)
}

/// Detaches and removes what is pinned for this subtree, when no broker runs on it.
pub fn remove_pins(subtree: &Path) -> Result<(), RemoveError> {
    let id = std::fs::metadata(subtree)
        .map_err(|source| RemoveError::Subtree {
            path: subtree.to_owned(),
            source,
        })?
        .ino();
    Ok(Pins::of(id).remove()?)
}

/// Why pins can't be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    #[error("{}: {source}; --remove-pins takes --cgroup DIR, the directory of the agents' cgroups", path.display())]
    Subtree {
        path: std::path::PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Pins(#[from] PinError),
}
