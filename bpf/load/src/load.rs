//! One load: the tables first, then what is in them, then the programs, group by group.
//!
//! Tables that an earlier loader pinned with the same layout are used as they are, and a link that
//! is there gets the new program put into it, so an agent that lives through the change is never
//! without its hooks. The tables are filled before anything is attached: a cgroup that no program
//! knows yet would be refused.

use crate::groups::{self, BITS, Hook, NO_OFFSET, OFFSETS, Place};
use crate::pins::{PinError, Pins, Version};
use crate::{object, sys};
use agentd_bpf::layout::LAYOUT;
use agentd_bpf::{Directory, DirectoryFull, Group, Groups, MapError, Policies, Table};
use agentd_kernel::btf::KernelTypes;
use agentd_kernel::lsm;
use agentd_kernel::probe::Roots;
use aya::programs::{Program, ProgramError};
use aya::{Btf, BtfError, Ebpf, EbpfError, EbpfLoader};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What to load, and for whom.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The programs: [`crate::EMBEDDED`], or another build.
    pub object: &'a [u8],
    /// The cgroup2 directory that agents' cgroups are made in.
    pub subtree: BorrowedFd<'a>,
    /// How deep those are below the root of the hierarchy.
    pub agent_level: u32,
    /// Those that are there already.
    pub agents: &'a [Agent],
    /// Made with [`Pins::make`].
    pub pins: &'a Pins,
}

/// An agent's cgroup and slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agent {
    pub cgroup_id: u64,
    pub slot: u32,
}

/// What is there now.
#[derive(Debug)]
pub struct Loaded {
    /// In the order of [`Table::ALL`].
    pub tables: Vec<(Table, OwnedFd)>,
    pub groups: Groups,
    pub absent: Vec<Absent>,
}

/// A group that this kernel doesn't take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Absent {
    pub group: Group,
    /// In one line.
    pub why: String,
    /// What the verifier said, if it said anything.
    pub log: String,
}

/// Why there is no plane at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("loading the tables: {}", chain(.0))]
    Object(#[source] Box<EbpfError>),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Directory(#[from] DirectoryFull),
}

/// Loads all of it. See the module's comment for the order.
pub fn load(plan: &Plan<'_>) -> Result<Loaded, LoadError> {
    let version = plan.pins.version(LAYOUT, object::hash(plan.object))?;
    let offsets = offsets();
    let mut object = create(plan, &version, offsets)?;
    let tables = open_tables(&version)?;
    fill(plan, &tables)?;

    let mut groups = Vec::new();
    let mut absent = Vec::new();
    for group in Group::ALL {
        match load_group(group, &mut object, offsets)
            .and_then(|()| attach_group(group, &object, plan.subtree, &version))
        {
            Ok(Attached::All) => groups.push(group),
            Ok(Attached::NoneMade) => absent.push(Absent {
                group,
                why: "this version has no programs for it".to_owned(),
                log: String::new(),
            }),
            Err(refusal) => {
                // Programs of an earlier version go on with the same tables: nobody gets more rights for an upgrade.
                let hooks = groups::hooks(group);
                if hooks.iter().all(|hook| version.link(hook.program).exists()) {
                    groups.push(group);
                }
                absent.push(Absent {
                    group,
                    why: refusal.why,
                    log: refusal.log,
                });
            }
        }
    }
    let groups: Groups = groups.into_iter().collect();
    drop_former(&version)?;
    version.settle(plan.pins)?;
    Ok(Loaded {
        tables,
        groups,
        absent,
    })
}

/// What the kernel says of its types, read once in a process: it is megabytes, and says the same until the next boot.
fn kernel_btf() -> &'static Result<Btf, BtfError> {
    static READ: OnceLock<Result<Btf, BtfError>> = OnceLock::new();
    READ.get_or_init(Btf::from_sys_fs)
}

/// The values of [`OFFSETS`] and [`BITS`], looked up once in a process. Without BTF all are
/// missing, and with them the groups that need them.
fn offsets() -> &'static [(&'static str, u32)] {
    static FOUND: OnceLock<Vec<(&'static str, u32)>> = OnceLock::new();
    FOUND.get_or_init(look_up_offsets)
}

fn look_up_offsets() -> Vec<(&'static str, u32)> {
    let types = KernelTypes::read(Path::new(KERNEL_TYPES)).ok();
    let look_up = |fields: &'static [(&str, &str, &str)],
                   how: fn(&KernelTypes, &str, &str) -> _| {
        let types = types.as_ref();
        fields.iter().map(move |(global, structure, path)| {
            let found = types.and_then(|types| how(types, structure, path));
            (*global, found.unwrap_or(NO_OFFSET))
        })
    };
    look_up(OFFSETS, KernelTypes::offset)
        .chain(look_up(BITS, KernelTypes::bit_offset))
        .collect()
}

/// 0 where each processor has a stripe of the scheduler's table for itself.
fn shares_stripes() -> u32 {
    aya::util::nr_cpus().map_or(1, |processors| {
        u32::from(processors > agentd_bpf::layout::sched::STRIPES as usize)
    })
}

/// Reads the object and makes its tables, or takes those that are pinned.
fn create(
    plan: &Plan<'_>,
    version: &Version,
    offsets: &[(&'static str, u32)],
) -> Result<Ebpf, LoadError> {
    let shared = shares_stripes();
    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated by BTF.
    loader
        .btf(None)
        .override_global("AGENT_LEVEL", &plan.agent_level, true)
        .override_global("SCHED_SHARED", &shared, true);
    for (global, value) in offsets {
        loader.override_global(global, value, true);
    }
    for name in pinned() {
        loader.map_pin_path(name, version.map(name));
    }
    loader
        .load(plan.object)
        .map_err(|error| LoadError::Object(Box::new(error)))
}

/// Maps that have a pin: the tables, those that are kept, and what `sk_msg` programs are attached to.
fn pinned() -> impl Iterator<Item = &'static str> {
    let hooks = Group::ALL
        .into_iter()
        .flat_map(|group| groups::hooks(group).iter());
    let sockets = hooks.filter_map(|hook| match hook.place {
        Place::Sockets(map) => Some(map),
        _ => None,
    });
    Table::ALL
        .into_iter()
        .map(Table::name)
        .chain(sockets)
        .chain(groups::KEPT.iter().copied())
}

fn open_tables(version: &Version) -> Result<Vec<(Table, OwnedFd)>, LoadError> {
    let open = |table: Table| {
        let path = version.map(table.name());
        let fd = sys::get(&path).map_err(PinError::new("opening", &path))?;
        Ok((table, fd))
    };
    Table::ALL.into_iter().map(open).collect()
}

/// Refuses cgroups that nobody knows, and makes the directory say what there is.
fn fill(plan: &Plan<'_>, tables: &[(Table, OwnedFd)]) -> Result<(), LoadError> {
    for (table, fd) in tables {
        match table {
            Table::Policy => Policies::map(fd)?.close_row_zero(),
            Table::Directory => {
                let directory = Directory::map(fd)?;
                directory.retain(|id| plan.agents.iter().any(|agent| agent.cgroup_id == id));
                for agent in plan.agents {
                    directory.insert(agent.cgroup_id, agent.slot)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

struct Refusal {
    why: String,
    log: String,
}

impl Refusal {
    fn new(program: &str, error: &(dyn std::error::Error + 'static)) -> Self {
        Self {
            why: format!("{program}: {}", chain(error)),
            log: String::new(),
        }
    }

    fn of_program(program: &str, error: ProgramError) -> Self {
        let ProgramError::LoadError {
            io_error,
            verifier_log,
        } = error
        else {
            return Self::new(program, &error);
        };
        let log = verifier_log.to_string();
        let said = log.lines().rev().map(str::trim).find(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.starts_with("verification time")
                && !line.starts_with("stack depth")
        });
        let why = match said {
            Some(said) => format!("{program}: {io_error}: {said}"),
            None => format!("{program}: the kernel refuses to load it: {io_error}"),
        };
        Self { why, log }
    }
}

/// Verifies a group's programs; attaches none.
fn load_group(
    group: Group,
    object: &mut Ebpf,
    offsets: &[(&'static str, u32)],
) -> Result<(), Refusal> {
    let plain = |why: String| Refusal {
        why,
        log: String::new(),
    };
    for global in groups::needs(group) {
        if offsets.contains(&(*global, NO_OFFSET)) {
            let field = OFFSETS.iter().chain(BITS).find(|field| field.0 == *global);
            let (_, structure, path) = field.unwrap_or(&("", "", ""));
            return Err(plain(format!(
                "this kernel's BTF has no field {path} in struct {structure}"
            )));
        }
    }
    let is_lsm = |hook: &Hook| matches!(hook.place, Place::Lsm(_));
    if groups::hooks(group).iter().any(is_lsm) {
        // They would load and attach all the same, and never be called.
        lsm::check_bpf(&Roots::default()).map_err(plain)?;
    }
    for Hook {
        program: name,
        place,
    } in groups::hooks(group)
    {
        let Some(program) = object.program_mut(name) else {
            return Err(plain(format!("the object has no program {name}")));
        };
        let tracing = matches!(place, Place::Tracepoint(_) | Place::Lsm(_));
        let types = tracing.then(kernel_btf).map(Result::as_ref).transpose();
        let types = types.map_err(|error| Refusal::new(name, error))?;
        let loaded = match (program, place, types) {
            (Program::CgroupSockAddr(program), Place::Subtree(_), _) => program.load(),
            (Program::CgroupSock(program), Place::Subtree(_), _) => program.load(),
            (Program::CgroupSkb(program), Place::Subtree(_), _) => program.load(),
            (Program::SockOps(program), Place::Subtree(_), _) => program.load(),
            (Program::SkMsg(program), Place::Sockets(_), _) => program.load(),
            (Program::BtfTracePoint(program), Place::Tracepoint(to), Some(types)) => {
                program.load(to, types)
            }
            (Program::Lsm(program), Place::Lsm(hook), Some(types)) => program.load(hook, types),
            (program, place, _) => {
                let is = program.prog_type();
                return Err(plain(format!(
                    "{name}: a program of type {is:?} can't be at {place:?}"
                )));
            }
        };
        loaded.map_err(|error| Refusal::of_program(name, error))?;
    }
    Ok(())
}

enum Attached {
    All,
    NoneMade,
}

/// Attaches a group that is loaded. On failure nothing that this made is left.
fn attach_group(
    group: Group,
    object: &Ebpf,
    subtree: BorrowedFd<'_>,
    version: &Version,
) -> Result<Attached, Refusal> {
    let hooks = groups::hooks(group);
    let mut made: Vec<PathBuf> = Vec::new();
    for Hook {
        program: name,
        place,
    } in hooks
    {
        let pin = version.link(name);
        let was_there = pin.exists();
        let attached = program_fd(object, name)
            .and_then(|program| attach(program, *place, subtree, version, &pin));
        if let Err(error) = attached {
            for pin in made {
                // Pinned a moment ago by us, and of no use alone; a failure to remove it adds nothing.
                fs::remove_file(pin).ok();
            }
            return Err(Refusal {
                why: format!("{name}: attaching it: {error}"),
                log: String::new(),
            });
        }
        if !was_there {
            made.push(pin);
        }
    }
    Ok(match hooks {
        [] => Attached::NoneMade,
        _ => Attached::All,
    })
}

fn program_fd<'a>(object: &'a Ebpf, name: &str) -> io::Result<BorrowedFd<'a>> {
    let program = object.program(name);
    let fd = program.and_then(|program| program.fd().ok());
    fd.map(AsFd::as_fd)
        .ok_or_else(|| io::Error::other("it is not loaded"))
}

fn attach(
    program: BorrowedFd<'_>,
    place: Place,
    subtree: BorrowedFd<'_>,
    version: &Version,
    pin: &Path,
) -> io::Result<()> {
    match place {
        Place::Subtree(_) if pin.exists() => sys::update_link(sys::get(pin)?.as_fd(), program),
        Place::Subtree(at) => sys::pin(sys::link_cgroup(program, subtree, at)?, pin),
        Place::Tracepoint(_) | Place::Lsm(_) => {
            // These links keep their program. The old one goes when its pin does: for an instant both are there.
            let link = sys::link_tracing(program)?;
            // bpffs takes no dot in a name.
            let mut next = pin.as_os_str().to_owned();
            next.push("-next");
            let next = PathBuf::from(next);
            fs::remove_file(&next).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            sys::pin(link, &next)?;
            fs::rename(&next, pin)
        }
        Place::Sockets(map) => {
            let map = sys::get(&version.map(map))?;
            sys::attach_to_sockets(program, map.as_fd())
        }
    }
}

/// Detaches programs that an earlier version had and this one has not.
fn drop_former(version: &Version) -> Result<(), PinError> {
    let known = |name: &str| {
        Group::ALL
            .into_iter()
            .flat_map(|group| groups::hooks(group).iter())
            .any(|hook| hook.program == name)
    };
    for link in version.links() {
        let name = link.file_name().and_then(|name| name.to_str());
        if !name.is_some_and(known) {
            fs::remove_file(&link).map_err(PinError::new("removing", &link))?;
        }
    }
    Ok(())
}

/// An error and its causes in one line. (aya's own texts leave them out.)
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
