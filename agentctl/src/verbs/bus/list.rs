//! `bus peers` and `bus channels`: one reading of what the daemon knows.

use agentd_api::bus::{BusChannel, BusPeer, BusProxy, DirectState, PeerLiveness, Tier, latency_at};
use serde_json::{Value, json};

use super::{between, failure, takes_part};
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, count, nanoseconds, shorten, size};
use crate::resolve::Context;

pub async fn peers(context: &Context, proxy: &BusProxy<'_>) -> Result<u8, Failure> {
    let peers = proxy.peers().await;
    let peers = peers.map_err(|e| failure("can't list the peers of the bus", &e))?;
    let mut out = Out::stdout();
    if context.is_json() {
        let peers: Vec<Value> = peers.iter().map(BusPeer::to_json).collect();
        out.json(&json!({ "peers": peers }))?;
    } else if peers.is_empty() {
        out.line("nobody is on the bus")?;
    } else {
        peer_table(&peers).print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

fn peer_table(peers: &[BusPeer]) -> Table {
    // Where nobody can be on the direct path there is nothing to say of it.
    let has_direct = peers
        .iter()
        .any(|peer| !matches!(peer.direct, None | Some(DirectState::None)));
    let mut heads = vec![
        "NAME", "ID", "TIER", "STATE", "QUEUED", "CHANNELS", "SENT", "RECEIVED", "REFUSED",
        "DROPPED",
    ];
    let mut right = vec![4, 5, 6, 7, 8, 9];
    if has_direct {
        right.push(heads.len());
        heads.push("DIRECT");
    }
    heads.push("WHY THIS TIER");
    let mut table = Table::new(&heads).right(&right);
    let several = peers.iter().any(|peer| peer.uid != peers[0].uid);
    for peer in peers {
        let name = if several {
            format!("{} (uid {})", peer.name, peer.uid)
        } else {
            peer.name.clone()
        };
        let why = match peer.revoked.as_deref() {
            None | Some([]) => peer.tier_why.clone(),
            Some(revoked) => {
                let taken: Vec<String> = revoked
                    .iter()
                    .map(|(right, pattern)| match pattern.as_str() {
                        "#" => right.to_string(),
                        pattern => format!("{right}={pattern}"),
                    })
                    .collect();
                // First, since the rest may be cut.
                format!("revoked: {}; {}", taken.join(" "), peer.tier_why)
            }
        };
        let mut row: Vec<Cell> = vec![
            Cell::styled(Style::Bold, name),
            format!("{:08x}", peer.id.short()).into(),
            Cell::styled(tier_style(peer.tier), peer.tier.as_str()),
            Cell::styled(liveness_style(peer.liveness), state(peer)),
            (peer.queued + peer.waiting).to_string().into(),
            peer.channels.to_string().into(),
            count(peer.sent).into(),
            count(peer.received).into(),
            bad(peer.refused),
            bad(peer.dropped),
        ];
        if has_direct {
            row.push(direct(peer));
        }
        row.push(shorten(&why, 60).into());
        table.row(row);
    }
    table
}

/// Messages and bytes that went by the direct path, or that it is not on it.
fn direct(peer: &BusPeer) -> Cell {
    let both = |sent: Option<u64>, received: Option<u64>| {
        sent.unwrap_or(0).saturating_add(received.unwrap_or(0))
    };
    match peer.direct {
        Some(DirectState::Connected) => {
            let messages = count(both(peer.direct_sent, peer.direct_received));
            let bytes = size(both(peer.direct_sent_bytes, peer.direct_received_bytes));
            Cell::styled(Style::Good, format!("{messages} ({bytes})"))
        }
        Some(DirectState::Offered) => Cell::styled(Style::Dim, "offered"),
        Some(DirectState::None) | None => Cell::styled(Style::Dim, "no"),
    }
}

fn state(peer: &BusPeer) -> String {
    let serving = if peer.serving { ", serving" } else { "" };
    format!("{}{serving}", peer.liveness)
}

fn tier_style(tier: Tier) -> Style {
    match tier {
        Tier::SharedMemory | Tier::Routed => Style::Good,
        Tier::Socket => Style::Plain,
        Tier::InDaemon => Style::Dim,
    }
}

fn liveness_style(liveness: PeerLiveness) -> Style {
    match liveness {
        PeerLiveness::Alive => Style::Good,
        PeerLiveness::Late => Style::Warn,
        PeerLiveness::Quiet => Style::Dim,
    }
}

/// A number that should be zero.
pub(super) fn bad(n: u64) -> Cell {
    let style = if n == 0 { Style::Dim } else { Style::Bad };
    Cell::styled(style, count(n))
}

pub async fn channels(
    context: &Context,
    proxy: &BusProxy<'_>,
    agent: Option<&str>,
) -> Result<u8, Failure> {
    let channels = proxy.channels().await;
    let mut channels = channels.map_err(|e| failure("can't list the channels of the bus", &e))?;
    if let Some(agent) = agent {
        channels.retain(|channel| takes_part(channel, agent));
    }
    let mut out = Out::stdout();
    if context.is_json() {
        let channels: Vec<Value> = channels.iter().map(BusChannel::to_json).collect();
        out.json(&json!({ "channels": channels }))?;
    } else if channels.is_empty() {
        out.line("no lanes and no logs")?;
    } else {
        channel_table(&channels).print(&mut out)?;
    }
    out.flush()?;
    Ok(0)
}

fn channel_table(channels: &[BusChannel]) -> Table {
    let mut table = Table::new(&[
        "CHANNEL", "FROM", "TO", "CLASS", "OVERFLOW", "DEPTH", "SENT", "RECEIVED", "BYTES",
        "DROPPED", "LOST", "P50", "P99",
    ])
    .right(&[5, 6, 7, 8, 9, 10, 11, 12]);
    for channel in channels {
        let (from, to) = between(channel);
        let latency = |quantile| {
            latency_at(&channel.latency, quantile).map_or_else(|| "-".to_owned(), nanoseconds)
        };
        table.row(vec![
            format!("{} {}", channel.kind, channel.id).into(),
            Cell::styled(Style::Bold, from),
            Cell::styled(Style::Bold, to),
            channel.class.as_str().into(),
            channel.overflow.as_str().into(),
            format!("{}/{}", count(channel.depth), channel.slots).into(),
            count(channel.sent).into(),
            count(channel.received).into(),
            size(channel.received_bytes).into(),
            bad(channel.dropped),
            bad(channel.lost),
            latency(0.5).into(),
            latency(0.99).into(),
        ]);
    }
    table
}
