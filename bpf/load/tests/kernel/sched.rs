//! Scheduler telemetry beside the kernel's own figures of the same processes.

use crate::bed::{Agent, Bed, fd_of};
use agentd_bpf::layout::sched::{Sched, off};
use agentd_bpf::{Group, SchedTable, Table};
use rustix::io::{read, write};
use rustix::thread::{NanosleepRelativeResult, nanosleep};
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::fs;

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// A bed with telemetry and its tables as agentd has them.
fn bed() -> Option<(Bed, SchedTable)> {
    let bed = Bed::with(Group::Sched)?;
    let (rows, seats) = (
        fd_of(&bed.loaded, Table::Sched),
        fd_of(&bed.loaded, Table::Seats),
    );
    let table = SchedTable::map(rows, seats).expect("map");
    Some((bed, table))
}

fn figures(table: &SchedTable, agent: &Agent) -> Sched {
    table.read(agent.slot, now_ns()).expect("a row").0
}

/// The figures once so many tasks have left their processor for good, which may be after they were reaped.
fn at_end(table: &SchedTable, agent: &Agent, tasks: u64) -> Sched {
    for _ in 0..60_000 {
        let seen = figures(table, agent);
        if seen.ended == tasks {
            return seen;
        }
        nap(1);
    }
    panic!("{tasks} tasks have ended: {:?}", figures(table, agent));
}

fn nap(ms: i64) {
    let time = Timespec {
        tv_sec: 0,
        tv_nsec: ms * 1_000_000,
    };
    let slept = nanosleep(&time);
    assert!(matches!(slept, NanosleepRelativeResult::Ok), "{slept:?}");
}

/// CPU time of this process, ns.
fn own_cpu_ns() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64
}

/// Runs until this process has used so much.
fn burn(until_ns: u64) {
    while own_cpu_ns() < until_ns {
        std::hint::spin_loop();
    }
}

/// `voluntary_ctxt_switches` and `nonvoluntary_ctxt_switches` of this process.
fn own_switches() -> [u64; 2] {
    // SAFETY: getrusage writes one struct of this type.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    [usage.ru_nvcsw as u64, usage.ru_nivcsw as u64]
}

/// In an agent's process, first: it came on its processor before it was an agent's, and is counted
/// from the next time on, which is after a switch of its own will.
fn begin() {
    let [before, _] = own_switches();
    while own_switches()[0] == before {
        nap(1);
    }
}

/// Waits until a process that was told to stop or freeze has left its processor: reading this file
/// waits for that, and says `running` of one that goes on. (Who asks for its state learns of it
/// earlier.)
fn is_off(pid: i32) {
    let path = format!("/proc/{pid}/syscall");
    while fs::read_to_string(&path).is_ok_and(|said| said.starts_with("running")) {
        nap(1);
    }
}

#[test]
fn switches_are_those_that_the_kernel_counts() {
    let Some((bed, table)) = bed() else { return };
    let agent = bed.agent();
    let (ready, tell) = rustix::pipe::pipe().expect("pipe");
    let child = agent.start(move || {
        begin();
        let before = own_switches();
        for _ in 0..200 {
            nap(0);
            rustix::thread::sched_yield();
        }
        nap(1);
        let after = own_switches();
        let counted = [after[0] - before[0], after[1] - before[1]];
        // SAFETY: two words of plain integers.
        let bytes = unsafe { std::slice::from_raw_parts(counted.as_ptr().cast::<u8>(), 16) };
        i32::from(write(&tell, bytes) != Ok(16))
    });
    assert_eq!(child.code(), 0);
    let mut bytes = [0u8; 16];
    assert_eq!(read(&ready, &mut bytes), Ok(16));
    let word = |at: usize| {
        let word = &bytes[8 * at..8 * at + 8];
        u64::from_ne_bytes(word.try_into().expect("eight"))
    };
    let seen = at_end(&table, &agent, 1);
    // Beyond what the child counted is its end.
    assert!(seen.voluntary > word(0), "{seen:?}, {}", word(0));
    assert!(seen.involuntary >= word(1), "{seen:?}, {}", word(1));
    let switches = seen.voluntary + seen.involuntary;
    let counted = word(0) + word(1);
    // A nap that is over before it began, or in which it was pushed off first, is no switch of its own will.
    assert!(word(0) >= 100, "of 200 naps: {}", word(0));
    assert!(
        switches <= counted + counted / 4 + 50,
        "{switches} seen, {counted} counted"
    );
    let waits: u64 = seen.waits.iter().sum();
    assert!(waits + seen.unseen >= switches, "{seen:?}");
}

#[test]
fn time_is_run_waited_and_slept_and_nothing_else() {
    let Some((bed, table)) = bed() else { return };
    let agent = bed.agent();
    let began = now_ns();
    let code = agent.run(|| {
        begin();
        burn(own_cpu_ns() + 30_000_000);
        nap(40);
        0
    });
    assert_eq!(code, 0);
    let seen = at_end(&table, &agent, 1);
    let took = now_ns() - began;
    assert!(seen.run_ns >= 20_000_000, "{seen:?}");
    assert!(seen.off_ns[off::SLEEP] >= 20_000_000, "{seen:?}");
    let all = seen.run_ns + seen.wait_ns + seen.off_ns.iter().sum::<u64>();
    assert!(all <= took, "{all} of {took}: {seen:?}");
    assert_eq!(seen.off_ns[off::STOPPED] + seen.off_ns[off::FROZEN], 0);
    assert!(seen.wait_max_ns <= seen.wait_ns);
}

#[test]
fn what_runs_now_is_counted_before_it_leaves() {
    let Some((bed, table)) = bed() else { return };
    let agent = bed.agent();
    let (until, end) = rustix::pipe::pipe().expect("pipe");
    rustix::io::ioctl_fionbio(&until, true).expect("FIONBIO");
    let child = agent.start(move || {
        while read(&until, &mut [0u8; 1]) != Ok(1) {
            std::hint::spin_loop();
        }
        0
    });
    // Where there is one processor, who looks is on it.
    let alone = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    let (mut last, mut seated) = (0, alone);
    while last < 20_000_000 || !seated {
        let (now, seats) = table.read(agent.slot, now_ns()).expect("a row");
        last = now.run_ns;
        seated |= !seats.is_empty();
        nap(1);
    }
    assert_eq!(write(&end, b"x"), Ok(1));
    assert_eq!(child.code(), 0);
    at_end(&table, &agent, 1);
    // Its end is counted a moment before its seat is free.
    let left = (0..60_000).any(|_| {
        let (_, seats) = table.read(agent.slot, now_ns()).expect("a row");
        seats.is_empty() || {
            nap(1);
            false
        }
    });
    assert!(left, "somebody is left on a processor");
}

#[test]
fn a_stopped_and_a_frozen_agent_are_told_apart() {
    let Some((bed, table)) = bed() else { return };
    let (stopped, frozen) = (bed.agent(), bed.agent());
    assert_eq!(
        stopped.run(|| {
            // A child that stops itself, and is let go on once it has.
            // SAFETY: as the agent itself, the child of this fork only makes system calls: fork, raise, waitpid, _exit.
            unsafe {
                let pid = libc::fork();
                if pid == 0 {
                    libc::raise(libc::SIGSTOP);
                    libc::_exit(0);
                }
                let mut status = 0;
                libc::waitpid(pid, &raw mut status, libc::WUNTRACED);
                is_off(pid);
                nap(100);
                libc::kill(pid, libc::SIGCONT);
                libc::waitpid(pid, &raw mut status, 0);
            }
            0
        }),
        0
    );
    let seen = at_end(&table, &stopped, 2);
    assert!(seen.off_ns[off::STOPPED] >= 10_000_000, "{seen:?}");
    assert_eq!(seen.off_ns[off::FROZEN], 0, "{seen:?}");
    assert_eq!(seen.begun, 1, "{seen:?}");

    let (until, end) = rustix::pipe::pipe().expect("pipe");
    let child = frozen.start(move || i32::from(read(&until, &mut [0u8; 1]) != Ok(1)));
    let freeze = frozen.cgroup.join("cgroup.freeze");
    let is_frozen = || {
        let events = fs::read_to_string(frozen.cgroup.join("cgroup.events")).expect("events");
        events.contains("frozen 1")
    };
    while !fs::read_to_string(frozen.cgroup.join("cgroup.procs"))
        .expect("procs")
        .contains('\n')
    {
        std::thread::yield_now();
    }
    fs::write(&freeze, "1").expect("freeze");
    while !is_frozen() {
        std::thread::yield_now();
    }
    is_off(child.pid().as_raw_pid());
    nap(100);
    fs::write(&freeze, "0").expect("thaw");
    assert_eq!(write(&end, b"x"), Ok(1));
    assert_eq!(child.code(), 0);
    let seen = at_end(&table, &frozen, 1);
    assert!(seen.off_ns[off::FROZEN] >= 10_000_000, "{seen:?}");
    assert_eq!(seen.off_ns[off::STOPPED], 0, "{seen:?}");
}

#[test]
fn agents_do_not_see_one_another_and_an_inner_cgroup_counts() {
    let Some((bed, table)) = bed() else { return };
    let (mut inner, idle, stranger) = (bed.agent(), bed.agent(), bed.stranger());
    inner.cgroup.push("a");
    fs::create_dir(&inner.cgroup).expect("mkdir");
    inner.cgroup.push("b");
    fs::create_dir(&inner.cgroup).expect("mkdir");
    let work = || {
        begin();
        burn(own_cpu_ns() + 5_000_000);
        nap(1);
        0
    };
    assert_eq!(inner.run(work), 0);
    assert_eq!(stranger.run(work), 0);
    let seen = at_end(&table, &inner, 1);
    assert!(seen.run_ns > 1_000_000 && seen.voluntary > 0, "{seen:?}");
    assert_eq!(figures(&table, &idle), Sched::default());
    assert_eq!(figures(&table, &stranger), Sched::default());
    assert_eq!(table.read(0, now_ns()), None, "nobody's row is nobody's");
}
