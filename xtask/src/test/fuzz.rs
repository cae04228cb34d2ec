//! The fuzz tier: every input that was ever kept goes through its target, then libFuzzer looks for
//! new ones for a few seconds each.
//!
//! `fuzz/` has cargo-fuzz's layout, but a smoke run needs neither cargo-fuzz nor a nightly
//! toolchain: the flags that it would pass (coverage by sancov, AddressSanitizer from the
//! toolchain's own run time) are given here, with `RUSTC_BOOTSTRAP` for the one that stable keeps
//! back. libFuzzer is C++, so a C++ compiler is needed; without one, or without the sanitizer's run
//! time, this part is a counted skip. What libFuzzer finds stays in a scratch directory; an input
//! that fails is kept in the target directory, and its path is in the failure.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use super::needs::which;
use super::skips::Skip;
use super::suites;
use super::tier::Outcome;
use crate::child::{self, Child, outcome};
use crate::workspace::{Metadata, cargo, root};

/// How libFuzzer looks for new inputs of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    pub seconds: u64,
    /// 0: another one each time.
    pub seed: u32,
}

impl Search {
    /// What everybody runs: about the same way each time, so that a commit is judged by what it changes.
    pub const SMOKE: Search = Search {
        seconds: 2,
        seed: 1,
    };

    pub const fn afresh(seconds: u64) -> Search {
        Search { seconds, seed: 0 }
    }
}

/// A single input that takes longer hangs.
const SECONDS_PER_INPUT: u64 = 20;
/// A target that has not ended so long after its time hangs outside of its inputs.
const WATCHDOG: Duration = Duration::from_secs(120);
/// The only one that agentd runs on as yet. Naming it keeps the flags away from build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What cargo-fuzz passes.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Zsanitizer=address -Ccodegen-units=1 --cfg fuzzing";

pub fn tier(scratch: &Path, search: Search) -> Result<Outcome> {
    let manifest = root().join("fuzz/Cargo.toml");
    let target = Metadata::of_members()?.target_directory.join("fuzz");
    let lacking = lacking()?;
    let mut replay = cargo();
    replay.args(["test", "--lib", "--manifest-path"]);
    replay.arg(&manifest).env("CARGO_TARGET_DIR", &target);
    if lacking.is_none() {
        // In the build of the programs below, so that what they depend on is compiled once.
        instrumented(replay.arg("--release"));
    } else {
        replay.arg("--no-default-features");
    }
    let mut result = suites::run(&mut replay, scratch)?;
    match interpreted(&manifest, &target, scratch)? {
        Some(outcome) => result.absorb(outcome),
        None => result.skip(Skip::new(
            "miri",
            "no Miri in the nightly toolchain; get it with: rustup component add --toolchain nightly miri rust-src",
        )),
    }
    if let Some(why) = lacking {
        result.skip(Skip::new("fuzz", why));
        return Ok(result);
    }
    let mut build = cargo();
    build.args(["build", "--release", "--bins", "--manifest-path"]);
    build.arg(&manifest).env("CARGO_TARGET_DIR", &target);
    child::run(instrumented(&mut build))?;
    let names = targets()?;
    let next = AtomicUsize::new(0);
    // Each keeps one core busy for its time.
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let worker = || -> Result<Outcome> {
        let mut done = Outcome::default();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            match fuzz(name, &target, scratch, search)? {
                None => done.pass(),
                Some(failure) => done.fail(failure),
            }
        }
        Ok(done)
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(worker)).collect();
        for worker in workers {
            result.absorb(worker.join().expect("a worker does not panic")?);
        }
        Ok(result)
    })
}

/// With the flags that cargo-fuzz would pass.
fn instrumented(command: &mut Command) -> &mut Command {
    command
        .args(["--target", TRIPLE])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", FLAGS)
}

/// The kept inputs of the targets over shared memory, on their heap backend, under Miri with strict
/// provenance; `None`: there is no Miri.
fn interpreted(manifest: &Path, target: &Path, scratch: &Path) -> Result<Option<Outcome>> {
    // Not `cargo()`: that is one toolchain's own program, and only rustup's finds another.
    let miri = || {
        let mut command = Command::new("cargo");
        command
            .args(["+nightly", "miri"])
            .env_remove("RUSTUP_TOOLCHAIN");
        command
    };
    let is_there = miri()
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !is_there {
        return Ok(None);
    }
    let only =
        "arena_reader lane_consumer lane_open lane_producer log_attach log_reader log_writer view";
    suites::run(
        miri()
            .args(["test", "--no-default-features", "--lib", "--manifest-path"])
            .arg(manifest)
            .env("CARGO_TARGET_DIR", target)
            .env(
                "MIRIFLAGS",
                "-Zmiri-strict-provenance -Zmiri-disable-isolation",
            )
            .env("AGENTD_FUZZ_ONLY", only),
        scratch,
    )
    .map(Some)
}

/// What keeps libFuzzer from being built here, and what would help.
fn lacking() -> Result<Option<String>> {
    if which("c++").is_none() {
        let why = "no C++ compiler for libFuzzer; install one with: sudo apt-get install -y g++";
        return Ok(Some(why.to_owned()));
    }
    let libraries = child::capture(Command::new("rustc").args(["--print", "target-libdir"]))?;
    let has_runtime = Path::new(libraries.trim())
        .read_dir()
        .with_context(|| format!("list {}", libraries.trim()))?
        .filter_map(Result::ok)
        .any(|file| file.file_name().to_string_lossy().contains("_rt.asan"));
    Ok((!has_runtime).then(|| {
        "this Rust toolchain comes without AddressSanitizer's run time; use one from rustup"
            .to_owned()
    }))
}

/// The programs in `fuzz/fuzz_targets`, by name.
fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for file in directory
        .read_dir()
        .with_context(|| format!("list {}", directory.display()))?
    {
        let path = file?.path();
        if let Some(name) = path.file_stem() {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Fuzzes one target; the failure, if there is one.
fn fuzz(name: &str, target: &Path, scratch: &Path, search: Search) -> Result<Option<String>> {
    let found = scratch.join("fuzz").join(name);
    let kept = target.join("artifacts").join(name);
    for directory in [&found, &kept] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("make {}", directory.display()))?;
    }
    let program: PathBuf = target.join(TRIPLE).join("release").join(name);
    let log = scratch.join("fuzz").join(format!("{name}.log"));
    let output = std::fs::File::create(&log).with_context(|| format!("make {}", log.display()))?;
    let mut command = Command::new(program);
    command
        .arg(format!("-max_total_time={}", search.seconds))
        .arg(format!("-seed={}", search.seed))
        .arg(format!("-timeout={SECONDS_PER_INPUT}"))
        .arg("-rss_limit_mb=2048")
        .arg(format!("-artifact_prefix={}/", kept.display()))
        .arg(&found)
        .arg(root().join("fuzz/corpus").join(name))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output);
    let mut child = Child::start(name, &mut command)?;
    let ended = child.wait(WATCHDOG + Duration::from_secs(search.seconds))?;
    drop(child);
    let said = std::fs::read(&log).with_context(|| format!("read {}", log.display()))?;
    let said = String::from_utf8_lossy(&said);
    let how = match ended {
        Some(status) if status.success() => {
            eprintln!(
                "fuzz {name}: {}",
                said.lines().next_back().unwrap_or_default()
            );
            return Ok(None);
        }
        Some(status) => outcome(status),
        None => format!("did not end within {WATCHDOG:?} of its time"),
    };
    eprint!("{said}");
    Ok(Some(format!(
        "{name}: {how}; the input is in {}; copy it to fuzz/crashes/{name}/ to keep it from coming back",
        kept.display()
    )))
}
