//! One running agent: the task that owns its status socket, its time and its end.
//!
//! State comes from the kernel (the init's reports, the broker's `Gone`) and from commands, never from what the agent
//! prints. The task ends when nothing of the agent is left: the init is reaped and its cgroup is removed. The exit is
//! then put on record by [`super::launch`], and everybody attached is told after the last byte of output.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use agentd_api::attach::AttachFrame;
use agentd_api::{AgentState, ExitCause, ExitInfo};
use agentd_broker::protocol::Gone;
use agentd_launch::status::{OverDisk, Status, Target};
use agentd_orchestrator::agent::{Happening, Life, State};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Command};
use super::broker::{BrokerError, BrokerLink};
use super::hold::Hold;
use super::kept;
use super::status::{self, StatusError, StatusLink};
use crate::bus::AgentPort;

/// What a session is started with.
#[derive(Debug)]
pub struct Session {
    pub agent: Arc<Agent>,
    pub hold: Hold,
    pub status: StatusLink,
    /// Where the init writes its exit report for those who were not there to hear it.
    pub status_path: PathBuf,
    pub broker: BrokerLink,
    pub commands: mpsc::Receiver<Command>,
    /// Absolute end by `--timeout` or the policy's wall clock.
    pub deadline: Option<(Instant, Duration)>,
    /// The broker has files to remove when it has ended.
    pub keeps_names: bool,
    /// Why its end was begun, if an earlier agentd began it.
    pub reason: Option<ExitCause>,
    /// What the reports so far amount to; it says which may follow.
    pub life: Life,
    /// The task that reads the agent's output.
    pub output: JoinHandle<()>,
    /// Ends what is served on the sandbox's sockets.
    pub cancel: CancellationToken,
    pub port: AgentPort,
}

/// How it ended, before the daemon's reason is laid over it.
#[derive(Debug)]
pub struct Ending {
    pub exit: ExitInfo,
    /// The broker's last figures; `None` when the broker itself has gone.
    pub gone: Option<Gone>,
}

/// The broker's last word, if there is a broker to say it.
fn word_of_end(agent: &Agent, end: Result<Gone, BrokerError>) -> Option<Gone> {
    end.inspect_err(|error| tracing::warn!(agent = %agent.identity, "{error}"))
        .ok()
}

impl Session {
    /// Runs until nothing of the agent is left.
    pub async fn run(mut self) -> Ending {
        let broker = self.broker.clone();
        let slot = self.hold.slot();
        let end = broker.end_of(slot);
        tokio::pin!(end);
        let mut gone = None;
        // Why the session began to end its agent; who asked for it is in `life`.
        let mut reason = self.reason;
        // When a stop's grace is over.
        let mut kill_at: Option<Instant> = None;

        let reported = loop {
            let deadline = self.deadline.filter(|_| reason.is_none());
            tokio::select! {
                status = self.status.receive() => match status {
                    Ok((exited @ Status::Exited { .. }, _)) => break reported_exit(&exited),
                    Ok((Status::Stopped { signal }, _)) => {
                        let signal = signal.cast_signed();
                        if self.see(Happening::Stopped { signal }) {
                            self.agent.notify(AttachFrame::Stopped(signal));
                        }
                    }
                    Ok((Status::Continued, _)) => {
                        if self.see(Happening::Continued) {
                            self.agent.notify(AttachFrame::Continued);
                        }
                    }
                    Ok((Status::Ready { .. } | Status::Failed(_) | Status::OverDisk(_), _)) | Err(StatusError::Malformed) => {
                        tracing::error!(agent = %self.agent.identity, "its init broke the status protocol; killing it");
                        self.kill().await;
                        break None;
                    }
                    Err(StatusError::Gone) => break None,
                    Err(error) => {
                        tracing::error!(agent = %self.agent.identity, "status socket: {error}; killing it");
                        self.kill().await;
                        break None;
                    }
                },
                end = &mut end, if gone.is_none() => {
                    match end {
                        Ok(end) => gone = Some(end),
                        Err(error) => tracing::warn!(agent = %self.agent.identity, "{error}"),
                    }
                    break None;
                }
                command = self.commands.recv() => match command {
                    Some(Command::Signal(signal)) => self.signal(signal, Target::Foreground),
                    Some(Command::Stop { grace, by }) => {
                        let cause = *reason.get_or_insert(ExitCause::Stopped);
                        self.begin_end(cause, format!("stopped by {by}")).await;
                        if grace.is_zero() {
                            self.kill().await;
                        } else {
                            self.signal(rustix::process::Signal::TERM.as_raw().unsigned_abs(), Target::Main);
                            // A stopped program can only die once it runs again.
                            self.signal(rustix::process::Signal::CONT.as_raw().unsigned_abs(), Target::Main);
                            let at = Instant::now() + grace;
                            kill_at = Some(kill_at.map_or(at, |old| old.min(at)));
                        }
                    }
                    None => {
                        self.see(Happening::EndRequested("stopped by agentd".into()));
                        reason.get_or_insert(ExitCause::Stopped);
                        self.kill().await;
                        break None;
                    }
                },
                () = until(deadline.map(|(at, _)| at)) => {
                    if let Some((_, limit)) = deadline {
                        let limit = limit.as_secs_f64();
                        reason = Some(ExitCause::TimedOut);
                        self.begin_end(ExitCause::TimedOut, format!("still running after its limit of {limit} s")).await;
                        self.kill().await;
                    }
                }
                () = until(kill_at) => {
                    kill_at = None;
                    self.kill().await;
                }
            }
        };
        // An exit report may be waiting behind the broker's word.
        let reported = match reported {
            Some(exit) => Some(exit),
            None => match self.last_word().await {
                Some(exit) => Some(exit),
                None => status::last_report(&self.status_path).and_then(|it| reported_exit(&it)),
            },
        };
        // The name is free for the next launch from here on, so it leaves the bus first. Whoever ran the program need
        // not wait for the reaping and the record.
        self.cancel.cancel();
        self.port.detach();
        self.see(match &reported {
            Some(ExitInfo {
                code: Some(code), ..
            }) => Happening::Exited { code: *code },
            Some(ExitInfo {
                signal: Some(signal),
                ..
            }) => Happening::Signaled { signal: *signal },
            _ => Happening::Vanished,
        });
        let exit = explain(reported, reason, self.life.end_cause());
        // Whoever ran the program finds the workspace as it is afterwards.
        let clean_first = self.keeps_names && gone.is_none();
        if clean_first {
            gone = word_of_end(&self.agent, end.as_mut().await);
        }
        self.agent.farewell(&exit, self.output);
        if gone.is_none() && !clean_first {
            gone = word_of_end(&self.agent, end.await);
        }
        Ending { exit, gone }
    }

    /// The end is decided: an agentd that takes over in the middle of it has to know.
    async fn begin_end(&mut self, cause: ExitCause, text: String) {
        let ending = kept::Ending {
            cause,
            text: text.clone(),
        };
        self.see(Happening::EndRequested(text));
        let kept = self
            .hold
            .change(&self.broker, |kept| kept.ending = Some(ending));
        if let Err(error) = kept.await {
            tracing::warn!(agent = %self.agent.identity, "{error}");
        }
    }

    /// Takes what was reported; whether the agent's state changed by it.
    fn see(&mut self, happening: Happening) -> bool {
        match self.life.see(happening) {
            Ok(Some(change)) => {
                tracing::debug!(agent = %self.agent.identity, "{} -> {}: {}", change.from, change.to, change.cause);
                self.agent.set_state(public(change.to));
                true
            }
            Ok(None) => false,
            // Reports come from the agent's own init: one that makes no sense changes nothing.
            Err(impossible) => {
                tracing::warn!(agent = %self.agent.identity, "{impossible}");
                false
            }
        }
    }

    /// Reads what the init still managed to say before its socket closed.
    async fn last_word(&self) -> Option<ExitInfo> {
        loop {
            match self.status.receive().await {
                Ok((exited @ Status::Exited { .. }, _)) => return reported_exit(&exited),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
    }

    fn signal(&self, signal: u32, target: Target) {
        if let Err(error) = self.status.signal(signal, target) {
            tracing::debug!(agent = %self.agent.identity, signal, "not delivered: {error}");
        }
    }

    async fn kill(&self) {
        if let Err(error) = self.broker.kill(self.hold.slot()).await {
            tracing::warn!(agent = %self.agent.identity, "cannot kill: {error}");
        }
    }
}

/// Sleeps until `at`; for ever without one.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What the init's exit report says; `None` for any other report.
pub(super) fn reported_exit(status: &Status) -> Option<ExitInfo> {
    if let Status::OverDisk(over) = status {
        return Some(over_disk(*over));
    }
    let Status::Exited {
        wait_status,
        utime_us,
        stime_us,
        maxrss_kb,
    } = *status
    else {
        return None;
    };
    Some(ExitInfo {
        utime_us: Some(utime_us),
        stime_us: Some(stime_us),
        max_rss_kb: Some(maxrss_kb),
        ..ExitInfo::from_wait_status(wait_status)
    })
}

/// Killed for what it added to the disk.
fn over_disk(over: OverDisk) -> ExitInfo {
    let text = match over {
        OverDisk::Bytes { added, limit } => format!(
            "it added {added} bytes to the folders that it may write, and limits.disk allows {limit}"
        ),
        OverDisk::Inodes { added, limit } => format!(
            "it added {added} files to the folders that it may write, and limits.disk_inodes allows {limit}"
        ),
        OverDisk::Depth { limit } => format!(
            "it made folders more than {limit} deep, which can't be measured for limits.disk"
        ),
    };
    let killed = ExitInfo {
        signal: Some(rustix::process::Signal::KILL.as_raw()),
        ..ExitInfo::new(ExitCause::Signaled)
    };
    killed.because(ExitCause::Limit, text)
}

/// The state as the control interface names it.
fn public(state: State) -> AgentState {
    match state {
        State::Starting => AgentState::Starting,
        State::Running => AgentState::Running,
        State::Stopped => AgentState::Stopped,
        State::Exited => AgentState::Exited,
        State::Failed => AgentState::Failed,
    }
}

/// Lays the daemon's reason, and whose wish it was, over what the kernel reported.
fn explain(reported: Option<ExitInfo>, reason: Option<ExitCause>, asked: Option<&str>) -> ExitInfo {
    match (reported, reason) {
        (Some(exit), None) => exit,
        (None, None) => ExitInfo::new(ExitCause::Lost).because(
            ExitCause::Lost,
            "its sandbox was killed from outside agentd, or its init died",
        ),
        (reported, Some(cause)) => {
            let killed = ExitInfo {
                signal: Some(rustix::process::Signal::KILL.as_raw()),
                ..ExitInfo::new(ExitCause::Signaled)
            };
            reported
                .unwrap_or(killed)
                .because(cause, asked.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timed_out_agent_exits_124_whatever_the_kernel_saw() {
        let late = Some("still running after its limit of 3 s");
        for reported in [Some(ExitInfo::from_wait_status(9)), None] {
            let exit = explain(reported, Some(ExitCause::TimedOut), late);
            assert_eq!((exit.exit_code(), exit.cause), (124, ExitCause::TimedOut));
            assert_eq!(exit.text.as_deref(), late);
        }
    }

    #[test]
    fn what_the_meter_left_behind_is_the_reason() {
        let over = OverDisk::Bytes {
            added: 3_000,
            limit: 2_000,
        };
        let exit = explain(reported_exit(&Status::OverDisk(over)), None, None);
        assert_eq!((exit.exit_code(), exit.cause), (137, ExitCause::Limit));
        let text = exit.text.expect("a reason");
        assert!(
            text.contains("3000 bytes") && text.contains("limits.disk allows 2000"),
            "{text}"
        );
    }

    #[test]
    fn a_stopped_agent_keeps_its_own_exit_code() {
        let reported = Some(ExitInfo::from_wait_status(7 << 8));
        let exit = explain(reported, Some(ExitCause::Stopped), Some("stopped by alice"));
        assert_eq!((exit.exit_code(), exit.cause), (7, ExitCause::Stopped));
        assert_eq!(exit.text.as_deref(), Some("stopped by alice"));
    }

    #[test]
    fn an_agent_that_vanished_is_lost_not_successful() {
        let exit = explain(None, None, None);
        assert_eq!((exit.exit_code(), exit.cause), (125, ExitCause::Lost));
    }
}
