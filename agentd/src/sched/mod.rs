//! Scheduler telemetry: what agents ran, waited for and slept, read from the kernel plane's tables.
//!
//! The programs count in the kernel (`agentd-ebpf/src/sched.rs`); this adds up and names. A reading
//! is some loads from mapped memory: no system call but the clock, no lock, any thread. The figures
//! of an agent that ends are read a last time before its slot is released, and go on record with
//! its exit. Where the programs are not, the reason is, and nothing is guessed from other sources.

use agentd_api::{AgentSched, Error};
use agentd_bpf::layout::sched::{Sched, bucket_end_ns, off};
use agentd_bpf::{Group, SchedTable, Seated, Table};
use agentd_broker::protocol::Slot;
use agentd_storage::Scheduled;
use rustix::time::{ClockId, clock_gettime};

use crate::agents::Agent;
use crate::plane::KernelPlane;

/// The tables, or why there are none.
#[derive(Debug)]
pub struct Scheduler(Result<SchedTable, String>);

impl Scheduler {
    pub fn new(plane: &KernelPlane) -> Self {
        if !plane.has(Group::Sched) {
            return Self(Err(plane.why_not(Group::Sched).to_owned()));
        }
        let (Some(rows), Some(seats)) = (plane.table(Table::Sched), plane.table(Table::Seats))
        else {
            return Self(Err("agentd-broker handed over no tables".into()));
        };
        Self(SchedTable::map(rows, seats).map_err(|error| error.to_string()))
    }

    fn table(&self) -> Result<&SchedTable, Error> {
        self.0.as_ref().map_err(|why| {
            Error::Unavailable(format!(
                "the scheduler's eBPF programs are not loaded: {why}; `agentctl doctor` says what this host has"
            ))
        })
    }

    /// Whether there is anything to read, for those who ask about nobody in particular.
    ///
    /// # Errors
    /// What is missing.
    pub fn check(&self) -> Result<(), Error> {
        self.table().map(drop)
    }

    /// One living agent now.
    ///
    /// # Errors
    /// There are no programs here, or the agent has ended.
    pub fn of(&self, agent: &Agent) -> Result<AgentSched, Error> {
        let table = self.table()?;
        let name = &agent.identity.name;
        let ended = || {
            Error::Unavailable(format!(
                "`{name}` has ended; `agentctl inspect {name}` shows what it used"
            ))
        };
        if !agent.state().is_live() {
            return Err(ended());
        }
        let (at_ns, total, seated) = read(table, agent.facts.slot).ok_or_else(ended)?;
        // Its slot may be somebody else's once it has ended.
        if !agent.state().is_live() {
            return Err(ended());
        }
        Ok(answer(agent, at_ns, &total, &seated))
    }

    /// The figures of a slot whose agent has ended and that is not released yet.
    pub fn last(&self, slot: Slot) -> Option<Scheduled> {
        let (_, total, _) = read(self.0.as_ref().ok()?, slot)?;
        Some(on_record(&total))
    }
}

/// When it was read (monotonic), what was counted by then, and who has a processor; `None` for a slot that there is not.
fn read(table: &SchedTable, slot: Slot) -> Option<(u64, Sched, Vec<Seated>)> {
    let now = clock_gettime(ClockId::Monotonic);
    let at_ns = u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or(0);
    let (total, seated) = table.read(slot.0, at_ns)?;
    Some((at_ns, total, seated))
}

fn answer(agent: &Agent, at_ns: u64, total: &Sched, seated: &[Seated]) -> AgentSched {
    AgentSched {
        id: agent.identity.id,
        name: agent.identity.name.clone(),
        at_ns,
        run_ns: total.run_ns,
        wait_ns: total.wait_ns,
        wait_max_ns: total.wait_max_ns,
        waits: waits(total),
        sleep_ns: total.off_ns[off::SLEEP],
        blocked_ns: total.off_ns[off::BLOCKED],
        io_ns: total.off_ns[off::IO],
        stopped_ns: total.off_ns[off::STOPPED],
        frozen_ns: total.off_ns[off::FROZEN],
        other_ns: total.off_ns[off::OTHER],
        voluntary: total.voluntary,
        involuntary: total.involuntary,
        wakeups: total.wakeups,
        migrations: total.migrations,
        begun: total.begun,
        ended: total.ended,
        unseen: total.unseen,
        processors: seated.iter().map(|seat| seat.processor).collect(),
    }
}

/// The histogram as the interface has it: the longest wait of each bucket that has any, which in
/// the last one is the longest seen.
fn waits(total: &Sched) -> Vec<(u64, u64)> {
    let buckets = total.waits.iter().enumerate();
    let named = buckets.map(|(bucket, count)| {
        let longest = bucket_end_ns(bucket).map_or(total.wait_max_ns, |end| end - 1);
        (longest, *count)
    });
    named.filter(|(_, count)| *count > 0).collect()
}

fn on_record(total: &Sched) -> Scheduled {
    let waits = waits(total);
    let at = |quantile| agentd_api::bus::latency_at(&waits, quantile).unwrap_or(0);
    Scheduled {
        run_ns: total.run_ns,
        wait_ns: total.wait_ns,
        wait_p50_ns: at(0.5),
        wait_p99_ns: at(0.99),
        wait_max_ns: total.wait_max_ns,
        sleep_ns: total.off_ns[off::SLEEP],
        blocked_ns: total.off_ns[off::BLOCKED],
        io_ns: total.off_ns[off::IO],
        stopped_ns: total.off_ns[off::STOPPED],
        frozen_ns: total.off_ns[off::FROZEN],
        voluntary: total.voluntary,
        involuntary: total.involuntary,
        wakeups: total.wakeups,
        migrations: total.migrations,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_record_has_quantiles_of_the_histogram() {
        let mut total = Sched {
            run_ns: 7,
            wait_max_ns: 1_000_000,
            ..Sched::default()
        };
        // 98 waits below 256 ns, one below 512, one in the bucket that has no end.
        total.waits[0] = 98;
        total.waits[1] = 1;
        total.waits[31] = 1;
        total.off_ns[off::FROZEN] = 3;
        let kept = on_record(&total);
        assert_eq!((kept.run_ns, kept.frozen_ns), (7, 3));
        assert_eq!((kept.wait_p50_ns, kept.wait_p99_ns), (255, 511));
        assert_eq!(waits(&total), [(255, 98), (511, 1), (1_000_000, 1)]);
        assert_eq!(on_record(&Sched::default()).wait_p99_ns, 0);
    }

    #[test]
    fn without_programs_the_reason_is_told() {
        let absent = Scheduler(Err("the kernel has no BTF".into()));
        let error = absent.check().expect_err("absent").text();
        assert!(
            error.contains("no BTF") && error.contains("agentctl doctor"),
            "{error}"
        );
        assert_eq!(absent.last(Slot(1)), None);
    }
}
