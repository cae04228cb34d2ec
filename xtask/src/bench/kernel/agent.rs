//! An agent of the lab that takes orders from one FIFO of its workspace and answers by another.
//!
//! Neither is agentd's, so what is measured of agentd is not in the orders' way.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, mkfifoat};

use crate::child;
use crate::lab::Lab;

pub struct Obedient<'a> {
    lab: &'a Lab,
    name: String,
    work: PathBuf,
}

impl<'a> Obedient<'a> {
    /// Runs `script` by perl under `coding`, in a workspace of its own with the FIFOs `ask` and `answer`.
    pub fn start(lab: &'a Lab, name: &str, script: &str) -> Result<Self> {
        Self::start_under(lab, OsStr::new("coding"), name, script)
    }

    /// The same under another policy.
    pub fn start_under(lab: &'a Lab, policy: &OsStr, name: &str, script: &str) -> Result<Self> {
        let work = lab.directory().join(name);
        std::fs::create_dir(&work).context("make the workspace")?;
        for fifo in ["ask", "answer"] {
            mkfifoat(CWD, work.join(fifo), Mode::from(0o600)).context("make a fifo")?;
        }
        let mut run = lab.agentctl();
        run.args(["run", "--detach", "--no-tty", "--policy"])
            .arg(policy)
            .arg("--name")
            .arg(name)
            .arg("--workspace")
            .arg(&work)
            .args(["--", "perl", "-e", script]);
        child::capture(&mut run)?;
        Ok(Self {
            lab,
            name: name.to_owned(),
            work,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells a program where the FIFOs are, by options of these names.
    pub fn pass(&self, command: &mut Command, ask: &str, answer: &str) {
        command.arg(ask).arg(self.work.join("ask"));
        command.arg(answer).arg(self.work.join("answer"));
    }

    pub fn end(self) -> Result<()> {
        child::capture(self.lab.agentctl().args(["kill", &self.name]))?;
        std::fs::remove_dir_all(&self.work).context("remove the workspace")?;
        // Between two agents is where a Ctrl-C is heard.
        crate::stop::check()
    }
}
