//! `agentctl prune` and `agentctl db …` as they are typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Args)]
#[command(after_long_help = PRUNE_NOTES)]
pub struct PruneArgs {
    /// Only launches that ended at least so long ago: 12h, 30d
    #[arg(long, value_name = "TIME", default_value = "30d")]
    pub older_than: String,

    /// Never the newest so many launches of a user
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub keep: u32,

    /// Say what would be forgotten, and forget nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

const PRUNE_NOTES: &str = "\
What is forgotten is gone: the record of the launch, its output and its protocol.
Living agents are never touched. Everybody prunes their own launches, root all.
The daemon does the same by itself if its configuration has [retention].

Examples:
  agentctl prune --dry-run
  agentctl prune --older-than 7d --keep 50 --yes";

#[derive(Debug, Args)]
#[command(after_long_help = DB_NOTES)]
pub struct DbArgs {
    #[command(subcommand)]
    pub verb: LowDbVerb,

    /// State directory of a daemon that does not run [default: where agentd keeps its state]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    pub state_dir: Option<PathBuf>,
}

const DB_NOTES: &str = "\
Checking and copying ask the daemon, and work without one too. Recovering needs
the daemon stopped; the damaged file stays beside the new one.

Examples:
  agentctl db check
  agentctl db backup ~/agentd-record.db
  agentctl shutdown; agentctl db recover";

#[derive(Debug, Subcommand)]
pub enum LowDbVerb {
    /// Read the whole record and say whether it is damaged
    Check,
    /// Copy the record, also while agentd uses it
    Backup(BackupArgs),
    /// Make a new record of what can be read of a damaged one
    Recover,
}

#[derive(Debug, Args)]
pub struct BackupArgs {
    /// The copy; it must not exist
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}
