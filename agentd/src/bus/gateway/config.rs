//! `[bus.gateway]`: where the socket gateway listens, what it proves itself with, and who may do what.
//!
//! Nothing listens unless a listener stands here. Checked as the rest of the configuration is; files are read later, at
//! start-up, before agentd confines itself. Pure.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use agentd_bus::gateway::select::Wanted;
use agentd_sandbox::IpcRules;
use agentd_sandbox::rules::ipc::NamePattern;
use serde::Deserialize;

/// The section as it is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    pub transport: TransportName,
    /// Threads, each with a ring or an epoll instance of its own. 1..=64.
    pub shards: usize,
    /// Connections of one shard. 1..=1000000.
    pub connections: usize,
    /// Seconds that a peer may take no bytes while some wait for it. 1..=3600.
    pub stall_s: u64,
    pub listen: Vec<ListenConfig>,
    pub peer: Vec<PeerConfig>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            transport: TransportName::Auto,
            shards: 1,
            connections: 16_384,
            stall_s: 30,
            listen: Vec::new(),
            peer: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TransportName {
    /// io_uring where there is one, else epoll.
    Auto,
    Epoll,
    IoUring,
}

impl TransportName {
    pub fn wanted(self) -> Wanted {
        match self {
            Self::Auto => Wanted::Best,
            Self::Epoll => Wanted::Epoll,
            Self::IoUring => Wanted::IoUring,
        }
    }
}

/// One listening socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListenConfig {
    /// AF_UNIX, at this path. Every user may connect; who is let in is said by `peer`.
    pub unix: Option<PathBuf>,
    /// TCP. Without TLS on a loopback address only.
    pub tcp: Option<SocketAddr>,
    pub tls: Option<TlsFiles>,
    /// Takes the interop header v3 too.
    #[serde(default)]
    pub interop: bool,
}

/// PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the certificates of clients.
    pub client_ca: PathBuf,
}

/// Who somebody from outside is on the bus.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Its name on the bus.
    pub name: String,
    /// Whose agents it meets: a uid.
    pub user: u32,
    /// Known by a client certificate that is valid for this name.
    pub certificate: Option<String>,
    /// Known by the uid of the process that connected over AF_UNIX.
    pub socket_user: Option<u32>,
    /// Known by nothing: whoever reaches a plain TCP listener on loopback.
    #[serde(default)]
    pub anyone_on_loopback: bool,
    #[serde(default)]
    pub send: Vec<NamePattern>,
    #[serde(default)]
    pub request: Vec<NamePattern>,
    #[serde(default)]
    pub publish: Vec<NamePattern>,
    #[serde(default)]
    pub subscribe: Vec<NamePattern>,
}

impl PeerConfig {
    /// As an agent's policy would say it. Memory is shared within a host and by descriptors only.
    pub fn rules(&self) -> IpcRules {
        IpcRules {
            send: self.send.clone(),
            request: self.request.clone(),
            publish: self.publish.clone(),
            subscribe: self.subscribe.clone(),
            shared_memory: false,
            tightened: Vec::new(),
        }
    }
}

/// What is wrong, by key and value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub key: &'static str,
    pub value: String,
    pub allowed: &'static str,
}

impl GatewayConfig {
    /// Checks what can be checked without reading files.
    pub fn check(&self) -> Result<(), Wrong> {
        let wrong = |key, value: String, allowed| {
            Err(Wrong {
                key,
                value,
                allowed,
            })
        };
        if !(1..=64).contains(&self.shards) {
            return wrong(
                "bus.gateway.shards",
                self.shards.to_string(),
                "1 to 64 shards",
            );
        }
        if !(1..=1_000_000).contains(&self.connections) {
            let allowed = "1 to 1000000 connections of a shard";
            return wrong(
                "bus.gateway.connections",
                self.connections.to_string(),
                allowed,
            );
        }
        if !(1..=3600).contains(&self.stall_s) {
            let allowed = "1 to 3600 seconds without a byte taken";
            return wrong("bus.gateway.stall_s", self.stall_s.to_string(), allowed);
        }
        for listen in &self.listen {
            match (&listen.unix, listen.tcp, &listen.tls) {
                (Some(path), None, None) if path.is_absolute() => {}
                (Some(path), None, _) => {
                    let allowed = "an absolute path, without tls: the kernel says who connects";
                    return wrong("bus.gateway.listen.unix", format!("{path:?}"), allowed);
                }
                (None, Some(_), Some(_)) => {}
                (None, Some(address), None) if address.ip().is_loopback() => {}
                (None, Some(address), None) => {
                    let allowed = "a loopback address, or tls = { certificate, key, client_ca }";
                    return wrong("bus.gateway.listen.tcp", address.to_string(), allowed);
                }
                _ => {
                    let allowed = "either unix or tcp in each [[bus.gateway.listen]]";
                    return wrong("bus.gateway.listen", format!("{listen:?}"), allowed);
                }
            }
            for path in listen.tls.iter().flat_map(TlsFiles::paths) {
                if !path.is_absolute() {
                    let allowed = "absolute paths of PEM files";
                    return wrong("bus.gateway.listen.tls", format!("{path:?}"), allowed);
                }
            }
        }
        for (at, peer) in self.peer.iter().enumerate() {
            let ways = [
                peer.certificate.is_some(),
                peer.socket_user.is_some(),
                peer.anyone_on_loopback,
            ];
            if ways.iter().filter(|way| **way).count() != 1 {
                let allowed = "exactly one of certificate, socket_user and anyone_on_loopback";
                return wrong("bus.gateway.peer", peer.name.clone(), allowed);
            }
            if super::super::is_users_name(&peer.name) {
                let allowed = "a name that is not one of the user's own";
                return wrong("bus.gateway.peer.name", peer.name.clone(), allowed);
            }
            let lists = [&peer.send, &peer.request, &peer.publish, &peer.subscribe];
            for pattern in lists.into_iter().flatten() {
                if NamePattern::parse(pattern.as_str()).is_err() {
                    let allowed =
                        "words separated by single dots, `*` for one word, `#` last for any number";
                    return wrong(
                        "bus.gateway.peer",
                        format!("{:?}", pattern.as_str()),
                        allowed,
                    );
                }
            }
            let same = |other: &PeerConfig| {
                (other.user == peer.user && other.name == peer.name)
                    || (other.certificate.is_some() && other.certificate == peer.certificate)
                    || (other.socket_user.is_some() && other.socket_user == peer.socket_user)
                    || (other.anyone_on_loopback && peer.anyone_on_loopback)
            };
            if self.peer[..at].iter().any(same) {
                let allowed = "peers that differ in name and in what they are known by";
                return wrong("bus.gateway.peer", peer.name.clone(), allowed);
            }
        }
        Ok(())
    }
}

impl TlsFiles {
    fn paths(&self) -> [&Path; 3] {
        [&self.certificate, &self.key, &self.client_ca]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let config: GatewayConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config
            .check()
            .map_err(|wrong| format!("{} {}", wrong.key, wrong.allowed))
    }

    #[test]
    fn nothing_listens_by_default() {
        assert!(GatewayConfig::default().listen.is_empty());
        assert_eq!(check(""), Ok(()));
    }

    #[test]
    fn plain_tcp_is_for_loopback_and_every_peer_is_known_by_one_thing() {
        let tls = "tls = { certificate = \"/c\", key = \"/k\", client_ca = \"/a\" }";
        for (text, wrong) in [
            ("[[listen]]\ntcp = \"127.0.0.1:9\"\n", None),
            ("[[listen]]\ntcp = \"[::1]:9\"\n", None),
            (
                "[[listen]]\ntcp = \"0.0.0.0:9\"\n",
                Some("bus.gateway.listen.tcp a loopback address"),
            ),
            (&format!("[[listen]]\ntcp = \"0.0.0.0:9\"\n{tls}\n"), None),
            (
                &format!("[[listen]]\nunix = \"/s\"\n{tls}\n"),
                Some("without tls"),
            ),
            ("[[listen]]\nunix = \"s\"\n", Some("absolute")),
            ("[[listen]]\n", Some("either unix or tcp")),
            ("[[peer]]\nname = \"a\"\nuser = 0\n", Some("exactly one of")),
            (
                "[[peer]]\nname = \"a\"\nuser = 0\nsocket_user = 0\nanyone_on_loopback = true\n",
                Some("exactly one of"),
            ),
            (
                "[[peer]]\nname = \"a\"\nuser = 0\nsocket_user = 0\n[[peer]]\nname = \"b\"\nuser = 0\nsocket_user = 0\n",
                Some("differ"),
            ),
            (
                "[[peer]]\nname = \"user\"\nuser = 0\nsocket_user = 0\n",
                Some("the user's own"),
            ),
            (
                "[[peer]]\nname = \"a\"\nuser = 0\nsocket_user = 0\nsend = [\"..\"]\n",
                Some("single dots"),
            ),
            ("shards = 0\n", Some("1 to 64")),
            ("stall_s = 0\n", Some("1 to 3600")),
        ] {
            match (check(text), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(wrong)) => assert!(error.contains(wrong), "{text}: {error}"),
                (result, _) => panic!("{text}: {result:?}"),
            }
        }
    }
}
