//! What the two filters cost a launch: loading the floor's and the plan's, and one system call under them.
//!
//! Each sample is a thread of its own, which loads the filters onto itself alone; threads without filters alternate with it.
//! Medians on stderr, or with `--json` one report. The kernel runs a new filter once for every system call number, so this is
//! where a linear filter would show.

use std::hint::black_box;
use std::time::{Duration, Instant};

use agentd_kernel::sys::security::{load_seccomp_filter, set_no_new_privs};
use agentd_kernel::sys::{SockFilter, process};
use agentd_launch::floor::{Refusals, base_filter};
use agentd_launch::plan::ExecFlags;
use agentd_sandbox::seccomp::{
    self, Ioctls, Listening, MemoryFiles, Netlink, Surface, SyscallSet, WriteExec, compile,
};

const ROUNDS: usize = 400;
const CALLS: u32 = 2000;
/// Of both filters, per launch.
const LIMIT: Duration = Duration::from_micros(200);

struct Sample {
    load: Duration,
    call: Duration,
}

fn sample(filters: &[&[SockFilter]]) -> Sample {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_no_new_privs().expect("no_new_privs can always be set");
            let begun = Instant::now();
            for filter in filters {
                load_seccomp_filter(filter).expect("a valid filter");
            }
            let load = begun.elapsed();
            let begun = Instant::now();
            for _ in 0..CALLS {
                black_box(process::pid());
            }
            let call = begun.elapsed() / CALLS;
            Sample { load, call }
        });
        thread.join().expect("a thread that only measures")
    })
}

fn median(mut samples: Vec<Duration>) -> Duration {
    samples.sort_unstable();
    samples[samples.len() / 2]
}

#[expect(clippy::print_stdout, reason = "a bench prints what it measured")]
fn main() {
    let surface = Surface {
        sets: SyscallSet::ALL.to_vec(),
        memory_files: MemoryFiles::Sealed,
        write_exec: WriteExec::Refused,
        ioctls: Ioctls::Known,
        listening: Listening::Allowed,
        netlink: Netlink::Interfaces,
        refusals: seccomp::Refusals::Silent,
    };
    let (floor, plan) = (
        base_filter(ExecFlags::NONE, Refusals::Silent),
        compile(&surface),
    );
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with.push(sample(&[floor, &plan]));
        without.push(sample(&[]));
    }
    let of = |samples: &[Sample], pick: fn(&Sample) -> Duration| {
        median(samples.iter().map(pick).collect())
    };
    let load = of(&with, |s| s.load);
    let (call, plain) = (of(&with, |s| s.call), of(&without, |s| s.call));
    let extra = call.saturating_sub(plain);
    if std::env::args().any(|argument| argument == "--json") {
        println!(
            "{{\"rows\":[{{\"id\":\"seccomp.exec\",\"value\":{:.4},\"unit\":\"ms\",\"limit\":{:.4},\"met\":{}}},{{\"id\":\"seccomp.call\",\"value\":{},\"unit\":\"ns\",\"limit\":null}}]}}",
            load.as_secs_f64() * 1000.0,
            LIMIT.as_secs_f64() * 1000.0,
            load <= LIMIT,
            extra.as_nanos(),
        );
    } else {
        let least = with.iter().map(|s| s.load).min().unwrap_or_default();
        eprintln!(
            "loading both filters: {load:?}, at least {least:?} (limit {LIMIT:?}); instructions: {} and {}",
            floor.len(),
            plan.len()
        );
        eprintln!("getpid: {plain:?} without, {call:?} with");
    }
}
