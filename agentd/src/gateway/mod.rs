//! The model gateway: what an agent's model requests go through, and the only place where providers' keys are.
//!
//! An agent speaks plain HTTP to a port of its own network namespace; the daemon accepts there. Each request is
//! checked against the policy ([`request`]), stripped of whatever credentials the agent put in ([`headers`]), given
//! the daemon's key ([`upstream`]), metered ([`meter`]), priced ([`price`]), and held to the agent's ceilings ([`budget`]),
//! streams included ([`exchange`]). What changed rules refuse is cut ([`under_way`]). Start reading at [`server`].
//!
//! It never stores or logs what is asked or answered, only what it cost. Runs in the daemon's runtime, without
//! privilege; one [`serve`] per agent, one [`Upstreams`] for all. Trouble with a provider reaches the agent as an
//! error of that provider's shape.

mod api;
mod body;
mod budget;
mod config;
mod exchange;
mod headers;
mod meter;
mod price;
mod request;
pub(crate) mod secret;
mod server;
mod sse;
mod under_way;
mod upstream;
mod weigh;

use std::sync::Arc;

use agentd_api::AgentIdentity;
use agentd_sandbox::{DenialRules, ModelRules};
use agentd_storage::Store;

use crate::revocation::Live;

pub use api::Provider;
pub use budget::{
    BudgetSnapshot, Ceilings, Exhausted, Reached, Reservation, Spent, TokenBudget, TokenCounts,
};
pub use config::{Auth, KeySource, ModelConfig, ProviderConfig};
pub use price::{PriceConfig, PriceList};
pub use server::serve;
pub use under_way::{Cut, UnderWay};
pub use upstream::{Upstream, Upstreams, UpstreamsError};

/// What the gateway needs to know about the agent it serves.
#[derive(Debug)]
pub struct GatewayContext {
    /// Whose requests these are.
    pub identity: AgentIdentity,
    /// What its policy says about models.
    pub rules: Live<ModelRules>,
    /// Where that was written.
    pub lines: DenialRules,
    /// Its tokens and dollars.
    pub budget: Arc<TokenBudget>,
    /// What it asks at this moment.
    pub under_way: Arc<UnderWay>,
    /// What models cost.
    pub prices: PriceList,
    /// The providers.
    pub upstreams: Arc<Upstreams>,
    /// Where usage and refusals are recorded.
    pub store: Store,
}
