//! Groups of programs: what a host's kernel gives, group by group.
//!
//! A group is loaded and attached whole or not at all, and each is optional: a kernel without BPF LSM has live control of the
//! network all the same. Which programs make up a group is the loader's table (`agentd-bpf-load`, `groups.rs`); here are the
//! names and bits by which broker, agentd and `agentctl doctor` speak of them.

use std::fmt;

/// One group of programs. The numbers are on the wire and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Group {
    /// Revoking the network: connect, sendmsg, bind, socket, packets.
    Net = 0,
    /// Revoking `execve` (BPF LSM).
    Exec = 1,
    /// Revoking writes to files (BPF LSM).
    Write = 2,
    /// Refusals beside policy's own: ptrace, Unix sockets, user namespaces, bpf (BPF LSM).
    Guard = 3,
    /// Scheduler telemetry.
    Sched = 4,
    /// Request and reply redirected from socket to socket.
    Route = 5,
}

impl Group {
    pub const ALL: [Self; 6] = [
        Self::Net,
        Self::Exec,
        Self::Write,
        Self::Guard,
        Self::Sched,
        Self::Route,
    ];

    /// The word for it in `agentctl doctor` and in refusals.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Exec => "exec",
            Self::Write => "write",
            Self::Guard => "guard",
            Self::Sched => "sched",
            Self::Route => "route",
        }
    }

    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|group| *group as u32 == number)
    }

    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A set of groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups(u32);

impl Groups {
    pub const NONE: Self = Self(0);

    /// Bits that no group has are dropped: a newer broker may know more.
    pub fn from_bits(bits: u32) -> Self {
        Group::ALL
            .into_iter()
            .filter(|group| bits & group.bit() != 0)
            .collect()
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    pub const fn has(self, group: Group) -> bool {
        self.0 & group.bit() != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Group> {
        Group::ALL.into_iter().filter(move |group| self.has(*group))
    }
}

impl FromIterator<Group> for Groups {
    fn from_iter<I: IntoIterator<Item = Group>>(groups: I) -> Self {
        Self(groups.into_iter().fold(0, |bits, group| bits | group.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_known_bits_only_and_numbers_come_back() {
        let all: Groups = Group::ALL.into_iter().collect();
        assert_eq!(Groups::from_bits(u32::MAX), all);
        assert_eq!(all.iter().collect::<Vec<_>>(), Group::ALL);
        for group in Group::ALL {
            assert_eq!(Group::from_number(group as u32), Some(group));
            assert!(all.has(group) && !Groups::NONE.has(group));
        }
        assert_eq!(Group::from_number(31), None);
    }
}
