//! `bus top`: what happened between two readings, as rates.
//!
//! [`Reading`] is one look at the daemon's figures, [`Rates`] what two of them make; both are plain data. On a terminal
//! the screen is redrawn in place, in the alternate buffer, and put back however it ends; anywhere else blocks follow
//! one another.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use agentd_api::bus::{BusChannel, BusPeer, BusProxy, latency_at, latency_json, latency_since};
use agentd_kernel::signals::SignalFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::{Idle, TopRequest, between, failure, takes_part};
use crate::cli::bus::SortKey;
use crate::failure::Failure;
use crate::output::{Cell, Colour, Out, Style, Table, nanoseconds, per_second};
use crate::resolve::Context;
use crate::terminal::raw::{RawTerminal, window};

pub async fn top(
    context: &Context,
    proxy: &BusProxy<'_>,
    request: &TopRequest,
) -> Result<u8, Failure> {
    let first = Reading::take(proxy).await?;
    let out = Out::stdout();
    if !context.is_json() && request.count.is_none() && out.is_terminal() {
        return on_screen(proxy, request, first).await;
    }
    in_blocks(context, proxy, request, first, out).await
}

/// One look.
#[derive(Debug)]
struct Reading {
    at: Instant,
    peers: Vec<BusPeer>,
    channels: Vec<BusChannel>,
}

impl Reading {
    async fn take(proxy: &BusProxy<'_>) -> Result<Self, Failure> {
        let what = "can't read the figures of the bus";
        let peers = proxy.peers().await.map_err(|e| failure(what, &e))?;
        let channels = proxy.channels().await.map_err(|e| failure(what, &e))?;
        Ok(Self {
            at: Instant::now(),
            peers,
            channels,
        })
    }
}

/// A channel in one interval.
#[derive(Debug)]
struct ChannelRate<'a> {
    now: &'a BusChannel,
    /// Per second.
    messages: f64,
    bytes: f64,
    dropped: f64,
    lost: f64,
    full: f64,
    wakes: f64,
    latency: Vec<(u64, u64)>,
}

/// A peer in one interval, its channels left out.
#[derive(Debug)]
struct PeerRate<'a> {
    now: &'a BusPeer,
    sent: f64,
    received: f64,
    bytes: f64,
    refused: f64,
    dropped: f64,
}

/// What happened between two readings.
#[derive(Debug)]
struct Rates<'a> {
    interval: Duration,
    channels: Vec<ChannelRate<'a>>,
    peers: Vec<PeerRate<'a>>,
}

impl<'a> Rates<'a> {
    fn between(before: &Reading, now: &'a Reading, request: &TopRequest) -> Self {
        let interval = now.at.duration_since(before.at);
        // A counter that went backwards belongs to something that began anew.
        let per_second = |now: u64, then: u64| {
            now.checked_sub(then).unwrap_or(now) as f64 / interval.as_secs_f64().max(1e-9)
        };
        let channel_key = |c: &BusChannel| (c.id, c.from_id, c.to_id);
        let earlier: HashMap<_, _> = before
            .channels
            .iter()
            .map(|c| (channel_key(c), c))
            .collect();
        let wanted = |c: &&BusChannel| request.agent.as_deref().is_none_or(|a| takes_part(c, a));
        let mut channels: Vec<ChannelRate<'a>> = now
            .channels
            .iter()
            .filter(wanted)
            .map(|c| {
                let then = earlier.get(&channel_key(c)).copied();
                let rate = |of: fn(&BusChannel) -> u64| per_second(of(c), then.map_or(0, of));
                ChannelRate {
                    now: c,
                    messages: rate(|c| c.received).max(rate(|c| c.sent)),
                    bytes: rate(|c| c.received_bytes).max(rate(|c| c.sent_bytes)),
                    dropped: rate(|c| c.dropped),
                    lost: rate(|c| c.lost),
                    full: rate(|c| c.full),
                    wakes: rate(|c| c.sender_wakes) + rate(|c| c.receiver_wakes),
                    latency: latency_since(&c.latency, then.map_or(&[], |c| c.latency.as_slice())),
                }
            })
            .collect();
        let earlier: HashMap<_, _> = before.peers.iter().map(|p| (p.id, p)).collect();
        let named = |p: &&BusPeer| {
            let meant = |a: &str| p.name == a || p.id.is_meant_by(a);
            request.agent.as_deref().is_none_or(meant)
        };
        let mut peers: Vec<PeerRate<'a>> = now
            .peers
            .iter()
            .filter(named)
            .map(|p| {
                let then = earlier.get(&p.id).copied();
                let rate = |of: fn(&BusPeer) -> u64| per_second(of(p), then.map_or(0, of));
                PeerRate {
                    now: p,
                    sent: rate(|p| p.sent),
                    received: rate(|p| p.received),
                    bytes: rate(|p| p.sent_bytes) + rate(|p| p.received_bytes),
                    refused: rate(|p| p.refused),
                    dropped: rate(|p| p.dropped),
                }
            })
            .collect();
        if request.idle == Idle::Hidden {
            channels.retain(|c| c.messages + c.dropped + c.lost + c.full > 0.0 || c.now.depth > 0);
            peers.retain(|p| p.sent + p.received + p.refused + p.dropped > 0.0);
        }
        sort(&mut channels, &mut peers, request.sort);
        Self {
            interval,
            channels,
            peers,
        }
    }

    fn to_json(&self) -> Value {
        let channels = self.channels.iter().map(|c| {
            json!({
                "id": c.now.id,
                "kind": c.now.kind,
                "from": c.now.from,
                "to": c.now.to,
                "topic": c.now.topic,
                "class": c.now.class,
                "depth": c.now.depth,
                "messages_per_second": c.messages,
                "bytes_per_second": c.bytes,
                "dropped_per_second": c.dropped,
                "lost_per_second": c.lost,
                "full_per_second": c.full,
                "wakes_per_second": c.wakes,
                "latency_ns": latency_json(&c.latency),
            })
        });
        let peers = self.peers.iter().map(|p| {
            json!({
                "id": p.now.id,
                "name": p.now.name,
                "tier": p.now.tier,
                "queued": p.now.queued + p.now.waiting,
                "sent_per_second": p.sent,
                "received_per_second": p.received,
                "bytes_per_second": p.bytes,
                "refused_per_second": p.refused,
                "dropped_per_second": p.dropped,
            })
        });
        json!({
            "interval_ms": u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            "channels": channels.collect::<Vec<_>>(),
            "peers": peers.collect::<Vec<_>>(),
        })
    }

    /// The first line: everything together.
    fn summary(&self, now: &Reading) -> String {
        let lanes: f64 = self.channels.iter().map(|c| c.messages).sum();
        let bytes: f64 = self.channels.iter().map(|c| c.bytes).sum();
        let routed: f64 = self.peers.iter().map(|p| p.sent).sum();
        let lost: f64 = self
            .channels
            .iter()
            .map(|c| c.lost + c.dropped)
            .sum::<f64>()
            + self.peers.iter().map(|p| p.dropped).sum::<f64>();
        format!(
            "{} peers, {} channels: {} msg/s and {}B/s in shared memory, {} msg/s routed, {} lost/s",
            now.peers.len(),
            now.channels.len(),
            per_second(lanes),
            per_second(bytes),
            per_second(routed),
            per_second(lost),
        )
    }

    fn lines(&self, now: &Reading, colour: Colour) -> Vec<String> {
        let mut lines = vec![colour.paint(Style::Bold, &self.summary(now))];
        if !self.channels.is_empty() {
            lines.push(String::new());
            lines.extend(self.channel_table().lines(colour));
        }
        if !self.peers.is_empty() {
            lines.push(String::new());
            lines.extend(self.peer_table().lines(colour));
        }
        lines
    }

    fn channel_table(&self) -> Table {
        let mut table = Table::new(&[
            "CHANNEL", "FROM", "TO", "CLASS", "MSG/S", "B/S", "DEPTH", "FULL/S", "LOST/S",
            "WAKES/S", "P50", "P99",
        ])
        .right(&[4, 5, 6, 7, 8, 9, 10, 11]);
        for c in &self.channels {
            let (from, to) = between(c.now);
            let latency = |quantile| {
                latency_at(&c.latency, quantile).map_or_else(|| "-".to_owned(), nanoseconds)
            };
            let full = if c.full > 0.0 {
                Style::Warn
            } else {
                Style::Dim
            };
            table.row(vec![
                format!("{} {}", c.now.kind, c.now.id).into(),
                Cell::styled(Style::Bold, from),
                Cell::styled(Style::Bold, to),
                c.now.class.as_str().into(),
                per_second(c.messages).into(),
                per_second(c.bytes).into(),
                crate::output::count(c.now.depth).into(),
                Cell::styled(full, per_second(c.full)),
                loss(c.lost + c.dropped),
                Cell::styled(Style::Dim, per_second(c.wakes)),
                latency(0.5).into(),
                latency(0.99).into(),
            ]);
        }
        table
    }

    fn peer_table(&self) -> Table {
        let mut table = Table::new(&[
            "PEER",
            "TIER",
            "ROUTED/S",
            "TO IT/S",
            "B/S",
            "QUEUED",
            "REFUSED/S",
            "LOST/S",
        ])
        .right(&[2, 3, 4, 5, 6, 7]);
        for p in &self.peers {
            table.row(vec![
                Cell::styled(Style::Bold, &p.now.name),
                p.now.tier.as_str().into(),
                per_second(p.sent).into(),
                per_second(p.received).into(),
                per_second(p.bytes).into(),
                (p.now.queued + p.now.waiting).to_string().into(),
                loss(p.refused),
                loss(p.dropped),
            ]);
        }
        table
    }
}

/// A rate that should be zero.
fn loss(rate: f64) -> Cell {
    let style = if rate > 0.0 { Style::Bad } else { Style::Dim };
    Cell::styled(style, per_second(rate))
}

fn sort(channels: &mut [ChannelRate<'_>], peers: &mut [PeerRate<'_>], key: SortKey) {
    // By name first, so that equal lines keep their places from one interval to the next.
    channels.sort_by_cached_key(|c| (between(c.now), c.now.id));
    peers.sort_by(|a, b| a.now.name.cmp(&b.now.name));
    let of_channel = |c: &ChannelRate<'_>| match key {
        SortKey::Rate => c.messages,
        SortKey::Bytes => c.bytes,
        SortKey::Depth => c.now.depth as f64,
        SortKey::Loss => c.lost + c.dropped,
        SortKey::P50 => latency_at(&c.latency, 0.5).unwrap_or(0) as f64,
        SortKey::P99 => latency_at(&c.latency, 0.99).unwrap_or(0) as f64,
        SortKey::Name => 0.0,
    };
    channels.sort_by(|a, b| of_channel(b).total_cmp(&of_channel(a)));
    let of_peer = |p: &PeerRate<'_>| match key {
        SortKey::Bytes => p.bytes,
        SortKey::Depth => f64::from(p.now.queued + p.now.waiting),
        SortKey::Loss => p.dropped + p.refused,
        SortKey::Rate => p.sent + p.received,
        SortKey::P50 | SortKey::P99 | SortKey::Name => 0.0,
    };
    peers.sort_by(|a, b| of_peer(b).total_cmp(&of_peer(a)));
}

async fn in_blocks(
    context: &Context,
    proxy: &BusProxy<'_>,
    request: &TopRequest,
    mut before: Reading,
    mut out: Out,
) -> Result<u8, Failure> {
    let mut shown = 0;
    loop {
        tokio::time::sleep(request.interval).await;
        let now = Reading::take(proxy).await?;
        let rates = Rates::between(&before, &now, request);
        if context.is_json() {
            out.json(&rates.to_json())?;
        } else {
            if shown > 0 {
                out.line("")?;
            }
            for line in rates.lines(&now, out.colour) {
                out.line(line)?;
            }
            out.flush()?;
        }
        shown += 1;
        if request.count.is_some_and(|count| shown >= count) {
            return Ok(0);
        }
        before = now;
    }
}

/// Switches to the alternate screen, without a cursor; back when dropped.
struct Screen<'a> {
    _raw: RawTerminal<'a>,
}

impl<'a> Screen<'a> {
    fn enter(stdin: &'a impl AsFd) -> Result<Self, Failure> {
        let raw = RawTerminal::enter(stdin).map_err(|e| {
            Failure::local("can't use the terminal", e).try_next("agentctl bus top --once")
        })?;
        write(b"\x1b[?1049h\x1b[?25l")?;
        Ok(Self { _raw: raw })
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        drop(write(b"\x1b[?25h\x1b[?1049l"));
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|e| Failure::output(&e))
}

/// What ends the pause between two looks.
enum Pause {
    Over,
    /// The window has another size, or a key asks for a look.
    Redraw,
    Quit,
}

async fn on_screen(
    proxy: &BusProxy<'_>,
    request: &TopRequest,
    mut before: Reading,
) -> Result<u8, Failure> {
    let (stdin, stdout) = (std::io::stdin(), std::io::stdout());
    let watched = [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGWINCH,
    ];
    let signals = SignalFd::new(&watched).map_err(|e| Failure::local("can't watch signals", e))?;
    let colour = Colour::of(&stdout);
    let screen = Screen::enter(&stdin)?;
    let mut lines = vec!["the first interval is not over".to_owned()];
    draw(&lines, KEYS, &stdout)?;
    loop {
        let next = before.at + request.interval;
        loop {
            match pause(next, &stdin, &signals)? {
                Pause::Over => break,
                Pause::Quit => {
                    drop(screen);
                    return Ok(0);
                }
                Pause::Redraw => draw(&lines, KEYS, &stdout)?,
            }
        }
        let now = Reading::take(proxy).await?;
        lines = Rates::between(&before, &now, request).lines(&now, colour);
        draw(&lines, KEYS, &stdout)?;
        before = now;
    }
}

const KEYS: &str = "q: quit";

/// Waits for the next look, a key or a signal.
fn pause(next: Instant, stdin: &impl AsFd, signals: &SignalFd) -> Result<Pause, Failure> {
    let failed = |e: rustix::io::Errno| Failure::local("can't wait for keys", e);
    let left = next.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(Pause::Over);
    }
    let timeout = Timespec::try_from(left).map_err(|e| Failure::local("can't wait", e))?;
    let mut fds = [
        PollFd::new(stdin, PollFlags::IN),
        PollFd::new(signals, PollFlags::IN),
    ];
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) => return Ok(Pause::Over),
        Ok(_) => {}
        Err(rustix::io::Errno::INTR) => return Ok(Pause::Redraw),
        Err(e) => return Err(failed(e)),
    }
    let (key, signal) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
    if signal {
        while let Some(arrival) = signals
            .try_next()
            .map_err(|e| Failure::local("can't read signals", e))?
        {
            if arrival.signo != libc::SIGWINCH {
                return Ok(Pause::Quit);
            }
        }
    }
    if key {
        let mut byte = [0_u8; 64];
        let read = rustix::io::read(stdin, &mut byte).map_err(failed)?;
        // q, Ctrl-C, Ctrl-D, or a terminal that has gone.
        let ends = |b: &u8| matches!(b, b'q' | b'Q' | 3 | 4);
        if read == 0 || byte[..read].iter().any(ends) {
            return Ok(Pause::Quit);
        }
    }
    Ok(Pause::Redraw)
}

/// Draws over what is there: no flicker, and nothing left of longer lines.
fn draw(lines: &[String], footer: &str, stdout: &impl AsFd) -> Result<(), Failure> {
    let (rows, columns) = window(stdout).unwrap_or((24, 80));
    let room = usize::from(rows).saturating_sub(1);
    let mut screen = String::from("\x1b[H");
    for line in lines.iter().take(room) {
        screen.push_str(&clip(line, usize::from(columns)));
        screen.push_str("\x1b[K\r\n");
    }
    let hidden = lines.len().saturating_sub(room);
    screen.push_str("\x1b[J");
    let footer = match hidden {
        0 => footer.to_owned(),
        n => format!("{footer}   {n} lines more: a higher window, or --agent"),
    };
    screen.push_str(&format!("\x1b[{rows};1H\x1b[2m{footer}\x1b[0m"));
    write(screen.as_bytes())
}

/// The line cut to so many columns. Escape sequences take none, and are kept whole.
fn clip(line: &str, columns: usize) -> String {
    let mut clipped = String::new();
    let (mut width, mut in_escape) = (0, false);
    for c in line.chars() {
        if in_escape {
            clipped.push(c);
            in_escape = c != 'm';
        } else if c == '\x1b' {
            clipped.push(c);
            in_escape = true;
        } else if width < columns {
            clipped.push(c);
            width += 1;
        }
    }
    clipped
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_api::AgentId;
    use agentd_api::bus::ChannelKind;

    fn channel(id: u32, sent: u64, latency: Vec<(u64, u64)>) -> BusChannel {
        let agent: AgentId = "0198c0de-1111-7222-8333-4444feedbeef"
            .parse()
            .expect("valid");
        BusChannel {
            id,
            kind: ChannelKind::Lane,
            uid: 1000,
            from: format!("a{id}"),
            from_id: agent,
            to: Some("b".to_owned()),
            to_id: Some(agent),
            topic: None,
            class: "normal".to_owned(),
            overflow: "block".to_owned(),
            slots: 1024,
            depth: 0,
            sent,
            sent_bytes: sent * 10,
            dropped: 0,
            full: 0,
            cut_off: 0,
            sender_sleeps: 0,
            sender_wakes: 0,
            received: sent,
            received_bytes: sent * 10,
            lost: 0,
            refused: 0,
            receiver_sleeps: 0,
            receiver_wakes: 0,
            latency,
        }
    }

    fn request(sort: SortKey, idle: Idle) -> TopRequest {
        TopRequest {
            interval: Duration::from_secs(1),
            count: None,
            sort,
            agent: None,
            idle,
        }
    }

    fn readings(before: Vec<BusChannel>, now: Vec<BusChannel>) -> (Reading, Reading) {
        let at = Instant::now();
        let reading = |at, channels| Reading {
            at,
            peers: Vec::new(),
            channels,
        };
        (
            reading(at, before),
            reading(at + Duration::from_secs(2), now),
        )
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let (before, now) = readings(
            vec![channel(1, 100, vec![(50, 1)])],
            vec![channel(1, 300, vec![(50, 1), (90, 4)])],
        );
        let rates = Rates::between(&before, &now, &request(SortKey::Rate, Idle::Hidden));
        assert_eq!(rates.channels[0].messages, 100.0);
        assert_eq!(rates.channels[0].bytes, 1_000.0);
        assert_eq!(rates.channels[0].latency, [(90, 4)]);
    }

    #[test]
    fn a_new_channel_counts_from_nothing_and_an_idle_one_is_hidden() {
        let (before, now) = readings(
            vec![channel(1, 100, vec![])],
            vec![channel(1, 100, vec![]), channel(2, 8, vec![])],
        );
        let hidden = Rates::between(&before, &now, &request(SortKey::Name, Idle::Hidden));
        assert_eq!(hidden.channels.len(), 1);
        assert_eq!(hidden.channels[0].messages, 4.0);
        let shown = Rates::between(&before, &now, &request(SortKey::Name, Idle::Shown));
        assert_eq!(shown.channels.len(), 2);
    }

    #[test]
    fn lines_are_cut_by_what_is_seen() {
        assert_eq!(clip("\x1b[1mabc\x1b[0mdef", 4), "\x1b[1mabc\x1b[0md");
        assert_eq!(clip("abc", 5), "abc");
    }
}
