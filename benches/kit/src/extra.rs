//! A contender as a program of its own, so that what it needs to be built stays out of the driver.
//!
//! The driver runs `PROGRAM TASK` for each sample, TASK being a [`Task`](crate::measure::Task) in JSON; the program
//! prints one [`Sample`](crate::measure::Sample) in JSON. Anything that goes wrong is on its standard error.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::measure::{Sample, Task};

/// `main` of such a program, which takes its samples by `sample`.
pub fn serve(sample: impl FnOnce(&Task) -> Result<Sample>) -> ExitCode {
    match answer(sample) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "the sample is this program's data")]
fn answer(sample: impl FnOnce(&Task) -> Result<Sample>) -> Result<()> {
    let text = std::env::args()
        .nth(1)
        .context("this program is run by the driver, with a task in JSON")?;
    let task: Task = serde_json::from_str(&text).context("read the task")?;
    let sample = sample(&task)?;
    println!("{}", serde_json::to_string(&sample).context("write it")?);
    Ok(())
}

/// The program `name` beside the one that runs.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let path = own.parent().unwrap_or(Path::new(".")).join(name);
    if !path.is_file() {
        bail!("{} is not built", path.display());
    }
    Ok(path)
}

/// Takes one sample through another program.
pub fn ask(program: &Path, task: &Task) -> Result<Sample> {
    let text = serde_json::to_string(task).context("write the task")?;
    let output = Command::new(program)
        .arg(text)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", program.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{}", said.trim().trim_start_matches("error: "));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} said", program.display()))
}
