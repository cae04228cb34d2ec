//! The rules of one agent as they are now: its policy's, under whatever was laid over them while it runs.
//!
//! Whoever judges by rules asks for them at each question, and holds none. A change is one store: a question that comes after it
//! is answered by the new rules, and what was open by the old ones is judged again by whoever made the change.

use std::sync::{Arc, PoisonError, RwLock};

use agentd_sandbox::{EgressRules, IpcRules, ModelRules, SshRules, Tightening, ToolRules};

use crate::agents::Rules;

/// Rules of one kind. Clones share them.
#[derive(Debug)]
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Live<T> {
    /// The rules at this moment.
    pub fn now(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, rules: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rules);
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> From<T> for Live<T> {
    fn from(rules: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(rules))))
    }
}

/// All of one agent's rules that can change while it runs.
#[derive(Debug, Clone)]
pub struct LiveRules {
    pub egress: Live<EgressRules>,
    pub model: Live<ModelRules>,
    pub ipc: Live<IpcRules>,
    pub tools: Live<ToolRules>,
    pub ssh: Live<SshRules>,
}

impl LiveRules {
    /// An agent's own rules under tightenings.
    pub fn new(own: &Rules, tightenings: &[Arc<Tightening>]) -> Self {
        Self {
            egress: own.egress.under(tightenings).into(),
            model: own.model.under(tightenings).into(),
            ipc: own.ipc.under(tightenings).into(),
            tools: own.tools.under(tightenings).into(),
            ssh: own.ssh.under(tightenings).into(),
        }
    }

    /// From now on these tightenings hold over the agent's own rules, and no others.
    pub(super) fn set(&self, own: &Rules, tightenings: &[Arc<Tightening>]) {
        self.egress.set(own.egress.under(tightenings));
        self.model.set(own.model.under(tightenings));
        self.ipc.set(own.ipc.under(tightenings));
        self.tools.set(own.tools.under(tightenings));
        self.ssh.set(own.ssh.under(tightenings));
    }
}
