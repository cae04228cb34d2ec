//! A process that contenders need beside their two ends: a broker, a media driver.
//!
//! Not pinned, same scheduling class. Started once, waited for by a line of its output, killed and reaped on drop, and
//! dead at the latest when its parent is (PR_SET_PDEATHSIG).

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

/// A running helper.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    /// Kept open: its further output goes here, unread.
    _output: Box<dyn std::fmt::Debug>,
    said: String,
    leftover: Option<PathBuf>,
}

impl Helper {
    /// Its output up to the line that said it was ready.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Starts `command` and waits until a line of its standard output has `ready` in it.
    pub fn start(command: &mut Command, ready: &str) -> Result<Self> {
        let child = spawn(command.stdout(Stdio::piped()))?;
        let mut helper = Self::of(child);
        let output = helper.child.stdout.take().context("its output is piped")?;
        helper.wait_for(output, ready, command)?;
        Ok(helper)
    }

    /// As [`Self::start`], for a helper that talks on standard error.
    pub fn start_by_stderr(command: &mut Command, ready: &str) -> Result<Self> {
        let child = spawn(command.stdout(Stdio::null()).stderr(Stdio::piped()))?;
        let mut helper = Self::of(child);
        let output = helper.child.stderr.take().context("its output is piped")?;
        helper.wait_for(output, ready, command)?;
        Ok(helper)
    }

    /// Also removes `directory` when it ends.
    #[must_use]
    pub fn removing(mut self, directory: PathBuf) -> Self {
        self.leftover = Some(directory);
        self
    }

    fn of(child: Child) -> Self {
        Self {
            child,
            _output: Box::new(()),
            said: String::new(),
            leftover: None,
        }
    }

    fn wait_for<R>(&mut self, output: R, ready: &str, command: &Command) -> Result<()>
    where
        R: Read + std::fmt::Debug + 'static,
    {
        let mut output = BufReader::new(output);
        let mut said = String::new();
        loop {
            let before = said.len();
            if output.read_line(&mut said).context("read its output")? == 0 {
                bail!(
                    "{} ended before it was ready: {}",
                    command.get_program().to_string_lossy(),
                    said.trim()
                );
            }
            if said[before..].contains(ready) {
                self._output = Box::new(output);
                self.said = said;
                return Ok(());
            }
        }
    }
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::null());
    // SAFETY: between fork and exec this makes one system call and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(Into::into)
        });
    }
    let name = command.get_program().to_string_lossy().into_owned();
    command.spawn().with_context(|| format!("start {name}"))
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            eprintln!("end a helper: {error}");
        }
        if let Some(directory) = &self.leftover
            && let Err(error) = std::fs::remove_dir_all(directory)
        {
            eprintln!("remove {}: {error}", directory.display());
        }
    }
}
