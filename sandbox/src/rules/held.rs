//! Which of `[tools]` the kernel holds, and how.
//!
//! A rule about files that says *no* becomes a rule of `[fs]`: then it holds for every program of the sandbox, and not only
//! for the tool. A list of allowed tools among which none runs commands becomes one about what may be written. All else
//! is the driver's: what a command line means, what is asked for, which tool of another kind is used.
//!
//! A path, or all below a folder (`secrets/**`), is held as it is written, also where it is not there yet. Any other pattern is
//! held for what exists when the launch is prepared: whoever prepares it looks ([`FileGlob::matches`]).

use super::tools::{ToolRule, ToolRules, subject_matches};
use crate::policy::{PathBase, PathTemplate, Valued};
use serde::Serialize;

/// Who holds a rule of `[tools]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldBy {
    /// The kernel, for every program; the driver says it to the model as well.
    Kernel,
    /// The kernel for the files that are there when the launch is prepared, the driver for those that come later.
    KernelAtStart,
    /// The driver alone: manners, not a boundary.
    Driver,
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::KernelAtStart => "kernel, for files there at the start; driver",
            Self::Driver => "driver",
        })
    }
}

/// A pattern to be held against the files that are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileGlob {
    /// The key of `[fs]` that what matches goes under: `fs.deny` or `fs.protect`.
    pub key: &'static str,
    pub rule: ToolRule,
}

impl FileGlob {
    /// Whether this is about the file or folder at `path`, relative to the workspace.
    pub fn matches(&self, path: &str) -> bool {
        let pattern = self.rule.pattern.as_deref().unwrap_or_default();
        subject_matches(pattern, path)
    }
}

/// What `[tools]` adds to `[fs]`.
#[derive(Debug, Default)]
pub(crate) struct FileRules {
    pub deny: Vec<Valued<PathTemplate>>,
    pub protect: Vec<Valued<PathTemplate>>,
    /// All that may be written of the workspace, where the list of allowed tools says so.
    pub write: Option<Vec<Valued<PathTemplate>>>,
}

/// Tools that change the files that they name.
const WRITERS: [&str; 4] = ["Write", "Edit", "MultiEdit", "NotebookEdit"];
/// Tools that run nothing, so that a list of these alone says all that happens.
const RUN_NOTHING: [&str; 10] = [
    "Read",
    "Write",
    "Edit",
    "MultiEdit",
    "NotebookEdit",
    "Glob",
    "Grep",
    "LS",
    "TodoWrite",
    "WebSearch",
];

/// The key of `[fs]` that a denied use of this tool is about.
fn key_of(rule: &ToolRule) -> Option<&'static str> {
    match rule.tool.as_str() {
        "Read" => Some("fs.deny"),
        tool if WRITERS.contains(&tool) => Some("fs.protect"),
        _ => None,
    }
}

/// The one place that a pattern names: a path, or all below a folder.
fn place(pattern: &str) -> Option<PathTemplate> {
    let whole = pattern
        .strip_suffix("/**")
        .or_else(|| pattern.strip_suffix("/*"));
    let (path, slash) = match whole {
        Some(folder) => (folder, "/"),
        None => (pattern, ""),
    };
    let path = path.strip_prefix("./").unwrap_or(path);
    let absolute = path.starts_with(['/', '~', '$']);
    let base = if absolute { "" } else { "${workspace}/" };
    PathTemplate::parse(&format!("{base}{path}{slash}")).ok()
}

/// Whether the pattern is about the last component wherever it is, so about more than one place.
fn is_about_names(pattern: &str) -> bool {
    !pattern.contains('/')
}

impl ToolRules {
    /// Whether the list of allowed tools says all that can be written.
    fn says_all_writes(&self) -> bool {
        let writes = |r: &&ToolRule| WRITERS.contains(&r.tool.as_str());
        let placed = |r: &ToolRule| r.pattern.as_deref().and_then(place).is_some();
        !self.allow.is_empty()
            && self.ask.is_empty()
            && self
                .allow
                .iter()
                .all(|r| RUN_NOTHING.contains(&r.tool.as_str()))
            && self.allow.iter().filter(writes).all(placed)
    }

    /// What of these rules is held by `[fs]` as it is written.
    pub(crate) fn file_rules(&self) -> FileRules {
        let mut found = FileRules::default();
        let valued = |rule: &ToolRule| {
            let path = place(rule.pattern.as_deref()?)?;
            Some(Valued::new(path, rule.origin.clone()))
        };
        for rule in &self.deny {
            match (key_of(rule), valued(rule)) {
                (Some("fs.deny"), Some(path)) => found.deny.push(path),
                (Some(_), Some(path)) => found.protect.push(path),
                _ => {}
            }
        }
        if self.says_all_writes() {
            let writers = self
                .allow
                .iter()
                .filter(|r| WRITERS.contains(&r.tool.as_str()));
            found.write = Some(writers.filter_map(valued).collect());
        }
        found
    }

    /// The patterns that are to be held against what is there.
    pub fn file_globs(&self) -> Vec<FileGlob> {
        let glob = |rule: &ToolRule| {
            let key = key_of(rule)?;
            let pattern = rule.pattern.as_deref()?;
            let open = place(pattern).is_none() || is_about_names(pattern);
            open.then(|| FileGlob {
                key,
                rule: rule.clone(),
            })
        };
        self.deny.iter().filter_map(glob).collect()
    }

    /// Who holds the rule of this text in this list (`tools.deny`, …).
    pub(crate) fn held_by(&self, list: &str, text: &str) -> HeldBy {
        let same = |r: &&ToolRule| r.text == text;
        match list {
            "tools.deny" => {
                let Some(rule) = self.deny.iter().find(same) else {
                    return HeldBy::Driver;
                };
                match (key_of(rule), rule.pattern.as_deref()) {
                    (Some(_), Some(pattern)) if is_about_names(pattern) => HeldBy::KernelAtStart,
                    (Some(_), Some(pattern)) if place(pattern).is_some() => HeldBy::Kernel,
                    (Some(_), Some(_)) => HeldBy::KernelAtStart,
                    _ => HeldBy::Driver,
                }
            }
            "tools.allow" if self.says_all_writes() => {
                let rule = self.allow.iter().find(same);
                match rule.is_some_and(|r| WRITERS.contains(&r.tool.as_str())) {
                    true => HeldBy::Kernel,
                    false => HeldBy::Driver,
                }
            }
            _ => HeldBy::Driver,
        }
    }
}

/// Lays what the tools' rules say over the files'.
pub(crate) fn apply(rules: FileRules, fs: &mut crate::policy::FsRules) {
    fs.deny.extend(rules.deny);
    fs.protect.extend(rules.protect);
    let Some(write) = rules.write else { return };
    let is_workspace = |p: &PathTemplate| p.base == PathBase::Workspace;
    let (inside, elsewhere) = std::mem::take(&mut fs.write)
        .into_iter()
        .partition(|l| is_workspace(&l.value));
    // What was writable is still shown; what is writable now has to have been so before.
    let inside: Vec<Valued<PathTemplate>> = inside;
    fs.write = elsewhere;
    let was = |path: &PathTemplate| {
        let below = |outer: &str| {
            outer.is_empty() || path.rest == outer || path.rest.starts_with(&format!("{outer}/"))
        };
        is_workspace(path) && inside.iter().any(|l| below(&l.value.rest))
    };
    fs.write.extend(write.into_iter().filter(|l| was(&l.value)));
    fs.read.extend(inside);
}

#[cfg(test)]
mod tests {
    use crate::policy::{EffectivePolicy, PolicyRef, Sources};

    fn load(tools: &str) -> EffectivePolicy {
        let text = format!("[fs]\nwrite = [\"${{workspace}}\"]\n[tools]\n{tools}\n");
        let origin = "example.toml".to_owned();
        EffectivePolicy::load(&PolicyRef::Text { origin, text }, &Sources::default())
            .expect("loads")
    }

    fn paths(list: &[super::Valued<super::PathTemplate>]) -> Vec<String> {
        list.iter()
            .map(|l| format!("{} {}", l.value, l.origin))
            .collect()
    }

    #[test]
    fn what_denies_files_becomes_a_rule_about_files() {
        let policy = load(
            "deny = [\"Read(.env)\", \"Read(secrets/**)\", \"Read(/srv/key)\", \"Write(src/gen.rs)\", \"Edit(*.lock)\", \"Read(.env*)\",\n\
             \"Bash(rm *)\", \"Read\", \"mcp__fs__read(/x)\"]",
        );
        assert_eq!(
            paths(&policy.fs.deny),
            [
                "${workspace}/.env example.toml:4",
                "${workspace}/secrets/ example.toml:4",
                "/srv/key example.toml:4"
            ]
        );
        assert_eq!(
            paths(&policy.fs.protect),
            ["${workspace}/src/gen.rs example.toml:4"]
        );
        let globs = policy.tools.file_globs();
        let texts: Vec<&str> = globs.iter().map(|g| g.rule.text.as_str()).collect();
        assert_eq!(texts, ["Read(.env)", "Edit(*.lock)", "Read(.env*)"]);
        assert!(globs[0].matches("sub/.env") && !globs[0].matches("sub/.envrc"));
        assert!(globs[2].matches("a/b/.env.local") && globs[1].matches("Cargo.lock"));
        let held: Vec<String> = policy
            .shown
            .iter()
            .filter_map(|s| Some(format!("{} {}", s.value, s.held_by?)))
            .collect();
        for expected in [
            "\"Read(.env)\" kernel, for files there at the start; driver",
            "\"Read(secrets/**)\" kernel",
            "\"Write(src/gen.rs)\" kernel",
            "\"Bash(rm *)\" driver",
            "\"Read\" driver",
            "\"mcp__fs__read(/x)\" driver",
        ] {
            assert!(held.iter().any(|h| h == expected), "{expected}: {held:#?}");
        }
        assert!(
            policy.show().contains("# example.toml:5 (driver)"),
            "{}",
            policy.show()
        );
    }

    #[test]
    fn a_list_of_tools_that_run_nothing_says_what_can_be_written() {
        let policy =
            load("allow = [\"Read\", \"Write(src/**)\", \"Edit(src/**)\", \"Write(/etc/x)\"]");
        assert_eq!(
            paths(&policy.fs.write),
            [
                "${workspace}/src/ example.toml:4",
                "${workspace}/src/ example.toml:4"
            ]
        );
        assert_eq!(paths(&policy.fs.read), ["${workspace} example.toml:2"]);
        // A shell writes what it likes, so the list does not say it all.
        for open in ["\"Bash(make *)\"", "\"mcp__*\"", "\"Write(*.rs)\""] {
            let policy = load(&format!("allow = [\"Write(src/**)\", {open}]"));
            assert_eq!(
                paths(&policy.fs.write),
                ["${workspace} example.toml:2"],
                "{open}"
            );
        }
        let reads = load("allow = [\"Read\", \"Grep\"]");
        assert!(reads.fs.write.is_empty());
    }
}
