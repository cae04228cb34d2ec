//! All programs at once under everything that processes in agents' cgroups can do to them: random
//! frames, random socket states, tasks that come, go, stop and wander between cgroups, while
//! restrictions and the directory change beneath.
//!
//! `AGENTD_HOSTILE_S` says for how many seconds (5 unless told), `AGENTD_HOSTILE_SEED` repeats a
//! run's choices (its interleaving is the machine's). What must hold: an honest agent loses no
//! message, every refusal is told or counted as lost, no table grows, and the kernel says nothing
//! in its log that it says when something is wrong with it.

mod attack;
mod direct;
mod honest;
mod kmsg;

use crate::bed::{Agent, Bed, Child, fd_of};
use agentd_bpf::layout::{Counters, DENIALS_LEN, Denial, ROWS, revoked};
use agentd_bpf::{Ring, Rows, SchedTable, Table};
use attack::{Random, attack};
use direct::Paths;
use kmsg::KernelLog;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Agents whose processes attack.
const ATTACKERS: usize = 3;

fn number(name: &str, usual: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text}: a number is allowed")),
        Err(_) => usual,
    }
}

/// Bytes that the kernel accounts to each table.
fn memory(bed: &Bed) -> Vec<(Table, String)> {
    let of = |(table, fd): &(Table, std::os::fd::OwnedFd)| {
        let info = format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd());
        let info = std::fs::read_to_string(info).expect("fdinfo");
        let line = info.lines().find(|line| line.starts_with("memlock:"));
        (*table, line.expect("memlock").to_owned())
    };
    bed.loaded.tables.iter().map(of).collect()
}

/// What was told of each slot.
#[derive(Default)]
struct Told(BTreeMap<u32, u64>);

impl Told {
    fn take(&mut self, ring: &mut Ring) {
        ring.take(usize::MAX, |record| {
            assert_eq!(record.len(), size_of::<Denial>());
            let slot = std::mem::offset_of!(Denial, slot);
            let slot = &record[slot..slot + 4];
            let slot = u32::from_ne_bytes(slot.try_into().expect("four bytes"));
            *self.0.entry(slot).or_default() += 1;
        });
    }
}

#[test]
fn nothing_that_agents_do_breaks_a_program() {
    let Some(mut bed) = Bed::new() else { return };
    let log = KernelLog::open();
    let seconds = number("AGENTD_HOSTILE_S", 5);
    let seed = number("AGENTD_HOSTILE_SEED", std::process::id().into());
    let groups = bed.loaded.groups;
    // Shown with a failure.
    eprintln!("{seconds} s, AGENTD_HOSTILE_SEED={seed}, groups {groups:?}");
    let before = memory(&bed);

    let honest = bed.agent();
    let victims: Vec<Agent> = (0..ATTACKERS).map(|_| bed.agent()).collect();
    let stranger = bed.stranger();
    let mut paths = Paths::new(&bed, &victims);
    let addresses = paths
        .as_ref()
        .map_or_else(Vec::new, |paths| paths.addresses.clone());
    let places: Vec<_> = victims
        .iter()
        .chain([&stranger])
        .map(|agent| agent.cgroup.join("cgroup.procs"))
        .collect();
    let born = Instant::now();
    let (honest_child, stop_honest) = honest::start(&honest);
    let mut attackers: Vec<Child> = Vec::new();
    for (index, agent) in victims.iter().chain([&stranger]).enumerate() {
        let (seed, places) = (seed ^ (index as u64) << 32, places.clone());
        let addresses = addresses.clone();
        attackers.push(agent.start(move || {
            attack(
                seed,
                Duration::from_secs(seconds),
                &places,
                (index, &addresses),
            )
        }));
    }

    let began = Instant::now();
    let mut random = Random::new(!seed);
    let mut told = Told::default();
    while began.elapsed() < Duration::from_secs(seconds) {
        let agent = &victims[random.below(victims.len() as u64) as usize];
        match random.below(8) {
            0 => {
                bed.directory.remove(agent.id);
                bed.directory.insert(agent.id, agent.slot).expect("place");
            }
            1 => {
                let ports = std::array::from_fn(|_| random.below(1 << 16) as u16);
                bed.policies.restrict(agent.slot, revoked::NET, ports);
            }
            _ => {
                let bits = if random.below(3) == 0 {
                    revoked::ALL
                } else {
                    0
                };
                // Nobody would be left to attack without `execve` and files; those bits have tests of their own.
                bed.restrict(agent, bits & revoked::NET);
            }
        }
        // Now and then the ring is left to overflow.
        if random.below(4) != 0 {
            told.take(&mut bed.denials);
        }
        if let Some(paths) = &mut paths {
            paths.step(&mut random);
        }
        std::thread::sleep(Duration::from_millis(random.below(20)));
    }
    for attacker in attackers {
        assert_eq!(attacker.code(), 0, "an attacker failed to attack");
    }
    assert_eq!(rustix::io::write(&stop_honest, b"x"), Ok(1));
    assert_eq!(honest_child.code(), 0, "the honest agent lost a message");

    if let Some(paths) = paths {
        paths.finish(&victims);
    }
    let all: Vec<&Agent> = victims.iter().chain([&honest]).collect();
    let refused = settle(&mut bed, &all, &mut told);
    assert!(refused > 0, "nothing was ever refused");
    assert_eq!(
        bed.counters(&honest).denied,
        0,
        "the honest agent was refused"
    );
    told.0
        .retain(|slot, _| victims.iter().all(|agent| agent.slot != *slot));
    assert!(told.0.is_empty(), "told of others: {:?}", told.0);
    assert_eq!(memory(&bed), before, "a table grew");
    check_telemetry(&bed, &victims, born.elapsed());
    log.check();
}

/// Waits until every refusal of each is told or counted as lost, and says how many there were.
///
/// A connection whose process has ended sends its last packets again for a while, and each is
/// refused: a look at the counters may be of another moment than the ring. What was refused and
/// never told stays a difference.
fn settle(bed: &mut Bed, agents: &[&Agent], told: &mut Told) -> u64 {
    let began = Instant::now();
    loop {
        told.take(&mut bed.denials);
        let counted: Vec<Counters> = agents.iter().map(|agent| bed.counters(agent)).collect();
        let of = |agent: &Agent| told.0.get(&agent.slot).copied().unwrap_or(0);
        let odd = agents
            .iter()
            .zip(&counted)
            .find(|(agent, counted)| counted.denied != of(agent) + counted.lost);
        let Some((agent, counted)) = odd else {
            return counted.iter().map(|counted| counted.denied).sum();
        };
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "slot {}: {} told, {counted:?}",
            agent.slot,
            of(agent)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Nobody ran longer than there were processors to run on.
fn check_telemetry(bed: &Bed, agents: &[Agent], took: Duration) {
    if !bed.loaded.groups.has(agentd_bpf::Group::Sched) {
        return;
    }
    let tables = [Table::Sched, Table::Seats].map(|table| fd_of(&bed.loaded, table));
    let table = SchedTable::map(tables[0], tables[1]).expect("map");
    let processors = std::thread::available_parallelism()
        .expect("processors")
        .get() as u128;
    let mut ran = 0;
    for agent in agents {
        let (total, _) = table.read(agent.slot, 0).expect("a row");
        let waits: u64 = total.waits.iter().sum();
        assert!(total.begun > 0 && total.voluntary > 0, "{total:?}");
        assert!(waits + total.unseen >= total.voluntary, "{total:?}");
        ran += u128::from(total.run_ns);
    }
    assert!(ran <= took.as_nanos() * processors, "{ran} ns in {took:?}");
}

/// A ring that nobody empties, as when agentd is dead: refusals go on, and are counted.
#[test]
fn a_ring_that_nobody_reads_costs_nothing_but_its_own_records() {
    let Some(bed) = Bed::with(agentd_bpf::Group::Net) else {
        return;
    };
    let agent = bed.agent();
    bed.restrict(&agent, revoked::NET);
    let most = DENIALS_LEN as usize / size_of::<Denial>();
    let before = memory(&bed);
    let code = agent.run(move || {
        for _ in 0..2 * most {
            // SAFETY: makes a descriptor or an error.
            if unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) } >= 0 {
                return 1;
            }
        }
        0
    });
    assert_eq!(code, 0, "every one is refused");
    let counters: Rows<_> =
        Rows::map(fd_of(&bed.loaded, Table::Counters), "COUNTERS", ROWS).expect("map");
    let counted: Counters = counters.get(agent.slot as usize).expect("row");
    assert_eq!(counted.denied, 2 * most as u64);
    assert!(counted.lost > most as u64 / 2, "{counted:?}");
    assert_eq!(memory(&bed), before);
}
