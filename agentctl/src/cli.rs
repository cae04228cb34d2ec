//! What can be typed. Plain data: nothing here looks at the host.

pub mod approvals;
pub mod audit;
pub mod bench;
pub mod bus;
pub mod control;
pub mod policy;
pub mod sched;
pub mod selftest;
pub mod tasks;
pub mod units;
pub mod upkeep;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueHint};

/// The whole command, for man pages and completions.
pub fn command() -> clap::Command {
    <LowArgs as clap::CommandFactory>::command()
}

const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    the operation failed
  2    the command line is wrong
  3    agentd can't be reached
  4    denied by policy or authorisation
  124  timed out
For `run`, `attach` and `wait` it is the program's own code, 128 + n for signal n,
124 for a time-out, 125 if the launch failed, 126 if the program can't be
executed and 127 if it was not found.";

/// Launch AI agents as confined processes, watch them, and read what they did.
#[derive(Debug, Parser)]
#[command(
    name = "agentctl",
    version,
    max_term_width = 100,
    after_long_help = EXIT_CODES,
    disable_help_subcommand = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct LowArgs {
    /// Directory of the daemon's control socket, instead of your own and then the system's
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath, help_heading = "Global options")]
    pub runtime_dir: Option<PathBuf>,

    /// Talk to the system's daemon over the system bus, instead of a control socket
    #[arg(
        long,
        global = true,
        conflicts_with = "runtime_dir",
        help_heading = "Global options"
    )]
    pub bus: bool,

    /// Print JSON: one object, or one per line for streams
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,

    /// Say on stderr what is being done
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub verbose: bool,

    #[command(subcommand)]
    pub verb: LowVerb,
}

#[derive(Debug, Subcommand)]
pub enum LowVerb {
    /// Run a program as a confined agent
    #[command(after_long_help = RUN_NOTES)]
    Run(RunArgs),
    /// List agents
    Ps(PsArgs),
    /// Show everything on record about one launch
    Inspect(AgentArg),
    /// Show what the kernel's scheduler did with agents: time on a processor, waiting for one, and off
    Sched(sched::SchedArgs),
    /// Print an agent's output
    Logs(LogsArgs),
    /// Connect this terminal to a running agent
    Attach(AttachArgs),
    /// Ask agents to end, and kill what is left after a grace period
    Stop(StopArgs),
    /// Kill agents at once, with everything they started
    Kill(AgentsArg),
    /// Take rights from running agents, at once and in the kernel
    #[command(after_long_help = control::REVOKE_NOTES)]
    Revoke(control::RevokeArgs),
    /// Lay a stricter policy, or settings, over that of running agents
    #[command(after_long_help = control::TIGHTEN_NOTES)]
    Tighten(control::TightenArgs),
    /// Give agents back what was taken
    Restore(control::RestoreArgs),
    /// Stop every process of agents where it is, until `thaw`
    Freeze(AgentsArg),
    /// Let frozen agents run again
    Thaw(AgentsArg),
    /// Send a signal to an agent's program
    Signal(SignalArgs),
    /// Wait until an agent has ended and return its exit code
    Wait(AgentArg),
    /// List past launches, newest first
    Records(RecordsArgs),
    /// Forget launches that ended long ago: record, output and all
    Prune(upkeep::PruneArgs),
    /// Check, copy or repair the record
    Db(upkeep::DbArgs),
    /// Verify that nothing on record was changed
    Audit(audit::AuditArgs),
    /// Answer what agents ask a person
    Approvals(approvals::ApprovalsArgs),
    /// Show what was refused to agents, by which layer and which line of the policy
    #[command(after_long_help = DENIALS_NOTES)]
    Denials(DenialsArgs),
    /// Hand in work for driven agents, and follow what becomes of it
    Tasks(tasks::TasksArgs),
    /// See inside the bus, and talk with agents over it
    Bus(bus::BusArgs),
    /// Put load on the bus of a running daemon, and check that nothing is lost
    Bench(bench::BenchArgs),
    /// Work with agent units: declared agents that agentd starts and restarts
    Agents(units::UnitsArgs),
    /// Check and show configuration and units from their files; needs no daemon
    Config(units::ConfigArgs),
    /// Work with policies; needs no daemon
    Policy(policy::PolicyArgs),
    /// Say what this host can do, what is lost without the rest, and how to get it; needs no daemon
    Doctor,
    /// Attack the sandbox on this host with the shipped escape suite, and say what a policy stops
    Selftest(selftest::SelftestArgs),
    /// Print the versions of agentctl and of the daemon
    Version,
    /// End the daemon and its agents
    Shutdown,
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

const RUN_NOTES: &str = "\
The program gets a terminal of its own if stdin and stdout are terminals, and
pipes otherwise. Ctrl-C reaches the program; the detach keys leave it running.
With --json, one line on stderr says at the end what ran, its record and how it
ended (on stdout with --detach); stdout is the program's.

When no daemon can be reached, one is started for you; it keeps running.

Examples:
  agentctl run -- claude
  agentctl run --policy coding --workspace ~/src/app --timeout 30m -- ./fix-tests
  agentctl run -d --name reviewer --driver claude --prompt 'Review the last commit'
  git diff | agentctl run -- summarise > summary.txt";

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Policy: a name, or a TOML file
    #[arg(short, long, value_name = "NAME|FILE", default_value = "coding", value_hint = ValueHint::FilePath)]
    pub policy: String,

    /// Directory the agent works in, at the same path inside [default: the current directory]
    #[arg(short, long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub workspace: Option<PathBuf>,

    /// Give the agent no directory of yours
    #[arg(long, conflicts_with = "workspace")]
    pub no_workspace: bool,

    /// Name of the agent, unique among your running ones [default: made up]
    #[arg(short, long)]
    pub name: Option<String>,

    /// Change one value of the policy for this launch
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,

    /// On whose kernel the program runs: the policy's, or one further from the host's
    #[arg(long, value_name = "KIND", value_parser = ["native", "gvisor"])]
    pub runtime: Option<String>,

    /// End the agent after this time: 90, 90s, 30m, 1h30m
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,

    /// Environment variable for the agent; without a value, yours
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,

    /// Who talks with the program: none, claude (stream-json), codex (app-server), acp (Agent Client Protocol), jsonl
    #[arg(long, value_name = "DRIVER", default_value = "none", value_parser = ["none", "claude", "codex", "acp", "jsonl"])]
    pub driver: String,

    /// First task of a driven agent
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Give the program a terminal even if this is none
    #[arg(short, long)]
    pub tty: bool,

    /// Use pipes even on a terminal
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,

    /// Accepted for those used to `-it`; stdin is always passed on
    #[arg(short, long, hide = true)]
    pub interactive: bool,

    /// Leave the agent in the background and print its id
    #[arg(short, long)]
    pub detach: bool,

    /// Digest of the escape suite that is being run, for the record
    #[arg(long, value_name = "SHA256", hide = true)]
    pub suite: Option<String>,

    /// Keys that leave the agent running, or `none`
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,

    /// The program and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true, value_hint = ValueHint::CommandWithArguments)]
    pub command: Vec<String>,
}

const DENIALS_NOTES: &str = "\
The same refusal is on record once a minute; with --follow each is shown. What
a layer can tell of depends on host and mode: --layers says so, and why not.

Examples:
  agentctl denials
  agentctl denials coder --limit 20
  agentctl denials -f --json | jq -r .target
  agentctl denials --layers";

#[derive(Debug, Args)]
pub struct DenialsArgs {
    /// One agent or launch [default: all of yours]
    #[arg(value_name = "AGENT", default_value = "", hide_default_value = true)]
    pub agent: String,

    /// Go on with what is refused from now on
    #[arg(short, long)]
    pub follow: bool,

    /// The most to show of what is on record
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub limit: u32,

    /// Say which layers can tell of refusals here instead
    #[arg(long, conflicts_with_all = ["agent", "follow", "limit"])]
    pub layers: bool,
}

#[derive(Debug, Args)]
pub struct PsArgs {
    /// Include agents that have ended
    #[arg(short, long)]
    pub all: bool,

    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct AgentArg {
    /// Name, id, or at least four digits from an end of the id
    #[arg(value_name = "AGENT")]
    pub agent: String,
}

#[derive(Debug, Args)]
pub struct AgentsArg {
    /// Names, ids, or at least four digits from an end of an id
    #[arg(value_name = "AGENT", required = true)]
    pub agents: Vec<String>,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    pub agent: AgentArg,

    /// Go on until the agent has ended
    #[arg(short, long)]
    pub follow: bool,

    /// Begin at the last so many lines
    #[arg(short = 'n', long, value_name = "LINES")]
    pub tail: Option<u64>,

    /// Begin at what was written in the last so much time: 90s, 10m, 2h
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

#[derive(Debug, Args)]
pub struct AttachArgs {
    #[command(flatten)]
    pub agent: AgentArg,

    /// Watch only: send no input and no signals
    #[arg(long)]
    pub no_stdin: bool,

    /// Begin with what comes, without the latest output
    #[arg(long)]
    pub no_replay: bool,

    /// Keys that leave the agent running, or `none`
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub agents: AgentsArg,

    /// How long to wait before killing
    #[arg(short, long, value_name = "TIME", default_value = "10s")]
    pub grace: String,
}

#[derive(Debug, Args)]
pub struct SignalArgs {
    #[command(flatten)]
    pub agent: AgentArg,

    /// Name or number: INT, SIGTERM, 10
    pub signal: String,
}

#[derive(Debug, Args)]
pub struct RecordsArgs {
    /// Print at most so many launches
    #[arg(short, long, value_name = "COUNT")]
    pub limit: Option<usize>,
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// bash, zsh, fish, elvish or powershell
    pub shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_definition_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn everything_after_the_program_belongs_to_the_program() {
        let typed = ["agentctl", "run", "-d", "prog", "--json", "-v", "--", "x"];
        let low = LowArgs::try_parse_from(typed).expect("valid");
        let LowVerb::Run(run) = low.verb else {
            panic!("run was typed")
        };
        assert!(run.detach && !low.json && !low.verbose);
        assert_eq!(run.command, ["prog", "--json", "-v", "--", "x"]);
    }

    #[test]
    fn global_options_may_follow_the_verb() {
        let typed = ["agentctl", "ps", "--json", "--runtime-dir", "/x"];
        let low = LowArgs::try_parse_from(typed).expect("valid");
        assert!(low.json);
        assert_eq!(low.runtime_dir, Some("/x".into()));
    }
}
