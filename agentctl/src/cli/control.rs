//! `revoke`, `tighten`, `restore`, `freeze` and `thaw`: what can be typed.

use clap::{Args, ValueHint};

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
    #[arg(
        value_name = "RIGHT",
        value_delimiter = ',',
        required = true,
        action = clap::ArgAction::Set,
        value_parser = ["net", "exec", "write"],
        num_args = 1
    )]
    pub rights: Vec<String>,

    #[command(flatten)]
    pub agents: AgentsArg,
}

pub const TIGHTEN_NOTES: &str = "\
From then on everything must be allowed by the agent's policy and by this one, so
it can only take away. With a policy all of these hold, what it does not mention
included; with settings alone, those keys and no others:
  net      mode, allow, ask, credentials; open connections that are refused
           now are reset
  model    access, models, max_tokens; limits.tokens and limits.cost; requests
           under way that are refused now are cut
  limits   memory, pids, cpu, where this host's cgroups hold them; memory below
           what is in use as the kernel takes it
  ipc      send, request, publish, subscribe, shared_memory; what is open on the
           bus by them is closed
  tools    allow, ask, deny, as drivers ask
  ssh      agent, keys, sign

Other keys can't change while a program runs: as settings they are refused, in a
policy file they are named and do nothing. `agentctl revoke` takes what the
kernel can. It outlives agentd; `agentctl restore policy` ends it, for whoever
tightened and for root.

Examples:
  agentctl tighten crawler --set net.allow=docs.example
  agentctl tighten coder reviewer --policy careful.toml
  agentctl tighten coder --set 'tools.ask=Bash(git push*)' --set limits.cost=2
  agentctl restore policy coder";

#[derive(Debug, Args)]
pub struct TightenArgs {
    #[command(flatten)]
    pub agents: AgentsArg,

    /// Policy: a name, or a TOML file
    #[arg(short, long, value_name = "NAME|FILE", value_hint = ValueHint::FilePath, required_unless_present = "settings")]
    pub policy: Option<String>,

    /// A key that holds as well, or alone; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub settings: Vec<String>,
}

#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// What to give back: net, exec, write, or policy (what `tighten` took), several with commas; or all
    #[arg(
        value_name = "RIGHT",
        value_delimiter = ',',
        required = true,
        action = clap::ArgAction::Set,
        value_parser = ["net", "exec", "write", "policy", "all"],
        num_args = 1
    )]
    pub rights: Vec<String>,

    #[command(flatten)]
    pub agents: AgentsArg,
}
