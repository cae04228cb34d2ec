//! agentctl: everything that agentd offers, for people and scripts.
//!
//! A command line becomes [`cli::LowArgs`] (what was typed), then [`resolve::Invocation`] (what was
//! meant: paths made absolute, defaults chosen, the terminal looked at), then one verb runs. It speaks
//! only the daemon's public API, as the user who typed it, on one thread and with no privilege of its
//! own; `doctor`, `policy` and `config` need no daemon at all. It never opens the daemon's files. A
//! failure is a [`failure::Failure`]: what failed, why, and the command to try next, with a documented
//! exit code.
//!
//! Start reading at [`cli`], then [`run`].
#![forbid(unsafe_code)]

pub mod cli;
pub mod comeback;
pub mod connect;
pub mod failure;
pub mod output;
pub mod resolve;
pub mod run;
pub mod start;
pub mod terminal;
pub mod verbs;

use std::process::ExitCode;

use clap::Parser as _;

use failure::Failure;

/// Runs one command line of this process.
pub fn main() -> ExitCode {
    let low = match cli::LowArgs::try_parse() {
        Ok(low) => low,
        Err(error) => {
            // Help and version are data and go to stdout with code 0; the rest is usage, code 2.
            let code = if error.use_stderr() { 2 } else { 0 };
            return match error.print() {
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(1),
                _ => ExitCode::from(code),
            };
        }
    };
    let json = low.json;
    let result = resolve::Invocation::resolve(low).and_then(verbs::perform);
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => report(&failure, json),
    }
}

fn report(failure: &Failure, json: bool) -> ExitCode {
    if failure.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    output::print_failure(failure, json);
    ExitCode::from(failure.exit_code())
}
