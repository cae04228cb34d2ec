//! The clocks of tasks: `CLOCK_BOOTTIME` for decisions, the wall clock for people, and moments that survive a reboot.
//!
//! tokio's timers run on `CLOCK_MONOTONIC`, which stands still while the machine is suspended; deadlines must not, so
//! there is a timerfd of our own.

use std::io;
use std::os::fd::OwnedFd;

use agentd_orchestrator::task::Now;
use agentd_storage::BootMoment;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Reads the clocks.
#[derive(Clone, Debug)]
pub struct Clock {
    boot_id: String,
}

impl Clock {
    /// Learns which boot this is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn new() -> io::Result<Self> {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self {
            boot_id: boot_id.trim().to_owned(),
        })
    }

    pub fn now(&self) -> Now {
        let boot = clock_gettime(ClockId::Boottime);
        let ms = boot.tv_sec.cast_unsigned() * 1_000 + boot.tv_nsec.cast_unsigned() / 1_000_000;
        Now {
            boot_ms: ms,
            wall_ms: agentd_storage::unix_ms(),
        }
    }

    /// A moment of the boot clock, for the record.
    pub fn moment(&self, boot_ms: u64, now: Now) -> BootMoment {
        let from_now = boot_ms
            .cast_signed()
            .saturating_sub(now.boot_ms.cast_signed());
        BootMoment {
            boot_id: self.boot_id.clone(),
            boot_ms,
            wall_ms: now.wall_ms.saturating_add(from_now),
        }
    }

    /// A moment from the record, on the boot clock of now: exact within one boot, by the wall clock after another.
    /// Negative if it lies before this boot.
    pub fn recall(&self, moment: &BootMoment, now: Now) -> i64 {
        if moment.boot_id == self.boot_id {
            moment.boot_ms.cast_signed()
        } else {
            let from_now = moment.wall_ms.saturating_sub(now.wall_ms);
            now.boot_ms.cast_signed().saturating_add(from_now)
        }
    }
}

/// Resolves at a moment of the boot clock.
#[derive(Debug)]
pub struct BootTimer {
    fd: AsyncFd<OwnedFd>,
    armed: Option<u64>,
}

impl BootTimer {
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let fd = timerfd_create(TimerfdClockId::Boottime, flags)?;
        Ok(Self {
            fd: crate::agents::watch_fd(fd)?,
            armed: None,
        })
    }

    /// Resolves once the boot clock has reached `at`; never without one. Cancel safe.
    pub async fn reached(&mut self, at: Option<u64>) {
        let Some(ms) = at else {
            return std::future::pending().await;
        };
        if self.armed != at {
            let value = Timespec {
                tv_sec: (ms / 1_000).cast_signed(),
                // Zero would disarm it.
                tv_nsec: ((ms % 1_000) * 1_000_000).max(1).cast_signed(),
            };
            let once = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: value,
            };
            if let Err(error) =
                timerfd_settime(self.fd.get_ref(), TimerfdTimerFlags::ABSTIME, &once)
            {
                unreachable!("a valid time on our own timer: {error}");
            }
            self.armed = at;
        }
        loop {
            let mut ready = match self.fd.readable().await {
                Ok(ready) => ready,
                Err(error) => unreachable!("the runtime watches our own timer: {error}"),
            };
            let mut ticks = [0; 8];
            if rustix::io::read(self.fd.get_ref(), &mut ticks).is_ok() {
                self.armed = None;
                return;
            }
            // What the runtime remembered was an earlier expiry.
            ready.clear_ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_exact_within_a_boot_and_follow_the_wall_clock_after_another() {
        let clock = Clock {
            boot_id: "this".into(),
        };
        let now = Now {
            boot_ms: 10_000,
            wall_ms: 1_000_000,
        };
        let moment = clock.moment(12_500, now);
        assert_eq!(moment.wall_ms, 1_002_500);
        let jumped = Now {
            wall_ms: 5_000_000,
            ..now
        };
        assert_eq!(clock.recall(&moment, jumped), 12_500);
        let rebooted = Clock {
            boot_id: "next".into(),
        };
        let later = Now {
            boot_ms: 100,
            wall_ms: 1_002_000,
        };
        assert_eq!(rebooted.recall(&moment, later), 600);
        let much_later = Now {
            boot_ms: 100,
            wall_ms: 9_000_000,
        };
        assert!(rebooted.recall(&moment, much_later) < 0);
    }

    #[tokio::test]
    async fn the_timer_resolves_at_its_moment_and_can_be_set_again() {
        let clock = Clock::new().unwrap();
        let mut timer = BootTimer::new().unwrap();
        for _ in 0..2 {
            let at = clock.now().boot_ms + 20;
            timer.reached(Some(at)).await;
            assert!(clock.now().boot_ms >= at);
        }
        // A moment that has passed is reached at once.
        timer.reached(Some(1)).await;
    }
}
