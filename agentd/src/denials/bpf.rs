//! What the programs in the kernel refused: live control, and the guard of BPF LSM. Records of the
//! ring buffer `DENIALS`.
//!
//! The programs wait for nobody: what finds the ring full is counted in the agent's row of
//! `COUNTERS` and refused all the same. The ring is one for all agents and is read no faster than
//! its [`Allowance`], so whatever agents do costs the daemon that much and no more. A record is
//! copied out of the kernel's memory before it is looked at; the program's name in it is the
//! program's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Instant;

use agentd_bpf::layout::{Counters, DENIALS_LEN, Denial, ROWS, op, revoked};
use agentd_bpf::{Group, Ring, Rows, Table, Taken};
use agentd_broker::protocol::Slot;
use agentd_sandbox::Reason;

use super::allowance::Allowance;
use super::{Denials, Layer, shown_name};
use crate::plane::KernelPlane;

/// Records taken in one go.
const MOST: usize = 256;
const RECORD: usize = size_of::<Denial>();
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;

/// Where the programs tell, and count what they could not tell.
#[derive(Debug)]
pub struct Source {
    ring: OwnedFd,
    counters: Rows<Counters>,
}

impl Source {
    /// # Errors
    /// Why there is nothing to hear here.
    pub fn of(plane: &KernelPlane) -> Result<Self, String> {
        let tells = |group| plane.has(group);
        if ![Group::Net, Group::Exec, Group::Write, Group::Guard]
            .into_iter()
            .any(tells)
        {
            return Err(plane.why_not(Group::Net).to_owned());
        }
        let (Some(ring), Some(counters)) =
            (plane.table(Table::Denials), plane.table(Table::Counters))
        else {
            return Err("agentd-broker handed over no ring".into());
        };
        let counters = Rows::map(counters, Table::Counters.name(), ROWS);
        Ok(Self {
            ring: ring
                .try_clone_to_owned()
                .map_err(|error| error.to_string())?,
            counters: counters.map_err(|error| error.to_string())?,
        })
    }

    /// Refusals for the agent in `slot`, since its launch, that found the ring full.
    pub fn lost(&self, slot: Slot) -> u64 {
        let row = self.counters.get(slot.0 as usize);
        row.map_or(0, |counters| counters.lost)
    }
}

/// Tells of what arrives in the ring for as long as agentd runs.
///
/// # Errors
/// The ring can't be mapped, or its memory makes no sense: nothing of the programs' is told from then on.
pub async fn follow(source: &Source, denials: &Denials) -> io::Result<()> {
    let wakes = crate::agents::watch_fd(source.ring.try_clone()?)?;
    let ring = source.ring.try_clone()?;
    let mut ring = Ring::map(ring, Table::Denials.name(), DENIALS_LEN).map_err(io::Error::other)?;
    let mut records = Vec::with_capacity(MOST);
    let mut allowance = Allowance::new(Instant::now());
    loop {
        let allowed = allowance.at(Instant::now());
        if allowed == 0 {
            // Enough for this while: the ring fills, and the programs count.
            tokio::time::sleep_until(allowance.again().into()).await;
            continue;
        }
        let taken = ring.take(allowed.min(MOST), |bytes| records.extend(decode(bytes)));
        allowance.spend(records.len());
        for record in records.drain(..) {
            tell(&record, denials).await;
        }
        match taken {
            Taken::Broken => return Err(io::Error::other("the ring DENIALS makes no sense")),
            // Others have work, too.
            Taken::Most(_) => tokio::task::yield_now().await,
            Taken::All(_) => {
                // What has come since it was found empty is a wake-up of its own.
                wakes.readable().await?.clear_ready();
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Record {
    slot: u32,
    pid: u32,
    op: u32,
    because: u32,
    detail: [u64; 3],
    comm: [u8; 16],
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let bytes: &[u8; RECORD] = bytes.try_into().ok()?;
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_ne_bytes(word)
    };
    let halves = |at| (word(at) as u32, (word(at) >> 32) as u32);
    let ((slot, pid), (op, because)) = (halves(8), halves(16));
    let mut comm = [0; 16];
    comm.copy_from_slice(&bytes[48..]);
    Some(Record {
        slot,
        pid,
        op,
        because,
        detail: [word(24), word(32), word(40)],
        comm,
    })
}

async fn tell(record: &Record, denials: &Denials) {
    let Some(witness) = denials.of_slot(Slot(record.slot)) else {
        return;
    };
    let what = what(record.op);
    let at = target(record);
    let (target, same) = match record.pid {
        // A packet is nobody's in particular.
        0 => (at.clone(), at),
        pid => {
            let program = shown_name(&record.comm);
            (
                format!("{at} by {program}[{pid}]"),
                format!("{at} {program}"),
            )
        }
    };
    witness
        .tell(Layer::Bpf, what, target, reason(record.because), &same)
        .await;
}

fn what(operation: u32) -> &'static str {
    match operation {
        op::CONNECT => "connect",
        op::SENDMSG => "send",
        op::BIND => "bind",
        op::SOCKET => "socket",
        op::PACKET_IN => "packet in",
        op::PACKET_OUT => "packet out",
        op::EXEC => "execute",
        op::OPEN => "open for writing",
        op::CHANGE => "change",
        op::PTRACE => "trace",
        op::UNIX_CONNECT => "connect to a unix socket",
        op::USERNS => "make a user namespace",
        op::BPF => "bpf",
        _ => "an operation that this version does not know",
    }
}

/// At what, as far as the record says.
fn target(record: &Record) -> String {
    let [first, second, third] = record.detail;
    match record.op {
        op::PACKET_IN | op::PACKET_OUT => format!("port {}", first as u16),
        op::CONNECT | op::SENDMSG | op::BIND => {
            let port = first as u16;
            let address = match first >> 32 {
                AF_INET => IpAddr::from(Ipv4Addr::from(third as u32)),
                AF_INET6 => {
                    let words = (u128::from(second) << 64) | u128::from(third);
                    IpAddr::from(Ipv6Addr::from(words))
                }
                family => return format!("address family {family}"),
            };
            SocketAddr::new(address, port).to_string()
        }
        op::SOCKET => format!("address family {}", first >> 32),
        op::EXEC | op::OPEN | op::CHANGE => {
            // The kernel's own form of a device's number: 12 bits, then 20.
            format!(
                "inode {second} of device {}:{}",
                first >> 20,
                first & 0xf_ffff
            )
        }
        _ => "the kernel".into(),
    }
}

fn reason(because: u32) -> Reason {
    let rule = match because {
        revoked::NET => "the network was revoked: agentctl restore net gives it back",
        revoked::EXEC => "executing programs was revoked: agentctl restore exec gives it back",
        revoked::WRITE => "writing was revoked: agentctl restore write gives it back",
        _ => "the floor: what no agent does; no policy allows it",
    };
    Reason {
        rule: rule.into(),
        origin: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(operation: u32, detail: [u64; 3]) -> Record {
        Record {
            slot: 7,
            pid: 4711,
            op: operation,
            because: revoked::NET,
            detail,
            comm: *b"curl\0\0\0\0\0\0\0\0\0\0\0\0",
        }
    }

    #[test]
    fn a_record_is_read_field_by_field() {
        let expected = record(op::CONNECT, [1, 2, 3]);
        let mut bytes = 9u64.to_ne_bytes().to_vec();
        for word in [7u32, 4711, op::CONNECT, revoked::NET] {
            bytes.extend(word.to_ne_bytes());
        }
        for word in expected.detail {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(expected.comm);
        assert_eq!(decode(&bytes), Some(expected));
        assert_eq!(decode(&bytes[1..]), None);
    }

    #[test]
    fn targets_are_what_people_call_them() {
        let four = record(op::CONNECT, [AF_INET << 32 | 6 << 16 | 443, 0, 0x7f00_0001]);
        assert_eq!(target(&four), "127.0.0.1:443");
        let six = record(op::SENDMSG, [AF_INET6 << 32 | 53, 0, 1]);
        assert_eq!(target(&six), "[::1]:53");
        let packet = record(op::PACKET_OUT, [AF_INET << 32 | 17 << 16 | 53, 0, 0]);
        assert_eq!(target(&packet), "port 53");
        let file = record(op::OPEN, [8 << 20 | 1, 42, 0]);
        assert_eq!(target(&file), "inode 42 of device 8:1");
    }

    #[test]
    fn what_nobody_revoked_is_the_floors() {
        assert!(reason(revoked::NET).rule.contains("restore net"));
        assert!(reason(0).rule.starts_with("the floor"));
    }
}
