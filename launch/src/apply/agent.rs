//! The program's process: from the init's child to the program.
//!
//! It shares the init's memory until it executes the program (so its outcome is simply written down, and starting it
//! copies no page tables) but no descriptors, signal actions or credentials. No capabilities; single thread.

use core::convert::Infallible;
use core::ffi::{CStr, c_char, c_void};
use core::mem::MaybeUninit;
use core::ptr;

use agentd_kernel::sys::{Errno, FdRef, fs, net, process, spawn_vfork, wait};

use super::confine::{self, CapsDropped, LandlockEnforced, NoNewPrivs, SeccompLoaded};
use super::inside::LAYERS_INSIDE;
use super::stage;
use super::stdio::Streams;
use super::view::PathBuffer;
use super::{During, Outcome};
use crate::layers::{
    LAYER_CAPS_DROPPED, LAYER_LANDLOCK, LAYER_LANDLOCK_NET, LAYER_MDWE, LAYER_NO_NEW_PRIVS,
    LAYER_RLIMITS, LAYER_SECCOMP, floor_layers,
};
use crate::parent::LAUNCH_FAILED;
use crate::plan::{ExecFlags, GvisorFlags, MAX_RECORDS, Plan, Record};
use crate::status::{Failure, NO_RECORD, Step};

/// A program that is running.
#[derive(Clone, Copy)]
pub(super) struct Started {
    pub pid: u32,
    pub layers: u64,
    pub landlock_abi: u32,
}

/// On which kernel the process is, and what it becomes there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The program, on the host's.
    Host,
    /// `runsc`, on the host's.
    Runtime(GvisorFlags),
    /// The program, on gVisor's.
    Sentry,
}

impl Place {
    /// The layers that are not this process's to make.
    fn elsewhere(self) -> u64 {
        match self {
            Place::Host => 0,
            Place::Runtime(_) => LAYERS_INSIDE,
            Place::Sentry => !LAYERS_INSIDE & !LAYERS_SENTRY,
        }
    }
}

/// What gVisor's kernel does for the program again, as the host's does for gVisor.
const LAYERS_SENTRY: u64 = LAYER_NO_NEW_PRIVS | LAYER_CAPS_DROPPED | LAYER_SECCOMP;

/// Holds a few paths of 4 KiB and the frames around them.
const STACK_LEN: usize = 48 << 10;

/// Where a plan without `PATH` is searched.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

const UMASK: u32 = 0o022;

/// A list of strings for `execve`; the strings lie in the plan.
struct Strings([MaybeUninit<*const c_char>; MAX_RECORDS + 1]);

impl Strings {
    const fn new() -> Strings {
        Strings([MaybeUninit::uninit(); MAX_RECORDS + 1])
    }

    /// Ends in a null pointer. A plan has at most `MAX_RECORDS` strings.
    fn fill<'a>(&mut self, strings: impl Iterator<Item = &'a CStr>) -> *const *const c_char {
        let mut len = 0;
        for (slot, string) in self.0[..MAX_RECORDS].iter_mut().zip(strings) {
            slot.write(string.as_ptr());
            len += 1;
        }
        self.0[len].write(ptr::null());
        self.0.as_ptr().cast()
    }
}

/// runsc's own arguments and environment.
fn runtime_strings(
    gvisor: GvisorFlags,
    arguments: &mut Strings,
    environment: &mut Strings,
) -> (*const *const c_char, *const *const c_char) {
    let files = gvisor
        .contains(GvisorFlags::NO_DIRECTFS)
        .then_some(c"--directfs=false");
    let before = [
        c"runsc",
        c"--root=/run",
        c"--log=/dev/null",
        // It is no root but that of its own user namespace, and the cgroup is the broker's.
        c"--rootless",
        c"--ignore-cgroups",
        // The sandbox's network namespace, which has its loopback and agentd's listeners on it.
        c"--network=host",
        // The sockets of the view: agentd's and those that were granted.
        c"--host-uds=open",
        // What is writable is written where it was granted.
        c"--overlay2=none",
    ];
    let after = [c"run", c"--bundle=/bundle", c"agent"];
    let arguments = arguments.fill(before.into_iter().chain(files).chain(after));
    let environment = environment.fill([c"PATH=/", c"TMPDIR=/tmp"].into_iter());
    (arguments, environment)
}

/// What the child gets.
struct Child<'a> {
    plan: &'a Plan<'a>,
    streams: &'a Streams,
    place: Place,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    /// Where the listener of the plan's filter goes.
    entrance: Option<FdRef<'a>>,
    /// `None` once the child has taken them.
    proofs: Option<(NoNewPrivs, CapsDropped)>,
    report: Report,
}

/// What it leaves behind.
#[derive(Clone, Copy)]
struct Report {
    layers: u64,
    landlock_abi: u32,
    /// It came as far as executing the program.
    arrived: bool,
    failure: Option<Failure>,
}

/// Starts the program. The listener of the plan's filter, if it has one, goes through `entrance`.
/// Returns when it has been executed, or with the reason why it was not.
pub(super) fn start(
    plan: &Plan<'_>,
    streams: &Streams,
    place: Place,
    layers: u64,
    proofs: (NoNewPrivs, CapsDropped),
    entrance: Option<FdRef<'_>>,
) -> Outcome<Started> {
    let (mut arguments, mut environment) = (Strings::new(), Strings::new());
    let (arguments, environment) = match place {
        Place::Runtime(gvisor) => runtime_strings(gvisor, &mut arguments, &mut environment),
        Place::Host | Place::Sentry => (
            arguments.fill(plan.records().filter_map(|record| match record {
                Record::Arg(arg) => Some(arg),
                _ => None,
            })),
            environment.fill(plan.records().filter_map(|record| match record {
                Record::Env(variable) => Some(variable),
                _ => None,
            })),
        ),
    };
    let mut child = Child {
        plan,
        streams,
        place,
        arguments,
        environment,
        proofs: Some(proofs),
        entrance,
        report: Report {
            layers,
            landlock_abi: 0,
            arrived: false,
            failure: None,
        },
    };
    let mut stack = [MaybeUninit::uninit(); STACK_LEN];
    let argument = (&raw mut child).cast::<c_void>();
    // SAFETY: `enter` takes a `Child`, which lives here while this thread waits, as do the strings it points to; the
    // program is built with panic=abort, and the stack holds the deepest of the child's frames.
    let pid = unsafe { spawn_vfork(&mut stack, enter, argument) }.during(Step::Fork, NO_RECORD)?;
    // SAFETY: `child` is alive, and its other user has executed the program or is dead. Volatile, as the compiler cannot
    // know that the call above wrote to it.
    let report = unsafe { ptr::read_volatile(&raw const child.report) };
    match report.failure {
        Some(failure) => Err(failure),
        None if report.arrived => Ok(Started {
            pid,
            layers: report.layers,
            landlock_abi: report.landlock_abi,
        }),
        None => {
            let ended = wait::wait_for(pid.cast_signed()).during(Step::Died, NO_RECORD)?;
            let detail = ended.map_or(0, |(_, status)| u64::from(status.cast_unsigned()));
            Err(Failure {
                detail,
                ..Failure::new(Step::Died, 0, NO_RECORD)
            })
        }
    }
}

/// # Safety
/// `argument` is a `Child` that nobody else uses meanwhile, in a process of its own.
unsafe extern "C" fn enter(argument: *mut c_void) -> ! {
    // SAFETY: the caller's promise.
    let child = unsafe { &mut *argument.cast::<Child<'_>>() };
    let Err(failure) = child.become_program();
    child.report.failure = Some(failure);
    process::exit(LAUNCH_FAILED)
}

impl Child<'_> {
    fn become_program(&mut self) -> Outcome<Infallible> {
        let plan = self.plan;
        let invalid = Failure::new(Step::Process, Errno::INVAL.raw(), NO_RECORD);
        let (no_new_privs, caps) = self.proofs.take().ok_or(invalid)?;
        match self.place {
            Place::Host | Place::Sentry => process::new_process_group(),
            // No terminal of the sandbox's init is its own, so it may read from it in the background.
            Place::Runtime(_) => process::setsid(),
        }
        .during(Step::Process, NO_RECORD)?;
        // SAFETY: this is the program's process; 0 to 2 are the parent's `/dev/null` and owned by nobody.
        unsafe { self.streams.install(process::pid()) }.during(Step::Stdio, NO_RECORD)?;
        wait::default_signals().during(Step::Process, NO_RECORD)?;
        process::umask(UMASK);
        match self.place {
            Place::Host => enter_directory(plan)?,
            Place::Runtime(_) => {}
            Place::Sentry => fs::chdir(plan.cwd()).during(Step::Cwd, NO_RECORD)?,
        }

        let landlock = match self.place {
            Place::Host | Place::Runtime(_) => LandlockEnforced::enforce(plan, &no_new_privs)?,
            Place::Sentry => LandlockEnforced::outside(),
        };
        // On gVisor's kernel there is nothing but what this program opened, all of which an execution closes.
        if self.place != Place::Sentry {
            // SAFETY: descriptors are this process's own, and nothing below uses one but the entrance.
            unsafe { fs::close_from(3, self.entrance) }.during(Step::Process, NO_RECORD)?;
        }
        let limited = limit_resources(plan, self.place)?;
        // It holds for the init too, whose memory this still is, and which maps nothing executable either.
        let denied = self.place == Place::Host
            && plan.exec().contains(ExecFlags::MDWE)
            && confine::deny_write_execute()?;
        let when = |condition, layer| if condition { layer } else { 0 };
        self.report.landlock_abi = landlock.abi;
        self.report.layers |= LAYER_NO_NEW_PRIVS
            | LAYER_CAPS_DROPPED
            | LAYER_SECCOMP
            | when(landlock.active, LAYER_LANDLOCK)
            | when(landlock.net, LAYER_LANDLOCK_NET)
            | when(denied, LAYER_MDWE)
            | when(limited, LAYER_RLIMITS);
        let missing = (plan.required_layers() | floor_layers(plan.network()))
            & !self.report.layers
            & !self.place.elsewhere();
        if missing != 0 {
            return Err(Failure {
                detail: missing,
                ..Failure::new(Step::Require, 0, NO_RECORD)
            });
        }
        wait::block_signals(0).during(Step::Process, NO_RECORD)?;
        let (arguments, environment) = (self.arguments, self.environment);
        if let Place::Runtime(_) = self.place {
            SeccompLoaded::load_for_runtime(&no_new_privs, &caps, &landlock)?;
            self.report.arrived = true;
            // SAFETY: both lists were filled in `start` with static strings and end in a null pointer.
            let errno = unsafe { process::execve(stage::PROGRAM, arguments, environment) };
            return Err(Failure::new(Step::RuntimeStart, errno.raw(), NO_RECORD));
        }
        let seccomp = SeccompLoaded::load(plan, &no_new_privs, &caps, &landlock)?;
        if let (Some(entrance), Some(listener)) = (self.entrance, &seccomp.listener) {
            net::send_packet(entrance, &[0], &[listener.borrow()])
                .during(Step::PlanFilter, NO_RECORD)?;
        }
        self.report.arrived = true;
        let proofs = (no_new_privs, caps, landlock, seccomp);
        // SAFETY: both lists were filled in `start` with strings of the plan and end in a null pointer.
        Err(unsafe { execute(plan, arguments, environment, proofs) })
    }
}

/// Everything that must be in place before any code of the agent runs.
type Proofs = (NoNewPrivs, CapsDropped, LandlockEnforced, SeccompLoaded);

/// Executes the program, looked up in `PATH` if its name holds no slash. Takes every proof; returns only on failure.
///
/// # Safety
/// Both lists are of pointers to strings that end in NUL, and end in a null pointer.
unsafe fn execute(
    plan: &Plan<'_>,
    arguments: *const *const c_char,
    environment: *const *const c_char,
    _: Proofs,
) -> Failure {
    let mut program = (NO_RECORD, c"");
    let mut search = DEFAULT_PATH;
    for (at, record) in (0u16..).zip(plan.records()) {
        match record {
            Record::Arg(arg) if program.0 == NO_RECORD => program = (at, arg),
            Record::Env(variable) => {
                search = variable.to_bytes().strip_prefix(b"PATH=").unwrap_or(search)
            }
            _ => {}
        }
    }
    let (at, program) = program;
    // SAFETY: the caller's promise.
    let try_path = |path: &CStr| unsafe { process::execve(path, arguments, environment) };
    let fail = |errno: Errno| Failure::new(Step::Exec, errno.raw(), at);
    if program.is_empty() {
        return fail(Errno::NOENT);
    }
    if program.to_bytes().contains(&b'/') {
        return fail(try_path(program));
    }
    let mut buffer = PathBuffer::new();
    let mut worst = Errno::NOENT;
    for directory in search
        .split(|byte| *byte == b':')
        .filter(|directory| !directory.is_empty())
    {
        let Ok(path) = buffer.join(&[directory, b"/", program.to_bytes()]) else {
            continue;
        };
        match try_path(path) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCES => worst = Errno::ACCES,
            errno => return fail(errno),
        }
    }
    fail(worst)
}

fn enter_directory(plan: &Plan<'_>) -> Outcome<()> {
    let at = (0u16..)
        .zip(plan.records())
        .find(|(_, record)| matches!(record, Record::Cwd(_)));
    let resolve = fs::RESOLVE_NO_SYMLINKS | fs::RESOLVE_NO_MAGICLINKS;
    fs::openat2(
        FdRef::CWD,
        plan.cwd(),
        fs::O_PATH | fs::O_DIRECTORY,
        0,
        resolve,
    )
    .and_then(|directory| fs::fchdir(directory.borrow()))
    .during(Step::Cwd, at.map_or(NO_RECORD, |(at, _)| at))
}

/// Whether there was anything to limit. runsc has no more than its core limited: the rest is for the program in it, of which
/// gVisor's kernel in turn knows neither signal and message queues nor priorities.
fn limit_resources(plan: &Plan<'_>, place: Place) -> Outcome<bool> {
    const CORE: u32 = 4;
    const SIGPENDING_TO_RTPRIO: core::ops::RangeInclusive<u32> = 11..=14;
    let mut limited = false;
    for (at, record) in (0u16..).zip(plan.records()) {
        let Record::Rlimit {
            resource,
            soft,
            hard,
        } = record
        else {
            continue;
        };
        let skipped = match place {
            Place::Host => false,
            Place::Runtime(_) => resource != CORE,
            Place::Sentry => SIGPENDING_TO_RTPRIO.contains(&resource),
        };
        if !skipped {
            process::lower_rlimit(resource, soft, hard).during(Step::Rlimit, at)?;
            limited = true;
        }
    }
    Ok(limited)
}
