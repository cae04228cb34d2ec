//! The sandbox's init while the program runs: reaps everything, reports the program's state, passes signals on, and ends
//! the sandbox when the program has ended or its lifelines are gone.
//!
//! A successor of agentd or of the broker renews its lifeline over the status socket; whoever holds the other end of that
//! socket, which only those two ever do, is believed.
//!
//! It answers the system calls that the plan's filter holds for it ([`super::refuse`]).
//!
//! It has no capabilities. When it exits, the kernel kills whatever is left in the pid namespace.

use agentd_kernel::sys::net::Packet;
use agentd_kernel::sys::wait::{self, POLLERR, POLLHUP, POLLIN, POLLOUT, Poll};
use agentd_kernel::sys::{Errno, Fd, FdRef, fs, net, process};

use super::refuse::Refuser;
use super::{foreground, put_on_file, stdio};
use crate::parent::LIFELINES_LOST;
use crate::status::{Control, Lifeline, MESSAGE_LEN, Status, Target};

const SIGKILL: u32 = 9;
/// Messages obeyed between two looks at the children and the lifelines.
const MOST_AT_ONCE: usize = 64;

/// What a message was about.
enum Heard {
    /// A lifeline, which the last poll did not look at.
    Renewal(Lifeline),
    Other,
}

pub(super) struct Sandbox {
    status: Option<FdRef<'static>>,
    status_file: FdRef<'static>,
    /// agentd's and the broker's; `None` for one that is gone.
    lifelines: [Option<Fd>; 2],
    /// Set when one lifeline is gone: when the sandbox ends.
    deadline_ms: Option<u64>,
    grace_ms: u64,
    children: Fd,
    terminal: Option<Fd>,
    program: u32,
    /// Under gVisor: the init on its kernel, which has the program; `program` is runsc.
    sentry: Option<Fd>,
    /// This is that init.
    on_gvisor: bool,
    /// Answers the calls that the plan's filter holds.
    refuser: Option<Refuser>,
    /// A report that did not fit into the socket's buffer; a later one replaces it.
    unsent: Option<Status>,
    /// The code to exit with once the last report is out.
    ended: Option<i32>,
}

impl Sandbox {
    pub(super) fn new(
        status: FdRef<'static>,
        status_file: FdRef<'static>,
        lifelines: [Fd; 2],
        children: Fd,
        terminal: Option<Fd>,
        program: u32,
        grace_ms: u32,
    ) -> Sandbox {
        Sandbox {
            status: Some(status),
            status_file,
            lifelines: lifelines.map(Some),
            deadline_ms: None,
            grace_ms: grace_ms.into(),
            children,
            terminal,
            program,
            sentry: None,
            on_gvisor: false,
            refuser: None,
            unsent: None,
            ended: None,
        }
    }

    /// The program is on gVisor's kernel, and its init there is at the other end of `connection`.
    pub(super) fn of_sentry(self, connection: Fd) -> Sandbox {
        Sandbox {
            sentry: Some(connection),
            ..self
        }
    }

    /// The plan's filter holds calls, which this init refuses.
    pub(super) fn refusing(self, refuser: Refuser) -> Sandbox {
        Sandbox {
            refuser: Some(refuser),
            ..self
        }
    }

    /// This is the program's init on gVisor's kernel.
    pub(super) fn on_gvisor(self) -> Sandbox {
        Sandbox {
            on_gvisor: true,
            ..self
        }
    }

    /// Runs until the sandbox has no reason to exist any more. Returns the code to exit with.
    pub(super) fn run(&mut self) -> i32 {
        loop {
            // Nobody is left to tell when the socket is gone, so the last report does not wait for ever.
            if let Some(code) = self.ended
                && (self.unsent.is_none() || self.status.is_none())
            {
                return code;
            }
            let timeout = match self
                .deadline_ms
                .map(|deadline| deadline.saturating_sub(wait::now_ms()))
            {
                Some(0) => return LIFELINES_LOST,
                timeout => timeout,
            };
            let interest = if self.unsent.is_some() {
                POLLIN | POLLOUT
            } else {
                POLLIN
            };
            let [held, told] = match &self.refuser {
                Some(refuser) => refuser.polls(),
                None => [Poll::off(); 2],
            };
            let mut polls = [
                self.status.map_or(Poll::off(), |fd| Poll::on(fd, interest)),
                Self::watch(&self.lifelines[0]),
                Self::watch(&self.lifelines[1]),
                Poll::on(self.children.borrow(), POLLIN),
                self.sentry
                    .as_ref()
                    .map_or(Poll::off(), |fd| Poll::on(fd.borrow(), POLLIN)),
                held,
                told,
            ];
            if wait::poll(&mut polls, timeout).is_err() {
                return LIFELINES_LOST;
            }
            let [status, agentd, broker, children, sentry, held, told] =
                polls.map(|poll| poll.happened);
            // First: a renewal that waits counts before the end of the lifeline that it replaces.
            let renewed = if status & POLLIN != 0 {
                self.obey_all()
            } else {
                [false; 2]
            };
            let hung_up = [agentd, broker].into_iter().zip(renewed);
            for (lifeline, (happened, renewed)) in self.lifelines.iter_mut().zip(hung_up) {
                if happened != 0 && !renewed {
                    *lifeline = None;
                }
            }
            self.count_lifelines();
            // First: what the program's init says of its end is more than that runsc has ended.
            if sentry != 0 {
                self.hear_sentry();
            }
            if children != 0 {
                self.reap();
            }
            if let Some(refuser) = &mut self.refuser {
                refuser.attend([held, told]);
            }
            if status & (POLLHUP | POLLERR) != 0 {
                self.status = None;
            } else if status & POLLOUT != 0
                && let Some(unsent) = self.unsent.take()
            {
                self.report(unsent);
            }
        }
    }

    fn watch(lifeline: &Option<Fd>) -> Poll {
        lifeline
            .as_ref()
            .map_or(Poll::off(), |fd| Poll::on(fd.borrow(), 0))
    }

    fn count_lifelines(&mut self) {
        match self.lifelines.iter().flatten().count() {
            2 => self.deadline_ms = None,
            1 => {
                self.deadline_ms = self
                    .deadline_ms
                    .or_else(|| Some(wait::now_ms() + self.grace_ms))
            }
            _ => self.deadline_ms = Some(0),
        }
    }

    fn report(&mut self, status: Status) {
        let Some(socket) = self.status else { return };
        match net::send_packet(socket, &status.encode(), &[]) {
            Ok(()) => {}
            Err(Errno::AGAIN) => self.unsent = Some(status),
            Err(_) => self.status = None,
        }
    }

    fn reap(&mut self) {
        let mut record = [0; wait::SIGNAL_RECORD];
        // Of children's signals one record or many: they are asked below either way.
        let len = fs::read(self.children.borrow(), &mut record).unwrap_or(0);
        if let (wait::SIGNAL_RECORD, [a, b, c, d, ..]) = (len, record) {
            match u32::from_le_bytes([a, b, c, d]) {
                wait::SIGCHLD => {}
                from_terminal => self.signal(from_terminal, Target::Foreground),
            }
        }
        while let Ok(Some((pid, status))) = wait::next_child_event() {
            if pid != self.program || self.ended.is_some() {
                continue;
            }
            // Its init's last word may be on its way.
            if self.sentry.is_some() && !matches!(status & 0xff, 0x7f | 0xff) {
                self.hear_sentry();
                if self.ended.is_some() {
                    continue;
                }
            }
            match status & 0xff {
                0x7f => self.report(Status::Stopped {
                    signal: (status >> 8 & 0xff).cast_unsigned(),
                }),
                0xff => self.report(Status::Continued),
                0 => self.end(status, status >> 8 & 0xff),
                killed => self.end(status, 128 + (killed & 0x7f)),
            }
        }
    }

    fn end(&mut self, wait_status: i32, code: i32) {
        self.ended = Some(code);
        let none = wait::Usage {
            user_us: 0,
            system_us: 0,
            maxrss_kb: 0,
        };
        let usage = wait::children_usage().unwrap_or(none);
        let exited = Status::Exited {
            wait_status,
            utime_us: usage.user_us,
            stime_us: usage.system_us,
            maxrss_kb: usage.maxrss_kb,
        };
        put_on_file(self.status_file, &exited.encode());
        self.report(exited);
        if self.unsent.is_some() {
            // The init has to stay until it can report; nothing else has a reason to. Only an empty sandbox is an error.
            process::kill(-1, SIGKILL).unwrap_or(());
        }
    }

    /// What the program's init on gVisor's kernel has to say.
    fn hear_sentry(&mut self) {
        while let Some(sentry) = self.sentry.as_ref().map(Fd::borrow) {
            let mut packet = [0; MESSAGE_LEN];
            match net::receive_packet(sentry, &mut packet) {
                Ok(None) => return,
                Ok(Some(Packet { len: 0, .. })) | Err(_) => self.sentry = None,
                Ok(Some(Packet { len, .. })) => match packet.get(..len).and_then(Status::decode) {
                    Some(report @ (Status::Stopped { .. } | Status::Continued)) => {
                        self.report(report)
                    }
                    Some(Status::Exited { wait_status, .. }) if self.ended.is_none() => {
                        let code = match wait_status & 0x7f {
                            0 => wait_status >> 8 & 0xff,
                            signal => 128 + signal,
                        };
                        self.end(wait_status, code);
                    }
                    _ => {}
                },
            }
        }
    }

    /// Does what waits to be done, or as much of it as leaves time for the children. Which lifelines it renewed.
    fn obey_all(&mut self) -> [bool; 2] {
        let mut renewed = [false; 2];
        for _ in 0..MOST_AT_ONCE {
            match self.obey() {
                Some(Heard::Renewal(Lifeline::Agentd)) => renewed[0] = true,
                Some(Heard::Renewal(Lifeline::Broker)) => renewed[1] = true,
                Some(Heard::Other) => {}
                None => break,
            }
        }
        renewed
    }

    /// Does what agentd or the broker says; what is not a message is ignored. `None` when nothing was said.
    fn obey(&mut self) -> Option<Heard> {
        let mut packet = [0; MESSAGE_LEN + 1];
        match net::receive_packet(self.status?, &mut packet) {
            Ok(Some(Packet { len: 0, .. })) | Err(_) => self.status = None,
            Ok(Some(Packet { len, fd })) => match packet.get(..len).and_then(Control::decode) {
                Some(Control::Signal { signal, target }) => self.signal(signal, target),
                Some(Control::Lifeline { which }) if fd.is_some() => {
                    self.renew(which, fd);
                    return Some(Heard::Renewal(which));
                }
                Some(Control::Lifeline { .. }) | None => {}
            },
            Ok(None) => return None,
        }
        Some(Heard::Other)
    }

    /// Dead or alive, the next poll tells.
    fn renew(&mut self, which: Lifeline, lifeline: Option<Fd>) {
        let [agentd, broker] = &mut self.lifelines;
        match which {
            Lifeline::Agentd => *agentd = lifeline,
            Lifeline::Broker => *broker = lifeline,
        }
    }

    fn signal(&self, signal: u32, target: Target) {
        if let Some(sentry) = &self.sentry {
            // It can't be too full for a signal for long, and when it is gone so is the program.
            let control = Control::Signal { signal, target };
            return net::send_packet(sentry.borrow(), &control.encode(), &[]).unwrap_or(());
        }
        let program = self.program.cast_signed();
        let pid = match target {
            _ if self.ended.is_some() => return, // its pid may be someone else's by now
            Target::Main => program,
            Target::Foreground => {
                let group = stdio::foreground(self.terminal.as_ref().map(Fd::borrow));
                let group = group.map_or(program, u32::cast_signed);
                if self.on_gvisor {
                    foreground::settle(group);
                }
                -group
            }
            Target::All => -1,
        };
        // The only failure is that nobody is left to signal, and that is reported when it is reaped.
        process::kill(pid, signal).unwrap_or(());
    }
}
