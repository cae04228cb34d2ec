//! Where things are: the workspace's root, its target directory, and what `cargo metadata` says of its crates.
//!
//! Read-only; runs `cargo metadata` once per question. Fails when cargo is missing or the workspace doesn't parse,
//! with cargo's own words.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::child::capture;

/// The part of `cargo metadata` that xtask reads.
#[derive(Debug, Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
    pub workspace_members: Vec<String>,
    pub target_directory: PathBuf,
    pub resolve: Option<Resolve>,
}

#[derive(Debug, Deserialize)]
pub struct Package {
    pub id: String,
    pub name: String,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// Absent for normal dependencies, else `dev` or `build`.
    pub kind: Option<String>,
    /// Set for crates of this workspace.
    pub path: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
    /// Absent for most.
    #[serde(default, rename = "required-features")]
    pub required_features: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub struct Resolve {
    pub nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
pub struct Node {
    pub id: String,
    pub deps: Vec<NodeDep>,
}

#[derive(Debug, Deserialize)]
pub struct NodeDep {
    pub pkg: String,
    pub dep_kinds: Vec<DepKind>,
}

#[derive(Debug, Deserialize)]
pub struct DepKind {
    pub kind: Option<String>,
}

impl Metadata {
    /// The workspace's own crates, without the graph of what they depend on.
    pub fn of_members() -> Result<Self> {
        Self::read(&["--no-deps"])
    }

    /// Everything, with the resolved graph.
    pub fn with_graph() -> Result<Self> {
        Self::read(&[])
    }

    fn read(extra: &[&str]) -> Result<Self> {
        let text = capture(
            cargo()
                .args(["metadata", "--format-version", "1"])
                .args(extra),
        )?;
        serde_json::from_str(&text).context("read the output of cargo metadata")
    }

    /// The workspace's crates, by their order in the root Cargo.toml.
    pub fn members(&self) -> impl Iterator<Item = &Package> {
        self.packages
            .iter()
            .filter(|package| self.workspace_members.contains(&package.id))
    }

    /// Package by id.
    pub fn by_id(&self) -> HashMap<&str, &Package> {
        self.packages
            .iter()
            .map(|package| (package.id.as_str(), package))
            .collect()
    }
}

impl Package {
    /// The names of what is under the crate's `tests/`, but for what is built only on request.
    pub fn integration_tests(&self) -> impl Iterator<Item = &str> {
        self.targets
            .iter()
            .filter(|target| target.kind.iter().any(|kind| kind == "test"))
            .filter(|target| target.required_features.is_empty())
            .map(|target| target.name.as_str())
    }
}

/// Builds every program and example, with the features of dependencies that the tests are built with: what cargo
/// builds of fewer packages, or without their tests, it builds anew. Returns the directory that they are in.
pub fn build_all() -> Result<PathBuf> {
    crate::child::run(cargo().args(["build", "--workspace", "--bins", "--examples"]))?;
    Ok(Metadata::of_members()?.target_directory.join("debug"))
}

/// The workspace's root directory.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a direct child of the workspace")
}

/// The cargo that runs us, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}
