//! `agentctl selftest`, as it is typed.

use clap::{Args, ValueHint};

#[derive(Debug, Args)]
#[command(after_long_help = NOTES)]
pub struct SelftestArgs {
    /// Policy: a name, or a TOML file
    #[arg(short, long, value_name = "NAME|FILE", default_value = "coding", value_hint = ValueHint::FilePath)]
    pub policy: String,

    /// Only these cases or families
    #[arg(long = "case", value_name = "ID", value_delimiter = ',')]
    pub cases: Vec<String>,

    /// As root: the uid that plays the ordinary user [default: SUDO_UID, else 61234]
    #[arg(long = "user", value_name = "UID")]
    pub user: Option<u32>,
}

const NOTES: &str = "\
Runs the escape suite in a launch of its own, against victims made for it: files,
a process, servers, shared memory. Takes a minute or two and some gigabytes of
disk for as long; everything is gone afterwards but the record of the launch.
An attack counts as stopped when its victim is unharmed. One that succeeds
because a line of the policy allows it is listed with that line.

Exit code 0: nothing escaped that the policy doesn't open. 1: something did, or
the suite did not come to its end.

Examples:
  agentctl selftest
  agentctl selftest --policy strict
  agentctl --json selftest --policy ./my.toml --case signals,fs_read_abs";
