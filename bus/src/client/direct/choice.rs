//! Which way the next small request to one peer goes: by the direct path or through the bus, by how
//! long both took here.
//!
//! Nothing is assumed of the host. The first requests take the two ways in turns; then the one
//! whose median was lower takes all, until it is looked at again. A request that came back costs a
//! detour, so the path is left alone for a while, each time longer. Pure.

#![forbid(unsafe_code)]

use std::time::Duration;

use super::DirectUse;

/// Of each way, in one look.
const SAMPLES: usize = 16;
/// Requests until the next look.
const PERIOD: u32 = 8192;
/// Requests for which the path is left alone after one came back, and the most after several in a row.
const LEFT_ALONE: u32 = 16;
const LEFT_ALONE_MAX: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Direct,
    Bus,
}

#[derive(Debug, Default)]
struct Samples {
    nanos: [u64; SAMPLES],
    taken: usize,
}

impl Samples {
    fn add(&mut self, took: Duration) {
        if let Some(place) = self.nanos.get_mut(self.taken) {
            *place = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.taken += 1;
        }
    }

    fn median(&self) -> Option<u64> {
        (self.taken == SAMPLES).then(|| {
            let mut sorted = self.nanos;
            sorted.sort_unstable();
            sorted[SAMPLES / 2]
        })
    }
}

/// What is known of one peer.
#[derive(Debug, Default)]
pub struct Choice {
    direct: Samples,
    bus: Samples,
    /// While it is decided: which way, and for how many requests more.
    decided: Option<(Way, u32)>,
    turn: u32,
    left_alone: u32,
    returned_in_a_row: u32,
}

impl Choice {
    /// The way of the next request.
    pub fn next(&mut self, how: DirectUse) -> Way {
        if self.left_alone > 0 {
            self.left_alone -= 1;
            return Way::Bus;
        }
        match how {
            DirectUse::Measured => {}
            DirectUse::Always => return Way::Direct,
            DirectUse::Never => return Way::Bus,
        }
        match &mut self.decided {
            Some((way, left)) if *left > 0 => {
                *left -= 1;
                return *way;
            }
            Some(_) => *self = Self::default(),
            None => {}
        }
        self.turn = self.turn.wrapping_add(1);
        if self.turn.is_multiple_of(2) {
            Way::Bus
        } else {
            Way::Direct
        }
    }

    /// A request was answered, and took so long.
    pub fn took(&mut self, way: Way, time: Duration) {
        if way == Way::Direct {
            self.returned_in_a_row = 0;
        }
        if self.decided.is_some() {
            return;
        }
        match way {
            Way::Direct => self.direct.add(time),
            Way::Bus => self.bus.add(time),
        }
        if let (Some(direct), Some(bus)) = (self.direct.median(), self.bus.median()) {
            let better = if direct < bus { Way::Direct } else { Way::Bus };
            self.decided = Some((better, PERIOD));
        }
    }

    /// A request did not get through by the path.
    pub fn came_back(&mut self) {
        let shift = self.returned_in_a_row.min(31);
        self.left_alone = (u64::from(LEFT_ALONE) << shift).min(LEFT_ALONE_MAX.into()) as u32;
        self.returned_in_a_row += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks so often, each way taking its time; how many went directly.
    fn ask(choice: &mut Choice, count: u32, direct_ns: u64, bus_ns: u64) -> u32 {
        let mut direct = 0;
        for _ in 0..count {
            let way = choice.next(DirectUse::Measured);
            let ns = match way {
                Way::Direct => direct_ns,
                Way::Bus => bus_ns,
            };
            direct += u32::from(way == Way::Direct);
            choice.took(way, Duration::from_nanos(ns));
        }
        direct
    }

    #[test]
    fn the_quicker_way_is_taken_after_both_were_tried() {
        let tried = 2 * SAMPLES as u32;
        let mut choice = Choice::default();
        assert_eq!(ask(&mut choice, tried, 10, 30), tried / 2);
        assert_eq!(ask(&mut choice, 1000, 10, 30), 1000);
        let mut choice = Choice::default();
        assert_eq!(ask(&mut choice, tried, 30, 10), tried / 2);
        assert_eq!(ask(&mut choice, 1000, 30, 10), 0, "no gain, no path");
    }

    #[test]
    fn a_decision_is_looked_at_again() {
        let tried = 2 * SAMPLES as u32;
        let mut choice = Choice::default();
        ask(&mut choice, tried, 10, 30);
        assert_eq!(ask(&mut choice, PERIOD, 10, 30), PERIOD);
        // The host has changed.
        ask(&mut choice, tried, 30, 10);
        assert_eq!(ask(&mut choice, 100, 30, 10), 0);
    }

    #[test]
    fn what_comes_back_keeps_the_path_quiet_longer_each_time_and_an_answer_ends_that() {
        let mut choice = Choice::default();
        let quiet = |choice: &mut Choice| {
            let mut quiet = 0;
            while choice.next(DirectUse::Measured) == Way::Bus {
                quiet += 1;
            }
            quiet
        };
        assert_eq!(choice.next(DirectUse::Measured), Way::Direct);
        choice.came_back();
        let first = quiet(&mut choice);
        choice.came_back();
        let second = quiet(&mut choice);
        assert!((LEFT_ALONE..=LEFT_ALONE + 1).contains(&first), "{first}");
        assert!(second >= 2 * LEFT_ALONE, "{second}");
        for _ in 0..40 {
            choice.came_back();
        }
        assert!(quiet(&mut choice) <= LEFT_ALONE_MAX + 1);
        choice.took(Way::Direct, Duration::from_nanos(1));
        choice.came_back();
        assert!(quiet(&mut choice) <= LEFT_ALONE + 1);
    }
}
