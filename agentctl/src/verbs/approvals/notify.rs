//! Questions on the desktop: `org.freedesktop.Notifications` on the user's own session bus, with Allow and Deny.
//!
//! Only ever run by the user whose session it is: agentd itself connects to no session bus. What an agent wrote is
//! shown as text; the markup that notification servers understand is escaped.

use std::collections::HashMap;

use agentd_api::approvals::{Answer, Approval, QuestionKind};
use futures_util::StreamExt as _;
use zbus::Connection;

use crate::failure::Failure;
use crate::output::{shorten, visible};

/// The most columns of what is asked; the rest is a command away.
const ABOUT_COLUMNS: usize = 300;
/// "Never expires": the question does, and takes its notification with it.
const NEVER: i32 = 0;

/// The part of the Desktop Notifications Specification 1.2 that is used here.
#[zbus::proxy(
    interface = "org.freedesktop.Notifications",
    default_service = "org.freedesktop.Notifications",
    default_path = "/org/freedesktop/Notifications"
)]
trait Notifications {
    #[allow(
        clippy::too_many_arguments,
        reason = "the specification's own arguments"
    )]
    fn notify(
        &self,
        app_name: &str,
        replaces_id: u32,
        app_icon: &str,
        summary: &str,
        body: &str,
        actions: &[&str],
        hints: HashMap<&str, zbus::Variant<'_>>,
        expire_timeout: i32,
    ) -> zbus::Result<u32>;

    fn close_notification(&self, id: u32) -> zbus::Result<()>;

    #[zbus(signal)]
    fn action_invoked(&self, id: u32, action_key: String) -> zbus::Result<()>;

    #[zbus(signal)]
    fn notification_closed(&self, id: u32, reason: u32) -> zbus::Result<()>;
}

/// A button.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pressed {
    pub question: String,
    pub answer: Answer,
}

/// The notifications that are up.
pub struct Notifier {
    proxy: NotificationsProxy<'static>,
    invoked: ActionInvokedStream,
    closed: NotificationClosedStream,
    shown: HashMap<u32, String>,
}

impl Notifier {
    pub async fn connect() -> Result<Self, Failure> {
        let failed = |e: zbus::Error| {
            Failure::local("can't notify: no session bus", e)
                .try_next("agentctl approvals watch, without --notify, in a terminal")
        };
        let connection = Connection::session().await.map_err(failed)?;
        let proxy = NotificationsProxy::new(&connection).await.map_err(failed)?;
        Ok(Self {
            invoked: proxy.receive_action_invoked().await.map_err(failed)?,
            closed: proxy.receive_notification_closed().await.map_err(failed)?,
            proxy,
            shown: HashMap::new(),
        })
    }

    pub async fn show(&mut self, a: &Approval) -> Result<(), Failure> {
        let wants = match a.kind {
            QuestionKind::Tool => format!("to use {}", a.tool),
            QuestionKind::Connect => format!("to connect to {}", a.tool),
            QuestionKind::Sign => format!("to sign with {}", a.tool),
        };
        let summary = visible(&format!("{} wants {wants}", a.agent));
        let body = format!(
            "{}\n{}",
            escaped(&shorten(&visible(&a.about()), ABOUT_COLUMNS)),
            escaped(&format!("agentctl approvals show {}", a.short_id()))
        );
        // 2 is "critical": it stays until it is answered.
        let hints = HashMap::from([("urgency", zbus::Variant::from(2u8))]);
        let actions = ["allow", "Allow", "deny", "Deny"];
        let id = self
            .proxy
            .notify(
                "agentd",
                0,
                "dialog-question",
                &summary,
                &body,
                &actions,
                hints,
                NEVER,
            )
            .await
            .map_err(|e| {
                Failure::local("can't notify", e)
                    .try_next("agentctl approvals watch, without --notify, in a terminal")
            })?;
        self.shown.insert(id, a.id.clone());
        Ok(())
    }

    /// The question is settled.
    pub async fn close(&mut self, question: &str) -> Result<(), Failure> {
        let ids: Vec<u32> = self
            .shown
            .iter()
            .filter(|(_, q)| *q == question)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.shown.remove(&id);
            // Gone already is as good.
            drop(self.proxy.close_notification(id).await);
        }
        Ok(())
    }

    /// The next button; `None` when the bus has gone. Cancel-safe.
    pub async fn pressed(&mut self) -> Option<Pressed> {
        loop {
            tokio::select! {
                invoked = self.invoked.next() => {
                    let signal = invoked?;
                    let Ok(args) = signal.args() else { continue };
                    let Some(question) = self.shown.get(&args.id) else { continue };
                    let Ok(answer) = args.action_key.parse::<Answer>() else { continue };
                    return Some(Pressed { question: question.clone(), answer });
                }
                closed = self.closed.next() => {
                    let signal = closed?;
                    // Put away without an answer: the question stays open.
                    if let Ok(args) = signal.args() {
                        self.shown.remove(&args.id);
                    }
                }
            }
        }
    }
}

/// Without the markup of notification bodies.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_wrote_has_no_markup() {
        assert_eq!(escaped("a && <b>"), "a &amp;&amp; &lt;b&gt;");
    }
}
