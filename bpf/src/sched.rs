//! What the scheduler did with each agent, added up from the programs' tables.
//!
//! For agentd: reads only, any thread, never waits for a program. Figures of one call may be some
//! nanoseconds apart from each other.

use crate::layout::sched::{SCHED_ROWS, SEATS, STRIPES, Sched, Seat};
use crate::mapping::{MapError, Rows};
use std::os::fd::AsFd;

/// How often a total is read again because a task left its processor meanwhile.
const TRIES: usize = 4;

/// `SCHED` and `SEATS`, mapped.
#[derive(Debug)]
pub struct SchedTable {
    rows: Rows<Sched>,
    seats: Rows<Seat>,
}

/// An agent on a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seated {
    pub processor: u32,
    /// `CLOCK_MONOTONIC`, ns.
    pub since_ns: u64,
}

impl SchedTable {
    pub fn map(sched: impl AsFd, seats: impl AsFd) -> Result<Self, MapError> {
        Ok(Self {
            rows: Rows::map(sched, "SCHED", SCHED_ROWS)?,
            seats: Rows::map(seats, "SEATS", SEATS)?,
        })
    }

    /// All stripes of a slot together, what runs at `now_ns` (`CLOCK_MONOTONIC`) included, and where that is; `None` if no agent
    /// can have this slot.
    pub fn read(&self, slot: u32, now_ns: u64) -> Option<(Sched, Vec<Seated>)> {
        if slot == 0 {
            return None;
        }
        let mut total = self.total(slot)?;
        let mut seated = self.seated(slot);
        // Who leaves its processor between the two would be missed in both: its time would go back.
        for _ in 0..TRIES {
            let again = self.total(slot)?;
            if again.run_ns == total.run_ns {
                break;
            }
            (total, seated) = (again, self.seated(slot));
        }
        for seat in &seated {
            let runs = now_ns.saturating_sub(seat.since_ns);
            total.run_ns = total.run_ns.saturating_add(runs);
        }
        Some((total, seated))
    }

    fn total(&self, slot: u32) -> Option<Sched> {
        let first = slot.checked_mul(STRIPES)? as usize;
        let mut total = Sched::default();
        for stripe in 0..STRIPES as usize {
            add(&mut total, &self.rows.get(first + stripe)?);
        }
        Some(total)
    }

    fn seated(&self, slot: u32) -> Vec<Seated> {
        let seat = |processor| {
            let seat = self.seats.get(processor)?;
            // The programs write `slot` last, and zero it first: the same before and after is of one moment.
            let same = self.seats.get(processor) == Some(seat);
            (same && seat.slot == slot).then_some(Seated {
                processor: processor as u32,
                since_ns: seat.since_ns,
            })
        };
        (0..self.seats.len()).filter_map(seat).collect()
    }
}

fn add(total: &mut Sched, row: &Sched) {
    let sum = |total: &mut u64, count: u64| *total = total.wrapping_add(count);
    sum(&mut total.run_ns, row.run_ns);
    sum(&mut total.wait_ns, row.wait_ns);
    sum(&mut total.voluntary, row.voluntary);
    sum(&mut total.involuntary, row.involuntary);
    sum(&mut total.wakeups, row.wakeups);
    sum(&mut total.migrations, row.migrations);
    sum(&mut total.begun, row.begun);
    sum(&mut total.ended, row.ended);
    sum(&mut total.unseen, row.unseen);
    for (total, count) in total.off_ns.iter_mut().zip(row.off_ns) {
        sum(total, count);
    }
    for (total, count) in total.waits.iter_mut().zip(row.waits) {
        sum(total, count);
    }
    total.wait_max_ns = total.wait_max_ns.max(row.wait_max_ns);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::tests::memory;
    use rustix::io::pwrite;

    fn write<T>(fd: &impl AsFd, row: usize, words: &[(usize, u64)]) {
        for (word, value) in words {
            let at = (row * size_of::<T>() + word * 8) as u64;
            assert_eq!(pwrite(fd, &value.to_ne_bytes(), at), Ok(8));
        }
    }

    #[test]
    fn a_total_is_the_sum_of_stripes_and_of_what_runs() {
        let sched = memory(SCHED_ROWS * size_of::<Sched>());
        let seats = memory(SEATS * size_of::<Seat>());
        let first = 7 * STRIPES as usize;
        let max = std::mem::offset_of!(Sched, wait_max_ns) / 8;
        let waits = std::mem::offset_of!(Sched, waits) / 8;
        write::<Sched>(&sched, first, &[(0, 100), (max, 5), (waits + 3, 1)]);
        write::<Sched>(&sched, first + 3, &[(0, 20), (max, 9), (waits + 3, 1)]);
        write::<Sched>(&sched, first + 4, &[(0, 1)]);
        write::<Seat>(&seats, 1, &[(0, 900), (1, 7)]);
        write::<Seat>(&seats, 2, &[(0, 800), (1, 8)]);
        let table = SchedTable::map(&sched, &seats).expect("map");
        let (total, seated) = table.read(7, 1000).expect("slot 7");
        assert_eq!((total.run_ns, total.wait_max_ns), (220, 9));
        assert_eq!(total.waits[3], 2);
        let here = Seated {
            processor: 1,
            since_ns: 900,
        };
        assert_eq!(seated, [here]);
        assert_eq!(table.read(u32::MAX, 0), None);
        assert_eq!(table.read(SCHED_ROWS as u32, 0), None);
    }
}
