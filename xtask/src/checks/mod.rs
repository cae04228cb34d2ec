//! The checks that need no test program: format, lints, crate arrows, generated files, documents.
//!
//! Each is also a verb or part of one, so that a person can run the one that failed. They only read the tree, apart
//! from cargo's own target directory.

pub mod deps;
pub mod documents;
pub mod generated;
mod units;

use anyhow::Result;

use crate::child::{capture_any, run};
use crate::test::{Outcome, Skip};
use crate::workspace::cargo;

/// Runs every check; each one counts as one test.
pub fn all() -> Result<Outcome> {
    let mut outcome = Outcome::default();
    component(&mut outcome, "fmt", "rustfmt", &["fmt", "--all", "--check"])?;
    component(
        &mut outcome,
        "clippy",
        "clippy",
        &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--quiet",
            "--keep-going",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    count(&mut outcome, "check-deps", deps::check());
    count(
        &mut outcome,
        "gen --check",
        generated::generate(generated::Mode::Check),
    );
    count(&mut outcome, "documents", documents::check());
    if units::available() {
        count(&mut outcome, "units", units::check());
    } else {
        outcome.skip(Skip::new(
            "systemd-analyze",
            "not installed; with apt: apt-get install -y systemd",
        ));
    }
    Ok(outcome)
}

/// A check done by a rustup component, which a distribution's Rust may lack.
fn component(outcome: &mut Outcome, name: &str, component: &str, arguments: &[&str]) -> Result<()> {
    let there = capture_any(cargo().args([arguments[0], "--version"]))?
        .status
        .success();
    if there {
        count(outcome, name, run(cargo().args(arguments)));
    } else {
        outcome.skip(Skip::new(
            component,
            format!("not installed; with rustup: rustup component add {component}"),
        ));
    }
    Ok(())
}

fn count(outcome: &mut Outcome, name: &str, result: Result<()>) {
    match result {
        Ok(()) => {
            eprintln!("check {name}: ok");
            outcome.pass();
        }
        Err(error) => {
            eprintln!("check {name}: {error:#}");
            outcome.fail(format!("{name}: {error:#}"));
        }
    }
}
