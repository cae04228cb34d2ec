//! One session: the sandbox's command, as the caller, with the secret in its environment and stray descriptors open.
//!
//! Reads the lines that come out, and waits for the end with a watchdog. After the end, what is still alive is found by
//! the run's mark in its arguments, given the half second that a kernel may need to end a pid namespace, and ended.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Options;
use crate::case::Case;
use crate::report::Line;
use crate::victims::Victims;

/// A session that takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(600);
/// How long the dead may take to be gone.
const GRACE: Duration = Duration::from_millis(500);
/// How long what was written may take to be read on a busy machine, where its pipe does not simply end.
const READING: Duration = Duration::from_secs(10);
/// The end of what the session said on standard error.
const WORDS: usize = 2000;

#[derive(Debug)]
pub struct Ended {
    pub lines: Vec<Line>,
    pub how: String,
}

/// `words` are those by which `cases` were selected, and by which the inside selects them again.
pub fn run(
    options: &Options,
    victims: &Victims,
    cases: &[Case],
    words: &[String],
) -> std::io::Result<Ended> {
    let mut command = command(options, victims, words)?;
    let mut child = command.spawn()?;
    let stdout = child.stdout.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let mut stderr = child.stderr.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    let (said, hear) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            if let Ok(line) = serde_json::from_slice::<Line>(&line)
                && said.send(line).is_err()
            {
                return;
            }
        }
    });
    let (told, listen) = mpsc::channel();
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let read = stderr.read_to_end(&mut text);
        // Nobody listens any more once the watchdog has ended the session.
        drop(read.map(|_| told.send(text)));
    });

    let deadline = Instant::now() + WATCHDOG;
    let (waited, status) = mpsc::channel();
    let pid = child.id();
    std::thread::spawn(move || waited.send(child.wait()));
    let how = match status.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        Ok(Ok(status)) if status.success() => "ended".to_owned(),
        Ok(Ok(status)) => format!("{status}"),
        Ok(Err(error)) => format!("could not be waited for: {error}"),
        Err(_) => {
            if let Ok(pid) = i32::try_from(pid) {
                // SAFETY: the child leads a group of its own and is not reaped yet.
                unsafe { libc::kill(-pid, libc::SIGKILL) };
            }
            format!("no end within {WATCHDOG:?}")
        }
    };
    // What was written before the end is in the pipe; something that lives on may hold it open.
    let mut lines = Vec::new();
    while let Ok(line) = hear.recv_timeout(READING) {
        lines.push(line);
    }
    let words = listen.recv_timeout(READING).unwrap_or_default();
    let words = String::from_utf8_lossy(&words[words.len().saturating_sub(WORDS)..]).into_owned();
    let how = match (lines.len() == cases.len(), words.trim()) {
        (true, _) | (_, "") => how,
        (false, words) => format!("{how}; it said: {words}"),
    };
    await_deaths(&victims.scene.mark);
    Ok(Ended { lines, how })
}

fn command(options: &Options, victims: &Victims, selected: &[String]) -> std::io::Result<Command> {
    let scene = serde_json::to_string(&victims.scene)?;
    let place = |path: &std::path::Path| path.display().to_string();
    let whole = ["{program}", "inside", "{scene}", "{cases}"].map(str::to_owned);
    let template: &[String] = if options.command.is_empty() {
        &whole
    } else {
        &options.command
    };
    let mut words = Vec::new();
    for word in template {
        if word == "{cases}" {
            words.extend(selected.iter().cloned());
            continue;
        }
        words.push(
            word.replace("{program}", &place(&victims.scene.program))
                .replace("{work}", &place(&victims.scene.work))
                .replace("{shared}", &place(&victims.scene.shared))
                .replace("{home}", &place(&victims.scene.home))
                .replace("{scene}", &scene),
        );
    }
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .current_dir(&victims.scene.work)
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", &victims.scene.home)
        .env("TERM", "dumb")
        .envs(victims.environment())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(options.uid).gid(options.uid);
    }
    let numbers = victims.descriptors.numbers();
    // SAFETY: between fork and exec only dup2 is called, on numbers made before.
    unsafe {
        command.pre_exec(move || {
            for (open, wanted) in &numbers {
                if libc::dup2(*open, *wanted) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    Ok(command)
}

/// Processes whose arguments hold this mark as a word of their own.
pub fn living(mark: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word == mark.as_bytes())
            })
        })
        .collect()
}

/// Processes of any case of this run.
fn survivors(mark: &str) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let prefix = format!("{mark}-");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
                line.split(|byte| *byte == 0)
                    .any(|word| word.starts_with(prefix.as_bytes()))
            })
        })
        .collect()
}

fn await_deaths(mark: &str) {
    let deadline = Instant::now() + GRACE;
    while !survivors(mark).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Ends what outlived its session.
pub fn end_survivors(mark: &str) {
    for pid in survivors(mark) {
        // SAFETY: a signal to a process that carries this run's mark.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}
