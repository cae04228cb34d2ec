//! `agentctl policy …` as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    pub verb: LowPolicyVerb,
}

#[derive(Debug, Subcommand)]
pub enum LowPolicyVerb {
    /// List the policies that can be named
    List,
    /// Show a policy after inheritance, or the sandbox that would be built from it here
    Show(PolicyShowArgs),
    /// Check policies; every finding with file, line and remedy
    Lint(PolicyLintArgs),
    /// Compare two policies: which lines differ, and which of the two allows more
    Diff(PolicyDiffArgs),
    /// Ask a policy what it allows; the answers name the lines that decide
    Test(Box<PolicyTestArgs>),
    /// Print the JSON schema of policy files, for editors
    Schema,
}

#[derive(Debug, Args)]
pub struct PolicyShowArgs {
    /// Policy: a name, or a TOML file
    #[arg(value_name = "NAME|FILE", default_value = "coding", value_hint = ValueHint::FilePath)]
    pub policy: String,

    /// Show the mounts, rules, limits and environment that a launch here would get
    #[arg(long)]
    pub plan: bool,

    /// Directory the agent would work in [default: the current directory]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath, requires = "plan")]
    pub workspace: Option<PathBuf>,

    /// Change one value of the policy
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

#[derive(Debug, Args)]
pub struct PolicyLintArgs {
    /// Policies: names, or TOML files
    #[arg(value_name = "NAME|FILE", required = true, value_hint = ValueHint::FilePath)]
    pub policies: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_long_help = DIFF_NOTES)]
pub struct PolicyDiffArgs {
    /// Policy: a name, or a TOML file
    #[arg(value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    pub left: String,

    /// The policy to compare it with
    #[arg(value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    pub right: String,
}

const DIFF_NOTES: &str = "\
Exit codes: 0 they mean the same, 1 they differ.";

#[derive(Debug, Args)]
#[command(after_long_help = TEST_NOTES)]
pub struct PolicyTestArgs {
    /// Policy: a name, or a TOML file
    #[arg(value_name = "NAME|FILE", value_hint = ValueHint::FilePath)]
    pub policy: String,

    /// May it read this file or folder of the host?
    #[arg(long, value_name = "PATH")]
    pub read: Vec<String>,

    /// May it change it?
    #[arg(long, value_name = "PATH")]
    pub write: Vec<String>,

    /// May it execute it?
    #[arg(long, value_name = "PATH")]
    pub exec: Vec<String>,

    /// May it reach this destination?
    #[arg(long, value_name = "HOST:PORT")]
    pub connect: Vec<String>,

    /// May a driven agent use a tool so? For example 'Bash(git push)'
    #[arg(long, value_name = "TOOL(SUBJECT)")]
    pub tool: Vec<String>,

    /// May it ask this model?
    #[arg(long, value_name = "NAME")]
    pub model: Vec<String>,

    /// Does it get this variable of yours?
    #[arg(long, value_name = "NAME")]
    pub env: Vec<String>,

    /// May it use this set of system calls?
    #[arg(long, value_name = "SET")]
    pub syscalls: Vec<String>,

    /// May it send to this agent?
    #[arg(long, value_name = "AGENT")]
    pub send: Vec<String>,

    /// May it request from this agent?
    #[arg(long, value_name = "AGENT")]
    pub request: Vec<String>,

    /// May it publish this topic?
    #[arg(long, value_name = "TOPIC")]
    pub publish: Vec<String>,

    /// May it subscribe to this topic?
    #[arg(long, value_name = "TOPIC")]
    pub subscribe: Vec<String>,

    /// Check a file of expectations; may be given more than once
    #[arg(long = "file", value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub expectations: Vec<PathBuf>,

    /// Directory the agent would work in [default: the current directory]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub workspace: Option<PathBuf>,

    /// Ask about a launch without a workspace
    #[arg(long, conflicts_with = "workspace")]
    pub no_workspace: bool,

    /// Change one value of the policy
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

const TEST_NOTES: &str = "\
A file of expectations is TOML with the lists allow, ask and deny; each item is the
name of an option above and its value:

  allow = [\"read ${workspace}/src\", \"connect github.com:443\"]
  deny = [\"read ~/.ssh/id_ed25519\", \"tool Bash(git push)\"]

Exit codes: 0 answered, and every expectation met; 1 an expectation is not met.";
