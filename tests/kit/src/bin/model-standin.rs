//! The stand-in model server as a program: prints `http://ADDR` on stdout once it accepts, then answers by its
//! script until it is killed.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use agentd_testkit::standin::{Script, Standin};
use anyhow::Context;
use clap::Parser;

/// A scriptable stand-in for a model provider.
#[derive(Debug, Parser)]
struct Options {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// The script, TOML or JSON.
    #[arg(long)]
    script: PathBuf,
    /// Write each request, and how its answer ended, as JSON lines.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Refuse requests that don't carry the key in this file (overrides the script's `require_key`).
    #[arg(long)]
    require_key_file: Option<PathBuf>,
}

fn run(options: Options) -> anyhow::Result<()> {
    let mut script = Script::load(&options.script)?;
    if let Some(path) = &options.require_key_file {
        let key = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        script = script.requiring_key(key.trim());
    }
    let standin = Standin::start_logging(script, options.listen, options.log.as_deref())
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    writeln!(std::io::stdout(), "{}", standin.url())?;
    loop {
        std::thread::park();
    }
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("model-standin: {e:#}");
            ExitCode::FAILURE
        }
    }
}
