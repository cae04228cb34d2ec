//! `logs`: an agent's output, from a pipe that the daemon fills.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentd_api::LogOptions;
use serde_json::json;

use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::Out;
use crate::resolve::Context;

pub async fn logs(
    context: &Context,
    agent: &str,
    follow: bool,
    tail: Option<u64>,
    since: Option<Duration>,
) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let options = LogOptions {
        follow: follow.then_some(true),
        tail,
        since_ms: since.map(|since| {
            let ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
            super::agents::now_ms().saturating_sub(ms)
        }),
        ..LogOptions::default()
    };
    let what = || format!("can't read the output of {agent:?}");
    let proxy = daemon.agent(agent).await?;
    let pipe = proxy
        .logs(&options)
        .await
        .map_err(|e| Failure::api(what(), &e).try_next(format!("agentctl inspect {agent}")))?;
    let pipe = File::from(OwnedFd::from(pipe));
    let mut out = Out::stdout();
    if context.is_json() {
        for line in BufReader::new(pipe).split(b'\n') {
            let line = line.map_err(|e| Failure::local(what(), e))?;
            out.json(&json!({ "line": String::from_utf8_lossy(&line) }))?;
        }
        return Ok(0);
    }
    copy(pipe, &mut out).map_err(|e| e.unwrap_or_else(|e| Failure::local(what(), e)))?;
    Ok(0)
}

/// A failure of ours, or an error of the pipe.
type CopyError = Result<Failure, std::io::Error>;

/// Copies piece by piece, each written at once: who follows wants it now.
fn copy(mut pipe: File, out: &mut Out) -> Result<(), CopyError> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Err(e)),
        };
        out.bytes(&buffer[..length]).map_err(Ok)?;
        out.flush().map_err(Ok)?;
    }
}
