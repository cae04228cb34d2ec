//! Waiting for gVisor: from `runsc` being executed to the program being executed in it.
//!
//! The program's side ([`super::inside`]) connects, executes the program and says which layers it found and set; the
//! connection stays, for signals in and reports out. What ends first ends the launch: runsc, or either lifeline. Runs in
//! the sandbox's init.

use agentd_kernel::sys::net::Packet;
use agentd_kernel::sys::wait::{self, POLLIN, Poll};
use agentd_kernel::sys::{Errno, Fd, fs, net};

use super::agent::Started;
use super::inside::LAYERS_INSIDE;
use super::{During, Outcome};
use crate::status::{Failure, MESSAGE_LEN, NO_RECORD, Status, Step};

/// Returns when the program runs, with what its side has told added to `started`, and the connection to it.
pub(super) fn await_program(
    listener: &Fd,
    children: &Fd,
    lifelines: &[Fd; 2],
    started: &mut Started,
) -> Outcome<Fd> {
    let connection = connection(listener, children, lifelines, started)?;
    loop {
        let mut polls = [Poll::on(connection.borrow(), POLLIN)];
        wait::poll(&mut polls, None).during(Step::RuntimeStart, NO_RECORD)?;
        let mut packet = [0; MESSAGE_LEN];
        let received = net::receive_packet(connection.borrow(), &mut packet)
            .during(Step::RuntimeStart, NO_RECORD)?;
        let Some(Packet { len, .. }) = received else {
            continue;
        };
        return match packet.get(..len).and_then(Status::decode) {
            Some(Status::Ready { layers, .. }) => {
                started.layers |= layers & LAYERS_INSIDE;
                Ok(connection)
            }
            Some(Status::Failed(failure)) => Err(failure),
            _ => Err(died(started)),
        };
    }
}

/// The program's side, as soon as it calls.
fn connection(listener: &Fd, children: &Fd, lifelines: &[Fd; 2], started: &Started) -> Outcome<Fd> {
    loop {
        let mut polls = [
            Poll::on(listener.borrow(), POLLIN),
            Poll::on(children.borrow(), POLLIN),
            Poll::on(lifelines[0].borrow(), 0),
            Poll::on(lifelines[1].borrow(), 0),
        ];
        wait::poll(&mut polls, None).during(Step::RuntimeStart, NO_RECORD)?;
        if let Some(connection) =
            net::accept(listener.borrow()).during(Step::RuntimeStart, NO_RECORD)?
        {
            return Ok(connection);
        }
        let [_, children_changed, agentd, broker] = polls.map(|poll| poll.happened != 0);
        if agentd || broker {
            return Err(Failure::new(
                Step::RuntimeStart,
                Errno::INTR.raw(),
                NO_RECORD,
            ));
        }
        if children_changed {
            reap(children, started)?;
        }
    }
}

/// Processes that runsc has left behind, or runsc itself.
fn reap(children: &Fd, started: &Started) -> Outcome<()> {
    let mut drained = [0; 128];
    // One record or many: the children are asked below either way.
    fs::read(children.borrow(), &mut drained).unwrap_or(0);
    while let Ok(Some((pid, status))) = wait::next_child_event() {
        let alive = matches!(status & 0xff, 0x7f | 0xff);
        if pid == started.pid && !alive {
            return Err(Failure {
                detail: u64::from(status.cast_unsigned()),
                ..Failure::new(Step::RuntimeStart, 0, NO_RECORD)
            });
        }
    }
    Ok(())
}

fn died(started: &Started) -> Failure {
    let ended = wait::wait_for(started.pid.cast_signed());
    let status = ended.ok().flatten().map_or(0, |(_, status)| status);
    Failure {
        detail: u64::from(status.cast_unsigned()),
        ..Failure::new(Step::RuntimeStart, 0, NO_RECORD)
    }
}
