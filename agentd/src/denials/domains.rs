//! Which Landlock domain is whose: the records of the kernel's audit name a number that nobody else
//! knows.
//!
//! A launcher makes its domain known by being refused a signal to the sandbox's init (ADR 40), so
//! the first record of a domain names that init by its process number on the host, which the broker
//! told agentd. The record may be read before agentd has the agent: what comes of such a domain
//! waits, bounded. While an agent lives its init's number is nobody else's, and the first domain
//! that is made known for it stays its own: a domain that its programs make inside is another
//! number, and theirs.
//!
//! Pure. `A` is an agent.

use std::collections::HashMap;

use agentd_kernel::audit::record::{Access, Record};

/// Domains that nobody has yet, at most; the longest known of them is forgotten first.
const MAX_WAITING: usize = 256;
/// Refusals of one such domain that wait, at most.
const MAX_HELD: usize = 64;
/// Domains of agents that have ended and whose own end was not heard of, at most.
const MAX_LEFT: usize = 256;

/// What is to be done about a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<A> {
    /// Refused to this agent.
    Tell(A, Access),
    /// This agent's domain is known now.
    Learned(A, u64),
    /// All processes of this agent's domain have ended, and so many refusals since its launch were not told.
    Ended(A, u64),
    /// Nothing of ours, or nothing yet.
    Nothing,
}

/// What was known, and waited, when an agent came.
#[derive(Debug, PartialEq, Eq)]
pub struct Arrival {
    pub learned: Option<u64>,
    pub held: Vec<Access>,
}

#[derive(Debug)]
pub struct Domains<A> {
    domains: HashMap<u64, Domain<A>>,
    /// By the number of the sandbox's init on the host.
    inits: HashMap<u32, Init<A>>,
    /// Counts what became known, to find what did first.
    clock: u64,
    strays: u64,
}

#[derive(Debug)]
struct Domain<A> {
    owner: Owner<A>,
    /// Records of it that were told; unknown where an earlier agentd told some.
    told: Option<u64>,
    since: u64,
}

#[derive(Debug)]
enum Owner<A> {
    Agent(A),
    /// It has ended; records may still come.
    Left(A),
    /// The agent with this init, which agentd has not heard of yet.
    Waiting {
        init: u32,
        held: Vec<Access>,
    },
}

#[derive(Debug)]
enum Init<A> {
    Agent(A, Option<u64>),
    Domain(u64),
}

impl<A> Default for Domains<A> {
    fn default() -> Self {
        Self {
            domains: HashMap::new(),
            inits: HashMap::new(),
            clock: 0,
            strays: 0,
        }
    }
}

impl<A: Clone> Domains<A> {
    /// An agent whose sandbox has this init, and this domain if an earlier agentd knew it.
    pub fn arrive(&mut self, init: u32, agent: A, domain: Option<u64>) -> Arrival {
        let waited = match self.inits.remove(&init) {
            Some(Init::Domain(waited)) => Some(waited),
            Some(Init::Agent(..)) | None => None,
        };
        let mut held = Vec::new();
        let mut told = None;
        if let Some(waited) = waited
            && let Some(Domain {
                owner: Owner::Waiting { held: these, .. },
                told: so_far,
                ..
            }) = self.domains.remove(&waited)
        {
            (held, told) = (these, so_far);
        }
        let learned = domain.or(waited);
        if let Some(number) = learned {
            if domain.is_some() {
                told = None;
            }
            self.insert(number, Owner::Agent(agent.clone()), told);
        }
        self.inits.insert(init, Init::Agent(agent, learned));
        Arrival {
            learned: waited.filter(|_| domain.is_none()),
            held,
        }
    }

    /// The agent with this init has ended. What is still on its way is its own.
    pub fn leave(&mut self, init: u32) {
        let Some(Init::Agent(agent, domain)) = self.inits.remove(&init) else {
            return;
        };
        if let Some(domain) = domain.and_then(|number| self.domains.get_mut(&number)) {
            domain.owner = Owner::Left(agent);
        }
        self.forget_over(MAX_LEFT, |owner| matches!(owner, Owner::Left(_)));
    }

    pub fn hear(&mut self, record: Record) -> Verdict<A> {
        match record {
            Record::Access(access) => self.refused(access),
            Record::Gone { domain, denials } => {
                let Some(gone) = self.domains.remove(&domain) else {
                    return Verdict::Nothing;
                };
                match gone.owner {
                    Owner::Agent(agent) | Owner::Left(agent) => {
                        let untold = gone.told.map(|told| denials.saturating_sub(told));
                        untold.map_or(Verdict::Nothing, |untold| Verdict::Ended(agent, untold))
                    }
                    Owner::Waiting { init, .. } => {
                        self.inits.remove(&init);
                        Verdict::Nothing
                    }
                }
            }
        }
    }

    /// Refusals of domains that were never made known while some agent's was not.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    fn refused(&mut self, access: Access) -> Verdict<A> {
        let number = access.domain;
        if let Some(domain) = self.domains.get_mut(&number) {
            return match &mut domain.owner {
                Owner::Agent(agent) | Owner::Left(agent) => {
                    domain.told = domain.told.map(|told| told + 1);
                    Verdict::Tell(agent.clone(), access)
                }
                Owner::Waiting { held, .. } => {
                    // What has no room is counted at the domain's end, as it is not told.
                    if held.len() < MAX_HELD {
                        held.push(access);
                        domain.told = domain.told.map(|told| told + 1);
                    }
                    Verdict::Nothing
                }
            };
        }
        let Some(init) = access.signalled() else {
            let unknown = |init: &Init<A>| matches!(init, Init::Agent(_, None));
            self.strays += u64::from(self.inits.values().any(unknown));
            return Verdict::Nothing;
        };
        match self.inits.get_mut(&init) {
            Some(Init::Agent(agent, domain @ None)) => {
                *domain = Some(number);
                let agent = agent.clone();
                self.insert(number, Owner::Agent(agent.clone()), Some(1));
                Verdict::Learned(agent, number)
            }
            // Made inside, by the agent's own programs.
            Some(_) => Verdict::Nothing,
            None => {
                self.inits.insert(init, Init::Domain(number));
                let held = Vec::new();
                self.insert(number, Owner::Waiting { init, held }, Some(1));
                self.forget_over(MAX_WAITING, |owner| matches!(owner, Owner::Waiting { .. }));
                Verdict::Nothing
            }
        }
    }

    fn insert(&mut self, number: u64, owner: Owner<A>, told: Option<u64>) {
        self.clock += 1;
        let since = self.clock;
        self.domains.insert(number, Domain { owner, told, since });
    }

    /// Forgets the one known for longest of those that are `such`, if they are more than `most`.
    fn forget_over(&mut self, most: usize, such: impl Fn(&Owner<A>) -> bool) {
        let these = || self.domains.iter().filter(|(_, of)| such(&of.owner));
        if these().count() <= most {
            return;
        }
        let first = these().min_by_key(|(_, of)| of.since);
        let Some(first) = first.map(|(number, _)| *number) else {
            return;
        };
        if let Some(Domain {
            owner: Owner::Waiting { init, .. },
            ..
        }) = self.domains.remove(&first)
        {
            self.inits.remove(&init);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_kernel::audit::record::Target;

    fn signal(domain: u64, init: u32) -> Record {
        Record::Access(Access {
            domain,
            blockers: "scope.signal".into(),
            target: Target::Process {
                pid: init,
                comm: b"agentd-launch".to_vec(),
            },
        })
    }

    fn file(domain: u64) -> Access {
        Access {
            domain,
            blockers: "fs.write_file".into(),
            target: Target::Path(b"/x".to_vec()),
        }
    }

    fn refused(domain: u64) -> Record {
        Record::Access(file(domain))
    }

    #[test]
    fn a_domain_is_its_agents_from_the_signal_on_that_made_it_known() {
        let mut domains = Domains::default();
        domains.arrive(100, "a", None);
        domains.arrive(200, "b", None);
        assert_eq!(domains.hear(refused(7)), Verdict::Nothing);
        assert_eq!(domains.strays(), 1, "it may have been an agent's");
        assert_eq!(domains.hear(signal(7, 100)), Verdict::Learned("a", 7));
        assert_eq!(domains.hear(signal(8, 200)), Verdict::Learned("b", 8));
        assert_eq!(domains.hear(refused(7)), Verdict::Tell("a", file(7)));
        assert_eq!(domains.hear(refused(8)), Verdict::Tell("b", file(8)));
        assert_eq!(domains.hear(refused(9)), Verdict::Nothing);
        assert_eq!(domains.strays(), 1, "every agent's is known");
    }

    #[test]
    fn what_was_refused_before_agentd_knows_the_agent_waits_for_it() {
        let mut domains = Domains::default();
        assert_eq!(domains.hear(signal(7, 100)), Verdict::Nothing);
        for _ in 0..MAX_HELD + 5 {
            assert_eq!(domains.hear(refused(7)), Verdict::Nothing);
        }
        let arrival = domains.arrive(100, "a", None);
        assert_eq!(arrival.learned, Some(7));
        assert_eq!(arrival.held, vec![file(7); MAX_HELD]);
        let gone = Record::Gone {
            domain: 7,
            denials: MAX_HELD as u64 + 6,
        };
        assert_eq!(domains.hear(gone), Verdict::Ended("a", 5));
    }

    #[test]
    fn a_domain_that_is_made_inside_takes_nothing_over() {
        let mut domains = Domains::default();
        domains.arrive(100, "a", None);
        domains.hear(signal(7, 100));
        assert_eq!(domains.hear(signal(70, 100)), Verdict::Nothing);
        assert_eq!(domains.hear(refused(70)), Verdict::Nothing);
        assert_eq!(domains.hear(refused(7)), Verdict::Tell("a", file(7)));
    }

    #[test]
    fn a_process_number_that_is_used_again_is_the_next_agents() {
        let mut domains = Domains::default();
        domains.arrive(100, "a", None);
        domains.hear(signal(7, 100));
        domains.leave(100);
        assert_eq!(domains.hear(refused(7)), Verdict::Tell("a", file(7)));
        assert_eq!(domains.hear(signal(9, 100)), Verdict::Nothing);
        assert_eq!(domains.arrive(100, "b", None).learned, Some(9));
        assert_eq!(domains.hear(refused(9)), Verdict::Tell("b", file(9)));
        // A launch that failed: its domain is gone before its number is anybody else's.
        domains.leave(100);
        domains.hear(signal(10, 100));
        domains.hear(Record::Gone {
            domain: 10,
            denials: 1,
        });
        assert_eq!(domains.arrive(100, "c", None).learned, None);
    }

    #[test]
    fn what_an_earlier_agentd_knew_holds_and_what_it_told_is_not_counted() {
        let mut domains = Domains::default();
        let arrival = domains.arrive(100, "a", Some(7));
        assert_eq!(arrival.learned, None, "it is kept already");
        assert_eq!(domains.hear(refused(7)), Verdict::Tell("a", file(7)));
        let gone = Record::Gone {
            domain: 7,
            denials: 1000,
        };
        assert_eq!(domains.hear(gone), Verdict::Nothing);
    }

    #[test]
    fn the_end_of_a_domain_says_exactly_what_was_lost() {
        let mut domains = Domains::default();
        domains.arrive(100, "a", None);
        domains.hear(signal(7, 100));
        domains.hear(refused(7));
        domains.leave(100);
        let gone = Record::Gone {
            domain: 7,
            denials: 42,
        };
        assert_eq!(domains.hear(gone.clone()), Verdict::Ended("a", 40));
        assert_eq!(domains.hear(gone), Verdict::Nothing);
    }

    #[test]
    fn strangers_and_the_ended_never_pile_up() {
        let mut domains = Domains::<&str>::default();
        for n in 0..4 * MAX_WAITING as u32 {
            domains.hear(signal(u64::from(n) + 1, n + 1));
        }
        assert_eq!(domains.domains.len(), MAX_WAITING);
        assert_eq!(domains.inits.len(), MAX_WAITING);
        let mut domains = Domains::default();
        for n in 0..4 * MAX_LEFT as u32 {
            domains.arrive(n, "a", Some(u64::from(n)));
            domains.leave(n);
        }
        assert_eq!((domains.domains.len(), domains.inits.len()), (MAX_LEFT, 0));
    }
}
