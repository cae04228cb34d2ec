//! Taking over from an earlier agentd: every agent that the broker still holds, and the ends of those it does not.
//!
//! Runs once, before anybody is served, so that nobody sees a name free that isn't. An agent comes back from what was kept
//! of it ([`super::kept`]), what is on record of it, and its descriptors; from then on it is like any other. One that ended
//! meanwhile comes back for as long as it takes to put its end on record. What the broker holds without a word kept about
//! it was still being launched, and is killed. A launch on record that nobody holds any more is closed with what its init
//! wrote into its status file, or as lost.
//!
//! One agent that can't be taken over is ended and recorded; it keeps no other from being taken over.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentd_api::{AgentId, Driver, ExitCause, ExitInfo, NanoUsd};
use agentd_broker::client::HeldAgent;
use agentd_broker::protocol::{Gone, HeldState};
use agentd_storage::{Event, Fact, LaunchFailure, LaunchId, Viewer};
use anyhow::Context as _;

use super::agent::Agent;
use super::hold::Hold;
use super::kept::{Descriptors, Kept};
use super::launch::exit_fact;
use super::log::OutputLog;
use super::session::reported_exit;
use super::standing::{Place, Standing, Streams};
use super::status::{StatusLink, last_report};
use crate::daemon::Daemon;
use crate::driver::History;
use crate::gateway::{Spent, TokenCounts};

/// An agent, and the unit it was started from.
pub type Adopted = (Arc<Agent>, Option<String>);

/// Launches on record without an end, and whether their sandboxes are known to have stood.
type Unended = BTreeMap<LaunchId, bool>;

impl Daemon {
    /// Takes over whatever an earlier agentd left: the agents, each with the unit it was started from.
    ///
    /// # Errors
    /// When the broker or the record can't be read; then nobody may be served.
    pub async fn adopt_all(self: &Arc<Self>) -> anyhow::Result<Vec<Adopted>> {
        let unended = self.store.unended(Viewer::Root).await;
        let unended = unended.context("cannot read which launches have not ended")?;
        let mut unended: Unended = unended.into_iter().map(|it| (it.id, it.ready)).collect();
        let (mut after, mut adopted) = (None, Vec::new());
        while let Some(held) = self.broker.next_held(after).await? {
            let slot = held.info.slot;
            after = Some(slot);
            match self.adopt(held, &mut unended).await {
                Ok(one) => adopted.extend(one),
                Err(error) => {
                    tracing::error!(%slot, "an agent of an earlier agentd cannot be taken over, so it is ended: {error:#}");
                    self.broker.discard(slot).await;
                }
            }
        }
        for (launch, ready) in unended {
            self.close_record(launch, ready).await?;
        }
        if !adopted.is_empty() {
            tracing::info!("{} agents of an earlier agentd go on", adopted.len());
        }
        Ok(adopted)
    }

    /// Takes one agent over; `None` when there was nothing to take over.
    async fn adopt(
        self: &Arc<Self>,
        held: HeldAgent,
        unended: &mut Unended,
    ) -> anyhow::Result<Option<Adopted>> {
        let slot = held.info.slot;
        let pid = held.info.pid;
        let (hold, status) = self.broker.hold(held.info, held.pidfd, held.status)?;
        if let HeldState::Gone { wait_status, stats } = held.state {
            self.broker.ended_before(Gone {
                slot,
                pid,
                wait_status,
                stats,
            });
        }
        let Some((kept, named)) = Kept::from_fds(held.kept)? else {
            tracing::warn!(%slot, "an earlier agentd died while it launched this agent: killing it");
            self.broker.discard(slot).await;
            return Ok(None);
        };
        let id = kept.identity.id;
        let launch = LaunchId::new(id.to_string());
        let Some(ready) = unended.remove(&launch) else {
            // Its end is on record; only the slot was not given back.
            self.broker.discard(slot).await;
            return Ok(None);
        };
        if !ready {
            let ready = Fact::Ready(kept.ready.clone());
            self.note(Event::now(launch.clone(), ready)).await;
        }
        let running = held.state == HeldState::Running;
        let taken = self.take_over(kept, named, hold, status, running).await;
        if let Err(error) = &taken {
            let text = format!("agentd was restarted and could not take it over: {error:#}");
            self.record_exit(
                launch,
                &ExitInfo::new(ExitCause::Lost).because(ExitCause::Lost, &text),
            )
            .await?;
        }
        taken.map(Some)
    }

    async fn take_over(
        self: &Arc<Self>,
        kept: Kept,
        named: Descriptors,
        hold: Hold,
        status: StatusLink,
        running: bool,
    ) -> anyhow::Result<Adopted> {
        let id = kept.identity.id;
        let launch = LaunchId::new(id.to_string());
        let unit = kept.unit.clone();
        if running {
            // An init that has just ended needs none; its end is on the way.
            if let Err(error) = self.broker.renew_lifeline(&status) {
                tracing::debug!(agent = %kept.identity, "no new lifeline: {error}");
            }
            let note = format!(
                "agentd {} took over from agentd {}",
                agentd_api::VERSION,
                kept.agentd
            );
            self.note(Event::now(launch.clone(), Fact::Note { text: note }))
                .await;
        }
        let copies = named
            .iter()
            .map(|(name, fd)| Ok((name.clone(), fd.try_clone()?)))
            .collect::<std::io::Result<Descriptors>>()?;
        hold.recall(kept.clone(), copies)?;
        let streams = Streams::new(named, kept.stdio)?;
        let spent = self.store.token_totals(Viewer::Root, &launch).await?;
        let history = match kept.driver {
            Driver::None => None,
            _ => Some(History::load(&self.store, &launch).await?),
        };
        let standing = Standing {
            log: OutputLog::reopen(&self.log_path(id), kept.output_bytes)?,
            kept,
            hold,
            status,
            streams,
            spent: Spent {
                tokens: TokenCounts {
                    input: spent.input,
                    output: spent.output,
                    cache_read: spent.cache_read,
                    cache_write: spent.cache_write,
                },
                cost: spent.cost_nano_usd.map(NanoUsd),
            },
            history,
        };
        let (agent, _) = self.bring_up(standing, Place::Adopted, false).await?;
        Ok((agent, unit))
    }

    /// Ends the record of a launch of which nothing is left.
    async fn close_record(&self, launch: LaunchId, ready: bool) -> anyhow::Result<()> {
        let id: Option<AgentId> = launch.as_str().parse().ok();
        let word = id.and_then(|id| last_report(&self.status_path(id)));
        let exit = word.as_ref().and_then(reported_exit);
        match exit {
            Some(exit) => self.record_exit(launch, &exit).await?,
            None if ready => {
                let text = "agentd and agentd-broker ended, and the agent with them";
                let exit = ExitInfo::new(ExitCause::Lost).because(ExitCause::Lost, text);
                self.record_exit(launch, &exit).await?;
            }
            None => {
                let failure = Fact::LaunchFailed(LaunchFailure {
                    step: "launch".into(),
                    errno: 0,
                    text: "agentd was ended before the agent stood".into(),
                });
                self.store
                    .record_durable(Event::now(launch, failure))
                    .await?;
            }
        }
        if let Some(id) = id {
            self.forget_status(id);
        }
        Ok(())
    }

    async fn record_exit(&self, launch: LaunchId, exit: &ExitInfo) -> anyhow::Result<()> {
        let fact = Fact::Exit(exit_fact(exit, None, None, None));
        Ok(self.store.record_durable(Event::now(launch, fact)).await?)
    }
}
