//! What the kernel plane's programs counted of each agent: packets, bytes, refusals.
//!
//! A reading is some loads from mapped memory: no system call, no lock, any thread. Figures of an
//! agent that ends are read a last time before its slot is released, and go on record with its
//! exit. Where the programs are not, there are no figures, and nothing is guessed from other
//! sources.

use agentd_bpf::layout::{Counters, ROWS};
use agentd_bpf::{Group, Rows, Table};
use agentd_broker::protocol::Slot;
use agentd_storage::Counted;

use crate::agents::Agent;
use crate::plane::KernelPlane;

/// The table, where there is one.
#[derive(Debug)]
pub struct KernelCounters(Option<Rows<Counters>>);

impl KernelCounters {
    pub fn new(plane: &KernelPlane) -> Self {
        // Whose programs count packets; the others add refusals to the same rows.
        let table = plane
            .table(Table::Counters)
            .filter(|_| plane.has(Group::Net));
        let rows = table.and_then(|fd| {
            let rows = Rows::map(fd, Table::Counters.name(), ROWS);
            rows.inspect_err(|error| tracing::warn!("no counters of the kernel plane: {error}"))
                .ok()
        });
        Self(rows)
    }

    /// One living agent now; `None` of one that has ended, or where nothing counts.
    pub fn of(&self, agent: &Agent) -> Option<Counted> {
        let counted = self.last(agent.facts.slot)?;
        // Its slot may be somebody else's once it has ended.
        agent.state().is_live().then_some(counted)
    }

    /// The figures of a slot whose agent has ended and that is not released yet.
    pub fn last(&self, slot: Slot) -> Option<Counted> {
        let row = self.0.as_ref()?.get(slot.0 as usize)?;
        Some(Counted {
            packets_in: row.packets_in,
            packets_out: row.packets_out,
            bytes_in: row.bytes_in,
            bytes_out: row.bytes_out,
            refused: row.denied,
            untold: row.lost,
        })
    }
}
