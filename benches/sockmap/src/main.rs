//! `cargo xtask bench sockmap`: request and reply between two agents, on one CPU.
//!
//! Three ways, taken in turns within each round, the order turned round every other round, the
//! first round dropped: redirected in the kernel between two sockets in two network namespaces; one
//! TCP connection over loopback without anybody between; and AF_UNIX sockets with a process between
//! them that only carries frames, which is less than what agentd's router does. Same frames, same
//! blocking reads and writes. A promised row is a ratio of two samples of one round. Needs root.

mod flood;
mod kernel;
mod stage;

use std::os::unix::net::UnixStream;

use agentd_ebpf_common::route::CREDIT;
use anyhow::{Context, Result};
use bench_kit::report::{Limit, Report};
use clap::Parser;

use crate::flood::{Peer, flood};
use crate::kernel::Plane;
use crate::stage::{Pair, direct, fork, relay, reply, request, tcp_pair};

#[derive(Debug, Parser)]
struct Args {
    /// Print the samples as one JSON object
    #[arg(long)]
    json: bool,
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
}

/// Bytes of content; promised is the middle one, which most tool calls are shorter than.
const SIZES: [u64; 3] = [64, 1024, 4096];
const PROMISED: u64 = 1024;
/// Requests of one sample.
const REQUESTS: u64 = 5000;

#[expect(clippy::print_stdout, reason = "the samples are its data")]
fn main() -> Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    if let Err(why) = measure(&mut report, if args.quick { 5 } else { 31 }) {
        for id in ["sockmap_tcp", "sockmap_route", "flood"] {
            report.skip(id, &why);
        }
    }
    print!("{}", report.text(args.json)?);
    Ok(())
}

fn measure(report: &mut Report, rounds: usize) -> Result<()> {
    let plane = Plane::load()?;
    let mut ways = [
        ("redirected", redirected(&plane)?),
        ("tcp", plain()?),
        ("relayed", relayed()?),
    ];
    for size in SIZES {
        let mut p50: [Vec<f64>; 3] = Default::default();
        let mut p99: [Vec<f64>; 3] = Default::default();
        for round in 0..=rounds {
            let mut order = [0, 1, 2];
            if round % 2 == 1 {
                order.reverse();
            }
            for n in order {
                let sample = ways[n].1.sample(REQUESTS, size).context(ways[n].0)?;
                if round > 0 {
                    p50[n].push(sample.p50 / 1000.0);
                    p99[n].push(sample.p99 / 1000.0);
                }
            }
        }
        let ratio = |other: usize| -> Vec<f64> {
            p50[0]
                .iter()
                .zip(&p50[other])
                .map(|(ours, theirs)| ours / theirs)
                .collect()
        };
        if size == PROMISED {
            report.promised("sockmap_tcp", ratio(1), Limit::AtMost(0.75));
            report.promised("sockmap_route", ratio(2), Limit::AtMost(0.5));
        } else {
            report.figure(format!("sockmap_tcp_{size}"), "×", ratio(1));
            report.figure(format!("sockmap_route_{size}"), "×", ratio(2));
        }
        for (n, (name, _)) in ways.iter().enumerate() {
            report.figure(format!("{name}_{size}_p50"), "µs", p50[n].clone());
            report.figure(format!("{name}_{size}_p99"), "µs", p99[n].clone());
        }
    }
    drop(ways);
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    let credit = Some(Limit::AtMost(kib(u64::from(CREDIT))));
    for (id, peer) in [("flood", Peer::Silent), ("flood_peeking", Peer::Peeking)] {
        report.row(id, "KiB", vec![kib(flood(&plane, peer)?)], credit);
    }
    Ok(())
}

/// Both agents in sandboxes of their own, and nobody between.
fn redirected(plane: &Plane) -> Result<Pair> {
    let (control, theirs) = UnixStream::pair()?;
    let (ready, up) = UnixStream::pair()?;
    let replier = fork(|| {
        let (stream, _accepted) = direct(plane.cgroup(1))?;
        std::io::Write::write_all(&mut &up, b"1")?;
        reply(stream, 2, 1)
    })?;
    let mut byte = [0];
    drop(up);
    std::io::Read::read_exact(&mut &ready, &mut byte).context("the replier ended")?;
    let requester = fork(|| {
        let (stream, _accepted) = direct(plane.cgroup(0))?;
        request(stream, theirs, 1, 2)
    })?;
    Ok(Pair::new(control, vec![replier, requester]))
}

fn plain() -> Result<Pair> {
    let (control, theirs) = UnixStream::pair()?;
    let (client, server) = tcp_pair()?;
    let replier = fork(|| reply(server, 2, 1))?;
    let requester = fork(|| request(client, theirs, 1, 2))?;
    Ok(Pair::new(control, vec![replier, requester]))
}

fn relayed() -> Result<Pair> {
    let (control, theirs) = UnixStream::pair()?;
    let (client, left) = UnixStream::pair()?;
    let (right, server) = UnixStream::pair()?;
    let replier = fork(|| reply(server, 2, 1))?;
    let between = fork(|| relay(left, right))?;
    let requester = fork(|| request(client, theirs, 1, 2))?;
    Ok(Pair::new(control, vec![replier, between, requester]))
}
