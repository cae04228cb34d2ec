//! The ordinary user of verbs that root runs in user mode too: a bare uid without a passwd entry, and copies of the
//! programs where it can reach them.
//!
//! [`Somebody::xtask`] is this very program, run again as that user. Everything is in one temporary directory, gone when
//! [`Somebody`] is dropped. Needs root; fails with the name of the file that could not be placed.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::child::capture;
use crate::lab::Programs;
use crate::workspace::root;

/// The uid that plays the ordinary user.
const UID: u32 = 61234;
const PROGRAMS: [&str; 5] = [
    "agentd",
    "agentctl",
    "agentd-broker",
    "model-standin",
    "small-agent",
];
/// What runs now, whatever became of its path.
const OWN_PROGRAM: &str = "/proc/self/exe";
const SYSTEM_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A directory that the ordinary user can read, with a home in it.
pub struct Somebody {
    directory: tempfile::TempDir,
    path: String,
}

impl Somebody {
    /// Copies programs and test kit.
    pub fn make(programs: &Programs) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("agentd-user-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("make a directory for the ordinary user")?;
        let somebody = Self {
            directory,
            path: SYSTEM_PATH.to_owned(),
        };
        for name in PROGRAMS {
            place(&programs.path(name), &somebody.file(name))?;
        }
        place_self(&somebody.file("xtask"))?;
        capture(
            Command::new("cp")
                .arg("-r")
                .arg(root().join("tests/kit"))
                .arg(somebody.file("kit")),
        )
        .context("copy the test kit")?;
        let home = somebody.home();
        std::fs::create_dir(&home).with_context(|| format!("make {}", home.display()))?;
        std::os::unix::fs::chown(&home, Some(UID), Some(UID))
            .with_context(|| format!("give away {}", home.display()))?;
        Ok(somebody)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn home(&self) -> PathBuf {
        self.file("home")
    }

    /// Gives the user the caller's Rust toolchain, by hard links: its own home is where a policy looks for one.
    pub fn lend_rust(&mut self) -> Result<()> {
        let sysroot = capture(Command::new("rustc").args(["--print", "sysroot"]))?;
        let sysroot = Path::new(sysroot.trim());
        let lent = self.home().join(".rustup/toolchains/lent");
        std::fs::create_dir_all(&lent).with_context(|| format!("make {}", lent.display()))?;
        for part in ["bin", "lib", "libexec"] {
            let from = sysroot.join(part);
            if !from.exists() {
                continue;
            }
            capture(Command::new("cp").arg("-al").arg(&from).arg(&lent))
                .with_context(|| format!("link {} into {}", from.display(), lent.display()))?;
        }
        self.path = format!("{}:{SYSTEM_PATH}", lent.join("bin").display());
        Ok(())
    }

    /// `xtask VERB…` as the ordinary user would start it, with the programs that were copied.
    pub fn xtask(&self, verb: &[&str]) -> Command {
        let uid = UID.to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &uid, "--regid", &uid])
            .args(["--clear-groups", "--inh-caps=-all", "--"])
            .arg(self.file("xtask"))
            .args(verb)
            .arg("--bin-dir")
            .arg(self.directory.path())
            .current_dir(self.home())
            .env_clear()
            .env("PATH", &self.path)
            .env("HOME", self.home());
        command
    }
}

/// Copies this program: the unit tier may build xtask anew meanwhile, and then the path under which it was started is gone.
pub fn place_self(to: &Path) -> Result<()> {
    place(Path::new(OWN_PROGRAM), to)
}

/// Copies one file, with its mode.
pub fn place(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to)
        .with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
