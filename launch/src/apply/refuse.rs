//! The init's part in refusing: it answers the calls that the plan's filter holds, each with EPERM, and tells of them.
//!
//! The answer comes from here and not from agentd, so it comes while agentd restarts or is dead, and an agent that does nothing
//! but forbidden calls uses up its own processor time, not the daemon's. The listener never leaves the sandbox's init, which
//! dies with the sandbox and not before. Never waits for a reader: what the pipe has no room for is counted.
//!
//! No capabilities, one thread, no allocation.

use core::ffi::CStr;

use agentd_kernel::sys::notify::{self, HeldCall};
use agentd_kernel::sys::wait::{self, POLLIN, POLLOUT, Poll};
use agentd_kernel::sys::{Errno, Fd, FdRef, fs, net};

use super::{During, Outcome};
use crate::refusal::{Refusal, RefusedCall};
use crate::status::{NO_RECORD, Step};

/// The way out of the program's process, while it is still ours, for the listener.
pub(super) struct Passage {
    ours: Fd,
    theirs: Fd,
}

impl Passage {
    pub(super) fn new() -> Outcome<Passage> {
        let (ours, theirs) = net::packet_pair().during(Step::PlanFilter, NO_RECORD)?;
        Ok(Passage { ours, theirs })
    }

    /// The end that the program's process hands the listener to, before it executes the program, which closes both.
    pub(super) fn entrance(&self) -> FdRef<'_> {
        self.theirs.borrow()
    }

    /// The listener, if one was handed over. Does not wait: the program has been executed.
    pub(super) fn leave(self) -> Outcome<Option<Fd>> {
        let mut packet = [0; 1];
        let received = net::receive_packet(self.ours.borrow(), &mut packet);
        let received = received.during(Step::PlanFilter, NO_RECORD)?;
        Ok(received.and_then(|packet| packet.fd))
    }
}

/// The listener, and who is told.
pub(super) struct Refuser {
    /// `None` when nobody is left under the filter.
    listener: Option<Fd>,
    /// `None` once nobody can read any more.
    told: Option<Fd>,
    lost: u64,
    /// The last record that fitted said less.
    lost_untold: bool,
}

impl Refuser {
    /// Also the end that agentd reads.
    pub(super) fn new(listener: Fd) -> Outcome<(Refuser, Fd)> {
        let (reader, writer) = fs::pipe_nonblocking().during(Step::PlanFilter, NO_RECORD)?;
        let refuser = Refuser {
            listener: Some(listener),
            told: Some(writer),
            lost: 0,
            lost_untold: false,
        };
        Ok((refuser, reader))
    }

    /// What to wait for: calls, and room for a number that is still to be told.
    pub(super) fn polls(&self) -> [Poll; 2] {
        let on = |fd: &Option<Fd>, events| {
            fd.as_ref()
                .map_or(Poll::off(), |fd| Poll::on(fd.borrow(), events))
        };
        let told = match self.lost_untold {
            true => on(&self.told, POLLOUT),
            false => Poll::off(),
        };
        [on(&self.listener, POLLIN), told]
    }

    /// After a wait for [`Self::polls`].
    pub(super) fn attend(&mut self, [listener, told]: [u16; 2]) {
        if listener & POLLIN != 0 {
            self.answer();
        } else if listener != 0 {
            self.listener = None;
        }
        if told != 0 && self.lost_untold {
            self.tell(None);
        }
    }

    /// Answers one call. The next one is told by the next poll, like everything else that the init looks at.
    fn answer(&mut self) {
        let Some(listener) = self.listener.as_ref().map(Fd::borrow) else {
            return;
        };
        match notify::receive_call(listener) {
            Ok(Some(held)) => {
                // While the thread still waits for its answer, its number is its own.
                let comm = name_of(held.pid);
                let answered = notify::refuse_call(listener, &held, Errno::PERM);
                self.tell(Some((held, comm)));
                // Closed, it refuses by the kernel's hand from here on.
                if answered.is_err() {
                    self.listener = None;
                }
            }
            Ok(None) => {}
            Err(_) => self.listener = None,
        }
    }

    fn tell(&mut self, call: Option<(HeldCall, [u8; 16])>) {
        let Some(told) = &self.told else { return };
        let refusal = Refusal {
            time_ns: wait::boot_ns(),
            lost: self.lost,
            call: call.map(|(held, comm)| RefusedCall {
                pid: held.pid,
                number: held.number,
                args: [held.args[0], held.args[1], held.args[2]],
                comm,
            }),
        };
        match fs::write(told.borrow(), &refusal.encode()) {
            Ok(_) => self.lost_untold = false,
            Err(Errno::AGAIN) => {
                self.lost += u64::from(call.is_some());
                self.lost_untold = true;
            }
            Err(_) => self.told = None,
        }
    }
}

/// The thread's name, from the sandbox's procfs; nothing where it has none.
fn name_of(pid: u32) -> [u8; 16] {
    const BEFORE: &[u8] = b"/proc/";
    const AFTER: &[u8] = b"/comm\0";
    let mut path = [0; BEFORE.len() + 10 + AFTER.len()];
    path[..BEFORE.len()].copy_from_slice(BEFORE);
    let digits = pid.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut rest = pid;
    for at in (BEFORE.len()..BEFORE.len() + digits).rev() {
        path[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    path[BEFORE.len() + digits..][..AFTER.len()].copy_from_slice(AFTER);
    let mut comm = [0; 17];
    let read = CStr::from_bytes_until_nul(&path)
        .map_err(|_| Errno::INVAL)
        .and_then(|path| fs::openat2(FdRef::CWD, path, fs::O_RDONLY, 0, fs::RESOLVE_NO_SYMLINKS))
        .and_then(|file| fs::read(file.borrow(), &mut comm))
        .unwrap_or(0);
    let mut name = [0; 16];
    // Its last byte is a new line.
    let len = read.saturating_sub(1).min(name.len());
    name[..len].copy_from_slice(&comm[..len]);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_thread_is_what_its_procfs_says() {
        let own = std::fs::read_to_string("/proc/self/comm").expect("a name");
        let name = name_of(std::process::id());
        let len = name.iter().position(|byte| *byte == 0).unwrap_or(16);
        assert_eq!(&name[..len], own.trim_end().as_bytes());
        assert_eq!(name_of(u32::MAX), [0; 16]);
    }
}
