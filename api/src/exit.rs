//! How an agent ended, and which exit code a shell gets to see for it.

use serde_json::{Value, json};
use zbus::{DeserializeDict, SerializeDict, Type};

use crate::vocabulary::words;

words! {
    /// Why an agent is over.
    pub enum ExitCause: "exit cause" {
        /// The program returned; `code` says what.
        Exited = "exited",
        /// A signal ended the program; `signal` says which.
        Signaled = "signaled",
        /// The wall clock of `--timeout` or of the policy ran out.
        TimedOut = "timed-out",
        /// `agentctl stop` or `agentctl kill`, or the daemon's own shutdown.
        Stopped = "stopped",
        /// A limit of the policy (memory, output bytes) ended it; `text` says which.
        Limit = "limit",
        /// The sandbox could not be set up; `text` names the step.
        LaunchFailed = "launch-failed",
        /// The sandbox stood, but the program may not be executed in it.
        NotExecutable = "not-executable",
        /// The sandbox stood, but the program does not exist in it.
        NotFound = "not-found",
        /// Nobody saw the end: daemon and broker were gone when it came.
        Lost = "lost",
    }
}

impl ExitCause {
    /// The byte that stands for the cause in an exit frame.
    pub(crate) fn to_byte(self) -> u8 {
        let position = Self::ALL.iter().position(|c| *c == self);
        position.expect("ALL holds every cause") as u8
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// How an agent ended.
#[derive(Debug, Clone, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct ExitInfo {
    pub cause: ExitCause,
    /// What the program returned, 0..=255.
    pub code: Option<i32>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    pub core_dumped: Option<bool>,
    /// One line for people: the step that failed, the limit that was reached.
    pub text: Option<String>,
    /// CPU time in user space of the whole tree, microseconds.
    pub utime_us: Option<u64>,
    /// CPU time in the kernel of the whole tree, microseconds.
    pub stime_us: Option<u64>,
    /// Largest resident set of one process, KiB.
    pub max_rss_kb: Option<u64>,
}

impl ExitInfo {
    /// An end with this cause, nothing else known yet.
    pub fn new(cause: ExitCause) -> Self {
        Self {
            cause,
            code: None,
            signal: None,
            core_dumped: None,
            text: None,
            utime_us: None,
            stime_us: None,
            max_rss_kb: None,
        }
    }

    /// The end that a `wait(2)` status describes.
    pub fn from_wait_status(status: i32) -> Self {
        let signal = status & 0x7f;
        if signal == 0 {
            Self {
                code: Some((status >> 8) & 0xff),
                ..Self::new(ExitCause::Exited)
            }
        } else {
            Self {
                signal: Some(signal),
                core_dumped: Some(status & 0x80 != 0),
                ..Self::new(ExitCause::Signaled)
            }
        }
    }

    /// The same end with another cause: the program died of SIGKILL, but because time was up.
    #[must_use]
    pub fn because(mut self, cause: ExitCause, text: impl Into<String>) -> Self {
        self.cause = cause;
        self.text = Some(text.into());
        self
    }

    /// What `agentctl run` returns: the program's own code, 128 + n for signal n, 124 for a
    /// time-out, and 125, 126, 127 as docker and env do.
    pub fn exit_code(&self) -> u8 {
        match self.cause {
            ExitCause::TimedOut => 124,
            ExitCause::LaunchFailed | ExitCause::Lost => 125,
            ExitCause::NotExecutable => 126,
            ExitCause::NotFound => 127,
            ExitCause::Exited | ExitCause::Signaled | ExitCause::Stopped | ExitCause::Limit => {
                match (self.signal, self.code) {
                    (Some(signal), _) => 128u8.saturating_add((signal & 0x7f) as u8),
                    (None, Some(code)) => (code & 0xff) as u8,
                    // Killed before it could say anything.
                    (None, None) => 137,
                }
            }
        }
    }

    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({
            "cause": self.cause,
            "exit_code": self.exit_code(),
            "code": self.code,
            "signal": self.signal,
            "core_dumped": self.core_dumped,
            "text": self.text,
            "utime_us": self.utime_us,
            "stime_us": self.stime_us,
            "max_rss_kb": self.max_rss_kb,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_docker_and_env() {
        let exited = |code: i32| ExitInfo::from_wait_status(code << 8);
        assert_eq!(exited(0).exit_code(), 0);
        assert_eq!(exited(42).exit_code(), 42);
        assert_eq!(exited(255).exit_code(), 255);
        assert_eq!(ExitInfo::from_wait_status(2).exit_code(), 130);
        let core = ExitInfo::from_wait_status(11 | 0x80);
        assert_eq!((core.exit_code(), core.core_dumped), (139, Some(true)));
        let killed = ExitInfo::from_wait_status(9);
        assert_eq!(
            killed
                .clone()
                .because(ExitCause::TimedOut, "10 s")
                .exit_code(),
            124
        );
        assert_eq!(
            killed
                .because(ExitCause::Stopped, "agentctl stop")
                .exit_code(),
            137
        );
        assert_eq!(ExitInfo::new(ExitCause::LaunchFailed).exit_code(), 125);
        assert_eq!(ExitInfo::new(ExitCause::NotExecutable).exit_code(), 126);
        assert_eq!(ExitInfo::new(ExitCause::NotFound).exit_code(), 127);
    }

    #[test]
    fn causes_survive_their_byte() {
        for cause in ExitCause::ALL {
            assert_eq!(ExitCause::from_byte(cause.to_byte()), Some(*cause));
        }
        assert_eq!(ExitCause::from_byte(200), None);
    }
}
