//! `cargo xtask check-deps`: which crate may use which, and what the small programs may never link.
//!
//! Two tables. [`ARROWS`] is the drawing of ARCHITECTURE.md as data: arrows go down only, and planes never meet except
//! in the daemon. [`NEVER`] holds what a crate must not have anywhere in its graph, however it gets there: the broker
//! runs as root and must not link a runtime, a web stack, a database, D-Bus or a parser of policies. Judged from
//! `cargo metadata`; the judging itself is pure.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use crate::workspace::Metadata;

/// Crate → the workspace's crates that it may use. A crate that is not here is an error too.
const ARROWS: [(&str, &[&str]); 17] = [
    (
        "agentd",
        &[
            "agentd-api",
            // It reads the kernel plane's tables (ADR 33, 35).
            "agentd-bpf",
            "agentd-broker",
            "agentd-bus",
            "agentd-kernel",
            "agentd-launch",
            "agentd-orchestrator",
            "agentd-sandbox",
            "agentd-storage",
        ],
    ),
    (
        "agentctl",
        // The unit language is what `config check` needs without a daemon (ADR 0011); the bus's client is for the agents
        // of `bench`, which are agentctl itself (ADR 0017).
        &[
            "agentd-api",
            "agentd-bus",
            "agentd-kernel",
            "agentd-orchestrator",
            "agentd-sandbox",
        ],
    ),
    ("agentd-api", &[]),
    // The kernel plane's tables, mapped: what the broker writes and agentd reads (ADR 33).
    ("agentd-bpf", &["agentd-ebpf-common"]),
    // What the kernel says of itself: its types, its security modules (ADR 43).
    ("agentd-bpf-load", &["agentd-bpf", "agentd-kernel"]),
    (
        "agentd-broker",
        &[
            "agentd-bpf",
            "agentd-bpf-load",
            "agentd-kernel",
            "agentd-launch",
        ],
    ),
    // A client speaks to the kernel's programs on the direct path (ADR 41).
    ("agentd-bus", &["agentd-ebpf-common", "agentd-kernel"]),
    // Knows no other crate: it also judges other people's sandboxes.
    ("agentd-escape", &[]),
    // The tables that eBPF programs share with user space; also compiled for the kernel.
    ("agentd-ebpf-common", &[]),
    ("agentd-kernel", &[]),
    ("agentd-launch", &["agentd-kernel"]),
    ("agentd-orchestrator", &[]),
    // The plan's wire form is what a policy is compiled to (ADR 0003).
    ("agentd-sandbox", &["agentd-kernel", "agentd-launch"]),
    ("agentd-segment", &[]),
    // The bytes of segments are read by others too (ADR 0031).
    ("agentd-storage", &["agentd-segment"]),
    ("agentd-testkit", &["agentd-bus"]),
    ("xtask", &[]),
];

/// What every crate's tests may use besides its own arrows.
const TESTS_MAY_USE: &str = "agentd-testkit";

/// Crate → packages that must not be anywhere in what it links.
const NEVER: [(&str, &[&str]); 4] = [
    (
        "agentd-broker",
        &[
            "axum",
            "hyper",
            "serde_json",
            "sqlx",
            "tokio",
            "toml",
            "zbus",
        ],
    ),
    (
        "agentd-launch",
        &[
            "axum",
            "hyper",
            "serde_json",
            "sqlx",
            "tokio",
            "toml",
            "zbus",
        ],
    ),
    (
        "agentd-orchestrator",
        &["axum", "hyper", "sqlx", "tokio", "zbus"],
    ),
    (
        "agentd-sandbox",
        &["axum", "hyper", "sqlx", "tokio", "zbus"],
    ),
];

/// Fails with every offending edge, one a line.
pub fn check() -> Result<()> {
    let mut offences = arrows(&edges(&Metadata::of_members()?));
    offences.extend(never(&Metadata::with_graph()?));
    if offences.is_empty() {
        return Ok(());
    }
    bail!(
        "{}\nA new edge needs an ADR (docs/adr/) and then a line in xtask/src/checks/deps.rs",
        offences.join("\n")
    )
}

/// One use of a workspace crate by another.
#[derive(Debug, PartialEq, Eq)]
struct Edge {
    from: String,
    to: String,
    only_in_tests: bool,
}

fn edges(metadata: &Metadata) -> Vec<Edge> {
    let mut edges = Vec::new();
    for package in metadata.members() {
        edges.push(Edge {
            from: package.name.clone(),
            to: package.name.clone(),
            only_in_tests: false,
        });
        for dependency in package
            .dependencies
            .iter()
            .filter(|dependency| dependency.path.is_some())
        {
            edges.push(Edge {
                from: package.name.clone(),
                to: dependency.name.clone(),
                only_in_tests: dependency.kind.as_deref() == Some("dev"),
            });
        }
    }
    edges
}

fn arrows(edges: &[Edge]) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut offences = BTreeSet::new();
    for edge in edges {
        let Some(allowed) = table.get(edge.from.as_str()) else {
            offences.insert(format!(
                "{}: a crate without a line in the table of arrows",
                edge.from
            ));
            continue;
        };
        let granted = edge.from == edge.to
            || allowed.contains(&edge.to.as_str())
            || (edge.only_in_tests && edge.to == TESTS_MAY_USE);
        if !granted {
            let how = if edge.only_in_tests {
                " (in its tests)"
            } else {
                ""
            };
            offences.insert(format!(
                "{} → {}{how}: not an arrow of the table",
                edge.from, edge.to
            ));
        }
    }
    offences.into_iter().collect()
}

fn never(metadata: &Metadata) -> Vec<String> {
    let Some(resolve) = &metadata.resolve else {
        return vec!["cargo metadata gave no graph".to_owned()];
    };
    let packages = metadata.by_id();
    let linked: BTreeMap<&str, Vec<&str>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = node
                .deps
                .iter()
                .filter(|dep| dep.dep_kinds.iter().any(|kind| kind.kind.is_none()));
            (
                node.id.as_str(),
                normal.map(|dep| dep.pkg.as_str()).collect(),
            )
        })
        .collect();
    let mut offences = Vec::new();
    for (name, banned) in NEVER {
        let Some(start) = metadata.members().find(|package| package.name == name) else {
            offences.push(format!(
                "{name}: in the table of what must never be linked, but not in the workspace"
            ));
            continue;
        };
        // Breadth first, remembering who brought whom in, so that the offence names the whole way.
        let mut via: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start.id.as_str()]);
        while let Some(id) = queue.pop_front() {
            for &next in linked.get(id).into_iter().flatten() {
                if next != start.id && !via.contains_key(next) {
                    via.insert(next, id);
                    queue.push_back(next);
                }
            }
        }
        for &id in via.keys() {
            let Some(package) = packages
                .get(id)
                .filter(|package| banned.contains(&package.name.as_str()))
            else {
                continue;
            };
            let mut way = vec![package.name.as_str()];
            let mut at = id;
            while let Some(&from) = via.get(at) {
                way.push(
                    packages
                        .get(from)
                        .map_or(from, |package| package.name.as_str()),
                );
                at = from;
            }
            way.reverse();
            offences.push(format!(
                "{}: {name} must never link {}",
                way.join(" → "),
                package.name
            ));
        }
    }
    offences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(from: &str, to: &str, only_in_tests: bool) -> Edge {
        Edge {
            from: from.to_owned(),
            to: to.to_owned(),
            only_in_tests,
        }
    }

    #[test]
    fn an_arrow_between_planes_is_an_offence_that_names_both() {
        let offences = arrows(&[edge("agentd-bus", "agentd-sandbox", false)]);
        assert_eq!(
            offences,
            ["agentd-bus → agentd-sandbox: not an arrow of the table"]
        );
    }

    #[test]
    fn tests_may_use_the_test_kit_and_code_may_not() {
        assert!(arrows(&[edge("agentd-storage", "agentd-testkit", true)]).is_empty());
        assert_eq!(
            arrows(&[edge("agentd-storage", "agentd-testkit", false)]).len(),
            1
        );
    }

    #[test]
    fn a_crate_that_is_not_in_the_table_is_an_offence() {
        assert_eq!(arrows(&[edge("agentd-new", "agentd-new", false)]).len(), 1);
    }

    #[test]
    fn what_must_never_be_linked_is_found_however_deep_it_sits() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"packages":[
                {"id":"b","name":"agentd-broker","dependencies":[],"targets":[]},
                {"id":"l","name":"agentd-launch","dependencies":[],"targets":[]},
                {"id":"o","name":"agentd-orchestrator","dependencies":[],"targets":[]},
                {"id":"s","name":"agentd-sandbox","dependencies":[],"targets":[]},
                {"id":"m","name":"middle","dependencies":[],"targets":[]},
                {"id":"t","name":"tokio","dependencies":[],"targets":[]}],
               "workspace_members":["b","l","o","s"],"target_directory":"x",
               "resolve":{"nodes":[
                {"id":"b","deps":[{"pkg":"m","dep_kinds":[{"kind":null}]}]},
                {"id":"m","deps":[{"pkg":"t","dep_kinds":[{"kind":null}]}]},
                {"id":"l","deps":[{"pkg":"t","dep_kinds":[{"kind":"dev"}]}]}]}}"#,
        )
        .expect("metadata");
        assert_eq!(
            never(&metadata),
            ["agentd-broker → middle → tokio: agentd-broker must never link tokio"]
        );
    }
}
