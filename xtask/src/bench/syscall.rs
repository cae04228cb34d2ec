//! `bench syscall`: what the layers cost a program that does nothing but work.
//!
//! The same command, inside under `coding` in a direct workspace and outside in the same directory,
//! one after the other: `git status` on 50,000 files, which is system calls, and a small offline
//! `cargo build`, which is processes. Compared is the processor time, user and system, of the
//! command and all its children, as the kernel accounts it; so neither the launch nor other load
//! counts. Each side is one process ([`DRIVER`]) that runs the command whenever it is told to. A
//! ratio is taken of each pair.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::report::{Report, median};
use super::{Effort, WATCHDOG};
use crate::child::{Child, capture, run};
use crate::lab::{Lab, Programs, Setup, read_line};
use crate::test::needs::{self, which};

const LIMIT: f64 = 1.03;
const PAIRS: usize = 31;
/// Never fewer: a median of less says nothing.
const LEAST_PAIRS: usize = 7;
const FILES: usize = 50_000;
const FILES_PER_FOLDER: usize = 100;

/// `driver.py FOLDER PROGRAM…`: for each line of input removes FOLDER, if there is one, runs the program, and prints the
/// microseconds of processor time that it and its children took. A program that fails ends it.
const DRIVER: &str = r#"
import resource, shutil, subprocess, sys
def used():
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
print("up", flush=True)
for line in sys.stdin:
    if sys.argv[1]: shutil.rmtree(sys.argv[1], ignore_errors=True)
    before = used()
    ended = subprocess.run(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if ended.returncode != 0: sys.exit(f"{sys.argv[2:]} ended with {ended.returncode}")
    print(round((used() - before) * 1e6), flush=True)
"#;

pub fn measure(report: &mut Report, programs: Programs, effort: Effort) -> Result<()> {
    needs::require(&["git", "python3"])?;
    let lab = Lab::start(programs, &Setup::default())?;
    let pairs = effort.rounds(PAIRS).max(LEAST_PAIRS);
    let mut all = Vec::new();
    for task in [git(&lab)?, cargo(&lab)?] {
        let Some(task) = task else {
            report.skip(
                "syscall.cargo",
                "there is no Rust toolchain: https://rustup.rs",
            );
            continue;
        };
        all.push((task.name, compare(&lab, &task, pairs)?));
    }
    // The promise is about both, so the worse one is its figure.
    let worse = all
        .iter()
        .map(|(_, taken)| taken.ratios())
        .max_by(|a, b| f64::total_cmp(&middle(a), &middle(b)));
    report.row("syscall", "×", &worse.unwrap_or_default(), Some(LIMIT));
    for (name, taken) in &all {
        report.row(&format!("syscall.{name}"), "×", &taken.ratios(), None);
        report.row(&format!("syscall.{name}.inside"), "ms", &taken.inside, None);
        report.row(
            &format!("syscall.{name}.outside"),
            "ms",
            &taken.outside,
            None,
        );
    }
    Ok(())
}

fn middle(samples: &[f64]) -> f64 {
    median(samples).map_or(f64::NAN, |(value, _)| value)
}

/// A command in a directory of the caller's.
struct Task {
    name: &'static str,
    workspace: PathBuf,
    /// Removed before each run; empty for none.
    fresh: &'static str,
    argv: Vec<String>,
}

fn git(lab: &Lab) -> Result<Option<Task>> {
    let workspace = lab.directory().join("syscall-git");
    for folder in 0..FILES / FILES_PER_FOLDER {
        let folder = workspace.join(format!("{}/{folder}", folder % 16));
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        for file in 0..FILES_PER_FOLDER {
            let path = folder.join(format!("{file}.txt"));
            std::fs::write(&path, file.to_string())
                .with_context(|| format!("write {}", path.display()))?;
        }
    }
    let program = which("git").context("git is gone")?.display().to_string();
    let git = |arguments: &[&str]| {
        run(Command::new(&program)
            .args(["-c", "gc.auto=0", "-c", "core.hooksPath=/dev/null"])
            .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
            .args(arguments)
            .current_dir(&workspace))
    };
    git(&["init", "--quiet"])?;
    // A root caller has another uid inside. git would take that for a change of each file, and read them all.
    git(&["config", "core.checkStat", "minimal"])?;
    git(&["add", "."])?;
    git(&["commit", "--quiet", "-m", "many files"])?;
    // Neither side is to write an index that the other then finds renewed.
    let words = [&program, "--no-optional-locks", "status", "--porcelain"];
    Ok(Some(Task {
        name: "git",
        workspace,
        fresh: "",
        argv: words.map(str::to_owned).to_vec(),
    }))
}

/// A crate with a dependency, a build script and a test program's worth of code.
fn cargo(lab: &Lab) -> Result<Option<Task>> {
    let Ok(sysroot) = capture(Command::new("rustc").args(["--print", "sysroot"])) else {
        return Ok(None);
    };
    // The toolchain's own programs: rustup's proxies would only add themselves.
    let bin = Path::new(sysroot.trim()).join("bin");
    let workspace = lab.directory().join("syscall-cargo");
    let package = |name: &str, rest: &str| {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2021\"\n{rest}")
    };
    let functions: String = (0..200)
        .map(|n| format!("pub fn f{n}(text: &str) -> Vec<String> {{ text.split({n}u8 as char).map(str::to_uppercase).collect() }}\n"))
        .collect();
    for (path, text) in [
        (
            "Cargo.toml",
            package(
                "app",
                "[dependencies]\npart = { path = \"part\" }\n[workspace]\n",
            ),
        ),
        (
            "src/main.rs",
            "fn main() { println!(\"{} {:?}\", env!(\"MADE\"), part::f7(\"a\")); }\n".to_owned(),
        ),
        (
            "build.rs",
            "fn main() { println!(\"cargo::rustc-env=MADE=yes\"); }\n".to_owned(),
        ),
        ("part/Cargo.toml", package("part", "")),
        ("part/src/lib.rs", functions),
    ] {
        let path = workspace.join(path);
        let folder = path.parent().context("a file is in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    let argv = [
        "env".to_owned(),
        format!("RUSTC={}", bin.join("rustc").display()),
        "CARGO_TARGET_DIR=target".to_owned(),
        bin.join("cargo").display().to_string(),
        "build".to_owned(),
        "--offline".to_owned(),
        "--quiet".to_owned(),
    ];
    Ok(Some(Task {
        name: "cargo",
        workspace,
        fresh: "target",
        argv: argv.to_vec(),
    }))
}

/// Processor time of each run, in ms.
struct Taken {
    inside: Vec<f64>,
    outside: Vec<f64>,
}

impl Taken {
    fn ratios(&self) -> Vec<f64> {
        let pairs = self.inside.iter().zip(&self.outside);
        pairs.map(|(inside, outside)| inside / outside).collect()
    }
}

fn compare(lab: &Lab, task: &Task, pairs: usize) -> Result<Taken> {
    let words = |command: &mut Command| {
        command
            .args(["python3", "-c", DRIVER, task.fresh])
            .args(&task.argv);
    };
    let mut inside = lab.agentctl();
    inside
        .args([
            "run",
            "--policy",
            "coding",
            "--name",
            task.name,
            "--workspace",
        ])
        .arg(&task.workspace)
        .arg("--");
    words(&mut inside);
    let mut outside = Command::new("env");
    words(&mut outside);
    outside.current_dir(&task.workspace);
    let mut inside = Driver::start(&mut inside)?;
    let mut outside = Driver::start(&mut outside)?;

    // What the first runs find cold counts for neither.
    inside.once()?;
    outside.once()?;
    let mut taken = Taken {
        inside: Vec::new(),
        outside: Vec::new(),
    };
    for pair in 0..pairs {
        // Whoever comes first finds what the other left in the caches: each does as often.
        if pair % 2 == 0 {
            taken.inside.push(inside.once()?);
            taken.outside.push(outside.once()?);
        } else {
            taken.outside.push(outside.once()?);
            taken.inside.push(inside.once()?);
        }
    }
    Ok(taken)
}

/// A running [`DRIVER`]; ended with its pipe, or by force.
struct Driver {
    // Dropped before the child: the end of its input ends it.
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    child: Child,
}

impl Driver {
    fn start(command: &mut Command) -> Result<Self> {
        let (mut child, stdin) = Child::start_fed(
            "the driver",
            command.stdout(Stdio::piped()).stderr(Stdio::inherit()),
        )?;
        let mut stdout = child
            .take_stdout()
            .context("its standard output is piped")?;
        if read_line(&mut stdout, WATCHDOG)? != "up" {
            bail!("the driver of the benchmark did not come up");
        }
        Ok(Self {
            stdin: Some(stdin),
            stdout,
            child,
        })
    }

    /// Processor time of one run, in ms.
    fn once(&mut self) -> Result<f64> {
        let stdin = self.stdin.as_mut().context("it is open until the drop")?;
        stdin.write_all(b"go\n").context("tell the driver to go")?;
        let line = read_line(&mut self.stdout, WATCHDOG)?;
        let us: f64 = line
            .parse()
            .with_context(|| format!("the driver printed {line:?}"))?;
        Ok(us / 1000.0)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stdin = None;
        if let Err(error) = self.child.wait(WATCHDOG) {
            eprintln!("  the driver of the benchmark: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_a_pair() {
        let taken = Taken {
            inside: vec![3.0, 2.0],
            outside: vec![2.0, 2.0],
        };
        assert_eq!(taken.ratios(), [1.5, 1.0]);
    }

    #[test]
    fn the_driver_reports_processor_time_and_ends_with_its_input() {
        let mut command = Command::new("python3");
        command.args([
            "-c",
            DRIVER,
            "",
            "sh",
            "-c",
            "i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done",
        ]);
        let mut driver = Driver::start(&mut command).expect("it starts");
        let (first, second) = (driver.once().expect("a run"), driver.once().expect("a run"));
        assert!(first > 0.0 && second > 0.0, "{first} {second}");
        driver.stdin = None;
        let ended = driver.child.wait(WATCHDOG).expect("wait");
        assert!(ended.is_some_and(|status| status.success()));
    }
}
