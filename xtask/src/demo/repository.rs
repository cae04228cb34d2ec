//! The repository that the demo's agents work on: the fixture with its failing test, as a git repository.
//!
//! Made below the lab's directory, owned by the caller, with one commit. The test command is run here as the caller
//! before and after; what the agents say about it counts for nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::child::{capture, capture_any, line};

/// How the fixture's test is run, in the repository.
const TEST: [&str; 4] = ["python3", "-m", "unittest", "-q"];

/// A git repository made from the fixture.
#[derive(Debug)]
pub struct Repository(PathBuf);

impl Repository {
    /// Copies `fixture` to `place` and commits it.
    pub fn make(fixture: &Path, place: &Path) -> Result<Self> {
        copy(fixture, place)?;
        let repository = Self(place.to_owned());
        repository.git(&["init", "--quiet", "--initial-branch", "main"])?;
        repository.git(&["add", "."])?;
        repository.git(&["commit", "--quiet", "-m", "A program with a failing test"])?;
        Ok(repository)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The test's command line, for messages.
    pub fn test_line() -> String {
        TEST.join(" ")
    }

    /// Runs the test; whether it passes.
    pub fn test_passes(&self) -> Result<bool> {
        let mut command = Command::new(TEST[0]);
        // No bytecode: the next run must see what the sources say now.
        command
            .args(&TEST[1..])
            .current_dir(&self.0)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null());
        let output = capture_any(&mut command)?;
        match output.status.code() {
            Some(0) => Ok(true),
            // What unittest exits with when a test failed; anything else is trouble of another kind.
            Some(1) => Ok(false),
            _ => bail!(
                "{} in {}: {}",
                line(&command),
                self.0.display(),
                String::from_utf8_lossy(&output.stderr)
            ),
        }
    }

    /// What the agents changed.
    pub fn diff(&self) -> Result<String> {
        self.git(&["diff", "HEAD"])
    }

    fn git(&self, arguments: &[&str]) -> Result<String> {
        // Whoever runs the demo may have no identity set up, or hooks and signing that would get in the way.
        let settings = [
            "user.name=agentd demo",
            "user.email=demo@localhost",
            "commit.gpgsign=false",
            "core.hooksPath=/dev/null",
            "safe.directory=*",
        ];
        let mut command = Command::new("git");
        for setting in settings {
            command.args(["-c", setting]);
        }
        capture(command.args(arguments).current_dir(&self.0))
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to).with_context(|| format!("make {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let target = to.join(entry.file_name());
        if entry
            .file_type()
            .with_context(|| format!("look at {}", entry.path().display()))?
            .is_dir()
        {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)
                .with_context(|| format!("copy to {}", target.display()))?;
        }
    }
    Ok(())
}
