//! How many tasks a running agentd takes per second, each durably: some clients on connections of their own, each with
//! several calls under way. `cargo xtask bench submit` starts the daemon, measures its disk beside it, and judges.
//!
//! `--socket PATH --clients N --tasks N (of each client) --batch N (tasks of a call)`; with a batch of 1 each task is a
//! `Submit`, else a part of a `SubmitMany`. Prints one JSON object: `accepted` and `seconds`. Counted are ids that came
//! back, and they come back after COMMIT.

use std::os::unix::net::UnixStream;
use std::time::Instant;

use agentd_api::tasks::{TaskSpec, TasksProxy};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use zbus::Connection;

/// Calls that each client keeps under way.
const UNDER_WAY: usize = 32;

struct Options {
    socket: String,
    clients: usize,
    tasks: usize,
    batch: usize,
}

impl Options {
    /// `None` when this is no run of the benchmark, such as `cargo test --benches`.
    fn parse() -> Option<Self> {
        let arguments: Vec<String> = std::env::args().collect();
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| argument == name)?;
            arguments.get(at + 1)
        };
        let number = |name: &str| value(name)?.parse().ok();
        Some(Self {
            socket: value("--socket")?.clone(),
            clients: number("--clients")?,
            tasks: number("--tasks")?,
            batch: number("--batch")?,
        })
    }
}

fn spec(n: usize) -> TaskSpec {
    TaskSpec {
        text: format!("task {n} of a benchmark, for an agent that is not there"),
        agent: Some("nobody".to_owned()),
        ..TaskSpec::default()
    }
}

async fn connect(socket: &str) -> Connection {
    let stream = UnixStream::connect(socket).expect("the control socket");
    let connection = zbus::connection::Builder::unix_stream(stream).p2p().build();
    connection.await.expect("a D-Bus connection")
}

/// Submits `tasks` tasks in calls of `batch`; the number of ids that came back.
async fn client(connection: Connection, tasks: usize, batch: usize) -> usize {
    let proxy = TasksProxy::new(&connection).await.expect("a proxy");
    let call = |first: usize| {
        let proxy = proxy.clone();
        async move {
            if batch == 1 {
                proxy.submit(&spec(first)).await.expect("it is taken");
                return 1;
            }
            let specs: Vec<TaskSpec> = (first..tasks.min(first + batch)).map(spec).collect();
            let outcomes = proxy.submit_many(&specs).await.expect("they are taken");
            let lost = outcomes.iter().find_map(|it| it.error.as_ref());
            assert!(lost.is_none(), "{lost:?}");
            outcomes.len()
        }
    };
    let mut waiting = (0..tasks).step_by(batch).map(call);
    let mut under_way: FuturesUnordered<_> = waiting.by_ref().take(UNDER_WAY).collect();
    let mut accepted = 0;
    while let Some(count) = under_way.next().await {
        accepted += count;
        under_way.extend(waiting.next());
    }
    accepted
}

#[allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn main() {
    let Some(options) = Options::parse() else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (accepted, taken) = runtime.block_on(async {
        let mut connections = Vec::new();
        for _ in 0..options.clients {
            connections.push(connect(&options.socket).await);
        }
        let begun = Instant::now();
        let clients: Vec<_> = connections
            .into_iter()
            .map(|connection| tokio::spawn(client(connection, options.tasks, options.batch)))
            .collect();
        let mut accepted = 0;
        for client in clients {
            accepted += client.await.expect("a client");
        }
        (accepted, begun.elapsed())
    });
    println!(
        "{{\"accepted\":{accepted},\"seconds\":{}}}",
        taken.as_secs_f64()
    );
}
