//! `agentctl audit`, as it is typed.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueHint};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct AuditArgs {
    #[command(subcommand)]
    pub verb: LowAuditVerb,

    /// State directory of a daemon that does not run [default: where agentd keeps its state]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, global = true)]
    pub state_dir: Option<PathBuf>,
}

const NOTES: &str = "\
Everything on record is one chain of hashes with signed heads. Verifying needs
no daemon, only the right to read the record: root, or your own.
Whoever holds the private key can sign another chain; only a head or a key that
you noted somewhere else tells the difference.

Examples:
  agentctl audit verify
  agentctl audit head > /media/stick/agentd.head
  agentctl audit verify --head \"$(cat /media/stick/agentd.head)\"
  agentctl audit verify --file copy.db --key 3f2a…";

#[derive(Debug, Subcommand)]
pub enum LowAuditVerb {
    /// Read the whole record and name whatever was edited, added, removed, cut off or moved
    Verify(VerifyArgs),
    /// Print the head that the record ends with now, to be noted somewhere else
    Head,
    /// Print the public key that verifies the record
    Key,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A copy of the record, instead of the record
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "state_dir")]
    pub file: Option<PathBuf>,

    /// Public key, 64 hex digits, or a file with it [default: audit.pub beside the record]
    #[arg(long, value_name = "HEX|FILE")]
    pub key: Option<String>,

    /// A head that was noted, as `audit head` printed it: nothing up to it may have changed
    #[arg(long, value_name = "HEAD")]
    pub head: Option<String>,

    /// Number of a note about an incident that you looked into
    #[arg(long = "known", value_name = "NOTE")]
    pub known: Vec<i64>,
}
