//! How soon a D-Bus follower hears of a refusal, how many of a flood it hears of, and what the
//! flood costs another agent. `cargo xtask bench kernel` starts the daemon and the agents, and
//! judges.
//!
//! `--socket PATH --agent NAME --layer LAYER --ask FIFO --answer FIFO`, and one of:
//! `--calls N --pace NS [--new]`, so many refused calls, one each NS, each under another name with
//! `--new`; or `--flood SECONDS --other-ask FIFO --other-answer FIFO`. The agent takes a line
//! `KIND CALLS PACE SECONDS` from its FIFO (KIND is `same`, `new` or `allowed`) and answers
//! `CALLS REFUSED`. Each refused call carries the moment before it, `CLOCK_MONOTONIC` in ns, in its
//! arguments, which are told as its target ([`stamp`]).
//!
//! Prints one JSON object. Latencies run until the follower has the event in its hands: from the
//! pipe of `Watch`, and as the signal `Denied`.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentd_api::DenialsProxy;
use agentd_api::denials::DenialEvent;
use futures_util::StreamExt as _;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

/// What is under way for longer than this is not coming any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// The argument behind `name`.
fn value(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn number(name: &str) -> Option<u64> {
    value(name)?.parse().ok()
}

fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The moment that a refused call carried, as of `now`.
///
/// `seccomp`: the call's first two arguments, 32 bits each, `ptrace(0xHIGH, 0xLOW, …`. Else an
/// address `10.a.b.c:port` with the low 39 bits: 24 of the address, then all of the port's but the
/// highest.
fn stamp(layer: &str, target: &str, now: u64) -> Option<u64> {
    if layer == "seccomp" {
        let mut arguments = target.split_once('(')?.1.split(", ");
        let mut half = || u64::from_str_radix(arguments.next()?.strip_prefix("0x")?, 16).ok();
        return Some(half()? << 32 | half()?);
    }
    let address: std::net::SocketAddrV4 = target.split(' ').next()?.parse().ok()?;
    let low =
        u64::from(address.ip().to_bits() & 0xff_ffff) << 15 | u64::from(address.port() & 0x7fff);
    let of = |lap: u64| lap << 39 | low;
    let lap = now >> 39;
    // The clock's 40th bit may have turned since.
    match of(lap) {
        late if late > now => Some(of(lap.checked_sub(1)?)),
        stamp => Some(stamp),
    }
}

/// What a follower has heard.
#[derive(Default)]
struct Heard {
    /// Refusals of the layer, in the pipe.
    told: u64,
    /// In the pipe instead of refusals, since this read too slowly.
    left_out: u64,
    /// With a line of a file.
    with_line: u64,
    /// Without a rule: there must be none.
    without_rule: u64,
    /// When each came, and the moment that it carried.
    pipe: Vec<(u64, Option<u64>)>,
    signal: Vec<(u64, Option<u64>)>,
}

type Shared = Arc<Mutex<Heard>>;

fn lock(heard: &Shared) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_pipe(mut pipe: File, layer: &str, heard: &Shared) {
    let mut bytes = vec![0; 1 << 16];
    let mut rest = Vec::new();
    while let Ok(read) = pipe.read(&mut bytes)
        && read > 0
    {
        let now = now_ns();
        rest.extend_from_slice(&bytes[..read]);
        let end = rest
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        let mut heard = lock(heard);
        for line in rest[..end]
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let event: Value = serde_json::from_slice(line).expect("a line of JSON");
            heard.left_out += event["left_out"].as_u64().unwrap_or(0);
            if event["layer"] != layer {
                continue;
            }
            heard.told += 1;
            let rule = event["rule"].as_str().unwrap_or_default();
            heard.without_rule += u64::from(rule.is_empty());
            heard.with_line += u64::from(event["origin"].as_str().is_some_and(is_line));
            let target = event["target"].as_str().unwrap_or_default();
            heard.pipe.push((now, stamp(layer, target, now)));
        }
        drop(heard);
        rest.drain(..end);
    }
}

/// Whether this is `FILE:LINE`.
fn is_line(origin: &str) -> bool {
    let line = origin.rsplit_once(':').map(|(_, line)| line.parse::<u32>());
    matches!(line, Some(Ok(_)))
}

/// Somebody in a sandbox who does what is written to a FIFO.
#[derive(Clone)]
struct Obedient {
    ask: Arc<Mutex<File>>,
    answer: Arc<Mutex<BufReader<File>>>,
}

impl Obedient {
    fn open(ask: &str, answer: &str) -> Option<Self> {
        // In the agent's order; each waits for the other end.
        let ask = File::options().write(true).open(value(ask)?).expect("ask");
        let answer = BufReader::new(File::open(value(answer)?).expect("answer"));
        Some(Self {
            ask: Arc::new(Mutex::new(ask)),
            answer: Arc::new(Mutex::new(answer)),
        })
    }

    /// Numbers of its answer.
    async fn told(&self, line: String) -> Vec<f64> {
        let it = self.clone();
        let answer = tokio::task::spawn_blocking(move || {
            let mut ask = it.ask.lock().expect("nobody panicked");
            writeln!(ask, "{line}").expect("ask");
            let mut said = String::new();
            let mut answer = it.answer.lock().expect("nobody panicked");
            answer.read_line(&mut said).expect("an answer");
            said
        });
        let answer = answer.await.expect("it was asked");
        let numbers = answer.split_whitespace().map(str::parse);
        numbers
            .collect::<Result<_, _>>()
            .unwrap_or_else(|_| panic!("the agent said {answer:?}"))
    }
}

/// How many were lost since the launch.
async fn lost(proxy: &DenialsProxy<'_>, agent: &str, layer: &str) -> u64 {
    let losses = proxy.losses(agent).await.expect("losses");
    let of_layer = losses.iter().filter(|loss| loss.layer == layer);
    of_layer.map(|loss| loss.lost).sum()
}

/// Waits until so many were told, left out or lost, and so many signalled, or nothing has come for a while. Gives the lost.
async fn settle(
    (proxy, agent, layer): (&DenialsProxy<'_>, &str, &str),
    heard: &Shared,
    wanted: u64,
    signals: usize,
) -> u64 {
    let (mut seen, mut since) = ((0, 0), Instant::now());
    loop {
        let lost = lost(proxy, agent, layer).await;
        let now = {
            let heard = lock(heard);
            (heard.told + heard.left_out + lost, heard.signal.len())
        };
        if (now.0 >= wanted && now.1 >= signals) || since.elapsed() > PATIENCE {
            return lost;
        }
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Microseconds from each call to its event.
fn latencies(events: &[(u64, Option<u64>)]) -> Vec<f64> {
    let after = |(came, carried): &(u64, Option<u64>)| {
        let called = carried.expect("an event without the moment of its call");
        came.saturating_sub(called) as f64 / 1000.0
    };
    events.iter().map(after).collect()
}

#[allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn main() {
    // Otherwise this is no run of the benchmark, such as `cargo test --benches`.
    let (Some(socket), Some(agent), Some(layer)) =
        (value("--socket"), value("--agent"), value("--layer"))
    else {
        return;
    };
    let it = Obedient::open("--ask", "--answer").expect("--ask and --answer");
    let other = Obedient::open("--other-ask", "--other-answer");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let figures = runtime.block_on(async {
        let stream = UnixStream::connect(socket).expect("the control socket");
        let connection = zbus::connection::Builder::unix_stream(stream).p2p().build();
        let connection = connection.await.expect("a D-Bus connection");
        let proxy = DenialsProxy::new(&connection).await.expect("a proxy");
        let heard = Shared::default();
        follow(&proxy, &agent, &layer, &heard).await;
        let before = lost(&proxy, &agent, &layer).await;
        let new = std::env::args().any(|argument| argument == "--new");
        let (mut beside_allowed, mut beside_flood) = (Vec::new(), Vec::new());
        let answer = if let Some(seconds) = number("--flood") {
            let other = other.expect("--other-ask and --other-answer");
            let span = |kind: &str| format!("{kind} 0 0 {seconds}");
            // The same agent as busy with calls that are allowed: what is left is the refusing and the telling.
            (_, beside_allowed) = tokio::join!(it.told(span("allowed")), other.told(span("work")));
            let (answer, beside) = tokio::join!(it.told(span("same")), other.told(span("work")));
            beside_flood = beside;
            answer
        } else {
            let calls = number("--calls").expect("--calls or --flood");
            let pace = number("--pace").expect("--pace");
            let kind = if new { "new" } else { "same" };
            it.told(format!("{kind} {calls} {pace} 0")).await
        };
        let [made, refused] = answer[..] else {
            panic!("the agent said {answer:?}")
        };
        let wanted = before + made as u64;
        let signals = if new { made as usize } else { 0 };
        let lost = settle((&proxy, &agent, &layer), &heard, wanted, signals).await - before;
        let heard = lock(&heard);
        let paced = number("--flood").is_none();
        let latencies = |events: &[_]| match paced {
            true => latencies(events),
            false => Vec::new(),
        };
        json!({
            "made": made, "refused": refused,
            "told": heard.told, "left_out": heard.left_out, "lost": lost,
            "with_line": heard.with_line, "without_rule": heard.without_rule,
            "pipe_us": latencies(&heard.pipe), "signal_us": latencies(&heard.signal),
            "beside_allowed_us": beside_allowed, "beside_flood_us": beside_flood,
        })
    });
    println!("{figures}");
}

/// Follows in both ways from now on.
async fn follow(proxy: &DenialsProxy<'_>, agent: &str, layer: &str, heard: &Shared) {
    let mut signals = proxy.receive_denied().await.expect("signals");
    let pipe = proxy.watch(agent).await.expect("a pipe");
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
    let (of_pipe, of_signals) = (Arc::clone(heard), Arc::clone(heard));
    let (name, wanted) = (agent.to_owned(), layer.to_owned());
    std::thread::spawn(move || read_pipe(pipe, &wanted, &of_pipe));
    let wanted = layer.to_owned();
    tokio::spawn(async move {
        while let Some(signal) = signals.next().await {
            let now = now_ns();
            let event: DenialEvent = signal.args().expect("a denial").denial;
            if event.agent == name && event.layer == wanted {
                let stamp = stamp(&wanted, &event.target, now);
                lock(&of_signals).signal.push((now, stamp));
            }
        }
    });
}
