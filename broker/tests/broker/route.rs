//! The direct path between two sandboxes that a real broker launched: rights by slot, through death and a worker's death.
//!
//! The agents are shells that write frames to `/dev/tcp`; what a frame may be is tested where the programs are
//! (`bpf/load/tests/kernel/route.rs`).

use crate::harness::{Agent, Broker, assert_refused, plan, root};
use crate::skip::skip;
use crate::succession::Served;
use agentd_bpf::layout::route::{HEAD_LEN, MAGIC, PORT, address};
use agentd_bpf::{Group, Right};
use agentd_broker::client::BrokerClient;
use agentd_broker::protocol::{ErrorCode, Slot};
use agentd_launch::plan::{MCP, PlanBuilder};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;

/// Connects, then sends what it is told to in one call (the shell's own printf writes line by
/// line), or shows as many bytes of content as it is told to wait for.
const PEER: &str = "exec 3<>/dev/tcp/127.0.0.1/7203 || exit 9; echo up; while read -r verb what; do case $verb in \
    send) if (env printf \"$what\" >&3) 2>/dev/null; then echo sent; else echo refused; fi;; \
    take) head -c $((40 + what)) <&3 | tail -c $what; echo;; esac; done";

/// An agent with a direct connection.
struct Peer {
    agent: Agent,
    input: File,
    output: BufReader<File>,
    /// agentd's side.
    _listener: TcpListener,
}

fn peer_plan() -> PlanBuilder {
    assert!(PEER.contains(&PORT.to_string()));
    let mut plan = plan(&["bash", "-c", PEER]);
    plan.tcp_listener(PORT, MCP);
    plan
}

impl Peer {
    fn new(agent: Agent) -> Self {
        let (_, fds) = agent.ready();
        let fds = <[OwnedFd; 4]>::try_from(fds).expect("three pipes and a listener");
        let [input, output, _, listener] = fds;
        let mut peer = Self {
            agent,
            input: input.into(),
            output: BufReader::new(output.into()),
            _listener: listener.into(),
        };
        assert_eq!(peer.line(), "up");
        peer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim_end().to_owned()
    }

    fn slot(&self) -> Slot {
        self.agent.slot
    }

    fn address(&self) -> u64 {
        address(self.slot().0, self.agent.launched.info.cgroup_id)
    }

    /// Sends, and takes the same frame back.
    fn is_returned(&mut self, to: u64, content: &str) {
        assert_eq!(self.send(to, content), "sent");
        assert_eq!(self.take(content.len()), content);
    }

    /// "sent" or "refused".
    fn send(&mut self, to: u64, content: &str) -> String {
        let mut frame = Vec::new();
        frame.extend(MAGIC.to_ne_bytes());
        frame.extend((content.len() as u32).to_ne_bytes());
        frame.extend(self.address().to_ne_bytes());
        frame.extend(to.to_ne_bytes());
        frame.resize(HEAD_LEN, 0);
        frame.extend(content.bytes());
        let escaped: String = frame.iter().map(|byte| format!("\\x{byte:02x}")).collect();
        writeln!(self.input, "send {escaped}").expect("write");
        self.line()
    }

    fn take(&mut self, len: usize) -> String {
        writeln!(self.input, "take {len}").expect("write");
        self.line()
    }
}

/// Whether this host has the path; otherwise the calling test is skipped.
fn has_path(client: &mut BrokerClient) -> bool {
    let why = client.absent(Group::Route).expect("absent");
    if !why.is_empty() {
        skip("bpf-route", &why);
    }
    why.is_empty()
}

#[test]
fn two_sandboxes_talk_by_the_direct_path_for_as_long_as_they_may() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    if !has_path(&mut broker.client) {
        return broker.finish();
    }
    let mut a = Peer::new(broker.launch(&peer_plan()));
    let mut b = Peer::new(broker.launch(&peer_plan()));
    let (to_a, to_b) = (a.address(), b.address());
    a.is_returned(to_b, "no right yet");
    broker
        .client
        .route(a.address(), b.address(), Right::Yes)
        .expect("route");
    assert_eq!(a.send(to_b, "request"), "sent");
    assert_eq!(b.take(7), "request");
    b.is_returned(to_a, "the other way is another right");
    broker
        .client
        .route(b.address(), a.address(), Right::Yes)
        .expect("route");
    assert_eq!(b.send(to_a, "reply"), "sent");
    assert_eq!(a.take(5), "reply");
    broker
        .client
        .route(a.address(), b.address(), Right::No)
        .expect("route");
    a.is_returned(to_b, "taken back");

    // The next agent on b's slot: nobody has a right to it, and nobody's frames to b reach it.
    broker
        .client
        .route(a.address(), b.address(), Right::Yes)
        .expect("route");
    let slot = b.slot();
    broker.client.kill(slot).expect("kill");
    broker.wait_gone(slot);
    assert_refused(
        broker.client.route(a.address(), to_b, Right::Yes),
        ErrorCode::NoSuchSlot,
    );
    a.is_returned(to_b, "to the dead");
    let mut next = Peer::new(broker.launch(&peer_plan()));
    assert_eq!(next.slot(), slot);
    assert_ne!(next.address(), to_b);
    let to_next = next.address();
    a.is_returned(to_b, "to the former");
    a.is_returned(to_next, "no right to the next");
    assert_refused(
        broker.client.route(a.address(), to_b, Right::Yes),
        ErrorCode::NoSuchSlot,
    );
    a.is_returned(to_next, "a right to the former is none to the next");
    broker
        .client
        .route(a.address(), to_next, Right::Yes)
        .expect("route");
    assert_eq!(a.send(to_next, "anew"), "sent");
    assert_eq!(next.take(4), "anew");
    broker.finish();
}

#[test]
fn a_right_that_cannot_be_is_refused_and_taking_it_back_is_done() {
    if !root() {
        return;
    }
    let mut broker = Broker::start();
    for right in [Right::Yes, Right::No] {
        assert_refused(
            broker.client.route(address(9, 1), address(10, 1), right),
            ErrorCode::NoSuchSlot,
        );
    }
    if has_path(&mut broker.client) {
        let a = Peer::new(broker.launch(&peer_plan()));
        assert_refused(
            broker.client.route(a.address(), address(10, 1), Right::Yes),
            ErrorCode::NoSuchSlot,
        );
        assert_refused(
            broker.client.route(0, a.address(), Right::Yes),
            ErrorCode::NoSuchSlot,
        );
        let oneself = broker.client.route(a.address(), a.address(), Right::Yes);
        assert_refused(oneself, ErrorCode::NoSuchSlot);
    }
    broker.finish();
}

#[test]
fn the_direct_path_goes_on_without_a_worker_and_with_the_next_one() {
    if !root() {
        return;
    }
    let served = Served::start();
    let mut agentd = served.greet();
    if !has_path(&mut agentd.client) {
        agentd.client.shutdown().expect("shutdown");
        return served.finish();
    }
    let file = tempfile::tempfile().expect("file");
    let mut a = Peer::new(agentd.launch_plan(peer_plan(), 60_000, &file));
    let mut b = Peer::new(agentd.launch_plan(peer_plan(), 60_000, &file));
    let to_b = b.address();
    agentd
        .client
        .route(a.address(), b.address(), Right::Yes)
        .expect("route");
    agentd.kill_worker();
    assert_eq!(a.send(to_b, "while nobody is there"), "sent");
    assert_eq!(b.take(21), "while nobody is there");
    let mut agentd = served.greet();
    for peer in [&a, &b] {
        agentd.adopt(&peer.agent, &[]).expect("adopt");
    }
    assert_eq!(a.send(to_b, "with the next"), "sent");
    assert_eq!(b.take(13), "with the next");
    agentd
        .client
        .route(a.address(), b.address(), Right::No)
        .expect("route");
    a.is_returned(to_b, "which may take it back");
    agentd.client.shutdown().expect("shutdown");
    served.finish();
}
