//! Tells whoever is attached to an agent that a question waits and which command answers it.

use std::sync::Arc;

use agentd_api::approvals::{Approval, QuestionKind};
use agentd_api::attach::AttachFrame;
use tokio::sync::broadcast::error::RecvError;

use super::Change;
use crate::agents::Caller;
use crate::daemon::Daemon;

/// The most characters of what is asked that a notice shows.
const ABOUT_CHARS: usize = 200;

/// Runs until the daemon ends.
pub async fn tell_attached(daemon: Arc<Daemon>) {
    let mut changes = daemon.approvals.changes();
    loop {
        let text = match changes.recv().await {
            Ok(Change::Added(a)) => Some((waits(&a), a)),
            Ok(Change::Decided(a)) => Some((ended(&a), a)),
            // Lists show what was missed; a withdrawn question needs no words.
            Ok(Change::Removed(_)) | Err(RecvError::Lagged(_)) => None,
            Err(RecvError::Closed) => return,
        };
        let Some((text, approval)) = text else {
            continue;
        };
        let owner = Caller {
            uid: approval.uid,
            gid: approval.uid,
        };
        if let Ok(agent) = daemon.agents.find(owner, &approval.launch) {
            agent.notify(AttachFrame::Notice(text.into()));
        }
    }
}

fn waits(a: &Approval) -> String {
    let what = match a.kind {
        QuestionKind::Tool => "use",
        QuestionKind::Connect => "connect to",
        QuestionKind::Sign => "sign with",
    };
    let about: String = a.about().chars().take(ABOUT_CHARS).collect();
    let about = if about.is_empty() {
        about
    } else {
        format!(": {about}")
    };
    let id = a.short_id();
    format!(
        "{} waits for your approval to {what} {}{about}; answer with: agentctl approvals allow {id} (or deny {id})",
        a.agent, a.tool
    )
}

fn ended(a: &Approval) -> String {
    format!(
        "{}: {} is settled: {} by {}",
        a.agent,
        a.short_id(),
        a.decision.as_deref().unwrap_or("withdrawn"),
        a.by.as_deref().unwrap_or("agentd")
    )
}
