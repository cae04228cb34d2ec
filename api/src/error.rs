//! What can go wrong with a request, in codes that scripts may rely on.

use zbus::DBusError;

use crate::vocabulary::words;

/// A request that failed. On D-Bus the name is `org.agentd1.Error.` and the variant; the text says
/// what failed, why, and what to do next.
#[derive(Debug, DBusError)]
#[zbus(prefix = "org.agentd1.Error")]
pub enum Error {
    /// The connection failed, or the peer answered with an error of D-Bus itself.
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The policy or the caller's identity forbids it.
    Denied(String),
    /// No such agent (or none that the caller may see), record or policy.
    NotFound(String),
    /// The policy text has an error; the text gives file, line, key and what is allowed.
    InvalidPolicy(String),
    /// The request itself is wrong.
    InvalidArgument(String),
    /// The policy demands a property that this host can't give.
    LaunchRefused(String),
    /// Setting up the sandbox failed; the text names the step.
    LaunchFailed(String),
    /// The program can't be executed in the sandbox.
    ProgramNotExecutable(String),
    /// The program does not exist in the sandbox.
    ProgramNotFound(String),
    /// A live agent of this user has the name already.
    Exists(String),
    /// The state of the agent or daemon does not allow it now.
    Unavailable(String),
    /// The time that the caller gave was up.
    TimedOut(String),
    /// An agent was asked and answered that it failed; the text is its own.
    AgentFailed(String),
    /// A fault of the daemon.
    Internal(String),
}

words! {
    /// [`Error`] without its text.
    pub enum ErrorCode: "error code" {
        Denied = "denied",
        NotFound = "not-found",
        InvalidPolicy = "invalid-policy",
        InvalidArgument = "invalid-argument",
        LaunchRefused = "launch-refused",
        LaunchFailed = "launch-failed",
        ProgramNotExecutable = "program-not-executable",
        ProgramNotFound = "program-not-found",
        Exists = "exists",
        Unavailable = "unavailable",
        TimedOut = "timed-out",
        AgentFailed = "agent-failed",
        Internal = "internal",
        /// The daemon can't be reached, or went away in the middle.
        Unreachable = "unreachable",
    }
}

impl ErrorCode {
    /// Exit code of every verb but `run`.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Unreachable => 3,
            Self::Denied => 4,
            Self::InvalidArgument => 2,
            Self::TimedOut => 124,
            Self::NotFound
            | Self::InvalidPolicy
            | Self::LaunchRefused
            | Self::LaunchFailed
            | Self::ProgramNotExecutable
            | Self::ProgramNotFound
            | Self::Exists
            | Self::Unavailable
            | Self::AgentFailed
            | Self::Internal => 1,
        }
    }

    /// Exit code of `run`, where 1 and 2 would be mistaken for the program's own.
    pub fn run_exit_code(self) -> u8 {
        match self {
            Self::ProgramNotExecutable => 126,
            Self::ProgramNotFound => 127,
            _ => 125,
        }
    }
}

impl Error {
    /// The stable code. Of D-Bus's own errors a broken connection counts as unreachable.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::ZBus(e) => match named(e) {
                Some((name, _)) => match name.strip_prefix("org.freedesktop.DBus.Error.") {
                    Some("AccessDenied" | "AuthFailed") => ErrorCode::Denied,
                    Some("UnknownObject") => ErrorCode::NotFound,
                    Some("InvalidArgs") => ErrorCode::InvalidArgument,
                    Some("UnknownMethod" | "UnknownInterface") => ErrorCode::Unavailable,
                    Some("Disconnected" | "NoReply" | "ServiceUnknown" | "NameHasNoOwner") => {
                        ErrorCode::Unreachable
                    }
                    Some("LimitsExceeded") => ErrorCode::Unavailable,
                    _ => ErrorCode::Internal,
                },
                None => ErrorCode::Unreachable,
            },
            Self::Denied(_) => ErrorCode::Denied,
            Self::NotFound(_) => ErrorCode::NotFound,
            Self::InvalidPolicy(_) => ErrorCode::InvalidPolicy,
            Self::InvalidArgument(_) => ErrorCode::InvalidArgument,
            Self::LaunchRefused(_) => ErrorCode::LaunchRefused,
            Self::LaunchFailed(_) => ErrorCode::LaunchFailed,
            Self::ProgramNotExecutable(_) => ErrorCode::ProgramNotExecutable,
            Self::ProgramNotFound(_) => ErrorCode::ProgramNotFound,
            Self::Exists(_) => ErrorCode::Exists,
            Self::Unavailable(_) => ErrorCode::Unavailable,
            Self::TimedOut(_) => ErrorCode::TimedOut,
            Self::AgentFailed(_) => ErrorCode::AgentFailed,
            Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// The text without the D-Bus name in front of it.
    pub fn text(&self) -> String {
        match self {
            Self::ZBus(e) => match named(e) {
                Some((_, Some(text))) => text,
                _ => e.to_string(),
            },
            Self::Denied(t)
            | Self::NotFound(t)
            | Self::InvalidPolicy(t)
            | Self::InvalidArgument(t)
            | Self::LaunchRefused(t)
            | Self::LaunchFailed(t)
            | Self::ProgramNotExecutable(t)
            | Self::ProgramNotFound(t)
            | Self::Exists(t)
            | Self::Unavailable(t)
            | Self::TimedOut(t)
            | Self::AgentFailed(t)
            | Self::Internal(t) => t.clone(),
        }
    }
}

/// Name and text of an error reply; nothing for failures of the connection.
fn named(error: &zbus::Error) -> Option<(String, Option<String>)> {
    use zbus::DBusError as _;

    match error {
        zbus::Error::MethodError(name, text, _) => Some((name.to_string(), text.clone())),
        zbus::Error::FDO(e) => Some((e.name().to_string(), e.description().map(str::to_owned))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_design() {
        assert_eq!(Error::Denied(String::new()).code().exit_code(), 4);
        assert_eq!(Error::NotFound(String::new()).code().exit_code(), 1);
        assert_eq!(Error::InvalidArgument(String::new()).code().exit_code(), 2);
        assert_eq!(ErrorCode::Unreachable.exit_code(), 3);
        assert_eq!(ErrorCode::TimedOut.exit_code(), 124);
        assert_eq!(ErrorCode::ProgramNotFound.run_exit_code(), 127);
        assert_eq!(ErrorCode::ProgramNotExecutable.run_exit_code(), 126);
        assert_eq!(ErrorCode::Denied.run_exit_code(), 125);
    }

    #[test]
    fn names_are_under_the_tree() {
        use zbus::DBusError as _;
        let error = Error::LaunchRefused("no seccomp".to_owned());
        assert_eq!(error.name().as_str(), "org.agentd1.Error.LaunchRefused");
        assert_eq!(error.description(), Some("no seccomp"));
    }
}
