//! Programs from the distribution that tests use, installed where we may, named where we may not.
//!
//! As root on Debian and Ubuntu, what is missing is installed by apt; anyone else is told the command, and the tests
//! that need it skip with a reason. Nothing is ever downloaded except through the distribution's own packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::child;

/// A program, the Debian package that has it, and what it is used for.
#[derive(Debug)]
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 11] = [
    Need {
        program: "git",
        package: "git",
        why: "the demo's repository",
    },
    Need {
        program: "bwrap",
        package: "bubblewrap",
        why: "the peer of the launch benchmark",
    },
    Need {
        program: "tmux",
        package: "tmux",
        why: "the terminal test of agentctl run",
    },
    Need {
        program: "python3",
        package: "python3",
        why: "the demo's failing test",
    },
    Need {
        program: "setpriv",
        package: "util-linux",
        why: "running as an ordinary user",
    },
    Need {
        program: "npm",
        package: "npm",
        why: "installing the real agents for the claude, codex and acp tiers",
    },
    Need {
        program: "c++",
        package: "g++",
        why: "libFuzzer, for the fuzz tier",
    },
    Need {
        program: "systemd-analyze",
        package: "systemd",
        why: "agentd as a service, and the checks of its units",
    },
    Need {
        program: "dbus-daemon",
        package: "dbus",
        why: "agentd on the system bus",
    },
    Need {
        program: "pkcheck",
        package: "polkitd",
        why: "agentd on the system bus",
    },
    Need {
        program: "runsc",
        package: "runsc",
        why: "agents under gVisor",
    },
];

/// An error that names the command, for each of `programs` that is not there.
pub fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| programs.contains(&need.program) && which(need.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = missing
        .iter()
        .map(|need| format!("{} ({})", need.program, need.why))
        .collect();
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    bail!(
        "missing: {}; install with: sudo apt-get install -y {}",
        names.join(", "),
        packages.join(" ")
    )
}

/// Installs what is missing, or says how.
pub fn install_missing() -> Result<()> {
    let missing: Vec<&Need> = NEEDS
        .iter()
        .filter(|need| which(need.program).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {} ({}): {}", need.program, need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if let Err(error) = apt_install(&packages) {
        // Not the end: each test that needs one of them skips by itself, and CI's expectations catch that.
        eprintln!("{error:#}");
        if packages.len() > 1 && rustix::process::geteuid().is_root() {
            // A distribution without one of them may have the others.
            for package in packages {
                if let Err(error) = apt_install(&[package]) {
                    eprintln!("{package}: {error:#}");
                }
            }
        }
    }
    Ok(())
}

/// Installs packages where we may; elsewhere the error is the command.
pub fn apt_install(packages: &[&str]) -> Result<()> {
    const INSTALL: [&str; 3] = ["install", "-y", "--no-install-recommends"];
    if !rustix::process::geteuid().is_root() || which("apt-get").is_none() {
        bail!(
            "install them with: sudo apt-get {} {}",
            INSTALL.join(" "),
            packages.join(" ")
        );
    }
    let apt = |arguments: &[&str]| {
        child::run(
            Command::new("apt-get")
                .args(["-o", "DPkg::Lock::Timeout=120"])
                .args(arguments)
                .env("DEBIAN_FRONTEND", "noninteractive")
                // Standard output is for what the verb itself has to say.
                .stdout(std::io::stderr()),
        )
    };
    apt(&["update"])?;
    apt(&[&INSTALL, packages].concat())
}

/// Where `program` is on the PATH.
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
