//! `agentctl approvals …` as it is typed.

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct ApprovalsArgs {
    #[command(subcommand)]
    pub verb: LowApprovalsVerb,
}

const NOTES: &str = "\
A policy says what is asked for: [tools] ask, [net] ask. A question that nobody
answers in [tools] ask_timeout (10 minutes) is a refusal.

Examples:
  agentctl approvals list
  agentctl approvals allow 1a2b3c4d
  agentctl approvals allow 1a2b3c4d --always --rule 'Bash(git push origin *)'
  agentctl approvals deny 1a2b3c4d --reason 'not on a Friday'
  agentctl approvals watch --notify";

#[derive(Debug, Subcommand)]
pub enum LowApprovalsVerb {
    /// List the questions that wait for you
    List,
    /// Show one question with all its arguments, open or settled
    Show(QuestionArg),
    /// Let agents do what they ask for
    Allow(DecideArgs),
    /// Refuse it
    Deny(DecideArgs),
    /// List the decisions that are remembered
    Rules,
    /// Forget remembered decisions
    Revoke(RevokeArgs),
    /// Print questions and decisions as they come, until interrupted
    Watch(WatchArgs),
}

#[derive(Debug, Args)]
pub struct QuestionArg {
    /// Id of the question, or at least four digits from an end of it
    #[arg(value_name = "ID")]
    pub id: String,
}

#[derive(Debug, Args)]
pub struct DecideArgs {
    /// Ids of questions, or at least four digits from an end of each
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,

    /// Remember it: for this launch, for agents of this name, for this unit, or for all your agents
    #[arg(
        long,
        value_name = "SCOPE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "agent",
        value_parser = ["launch", "agent", "unit", "user"]
    )]
    pub always: Option<String>,

    /// What to remember, as a rule of [tools] [default: this very use]
    #[arg(long, value_name = "RULE", requires = "always")]
    pub rule: Option<String>,

    /// Told to the agent with a refusal, and kept on record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// Ids of remembered decisions, or at least four digits from an end of each
    #[arg(value_name = "ID", required = true)]
    pub ids: Vec<String>,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Show each question on the desktop, to be answered there
    #[arg(long)]
    pub notify: bool,
}
