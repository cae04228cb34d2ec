//! Bytes both ways until both sides are done: half-closes are passed on, silence is bounded, everything is counted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::counters::EgressCounters;

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

/// Relays between the agent and the network until both directions have ended, one of them failed, or nothing has
/// moved for `idle`.
pub async fn run(
    agent: impl AsyncRead + AsyncWrite,
    network: impl AsyncRead + AsyncWrite,
    counters: &EgressCounters,
    idle: Duration,
) {
    let (agent_read, agent_write) = tokio::io::split(agent);
    let (network_read, network_write) = tokio::io::split(network);
    let activity = Activity::new();
    let both = async {
        tokio::try_join!(
            copy(agent_read, network_write, &activity, |n| counters.sent(n)),
            copy(network_read, agent_write, &activity, |n| counters
                .received(n)),
        )
    };
    tokio::select! {
        ended = both => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a tunnel broke");
            }
        }
        () = activity.idle_for(idle) => tracing::debug!("a tunnel was silent for {idle:?}"),
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
        tunnel.await.unwrap();
        let s = counters.snapshot();
        assert_eq!((s.sent_bytes, s.received_bytes), (8, 6));
    }

    /// On a paused clock, so by the clock's own word and not by waiting.
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
            tokio::join!(touching, activity.idle_for(limit));
            assert!(started.elapsed() >= limit * 3, "{:?}", started.elapsed());
        });
    }
}
