//! Logs to stderr, where a service manager or the terminal picks them up.
//!
//! Levels by `AGENTD_LOG` (default [`DEFAULT_FILTER`]). With `JOURNAL_STREAM` set, times and colours are left to the journal.
//! Keys, prompts and message bodies are never logged.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

/// What is worth a line by default. The libraries named tell every conversation and statement at `info`.
const DEFAULT_FILTER: &str = "info,rmcp=warn,sqlx=warn";

/// Installs the subscriber. Call once.
pub fn init() {
    let filter =
        EnvFilter::try_from_env("AGENTD_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        builder.without_time().init();
    } else {
        builder.init();
    }
}
