//! `cargo xtask demo [--claude | --codex | --acp] [--json]`: the main job, shown on this machine.
//!
//! Two agents are launched under the policy `coding` in a git repository with a failing test. "finder" looks for the
//! cause and asks "fixer" over the bus for the fix; afterwards the test is run again from outside. By default both are
//! the project's own small agent, with `--claude` the real Claude Code, with `--codex` the real Codex, with `--acp` the
//! real opencode, driven by agentd; either way the model is the test kit's scripted stand-in, reached through agentd's
//! gateway with a key that the agents never see.
//!
//! Works as root and as an ordinary user. Everything runs in one temporary directory and is gone at the end, also
//! after Ctrl-C or a failure. Progress goes to stderr; stdout carries the account, and with `--json` one object as its
//! last line. Exit code 0 means that the job was done and the record shows it.

pub mod npm;
mod record;
mod repository;
mod show;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use self::record::Record;
use self::repository::Repository;
use crate::child::{Child, capture, capture_any, outcome};
use crate::lab::{Lab, Profile, Programs, Setup};
use crate::stop::Interrupted;
use crate::test::needs;
use crate::workspace::root;

/// How long the finder may take; it takes seconds.
const TASK_LIMIT: Duration = Duration::from_secs(600);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run the real Claude Code (installed from npm at a pinned version) in place of the small agent
    #[arg(long)]
    claude: bool,
    /// Run the real Codex (installed from npm at a pinned version) in place of the small agent
    #[arg(long, conflicts_with = "claude")]
    codex: bool,
    /// Run the real opencode (installed from npm at a pinned version), over the Agent Client Protocol
    #[arg(long, conflicts_with_all = ["claude", "codex"])]
    acp: bool,
    /// Print one JSON object as the last line of stdout
    #[arg(long)]
    json: bool,
    /// Use the programs in this directory instead of building them
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Take scripts and fixture from this copy of tests/kit
    #[arg(long, value_name = "DIR", hide = true)]
    kit_dir: Option<PathBuf>,
    /// Use this binary of the real agent instead of installing one
    #[arg(long, value_name = "FILE", hide = true)]
    agent_bin: Option<PathBuf>,
}

#[expect(clippy::print_stdout, reason = "the account is this verb's data")]
pub fn demo(args: &Args) -> Result<ExitCode> {
    needs::require(&["git", "python3"])?;
    let kit = args
        .kit_dir
        .clone()
        .unwrap_or_else(|| root().join("tests/kit"));
    say("building agentd, agentctl, agentd-broker and the test kit");
    let programs = match &args.bin_dir {
        Some(directory) => Programs::in_directory(directory)?,
        None => Programs::build(Profile::Debug)?,
    };
    check_host(&programs)?;
    let real = |agent: &npm::Agent| args.agent_bin.clone().map_or_else(|| agent.install(), Ok);
    let cast = if args.claude {
        Cast::driven(
            "scripts/demo-claude.toml",
            "claude",
            real(&npm::CLAUDE)?,
            &[],
        )
    } else if args.codex {
        // The stand-in takes any model for itself; Codex gives each other tools.
        let model = ["-c", "model=gpt-5.5"];
        Cast::driven(
            "scripts/demo-codex.toml",
            "codex",
            real(&npm::CODEX)?,
            &model,
        )
    } else if args.acp {
        Cast::driven(
            "scripts/demo-opencode.toml",
            "acp",
            real(&npm::OPENCODE)?,
            &[],
        )
    } else {
        Cast::small_agent(programs.path("small-agent"))
    };

    let played = play(programs, &kit, &cast)?;
    print!("{}", show::account(&played.records));
    println!("Change made by the agents\n{}", indent(&played.diff));
    println!(
        "The test {} now {}.",
        Repository::test_line(),
        if played.passes_after {
            "passes"
        } else {
            "still fails"
        }
    );
    let report = played.report();
    if args.json {
        println!("{report}");
    }
    if played.problems.is_empty() {
        Ok(ExitCode::SUCCESS)
    } else {
        for problem in &played.problems {
            eprintln!("demo: {problem}");
        }
        Ok(ExitCode::FAILURE)
    }
}

/// Who plays finder and fixer.
struct Cast {
    script: &'static str,
    finder: Vec<String>,
    fixer: Vec<String>,
}

const TASK: &str = "The test in this repository fails. Find the cause, ask the agent named fixer for the fix over the \
                    bus, and check that the test passes.";

impl Cast {
    fn small_agent(program: PathBuf) -> Self {
        let program = program.display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            script: "scripts/demo.toml",
            finder: words(&["--", &program, "--task", TASK]),
            fixer: words(&["--", &program, "--serve"]),
        }
    }

    /// A real agent, with `options` of its own.
    fn driven(script: &'static str, driver: &str, program: PathBuf, options: &[&str]) -> Self {
        let program = program.display().to_string();
        let line = |words: &[&str]| {
            let all = [&["--driver", driver], words, &["--", &program], options].concat();
            all.into_iter().map(str::to_owned).collect()
        };
        Self {
            script,
            finder: line(&["--prompt", TASK]),
            fixer: line(&[]),
        }
    }
}

/// What came of it, read after the agents had ended.
struct Played {
    records: Vec<Record>,
    raw: Map<String, Value>,
    passes_after: bool,
    diff: String,
    problems: Vec<String>,
}

fn play(programs: Programs, kit: &Path, cast: &Cast) -> Result<Played> {
    say("starting a stand-in model server and agentd on a temporary directory");
    let lab = Lab::start(
        programs,
        &Setup {
            model_script: Some(&kit.join(cast.script)),
            ..Setup::default()
        },
    )?;
    say("making a git repository with a failing test");
    let repository = Repository::make(
        &kit.join("fixtures/demo"),
        &lab.directory().join("repository"),
    )?;
    if repository.test_passes()? {
        bail!("the fixture's test passes before anybody worked on it");
    }

    let scene = |lab: &Lab| -> Result<Option<std::process::ExitStatus>> {
        say("launching fixer, which waits for requests");
        capture(
            launch(lab, &repository, "fixer")
                .arg("--detach")
                .args(&cast.fixer),
        )?;
        say("launching finder on the task");
        let mut finder = Child::start(
            "agentctl run",
            launch(lab, &repository, "finder")
                .args(&cast.finder)
                .stdout(std::io::stderr())
                .stdin(Stdio::null()),
        )?;
        let ended = finder.wait(TASK_LIMIT)?;
        drop(finder);
        say("stopping fixer");
        capture(lab.agentctl().args(["stop", "fixer"]))?;
        Ok(ended)
    };
    let ended = scene(&lab).inspect_err(|error| {
        if !error.is::<Interrupted>() {
            eprint!("the end of the daemon's log:\n{}", lab.log_tail());
        }
    })?;

    say("reading the record");
    let mut played = Played {
        records: Vec::new(),
        raw: Map::new(),
        passes_after: repository.test_passes()?,
        diff: repository.diff()?,
        problems: Vec::new(),
    };
    for name in ["finder", "fixer"] {
        let raw = lab.ask(&["inspect", name])?;
        played.records.push(
            serde_json::from_value(raw.clone())
                .with_context(|| format!("read the record of {name}"))?,
        );
        played.raw.insert(name.to_owned(), raw);
    }
    match ended {
        None => played
            .problems
            .push(format!("finder did not end within {TASK_LIMIT:?}")),
        Some(status) if !status.success() => played
            .problems
            .push(format!("finder ended with {}", outcome(status))),
        Some(_) => {}
    }
    played.judge();
    if let Some(place) = find_text(lab.key(), &lab.directory().join("state"))? {
        played
            .problems
            .push(format!("the model key is in {}", place.display()));
    }
    say("tearing down");
    drop(lab);
    Ok(played)
}

/// `agentctl run` up to the driver and the command.
fn launch(lab: &Lab, repository: &Repository, name: &str) -> Command {
    let mut command = lab.agentctl();
    command
        .args(["run", "--name", name, "--policy", "coding", "--workspace"])
        .arg(repository.path());
    command
}

impl Played {
    /// What must hold for the demo to have shown anything.
    fn judge(&mut self) {
        let mut problems = Vec::new();
        if !self.passes_after {
            problems.push("the test still fails".to_owned());
        }
        for record in &self.records {
            if record.layers.is_empty() {
                problems.push(format!(
                    "the record of {} names no active layer",
                    record.name
                ));
            }
            if record.tokens.all() == 0 {
                problems.push(format!("{} spent no tokens", record.name));
            }
            if record.exit.is_none() {
                problems.push(format!("the record of {} has no end", record.name));
            }
        }
        let asked = self
            .records
            .iter()
            .flat_map(|record| &record.messages)
            .any(|message| {
                message.kind == "request" && message.from == "finder" && message.to == "fixer"
            });
        if !asked {
            problems.push("the record shows no request from finder to fixer".to_owned());
        }
        self.problems.extend(problems);
    }

    fn report(&self) -> Value {
        let agents: Vec<Value> = self.records.iter().map(agent).collect();
        let messages: std::collections::BTreeSet<i64> = self
            .records
            .iter()
            .flat_map(|record| &record.messages)
            .map(|message| message.seq)
            .collect();
        let denials: Vec<Value> = self
            .records
            .iter()
            .flat_map(|record| record.denials.iter().map(move |denial| (record, denial)))
            .map(|(record, denial)| {
                json!({
                    "agent": record.name, "layer": denial.layer, "what": denial.what,
                    "target": denial.target, "rule": denial.rule,
                })
            })
            .collect();
        json!({
            "ok": self.problems.is_empty(),
            "agents": agents,
            "task": {
                "state": if self.passes_after { "succeeded" } else { "failed" },
                "text": TASK,
                "test": Repository::test_line(),
                "before": "failed",
                "after": if self.passes_after { "passed" } else { "failed" },
                "diff": self.diff,
            },
            "messages": messages.len(),
            "denials": denials,
            "problems": self.problems,
            "record": self.raw,
        })
    }
}

fn agent(record: &Record) -> Value {
    let mut sandbox: Map<String, Value> = record
        .layers
        .iter()
        .map(|layer| (layer.clone(), Value::Bool(true)))
        .collect();
    sandbox.insert("mode".to_owned(), json!(record.mode));
    sandbox.insert("landlock_abi".to_owned(), json!(record.landlock_abi));
    let without: Vec<&str> = record
        .degradations
        .iter()
        .map(|degradation| degradation.property.as_str())
        .collect();
    sandbox.insert("without".to_owned(), json!(without));
    json!({
        "name": record.name,
        "pid": record.pid,
        "sandbox": sandbox,
        "exit": record.exit.as_ref().map(|exit| json!({
            "kind": exit.kind, "code": exit.code, "signal": exit.signal, "cause": exit.cause,
        })),
        "tokens": {
            "input": record.tokens.input,
            "output": record.tokens.output,
            "requests": record.tokens.requests,
            "total": record.tokens.all(),
        },
    })
}

/// Names what this machine or user lacks, each with the command that gives it; an error where the demo can't run so.
fn check_host(programs: &Programs) -> Result<()> {
    let mut command = Command::new(programs.path("agentctl"));
    // Its exit code says whether agents can run at all; the reasons are in what it prints.
    let said = capture_any(command.args(["--json", "doctor"]))?.stdout;
    let doctor: Value = serde_json::from_slice(&said).context("read what agentctl doctor says")?;
    let probes = doctor["probes"]
        .as_array()
        .context("agentctl doctor lists no probes")?;
    let mut fatal = Vec::new();
    // What is optional protects nobody and is of no use to the demo.
    let missing = |probe: &&Value| probe["state"] != "supported" && probe["need"] != "optional";
    for probe in probes.iter().filter(missing) {
        let text = |key: &str| probe[key].as_str().unwrap_or_default();
        let told = format!(
            "{}: without it: {}; {}",
            text("name"),
            text("lost"),
            text("fix")
        );
        if probe["required"] == true {
            fatal.push(told);
        } else {
            say(&told);
        }
    }
    if !fatal.is_empty() {
        bail!(
            "this machine can't confine agents:\n  {}",
            fatal.join("\n  ")
        );
    }
    Ok(())
}

/// The first file below `directory` that holds `text`.
fn find_text(text: &str, directory: &Path) -> Result<Option<PathBuf>> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory)
            .with_context(|| format!("list {}", directory.display()))?
        {
            let entry = entry.with_context(|| format!("list {}", directory.display()))?;
            let kind = entry
                .file_type()
                .with_context(|| format!("look at {}", entry.path().display()))?;
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() {
                let content = match std::fs::read(entry.path()) {
                    // The daemon still runs, and removes what it has no more use for.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                    content => {
                        content.with_context(|| format!("read {}", entry.path().display()))?
                    }
                };
                if content
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
                {
                    return Ok(Some(entry.path()));
                }
            }
        }
    }
    Ok(None)
}

fn say(what: &str) {
    eprintln!("demo: {what}");
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::find_text;

    #[test]
    fn a_text_is_found_however_deep_it_lies() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("deep")).expect("made");
        std::fs::write(directory.path().join("deep/file"), b"\xff..secret..").expect("written");
        assert_eq!(
            find_text("secret", directory.path()).expect("searched"),
            Some(directory.path().join("deep/file"))
        );
        assert_eq!(
            find_text("other", directory.path()).expect("searched"),
            None
        );
    }
}
