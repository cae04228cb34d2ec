//! The kernel's audit, of which agentd hears what Landlock refuses: asked for by `--kernel-audit`,
//! turned on where it is off, turned off again at the end (ADR 40).
//!
//! The socket is made while the privileges for it are still there, and handed to agentd, which
//! reads it; nothing is read here. A host whose audit is on is left as it is. Where this process
//! turns it on, tasks made from then on are kept out of system call audit first, and what was set
//! before is noted in [`NOTE`] under a lock that every broker with a share in it holds: the last
//! one to leave restores it, and one that starts after a crash finds the note. The note and audit's
//! state both end with the host.
//!
//! Of the rights `CAP_AUDIT_CONTROL` stays permitted: effective for the moment in which the kernel
//! is asked how many records it has lost, and at the end.

use crate::failure::failed;
use crate::log::log;
use agentd_broker::protocol::{ErrorCode, Failure, Mode, Reply};
use agentd_kernel::audit::record::{self, Record};
use agentd_kernel::audit::{self, Control, Enabled, Limits};
use agentd_kernel::fdpass::{self, Wait};
use agentd_kernel::sys::process;
use agentd_kernel::sys::security::landlock::{self, Logging};
use caps::{CapSet, Capability};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::process::WaitOptions;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::{Duration, Instant};

/// What audit was set to before the first broker turned it on; empty when none has.
const NOTE: &str = "/run/agentd-audit";
/// A record is there within a few milliseconds of what it tells of.
const PATIENCE: Duration = Duration::from_secs(2);
/// While a broker has it on. The rate is what agentd reads; more is refused all the same and counted by the kernel. Nobody on
/// the host waits for room: whoever writes another record would, with an agent's flood before it.
const LIMITS: Limits = Limits {
    rate: 10_000,
    backlog: 8192,
    backlog_wait: 0,
};

/// Whether the kernel's audit is heard.
#[derive(Debug)]
pub enum Audit {
    Heard(Heard),
    /// And why not.
    Absent(String),
}

#[derive(Debug)]
pub struct Heard {
    /// On which Landlock's records arrive, and no others.
    socket: OwnedFd,
    /// The note, locked, where a broker turned it on.
    share: Option<File>,
    /// Records that the kernel had lost before.
    before: u32,
}

impl Audit {
    /// Joins the listeners, and turns audit on where it is off. Needs every privilege that root has.
    pub fn hear(mode: Mode, wanted: bool) -> Self {
        if mode == Mode::User {
            return Self::Absent(
                "the kernel's audit is root's to hear; this agentd runs as a user".into(),
            );
        }
        if !wanted {
            return Self::Absent(
                "the kernel's audit is not listened to: set kernel_audit = \"on\" under [daemon] (for a broker under systemd, \
                 --kernel-audit in a drop-in) and start agentd and its broker again"
                    .into(),
            );
        }
        match Heard::new() {
            Ok(heard) => Self::Heard(heard),
            Err(why) => {
                log!("--kernel-audit: {why}");
                Self::Absent(why)
            }
        }
    }

    /// Takes over what the program that this one replaced had, from the descriptor that [`Audit::pass`] made.
    pub fn take_over(passed: &OwnedFd) -> Self {
        let mut before = [0; 4];
        let received = fdpass::receive(passed.as_fd(), &mut before, 2, Wait::AsSocket);
        let mut fds = match received {
            Ok(received) => received.fds.into_iter(),
            Err(error) => {
                return Self::Absent(format!("taking over from the version before: {error}"));
            }
        };
        match fds.next() {
            Some(socket) => Self::Heard(Heard {
                socket,
                share: fds.next().map(File::from),
                before: u32::from_ne_bytes(before),
            }),
            None => Self::Absent("the version before handed over no socket".into()),
        }
    }

    /// A descriptor from which the next program can take it over.
    pub fn pass(&self) -> io::Result<Option<OwnedFd>> {
        let Self::Heard(heard) = self else {
            return Ok(None);
        };
        let (ours, theirs) = fdpass::seqpacket_pair()?;
        let mut fds = vec![heard.socket.as_fd()];
        fds.extend(heard.share.as_ref().map(AsFd::as_fd));
        fdpass::send(ours.as_fd(), &heard.before.to_ne_bytes(), &fds)?;
        Ok(Some(theirs))
    }

    /// Whether `CAP_AUDIT_CONTROL` is needed later.
    pub fn keeps_control(&self) -> bool {
        matches!(self, Self::Heard(_))
    }

    /// Records that the kernel has lost since this broker listens; those that found a listener's socket full are not among them.
    pub fn lost(&self) -> Result<u64, Failure> {
        let Self::Heard(heard) = self else {
            return Ok(0);
        };
        let status = with_control(|control| control.status());
        let status = status
            .map_err(|error| failed(ErrorCode::Unsupported, "asking the kernel's audit", &error))?;
        // The kernel's counter wraps.
        Ok(status.lost.wrapping_sub(heard.before).into())
    }

    /// The answer to [`agentd_broker::protocol::Request::Audit`].
    pub fn hand_over(&self) -> (Reply, Vec<OwnedFd>) {
        match self {
            Self::Absent(why) => (Reply::Reason(why.clone()), Vec::new()),
            Self::Heard(heard) => match heard.socket.try_clone() {
                Ok(socket) => (Reply::Done, vec![socket]),
                Err(error) => (
                    Reply::Reason(format!("duplicating the audit socket: {error}")),
                    Vec::new(),
                ),
            },
        }
    }

    /// Restores what was before, unless another broker still listens or an audit daemon has come. The orderly end of the
    /// broker; whoever ends otherwise leaves the note to the next one.
    pub fn leave(&self) {
        let Self::Heard(Heard {
            share: Some(note), ..
        }) = self
        else {
            return;
        };
        if let Err(error) = with_control(|control| restore(note, control)) {
            log!("the kernel's audit stays on: {error}; `auditctl -e 0` turns it off");
        }
    }
}

impl Heard {
    fn new() -> Result<Self, String> {
        let abi = landlock::abi();
        if abi < landlock::LOGGING_ABI {
            return Err(format!(
                "this kernel's Landlock (ABI {abi}) tells its audit nothing: from ABI {} on (Linux 6.15) it does",
                landlock::LOGGING_ABI
            ));
        }
        let call = |what: &'static str| {
            move |error: io::Error| match error.raw_os_error() {
                Some(libc::EPERM | libc::ECONNREFUSED) => format!(
                    "{what}: {error}: it takes CAP_AUDIT_CONTROL and CAP_AUDIT_READ, outside of containers"
                ),
                Some(libc::EPROTONOSUPPORT) => format!("{what}: this kernel has no audit"),
                _ => format!("{what}: {error}"),
            }
        };
        let control = Control::open().map_err(call("opening the kernel's audit"))?;
        // Before the note: whoever is refused must not hold it while another broker leaves, which would count on it.
        control
            .status()
            .map_err(call("asking the kernel's audit"))?;
        let socket = audit::join().map_err(call("listening to the kernel's audit"))?;
        let note = open_note().map_err(|error| format!("{NOTE}: {error}"))?;
        // Whoever restores what was before has it alone for that moment.
        flock(&note, FlockOperation::LockShared).map_err(|errno| format!("{NOTE}: {errno}"))?;
        let status = control
            .status()
            .map_err(call("asking the kernel's audit"))?;
        let before = read_note(&note).map_err(|error| format!("{NOTE}: {error}"))?;
        let share = match (status.enabled, before) {
            (Enabled::Off, _) => {
                control
                    .never_audit_tasks()
                    .map_err(call("adding the audit rule never,task"))?;
                write_note(&note, status.limits).map_err(|error| format!("{NOTE}: {error}"))?;
                control
                    .set(true, LIMITS)
                    .map_err(call("turning the kernel's audit on"))?;
                log!(
                    "the kernel's audit is on until this broker ends; no new task's system calls are audited"
                );
                Some(note)
            }
            // By a broker that is there, or that died.
            (Enabled::On, Some(_)) => Some(note),
            (Enabled::On | Enabled::Locked, _) => None,
        };
        if let Err(why) = try_hear(&socket) {
            if let Some(note) = &share {
                restore(note, &control)
                    .map_err(|error| format!("{why}; and it stays on: {error}"))?;
            }
            return Err(why);
        }
        Ok(Self {
            socket,
            share,
            before: status.lost,
        })
    }
}

/// Has Landlock refuse something, in a child that ends, and waits for the record. Only listeners in the host's first network
/// namespace hear anything, and a rule may keep Landlock's records from everybody: nothing else says so.
fn try_hear(socket: &OwnedFd) -> Result<(), String> {
    const SIGNALS: u64 = 2;
    let own = rustix::process::getpid().as_raw_pid();
    // SAFETY: a fork in a process with a single thread: the child's memory is whole, no lock is held in it.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(format!("fork: {}", io::Error::last_os_error())),
        0 => {
            let domain = landlock::create(0, 0, SIGNALS)
                .and_then(|rules| landlock::restrict_self(rules.borrow(), Logging::Caller));
            if domain.is_ok() {
                // Refused is what it is to be; signal 0 would do nothing.
                process::kill(own, 0).unwrap_or(());
            }
            // SAFETY: ends this process at once, without what the parent has to run at its own end.
            unsafe { libc::_exit(0) }
        }
        child => rustix::process::Pid::from_raw(child),
    };
    let until = Instant::now() + PATIENCE;
    let mut heard = false;
    let mut message = vec![0; audit::MAX_RECORD];
    while !heard && Instant::now() < until {
        match rustix::net::recv(socket, &mut message[..], RecvFlags::empty()) {
            Ok((len, _)) => {
                let record = record::parse_message(&message[..len]);
                heard = matches!(record, Some(Record::Access(access)) if access.signalled() == Some(own as u32));
            }
            Err(Errno::AGAIN) => {
                let left = until.saturating_duration_since(Instant::now());
                let timeout = Timespec {
                    tv_sec: left.as_secs() as i64,
                    tv_nsec: left.subsec_nanos().into(),
                };
                let mut fds = [PollFd::new(socket, PollFlags::IN)];
                match poll(&mut fds, Some(&timeout)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(format!("poll: {errno}")),
                }
            }
            Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(errno) => return Err(format!("hearing the kernel's audit: {errno}")),
        }
    }
    while let Err(Errno::INTR) = rustix::process::waitpid(child, WaitOptions::empty()) {}
    if heard {
        return Ok(());
    }
    Err(
        "the kernel's audit is on, and nothing is heard of what Landlock refuses: agentd must run in the host's network namespace, \
         and no audit rule (`auditctl -l`) may exclude LANDLOCK_ACCESS"
            .into(),
    )
}

/// Of root alone, and open for as long as there is a share in it.
fn open_note() -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(NOTE)
}

fn read_note(mut note: &File) -> io::Result<Option<Limits>> {
    let mut text = String::new();
    note.rewind()?;
    note.take(128).read_to_string(&mut text)?;
    Ok(parse_note(&text))
}

fn write_note(mut note: &File, before: Limits) -> io::Result<()> {
    let Limits {
        rate,
        backlog,
        backlog_wait,
    } = before;
    note.set_len(0)?;
    note.rewind()?;
    note.write_all(format!("{rate} {backlog} {backlog_wait}\n").as_bytes())
}

fn parse_note(text: &str) -> Option<Limits> {
    let mut numbers = text.split_whitespace().map(|word| word.parse().ok());
    let mut next = || numbers.next().flatten();
    Some(Limits {
        rate: next()?,
        backlog: next()?,
        backlog_wait: next()?,
    })
}

/// Makes the right to ask and to set effective for as long as `work` takes.
fn with_control<T>(work: impl FnOnce(&Control) -> io::Result<T>) -> io::Result<T> {
    let right = Capability::CAP_AUDIT_CONTROL;
    caps::raise(None, CapSet::Effective, right).map_err(io::Error::other)?;
    let done = Control::open().and_then(|control| work(&control));
    caps::drop(None, CapSet::Effective, right).map_err(io::Error::other)?;
    done
}

fn restore(note: &File, control: &Control) -> io::Result<()> {
    match flock(note, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        // Another broker listens, and will restore it.
        Err(Errno::WOULDBLOCK) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    let Some(before) = read_note(note)? else {
        return Ok(());
    };
    let status = control.status()?;
    // With an audit daemon it is the host's now.
    if status.enabled == Enabled::On && status.daemon_pid == 0 {
        control.set(false, before)?;
    }
    note.set_len(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_before_is_read_back_and_an_empty_note_is_none() {
        let note = tempfile::tempfile().expect("a file");
        assert_eq!(read_note(&note).expect("empty"), None);
        let before = Limits {
            rate: 0,
            backlog: 64,
            backlog_wait: 15_000,
        };
        write_note(&note, before).expect("write");
        assert_eq!(read_note(&note).expect("read"), Some(before));
        assert_eq!(parse_note("1 2"), None);
        assert_eq!(parse_note("1 2 x"), None);
    }

    #[test]
    fn nobody_listens_for_a_user_or_unasked() {
        for (mode, wanted, why) in [
            (Mode::User, true, "runs as a user"),
            (Mode::Root, false, "kernel_audit = \"on\""),
        ] {
            let audit = Audit::hear(mode, wanted);
            let (reply, fds) = audit.hand_over();
            assert!(matches!(reply, Reply::Reason(text) if text.contains(why)));
            assert!(fds.is_empty() && !audit.keeps_control());
            assert!(audit.pass().expect("nothing to pass").is_none());
        }
    }

    #[test]
    fn a_program_in_its_place_takes_socket_and_share_over() {
        let null = || File::open("/dev/null").expect("null");
        for share in [None, Some(null())] {
            let kept = share.is_some();
            let audit = Audit::Heard(Heard {
                socket: null().into(),
                share,
                before: 7,
            });
            let passed = audit.pass().expect("pass").expect("a descriptor");
            let taken = Audit::take_over(&passed);
            let Audit::Heard(heard) = &taken else {
                panic!("{taken:?}");
            };
            assert_eq!((heard.share.is_some(), heard.before), (kept, 7));
            assert_eq!(taken.hand_over().1.len(), 1);
        }
    }
}
