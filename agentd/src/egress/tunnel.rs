//! Bytes both ways until both sides are done: half-closes are passed on, silence is bounded, everything is counted, and
//! TLS is with the host that was asked for or with nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::counters::EgressCounters;
use super::hello::{self, Opening};

const BUFFER_BYTES: usize = 16 << 10;

/// When something last moved, shared by everyone who moves or watches.
#[derive(Debug, Clone)]
pub struct Activity {
    start: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Activity {
    /// Something moved just now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            last_ms: Arc::default(),
        }
    }

    /// Something moves.
    pub fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(now, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for `limit`.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            let last = self.start + Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
            let due = last + limit;
            if due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

/// The TLS server that the agent wanted is not one that it may have through this tunnel, and nothing was sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fronted {
    /// Its name; none where the opening could not be read.
    pub server: Option<String>,
}

/// Relays between the agent and the network until both directions have ended, one of them failed, or nothing has
/// moved for `idle`. Whether the server that a TLS client names may be spoken to, `is_meant` says.
pub async fn run(
    agent: impl AsyncRead + AsyncWrite,
    network: impl AsyncRead + AsyncWrite,
    counters: &EgressCounters,
    idle: Duration,
    is_meant: impl Fn(&str) -> bool,
) -> Result<(), Fronted> {
    let (mut agent_read, agent_write) = tokio::io::split(agent);
    let (network_read, mut network_write) = tokio::io::split(network);
    let activity = Activity::new();
    let outward = async {
        let opening = opening(&mut agent_read, &activity, is_meant).await?;
        network_write.write_all(&opening).await?;
        counters.sent(opening.len());
        copy(agent_read, network_write, &activity, |n| counters.sent(n)).await?;
        Ok::<(), Ended>(())
    };
    let inward = async {
        let received = |n| counters.received(n);
        copy(network_read, agent_write, &activity, received).await?;
        Ok(())
    };
    let both = async { tokio::try_join!(outward, inward) };
    tokio::select! {
        ended = both => {
            match ended {
                Ok(_) => {}
                Err(Ended::Broke(error)) => tracing::debug!(%error, "a tunnel broke"),
                Err(Ended::Fronted(fronted)) => return Err(fronted),
            }
        }
        () = activity.idle_for(idle) => tracing::debug!("a tunnel was silent for {idle:?}"),
    }
    Ok(())
}

/// Why a direction ended before its time.
enum Ended {
    Broke(io::Error),
    Fronted(Fronted),
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Broke(error)
    }
}

/// What the agent begins with, read until it is clear whom it wants to speak to.
async fn opening(
    agent: &mut (impl AsyncRead + Unpin),
    activity: &Activity,
    is_meant: impl Fn(&str) -> bool,
) -> Result<Vec<u8>, Ended> {
    let mut bytes = Vec::new();
    loop {
        let read = agent.read_buf(&mut bytes).await?;
        activity.touch();
        if read == 0 {
            // Half a hello opens nothing.
            return Ok(bytes);
        }
        let server = match hello::read(&bytes) {
            Opening::Unfinished => continue,
            Opening::Nameless => return Ok(bytes),
            Opening::Server(name) if is_meant(&name) => return Ok(bytes),
            Opening::Server(name) => Some(name),
            Opening::Broken => None,
        };
        return Err(Ended::Fronted(Fronted { server }));
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
    count: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let read = from.read(&mut buffer).await?;
        activity.touch();
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        // TLS-like layers and upgraded connections may hold bytes back until told.
        to.flush().await?;
        activity.touch();
        count(read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    #[tokio::test]
    async fn a_half_closed_side_still_receives() {
        let (mut agent, inner_agent) = duplex(64);
        let (mut network, inner_network) = duplex(64);
        let counters = Arc::new(EgressCounters::default());
        let counted = counters.clone();
        let tunnel = tokio::spawn(async move {
            run(
                inner_agent,
                inner_network,
                &counted,
                Duration::from_secs(60),
                |_| true,
            )
            .await
        });
        agent.write_all(b"question").await.unwrap();
        agent.shutdown().await.unwrap();
        let mut text = String::new();
        network.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "question");
        network.write_all(b"answer").await.unwrap();
        drop(network);
        text.clear();
        agent.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "answer");
        assert_eq!(tunnel.await.unwrap(), Ok(()));
        let s = counters.snapshot();
        assert_eq!((s.sent_bytes, s.received_bytes), (8, 6));
    }

    /// Polled in this order, so that a machine that stands still for a while delays both alike and is no silence.
    #[test]
    fn silence_ends_a_tunnel_and_traffic_keeps_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let limit = Duration::from_millis(200);
            let activity = Activity::new();
            let started = Instant::now();
            let touching = async {
                for _ in 0..4 {
                    tokio::time::sleep(limit / 2).await;
                    activity.touch();
                }
            };
            tokio::join!(biased; touching, activity.idle_for(limit));
            assert!(started.elapsed() >= limit * 3, "{:?}", started.elapsed());
        });
    }
}
