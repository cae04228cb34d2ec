//! `agentctl tasks …` as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct TasksArgs {
    #[command(subcommand)]
    pub verb: LowTasksVerb,
}

const NOTES: &str = "\
A task is on the disk before its id is printed. It is given to a driven agent
when one is free, tried again if the agent fails or dies, and ends succeeded,
failed, cancelled or timed-out. What an agent's tools did in a failed attempt
may happen again in the next one.

Examples:
  agentctl tasks submit --agent coder 'Fix the flaky test in tests/io.rs'
  agentctl tasks submit --role qa --after 1a2b3c4d --file review.md
  git diff | agentctl tasks submit --unit reviewer --wait
  agentctl tasks list
  agentctl tasks watch 1a2b3c4d";

#[expect(
    clippy::large_enum_variant,
    reason = "one value per process, made once"
)]
#[derive(Debug, Subcommand)]
pub enum LowTasksVerb {
    /// Hand in a task and print its id
    #[command(after_long_help = SUBMIT_NOTES)]
    Submit(SubmitArgs),
    /// List tasks, newest first
    List(ListArgs),
    /// Show everything about one task: its life, what it waits for, its children and results
    Show(TaskArg),
    /// Print changes as they come: of some tasks until they end, or of all until interrupted
    Watch(WatchArgs),
    /// Take tasks back; an agent that works on one is interrupted
    Cancel(TaskIds),
    /// Do the work of ended tasks again, as new tasks; or end the pause before the next attempt
    Retry(TaskIds),
}

const SUBMIT_NOTES: &str = "\
With --wait, the result is printed on stdout when the task has ended, and the
exit code is 0 if it succeeded, 124 if its deadline passed, and 1 otherwise.";

#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// What to do, in words for the agent [default: read from stdin]
    #[arg(value_name = "TEXT")]
    pub text: Vec<String>,

    /// Read the text from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "text")]
    pub file: Option<PathBuf>,

    /// For the running agent of this name
    #[arg(short, long, value_name = "NAME", group = "target")]
    pub agent: Option<String>,

    /// For an instance of this unit; one is started if needed
    #[arg(short, long, value_name = "UNIT", group = "target")]
    pub unit: Option<String>,

    /// For any agent whose unit has this role
    #[arg(long, value_name = "ROLE", group = "target")]
    pub role: Option<String>,

    /// For any agent whose unit has this capability
    #[arg(long, value_name = "NAME", group = "target")]
    pub capability: Option<String>,

    /// 0 to 9, or low (2), normal (5), high (7), urgent (9)
    #[arg(short, long, value_name = "LEVEL")]
    pub priority: Option<String>,

    /// Must be done within this time (30m), or by this moment (2026-11-30T18:00Z)
    #[arg(short, long, value_name = "TIME")]
    pub deadline: Option<String>,

    /// Begin only when this task has succeeded; may be given again
    #[arg(long, value_name = "TASK")]
    pub after: Vec<String>,

    /// If a task that it waits for does not succeed: fail, or skip
    #[arg(long, value_name = "WHAT", value_parser = ["fail", "skip"], requires = "after")]
    pub on_dependency_failure: Option<String>,

    /// Attempts after the first [default: 2]
    #[arg(short, long, value_name = "COUNT")]
    pub retries: Option<u32>,

    /// Longest pause before the first retry; it doubles with each [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub backoff: Option<String>,

    /// Chosen by you: submitting the same content with it again gives the same task
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,

    /// Stay until the task has ended and print its result
    #[arg(short, long)]
    pub wait: bool,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Include tasks that have ended
    #[arg(short, long)]
    pub all: bool,

    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,

    /// Print at most so many tasks
    #[arg(short, long, value_name = "COUNT")]
    pub limit: Option<u32>,
}

#[derive(Debug, Args)]
pub struct TaskArg {
    /// Id of the task, or at least four digits from an end of it
    #[arg(value_name = "TASK")]
    pub task: String,
}

#[derive(Debug, Args)]
pub struct TaskIds {
    /// Ids of tasks, or at least four digits from an end of each
    #[arg(value_name = "TASK", required = true)]
    pub tasks: Vec<String>,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Ids of tasks, or at least four digits from an end of each
    #[arg(value_name = "TASK")]
    pub tasks: Vec<String>,
}
