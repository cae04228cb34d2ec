//! How long an agent still reaches the network after somebody took it: from the D-Bus call to its
//! first refused `connect` and its first refused datagram. `cargo xtask bench kernel` starts the
//! daemon and the agent, and judges.
//!
//! `--socket PATH --agent NAME --ask FIFO --answer FIFO --rounds N`. The agent takes a line from
//! `ask`, answers `on`, tries both without a pause until both are refused, and answers with the two
//! moments on the wall clock, which no namespace shifts. Prints one JSON object: `connect_ms`,
//! `datagram_ms`, each with a figure for every round.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use agentd_api::{AgentProxy, ManagerProxy, Revocable};

/// The argument behind `name`; `None` when this is no run of the benchmark, such as `cargo test --benches`.
fn value(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs_f64()
}

#[allow(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]
fn main() {
    let options = ["--socket", "--agent", "--ask", "--answer", "--rounds"].map(value);
    let [
        Some(socket),
        Some(agent),
        Some(ask),
        Some(answer),
        Some(rounds),
    ] = options
    else {
        return;
    };
    let rounds: usize = rounds.parse().expect("a number of rounds");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let (connects, datagrams) = runtime.block_on(async {
        let stream = UnixStream::connect(socket).expect("the control socket");
        let connection = zbus::connection::Builder::unix_stream(stream).p2p().build();
        let connection = connection.await.expect("a D-Bus connection");
        let manager = ManagerProxy::new(&connection).await.expect("a proxy");
        let path = manager.find(&agent).await.expect("the agent");
        let agent = AgentProxy::builder(&connection)
            .path(path)
            .cache_properties(zbus::proxy::CacheProperties::No);
        let agent = agent.build().await.expect("a proxy");
        // In the agent's order; each waits for the other end.
        let mut ask = File::options().write(true).open(ask).expect("ask");
        let mut answer = BufReader::new(File::open(answer).expect("answer")).lines();
        let mut line = || answer.next().expect("the agent lives").expect("a line");
        let (mut connects, mut datagrams) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            ask.write_all(b"go\n").expect("ask");
            assert_eq!(line(), "on");
            let called = now();
            agent
                .revoke(&[Revocable::Net])
                .await
                .expect("it is revoked");
            let moments = line();
            let (connect, datagram) = moments.split_once(' ').expect("two moments");
            let after = |moment: &str| 1000.0 * (moment.parse::<f64>().expect("a time") - called);
            connects.push(after(connect));
            datagrams.push(after(datagram));
            agent.restore(&[]).await.expect("it is restored");
        }
        (connects, datagrams)
    });
    println!("{{\"connect_ms\":{connects:?},\"datagram_ms\":{datagrams:?}}}");
}
