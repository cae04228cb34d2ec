//! `approvals watch`: what is open, then every change, until interrupted or the daemon ends.

use agentd_api::ErrorCode;
use agentd_api::approvals::{Answer, Approval, ApprovalsProxy, Decision};
use futures_util::StreamExt as _;
use serde_json::json;

use super::notify::{Notifier, Pressed};
use crate::failure::Failure;
use crate::output::{Out, shorten, stderr_line, visible};
use crate::resolve::Context;

/// Whether the desktop is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notify {
    No,
    Desktop,
}

pub async fn watch(
    context: &Context,
    proxy: &ApprovalsProxy<'_>,
    notify: Notify,
) -> Result<u8, Failure> {
    let bus = |e: zbus::Error| Failure::api("can't follow approvals", &e.into());
    // Before the list, so that no question falls between the two.
    let mut added = proxy.receive_added().await.map_err(bus)?;
    let mut decided = proxy.receive_decided().await.map_err(bus)?;
    let mut removed = proxy.receive_removed().await.map_err(bus)?;
    let mut notifier = match notify {
        Notify::Desktop => Some(Notifier::connect().await?),
        Notify::No => None,
    };
    let mut screen = Screen {
        out: Out::stdout(),
        json: context.is_json(),
    };
    let open = proxy.list().await;
    for approval in open.map_err(|e| Failure::api("can't list approvals", &e))? {
        screen.put("added", &approval)?;
        if let Some(notifier) = &mut notifier {
            notifier.show(&approval).await?;
        }
    }
    loop {
        let pressed = async {
            match &mut notifier {
                Some(notifier) => notifier.pressed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(signal) = added.next() => {
                let approval = signal.args().map_err(bus)?.approval;
                screen.put("added", &approval)?;
                if let Some(notifier) = &mut notifier {
                    notifier.show(&approval).await?;
                }
            }
            Some(signal) = decided.next() => {
                let approval = signal.args().map_err(bus)?.approval;
                screen.put("decided", &approval)?;
                if let Some(notifier) = &mut notifier {
                    notifier.close(&approval.id).await?;
                }
            }
            Some(signal) = removed.next() => {
                let approval = signal.args().map_err(bus)?.approval;
                screen.put("removed", &approval)?;
                if let Some(notifier) = &mut notifier {
                    notifier.close(&approval.id).await?;
                }
            }
            pressed = pressed => {
                let Some(Pressed { question, answer }) = pressed else {
                    return Err(Failure::local("can't notify any more", "the session bus has gone"));
                };
                press(proxy, &question, answer).await;
            }
            () = proxy.inner().connection().closed() => {
                let why = "agentd has ended, or closed the connection";
                return Err(Failure::of_code(ErrorCode::Unreachable, "can't watch any longer", why));
            }
        }
    }
}

/// An answer given on the desktop.
async fn press(proxy: &ApprovalsProxy<'_>, question: &str, answer: Answer) {
    let decision = Decision {
        answer,
        always: None,
        rule: None,
        reason: None,
    };
    // The signal that follows closes the notification; a question that was settled elsewhere meanwhile needs none.
    if let Err(error) = proxy.decide(question, &decision).await {
        stderr_line(&format!("agentctl: can't {answer}: {}", error.text()));
    }
}

struct Screen {
    out: Out,
    json: bool,
}

impl Screen {
    fn put(&mut self, event: &str, a: &Approval) -> Result<(), Failure> {
        if self.json {
            return self
                .out
                .json(&json!({ "event": event, "approval": a.to_json() }));
        }
        let state = match (event, &a.decision, &a.by) {
            ("added", ..) => "waits".to_owned(),
            (_, Some(decision), Some(by)) => format!("{decision} by {by}"),
            _ => event.to_owned(),
        };
        let about = shorten(&visible(&a.about()), 80);
        let line = format!(
            "{} {}: {} {} {about}",
            a.short_id(),
            visible(&a.agent),
            state,
            visible(&a.tool)
        );
        self.out.line(line.trim_end())?;
        self.out.flush()
    }
}
