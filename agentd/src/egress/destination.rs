//! From what an agent names to an open connection, or to the reason why not.
//!
//! The order is the promise: rules by name and port, a person where they say so, then resolution,
//! then every address by its range, then a connection to an address that passed. Nothing is
//! resolved twice.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use ::http::uri::Authority;
use agentd_sandbox::Decision;
use agentd_sandbox::rules::egress::forbidden_reason;
use tokio::net::TcpStream;

use super::EgressContext;
use super::consent::Consent;
use super::tunnel::Fronted;
use crate::revocation::Admitted;

const RESOLVE_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How many of a name's addresses are tried.
const MAX_ADDRESSES: usize = 8;

/// A host and port as the agent named them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Destination {
    /// Reads `host:port`. Without a port `default_port` is meant; with neither, or with a user name, it is none.
    pub fn parse(authority: &Authority, default_port: Option<u16>) -> Option<Self> {
        if authority.as_str().contains('@') {
            return None;
        }
        let host = authority.host();
        let host = host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(host);
        let named = authority
            .as_str()
            .rsplit_once(':')
            .filter(|(_, port)| !port.ends_with(']'));
        let port = match named {
            Some((_, port)) => port.parse().ok()?,
            None => default_port?,
        };
        (!host.is_empty() && port != 0).then(|| Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What to answer with.
    pub status: StatusCode,
    /// The whole text for the agent.
    pub text: String,
}

impl Refused {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self {
            status,
            text: text.into(),
        }
    }
}

impl EgressContext {
    /// Whether a tunnel to `destination` may carry TLS with `server`: itself, or another host that needs nobody's consent.
    pub(super) fn is_meant(
        &self,
        destination: &Destination,
        server: &str,
        seat: Option<&Admitted>,
    ) -> bool {
        let server = server
            .strip_suffix('.')
            .unwrap_or(server)
            .to_ascii_lowercase();
        let host = destination
            .host
            .strip_suffix('.')
            .unwrap_or(&destination.host);
        if server == host.to_ascii_lowercase() {
            return true;
        }
        if let Some(seat) = seat {
            seat.leads_also_to(&server, destination.port);
        }
        let decision = self.rules.now().allows(&server, destination.port);
        matches!(decision, Decision::Allow { .. })
    }

    /// Counts and records a tunnel that was not used for what it was opened for.
    pub(super) async fn deny_fronted(&self, destination: &Destination, fronted: &Fronted) {
        let (target, why) = match &fronted.server {
            Some(server) => (
                format!("{server}:{}", destination.port),
                format!(
                    "TLS with {server} in a tunnel to {destination}, and no line of [net] allow is about it"
                ),
            ),
            None => (
                destination.to_string(),
                format!("a tunnel to {destination} began like TLS and was not"),
            ),
        };
        let named = fronted.server.as_deref();
        let decision = named.map(|server| self.rules.now().allows(server, destination.port));
        let line = match decision {
            Some(Decision::Deny { origin, .. }) => origin.map(|line| line.to_string()),
            _ => None,
        };
        self.deny(&target, &why, line).await;
    }

    /// Opens a connection to `destination` if the policy allows it. A refusal is counted and recorded.
    pub(super) async fn connect(
        &self,
        destination: &Destination,
        seat: Option<&Admitted>,
    ) -> Result<TcpStream, Refused> {
        let target = destination.to_string();
        if let Some(seat) = seat {
            seat.leads_to(&destination.host, destination.port);
        }
        let rules = self.rules.now();
        let rule = match rules.allows(&destination.host, destination.port) {
            Decision::Allow { rule } => rule,
            Decision::Ask { rule } => match self.ask(&target, &rule).await {
                Consent::Given => rule,
                Consent::Refused { why } => {
                    let origin = rule.origin.to_string();
                    self.deny(&target, &why, Some(origin)).await;
                    let text = format!("agentd: connecting to {target} was not approved: {why}\n");
                    return Err(Refused::new(StatusCode::FORBIDDEN, text));
                }
            },
            Decision::Deny {
                why,
                origin,
                tightened,
            } => {
                let line = origin.map(|line| line.to_string());
                self.deny(&target, &why, line).await;
                if !tightened {
                    let add = format!("  [net]\n  allow = [\"{target}\"]\n");
                    return Err(forbidden(&target, &why, &add));
                }
                let text = format!("agentd: connecting to {target} is not allowed: {why}\n");
                return Err(Refused::new(StatusCode::FORBIDDEN, text));
            }
        };
        let addresses = self.resolve(destination).await?;
        let (passed, barred): (Vec<IpAddr>, Vec<IpAddr>) = addresses
            .into_iter()
            .partition(|a| rule.private || forbidden_reason(*a).is_none());
        if passed.is_empty() {
            let Some(first) = barred.first() else {
                let text = format!("agentd: {target} has no address\n");
                return Err(Refused::new(StatusCode::BAD_GATEWAY, text));
            };
            let range = forbidden_reason(*first).unwrap_or("no public address");
            let why = format!("{target} is at {first}, {range}");
            self.deny(&target, &why, Some(rule.origin.to_string()))
                .await;
            let add = format!(
                "  [net]\n  allow = [{{ host = \"{target}\", private = true }}]\n(the rule {:?} of {} allows only \
                 public addresses)\n",
                rule.text, rule.origin
            );
            return Err(forbidden(&target, &why, &add));
        }
        let mut trouble = String::new();
        for address in passed.into_iter().take(MAX_ADDRESSES) {
            let address = SocketAddr::new(address, destination.port);
            match tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Latency only: a socket that won't be told still works.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "TCP_NODELAY was refused");
                    }
                    let Some(seat) = seat else {
                        return Ok(stream);
                    };
                    seat.is_connected(address.ip());
                    // Rules that change from here on find this connection; those that changed before are asked.
                    let now = self.rules.now();
                    if Arc::ptr_eq(&rules, &now) || seat.stays(&rules, &now) {
                        return Ok(stream);
                    }
                    let text = format!(
                        "agentd: the rules of this agent changed while it connected to {target}\n"
                    );
                    return Err(Refused::new(StatusCode::FORBIDDEN, text));
                }
                Ok(Err(error)) => trouble = format!("{}: {error}", address.ip()),
                Err(_) => trouble = format!("{}: no answer in {CONNECT_TIMEOUT:?}", address.ip()),
            }
        }
        let text = format!("agentd: can't connect to {target}: {trouble}\n");
        Err(Refused::new(StatusCode::BAD_GATEWAY, text))
    }

    async fn resolve(&self, destination: &Destination) -> Result<Vec<IpAddr>, Refused> {
        let host = &destination.host;
        if let Ok(literal) = host.parse() {
            return Ok(vec![literal]);
        }
        match tokio::time::timeout(RESOLVE_TIMEOUT, self.resolver.resolve(host)).await {
            Ok(Ok(addresses)) => Ok(addresses),
            Ok(Err(error)) => {
                let text = format!("agentd: can't resolve {host}: {error}\n");
                Err(Refused::new(StatusCode::BAD_GATEWAY, text))
            }
            Err(_) => {
                let text = format!("agentd: {host} was not resolved in {RESOLVE_TIMEOUT:?}\n");
                Err(Refused::new(StatusCode::GATEWAY_TIMEOUT, text))
            }
        }
    }
}

fn forbidden(target: &str, why: &str, add: &str) -> Refused {
    let text = format!(
        "agentd: connecting to {target} is not allowed: {why}\nTo allow it, add to the policy:\n{add}"
    );
    Refused::new(StatusCode::FORBIDDEN, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, default_port: Option<u16>) -> Option<String> {
        Destination::parse(&text.parse().ok()?, default_port).map(|d| d.to_string())
    }

    #[test]
    fn a_destination_is_a_host_and_a_port_and_nothing_else() {
        assert_eq!(parse("e.org:443", None).as_deref(), Some("e.org:443"));
        assert_eq!(parse("e.org", Some(80)).as_deref(), Some("e.org:80"));
        assert_eq!(parse("[::1]:8443", None).as_deref(), Some("[::1]:8443"));
        assert_eq!(parse("[::1]", Some(80)).as_deref(), Some("[::1]:80"));
        for bad in [
            "e.org",
            "user@e.org:443",
            "e.org:0",
            "e.org:65536",
            "e.org:x",
            ":443",
            "e.org:443:443",
        ] {
            assert_eq!(parse(bad, None), None, "{bad}");
        }
        assert_eq!(parse("e.org:", Some(80)), None);
    }
}
