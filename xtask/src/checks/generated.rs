//! `cargo xtask gen [--check]`: the committed files that a program writes: agentctl's man pages,
//! and the JSON schema of policy files.
//!
//! `agentctl/examples/gen-man.rs` and `sandbox/examples/gen-schema.rs` write them from the command
//! line's own definition and from the policy language's table of keys, so xtask need not link them.
//! With `--check` nothing in the tree changes: the files are written aside and compared, and a
//! difference is an error that names the file and the command that renews it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{capture, run};
use crate::workspace::{build_all, root};

/// Where the generated man pages are committed, below the root. Nothing else may lie there.
const PLACE: &str = "docs/man";
/// The JSON schema of policy files.
const SCHEMA: &str = "policy/policy.schema.json";

/// Whether to renew the files or only compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Write,
    Check,
}

pub fn generate(mode: Mode) -> Result<()> {
    let examples = build_all()?.join("examples");
    schema(mode, &examples)?;
    man_pages(mode, &examples)
}

fn schema(mode: Mode, examples: &Path) -> Result<()> {
    let fresh = capture(&mut Command::new(examples.join("gen-schema")))?;
    let place = root().join(SCHEMA);
    match mode {
        Mode::Check => {
            let committed = std::fs::read_to_string(&place).unwrap_or_default();
            if committed.trim() != fresh.trim() {
                bail!(
                    "{SCHEMA} is not what the table of keys says now; renew it with: cargo xtask gen"
                );
            }
        }
        Mode::Write => std::fs::write(&place, fresh.trim().to_owned() + "\n")
            .with_context(|| format!("write {SCHEMA}"))?,
    }
    Ok(())
}

fn man_pages(mode: Mode, examples: &Path) -> Result<()> {
    let scratch = tempfile::Builder::new()
        .prefix("agentd-gen-")
        .tempdir()
        .context("make a scratch directory")?;
    run(Command::new(examples.join("gen-man")).arg(scratch.path()))?;
    let fresh = files(scratch.path())?;
    if fresh.is_empty() {
        bail!("gen-man wrote no files");
    }
    let place = root().join(PLACE);
    let committed = if place.exists() {
        files(&place)?
    } else {
        BTreeMap::new()
    };
    if mode == Mode::Check {
        let stale: Vec<String> = fresh
            .keys()
            .chain(committed.keys())
            .filter(|name| fresh.get(*name) != committed.get(*name))
            .map(|name| format!("{PLACE}/{}", name.display()))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        if !stale.is_empty() {
            bail!(
                "not what agentctl generates now: {}; renew with: cargo xtask gen",
                stale.join(", ")
            );
        }
        return Ok(());
    }
    std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
    for name in committed.keys().filter(|name| !fresh.contains_key(*name)) {
        std::fs::remove_file(place.join(name))
            .with_context(|| format!("remove {}", name.display()))?;
    }
    for (name, content) in &fresh {
        std::fs::write(place.join(name), content)
            .with_context(|| format!("write {}", name.display()))?;
    }
    eprintln!("{} files in {PLACE}", fresh.len());
    Ok(())
}

/// The plain files of one directory.
fn files(directory: &Path) -> Result<BTreeMap<OsString, Vec<u8>>> {
    let doing = || format!("list {}", directory.display());
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).with_context(doing)? {
        let entry = entry.with_context(doing)?;
        if entry.file_type().with_context(doing)?.is_file() {
            let content = std::fs::read(entry.path())
                .with_context(|| format!("read {}", entry.path().display()))?;
            found.insert(entry.file_name(), content);
        }
    }
    Ok(found)
}
