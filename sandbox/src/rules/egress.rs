//! Which names and addresses an agent may reach through the egress proxy.
//!
//! Two questions, both asked by the proxy for each connection: may this host and port be named
//! ([`EgressRules::allows`]), and may this resolved address be connected to ([`is_forbidden_addr`], which a
//! rule with `private = true` waives). A name is never resolved here.

use super::tighten::Tightening;
use crate::policy::Origin;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// The ports a rule without a port stands for.
pub const DEFAULT_PORTS: [u16; 2] = [443, 80];

/// Which hosts one rule covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostPattern {
    /// This name or address and no other. Lower case, no trailing dot.
    Exact(String),
    /// Every name below this one, at any depth, but not the name itself (`*.example.org`).
    Below(String),
    /// Every name (`*`).
    Any,
}

/// One line of `[net] allow`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// As written in the policy.
    pub text: String,
    pub host: HostPattern,
    /// `None` stands for [`DEFAULT_PORTS`].
    pub port: Option<u16>,
    /// Whether addresses of private ranges may be connected to.
    pub private: bool,
    pub origin: Origin,
}

impl EgressRule {
    fn covers_host(&self, host: &str) -> bool {
        match &self.host {
            HostPattern::Exact(name) => name == host,
            HostPattern::Below(parent) => {
                host.len() > parent.len() + 1
                    && host.ends_with(parent.as_str())
                    && host.as_bytes()[host.len() - parent.len() - 1] == b'.'
            }
            HostPattern::Any => true,
        }
    }

    /// Whether this rule is about a destination, whose host is normalised.
    pub(super) fn covers(&self, host: &str, port: u16) -> bool {
        self.covers_host(host) && self.covers_port(port)
    }

    /// Whether this rule lets through all that `other` does.
    pub(crate) fn is_wider(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (HostPattern::Any, _) => true,
            (_, HostPattern::Exact(name)) => self.covers_host(name),
            (HostPattern::Below(own), HostPattern::Below(name)) => {
                own == name || self.covers_host(name)
            }
            _ => false,
        };
        let ports: &[u16] = match &other.port {
            Some(port) => std::slice::from_ref(port),
            None => &DEFAULT_PORTS,
        };
        host && ports.iter().all(|p| self.covers_port(*p)) && (self.private || !other.private)
    }

    /// Whether a destination may exist that both rules are about.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let host = match (&self.host, &other.host) {
            (HostPattern::Any, _) | (_, HostPattern::Any) => true,
            (HostPattern::Exact(name), _) => other.covers_host(name),
            (_, HostPattern::Exact(name)) => self.covers_host(name),
            (HostPattern::Below(a), HostPattern::Below(b)) => {
                a == b || self.covers_host(b) || other.covers_host(a)
            }
        };
        let ports = |rule: &Self| rule.port.map_or(DEFAULT_PORTS.to_vec(), |p| vec![p]);
        host && ports(self).iter().any(|p| other.covers_port(*p))
    }

    fn covers_port(&self, port: u16) -> bool {
        self.port
            .map_or(DEFAULT_PORTS.contains(&port), |p| p == port)
    }
}

/// Everything an agent may reach; empty when its policy has no network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRules {
    /// Whether there is a proxy at all (`[net] mode = "proxy"`).
    pub enabled: bool,
    pub rules: Vec<EgressRule>,
    /// `[net] ask`: reached only when a person says so. Wins over `rules`.
    #[serde(default)]
    pub ask: Vec<EgressRule>,
    /// `[net] credentials`: names of credentials of the daemon's that the agent uses and never sees.
    #[serde(default)]
    pub credentials: Vec<String>,
    /// Where the mode and the list of hosts were written; not known of an agent that an earlier agentd launched.
    #[serde(default)]
    pub lines: EgressLines,
    /// What was laid over these rules while the agent runs.
    #[serde(skip)]
    pub tightened: Vec<Arc<Tightening>>,
}

/// The lines that a refusal rests on where no single rule decides.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressLines {
    /// `net.mode`.
    pub mode: Option<Origin>,
    /// `net.allow`.
    pub allow: Option<Origin>,
}

/// The answer to one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow {
        rule: EgressRule,
    },
    /// A person decides; `rule` is the line that asks.
    Ask {
        rule: EgressRule,
    },
    /// `why` is a sentence for the agent and for the record; `origin` the line that it rests on.
    Deny {
        why: String,
        origin: Option<Origin>,
        /// The agent's own rules would let it by; what was laid over them does not.
        tightened: bool,
    },
}

impl EgressRules {
    /// Whether the agent may connect to `host` (a name or an address, in any case) on `port`.
    pub fn allows(&self, host: &str, port: u16) -> Decision {
        if !self.enabled {
            return Decision::Deny {
                why: "the policy of this agent has no network ([net] mode = \"none\")".into(),
                origin: self.lines.mode.clone(),
                tightened: false,
            };
        }
        let Some(host) = normalise_host(host) else {
            return Decision::Deny {
                why: format!("{host:?} is not a host name or address"),
                origin: None,
                tightened: false,
            };
        };
        self.tighten(self.own(&host, port), &host, port)
    }

    /// What the agent's own policy says.
    fn own(&self, host: &str, port: u16) -> Decision {
        if let Some(rule) = self.ask.iter().find(|r| r.covers(host, port)) {
            return Decision::Ask { rule: rule.clone() };
        }
        let mut named = None;
        for rule in self.rules.iter().filter(|r| r.covers_host(host)) {
            if rule.covers_port(port) {
                return Decision::Allow { rule: rule.clone() };
            }
            named.get_or_insert(rule);
        }
        let why = match named {
            Some(rule) => format!(
                "port {port} of {host} is not allowed; {} allows {}",
                rule.origin,
                match rule.port {
                    Some(p) => format!("port {p}"),
                    None => "ports 443 and 80".into(),
                }
            ),
            None => format!("{host} is not in [net] allow of this agent's policy"),
        };
        let line = named.map(|rule| &rule.origin);
        Decision::Deny {
            why,
            origin: line.or(self.lines.allow.as_ref()).cloned(),
            tightened: false,
        }
    }
}

/// Lower-cases, strips one trailing dot and the brackets of an IPv6 literal, and refuses what can't be a host.
pub(crate) fn normalise_host(host: &str) -> Option<String> {
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Some(literal) = bare {
        return literal.parse::<Ipv6Addr>().ok().map(|a| a.to_string());
    }
    if let Ok(addr) = host.parse::<IpAddr>() {
        return Some(addr.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let label_ok = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    (!name.is_empty() && name.len() <= 253 && name.split('.').all(label_ok))
        .then(|| name.to_ascii_lowercase())
}

/// Why this address is never connected to for a rule without `private = true`; `None` when it is public.
///
/// Everything that is not plainly a public unicast address is refused, by the IANA special-purpose registries.
/// Addresses that embed an IPv4 address (mapped, 6to4, NAT64) are judged by it.
pub fn forbidden_reason(addr: IpAddr) -> Option<&'static str> {
    match addr {
        IpAddr::V4(v4) => forbidden_v4(v4),
        IpAddr::V6(v6) => forbidden_v6(v6),
    }
}

/// Whether [`forbidden_reason`] has a reason.
pub fn is_forbidden_addr(addr: IpAddr) -> bool {
    forbidden_reason(addr).is_some()
}

fn forbidden_v4(a: Ipv4Addr) -> Option<&'static str> {
    let o = a.octets();
    Some(match o {
        [169, 254, 169, 254] | [169, 254, 170, 2] | [100, 100, 100, 200] => {
            "a cloud metadata address"
        }
        [0, ..] => "an address of this network (0.0.0.0/8)",
        [127, ..] => "a loopback address",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "a private address",
        [100, 64..=127, ..] => "a carrier-grade NAT address",
        [169, 254, ..] => "a link-local address",
        [192, 0, 0, _] => "an IETF protocol address",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "a documentation address",
        [192, 88, 99, _] => "a 6to4 relay address",
        [198, 18..=19, ..] => "a benchmarking address",
        [224..=239, ..] => "a multicast address",
        [240..=255, ..] => "a reserved address",
        _ => return None,
    })
}

fn forbidden_v6(a: Ipv6Addr) -> Option<&'static str> {
    if a == Ipv6Addr::LOCALHOST {
        return Some("a loopback address");
    }
    if a == Ipv6Addr::UNSPECIFIED {
        return Some("the unspecified address");
    }
    let s = a.segments();
    let embedded = |hi: u16, lo: u16| {
        let [[a, b], [c, d]] = [hi.to_be_bytes(), lo.to_be_bytes()];
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        // ::ffff:0:0/96 mapped, ::/96 compatible, ::ffff:0:0:0/96 translated, 64:ff9b::/96 NAT64.
        [0, 0, 0, 0, 0, 0xffff, hi, lo]
        | [0, 0, 0, 0, 0xffff, 0, hi, lo]
        | [0x64, 0xff9b, 0, 0, 0, 0, hi, lo] => forbidden_v4(embedded(hi, lo)),
        [0, 0, 0, 0, 0, 0, ..] => Some("a deprecated IPv4-compatible address"),
        [0x64, 0xff9b, 1, ..] => Some("a local NAT64 address"),
        [0x2002, hi, lo, ..] => forbidden_v4(embedded(hi, lo)).or(Some("a 6to4 address")),
        [0x2001, 0, ..] => Some("a Teredo address"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Some("a documentation address"),
        [0x2001, 2, 0, ..] => Some("a benchmarking address"),
        [0x2001, 0x10..=0x3f, ..] => Some("an ORCHID address"),
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Some("a cloud metadata address"),
        [0xfc00..=0xfdff, ..] => Some("a unique-local address"),
        [0xfe80..=0xfebf, ..] => Some("a link-local address"),
        [0xfec0..=0xfeff, ..] => Some("a site-local address"),
        [0xff00..=0xffff, ..] => Some("a multicast address"),
        // Only 2000::/3 is allotted to the public.
        [0x2000..=0x3fff, ..] => None,
        _ => Some("a reserved address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(host: HostPattern, port: Option<u16>) -> EgressRule {
        EgressRule {
            text: "r".into(),
            host,
            port,
            private: false,
            origin: Origin::built_in("test"),
        }
    }

    fn allows(r: EgressRule, host: &str, port: u16) -> bool {
        let rules = EgressRules {
            enabled: true,
            rules: vec![r],
            ..EgressRules::default()
        };
        matches!(rules.allows(host, port), Decision::Allow { .. })
    }

    #[test]
    fn exact_rule_ignores_case_and_trailing_dot_and_nothing_else() {
        let r = || rule(HostPattern::Exact("packages.example".into()), None);
        assert!(allows(r(), "Packages.EXAMPLE.", 443));
        assert!(allows(r(), "packages.example", 80));
        assert!(!allows(r(), "packages.example", 22));
        assert!(!allows(r(), "evilpackages.example", 443));
        assert!(!allows(r(), "packages.example.evil.org", 443));
        assert!(!allows(r(), "packages.example..", 443));
        assert!(!allows(r(), "packages.example\0.evil", 443));
    }

    #[test]
    fn wildcard_covers_names_below_but_not_the_name_itself() {
        let r = || rule(HostPattern::Below("example.org".into()), Some(8443));
        assert!(allows(r(), "a.example.org", 8443));
        assert!(allows(r(), "a.b.example.org", 8443));
        assert!(!allows(r(), "example.org", 8443));
        assert!(!allows(r(), "badexample.org", 8443));
        assert!(!allows(r(), ".example.org", 8443));
        assert!(!allows(r(), "a.example.org", 443));
    }

    #[test]
    fn asking_wins_over_allowing_and_leaves_other_hosts_alone() {
        let rules = EgressRules {
            enabled: true,
            rules: vec![rule(HostPattern::Any, Some(443))],
            ask: vec![rule(HostPattern::Exact("prod.example".into()), None)],
            ..EgressRules::default()
        };
        assert!(matches!(
            rules.allows("PROD.example.", 443),
            Decision::Ask { .. }
        ));
        assert!(matches!(
            rules.allows("dev.example", 443),
            Decision::Allow { .. }
        ));
        assert!(matches!(
            rules.allows("dev.example", 22),
            Decision::Deny { .. }
        ));
    }

    #[test]
    fn disabled_rules_deny_everything_and_say_why() {
        let Decision::Deny { why, .. } = EgressRules::default().allows("packages.example", 443)
        else {
            panic!("allowed")
        };
        assert!(why.contains("no network"), "{why}");
    }

    #[test]
    fn wrong_port_names_the_rule_and_what_it_allows() {
        let rules = EgressRules {
            enabled: true,
            rules: vec![rule(HostPattern::Exact("h.org".into()), Some(22))],
            ..EgressRules::default()
        };
        let Decision::Deny { why, origin, .. } = rules.allows("h.org", 23) else {
            panic!("allowed")
        };
        assert_eq!(origin, Some(Origin::built_in("test")));
        assert_eq!(
            why,
            "port 23 of h.org is not allowed; test (built in) allows port 22"
        );
    }

    #[test]
    fn addresses_of_special_ranges_are_forbidden() {
        for text in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::10.0.0.1",
            "::8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "2002:a00:1::",
            "2002:808:808::",
            "2001::1",
            "2001:db8::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "100::1",
            "4000::1",
            "::ffff:0:127.0.0.1",
        ] {
            assert!(is_forbidden_addr(text.parse().unwrap()), "{text} passed");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.167.1.1",
            "198.17.0.1",
            "198.20.0.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(
                !is_forbidden_addr(text.parse().unwrap()),
                "{text} was refused"
            );
        }
    }
}
