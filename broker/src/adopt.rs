//! Taking over an agent that an earlier worker launched, from agentd, which says that it is one.
//!
//! Nothing that agentd says gives the broker power over a process that is not its agent. The kernel is asked instead, while
//! the pidfd shows that the process lives: it must be a child of this worker's own parent (which inherits the inits of a
//! worker that dies), pid 1 of its own pid namespace, run as the slot's kernel uid (in user mode: as this user), and be in
//! the slot's cgroup, which is found by its name in the broker's own subtree. What is left of agentd's word, the caller's
//! ids and the layers, is for the record and decides nothing.
//!
//! Opens no path that agentd names; never waits. A refusal says which of these does not hold.

use crate::agents::{Agent, Grace, Parentage, State};
use crate::failure::{failed, refused};
use crate::launch::Workshop;
use agentd_broker::protocol::{ErrorCode, Failure, Launched, Mode, RESERVED_ID_BASE};
use agentd_kernel::fdpass;
use agentd_kernel::pidfd::PidFd;
use agentd_kernel::proc_status::ProcStatus;
use agentd_launch::floor::MAX_LIFELINE_GRACE_MS;
use agentd_launch::status::{Control, Lifeline};
use rustix::net::{AddressFamily, SocketType, sockopt};
use rustix::process::{getegid, geteuid, getppid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Verifies the agent and renews its init's lifeline to the broker. `fds` as they came: pidfd, status socket, what to keep.
pub fn adopt(workshop: &Workshop, info: &Launched, fds: Vec<OwnedFd>) -> Result<Agent, Failure> {
    let mut fds = fds.into_iter();
    let (Some(pidfd), Some(status)) = (fds.next(), fds.next()) else {
        return Err(refused(
            ErrorCode::Malformed,
            "adopt carries the init's pidfd, its status socket, and what to keep",
        ));
    };
    let slot = info.slot;
    let is_packet_socket = sockopt::socket_domain(&status) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&status) == Ok(SocketType::SEQPACKET);
    if !is_packet_socket {
        return Err(refused(
            ErrorCode::Malformed,
            "the second descriptor of an adopt is the init's status socket",
        ));
    }
    let pidfd = PidFd::from(pidfd);
    let ask = |what| move |error: io::Error| failed(ErrorCode::Adopt, what, &error);
    let number = pidfd.pid().map_err(ask("reading the pidfd's pid"))?;
    let Some(pid) = number else {
        let text = format!("the init of slot {slot} has exited: there is nothing to adopt");
        return Err(refused(ErrorCode::Adopt, text));
    };
    let process = ProcStatus::read(pid).map_err(ask("reading the init's /proc/PID/status"))?;
    let group = workshop.subtree.existing(slot.0);
    let group = group.filter(|group| group.contains(pid));
    // Last: what was read by number above was about the process of the pidfd if that is still alive.
    if pidfd.has_exited().map_err(ask("polling the pidfd"))? {
        let text = format!("the init of slot {slot} has exited: there is nothing to adopt");
        return Err(refused(ErrorCode::Adopt, text));
    }

    let (uid, gid) = match workshop.mode {
        Mode::Root => (RESERVED_ID_BASE + slot.0, RESERVED_ID_BASE + slot.0),
        Mode::User => (geteuid().as_raw(), getegid().as_raw()),
    };
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    let wrong = if info.pid != pid {
        format!("the pidfd is of process {pid}, not {}", info.pid)
    } else if !process.is_init_below() {
        format!("process {pid} is not the init of a pid namespace")
    } else if process.uids != [uid; 4] {
        let is = process.uids[0];
        format!("process {pid} runs as uid {is}, an agent in slot {slot} as uid {uid}")
    } else if process.parent != parent {
        format!("process {pid} is not an orphan of this broker's former worker")
    } else if info.grace_ms > MAX_LIFELINE_GRACE_MS {
        format!(
            "a grace of {} ms is more than any plan may ask for",
            info.grace_ms
        )
    } else {
        String::new()
    };
    if !wrong.is_empty() {
        return Err(refused(ErrorCode::Adopt, wrong));
    }
    let Some(group) = group else {
        let text = format!("process {pid} is not in this broker's cgroup of slot {slot}");
        return Err(refused(ErrorCode::Adopt, text));
    };

    workshop.plane.admit(slot, group.id())?;
    let renewal = Control::Lifeline {
        which: Lifeline::Broker,
    };
    let lifeline = workshop.launcher.lifeline();
    fdpass::try_send(status.as_fd(), &renewal.encode(), &[lifeline])
        .map_err(ask("renewing the init's lifeline"))?;
    let cgroup_path = group.unified_path();
    let cgroup_path = cgroup_path.map(|path| path.as_os_str().as_bytes().to_vec());
    let info = Launched {
        host_uid: uid,
        host_gid: gid,
        cgroup_id: group.id(),
        cgroup_path: cgroup_path.unwrap_or_default(),
        ..info.clone()
    };
    Ok(Agent {
        info,
        parentage: Parentage::Adopted,
        pidfd,
        status,
        kept: fds.collect(),
        group: Some(group),
        meter: None,
        placeholders: None,
        grace: Grace::Whole,
        state: State::Running,
    })
}
