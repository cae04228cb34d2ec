//! The real Claude Code for `cargo xtask demo --claude`: installed from npm at a pinned version, into the target
//! directory, by the ordinary npm client.
//!
//! It is a native binary in a package of its own; the npm wrapper is not used, since an old Node would make npm pick
//! an old version of it. Runs as the caller, writes only below `target/tools`. Without npm the error names the
//! command that installs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::{capture, run};
use crate::test::needs::which;
use crate::workspace::Metadata;

/// The version that the driver is tested with.
pub const VERSION: &str = "2.1.329";

/// The binary, installed if it is not there yet.
pub fn install() -> Result<PathBuf> {
    let place = Metadata::of_members()?
        .target_directory
        .join("tools/claude")
        .join(VERSION);
    let package = platform_package()?;
    let binary = place.join("node_modules").join(package).join("claude");
    if !binary.exists() {
        if which("npm").is_none() {
            bail!(
                "npm is not installed, and Claude Code comes from npm: sudo apt-get install -y npm"
            );
        }
        eprintln!(
            "installing {package} {VERSION} from npm into {}",
            place.display()
        );
        std::fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
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
            .arg(&place)
            .arg(format!("{package}@{VERSION}"))
            .stdout(std::io::stderr()))?;
    }
    check_version(&binary, &place)?;
    Ok(binary)
}

fn platform_package() -> Result<&'static str> {
    match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => Ok("@anthropic-ai/claude-code-linux-x64"),
        (os, arch) => bail!("agentd runs on linux x86_64 only so far, not on {os} {arch}"),
    }
}

/// Asks the binary itself; `home` keeps it away from the caller's own settings.
fn check_version(binary: &Path, home: &Path) -> Result<()> {
    let said = capture(
        Command::new(binary)
            .arg("--version")
            .env("HOME", home)
            .env("DISABLE_AUTOUPDATER", "1"),
    )?;
    if said.split_whitespace().next() != Some(VERSION) {
        bail!(
            "{} says it is {}, wanted {VERSION}; remove it and run again",
            binary.display(),
            said.trim()
        );
    }
    Ok(())
}
