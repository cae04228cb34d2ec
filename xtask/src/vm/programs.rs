//! What of the project runs in a guest: its programs, the tests of launcher, eBPF programs and the
//! kernel's audit, the attack suite, and this program itself.
//!
//! Built here as every other tier builds them, so a warm run compiles nothing. The guest has this
//! machine's own C library.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::attack::suite::Suite;
use crate::child::capture;
use crate::lab::{Profile, Programs};
use crate::workspace::cargo;

const NAMES: [&str; 3] = ["agentd", "agentd-broker", "agentctl"];

/// Builds everything: name in the guest, file here.
pub fn build() -> Result<Vec<(String, PathBuf)>> {
    let programs = Programs::build(Profile::Debug)?;
    let mut files: Vec<(String, PathBuf)> = NAMES
        .iter()
        .map(|name| ((*name).to_owned(), programs.path(name)))
        .collect();
    for (name, target) in TESTS {
        files.push((name.to_owned(), tests(target)?));
    }
    let suite = Suite::build()?;
    files.push(("agentd-escape".to_owned(), suite.program().to_owned()));
    files.push(own()?);
    Ok(files)
}

/// Programs, and the tests by their names in the guest, that somebody put into a directory with the attack suite.
pub fn in_directory(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let programs = Programs::in_directory(directory)?;
    let mut files: Vec<(String, PathBuf)> = NAMES
        .iter()
        .chain(TESTS.iter().map(|(name, _)| name))
        .chain(&["agentd-escape"])
        .map(|name| ((*name).to_owned(), programs.path(name)))
        .collect();
    files.push(own()?);
    Ok(files)
}

fn own() -> Result<(String, PathBuf)> {
    // The program that runs, also if another has been built in its place meanwhile.
    Ok(("xtask".to_owned(), PathBuf::from("/proc/self/exe")))
}

/// Test programs: name in the guest, target.
const TESTS: [(&str, &str); 3] = [
    ("launch-tests", "launch"),
    ("kernel-tests", "kernel"),
    ("audit-tests", "e2e"),
];

/// Builds a test program and asks cargo where it is.
fn tests(target: &str) -> Result<PathBuf> {
    let said = capture(cargo().args([
        "test",
        "--no-run",
        "--message-format=json",
        "--workspace",
        "--test",
        target,
    ]))?;
    test_program(&said).with_context(|| format!("cargo named no test program {target}"))
}

/// The program of the last test target in cargo's messages.
fn test_program(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["profile"]["test"] == true)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_program_is_the_one_that_cargo_names() {
        let messages = "{\"reason\":\"compiler-artifact\",\"profile\":{\"test\":false},\"executable\":\"/a\"}\n\
                        {\"reason\":\"compiler-artifact\",\"profile\":{\"test\":true},\"executable\":\"/b\"}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(test_program(messages), Some(PathBuf::from("/b")));
        assert_eq!(test_program("{}\n"), None);
    }
}
