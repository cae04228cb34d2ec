//! The launcher program: pid 1 of the sandbox. Builds the view, starts the program confined, then reaps, reports, and
//! refuses the calls that the filter holds for it.
//!
//! One thread, no allocation, no `std`; starts with the capabilities of a fresh user namespace and drops every one
//! before any code of the agent runs. Any failure ends the launch: it is reported on the status socket and the process,
//! and with it the sandbox, is gone. Start reading at [`run`]; the order of its steps is the design.

use agentd_kernel::sys::{Errno, Fd, FdRef, fs, net, process, security, wait};

use crate::floor::{self, FloorContext};
use crate::layers::{
    LAYER_KEYRING, LAYER_MEMFD_NOEXEC, LAYER_MOUNT_VIEW, LAYER_NET_NS, LAYER_SECCOMP_NOTIFY,
    LAYERS_FROM_PARENT,
};
use crate::parent::{
    AGENTD_LIFELINE_FD, Arguments, BROKER_LIFELINE_FD, FIRST_GRANT_FD, LAUNCH_FAILED, PLAN_FD,
    STATUS_FD, STATUS_FILE_FD,
};
use crate::plan::{
    ExecFlags, MAX_BYTES, MAX_GRANTS, MAX_LISTENERS, MountFlags, Network, Plan, Record,
};
use crate::status::{Failure, MAX_READY_FDS, MESSAGE_LEN, NO_RECORD, Status, Step};

mod agent;
mod calls;
mod confine;
mod cover;
mod device;
mod foreground;
mod inside;
mod network;
mod overlay;
mod proc;
mod refuse;
mod sentry;
mod stage;
mod stdio;
mod supervise;
mod view;

pub use calls::{GVISOR_CALLS, SYSTEM_CALLS};
pub use inside::run_inside;
pub use stage::RUNSC;

use agent::Place;

/// A step's outcome.
type Outcome<T> = Result<T, Failure>;

/// Says which step, for which record, a system call failed in.
trait During<T> {
    fn during(self, step: Step, record: u16) -> Outcome<T>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, step: Step, record: u16) -> Outcome<T> {
        self.map_err(|errno| Failure::new(step, errno.raw(), record))
    }
}

/// The descriptors the parent placed; see [`crate::parent`].
struct Inherited {
    plan: Fd,
    status: FdRef<'static>,
    status_file: FdRef<'static>,
    /// agentd's, the broker's.
    lifelines: [Fd; 2],
    grants: Grants,
}

/// The grants not yet mounted.
struct Grants([Option<Fd>; MAX_GRANTS]);

impl Grants {
    fn take(&mut self, index: u32) -> Result<Fd, Errno> {
        self.0
            .get_mut(index as usize)
            .and_then(Option::take)
            .ok_or(Errno::INVAL)
    }
}

/// The listening sockets in the plan's order.
struct Listeners {
    fds: [Option<Fd>; MAX_LISTENERS],
    count: usize,
}

impl Listeners {
    fn add(&mut self, listener: Fd) -> Result<(), Errno> {
        *self.fds.get_mut(self.count).ok_or(Errno::INVAL)? = Some(listener);
        self.count += 1;
        Ok(())
    }
}

/// Runs the launch described by the plan on [`PLAN_FD`], and its sandbox until that ends.
///
/// # Safety
/// The process is the launcher started as [`crate::parent`] says: it owns the descriptors named there, and nothing else
/// in the process uses them.
pub unsafe fn run(arguments: Option<Arguments>) -> ! {
    // SAFETY: the caller's promise: the number is the status socket, which stays open until the process ends.
    let status = unsafe { FdRef::always_open(STATUS_FD) };
    let failure = match arguments {
        // SAFETY: the caller's promise, handed on.
        Some(arguments) => match unsafe { Inherited::take(&arguments) }
            .and_then(|inherited| launch(&arguments, inherited))
        {
            Ok(code) => process::exit(code),
            Err(failure) => failure,
        },
        None => Failure::new(Step::Init, Errno::INVAL.raw(), NO_RECORD),
    };
    // SAFETY: as for the status socket.
    let file = unsafe { FdRef::always_open(STATUS_FILE_FD) };
    let report = Status::Failed(failure).encode();
    put_on_file(file, &report);
    // Nobody may be listening any more, and there is nobody else to tell.
    net::send_packet(status, &report, &[]).unwrap_or(());
    process::exit(LAUNCH_FAILED)
}

/// The last report, for whoever asks when the status socket has gone. A full disk can't be told to anyone.
fn put_on_file(file: FdRef<'_>, report: &[u8; MESSAGE_LEN]) {
    fs::write_at(file, report, 0).unwrap_or(0);
}

impl Inherited {
    /// # Safety
    /// The descriptors of [`crate::parent`] are there and belong to nobody else.
    unsafe fn take(arguments: &Arguments) -> Outcome<Inherited> {
        let mut grants = [const { None }; MAX_GRANTS];
        let placed = grants.get_mut(..arguments.grants as usize);
        for (slot, raw) in placed
            .ok_or(Failure::new(Step::Init, Errno::INVAL.raw(), NO_RECORD))?
            .iter_mut()
            .zip(FIRST_GRANT_FD..)
        {
            // SAFETY: the caller's promise: the parent placed a grant at this number for us alone.
            *slot = Some(unsafe { Fd::from_raw(raw) });
        }
        // SAFETY: the caller's promise; plan and lifelines are ours to close, the other two stay open until the process ends.
        unsafe {
            Ok(Inherited {
                plan: Fd::from_raw(PLAN_FD),
                status: FdRef::always_open(STATUS_FD),
                status_file: FdRef::always_open(STATUS_FILE_FD),
                lifelines: [
                    Fd::from_raw(AGENTD_LIFELINE_FD),
                    Fd::from_raw(BROKER_LIFELINE_FD),
                ],
                grants: Grants(grants),
            })
        }
    }
}

/// The launch from the first to the last step. Returns the exit code of the sandbox's init.
fn launch(arguments: &Arguments, inherited: Inherited) -> Outcome<i32> {
    let Inherited {
        plan,
        status,
        status_file,
        lifelines,
        mut grants,
    } = inherited;
    const ALL_SIGNALS: u64 = u64::MAX;
    process::set_not_dumpable().during(Step::Init, NO_RECORD)?;
    process::set_name(c"agentd-init");
    process::umask(0);
    wait::block_signals(ALL_SIGNALS).during(Step::Init, NO_RECORD)?;

    let bytes = fs::map_sealed(plan.borrow(), MAX_BYTES).during(Step::ReadPlan, NO_RECORD)?;
    drop(plan);
    let plan = &Plan::parse(bytes).map_err(|_| Failure::new(Step::ParsePlan, 0, NO_RECORD))?;
    let context = FloorContext {
        mode: arguments.mode,
        grants: arguments.grants,
        // Whether there is to be a namespace of its own the parent has decided.
        network: match arguments.layers & LAYER_NET_NS {
            0 => Network::Host,
            _ => Network::Own,
        },
    };
    floor::check(plan, &context).map_err(|_| Failure::new(Step::Floor, 0, NO_RECORD))?;
    if process::ids() != plan.ids() {
        return Err(Failure::new(Step::Init, Errno::PERM.raw(), NO_RECORD));
    }

    // What the launcher makes itself is told of when it is there.
    let mut layers = arguments.layers & LAYERS_FROM_PARENT & !LAYER_NET_NS;
    security::join_new_session_keyring().during(Step::Keyring, NO_RECORD)?;
    let network = match plan.network() {
        Network::Own => Some(network::begin()?),
        Network::Host => None,
    };
    // While the host's /proc is still there.
    let memfd_noexec = confine::memfd_noexec();
    let (stage, mut view) = match plan.gvisor() {
        None => (None, view::View::new()?),
        Some(_) => {
            let (stage, view) = stage::Stage::new(plan, bytes)?;
            (Some(stage), view)
        }
    };
    place_all(plan, &mut view, &mut grants)?;
    if let Some(network) = network {
        network.enter()?;
        layers |= LAYER_NET_NS;
    }
    let listeners = listen_all(plan, &mut view)?;
    let stdio = match &stage {
        None => stdio::Streams::open(plan.stdio(), &view, false)?,
        Some(stage) => stdio::Streams::open(plan.stdio(), stage.view(), true)?,
    };
    let inside = match stage {
        None => {
            view.seal(plan)?.enter()?;
            None
        }
        Some(stage) => Some(stage.enter(plan, view)?),
    };
    drop(grants);
    process::setsid().during(Step::Init, NO_RECORD)?;
    stdio.take_terminal()?;
    let relayed: &[u32] = match plan.gvisor() {
        None => &[],
        Some(_) => &wait::TERMINAL_SIGNALS,
    };
    let children = wait::signals(relayed).during(Step::Init, NO_RECORD)?;

    layers |= LAYER_MOUNT_VIEW | LAYER_KEYRING;
    if memfd_noexec {
        layers |= LAYER_MEMFD_NOEXEC;
    }
    let no_new_privs = confine::NoNewPrivs::set()?;
    let caps = confine::CapsDropped::drop_all(&no_new_privs)?;
    let place = plan.gvisor().map_or(Place::Host, Place::Runtime);
    let passage = match place {
        Place::Host if plan.exec().contains(ExecFlags::TELL) => Some(refuse::Passage::new()?),
        _ => None,
    };
    let entrance = passage.as_ref().map(refuse::Passage::entrance);
    let mut started = agent::start(plan, &stdio, place, layers, (no_new_privs, caps), entrance)?;
    let listener = match passage {
        Some(passage) => passage.leave()?,
        None => None,
    };
    let (refuser, refusals) = match listener {
        Some(listener) => {
            started.layers |= LAYER_SECCOMP_NOTIFY;
            let (refuser, reader) = refuse::Refuser::new(listener)?;
            (Some(refuser), Some(reader))
        }
        None => (None, None),
    };
    let sentry = match inside {
        None => None,
        Some(listener) => Some(sentry::await_program(
            &listener,
            &children,
            &lifelines,
            &mut started,
        )?),
    };

    send_ready(status, &started, &stdio, &listeners, refusals.as_ref())?;
    drop((listeners, refusals));
    let terminal = stdio.into_terminal();
    let sandbox = supervise::Sandbox::new(
        status,
        status_file,
        lifelines,
        children,
        terminal,
        started.pid,
        plan.lifeline_grace_ms(),
    );
    let sandbox = match refuser {
        None => sandbox,
        Some(refuser) => sandbox.refusing(refuser),
    };
    let mut sandbox = match sentry {
        None => sandbox,
        Some(connection) => sandbox.of_sentry(connection),
    };
    Ok(sandbox.run())
}

/// Applies the records that make the view, in order.
fn place_all(plan: &Plan<'_>, view: &mut view::View, grants: &mut Grants) -> Outcome<()> {
    for (at, record) in (0u16..).zip(plan.records()) {
        match record {
            Record::Hostname(name) => process::set_hostname(name).during(Step::Hostname, at)?,
            Record::Bind { src, dst, flags } => {
                view.bind(src, dst, flags).during(Step::Bind, at)?
            }
            Record::GrantMount { index, dst, flags } if flags.contains(MountFlags::COPY) => grants
                .take(index)
                .and_then(|grant| view.copy_grant(&grant, dst))
                .during(Step::Copy, at)?,
            Record::GrantMount { index, dst, flags } => grants
                .take(index)
                .and_then(|grant| view.mount_grant(plan.mode(), grant, dst, flags))
                .during(Step::Grant, at)?,
            Record::Tmpfs {
                dst,
                size_bytes,
                inodes,
                mode,
                flags,
            } => {
                view.tmpfs(dst, size_bytes, inodes, mode, flags)
                    .during(Step::Tmpfs, at)?;
            }
            // gVisor's kernel has devices, processes and queues of its own.
            Record::Proc { .. } | Record::Mqueue { .. } if plan.gvisor().is_some() => {}
            Record::Dev { dst, shm_bytes } if plan.gvisor().is_some() => {
                view.shared_memory(dst, shm_bytes).during(Step::Dev, at)?
            }
            Record::Proc { dst } => view.proc(dst).during(Step::Proc, at)?,
            Record::Mqueue { dst } => view.mqueue(dst).during(Step::Mqueue, at)?,
            Record::Dev { dst, shm_bytes } => view.devices(dst, shm_bytes).during(Step::Dev, at)?,
            Record::File { dst, mode, content } => {
                view.file(dst, mode, content).during(Step::File, at)?
            }
            Record::Symlink { dst, target } => {
                view.symlink(dst, target).during(Step::Symlink, at)?
            }
            Record::Dir { dst, mode } => view.directory(dst, mode).during(Step::Dir, at)?,
            Record::Mask { dst, flags } => view.mask(plan, dst, flags).during(Step::Mask, at)?,
            Record::Protect { dst, flags } => {
                view.protect(plan, dst, flags).during(Step::Protect, at)?
            }
            Record::Copy { dst, to, flags } => {
                view.copy(plan, dst, to, flags).during(Step::OwnCopy, at)?
            }
            Record::Overlay {
                index,
                dst,
                size_bytes,
                inodes,
                flags,
            } => grants
                .take(index)
                .and_then(|grant| {
                    view.overlay(plan.mode(), grant, dst, (size_bytes, inodes), flags)
                })
                .during(Step::Overlay, at)?,
            _ => {}
        }
        let covers_nothing = matches!(
            record,
            Record::Bind { .. }
                | Record::Tmpfs { .. }
                | Record::File { .. }
                | Record::Symlink { .. }
                | Record::Dir { .. }
        );
        if !covers_nothing {
            view.forget_parent();
        }
    }
    Ok(())
}

/// Listens where the plan says, in the sandbox's network and view.
fn listen_all(plan: &Plan<'_>, view: &mut view::View) -> Outcome<Listeners> {
    let mut listeners = Listeners {
        fds: [const { None }; MAX_LISTENERS],
        count: 0,
    };
    for (at, record) in (0u16..).zip(plan.records()) {
        match record {
            Record::TcpListener { port, .. } => net::listen_loopback(port),
            Record::UnixListener { path, mode, .. } => view.listen(path, mode, net::listen_unix),
            _ => continue,
        }
        .and_then(|fd| listeners.add(fd))
        .during(Step::Listener, at)?;
    }
    Ok(listeners)
}

fn send_ready(
    status: FdRef<'_>,
    started: &agent::Started,
    stdio: &stdio::Streams,
    listeners: &Listeners,
    refusals: Option<&Fd>,
) -> Outcome<()> {
    let mut fds = [status; MAX_READY_FDS];
    let mut count = 0;
    for fd in stdio
        .outer()
        .into_iter()
        .chain(listeners.fds.iter().map(Option::as_ref))
        .chain([refusals])
        .flatten()
    {
        fds[count] = fd.borrow();
        count += 1;
    }
    let agent::Started {
        pid,
        layers,
        landlock_abi,
    } = *started;
    let ready = Status::Ready {
        agent_pid: pid,
        layers,
        landlock_abi,
    };
    net::send_packet(status, &ready.encode(), &fds[..count]).during(Step::Init, NO_RECORD)
}
