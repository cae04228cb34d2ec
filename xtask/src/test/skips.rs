//! Skips: the third outcome of a test. Which there were, and whether this machine was allowed them.
//!
//! Tests report skips through `agentd_testkit::skip`, which appends one line to the file named by
//! `AGENTD_SKIP_LOG`. The set of features that may not be skipped comes from `AGENTD_TEST_EXPECT` (a comma list) or,
//! in CI (`CI=true`), from the committed `.ci/expect`. Parsing is pure; a malformed line is an error, since a lost
//! skip would count as a pass.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

const PREFIX: &str = "agentd-skip: ";

/// One skip: what the machine lacks, and the reason given.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Skip {
    pub feature: String,
    pub why: String,
}

impl Skip {
    pub fn new(feature: &str, why: impl Into<String>) -> Self {
        Self {
            feature: feature.to_owned(),
            why: why.into(),
        }
    }
}

/// Reads the skip log of one tier; no file means no skip.
pub fn read_log(path: &Path) -> Result<Vec<Skip>> {
    match std::fs::read_to_string(path) {
        Ok(text) => parse_log(&text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn parse_log(text: &str) -> Result<Vec<Skip>> {
    text.lines()
        .map(|line| {
            let rest = line
                .strip_prefix(PREFIX)
                .with_context(|| format!("not a skip line: {line:?}"))?;
            let (feature, why) = rest
                .split_once(": ")
                .with_context(|| format!("a skip without a reason: {line:?}"))?;
            Ok(Skip::new(feature, why))
        })
        .collect()
}

/// The reasons of many skips in one line: equal features together, the first reason for each.
pub fn summary(skips: &[Skip]) -> String {
    let mut by_feature: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for skip in skips {
        by_feature.entry(&skip.feature).or_insert((0, &skip.why)).0 += 1;
    }
    by_feature
        .iter()
        .map(|(feature, (count, why))| match count {
            1 => format!("{feature}: {why}"),
            _ => format!("{feature} ×{count}: {why}"),
        })
        .collect::<Vec<_>>()
        .join("; ")
}

/// The features that this machine must not skip.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    all: bool,
    named: BTreeSet<String>,
    excepted: BTreeSet<String>,
}

impl Expected {
    /// From the environment: `AGENTD_TEST_EXPECT`, else `.ci/expect` where `CI=true`, else nothing.
    pub fn from_env(root: &Path) -> Result<Self> {
        if let Ok(list) = std::env::var("AGENTD_TEST_EXPECT") {
            return Self::parse(&list.replace(',', "\n")).context("AGENTD_TEST_EXPECT");
        }
        if std::env::var("CI").as_deref() != Ok("true") {
            return Ok(Self::default());
        }
        Self::committed(root)
    }

    /// From the committed `.ci/expect`.
    pub fn committed(root: &Path) -> Result<Self> {
        let path = root.join(".ci/expect");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    /// One entry a line: a feature, `all`, or `-feature` (may be skipped although `all` is expected); `#` comments.
    fn parse(text: &str) -> Result<Self> {
        let mut expected = Self::default();
        for line in text.lines() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if entry.contains(char::is_whitespace) {
                bail!("{entry:?}: one feature a line, `all`, or `-feature`");
            }
            match entry.strip_prefix('-') {
                Some(feature) => drop(expected.excepted.insert(feature.to_owned())),
                None if entry == "all" => expected.all = true,
                None if entry.is_empty() => {}
                None => drop(expected.named.insert(entry.to_owned())),
            }
        }
        Ok(expected)
    }

    /// Whether a skip of `feature` fails the run.
    pub fn forbids(&self, feature: &str) -> bool {
        self.named.contains(feature) || (self.all && !self.excepted.contains(feature))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_line_without_a_reason_is_an_error() {
        assert!(parse_log("agentd-skip: root\n").is_err());
        assert!(parse_log("something else\n").is_err());
        assert_eq!(
            parse_log("agentd-skip: root: needs root [in a::b]\n").expect("a skip"),
            [Skip::new("root", "needs root [in a::b]")]
        );
    }

    #[test]
    fn equal_features_are_told_once_with_their_number() {
        let skips = [
            Skip::new("root", "no root"),
            Skip::new("bwrap", "not found"),
            Skip::new("root", "no root"),
        ];
        assert_eq!(summary(&skips), "bwrap: not found; root ×2: no root");
    }

    #[test]
    fn all_forbids_every_skip_but_the_excepted() {
        let expected = Expected::parse("# CI\nall\n-gpu # none there\n").expect("parses");
        assert!(expected.forbids("root"));
        assert!(!expected.forbids("gpu"));
    }

    #[test]
    fn a_list_forbids_only_what_it_names() {
        let expected = Expected::parse("root\nbwrap").expect("parses");
        assert!(expected.forbids("bwrap") && !expected.forbids("tmux"));
        assert!(!Expected::default().forbids("root"));
        assert!(Expected::parse("root bwrap").is_err());
    }
}
