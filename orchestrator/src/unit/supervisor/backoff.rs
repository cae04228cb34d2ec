//! Which ends are restarted, and after what time.

use std::time::Duration;

use super::End;

/// After which ends a member is started again. A stop that somebody asked for never is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    Never,
    /// Any end but exit code 0.
    OnFailure,
    /// Signals, time-outs, limits and ends that nobody saw.
    OnAbnormal,
    Always,
}

/// The rules of `[restart]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Restart {
    pub policy: RestartPolicy,
    pub delay: Duration,
    pub factor: f64,
    pub max_delay: Duration,
    /// 0 to 100: a delay is longer or shorter by up to so much.
    pub jitter_percent: u8,
    /// Restarts within `interval`; one more and the unit fails.
    pub burst: u32,
    pub interval: Duration,
}

impl Restart {
    /// Whether `end` is followed by a restart.
    pub fn covers(&self, end: &End) -> bool {
        match (self.policy, end) {
            (_, End::Stopped) | (RestartPolicy::Never, _) => false,
            (RestartPolicy::Always, _) => true,
            (RestartPolicy::OnFailure, end) => end.is_failure(),
            (RestartPolicy::OnAbnormal, end) => {
                matches!(end, End::Signal(_) | End::TimedOut | End::Limit | End::Lost)
            }
        }
    }

    /// The delay before the restart that follows `failures` failures in a row; `random` from 0 to 1.
    pub fn delay_after(&self, failures: u32, random: f64) -> Duration {
        let exponent = i32::try_from(failures.min(64)).unwrap_or(64);
        let grown = self.delay.as_secs_f64() * self.factor.powi(exponent);
        let longest = self.max_delay.as_secs_f64();
        let jitter = f64::from(self.jitter_percent) / 100.0;
        let spread = 1.0 + jitter * (2.0 * random.clamp(0.0, 1.0) - 1.0);
        Duration::from_secs_f64((grown.min(longest) * spread).min(longest))
    }
}
