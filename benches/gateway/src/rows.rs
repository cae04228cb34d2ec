//! The rows: what is run for each, and what is made of it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bench_kit::report::{Limit, Report};

use crate::kernel_memory::KernelMemory;
use crate::server::{Usage, address};
use crate::storm::Storm;
use crate::{certificates, flood, idle};

/// A child that answers lines.
struct Part {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Part {
    fn start(arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("its standard output")?;
        let mut part = Self {
            child,
            stdin,
            lines: BufReader::new(stdout).lines(),
        };
        part.line()?;
        Ok(part)
    }

    fn line(&mut self) -> Result<String> {
        self.lines
            .next()
            .context("a part of the benchmark has ended")?
            .map_err(Into::into)
    }

    fn ask(&mut self) -> Result<String> {
        let stdin = self.stdin.as_mut().context("its standard input")?;
        stdin.write_all(b"\n")?;
        self.line()
    }

    fn usage(&mut self) -> Result<Usage> {
        Ok(serde_json::from_str(&self.ask()?)?)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.stdin.take());
        if let Err(error) = self.child.wait() {
            eprintln!("a part of the benchmark can't be waited for: {error}");
        }
    }
}

/// One run's directory and addresses.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        certificates::write(directory.path())?;
        Ok(Self { directory })
    }

    fn unix(&self) -> Result<String> {
        let path = self.directory.path().join("s");
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        Ok(path.display().to_string())
    }

    fn tcp() -> Result<String> {
        Ok(std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .to_string())
    }

    fn tls(&self) -> &Path {
        self.directory.path()
    }
}

fn server(transport: &str, listen: &str, more: &[String]) -> Result<Part> {
    let own = [
        "serve",
        "--transport",
        transport,
        "--listen",
        listen,
        "--cpu",
        "0",
    ];
    let all: Vec<String> = own
        .iter()
        .map(|word| (*word).to_owned())
        .chain(more.iter().cloned())
        .collect();
    Part::start(&all)
}

fn wait_for(server: &mut Part, opened: usize) -> Result<Usage> {
    let watchdog = Instant::now() + Duration::from_secs(300);
    loop {
        let usage = server.usage()?;
        if usage.opened >= opened {
            return Ok(usage);
        }
        ensure!(
            Instant::now() < watchdog,
            "{} of {opened} connections are ready",
            usage.opened
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processor time (ns) and calls per message, of one transport under one load.
#[derive(Clone, Copy, Debug)]
struct Cost {
    cpu_ns: f64,
    calls: f64,
}

fn cost(
    transport: &str,
    listen: &str,
    conns: usize,
    payload: usize,
    rounds: usize,
    more: &[String],
) -> Result<Cost> {
    let mut server = server(transport, listen, more)?;
    let sockets: Result<Vec<_>> = (0..conns).map(|nth| idle::connect(listen, nth)).collect();
    let mut storm = Storm::new(sockets?, payload)?;
    wait_for(&mut server, conns)?;
    storm.rounds(rounds.div_ceil(4))?;
    let before = server.usage()?;
    storm.rounds(rounds)?;
    let after = server.usage()?;
    drop(storm.close());
    let messages = (after.frames - before.frames) as f64;
    ensure!(
        messages == (conns * rounds) as f64,
        "{messages} messages came"
    );
    Ok(Cost {
        cpu_ns: (after.cpu_ns - before.cpu_ns) as f64 / messages,
        calls: (after.syscalls - before.syscalls) as f64 / messages,
    })
}

/// The two transports in turn.
fn beside(
    listen: &dyn Fn() -> Result<String>,
    conns: usize,
    rounds: usize,
    samples: usize,
) -> Result<Vec<[Cost; 2]>> {
    (0..samples)
        .map(|_| {
            let of = |transport| cost(transport, &listen()?, conns, 64, rounds, &[]);
            Ok([of("io_uring")?, of("epoll")?])
        })
        .collect()
}

const CONNECTIONS: usize = 10_000;

fn uring(report: &mut Report, place: &Place, quick: bool) -> Result<()> {
    let (samples, rounds) = if quick { (2, 10) } else { (7, 40) };
    let unix = beside(&|| place.unix(), CONNECTIONS, rounds, samples)?;
    let tcp = beside(&Place::tcp, CONNECTIONS, rounds, samples)?;
    let ratio = |costs: &[[Cost; 2]], of: fn(&Cost) -> f64| -> Vec<f64> {
        costs
            .iter()
            .map(|[uring, epoll]| of(uring) / of(epoll))
            .collect()
    };
    let cpu: fn(&Cost) -> f64 = |cost| cost.cpu_ns;
    let calls: fn(&Cost) -> f64 = |cost| cost.calls;
    report.promised("uring_cpu", ratio(&unix, cpu), Limit::AtMost(0.8));
    report.promised("uring_sys", ratio(&unix, calls), Limit::AtMost(0.2));
    report.figure("uring_cpu.tcp", "×", ratio(&tcp, cpu));
    report.figure("uring_sys.tcp", "×", ratio(&tcp, calls));
    for (name, costs) in [("unix", &unix), ("tcp", &tcp)] {
        for (at, transport) in ["io_uring", "epoll"].into_iter().enumerate() {
            let of = |of: fn(&Cost) -> f64| costs.iter().map(|pair| of(&pair[at])).collect();
            report.figure(format!("{transport}.{name}.cpu"), "ns/message", of(cpu));
            report.figure(
                format!("{transport}.{name}.calls"),
                "calls/message",
                of(calls),
            );
        }
    }
    Ok(())
}

fn rss_kib(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS")?.parse()?)
}

/// GB of `conns` idle connections: the server's resident memory, and the kernel's. The far ends leave without a word
/// before it is read, so none of it is theirs. Neither a ring's table nor a process of the other side holds more than
/// `descriptors`, so there are as many shards and processes as that takes.
fn resting(listen: &str, tls: Option<&Path>, conns: usize, descriptors: usize) -> Result<[f64; 2]> {
    let each = (descriptors - 500).min(conns);
    let parts = conns.div_ceil(each * 9 / 10);
    let words =
        |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    let tls_of = match tls {
        Some(directory) => vec!["--tls".to_owned(), directory.display().to_string()],
        None => Vec::new(),
    };
    let mut more = words(&[
        "--connections",
        &each.to_string(),
        "--shards",
        &parts.to_string(),
    ]);
    more.extend(tls_of.iter().cloned());
    let before = KernelMemory::settled()?;
    let mut server = server("io_uring", listen, &more)?;
    let mut holders = Vec::new();
    let share = conns.div_ceil(parts);
    for part in 0..parts {
        let (first, count) = (part * share, share.min(conns - part * share));
        let to = address(listen, part)?;
        let mut hold = words(&[
            "hold",
            "--to",
            &to,
            "--first",
            &first.to_string(),
            "--count",
            &count.to_string(),
        ]);
        hold.extend(tls_of.iter().cloned());
        holders.push(Part::start(&hold)?);
    }
    wait_for(&mut server, conns)?;
    for holder in &mut holders {
        holder.ask()?;
    }
    drop(holders);
    let after = KernelMemory::settled()?;
    let usage = server.usage()?;
    ensure!(
        usage.connections == conns,
        "{} of {conns} connections are left",
        usage.connections
    );
    for (name, grown) in after.largest_since(&before) {
        eprintln!("  {name}: {:.1} MB", grown / 1e6);
    }
    let rss = rss_kib(server.child.id())? * 1024.0;
    Ok([rss, after.since(&before)].map(|bytes| bytes / 1e9))
}

const IDLE: usize = 100_000;

fn conns(report: &mut Report, place: &Place, quick: bool, descriptors: u64) -> Result<()> {
    let samples = if quick { 1 } else { 3 };
    for (id, tls, limit) in [
        ("conns.plain", None, 0.5),
        ("conns.tls", Some(place.tls()), 2.0),
    ] {
        let runs: Result<Vec<[f64; 2]>> = (0..samples)
            .map(|_| resting(&Place::tcp()?, tls, IDLE, descriptors as usize))
            .collect();
        let runs = runs?;
        let sum = runs.iter().map(|run| run[0] + run[1]).collect();
        report.row(id, "GB", sum, Some(Limit::AtMost(limit)));
        let rss = runs.iter().map(|run| run[0]).collect();
        report.figure(format!("{id}.rss"), "GB", rss);
        let kernel = runs.iter().map(|run| run[1]).collect();
        report.figure(format!("{id}.kernel"), "GB", kernel);
    }
    Ok(())
}

fn tail(report: &mut Report, place: &Place, quick: bool) -> Result<()> {
    let (samples, trips) = if quick { (3, 2000) } else { (9, 5000) };
    let gap = Duration::from_micros(500);
    let mut ratios = Vec::new();
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    crate::pin(1)?;
    for _ in 0..samples {
        let listen = place.unix()?;
        let _server = server("io_uring", &listen, &[])?;
        let quiet = flood::p99(&listen, trips, gap)?;
        let flooding: Vec<String> = ["flood", "--to", &listen, "--count", "8", "--cpu", "1"]
            .map(str::to_owned)
            .into();
        let flooding = Part::start(&flooding)?;
        let loud = flood::p99(&listen, trips, gap)?;
        drop(flooding);
        ratios.push(loud / quiet);
        alone.push(quiet / 1e3);
        beside.push(loud / 1e3);
    }
    report.promised("tail", ratios, Limit::AtMost(2.0));
    report.figure("tail.p99_alone", "us", alone);
    report.figure("tail.p99_beside_floods", "us", beside);
    Ok(())
}

/// From which size on TCP is cheaper without copying.
fn zero_copy(report: &mut Report, quick: bool) -> Result<()> {
    let samples = if quick { 2 } else { 5 };
    for kib in [4usize, 16, 64, 256] {
        let payload = (kib << 10) - 64;
        let ratios: Result<Vec<f64>> = (0..samples)
            .map(|_| {
                let of = |from: usize| {
                    let more = ["--zero-copy".to_owned(), from.to_string()];
                    cost(
                        "io_uring",
                        &Place::tcp()?,
                        16,
                        payload,
                        4000 / kib + 20,
                        &more,
                    )
                };
                Ok(of(1)?.cpu_ns / of(usize::MAX)?.cpu_ns)
            })
            .collect();
        report.figure(format!("send_zc.{kib}k"), "× copy", ratios?);
    }
    Ok(())
}

/// Measures rows that belong together.
type Group<'a> = &'a dyn Fn(&mut Report) -> Result<()>;

/// All rows, or those in `only`. What can't be measured is skipped by name.
pub fn measure(only: &[String], quick: bool, descriptors: u64) -> Report {
    let mut report = Report::default();
    let place = match Place::new() {
        Ok(place) => place,
        Err(error) => {
            report.skip("gateway", error);
            return report;
        }
    };
    let wanted = |id: &str| {
        only.is_empty()
            || only
                .iter()
                .any(|one| id.starts_with(one.as_str()) || one.starts_with(id))
    };
    let groups: [(&str, Group<'_>); 4] = [
        ("uring", &|report| uring(report, &place, quick)),
        ("conns", &|report| conns(report, &place, quick, descriptors)),
        ("tail", &|report| tail(report, &place, quick)),
        ("send_zc", &|report| zero_copy(report, quick)),
    ];
    for (id, group) in groups {
        if !wanted(id) {
            continue;
        }
        eprintln!("{id}");
        if let Err(error) = group(&mut report) {
            report.skip(id, error);
        }
    }
    report
}
