//! A verb that failed: what, why, what to try next, and the exit code for scripts.

use std::fmt;

use agentd_api::{Error as ApiError, ErrorCode};

/// The end of a verb that did not do what was asked.
#[derive(Debug)]
pub struct Failure {
    /// What failed, as a phrase: "can't attach to \"bob\"".
    pub what: String,
    /// Why, as the one who knows says.
    pub why: String,
    /// A command or step to try.
    pub next: Option<String>,
    /// The stable word for it in `--json`.
    pub code: FailureCode,
    exit_code: u8,
}

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureCode {
    /// The daemon's answer, or its silence.
    Api(ErrorCode),
    /// The command line asks for something impossible.
    Usage,
    /// Something on this side: a file, the terminal.
    Local,
    /// The reader of our output is gone; nobody wants to hear about it.
    BrokenPipe,
}

impl Failure {
    /// A command line that can't be meant; exit code 2.
    pub fn usage(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(FailureCode::Usage, 2, what, why)
    }

    /// A file, directory or terminal that does not do; exit code 1.
    pub fn local(what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(FailureCode::Local, 1, what, why)
    }

    /// An error that stands for an answer of the daemon.
    pub fn of_code(code: ErrorCode, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self::new(FailureCode::Api(code), code.exit_code(), what, why)
    }

    /// The daemon's error.
    pub fn api(what: impl Into<String>, error: &ApiError) -> Self {
        let code = error.code();
        let why = match error {
            ApiError::ZBus(zbus::Error::InputOutput(e)) => {
                format!("the connection to agentd broke: {e}")
            }
            other => other.text(),
        };
        Self::of_code(code, what, why)
    }

    /// Writing our own output failed.
    pub fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            Self::new(FailureCode::BrokenPipe, 0, "can't write output", error)
        } else {
            Self::local("can't write output", error)
        }
    }

    fn new(
        code: FailureCode,
        exit_code: u8,
        what: impl Into<String>,
        why: impl fmt::Display,
    ) -> Self {
        Self {
            what: what.into(),
            why: why.to_string(),
            next: None,
            code,
            exit_code,
        }
    }

    /// Adds the command or step to try next.
    #[must_use]
    pub fn try_next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// The same failure as an exit code of `run`, where the low numbers belong to the program.
    #[must_use]
    pub fn of_run(mut self) -> Self {
        self.exit_code = match self.code {
            FailureCode::Api(code) => code.run_exit_code(),
            FailureCode::BrokenPipe => 0,
            FailureCode::Usage => 2,
            FailureCode::Local => 125,
        };
        self
    }

    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    pub fn is_broken_pipe(&self) -> bool {
        self.code == FailureCode::BrokenPipe
    }

    /// Whether nobody serves: starting a daemon may help.
    pub fn is_unreachable(&self) -> bool {
        self.code == FailureCode::Api(ErrorCode::Unreachable)
    }

    /// The form that `--json` prints on stderr.
    pub fn to_json(&self) -> serde_json::Value {
        let code = match self.code {
            FailureCode::Api(code) => code.as_str(),
            FailureCode::Usage => "usage",
            FailureCode::Local => "local",
            FailureCode::BrokenPipe => "broken-pipe",
        };
        serde_json::json!({
            "error": {
                "code": code,
                "exit_code": self.exit_code,
                "what": self.what,
                "why": self.why,
                "next": self.next,
            }
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Failure {}
