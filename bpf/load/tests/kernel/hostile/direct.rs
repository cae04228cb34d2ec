//! The direct path under attack: two honest agents that talk over it, and what must hold of every agent's queue meanwhile.

use super::Random;
use crate::bed::{Agent, Bed, fd_of};
use crate::route::Direct;
use agentd_bpf::layout::route::{CONTENT_MAX, CREDIT, Flow, HEAD_LEN, SLOTS, Traffic, refused};
use agentd_bpf::{Group, Right, Routes, Rows, Table};

/// Lengths of honest requests, in turn.
const SIZES: [usize; 4] = [0, 1, 500, 4096];

pub struct Paths {
    routes: Routes,
    flows: Rows<Flow>,
    traffic: Rows<Traffic>,
    /// Of the attackers, in their order.
    pub addresses: Vec<u64>,
    honest: [Direct; 2],
    number: u64,
}

impl Paths {
    /// `None` where the kernel has no such group.
    pub fn new(bed: &Bed, attackers: &[Agent]) -> Option<Self> {
        if !bed.loaded.groups.has(Group::Route) {
            return None;
        }
        let fd = |table| fd_of(&bed.loaded, table);
        let routes = Routes::map(
            fd(Table::RouteGrants),
            fd(Table::RouteFlows),
            fd(Table::RouteTraffic),
        );
        let routes = routes.expect("map");
        let begin = |agent: &Agent| routes.begin(agent.slot, agent.id).expect("takes part");
        let addresses = attackers.iter().map(begin).collect();
        let honest = [bed.agent(), bed.agent()].map(|agent| {
            let address = begin(&agent);
            Direct::connect(agent, address)
        });
        let [a, b] = [&honest[0], &honest[1]].map(|end| end.address);
        for (from, to) in [(a, b), (b, a)] {
            routes.allow(from, to, Right::Yes).expect("both are there");
        }
        Some(Self {
            flows: Rows::map(fd(Table::RouteFlows), "ROUTE_FLOWS", SLOTS).expect("map"),
            traffic: Rows::map(fd(Table::RouteTraffic), "ROUTE_TRAFFIC", SLOTS).expect("map"),
            routes,
            addresses,
            honest,
            number: 0,
        })
    }

    /// A request and its answer, and another right of the attackers' among themselves. None has one to the honest.
    pub fn step(&mut self, random: &mut Random) {
        let [from, to] = [0; 2].map(|_| {
            let at = random.below(self.addresses.len() as u64);
            self.addresses[at as usize]
        });
        let right = if random.below(4) == 0 {
            Right::No
        } else {
            Right::Yes
        };
        if from != to {
            let done = self.routes.allow(from, to, right);
            done.expect("both are there");
        }
        let [a, b] = &self.honest;
        let size = SIZES[(self.number % SIZES.len() as u64) as usize];
        let content: Vec<u8> = (0..size)
            .map(|at| (self.number.wrapping_mul(31) + at as u64) as u8)
            .collect();
        for (from, to) in [(a, b), (b, a)] {
            from.send(to.address, &content).expect("it may");
            assert_eq!(
                to.receive(),
                (from.address, content.clone()),
                "message {}",
                self.number
            );
        }
        self.number += 1;
        // The program adds a frame before it judges it, so what is being judged is seen here too:
        // one frame of each attacked slot's one connection.
        self.check(self.addresses.len() as u64);
    }

    /// Nobody's queue is longer than its credit, but for so many frames that are being judged.
    fn check(&self, under_way: u64) {
        let most = u64::from(CREDIT) + under_way * (HEAD_LEN as u64 + u64::from(CONTENT_MAX));
        for (slot, flow) in (0..SLOTS).filter_map(|slot| Some((slot, self.flows.get(slot)?))) {
            // What was taken is read later than what was queued, so that this is never more than it was.
            let waiting = flow.queued.saturating_sub(flow.taken);
            assert!(waiting <= most, "slot {slot} has {waiting} bytes queued");
        }
    }

    /// When the attackers have ended.
    pub fn finish(self, attackers: &[Agent]) {
        self.check(0);
        let of = |agent: &Agent| self.traffic.get(agent.slot as usize).expect("a row");
        let seen: Vec<Traffic> = attackers.iter().map(of).collect();
        // Shown with a failure.
        eprintln!("the attackers' frames: {seen:?}");
        let judged = |traffic: &Traffic| traffic.sent + traffic.refused.iter().sum::<u64>();
        assert!(
            seen.iter().map(judged).sum::<u64>() > 0,
            "no frame of an attacker was ever judged"
        );
        for end in &self.honest {
            let traffic = of(&end.agent);
            assert_eq!(
                (traffic.received, traffic.sent),
                (self.number, self.number),
                "somebody else's frame, or one lost"
            );
            assert_eq!(traffic.refused, [0; refused::KINDS]);
        }
        for end in self.honest {
            end.close();
        }
    }
}
