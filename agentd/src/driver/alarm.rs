//! A time limit on the boot clock (`CLOCK_BOOTTIME`), which goes on while the machine sleeps and never jumps: who was
//! given a minute has had it, whatever became of the day's time.
//!
//! One timer descriptor per limit, on the daemon's runtime. Where the kernel gives no timer the limit is an error for
//! whoever sets it, never a limit that doesn't hold.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

use crate::agents::watch_fd;

/// A time that comes once.
#[derive(Debug)]
pub struct Alarm(AsyncFd<OwnedFd>);

impl Alarm {
    /// Comes after `limit`; at once if that is nothing.
    ///
    /// # Errors
    /// When the kernel gives no timer.
    pub fn after(limit: Duration) -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Boottime,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        // A timer set to nothing would never come.
        let limit = limit.max(Duration::from_nanos(1));
        let never = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: never,
            it_value: Timespec {
                tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: limit.subsec_nanos().into(),
            },
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(Self(watch_fd(timer)?))
    }

    /// Resolves when the time has come, and at once from then on.
    ///
    /// # Errors
    /// When the runtime can't watch the timer any more.
    pub async fn come(&self) -> io::Result<()> {
        // Never read, so it stays readable.
        self.0
            .readable()
            .await
            .map(|mut ready| ready.retain_ready())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_comes_once_and_stays() {
        let alarm = Alarm::after(Duration::ZERO).unwrap();
        alarm.come().await.unwrap();
        alarm.come().await.unwrap();
    }

    #[tokio::test]
    async fn a_later_alarm_does_not_come_before_an_earlier_one() {
        let late = Alarm::after(Duration::from_secs(3600)).unwrap();
        let soon = Alarm::after(Duration::from_millis(1)).unwrap();
        tokio::select! {
            biased;
            came = late.come() => panic!("the hour is over: {came:?}"),
            came = soon.come() => came.unwrap(),
        }
    }
}
