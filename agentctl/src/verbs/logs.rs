//! `logs`: an agent's output, from a pipe that the daemon fills.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use agentd_api::{ErrorCode, LogOptions, UpkeepProxy};
use serde_json::json;

use crate::comeback::come_back;
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::Out;
use crate::resolve::Context;

/// The output of a launch that only the record knows.
async fn recorded(daemon: &Daemon, agent: &str, options: &LogOptions) -> Result<OwnedFd, Failure> {
    let what = || format!("can't read the output of {agent:?}");
    let upkeep = UpkeepProxy::new(&daemon.connection)
        .await
        .map_err(|e| Failure::api(what(), &e.into()))?;
    match upkeep.read_log(agent, options).await {
        Ok(pipe) => Ok(pipe.into()),
        // It is on record, and its output is gone.
        Err(e) if e.code() == ErrorCode::Unavailable => Err(Failure::api(what(), &e)),
        Err(e) => match daemon.agent(agent).await {
            Err(unknown) => Err(unknown),
            Ok(_) => Err(Failure::api(what(), &e)),
        },
    }
}

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
    let mut reading = Reading {
        context,
        out: Out::stdout(),
        partial: Vec::new(),
        offset: None,
    };
    let Some(proxy) = daemon.find_agent(agent).await? else {
        // Not of this daemon's time: what the record knows.
        let pipe = recorded(&daemon, agent, &options).await?;
        reading.copy(File::from(pipe), &what)?;
        reading.finish()?;
        return Ok(0);
    };
    if follow {
        // Where it begins, so that after a restart of agentd it can go on behind the last byte. An agentd that does not
        // say can't be followed by its successor.
        reading.offset = proxy.log_start(&options).await.ok();
    }
    let failed = |e: &_| Failure::api(what(), e).try_next(format!("agentctl inspect {agent}"));
    let id = proxy.id().await.unwrap_or_else(|_| agent.to_owned());
    let mut now = options.clone();
    now.from_offset = reading.offset;
    let pipe = proxy.logs(&now).await.map_err(|e| failed(&e))?;
    reading.copy(File::from(OwnedFd::from(pipe)), &what)?;
    let mut contact = proxy.state().await.map(drop);
    drop(proxy);
    let mut daemon = daemon;
    while let (Some(offset), Err(_)) = (reading.offset, &contact) {
        daemon = come_back(context, &daemon.runtime_dir).await?;
        let proxy = daemon.agent(&id).await?;
        let rest = LogOptions {
            follow: Some(true),
            from_offset: Some(offset),
            ..LogOptions::default()
        };
        let pipe = proxy.logs(&rest).await.map_err(|e| failed(&e))?;
        reading.copy(File::from(OwnedFd::from(pipe)), &what)?;
        contact = proxy.state().await.map(drop);
    }
    reading.finish()?;
    Ok(0)
}

/// What has been read so far.
struct Reading<'a> {
    context: &'a Context,
    out: Out,
    /// With `--json`: the line that has not ended.
    partial: Vec<u8>,
    /// Of the next byte in the agent's log.
    offset: Option<u64>,
}

impl Reading<'_> {
    /// Copies a pipe to its end.
    fn copy(&mut self, pipe: File, what: &dyn Fn() -> String) -> Result<(), Failure> {
        let read = copy(pipe, &mut |bytes| {
            if let Some(offset) = &mut self.offset {
                *offset += bytes.len() as u64;
            }
            if !self.context.is_json() {
                self.out.bytes(bytes)?;
                return self.out.flush();
            }
            self.partial.extend_from_slice(bytes);
            while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let rest = self.partial.split_off(end + 1);
                let line = std::mem::replace(&mut self.partial, rest);
                self.line(&line[..end])?;
            }
            Ok(())
        });
        read.map_err(|e| e.unwrap_or_else(|e| Failure::local(what(), e)))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        let line = String::from_utf8_lossy(line);
        self.out.json(&json!({ "line": line }))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let last = std::mem::take(&mut self.partial);
        if last.is_empty() {
            return Ok(());
        }
        self.line(&last)
    }
}

/// A failure of ours, or an error of the pipe.
type CopyError = Result<Failure, std::io::Error>;

/// Copies piece by piece, each written at once: who follows wants it now.
fn copy(
    mut pipe: File,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), CopyError> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = match pipe.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Err(e)),
        };
        take(&buffer[..length]).map_err(Ok)?;
    }
}
