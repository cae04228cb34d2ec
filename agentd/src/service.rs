//! Talking with the service manager: ready, reloading, stopping, and the watchdog's pings.
//!
//! Everything goes over `$NOTIFY_SOCKET` (sd_notify(3)) and does nothing where there is none. A ping is sent only after a
//! task has run on the runtime and the record's writer has answered, so a daemon that hangs in either is ended and
//! started again by the service manager; a writer that answers with an error, as on a full disk, is alive.

use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::daemon::Daemon;

/// Pings per watchdog interval: one lost to a busy machine is no reason to be killed.
const PINGS_PER_INTERVAL: u32 = 3;

/// Says that connections are served: to the service manager, and as a line for whoever started us by hand.
pub fn announce_ready() -> anyhow::Result<()> {
    use anyhow::Context as _;
    sd_notify::notify(&[NotifyState::Ready]).context("sd_notify")?;
    eprintln!("ready");
    Ok(())
}

/// Says that the end has begun.
pub fn announce_stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Runs a reload between the two notices that the service manager expects.
pub async fn reload(daemon: &Arc<Daemon>) {
    let begun = NotifyState::monotonic_usec_now();
    match begun {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!("no monotonic clock: {error}"),
    }
    match daemon.reload().await {
        Ok(()) => tracing::info!("reloaded"),
        Err(error) => tracing::error!(
            "not reloaded, everything stays as it was:\n{}",
            error.text()
        ),
    }
    tell(&[NotifyState::Ready]);
}

/// Pings the watchdog for as long as the daemon is alive, if the service manager wants it.
pub async fn ping(daemon: Arc<Daemon>) {
    let Some(interval) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = tokio::time::interval(pause(interval));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // On another worker than this one, if it is free.
        if tokio::spawn(tokio::task::yield_now()).await.is_err() {
            return;
        }
        if let Err(error) = daemon.store.flush().await {
            tracing::debug!("the record's writer answers: {error}");
        }
        tell(&[NotifyState::Watchdog]);
    }
}

fn pause(interval: Duration) -> Duration {
    interval / PINGS_PER_INTERVAL
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("sd_notify: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_ping_is_made_good_within_the_interval() {
        let interval = Duration::from_secs(30);
        assert!(2 * pause(interval) < interval);
    }
}
