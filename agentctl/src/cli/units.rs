//! What can be typed behind `agents` and `config`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Args)]
pub struct UnitsArgs {
    #[command(subcommand)]
    pub verb: LowUnitsVerb,
}

const NOTES: &str = "\
A unit is a file NAME.toml in /etc/agentd/agents or /usr/lib/agentd/agents (the
system's) or in ~/.config/agentd/agents (yours), with drop-ins in NAME.toml.d/.
Yours are opened by agentctl and handed over: agentd never looks into your home.

Examples:
  agentctl agents list
  agentctl agents start reviewer
  agentctl agents start coder@api          # an instance of coder@.toml
  agentctl agents start --from ./agents tester
  agentctl agents enable --now reviewer
  agentctl agents logs -f reviewer";

#[derive(Debug, Subcommand)]
#[command(after_long_help = NOTES)]
pub enum LowUnitsVerb {
    /// List units and what they are doing
    List(FromArg),
    /// Show one unit: its state, its agents, every value and where it was set
    Show(UnitArg),
    /// Print the files that a unit is made of
    Cat(UnitArg),
    /// Start units, with your directories
    Start(UnitsFromArg),
    /// Stop units and their agents
    Stop(UnitsArg),
    /// Stop units and start them again
    Restart(UnitsFromArg),
    /// Have units started with agentd
    Enable(EnableArgs),
    /// Have units no longer started with agentd
    Disable(DisableArgs),
    /// Print the output of a unit's agent
    Logs(UnitLogsArgs),
    /// Connect this terminal to a unit's agent
    Attach(UnitAttachArgs),
    /// Hand over your units, and as root have the system's read again; all or nothing
    Reload(FromArg),
}

#[derive(Debug, Args)]
pub struct FromArg {
    /// Directory with your units, instead of ~/.config/agentd/agents
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub from: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct UnitArg {
    /// Name of the unit: reviewer, coder@api
    #[arg(value_name = "UNIT")]
    pub unit: String,

    #[command(flatten)]
    pub from: FromArg,
}

#[derive(Debug, Args)]
pub struct UnitsArg {
    /// Names of units
    #[arg(value_name = "UNIT", required = true)]
    pub units: Vec<String>,
}

#[derive(Debug, Args)]
pub struct UnitsFromArg {
    #[command(flatten)]
    pub units: UnitsArg,

    #[command(flatten)]
    pub from: FromArg,
}

#[derive(Debug, Args)]
pub struct EnableArgs {
    #[command(flatten)]
    pub units: UnitsFromArg,

    /// Start them too
    #[arg(long)]
    pub now: bool,
}

#[derive(Debug, Args)]
pub struct DisableArgs {
    #[command(flatten)]
    pub units: UnitsArg,

    /// Stop them too
    #[arg(long)]
    pub now: bool,
}

#[derive(Debug, Args)]
pub struct UnitLogsArgs {
    /// Name of the unit
    #[arg(value_name = "UNIT")]
    pub unit: String,

    /// Which of a pool's agents, by number
    #[arg(long, value_name = "NUMBER")]
    pub member: Option<u32>,

    /// Go on until the agent has ended
    #[arg(short, long)]
    pub follow: bool,

    /// Begin at the last so many lines
    #[arg(long, value_name = "LINES")]
    pub tail: Option<u64>,
}

#[derive(Debug, Args)]
pub struct UnitAttachArgs {
    /// Name of the unit
    #[arg(value_name = "UNIT")]
    pub unit: String,

    /// Which of a pool's agents, by number
    #[arg(long, value_name = "NUMBER")]
    pub member: Option<u32>,

    /// Watch only: send no input and no signals
    #[arg(long)]
    pub no_stdin: bool,

    /// Keys that leave the agent running, or `none`
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub detach_keys: String,
}

#[derive(Debug, Args)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub verb: LowConfigVerb,
}

#[derive(Debug, Subcommand)]
pub enum LowConfigVerb {
    /// Check the daemon's configuration and all units; every mistake with file, line and remedy
    Check(ConfigFileArgs),
    /// Show the effective configuration, or one unit, as the files have it
    Show(ConfigShowArgs),
    /// Show what differs between the files and what the daemon that runs has taken in
    Diff(ConfigFileArgs),
}

#[derive(Debug, Args)]
pub struct ConfigFileArgs {
    /// The daemon's configuration [default: the one that agentd would read]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub from: FromArg,
}

#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    /// Show this unit instead
    #[arg(value_name = "UNIT")]
    pub unit: Option<String>,

    /// Say for each value which file and line set it
    #[arg(long)]
    pub origin: bool,

    #[command(flatten)]
    pub files: ConfigFileArgs,
}
