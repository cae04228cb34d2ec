//! `completions`: the script for one shell, from the same definition that parses the command line.

use clap_complete::Shell;

use crate::cli;
use crate::failure::Failure;
use crate::output::Out;

pub fn print(shell: Shell) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "agentctl", &mut script);
    let mut out = Out::stdout();
    out.bytes(&script)?;
    out.flush()?;
    Ok(0)
}
