//! The broker's log: lines on stderr, lost where nobody takes them.
//!
//! stderr is that of the agentd which started the broker; the broker outlives it, and so must not mind that the pipe or the
//! terminal behind it has gone (the standard library's `eprintln!` panics there).

/// Writes one line, with the program's name in front.
macro_rules! log {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let line = format!("agentd-broker: {}\n", format_args!($($text)*));
        // Nobody is left to be told that nobody reads.
        std::io::stderr().write_all(line.as_bytes()).unwrap_or(());
    }};
}

pub(crate) use log;
