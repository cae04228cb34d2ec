//! The program's side of a launch under gVisor: the first process of the sandbox, and its init.
//!
//! `runsc` starts it from a read-only mount, on gVisor's kernel. It does there what the sandbox's own init does on the
//! host's: it starts the program (resource limits, both seccomp filters), reaps, passes signals on and tells what happens. It
//! tells it to that init, over a socket, and what it reads was written by that init. Single thread, no allocation.

use agentd_kernel::sys::{Fd, FdRef, fs, net, process, wait};

use super::agent::{self, Place};
use super::confine::{CapsDropped, NoNewPrivs};
use super::stage::{INSIDE_PLAN, INSIDE_SOCKET};
use super::stdio::Streams;
use super::supervise::Sandbox;
use super::{During, Outcome};
use crate::layers::{LAYER_GVISOR, LAYER_RLIMITS};
use crate::parent::LAUNCH_FAILED;
use crate::plan::{MAX_BYTES, Plan};
use crate::status::{Failure, NO_RECORD, Status, Step};

/// The layers that only this side can tell of.
pub(super) const LAYERS_INSIDE: u64 = LAYER_GVISOR | LAYER_RLIMITS;

/// Starts the program and is its init until it ends. Nobody starts this but runsc.
pub fn run_inside() -> ! {
    let Ok(socket) = net::connect_packets(INSIDE_SOCKET) else {
        process::exit(LAUNCH_FAILED);
    };
    match launch(&socket) {
        Ok(code) => process::exit(code),
        Err(failure) => {
            // Nobody may be listening any more, and there is nobody else to tell.
            net::send_packet(socket.borrow(), &Status::Failed(failure).encode(), &[]).unwrap_or(());
            process::exit(LAUNCH_FAILED)
        }
    }
}

fn launch(socket: &Fd) -> Outcome<i32> {
    const ALL_SIGNALS: u64 = u64::MAX;
    process::set_not_dumpable().during(Step::Init, NO_RECORD)?;
    process::set_name(c"agentd-init");
    wait::block_signals(ALL_SIGNALS).during(Step::Init, NO_RECORD)?;
    let bytes = fs::open(INSIDE_PLAN, fs::O_RDONLY)
        .and_then(|file| fs::read_whole(file.borrow(), MAX_BYTES))
        .during(Step::ReadPlan, NO_RECORD)?;
    let plan = &Plan::parse(bytes).map_err(|_| Failure::new(Step::ParsePlan, 0, NO_RECORD))?;
    // SAFETY: runsc placed 0 to 2 for this process, in which nothing else has taken them.
    let streams = unsafe { Streams::inherited(plan.stdio()) };
    let children = wait::signals(&[]).during(Step::Init, NO_RECORD)?;

    let no_new_privs = NoNewPrivs::set()?;
    let caps = CapsDropped::found(&no_new_privs)?;
    // The sandbox's init is pid 1 on the host's kernel, so this is pid 1 of another one.
    let layers = if process::pid() == 1 { LAYER_GVISOR } else { 0 };
    let started = agent::start(
        plan,
        &streams,
        Place::Sentry,
        layers,
        (no_new_privs, caps),
        None,
    )?;
    let ready = Status::Ready {
        agent_pid: started.pid,
        layers: started.layers,
        landlock_abi: 0,
    };
    net::send_packet(socket.borrow(), &ready.encode(), &[]).during(Step::Init, NO_RECORD)?;

    // The init outside watches the lifelines, and nothing survives it. These two never end.
    let (agentd, _held) = fs::pipe().during(Step::Init, NO_RECORD)?;
    let (broker, _held_too) = fs::pipe().during(Step::Init, NO_RECORD)?;
    // The init outside keeps the last report, too.
    let nowhere = fs::open(c"/dev/null", fs::O_WRONLY).during(Step::Init, NO_RECORD)?;
    let mut sandbox = Sandbox::new(
        lasting(socket),
        lasting(&nowhere),
        [agentd, broker],
        children,
        streams.into_terminal(),
        started.pid,
        0,
    )
    .on_gvisor();
    Ok(sandbox.run())
}

fn lasting(fd: &Fd) -> FdRef<'static> {
    // SAFETY: both callers' descriptors live until `launch` returns, which ends the process.
    unsafe { FdRef::always_open(fd.borrow().raw()) }
}
