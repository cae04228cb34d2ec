//! What a log costs its producer, with one reader and with many, each in a process of its own.
//!
//! `cargo bench -p agentd-bus --bench log`. Prints one JSON object per row. The producer is pinned to CPU 0, its
//! readers to CPU 1. CPU time is that of the producer's whole process, its doorbell thread included, per
//! message. Rounds alternate; a ratio is that of one round. Figures are of this machine and this run; they are
//! no promise.

use std::os::fd::AsFd;
use std::time::Duration;

use agentd_bus::channel::{Tag, Waiting};
use agentd_bus::log::{
    Delivery, Reader, ReaderId, ReaderOptions, Start, Writer, WriterOptions, cursor_words,
    data_words, format_cursor, format_data,
};
use agentd_bus::shm::memfd;
use agentd_bus::shm::pages::Mapping;
use agentd_bus::shm::park::Closer;

const TAG: Tag = Tag {
    kind: 4,
    flags: 0,
    correlation: 0,
};
const FOREVER: Duration = Duration::from_secs(600);
const SLOTS: usize = 1024;
const ROUNDS: usize = 9;

fn pin(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    if let Err(errno) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("not pinned to CPU {cpu}: {errno}");
    }
}

/// Another process that reads until it is killed.
struct Child(rustix::process::Pid);

impl Child {
    fn read(mut reader: Reader<Mapping, Mapping>) -> Self {
        // SAFETY: this process has one thread whenever it forks (a log's doorbell thread ends with the log), so
        // the child may do anything; it never returns from here.
        match unsafe { libc::fork() } {
            0 => {
                pin(1);
                let mut buffer = Vec::with_capacity(4096);
                while reader.recv(&mut buffer, FOREVER).is_ok() {}
                // SAFETY: ends the process without running the parent's destructors twice.
                unsafe { libc::_exit(1) }
            }
            pid => Self(rustix::process::Pid::from_raw(pid).expect("fork")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).expect("kill");
        let waited = rustix::process::waitpid(Some(self.0), rustix::process::WaitOptions::empty());
        waited.expect("waitpid");
    }
}

struct Log {
    writer: Writer<Mapping, Mapping>,
    _children: Vec<Child>,
}

fn log(readers: u32, options: ReaderOptions) -> Log {
    let (data, data_fd) = memfd::create("bench-log", data_words(SLOTS)).expect("memfd");
    format_data(&data, SLOTS).expect("data");
    let mut cursors = Vec::new();
    let mut children = Vec::new();
    for _ in 0..readers {
        let (cursor, cursor_fd) = memfd::create("bench-cursor", cursor_words()).expect("memfd");
        format_cursor(&cursor, &options).expect("cursor");
        cursors.push(memfd::open(cursor_fd.as_fd()).expect("map"));
        let data = memfd::open(data_fd.as_fd()).expect("map");
        let reader = Reader::new(data, cursor, Closer::default(), options).expect("reader");
        children.push(Child::read(reader));
    }
    let mut writer =
        Writer::new(data, Closer::default(), WriterOptions::default()).expect("writer");
    for (id, cursor) in (0..).zip(cursors) {
        writer
            .attach_reader(ReaderId(id), cursor, options.delivery)
            .expect("attach");
    }
    Log {
        writer,
        _children: children,
    }
}

fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Waits until every reader has taken its first message.
fn warm(log: &mut Log) {
    loop {
        for _ in 0..1000 {
            log.writer.send(TAG, &[7; 48], FOREVER).expect("log");
        }
        if log
            .writer
            .readers()
            .all(|reader| reader.counters.messages > 0)
        {
            return;
        }
        std::thread::yield_now();
    }
}

/// CPU time per message at full speed, ns.
fn streaming(readers: u32, options: ReaderOptions, count: u64) -> f64 {
    let mut log = log(readers, options);
    pin(0);
    warm(&mut log);
    let payload = [7; 48];
    let before = cpu();
    for _ in 0..count {
        log.writer.send(TAG, &payload, FOREVER).expect("log");
    }
    let cost = (cpu() - before).as_nanos() as f64 / count as f64;
    if std::env::var_os("BENCH_LOG_COUNTERS").is_some() {
        let received: u64 = log
            .writer
            .readers()
            .map(|reader| reader.counters.messages)
            .sum();
        let sleeps: u64 = log
            .writer
            .readers()
            .map(|reader| reader.counters.sleeps)
            .sum();
        eprintln!(
            "{readers} readers: {cost:.1} ns, {:?}, received {received}, slept {sleeps}",
            log.writer.counters()
        );
    }
    cost
}

/// CPU time per message with a pause between messages, in which readers go to sleep, ns.
fn paced(readers: u32, options: ReaderOptions, count: u64, pause: Duration) -> f64 {
    let mut log = log(readers, options);
    pin(0);
    warm(&mut log);
    let mut spent = Duration::ZERO;
    for _ in 0..count {
        std::thread::sleep(pause);
        let before = cpu();
        log.writer.send(TAG, &[7; 48], FOREVER).expect("log");
        spent += cpu() - before;
    }
    spent.as_nanos() as f64 / count as f64
}

#[allow(clippy::print_stdout, reason = "the result of a bench")]
fn row(id: &str, unit: &str, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    println!(
        "{{\"id\":\"{id}\",\"value\":{:.2},\"unit\":\"{unit}\",\"spread\":[{:.2},{:.2}],\"limit\":null}}",
        values[values.len() / 2],
        values[0],
        values[values.len() - 1]
    );
}

fn main() {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    if cpus < 2 {
        eprintln!("skipped: a producer and its readers need two CPUs, there is {cpus}");
        return;
    }
    let wanted = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let runs = |name: &str| {
        wanted
            .as_ref()
            .is_none_or(|wanted| name.contains(wanted.as_str()))
    };
    let lossy = |waiting| ReaderOptions {
        waiting,
        delivery: Delivery::Lossy,
        start: Start::Head,
    };
    let count = 1_000_000;
    for waiting in [Waiting::Adaptive, Waiting::Blocking] {
        let name = format!("log_fanout_{waiting:?}").to_lowercase();
        if !runs(&name) {
            continue;
        }
        let fans = [1, 8, 64];
        let mut costs = vec![Vec::new(); fans.len()];
        for _ in 0..ROUNDS {
            for (cost, readers) in costs.iter_mut().zip(fans) {
                cost.push(streaming(readers, lossy(waiting), count));
            }
        }
        for (cost, readers) in costs.iter().zip(fans) {
            row(&format!("{name}_{readers}"), "ns/msg", cost.clone());
        }
        let ratios = costs[fans.len() - 1].iter().zip(&costs[0]);
        row(
            &name,
            "ratio",
            ratios.map(|(many, one)| many / one).collect(),
        );
    }
    if runs("log_paced") {
        for readers in [1, 8, 64] {
            let pause = Duration::from_micros(500);
            let round = |_| paced(readers, lossy(Waiting::Blocking), 500, pause);
            row(
                &format!("log_paced_{readers}"),
                "ns/msg",
                (0..3).map(round).collect(),
            );
        }
    }
}
