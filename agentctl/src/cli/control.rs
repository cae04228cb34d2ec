//! `revoke`, `restore`, `freeze` and `thaw`: what can be typed.

use clap::Args;

use super::AgentsArg;

pub const REVOKE_NOTES: &str = "\
What can be revoked:
  net    every connection but those to the model gateway, the bus and MCP; what
         is open through the proxy is shut
  exec   starting programs; needs BPF LSM
  write  opening files for writing, making, removing and renaming them; needs
         BPF LSM. What is open for writing stays open

It holds at once, in the kernel, and outlives agentd. Only whoever revoked a
right, or root, restores it. A host that can't do it refuses and says why.
To end an agent instead: `agentctl kill`.

Examples:
  agentctl revoke net crawler
  agentctl revoke exec,write coder reviewer
  agentctl restore net crawler";

#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// What to take: net, exec, write; several with commas
    #[arg(value_name = "RIGHT", value_delimiter = ',', required = true, action = clap::ArgAction::Set, value_parser = ["net", "exec", "write"], num_args = 1)]
    pub rights: Vec<String>,

    #[command(flatten)]
    pub agents: AgentsArg,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What to give back: net, exec, write, several with commas; or all
    #[arg(value_name = "RIGHT", value_delimiter = ',', required = true, action = clap::ArgAction::Set, value_parser = ["net", "exec", "write", "all"], num_args = 1)]
    pub rights: Vec<String>,

    #[command(flatten)]
    pub agents: AgentsArg,
}
