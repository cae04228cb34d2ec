//! `cargo xtask ebpf`: the eBPF programs from source, and the tier that tests them in this
//! machine's kernel.
//!
//! The object that a plain build embeds is committed (`agentd-ebpf/agentd.bpf.o`), so nobody needs
//! eBPF tools to build agentd. This builds it anew with whatever tool set is there ([`tools`]),
//! strips it to what the kernel reads, and says whether it is what is committed. Paths of the
//! machine are mapped away, so the same tools build the same bytes everywhere.
//!
//! The tier runs `bpf/load/tests/kernel` with the committed object and, where the rebuilt one has
//! other bytes, with that too: it fails when they behave differently. Everything lies below the
//! target directory. Without a tool set the rebuild is a counted skip that names what is missing.

mod tools;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use self::tools::Tools;
use crate::child;
use crate::test::{Outcome, Skip, suites};
use crate::workspace::{Metadata, cargo, root};

/// Where the committed object is, below the root.
const COMMITTED: &str = "agentd-ebpf/agentd.bpf.o";
/// The variable that gives the tests another object.
const OBJECT: &str = "AGENTD_EBPF_OBJECT";
/// Seconds of hostile input to each object: a minute for both.
const HOSTILE: (&str, &str) = ("AGENTD_HOSTILE_S", "30");

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Put the new object in the place of the committed one
    #[arg(long)]
    replace: bool,
}

#[expect(clippy::print_stdout, reason = "the path is this verb's data")]
pub fn ebpf(args: &Args) -> Result<ExitCode> {
    let built = build(&Tools::get()?)?;
    println!("{}", built.display());
    if is_committed(&built)? {
        eprintln!("the same bytes as {COMMITTED}");
    } else if args.replace {
        std::fs::copy(&built, root().join(COMMITTED)).context("replace the committed object")?;
        eprintln!("{COMMITTED} is replaced");
    } else {
        eprintln!("other bytes than {COMMITTED}; take them with: cargo xtask ebpf --replace");
    }
    Ok(ExitCode::SUCCESS)
}

/// Gets the tools, which the tier says more of if they can't be had.
pub fn fetch_tools() {
    if let Err(error) = Tools::get() {
        eprintln!("ebpf: no tools could be fetched ahead: {error:#}");
    }
}

/// The tier.
pub fn tier(scratch: &Path) -> Result<Outcome> {
    let mut committed = run(scratch, None)?;
    let tools = match Tools::get() {
        Ok(tools) => tools,
        Err(why) => {
            crate::stop::check()?;
            committed.skip(Skip::new(
                "ebpf",
                format!("the programs can't be rebuilt: {why:#}"),
            ));
            return Ok(committed);
        }
    };
    let built = build(&tools)?;
    if is_committed(&built)? {
        committed.pass();
        return Ok(committed);
    }
    eprintln!("the rebuilt object has other bytes than {COMMITTED}: its tests");
    let rebuilt = run(scratch, Some(&built))?;
    let mut outcome = committed.clone();
    match difference(&committed, &rebuilt) {
        None => outcome.pass(),
        Some(what) => outcome.fail(format!(
            "{COMMITTED} behaves differently from what its source builds: {what}; renew it with: cargo xtask ebpf --replace"
        )),
    }
    outcome.absorb(rebuilt);
    Ok(outcome)
}

/// What only one of two runs passed, failed or skipped.
fn difference(one: &Outcome, other: &Outcome) -> Option<String> {
    let names = |outcome: &Outcome| -> BTreeSet<String> {
        let skips = outcome
            .skips
            .iter()
            .map(|skip| format!("skipped {}", skip.feature));
        let failures = outcome.failures.iter().map(|name| format!("failed {name}"));
        skips.chain(failures).collect()
    };
    let (left, right) = (names(one), names(other));
    if one.passed == other.passed && left == right {
        return None;
    }
    let only: Vec<&str> = left
        .symmetric_difference(&right)
        .map(String::as_str)
        .collect();
    Some(format!(
        "{} and {} tests pass; only one of them: [{}]",
        one.passed,
        other.passed,
        only.join(", ")
    ))
}

/// The tests in the kernel, with the committed object or another one.
fn run(scratch: &Path, object: Option<&Path>) -> Result<Outcome> {
    let mut command = cargo();
    // Of the whole workspace: what cargo builds of fewer packages, it builds anew.
    command.args(["test", "--workspace", "--no-fail-fast", "--test", "kernel"]);
    command.env(HOSTILE.0, HOSTILE.1);
    match object {
        Some(object) => command.env(OBJECT, object),
        None => command.env_remove(OBJECT),
    };
    suites::run(&mut command, scratch)
}

/// Builds and strips; returns the object's path below the target directory.
fn build(tools: &Tools) -> Result<PathBuf> {
    let target = Metadata::of_members()?.target_directory.join("ebpf");
    child::run(&mut tools.cargo_build(&root().join("agentd-ebpf"), &target)?)?;
    let linked = target.join("bpfel-unknown-none/release/agentd-ebpf");
    let object = target.join("agentd.bpf.o");
    child::run(tools.strip().arg("-g").arg("-o").arg(&object).arg(&linked))?;
    Ok(object)
}

fn is_committed(object: &Path) -> Result<bool> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    Ok(read(object)? == read(&root().join(COMMITTED))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_differ_by_what_only_one_of_them_did() {
        let mut one = Outcome {
            passed: 2,
            ..Outcome::default()
        };
        let mut other = one.clone();
        one.skip(Skip::new("bpf-exec", "one reason"));
        other.skip(Skip::new("bpf-exec", "another"));
        assert_eq!(difference(&one, &other), None);
        other.fail("net::revoked");
        let said = difference(&one, &other).expect("a difference");
        assert!(said.contains("[failed net::revoked]"), "{said}");
    }
}
