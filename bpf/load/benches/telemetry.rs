//! What scheduler telemetry adds to a switch and the wake-up before it. `cargo xtask bench kernel`
//! judges.
//!
//! Two processes on one processor hand a byte to and fro through pipes, so that each hand-over is
//! one wake-up and one switch. The programs are attached for one sample and not for the next, the
//! order turned round every other round; what the samples of one round differ by, divided by the
//! hand-overs, is the cost. A sample is the processor time of both, so what else the processor does
//! meanwhile is not in it. All the rest counts: the tracepoints' own code, the programs, and what
//! they push out of the caches. `--rounds N`; prints one JSON object: `agent_ns` (both are an
//! agent's), `nobody_ns` (neither is), `hand_over_ns` (without the programs), and `programs_ns`,
//! what the kernel itself counts for the programs while it counts (`BPF_ENABLE_STATS`), with what
//! counting costs. Or `skipped`, with the reason.

#[path = "../tests/kernel/bed.rs"]
#[allow(dead_code, reason = "the tests' bed, of which this takes a part")]
mod bed;
#[path = "../../../tests/kit/src/descriptors.rs"]
mod descriptors;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use agentd_bpf::Group;
use agentd_bpf_load::groups::hooks;
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use rustix::io::{read, write};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::bed::{Agent, Bed, Child, object};

/// Hand-overs of one sample: some tens of milliseconds.
const HAND_OVERS: u64 = 40_000;

/// Two processes with a byte between them; ended when dropped.
struct Pair {
    /// Asks the first one for so many hand-overs, and is told when they were made.
    control: UnixStream,
    children: [Child; 2],
}

impl Pair {
    fn start(agent: &Agent) -> Self {
        let (control, theirs) = UnixStream::pair().expect("a socket pair");
        let (there_reader, there) = rustix::pipe::pipe().expect("a pipe");
        let (back_reader, back) = rustix::pipe::pipe().expect("a pipe");
        // A child has copies of all of these, so none sees an end; the bed kills them.
        let second = agent.start(|| {
            settle_down();
            let mut byte = [0];
            while read(&there_reader, &mut byte) == Ok(1) && write(&back, &byte) == Ok(1) {}
            0
        });
        let first = agent.start(|| {
            settle_down();
            let mut wanted = [0; 8];
            while read(&theirs, &mut wanted) == Ok(8) {
                let mut byte = [0];
                for _ in 0..u64::from_ne_bytes(wanted) / 2 {
                    if write(&there, &byte) != Ok(1) || read(&back_reader, &mut byte) != Ok(1) {
                        return 1;
                    }
                }
                if write(&theirs, &byte) != Ok(1) {
                    return 1;
                }
            }
            0
        });
        Self {
            control,
            children: [first, second],
        }
    }

    /// Nanoseconds of processor time of one hand-over.
    fn sample(&mut self, hand_overs: u64) -> f64 {
        let before = self.used_ns();
        let asked = self.control.write_all(&hand_overs.to_ne_bytes());
        asked
            .and_then(|()| self.control.read_exact(&mut [0]))
            .expect("the first process lives");
        (self.used_ns() - before) as f64 / hand_overs as f64
    }

    /// Processor time of both since they began.
    fn used_ns(&self) -> u64 {
        self.children.iter().map(|child| used_ns(child.pid())).sum()
    }
}

fn used_ns(pid: Pid) -> u64 {
    let (mut clock, mut used) = (
        0,
        libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
    );
    // SAFETY: each call writes one value of the type that it is given; the process is a child that was not waited for.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid.as_raw_pid(), &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut used) != 0
    };
    assert!(!failed, "the processor time of {pid:?}");
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// To the last processor, where interrupts are fewest.
fn settle_down() {
    let last = std::thread::available_parallelism().map_or(0, |all| all.get() - 1);
    let mut set = CpuSet::new();
    set.set(last);
    // Where it may not choose, both stay where they are, and the figure has migrations in it.
    if sched_setaffinity(None, &set).is_err() {
        eprintln!("the processes could not be kept on one processor");
    }
}

fn attach(bed: &Bed, agents: &[&Agent]) {
    let loaded = bed
        .load_again(&object(), agents)
        .expect("the programs load");
    assert!(loaded.groups.has(Group::Sched), "{:?}", loaded.absent);
}

fn detach(bed: &Bed) {
    // A link lives as long as its pin. There is one version of pins.
    for version in fs::read_dir(bed.pins.path()).expect("the pins").flatten() {
        for hook in hooks(Group::Sched) {
            let link = version.path().join("links").join(hook.program);
            fs::remove_file(link).expect("a link's pin");
        }
    }
}

/// What a sample differs by with the programs, and the sample without them.
fn round(bed: &Bed, agents: &[&Agent], pair: &mut Pair, number: usize) -> (f64, f64) {
    let mut sample = |attached: bool| {
        if attached {
            attach(bed, agents);
        } else {
            detach(bed);
        }
        // Both find cold what the change left cold.
        pair.sample(HAND_OVERS / 10);
        pair.sample(HAND_OVERS)
    };
    // They are attached when this begins, and when it ends.
    let (with, without);
    if number.is_multiple_of(2) {
        with = sample(true);
        without = sample(false);
        attach(bed, agents);
    } else {
        without = sample(false);
        with = sample(true);
    }
    (with - without, without)
}

/// What the kernel counts for a program: its time and its runs.
#[derive(Clone, Copy)]
struct Counted {
    id: u32,
    ns: f64,
    runs: f64,
}

/// The youngest program of this name, which is ours unless another agentd starts this moment; then it is the same one.
fn counted(name: &str, id: Option<u32>) -> Option<Counted> {
    let programs = loaded_programs().filter_map(Result::ok);
    let ours = programs.filter(|program| {
        program.name_as_str() == Some(name) && id.is_none_or(|id| id == program.id())
    });
    ours.last().map(|program| Counted {
        id: program.id(),
        ns: program.run_time().as_nanos() as f64,
        runs: program.run_count() as f64,
    })
}

/// Nanoseconds of a run of `sched_switch` and of one of `sched_wakeup`, together.
fn programs(pair: &mut Pair) -> Option<f64> {
    let counting = enable_stats(Stats::RunTime).expect("the kernel counts");
    let names = ["sched_switch", "sched_wakeup"];
    let earlier = names.map(|name| counted(name, None));
    pair.sample(HAND_OVERS);
    let runs = names.iter().zip(earlier).map(|(name, earlier)| {
        let (earlier, later) = (earlier?, counted(name, Some(earlier?.id))?);
        (later.runs > earlier.runs).then(|| (later.ns - earlier.ns) / (later.runs - earlier.runs))
    });
    let both = runs.sum();
    drop(counting);
    both
}

#[allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn main() {
    // Otherwise this is no run of the benchmark, such as `cargo test --benches`.
    let rounds = std::env::args().skip_while(|argument| argument != "--rounds");
    let Some(rounds) = rounds
        .skip(1)
        .find_map(|number| number.parse::<usize>().ok())
    else {
        return;
    };
    let Some(bed) = Bed::new() else {
        println!("{{\"skipped\":\"there is no root, or no whole cgroup2 hierarchy\"}}");
        return;
    };
    let mut absent = bed.loaded.absent.iter();
    if let Some(absent) = absent.find(|absent| absent.group == Group::Sched) {
        println!("{{\"skipped\":{:?}}}", absent.why);
        return;
    }
    let (known, stranger) = (bed.agent(), bed.stranger());
    let agents = [&known];
    let mut of_agent = Pair::start(&known);
    let mut of_nobody = Pair::start(&stranger);
    let (mut agent, mut nobody, mut plain, mut programs_ns) = (vec![], vec![], vec![], vec![]);
    for number in 0..=rounds {
        let (cost, without) = round(&bed, &agents, &mut of_agent, number);
        let (idle, _) = round(&bed, &agents, &mut of_nobody, number);
        let counted = programs(&mut of_agent);
        // The first round warms up.
        if number > 0 {
            agent.push(cost);
            nobody.push(idle);
            plain.push(without);
            programs_ns.extend(counted);
        }
    }
    // Before the bed removes their cgroups.
    drop((of_agent, of_nobody));
    println!(
        "{{\"agent_ns\":{agent:?},\"nobody_ns\":{nobody:?},\"hand_over_ns\":{plain:?},\"programs_ns\":{programs_ns:?}}}"
    );
}
