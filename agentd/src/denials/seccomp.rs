//! Calls that the filter held and the sandbox's init refused: records from its pipe.
//!
//! The pipe is the queue, and a short one: what does not fit is counted by the init. Here it is
//! read no faster than its [`Allowance`], so an agent that does nothing but forbidden calls costs
//! the daemon that much and no more. The records come from a process that the agent shares a
//! sandbox with: any bytes are a record, and no record does more than appear.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use agentd_launch::refusal::{REFUSAL_LEN, Refusal, RefusedCall};
use agentd_sandbox::seccomp::syscall_name;

use super::allowance::Allowance;
use super::{Layer, Witness, shown_name};

/// Records taken out of the pipe in one go.
const MOST: usize = 256;

/// Tells of what comes out of `pipe` until the sandbox has ended.
///
/// # Errors
/// The trouble of the pipe; whatever is still refused is told to nobody then.
pub async fn follow(pipe: OwnedFd, witness: Arc<Witness>) -> io::Result<()> {
    let pipe = crate::agents::watch_fd(pipe)?;
    let mut bytes = [0; REFUSAL_LEN * MOST];
    let mut rest = 0;
    let mut allowance = Allowance::new(Instant::now());
    loop {
        let mut ready = pipe.readable().await?;
        let room = REFUSAL_LEN * allowance.at(Instant::now()).min(MOST);
        if room == 0 {
            // Enough for this while: the pipe fills, and the init counts.
            tokio::time::sleep_until(allowance.again().into()).await;
            continue;
        }
        let read = match rustix::io::read(pipe.get_ref(), &mut bytes[rest..room]) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        };
        let (records, partial) = bytes[..rest + read].as_chunks::<REFUSAL_LEN>();
        for record in records {
            tell(Refusal::decode(record), &witness).await;
        }
        allowance.spend(records.len());
        rest = partial.len();
        let whole = records.len() * REFUSAL_LEN;
        bytes.copy_within(whole..whole + rest, 0);
    }
}

async fn tell(refusal: Refusal, witness: &Witness) {
    witness.set_lost(Layer::Seccomp, refusal.lost);
    let Some(call) = refusal.call else { return };
    let RefusedCall {
        pid,
        number,
        args: [a, b, c],
        comm,
    } = call;
    let what = match syscall_name(number) {
        Some(name) => name.to_owned(),
        None => format!("system call {number}"),
    };
    let program = shown_name(&comm);
    let [a, b, c] = [a, b, c].map(shown_argument);
    let target = format!("{what}({a}, {b}, {c}) by {program}[{pid}]");
    let reason = witness.rules.syscall(number);
    witness
        .tell(Layer::Seccomp, &what, target, reason, &program)
        .await;
}

/// An argument as a person reads it. What is no 32 bit number is an address, which says nothing about a process that has gone on.
fn shown_argument(value: u64) -> String {
    match i64::from_ne_bytes(value.to_ne_bytes()) {
        small @ -4095..=-1 => small.to_string(),
        _ if value > u64::from(u32::MAX) => "…".to_owned(),
        _ => format!("{value:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_shown_and_addresses_are_not() {
        assert_eq!(shown_argument(0x10), "0x10");
        assert_eq!(shown_argument(0xffff_ffff), "0xffffffff");
        assert_eq!(shown_argument(0x55c7_19ca_6780), "…");
        assert_eq!(shown_argument(u64::MAX), "-1");
        assert_eq!(shown_argument(u64::MAX - 4095), "…");
    }
}
