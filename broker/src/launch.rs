//! One launch: check the plan against the floor, receive the grants, map their ids, make the cgroup, start the launcher.
//!
//! Everything from the client is untrusted here: the plan file must be sealed before it is read, the plan must parse and
//! pass the floor, ids come from the broker's own range, and who granted what is what the kernel attests. The first thing
//! that is wrong refuses the launch with the rule it broke; nothing is left behind, though grants for one use are spent.

use crate::agents::{Agent, Grace, Parentage, State};
use crate::failure::{failed, refused};
use crate::idmap::{IdPair, IdmapCache};
use crate::limit;
use crate::log::log;
use crate::placeholder::{Keeper, Owner};
use crate::plane::Plane;
use crate::spawn::{Launcher, Spawn};
use agentd_broker::protocol::{
    ErrorCode, Failure, Launch, Launched, MAX_CGROUP_PATH, Mode, RESERVED_ID_BASE, Slot,
};
use agentd_kernel::cgroup::{Group, Subtree};
use agentd_kernel::grant::{self, Access, Grant, Kind};
use agentd_launch::floor::{self, FloorContext};
use agentd_launch::layers::*;
use agentd_launch::plan::{self, ExecFlags, MountFlags, Network, Plan, Record};
use rustix::fs::SealFlags;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

/// What `clone3` gives every agent, but for the network of one that has the host's.
const NAMESPACE_LAYERS: u64 = LAYER_USER_NS
    | LAYER_MOUNT_NS
    | LAYER_PID_NS
    | LAYER_NET_NS
    | LAYER_IPC_NS
    | LAYER_UTS_NS
    | LAYER_CGROUP_NS
    | LAYER_TIME_NS;

/// What outlives a single launch.
#[derive(Debug)]
pub struct Workshop {
    pub mode: Mode,
    pub subtree: Subtree,
    pub launcher: Launcher,
    pub idmaps: IdmapCache,
    pub placeholders: Keeper,
    /// The most network that an agent gets.
    pub network: Network,
    pub plane: Plane,
}

/// One launch that nothing is wrong with so far.
struct Launching<'a> {
    slot: Slot,
    plan: &'a Plan<'a>,
    plan_file: BorrowedFd<'a>,
    agentd_lifeline: BorrowedFd<'a>,
    status_file: BorrowedFd<'a>,
    /// See [`agentd_launch::parent::NOTE_FD`].
    note: Option<BorrowedFd<'a>>,
    grants: Vec<Grant>,
    owner: Owner,
}

/// A started agent and what agentd gets of it.
#[derive(Debug)]
pub struct Started {
    pub agent: Agent,
    pub pidfd: OwnedFd,
    pub status: OwnedFd,
}

impl Workshop {
    /// Does the whole of it. `fds` are the plan file and the grants, as they came.
    pub fn launch(
        &mut self,
        slot: Slot,
        request: &Launch,
        fds: Vec<OwnedFd>,
        agentd_lifeline: BorrowedFd<'_>,
    ) -> Result<Started, Failure> {
        let mut fds = fds.into_iter();
        let (Some(plan_file), Some(status_file), true) =
            (fds.next(), fds.next(), fds.len() == request.grants as usize)
        else {
            return Err(refused(
                ErrorCode::Malformed,
                "a launch carries the plan, the status file and one socket per grant",
            ));
        };
        check_status_file(&status_file)?;
        let bytes = read_sealed(plan_file, request.plan_len)?;
        let plan = Plan::parse(&bytes.content)
            .map_err(|error| refused(ErrorCode::Plan, format!("the plan: {error}")))?;
        let context = FloorContext {
            mode: plan_mode(self.mode),
            grants: request.grants,
            network: self.network,
        };
        floor::check(&plan, &context)
            .map_err(|violation| refused(ErrorCode::Floor, violation.to_string()))?;
        let grants = receive(fds, &plan)?;
        let (caller_uid, caller_gid) = self.caller(&grants, request)?;

        let owner = Owner {
            uid: caller_uid,
            gid: caller_gid,
        };
        let placeholders = self.placeholders.make(slot, &plan, &grants, owner)?;
        let launching = Launching {
            slot,
            plan: &plan,
            plan_file: bytes.file.as_fd(),
            agentd_lifeline,
            status_file: status_file.as_fd(),
            note: placeholders.note(),
            grants,
            owner,
        };
        match self.start(launching) {
            Ok(mut started) => {
                started.agent.placeholders = Some(placeholders);
                Ok(started)
            }
            Err(failure) => {
                placeholders.remove();
                Err(failure)
            }
        }
    }

    /// From grants to a running launcher; on failure no process and no cgroup is left.
    fn start(&mut self, launching: Launching<'_>) -> Result<Started, Failure> {
        let Launching {
            slot,
            plan,
            plan_file,
            agentd_lifeline,
            status_file,
            note,
            grants,
            owner,
        } = launching;
        let own = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let (host_uid, host_gid) = match self.mode {
            Mode::Root => (RESERVED_ID_BASE + slot.0, RESERVED_ID_BASE + slot.0),
            Mode::User => own,
        };
        let devices = device_rules(&grants)?;
        let objects = self.objects(grants, owner, host_uid)?;
        let group = self.subtree.group(slot.0).map_err(|error| {
            failed(
                ErrorCode::Cgroup,
                format!("{} the agent's cgroup", error.operation),
                &error.source,
            )
        })?;
        let limited = limit::at_launch(&group, plan).and_then(|limited| {
            if self.mode == Mode::Root {
                restrict(&group, &devices)?;
            }
            // Before any process is in the cgroup: its hooks refuse what they don't know.
            self.plane.begin(slot, group.id())?;
            Ok(limited)
        });
        let started = limited.and_then(|limited| {
            let idmap = if self.mode == Mode::Root {
                LAYER_IDMAP
            } else {
                0
            };
            let namespaces = match plan.network() {
                Network::Own => NAMESPACE_LAYERS,
                Network::Host => NAMESPACE_LAYERS & !LAYER_NET_NS,
            };
            let layers = namespaces | idmap | limited;
            require(plan, layers)?;
            let (uid, gid) = plan.ids();
            let grants = objects.iter().map(AsFd::as_fd).collect();
            let writable = writable(plan).filter_map(|at| objects.get(at));
            let memfd_noexec =
                self.mode == Mode::Root && plan.exec().contains(ExecFlags::MEMFD_NOEXEC);
            let spawn = Spawn {
                mode: self.mode,
                uid,
                gid,
                host_uid,
                host_gid,
                layers,
                plan: plan_file,
                agentd_lifeline,
                status_file,
                note,
                grants,
                group: &group,
                memfd_noexec,
                disk: plan
                    .disk()
                    .map(|limit| (limit, writable.map(AsFd::as_fd).collect())),
            };
            let spawned = self.launcher.spawn(&spawn)?;
            Ok((spawned, layers))
        });
        let (spawned, layers) = started.inspect_err(|_| {
            self.plane.end(group.id());
            abandon(&group);
        })?;
        let path = group
            .unified_path()
            .map(|path| path.as_os_str().as_bytes().to_vec())
            .unwrap_or_default();
        let info = Launched {
            slot,
            pid: spawned.pid,
            grace_ms: plan.lifeline_grace_ms(),
            host_uid,
            host_gid,
            caller_uid: owner.uid,
            caller_gid: owner.gid,
            layers,
            cgroup_id: group.id(),
            cgroup_path: if path.len() <= MAX_CGROUP_PATH {
                path
            } else {
                Vec::new()
            },
        };
        let agent = Agent {
            info,
            parentage: Parentage::Own,
            pidfd: spawned.pidfd,
            status: spawned.status,
            kept: Vec::new(),
            group: Some(group),
            meter: spawned.meter,
            placeholders: None,
            grace: Grace::Whole,
            state: State::Running,
        };
        Ok(Started {
            agent,
            pidfd: spawned.client_pidfd,
            status: spawned.client_status,
        })
    }

    /// What the launcher gets of the grants: in root mode a mount of each that is not copied.
    fn objects(
        &mut self,
        grants: Vec<Grant>,
        owner: Owner,
        kernel_id: u32,
    ) -> Result<Vec<OwnedFd>, Failure> {
        if self.mode == Mode::User {
            return Ok(grants.into_iter().map(|grant| grant.object).collect());
        }
        let Owner { uid, gid } = owner;
        let ids = IdPair {
            uid,
            gid,
            kernel_id,
        };
        let object = |grant: Grant| match grant.kind {
            // Read by the launcher through the descriptor that its giver opened, and never mounted.
            Kind::Content => Ok(grant.object),
            _ => self.idmaps.mount(&grant, ids),
        };
        grants.into_iter().map(object).collect()
    }

    /// On whose behalf: the one giver of all grants. In user mode that can only be the user itself.
    fn caller(&self, grants: &[Grant], request: &Launch) -> Result<(u32, u32), Failure> {
        let Some(first) = grants.first() else {
            return Ok((request.caller_uid, request.caller_gid));
        };
        if let Some(other) = grants
            .iter()
            .find(|other| (other.uid, other.gid) != (first.uid, first.gid))
        {
            let text = format!(
                "grants of one launch come from one giver, not from uid {} gid {} and uid {} gid {}",
                first.uid, first.gid, other.uid, other.gid
            );
            return Err(refused(ErrorCode::Grant, text));
        }
        let own = rustix::process::geteuid().as_raw();
        if self.mode == Mode::User && first.uid != own {
            let text = format!(
                "a broker of uid {own} takes grants of that uid only, not of uid {}",
                first.uid
            );
            return Err(refused(ErrorCode::Grant, text));
        }
        Ok((first.uid, first.gid))
    }
}

/// The plan's word for the broker's mode.
pub fn plan_mode(mode: Mode) -> plan::Mode {
    match mode {
        Mode::Root => plan::Mode::Root,
        Mode::User => plan::Mode::User,
    }
}

/// The plan's bytes and the file that still holds them: sealed, so both are the same for ever.
struct SealedPlan {
    file: File,
    content: Vec<u8>,
}

fn read_sealed(file: OwnedFd, len: u32) -> Result<SealedPlan, Failure> {
    let wanted = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    let sealed = rustix::fs::fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(wanted));
    if !sealed {
        return Err(refused(
            ErrorCode::PlanFile,
            "the plan must be in a memfd sealed against writing and resizing",
        ));
    }
    let file = File::from(file);
    let size = file
        .metadata()
        .map_err(|error| failed(ErrorCode::PlanFile, "fstat", &error))?
        .len();
    if size != u64::from(len) || len as usize > plan::MAX_BYTES {
        let text = format!(
            "the plan file has {size} bytes, the request says {len}, at most {} are read",
            plan::MAX_BYTES
        );
        return Err(refused(ErrorCode::PlanFile, text));
    }
    let mut content = vec![0; len as usize];
    file.read_exact_at(&mut content, 0)
        .map_err(|error| failed(ErrorCode::PlanFile, "reading the plan", &error))?;
    Ok(SealedPlan { file, content })
}

/// The init writes at offset 0 of it for as long as it lives, so it is nothing that reacts to being written.
fn check_status_file(file: &OwnedFd) -> Result<(), Failure> {
    use rustix::fs::{FileType, OFlags};
    let stat = rustix::fs::fstat(file);
    let regular = stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    let flags = rustix::fs::fcntl_getfl(file).unwrap_or(OFlags::PATH);
    let writable = matches!(flags & OFlags::ACCMODE, OFlags::WRONLY | OFlags::RDWR);
    if regular && writable && !flags.contains(OFlags::PATH) {
        return Ok(());
    }
    Err(refused(
        ErrorCode::Malformed,
        "the second descriptor of a launch is the status file: a regular file open for writing",
    ))
}

/// Receives all grants, and checks that each goes where the giver said and with no more access.
fn receive(sockets: impl Iterator<Item = OwnedFd>, plan: &Plan<'_>) -> Result<Vec<Grant>, Failure> {
    let mut grants = Vec::new();
    for (index, socket) in sockets.enumerate() {
        let grant = grant::receive(socket)
            .map_err(|error| refused(ErrorCode::Grant, format!("grant {index}: {error}")))?;
        let place = plan.records().find_map(|record| match record {
            Record::GrantMount {
                index: at,
                dst,
                flags,
            } if at as usize == index => Some((dst, flags)),
            // Changes stay in the sandbox, so reading is all that it takes of a grant.
            Record::Overlay { index: at, dst, .. } if at as usize == index => {
                Some((dst, MountFlags::RDONLY))
            }
            _ => None,
        });
        let (dst, flags) = place.ok_or_else(|| {
            refused(
                ErrorCode::Floor,
                format!("the plan does not mount grant {index}"),
            )
        })?;
        if dst.to_bytes() != grant.dst.as_os_str().as_bytes() {
            let text = format!(
                "grant {index} was given for {}, the plan mounts it on {}",
                grant.dst.display(),
                dst.to_string_lossy()
            );
            return Err(refused(ErrorCode::Grant, text));
        }
        let copied = flags.contains(MountFlags::COPY);
        let planned = match (
            flags.contains(MountFlags::SOCKET),
            flags.contains(MountFlags::DEVICE),
        ) {
            (true, _) => Kind::Socket,
            (_, true) => Kind::Device,
            _ => Kind::File,
        };
        if grant.kind != planned {
            let text = format!(
                "grant {index} ({}) is a {:?}, the plan mounts a {planned:?}",
                grant.dst.display(),
                grant.kind
            );
            return Err(refused(ErrorCode::Grant, text));
        }
        if grant.access == Access::ReadOnly && !flags.contains(MountFlags::RDONLY) {
            let text = format!(
                "grant {index} ({}) was given read-only, the plan mounts it writable",
                grant.dst.display()
            );
            return Err(refused(ErrorCode::Grant, text));
        }
        let kind = if copied { Kind::Content } else { planned };
        grants.push(Grant { kind, ..grant });
    }
    Ok(grants)
}

/// The giver's side, and the launcher's.
const _: () = assert!(grant::MAX_CONTENT == plan::MAX_SECRET_BYTES);

/// The grants that may be written, without those inside another: their files are counted there.
fn writable<'p>(plan: &'p Plan<'_>) -> impl Iterator<Item = usize> + 'p {
    let places = || {
        plan.records().filter_map(|record| match record {
            Record::GrantMount { index, dst, flags } => {
                let file =
                    !flags.contains(MountFlags::SOCKET) && !flags.contains(MountFlags::DEVICE);
                let writable = file && !flags.contains(MountFlags::RDONLY);
                writable.then_some((index as usize, dst.to_bytes()))
            }
            _ => None,
        })
    };
    places().filter_map(move |(index, dst)| {
        let inside = |outer: &[u8]| {
            dst.strip_prefix(outer)
                .is_some_and(|rest| rest.starts_with(b"/"))
        };
        (!places().any(|(_, outer)| inside(outer))).then_some(index)
    })
}

/// What every sandbox has: null, zero, full, random, urandom, tty, and terminals of its own.
const DEVICES: [&str; 8] = [
    "c 1:3 rw",
    "c 1:5 rw",
    "c 1:7 rw",
    "c 1:8 rw",
    "c 1:9 rw",
    "c 5:0 rw",
    "c 5:2 rw",
    "c 136:* rw",
];

/// The devices that the agent may open, for a devices controller.
fn device_rules(grants: &[Grant]) -> Result<Vec<String>, Failure> {
    let granted = grants.iter().filter(|grant| grant.kind == Kind::Device);
    let rules = granted.map(|grant| {
        let stat = rustix::fs::fstat(&grant.object)
            .map_err(|errno| failed(ErrorCode::Grant, "fstat of a device", &errno.into()))?;
        let (major, minor) = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        Ok(format!("c {major}:{minor} rw"))
    });
    DEVICES
        .map(|rule| Ok(rule.to_owned()))
        .into_iter()
        .chain(rules)
        .collect()
}

/// Under the minimal `/dev` and `nodev`, where the host keeps a version 1 devices controller.
fn restrict(group: &Group, devices: &[String]) -> Result<(), Failure> {
    let restricted = group.allow_devices(devices).map(|_| ());
    restricted.map_err(|error| {
        let what = format!("{} {}", error.operation, error.path.display());
        failed(ErrorCode::Cgroup, what, &error.source)
    })
}

/// Refuses early what the launcher would refuse: a required layer that only the broker can make, and that it did not.
fn require(plan: &Plan<'_>, layers: u64) -> Result<(), Failure> {
    let missing = plan.required_layers() & LAYERS_FROM_PARENT & !layers;
    if missing == 0 {
        return Ok(());
    }
    let code = if missing == LAYER_CGROUP_LIMITS {
        ErrorCode::CgroupLimits
    } else {
        ErrorCode::Unsupported
    };
    let names: Vec<_> = layer_names(missing).collect();
    Err(refused(
        code,
        format!(
            "the plan requires what this broker can't give here: {}",
            names.join(", ")
        ),
    ))
}

/// Removes the cgroup of a launch that failed. Its process, if there was one, is reaped already.
fn abandon(group: &Group) {
    match group.try_remove() {
        Ok(agentd_kernel::cgroup::Removal::Done) => {}
        Ok(agentd_kernel::cgroup::Removal::Busy) => {
            log!("the cgroup of a failed launch is busy")
        }
        Err(error) => log!("{error}"),
    }
}
