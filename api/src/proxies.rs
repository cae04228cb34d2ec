//! The D-Bus interfaces, as a client sees them.
//!
//! Served on the control socket peer to peer: no bus, no names, one connection per client. The
//! daemon registers, per connection, only the objects that the peer's uid may see.

use std::collections::HashMap;

use zbus::{Fd, OwnedFd, OwnedObjectPath};

use crate::{
    AgentState, AgentSummary, AttachOptions, DaemonInfo, Error, ExitInfo, LaunchReply, LaunchSpec,
    LogOptions, PlaneGroup, Restrictions, Revocable, TightenSpec,
};

/// `/org/agentd1`: the daemon as a whole.
#[zbus::proxy(
    interface = "org.agentd1.Manager",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Manager {
    /// Launches an agent. `grants` are sockets made by `agentd_kernel::grant::send`, the
    /// workspace's first. Returns when the sandbox stands.
    fn launch(&self, spec: &LaunchSpec, grants: Vec<Fd<'_>>) -> Result<LaunchReply, Error>;

    /// Agents that are live, or ended while this daemon ran.
    fn agents(&self) -> Result<Vec<AgentSummary>, Error>;

    /// The object of an agent, by name, id, or an end of its id.
    fn find(&self, name_or_id: &str) -> Result<OwnedObjectPath, Error>;

    /// Everything on record about one launch: a JSON document.
    fn record(&self, name_or_id: &str) -> Result<String, Error>;

    /// Every launch on record that the caller may see: a JSON array, newest first.
    fn records(&self) -> Result<String, Error>;

    /// Puts a connection to the caller's ssh-agent, opened by the caller, behind the socket of an agent whose policy
    /// forwards one.
    fn forward_ssh_agent(&self, name_or_id: &str, connection: Fd<'_>) -> Result<(), Error>;

    /// Version, mode and pid.
    fn ping(&self) -> Result<DaemonInfo, Error>;

    /// Every group of the kernel plane's programs: whether it is loaded, and why not.
    fn kernel_plane(&self) -> Result<Vec<PlaneGroup>, Error>;

    /// Ends the daemon and its agents. For its own user and root only.
    fn shutdown(&self) -> Result<(), Error>;
}

/// `/org/agentd1/agent/ID`: one agent.
#[zbus::proxy(
    interface = "org.agentd1.Agent",
    default_service = "org.agentd1",
    assume_defaults = false
)]
pub trait Agent {
    /// A socket that carries [`crate::AttachFrame`]s.
    fn attach(&self, options: &AttachOptions) -> Result<OwnedFd, Error>;

    /// SIGTERM to the program, SIGKILL to the tree after `grace_ms`; returns when all is dead.
    fn stop(&self, grace_ms: u32) -> Result<(), Error>;

    /// Kills the tree at once.
    fn kill(&self) -> Result<(), Error>;

    /// Sends a signal to the program.
    fn signal(&self, signo: i32) -> Result<(), Error>;

    /// A pipe from which the output can be read.
    fn logs(&self, options: &LogOptions) -> Result<OwnedFd, Error>;

    /// The log offset at which a reading with these options begins: a follower that counts from there can go on with
    /// `from_offset` after a restart of agentd.
    fn log_start(&self, options: &LogOptions) -> Result<u64, Error>;

    /// Takes rights from it, in the kernel; they stay taken until `Restore`, whoever restarts.
    fn revoke(&self, rights: &[Revocable]) -> Result<Restrictions, Error>;

    /// Lays a policy, or settings, over its own while it runs: everything has to pass both. They stay until `Restore` of
    /// `policy`, whoever restarts.
    fn tighten(&self, spec: &TightenSpec) -> Result<Restrictions, Error>;

    /// Gives rights back, all of them if none is named: for root, and for whoever took them.
    fn restore(&self, rights: &[Revocable]) -> Result<Restrictions, Error>;

    /// Stops every process of it, until `Thaw`.
    fn freeze(&self) -> Result<Restrictions, Error>;

    /// Lets it run again: for root, and for whoever froze it.
    fn thaw(&self) -> Result<Restrictions, Error>;

    /// What is taken from it.
    fn restrictions(&self) -> Result<Restrictions, Error>;

    /// Returns when the agent has ended.
    fn wait(&self) -> Result<ExitInfo, Error>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn id(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> zbus::Result<String>;
    /// 0 when there is no process.
    #[zbus(property(emits_changed_signal = "false"))]
    fn pid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn uid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn policy(&self) -> zbus::Result<String>;
    /// `pty`, `pipes` or `null`: what a client should make of its own terminal when it attaches.
    #[zbus(property(emits_changed_signal = "const"))]
    fn stdio(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn layers(&self) -> zbus::Result<Vec<String>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn input_tokens(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn output_tokens(&self) -> zbus::Result<u64>;
    /// What eBPF programs counted of it since its launch: `packets_in`, `packets_out`, `bytes_in`, `bytes_out` (IP headers included),
    /// `refused`, `untold`. Empty where nothing counts, and of an agent that has ended: its figures are on record.
    #[zbus(property(emits_changed_signal = "false"))]
    fn kernel_counters(&self) -> zbus::Result<HashMap<String, u64>>;
    #[zbus(property(emits_changed_signal = "const"))]
    fn workspace(&self) -> zbus::Result<String>;
    /// Unix time in milliseconds.
    #[zbus(property(emits_changed_signal = "const"))]
    fn started_at(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn state_changed(&self, state: AgentState) -> zbus::Result<()>;
    #[zbus(signal)]
    fn exited(&self, exit: ExitInfo) -> zbus::Result<()>;
}
