//! Real processes side by side: forked, pinned, met at a barrier, watched, and gone afterwards.
//!
//! The caller has one thread, so its children may do what they like. Each child runs one side, writes what it found as
//! JSON into a pipe, and leaves. When one fails or takes too long the others are killed by their pid, and they die with
//! the caller in any case (PR_SET_PDEATHSIG).

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use serde_json::Value;

/// Nothing measured here takes this long unless it hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

/// The CPU of the sending side and that of the receiving one.
pub const SENDER_CPU: usize = 0;
pub const RECEIVER_CPU: usize = 1;

/// Zeroed memory, shared with all children made while it lives.
#[derive(Debug)]
pub struct Shared {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Shared {
    pub fn new(words: usize) -> Result<Self> {
        // SAFETY: a null hint lets the kernel choose an unused range, so no existing memory is touched; the range
        // belongs to the returned value, which alone unmaps it.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                words * 8,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
            )
        };
        let start = start.context("map memory for both processes")?;
        let start = NonNull::new(start.cast()).context("mmap gave null")?;
        Ok(Self { start, words })
    }

    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: `start` is page-aligned and maps `words * 8` zeroed bytes until `self` is dropped. Other processes
        // write them at any time, which AtomicU64 permits.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new`, and slices of it borrow from `self`.
        if let Err(errno) = unsafe { munmap(self.start.as_ptr().cast(), self.words * 8) } {
            panic!("munmap of a mapping of our own: {errno}");
        }
    }
}

/// A barrier in memory that all sides share.
#[derive(Debug)]
pub struct Meet<'a> {
    arrived: &'a AtomicU64,
    sides: u64,
    round: u64,
}

impl Meet<'_> {
    /// Waits until every side has come here.
    pub fn wait(&mut self) {
        self.round += 1;
        let all = self.sides * self.round;
        self.arrived.fetch_add(1, Ordering::AcqRel);
        while self.arrived.load(Ordering::Acquire) < all {
            std::thread::yield_now();
        }
    }
}

type Part<'a> = Box<dyn FnOnce(&mut Meet<'_>) -> Result<Value> + 'a>;

/// What one process does: the CPU it is pinned to, and its part.
pub struct Side<'a> {
    cpu: usize,
    part: Part<'a>,
}

impl<'a> Side<'a> {
    pub fn new(cpu: usize, part: impl FnOnce(&mut Meet<'_>) -> Result<Value> + 'a) -> Self {
        Self {
            cpu,
            part: Box::new(part),
        }
    }
}

/// A child, killed and reaped on drop.
struct Actor {
    pid: Pid,
    pidfd: OwnedFd,
    said: File,
    reaped: bool,
}

impl Drop for Actor {
    fn drop(&mut self) {
        if self.reaped {
            return;
        }
        // It may have ended by itself meanwhile; either way it is reaped next.
        let killed = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let waited = waitpid(Some(self.pid), WaitOptions::empty());
        if let (Err(errno), _) | (_, Err(errno)) = (killed, waited) {
            eprintln!("end process {:?}: {errno}", self.pid);
        }
    }
}

/// Runs all sides at once, each in a process of its own, and gives what each found, in order.
pub fn play(sides: Vec<Side<'_>>) -> Result<Vec<Value>> {
    crate::clock::calibrate();
    let count = sides.len() as u64;
    let shared = Shared::new(512)?;
    let mut actors = Vec::new();
    for side in sides {
        let meet = Meet {
            arrived: &shared.words()[0],
            sides: count,
            round: 0,
        };
        actors.push(start(side, meet)?);
    }
    let deadline = Instant::now() + WATCHDOG;
    let mut found: Vec<Option<Value>> = actors.iter().map(|_| None).collect();
    while let Some(index) = next_ended(&actors, deadline)? {
        found[index] = Some(finish(&mut actors[index])?);
    }
    found
        .into_iter()
        .map(|value| value.context("a process ended without a word"))
        .collect()
}

fn start(side: Side<'_>, mut meet: Meet<'_>) -> Result<Actor> {
    let (said, mut say) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map(|(read, write)| (File::from(read), File::from(write)))
        .context("make a pipe")?;
    let parent = rustix::process::getpid();
    // SAFETY: the driver has one thread, so the child's copy of every lock and allocation is whole; it leaves by `_exit`.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("fork"),
        0 => {
            drop(said);
            let code = match perform(side, &mut meet, parent) {
                Ok(value) => i32::from(say.write_all(value.to_string().as_bytes()).is_err()),
                Err(error) => {
                    drop(say.write_all(format!("{error:#}").as_bytes()));
                    1
                }
            };
            // SAFETY: ends this process at once, without the parent's destructors and exit handlers.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let pid = Pid::from_raw(pid).context("fork gave no pid")?;
            let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("open a pidfd")?;
            Ok(Actor {
                pid,
                pidfd,
                said,
                reaped: false,
            })
        }
    }
}

fn perform(side: Side<'_>, meet: &mut Meet<'_>, parent: Pid) -> Result<Value> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .context("ask to die with the parent")?;
    if rustix::process::getppid() != Some(parent) {
        bail!("the driver is gone");
    }
    pin(side.cpu)?;
    let part = std::panic::AssertUnwindSafe(|| (side.part)(meet));
    std::panic::catch_unwind(part).unwrap_or_else(|_| bail!("panicked"))
}

/// Binds the calling thread, and the threads that it starts from now on, to one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("pin to CPU {cpu}; two CPUs are needed, numbered 0 and 1"))
}

/// Index of a child that has ended and was not reaped yet; nothing when all were.
fn next_ended(actors: &[Actor], deadline: Instant) -> Result<Option<usize>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let living: Vec<usize> = (0..actors.len()).filter(|n| !actors[*n].reaped).collect();
    if living.is_empty() {
        return Ok(None);
    }
    loop {
        let mut fds: Vec<PollFd<'_>> = living
            .iter()
            .map(|n| PollFd::new(&actors[*n].pidfd, PollFlags::IN))
            .collect();
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => bail!("not done after {WATCHDOG:?}"),
            Ok(_) => {
                let ended = fds.iter().position(|fd| !fd.revents().is_empty());
                return Ok(ended.map(|at| living[at]));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context("wait for the processes"),
        }
    }
}

fn finish(actor: &mut Actor) -> Result<Value> {
    let (_, status) = waitpid(Some(actor.pid), WaitOptions::empty())
        .context("reap a process")?
        .context("a process that had ended was not there")?;
    actor.reaped = true;
    let mut text = String::new();
    actor
        .said
        .read_to_string(&mut text)
        .context("read what a process found")?;
    match status.exit_status() {
        Some(0) => serde_json::from_str(&text).with_context(|| format!("a process said {text:?}")),
        Some(_) => bail!("{text}"),
        None => bail!(
            "a process was killed by signal {:?}",
            status.terminating_signal()
        ),
    }
}
