//! `tail`: round trips of one light sender, alone and while others send as much as they can.

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use agentd_bus::frame::{Frame, PeerId, kind};
use anyhow::{Context, Result};

use crate::idle::connect;

#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    #[arg(long)]
    to: String,
    /// Connections, all of this process
    #[arg(long)]
    count: usize,
    #[arg(long)]
    cpu: usize,
}

/// Sends events without pause on every connection until standard input ends. Nicest of all, so that it is the server and
/// not the scheduler whom the light sender has to wait for.
pub fn flood(options: &Options) -> Result<()> {
    crate::pin(options.cpu)?;
    rustix::process::setpriority_process(None, 19).context("be nice")?;
    let mut burst = Vec::new();
    for _ in 0..128 {
        Frame::new(kind::EVENT, PeerId::BUS, 0, vec![0x5A; 64]).encode_into(&mut burst);
    }
    let sockets: Result<Vec<OwnedFd>> = (0..options.count)
        .map(|nth| connect(&options.to, nth))
        .collect();
    let mut streams: Vec<UnixStream> = sockets?.into_iter().map(UnixStream::from).collect();
    for stream in &streams {
        stream.set_nonblocking(true)?;
    }
    let ended = std::thread::spawn(|| std::io::stdin().read_to_end(&mut Vec::new()));
    let mut out = std::io::stdout().lock();
    writeln!(out, "flooding")?;
    out.flush()?;
    // A frame that was cut goes on where it stopped.
    let mut sent = vec![0; streams.len()];
    while !ended.is_finished() {
        let mut fds: Vec<rustix::event::PollFd<'_>> = streams
            .iter()
            .map(|stream| rustix::event::PollFd::new(stream, rustix::event::PollFlags::OUT))
            .collect();
        let patience = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        rustix::event::poll(&mut fds, Some(&patience))?;
        drop(fds);
        for (stream, sent) in streams.iter_mut().zip(&mut sent) {
            while let Ok(count) = stream.write(&burst[*sent..]) {
                *sent = (*sent + count) % burst.len();
            }
        }
    }
    Ok(())
}

/// The 99th percentile of `count` round trips, nanoseconds, `gap` apart.
pub fn p99(to: &str, count: usize, gap: Duration) -> Result<f64> {
    let mut stream = UnixStream::from(connect(to, 0)?);
    let mut request = Vec::new();
    Frame::new(kind::REQUEST, PeerId::BUS, 1, vec![0x5A; 64]).encode_into(&mut request);
    let mut answer = vec![0; request.len()];
    let mut took = Vec::with_capacity(count);
    let start = Instant::now();
    for nth in 0..count {
        // Paced by the clock; a round trip is timed from its own start, so the timer's lateness is not in it.
        let due = start + gap * nth as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let sent = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        took.push(sent.elapsed().as_nanos() as u64);
    }
    took.drain(..count / 10);
    took.sort_unstable();
    Ok(took[took.len() * 99 / 100] as f64)
}
