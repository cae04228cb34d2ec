//! Going on after agentd was restarted: agents live on meanwhile, so a client that waits for one waits for the daemon.
//!
//! Only what can go on without losing or repeating anything comes here: waiting for an end, and output counted by its
//! offset in the agent's log. It says on stderr that it waits and that it goes on. Fails like any client that finds no
//! daemon once the time is over for which agents outlive one.

use std::path::Path;
use std::time::{Duration, Instant};

use agentd_api::ErrorCode;

use crate::connect::{Absent, Daemon, connect_in};
use crate::failure::Failure;
use crate::output::stderr_line;
use crate::resolve::Context;

/// Somewhat longer than an agent outlives agentd unless the configuration says otherwise.
const RETURN_LIMIT: Duration = Duration::from_secs(40);
/// How often the socket is tried. There is no event to wait for: the successor's socket is another file.
const RETRY: Duration = Duration::from_millis(50);

/// The connection broke, or the daemon closed it: the next one may know better.
pub fn is_lost(error: &agentd_api::Error) -> bool {
    error.code() == ErrorCode::Unreachable
}

/// Connects to the successor of the daemon that served `runtime_dir`.
pub async fn come_back(context: &Context, runtime_dir: &Path) -> Result<Daemon, Failure> {
    stderr_line("agentctl: lost contact with agentd; waiting for it to come back");
    let until = Instant::now() + RETURN_LIMIT;
    loop {
        match connect_in(runtime_dir, context) {
            Ok(stream) => match Daemon::over(stream, runtime_dir.to_owned()).await {
                Ok(daemon) => {
                    stderr_line("agentctl: agentd is back");
                    return Ok(daemon);
                }
                // It died again, or was not the successor yet.
                Err(failure) if Instant::now() >= until => return Err(failure),
                Err(_) => {}
            },
            Err(Absent::Refused(failure)) => return Err(*failure),
            Err(Absent::NoDaemon(why)) if Instant::now() >= until => {
                let what = format!("agentd in {} did not come back", runtime_dir.display());
                return Err(Failure::of_code(ErrorCode::Unreachable, what, why)
                    .try_next("agentd, and then agentctl records"));
            }
            Err(Absent::NoDaemon(_)) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}
