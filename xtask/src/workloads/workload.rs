//! What a workload is: a program in a sandbox, and how its effect is seen from outside.
//!
//! Plain data, so that an entry of [`table`](super::table) reads like the shell session that it is.

/// One program, or one use of it, that has to work in a sandbox.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Unique in the table; `--only` takes it.
    pub name: &'static str,
    /// Programs without which it is skipped; those in [`needs`](super::needs) are installed where that may be done.
    pub needs: &'static [&'static str],
    /// The policy it runs under, by name.
    pub policy: &'static str,
    /// What it needs beyond the policy, as `--set` takes it: an opt-in that a person would type.
    pub set: &'static [&'static str],
    pub folder: Folder,
    pub streams: Streams,
    pub network: Network,
    /// A bash script on the host, as the caller, in the workspace before the launch.
    pub prepare: &'static str,
    /// The bash script inside. It has `$URL` where [`Workload::network`] is the stand-in, and has to exit with 0.
    pub run: &'static str,
    /// A bash script on the host, as the caller, in the workspace afterwards; `$OUT` is a file with what the program
    /// printed. It has to exit with 0, so the sandbox's own word is never enough.
    pub check: &'static str,
}

/// Whether the workspace is given to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Folder {
    Workspace,
    /// For policies that know no workspace.
    None,
}

/// What standard input, output and error are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streams {
    Pipes,
    Terminal,
}

/// What can be reached through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// What the policy says.
    AsIs,
    /// The policy, extended by the host's stand-in server ([`host`](super::host)).
    StandIn,
}

impl Workload {
    /// What an entry leaves out.
    pub const PLAIN: Self = Self {
        name: "",
        needs: &[],
        policy: "coding",
        set: &[],
        folder: Folder::Workspace,
        streams: Streams::Pipes,
        network: Network::AsIs,
        prepare: "",
        run: "",
        check: "",
    };
}
