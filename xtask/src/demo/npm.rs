//! Real agents for the demo and the tests: installed from npm at pinned versions, into the target directory, by the
//! ordinary npm client.
//!
//! They are native binaries in packages of their own; the npm wrappers are not used, since an old Node would make npm
//! pick an old version. Runs as the caller, writes only below `target/tools`. Without npm the error names the command
//! that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{capture, run};
use crate::test::needs::which;
use crate::workspace::Metadata;

/// A program from npm.
#[derive(Debug)]
pub struct Agent {
    /// For messages.
    pub title: &'static str,
    /// Its directory below `target/tools`.
    directory: &'static str,
    /// The version that the driver is tested with.
    pub version: &'static str,
    /// The package of its linux x86_64 binary.
    package: &'static str,
    /// What stands behind the package's `@`.
    tag: &'static str,
    /// The binary in the package.
    binary: &'static str,
    /// Environment in which it does nothing but say its version.
    quiet: (&'static str, &'static str),
}

pub const CLAUDE: Agent = Agent {
    title: "Claude Code",
    directory: "claude",
    version: "2.1.329",
    package: "@anthropic-ai/claude-code-linux-x64",
    tag: "2.1.329",
    binary: "claude",
    quiet: ("DISABLE_AUTOUPDATER", "1"),
};

pub const CODEX: Agent = Agent {
    title: "Codex",
    directory: "codex",
    version: "0.169.0",
    package: "@openai/codex",
    tag: "0.169.0-linux-x64",
    binary: "vendor/x86_64-unknown-linux-musl/bin/codex",
    quiet: ("CODEX_HOME", "/nonexistent"),
};

/// The build that needs no AVX2.
pub const OPENCODE: Agent = Agent {
    title: "opencode",
    directory: "opencode",
    version: "1.18.33",
    package: "opencode-linux-x64-baseline",
    tag: "1.18.33",
    binary: "bin/opencode",
    quiet: ("OPENCODE_DISABLE_AUTOUPDATE", "1"),
};

/// Claude Code's sandbox as a command of its own, a peer of `bench launch`. A script for Node.
pub const SANDBOX_RUNTIME: Agent = Agent {
    title: "sandbox-runtime",
    directory: "srt",
    version: "0.0.83",
    package: "@anthropic-ai/sandbox-runtime",
    tag: "0.0.83",
    binary: "dist/cli.js",
    quiet: ("NODE_NO_WARNINGS", "1"),
};

impl Agent {
    /// The binary, installed if it is not there yet.
    pub fn install(&self) -> Result<PathBuf> {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("agentd runs on linux x86_64 only so far");
        }
        let place = Metadata::of_members()?
            .target_directory
            .join("tools")
            .join(self.directory)
            .join(self.version);
        let package = place.join("node_modules").join(self.package);
        let binary = package.join(self.binary);
        if !binary.exists() {
            self.fetch(&place)?;
        }
        self.check_version(&binary, &place)?;
        Ok(binary)
    }

    fn fetch(&self, place: &Path) -> Result<()> {
        if which("npm").is_none() {
            bail!(
                "npm is not installed, and {} comes from npm: sudo apt-get install -y npm",
                self.title
            );
        }
        eprintln!(
            "installing {} {} from npm into {}",
            self.title,
            self.version,
            place.display()
        );
        std::fs::create_dir_all(place).with_context(|| format!("make {}", place.display()))?;
        run(Command::new("npm")
            .args([
                "install",
                "--no-save",
                "--no-audit",
                "--no-fund",
                "--loglevel",
                "error",
                "--prefix",
            ])
            .arg(place)
            .arg(format!("{}@{}", self.package, self.tag))
            .stdout(std::io::stderr()))
    }

    /// Asks the binary itself; `home` keeps it away from the caller's own settings.
    fn check_version(&self, binary: &Path, home: &Path) -> Result<()> {
        let (name, value) = self.quiet;
        let said = capture(
            Command::new(binary)
                .arg("--version")
                .env("HOME", home)
                .env(name, value),
        )?;
        if !said.split_whitespace().any(|word| word == self.version) {
            bail!(
                "{} says it is {}, wanted {}; remove it and run again",
                binary.display(),
                said.trim(),
                self.version
            );
        }
        Ok(())
    }
}
