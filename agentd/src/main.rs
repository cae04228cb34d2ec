//! `agentd`, the daemon. Start-up order is in [`agentd::startup`]; this file only strings the phases together.

use std::path::Path;
use std::process::ExitCode;

use agentd::options::{Command, RecordTask};
use agentd::{daemon, startup, upkeep};

fn main() -> ExitCode {
    let command = match Command::parse(std::env::args_os().skip(1), &|name| std::env::var_os(name))
    {
        Ok(command) => command,
        Err(error) => {
            eprintln!("agentd: {error}");
            return ExitCode::from(2);
        }
    };
    let options = match command {
        Command::Help => {
            write_out(agentd::options::HELP);
            return ExitCode::SUCCESS;
        }
        Command::Version => {
            write_out(concat!("agentd ", env!("CARGO_PKG_VERSION"), "\n"));
            return ExitCode::SUCCESS;
        }
        Command::ProbeHost(path) => {
            return match startup::host::write(&path) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("agentd: {error:#}");
                    ExitCode::FAILURE
                }
            };
        }
        Command::CheckConfig(options) => {
            return match agentd::config::Config::load(&options.config, options.config_required) {
                Ok(config) => {
                    write_out(&format!("{}\n", config.document));
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    eprintln!("agentd: {:#}", anyhow::Error::from(error));
                    ExitCode::FAILURE
                }
            };
        }
        Command::Record(task, state_dir) => return on_record(&task, &state_dir),
        Command::Serve(options) => options,
    };
    agentd::logging::init();
    let served = startup::prepare(&options).and_then(|prepared| {
        let confinement = prepared.confine()?;
        tracing::debug!(?confinement, "confined");
        daemon::runtime()?.block_on(daemon::serve(prepared))
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agentd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Does one task on a record that no daemon has open; what it found goes to stdout.
fn on_record(task: &RecordTask, state_dir: &Path) -> ExitCode {
    match daemon::runtime().and_then(|runtime| runtime.block_on(upkeep::offline(task, state_dir))) {
        Ok(text) => {
            write_out(&format!("{}\n", text.trim_end()));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("agentd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes to stdout; a reader that has gone is not an error.
fn write_out(text: &str) {
    use std::io::Write as _;
    if let Err(error) = std::io::stdout().write_all(text.as_bytes())
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        eprintln!("agentd: cannot write: {error}");
    }
}
