//! Logs to stderr, where a service manager or the terminal picks them up.
//!
//! Levels by `AGENTD_LOG` (default [`DEFAULT_FILTER`]); one that can't be read is told, and the
//! default used. With `JOURNAL_STREAM` set, times and colours are left to the journal, and each
//! line begins with its priority in the form of sd-daemon(3), `<3>` to `<7>`, which the journal
//! takes off and keeps. Keys, prompts and message bodies are never logged.

use std::fmt;
use std::io::IsTerminal as _;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is worth a line by default. The libraries named tell every conversation and statement at `info`.
const DEFAULT_FILTER: &str = "info,rmcp=warn,sqlx=warn";

/// Installs the subscriber. Call once.
pub fn init() {
    let (levels, wrong) = match levels(std::env::var("AGENTD_LOG").ok().as_deref()) {
        Ok(levels) => (levels, None),
        Err(error) => (levels(None).unwrap_or_default(), Some(error)),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(levels);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        registry
            .with(lines.event_format(Prioritised::default()))
            .init();
    } else {
        registry.with(lines).init();
    }
    if let Some(error) = wrong {
        tracing::warn!(
            "AGENTD_LOG: {error}; it is a level, or TARGET=LEVEL pairs with commas between, as in `info,agentd=debug`; {DEFAULT_FILTER} is used"
        );
    }
}

/// What is logged, by what the environment asks for.
fn levels(asked: Option<&str>) -> Result<Targets, ParseError> {
    asked.unwrap_or(DEFAULT_FILTER).parse()
}

/// A line for the journal: its priority, then the message.
#[derive(Debug)]
struct Prioritised(Format<Full, ()>);

impl Default for Prioritised {
    fn default() -> Self {
        // The journal knows time and level.
        Self(
            Format::default()
                .without_time()
                .with_level(false)
                .with_target(false)
                .with_ansi(false),
        )
    }
}

impl<S, N> FormatEvent<S, N> for Prioritised
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        self.0.format_event(context, writer, event)
    }
}

/// syslog(3)'s number of a level. What agentd calls information, the journal shows as such.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn levels_are_asked_for_by_target() {
        let asked = levels(Some("warn,agentd=debug")).unwrap();
        assert!(asked.would_enable("agentd::bus", &Level::DEBUG));
        assert!(!asked.would_enable("sqlx", &Level::INFO));
        let default = levels(None).unwrap();
        assert!(default.would_enable("agentd::bus", &Level::INFO));
        assert!(!default.would_enable("sqlx", &Level::INFO));
        levels(Some("agentd=loud")).unwrap_err();
    }

    #[test]
    fn lines_for_the_journal_begin_with_their_priority() {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Prioritised::default())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!("lost");
            tracing::warn!("odd");
            tracing::info!(uid = 7, "said");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "<3>lost\n<4>odd\n<6>said uid=7\n");
    }
}
