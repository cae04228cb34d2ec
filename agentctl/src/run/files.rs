//! Patterns of `[tools] deny` held against what the workspace has, as the caller, before a launch.
//!
//! What matches now goes into the launch as settings of `[fs]`, so that the kernel hides or keeps it from every program in
//! the sandbox. What comes later is the driver's. A link is passed by: what it leads to has a name of its own. What is in
//! `.git` is git's.

use std::path::{Path, PathBuf};

use agentd_sandbox::{EffectivePolicy, FileGlob};

use crate::failure::Failure;

/// More files than this are no workspace to look through at each launch.
const MOST_ENTRIES: usize = 500_000;
/// Each match becomes a mount.
const MOST_MATCHES: usize = 256;

/// `fs.deny=PATH` and `fs.protect=PATH` for what matches.
pub fn settings(
    policy: &EffectivePolicy,
    workspace: &Path,
) -> Result<Vec<(String, String)>, Failure> {
    let globs = policy.tools.file_globs();
    let mut found = Vec::new();
    if globs.is_empty() {
        return Ok(found);
    }
    let mut seen = 0;
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        // What we can't list, the agent can't either: it has our rights at most.
        let Ok(entries) = workspace.join(&folder).read_dir() else {
            continue;
        };
        for entry in entries.flatten() {
            seen += 1;
            if seen > MOST_ENTRIES {
                return Err(too_much(
                    workspace,
                    &globs,
                    "there are more than 500000 files",
                ));
            }
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let path = folder.join(entry.file_name());
            if kind.is_symlink() || path == Path::new(".git") {
                continue;
            }
            let name = path.to_string_lossy();
            match globs.iter().find(|g| g.matches(&name)) {
                Some(glob) => {
                    let whole = workspace.join(&path).to_string_lossy().into_owned();
                    found.push((glob.key.to_owned(), whole));
                    if found.len() > MOST_MATCHES {
                        return Err(too_much(workspace, &globs, "more than 256 files match"));
                    }
                }
                None if kind.is_dir() => folders.push(path),
                None => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

fn too_much(workspace: &Path, globs: &[FileGlob], why: &str) -> Failure {
    let rules: Vec<&str> = globs.iter().map(|g| g.rule.text.as_str()).collect();
    let what = format!("can't hold {} in {}", rules.join(", "), workspace.display());
    Failure::usage(what, why).try_next(
        "name the folder in the rule, such as Read(secrets/**), or the file under fs.deny",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_sandbox::{PolicyRef, Sources};

    fn policy(deny: &str) -> EffectivePolicy {
        let text = format!("[fs]\nwrite = [\"${{workspace}}\"]\n[tools]\ndeny = [{deny}]\n");
        let origin = "test.toml".to_owned();
        EffectivePolicy::load(&PolicyRef::Text { origin, text }, &Sources::default())
            .expect("loads")
    }

    #[test]
    fn what_matches_is_denied_or_protected_and_links_are_passed_by() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |path: &str| dir.path().join(path);
        for path in ["a/b", ".git", "secrets-old/x"] {
            std::fs::create_dir_all(at(path)).expect("mkdir");
        }
        for path in [
            ".env.local",
            "a/b/.env",
            "a/main.rs",
            "a/Cargo.lock",
            ".git/.env",
            "secrets-old/key",
        ] {
            std::fs::write(at(path), "x").expect("write");
        }
        std::os::unix::fs::symlink("/etc/passwd", at("a/.env.link")).expect("link");
        let found = settings(
            &policy("\"Read(.env*)\", \"Edit(*.lock)\", \"Read(secrets*)\""),
            dir.path(),
        )
        .expect("few");
        let expected = [
            ("fs.deny", ".env.local"),
            ("fs.deny", "a/b/.env"),
            ("fs.deny", "secrets-old"),
            ("fs.protect", "a/Cargo.lock"),
        ];
        let expected: Vec<(String, String)> = expected
            .iter()
            .map(|(k, p)| ((*k).to_owned(), at(p).display().to_string()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(
            settings(&policy("\"Read(secrets/**)\""), dir.path()).expect("none"),
            []
        );
        for n in 0..=MOST_MATCHES {
            std::fs::write(at(&format!("a/{n}.pem")), "x").expect("write");
        }
        let error = settings(&policy("\"Read(*.pem)\""), dir.path()).expect_err("too many");
        assert!(
            error.to_string().contains("more than 256 files match"),
            "{error}"
        );
    }
}
