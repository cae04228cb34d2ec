//! The shipped systemd units, as systemd-analyze judges them; a counted skip where it is not installed.
//!
//! Works on copies in which our programs are `/bin/true`, since units are verified against what is installed. The exit
//! code of `systemd-analyze verify` is 0 for unknown keys, so anything on stderr is a failure.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::child::capture_any;
use crate::lab::Programs;
use crate::systemd::install;
use crate::test::needs::which;
use crate::workspace::root;

/// The exposure that agentd's unit may have at most, on systemd-analyze's scale of 0 to 10, times ten.
const AGENTD_THRESHOLD: &str = "20";

/// Whether systemd-analyze is there.
pub fn available() -> bool {
    which("systemd-analyze").is_some()
}

/// Every unit verified, and agentd's exposure below its threshold.
pub fn check() -> Result<()> {
    install::check_units(&install::items(&Programs::in_directory(root())?)?)?;
    let scratch = tempfile::tempdir().context("make a temporary directory")?;
    let at = scratch.path();
    verify(&root().join("systemd/system"), at, &[])?;
    std::fs::create_dir(at.join("user")).context("make a temporary directory")?;
    verify(&root().join("systemd/user"), &at.join("user"), &["--user"])?;
    let mut security = Command::new("systemd-analyze");
    security
        .args(["security", "--offline=yes", "--no-pager"])
        .arg(format!("--threshold={AGENTD_THRESHOLD}"))
        .arg(at.join("agentd.service"));
    let output = capture_any(&mut security)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let verdict = said
        .lines()
        .rfind(|line| !line.is_empty())
        .unwrap_or_default();
    if !output.status.success() {
        bail!("agentd.service is more exposed than {AGENTD_THRESHOLD} tenths: {verdict}");
    }
    eprintln!("{verdict}");
    Ok(())
}

fn verify(from: &Path, to: &Path, options: &[&str]) -> Result<()> {
    let mut copies = Vec::new();
    for entry in std::fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let path = entry
            .with_context(|| format!("list {}", from.display()))?
            .path();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let copy = to.join(path.file_name().context("a unit without a name")?);
        std::fs::write(&copy, with_stand_ins(&text)).context("write a copy of a unit")?;
        copies.push(copy);
    }
    let mut command = Command::new("systemd-analyze");
    command
        .args(["verify", "--man=no"])
        .args(options)
        // A user manager wants to know where its sockets would be.
        .env("XDG_RUNTIME_DIR", to)
        .args(&copies);
    let output = capture_any(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.trim().is_empty() || !output.status.success() {
        bail!("systemd-analyze verify: {}", said.trim());
    }
    Ok(())
}

/// `text` with our programs replaced by one that every host has.
fn with_stand_ins(text: &str) -> String {
    text.lines()
        .map(|line| match line.split_once("/usr/bin/agent") {
            Some((before, after)) if line.starts_with("Exec") => {
                let arguments = after.split_once(' ').map_or("", |(_, rest)| rest);
                format!("{before}/bin/true {arguments}\n")
            }
            _ => format!("{line}\n"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_programs_are_replaced() {
        let text = "ExecStartPre=+/usr/bin/agentd --probe-host /x\nExecReload=/bin/kill -HUP $MAINPID\nUser=agentd\n";
        assert_eq!(
            with_stand_ins(text),
            "ExecStartPre=+/bin/true --probe-host /x\nExecReload=/bin/kill -HUP $MAINPID\nUser=agentd\n"
        );
    }
}
