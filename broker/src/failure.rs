//! Making the refusals that go back to agentd. Pure.

use agentd_broker::protocol::{ErrorCode, Failure};
use std::io;

/// A refusal without a failed system call.
pub fn refused(code: ErrorCode, text: impl Into<String>) -> Failure {
    Failure {
        code,
        errno: 0,
        text: text.into(),
    }
}

/// A failed call, or chain of calls: `what` says which, the error why.
pub fn failed(code: ErrorCode, what: impl std::fmt::Display, error: &io::Error) -> Failure {
    Failure {
        code,
        errno: error.raw_os_error().unwrap_or(0),
        text: format!("{what}: {error}"),
    }
}
