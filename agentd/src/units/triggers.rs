//! Messages that start agents.
//!
//! The bus's record names the topic of every published message; a unit of the same user that waits for it and of which
//! no agent runs is started. The message itself is not kept for the new agent: it wakes, no more. What an agent of the
//! unit itself publishes does not start it.

use std::sync::Arc;

use agentd_api::AgentId;
use agentd_bus::topic;

use super::{Key, Units};
use crate::daemon::Daemon;

impl Units {
    /// An agent has published to `topic`.
    pub fn heard(&self, daemon: &Arc<Daemon>, from: AgentId, topic: &str) {
        let mut inner = self.inner();
        if inner
            .active
            .values()
            .all(|a| a.unit.triggers.on_message.is_empty())
        {
            return;
        }
        let root = crate::agents::Caller { uid: 0, gid: 0 };
        let Some(sender) = daemon
            .agents
            .visible(root)
            .into_iter()
            .find(|a| a.identity.id == from)
        else {
            return;
        };
        let waiting: Vec<Key> = inner
            .active
            .iter()
            .filter(|(_, active)| {
                active.uid == sender.identity.uid
                    && active.engine.is_on()
                    && active.engine.up() == 0
                    && active
                        .unit
                        .triggers
                        .on_message
                        .iter()
                        .any(|p| topic::matches(p, topic))
            })
            .map(|(key, _)| key.clone())
            .collect();
        for key in waiting {
            if let Err(why) = self.demand(daemon, &mut inner, &key, format!("message {topic}")) {
                tracing::warn!(unit = %key.1, topic, "not started: {why}");
            }
        }
    }
}
