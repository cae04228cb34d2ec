//! The egress proxy: an agent's only way to the network.
//!
//! The agent's namespace has nothing but loopback; the daemon accepts on a port there and speaks
//! the two forms of an HTTP proxy: `CONNECT host:port`, and requests with a whole `http://`
//! address. A host and port pass if the policy lists them ([`agentd_sandbox::EgressRules`]). Names
//! are resolved here, outside; every address is judged ([`destination`]), and the connection goes
//! to the very address that was judged, so a name that changes its mind between look and use gains
//! nothing. Of what is inside a tunnel only the server's name is read with which TLS begins
//! ([`hello`]): it must be the host that was asked for, or another that the policy allows. More is
//! looked at for hosts alone that the policy names a credential for ([`terminate`]).
//!
//! Runs in the daemon's runtime, without privilege; one [`serve`] per agent. A refusal is a 403
//! that says what to add to the policy, and a line on record. Start reading at [`server`].

mod authority;
mod consent;
mod counters;
mod credential;
mod destination;
mod hello;
mod http;
mod resolve;
mod server;
mod terminate;
mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use agentd_api::AgentIdentity;
use agentd_sandbox::EgressRules;
use agentd_sandbox::rules::tighten;
use agentd_storage::{Denial, Event, Fact, Store};

use crate::approvals::Approvals;
use crate::denials::News;
use crate::revocation::{Live, NetworkSwitch};
use consent::People;

pub use counters::{EgressCounters, EgressSnapshot};
pub use credential::{
    AgentCredentials, CredentialError, Credentials, NetConfig, NoSuchCredential, bundle_place,
};
pub use resolve::{Resolve, SystemResolver};
pub use server::serve;

/// What the proxy needs to know about the agent it serves.
#[derive(Debug)]
pub struct EgressContext {
    identity: AgentIdentity,
    rules: Live<EgressRules>,
    store: Store,
    resolver: Arc<dyn Resolve>,
    counters: Arc<EgressCounters>,
    idle_timeout: Duration,
    denied: News,
    people: Option<People>,
    credentials: Option<AgentCredentials>,
    switch: Option<Arc<NetworkSwitch>>,
}

impl EgressContext {
    /// The proxy of one agent, resolving names as this system does.
    pub fn new(identity: AgentIdentity, rules: impl Into<Live<EgressRules>>, store: Store) -> Self {
        Self {
            identity,
            rules: rules.into(),
            store,
            resolver: Arc::new(SystemResolver),
            counters: Arc::default(),
            idle_timeout: Duration::from_secs(600),
            denied: News::default(),
            people: None,
            credentials: None,
            switch: None,
        }
    }

    /// Puts credentials into requests to their hosts.
    pub fn with_credentials(mut self, credentials: Option<AgentCredentials>) -> Self {
        self.credentials = credentials;
        self
    }

    /// Lets connections in only while the switch is on, and ends them with it.
    pub fn with_switch(mut self, switch: Arc<NetworkSwitch>) -> Self {
        self.switch = Some(switch);
        self
    }

    /// Asks people about destinations under `[net] ask`; without this they are refused.
    pub fn with_approvals(
        mut self,
        approvals: Arc<Approvals>,
        unit: Option<String>,
        timeout: Duration,
    ) -> Self {
        self.people = Some(People::new(approvals, unit, timeout));
        self
    }

    /// Resolves names by `resolver` instead.
    pub fn with_resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Closes connections on which nothing has moved for `timeout`; ten minutes by default.
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// The tightening that took this credential from the agent, if one did.
    fn taken_credential(&self, name: &str) -> Option<tighten::Refused> {
        self.rules.now().credential_refused_by(name)
    }

    /// What has gone through.
    pub fn counters(&self) -> Arc<EgressCounters> {
        self.counters.clone()
    }

    /// Counts a refusal, tells of it, and records it unless the same one was recorded a moment ago.
    async fn deny(&self, target: &str, why: &str, origin: Option<String>) {
        self.counters.denied();
        let denial = Denial {
            layer: "egress".into(),
            what: "connect".into(),
            target: target.to_owned(),
            rule: why.to_owned(),
            origin,
        };
        let event = Event::now(self.identity.id.to_string(), Fact::Denial(denial));
        if !self.denied.is_new(target) {
            self.store.tell_repeated(event);
            return;
        }
        if let Err(error) = self.store.record_durable(event).await {
            tracing::error!(agent = %self.identity.name, %error, "the egress proxy cannot write the record");
        }
    }
}
