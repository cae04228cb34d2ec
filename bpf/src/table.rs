//! Every table by name: how large it is, who gets it, what of it belongs to one agent.
//!
//! A new table is a variant here, its layout in `agentd-ebpf-common`, and a `#[btf_map]` static of the same name in
//! `agentd-ebpf`. The loader pins it, the broker clears its row when an agent begins, and hands it to agentd if it says so.

use crate::layout;

/// One table of the kernel plane. The numbers are on the wire (as bits) and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Table {
    Directory = 0,
    Policy = 1,
    Counters = 2,
    Denials = 3,
    Sched = 4,
    Seats = 5,
    RouteGrants = 8,
    RouteFlows = 9,
    RouteTraffic = 10,
}

/// What agentd gets of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handed {
    /// Nothing: the broker's own.
    Never,
    /// Figures, which agentd maps for reading. No program may decide anything by them: a shared
    /// mapping needs a descriptor that is open for writing, so a hostile agentd could falsify what
    /// it is itself told.
    Figures,
    /// A ring buffer: the kernel lets its consumer write the position page and nothing else.
    AsRing,
}

impl Table {
    pub const ALL: [Self; 9] = [
        Self::Directory,
        Self::Policy,
        Self::Counters,
        Self::Denials,
        Self::Sched,
        Self::Seats,
        Self::RouteGrants,
        Self::RouteFlows,
        Self::RouteTraffic,
    ];

    /// The static's name in `agentd-ebpf`, and the pin's.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Directory => "DIRECTORY",
            Self::Policy => "POLICY",
            Self::Counters => "COUNTERS",
            Self::Denials => "DENIALS",
            Self::Sched => "SCHED",
            Self::Seats => "SEATS",
            Self::RouteGrants => "ROUTE_GRANTS",
            Self::RouteFlows => "ROUTE_FLOWS",
            Self::RouteTraffic => "ROUTE_TRAFFIC",
        }
    }

    pub const fn handed(self) -> Handed {
        match self {
            Self::Directory | Self::Policy | Self::RouteGrants | Self::RouteFlows => Handed::Never,
            Self::Counters | Self::Sched | Self::Seats | Self::RouteTraffic => Handed::Figures,
            Self::Denials => Handed::AsRing,
        }
    }

    /// Bytes of what belongs to one slot, where the table is an array with a row for each; the broker zeroes it when an agent
    /// begins.
    pub const fn row_bytes(self) -> Option<usize> {
        match self {
            Self::Policy => Some(size_of::<layout::Policy>()),
            Self::Counters => Some(size_of::<layout::Counters>()),
            Self::Sched => {
                Some(layout::sched::STRIPES as usize * size_of::<layout::sched::Sched>())
            }
            // Those of the direct path are `Routes`'.
            Self::Directory
            | Self::Denials
            | Self::Seats
            | Self::RouteGrants
            | Self::RouteFlows
            | Self::RouteTraffic => None,
        }
    }

    /// Tables that the broker hands to agentd, in the order of their descriptors.
    pub fn handed_over() -> impl Iterator<Item = Self> {
        let handed = |table: &Self| table.handed() != Handed::Never;
        Self::ALL.into_iter().filter(handed)
    }

    pub const fn bit(self) -> u32 {
        1 << self as u32
    }
}
