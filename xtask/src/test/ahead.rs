//! What tiers need from the network, fetched while the first ones compile: real agents, the eBPF
//! tools, programs for workloads.
//!
//! One thread, which asks for each thing as its tier would; what fails here, the tier tries again,
//! and says why. Nothing is fetched that no tier of the run needs, and nothing that is there
//! already.

use std::collections::VecDeque;
use std::sync::mpsc::{self, Receiver};

use super::tier::Tier;
use crate::demo::npm::{CLAUDE, CODEX, OPENCODE};

/// What is fetched, and the first tier that needs it.
const THINGS: [(Tier, fn()); 3] = [
    (Tier::Integration, agents),
    (Tier::Kernel, crate::ebpf::fetch_tools),
    (Tier::Workloads, crate::workloads::fetch_programs),
];

/// A fetching thread, and how far it is.
#[derive(Debug)]
pub struct Fetching {
    /// Who first needs what is still under way, in order.
    under_way: VecDeque<Tier>,
    /// One word for each thing that was tried.
    done: Receiver<()>,
}

impl Fetching {
    /// Begins with what the first of `tiers` needs.
    pub fn start(tiers: &[Tier]) -> Self {
        let things: Vec<_> = THINGS
            .into_iter()
            .filter(|(tier, _)| tiers.contains(tier) && tiers.len() > 1)
            .collect();
        let under_way = things.iter().map(|(tier, _)| *tier).collect();
        let (tell, done) = mpsc::channel();
        // Ends with its last thing, or when nobody listens any more; what it runs is ended by the signals that end us.
        std::thread::spawn(move || {
            for (_, fetch) in things {
                fetch();
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
        Self { under_way, done }
    }

    /// Returns when nothing is being fetched that `tier`, or one before it, needs.
    pub fn wait_for(&mut self, tier: Tier) {
        while self
            .under_way
            .pop_front_if(|needs| *needs <= tier)
            .is_some()
        {
            if self.done.recv().is_err() {
                // It died of a panic, which has said why. The tiers fetch for themselves.
                self.under_way.clear();
            }
        }
    }
}

/// Of these the tests of several tiers name each other's.
fn agents() {
    for agent in [CLAUDE, CODEX, OPENCODE] {
        if let Err(error) = agent.install() {
            eprintln!("{} could not be fetched ahead: {error:#}", agent.title);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_one_tier_fetches_nothing_ahead_and_nobody_waits() {
        let mut fetching = Fetching::start(&[Tier::Kernel]);
        assert!(fetching.under_way.is_empty());
        fetching.wait_for(Tier::Acp);
    }

    #[test]
    fn a_tier_waits_for_what_it_needs_and_not_for_what_later_ones_need() {
        let (tell, done) = mpsc::channel();
        let mut fetching = Fetching {
            under_way: [Tier::Integration, Tier::Workloads].into(),
            done,
        };
        fetching.wait_for(Tier::Unit);
        assert_eq!(fetching.under_way.len(), 2);
        tell.send(()).expect("it listens");
        fetching.wait_for(Tier::E2e);
        assert_eq!(fetching.under_way, [Tier::Workloads]);
        drop(tell);
        fetching.wait_for(Tier::Acp);
        assert!(fetching.under_way.is_empty());
    }
}
