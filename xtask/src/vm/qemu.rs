//! QEMU without KVM: one machine, from power-on to power-off, and what it said.
//!
//! The machine's own `qemu-system-x86_64` where there is one, else a private copy from the release's backports or the
//! release itself. A boot is dead when its console has no end marker; kernel warnings and panics on the console are
//! findings of their own. Runs with the caller's rights and touches no image: writes go to an overlay that QEMU drops.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::apt::{Apt, Installed, Suite, own_release};
use super::cache::Cache;
use crate::child::{self, Child};
use crate::test::needs::which;

const PROGRAM: &str = "qemu-system-x86_64";

/// What the guest's init writes when the tests are through: `agentd-vm: end CODE`.
const END: &str = "agentd-vm: end ";

/// What the kernel says when something is wrong with it, or what init says when it can't go on.
const TROUBLE: [&str; 9] = [
    "Kernel panic",
    "BUG:",
    "Oops:",
    "WARNING: CPU",
    "general protection fault",
    "unable to handle",
    "blocked for more than",
    "soft lockup",
    "agentd-vm: can't",
];

/// A boot that takes longer hangs: a watchdog, never a pace.
const WATCHDOG: Duration = Duration::from_secs(30 * 60);

/// A QEMU that runs here.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    /// Of a private copy: its root directory.
    tree: Option<PathBuf>,
}

/// What a machine boots from.
#[derive(Debug)]
pub struct Boot<'a> {
    pub kernel: &'a Path,
    pub initrd: &'a Path,
    pub root: &'a Path,
    pub programs: &'a Path,
    /// Kernel parameters, then after `--` the arguments of the guest's tests.
    pub parameters: &'a str,
    /// Where the console's text and other files of the run go.
    pub directory: &'a Path,
}

/// What came of a boot.
#[derive(Debug)]
pub struct Ran {
    /// The lines of the guest's tests.
    pub lines: Vec<String>,
    /// The exit code of the guest's tests; `None` for a dead boot.
    pub end: Option<i32>,
    /// Lines of the console that show trouble.
    pub trouble: Vec<String>,
    pub console: PathBuf,
    pub took: Duration,
}

impl Qemu {
    /// The machine's own, else a private copy in the cache.
    pub fn get(cache: &Cache) -> Result<Self> {
        if let Some(program) = which(PROGRAM) {
            return Ok(Self {
                program,
                tree: None,
            });
        }
        let tree = cache.once("qemu", (own_release()?, 1), |at| {
            eprintln!("vm: {PROGRAM} is not installed: fetching a private copy");
            let scratch = tempfile::tempdir_in(at).context("make a directory")?;
            let from = |suite, name| {
                Apt::open(&scratch.path().join(name), suite)?.unpack_closure(
                    &["qemu-system-x86"],
                    Installed::ThisMachine,
                    at,
                )
            };
            // Emulation is steadier in newer versions; what the release has will do.
            from(Suite::OwnBackports, "backports").or_else(|why| {
                eprintln!("vm: none from the backports: {why:#}");
                from(Suite::Own, "own")
            })
        })?;
        let qemu = Self {
            program: tree.join("usr/bin").join(PROGRAM),
            tree: Some(tree),
        };
        qemu.version()?;
        Ok(qemu)
    }

    /// `QEMU emulator version 10.0.2 …`, its first line.
    pub fn version(&self) -> Result<String> {
        let said = child::capture(self.command().arg("--version"))?;
        Ok(said.lines().next().unwrap_or_default().to_owned())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(tree) = &self.tree {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
                .map(|part| tree.join(part).display().to_string())
                .join(":");
            command.env("LD_LIBRARY_PATH", libraries);
            for part in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(tree.join(part));
            }
        }
        command
    }

    /// Powers a machine on and waits until it is off; each line of its tests is passed to `line` as it comes.
    pub fn run(&self, boot: &Boot<'_>, mut line: impl FnMut(&str)) -> Result<Ran> {
        let console = boot.directory.join("console.log");
        let mut command = self.command();
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg,tb-size=256",
                "-cpu",
                "max",
            ])
            .args(["-smp", "1", "-m", "1536", "-no-reboot", "-snapshot"])
            .arg("-kernel")
            .arg(boot.kernel)
            .arg("-initrd")
            .arg(boot.initrd)
            .args(["-append", boot.parameters]);
        for (id, image) in [("root", boot.root), ("programs", boot.programs)] {
            command
                .arg("-drive")
                .arg(format!(
                    "file={},if=none,id={id},format=raw,cache=unsafe",
                    image.display()
                ))
                .arg("-device")
                .arg(format!("virtio-blk-pci,drive={id}"));
        }
        command
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .env("TMPDIR", boot.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(
                std::fs::File::create(boot.directory.join("qemu.log")).context("make qemu.log")?,
            );
        let begun = Instant::now();
        let mut machine = Child::start("qemu", &mut command)?;
        let output = machine
            .take_stdout()
            .context("qemu's standard output is not piped")?;
        let (send, receive) = mpsc::channel();
        // Ends with QEMU, or with the receiver.
        std::thread::spawn(move || {
            for text in BufReader::new(output).split(b'\n') {
                let Ok(text) = text else { return };
                if send
                    .send(String::from_utf8_lossy(&text).trim().to_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        let mut lines = Vec::new();
        while let Ok(text) = next(&receive, begun + WATCHDOG) {
            crate::stop::check()?;
            match text {
                Some(text) if !text.is_empty() => {
                    line(&text);
                    lines.push(text);
                }
                _ => {}
            }
            if begun.elapsed() > WATCHDOG {
                break;
            }
        }
        let ended = machine.wait((begun + WATCHDOG).saturating_duration_since(Instant::now()))?;
        if let Some(status) = ended
            && !status.success()
        {
            let said = std::fs::read_to_string(boot.directory.join("qemu.log")).unwrap_or_default();
            bail!("{PROGRAM}: {}\n{}", child::outcome(status), said.trim_end());
        }
        drop(machine);
        let text = std::fs::read(&console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        Ok(Ran {
            lines,
            end: end_of(&text),
            trouble: trouble_in(&text),
            console,
            took: begun.elapsed(),
        })
    }
}

/// The next line within a short while; an error at the end of the lines.
fn next(
    lines: &mpsc::Receiver<String>,
    deadline: Instant,
) -> Result<Option<String>, mpsc::RecvTimeoutError> {
    // Short waits only so that Ctrl-C is noticed; the line itself is the event.
    let step = Duration::from_millis(500).min(deadline.saturating_duration_since(Instant::now()));
    match lines.recv_timeout(step) {
        Ok(line) => Ok(Some(line)),
        Err(mpsc::RecvTimeoutError::Timeout) => Ok(None),
        Err(end) => Err(end),
    }
}

/// The code behind the end marker.
fn end_of(console: &str) -> Option<i32> {
    console
        .lines()
        .rev()
        .find_map(|line| line.split_once(END))
        .and_then(|(_, code)| code.trim().parse().ok())
}

/// The console's lines that show trouble.
fn trouble_in(console: &str) -> Vec<String> {
    console
        .lines()
        .filter(|line| TROUBLE.iter().any(|sign| line.contains(sign)))
        .map(|line| line.trim().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_without_the_marker_is_a_dead_boot() {
        assert_eq!(end_of("[ 1.0] booting\n"), None);
        assert_eq!(
            end_of("x\nagentd-vm: end 3\r\n[ 9.1] reboot: Power down\n"),
            Some(3)
        );
        assert_eq!(end_of("agentd-vm: end \n"), None);
    }

    #[test]
    fn warnings_and_panics_are_found_and_ordinary_lines_are_not() {
        let console = "[ 0.1] Linux version 6.1\n[ 2.0] WARNING: CPU: 0 PID: 1 at x.c:1\r\n\
                       [ 2.1] Kernel panic - not syncing\nbug: none\n";
        assert_eq!(
            trouble_in(console),
            [
                "[ 2.0] WARNING: CPU: 0 PID: 1 at x.c:1",
                "[ 2.1] Kernel panic - not syncing"
            ]
        );
    }
}
