//! Policy language to plan, and the rules the daemon enforces for an agent: egress, model, bus, tools.
//!
//! A policy (TOML) becomes an [`EffectivePolicy`] in which every value knows the file and line it came from;
//! [`plan()`] joins it with the facts of one launch ([`LaunchInputs`]) and of the host
//! ([`agentd_kernel::probe::HostCaps`]) into a [`SandboxPlan`]: the wire bytes for the launcher plus the rules
//! for the daemon's side of the sandbox.
//!
//! Everything here is computation. The one thing that touches the host is [`Sources`], which reads policy
//! files; nothing writes, opens sockets, spawns or keeps time. Runs in agentd and agentctl with no privilege.
//! Every failure is a typed error whose text names file, line, key, value and what is allowed instead.
//! Start reading at [`policy`], then [`plan`](mod@plan); [`denial`] goes the other way, from a refusal to its line.
#![forbid(unsafe_code)]

pub mod denial;
pub mod plan;
pub mod policy;
pub mod ports;
pub mod rules;
pub mod runtime;
pub mod seccomp;

pub use denial::{DenialRules, Reason};
pub use plan::{
    Access, Degradation, GrantInput, HomeFile, LaunchInputs, ListenerPlan, Mode, PlanRefused,
    PlanSummary, Property, PropertyRow, PropertyStatus, SandboxPlan, StdioMode, TrustBundle, plan,
};
pub use policy::{
    Beyond, CallerContext, EffectivePolicy, EnvRules, Excess, ExecRules, FsRules, HardLinks,
    Limits, LoopbackPorts, Memfd, NetMode, NetRules, Origin, PathBase, PathTemplate,
    PolicyDiagnostic, PolicyError, PolicyRef, Severity, ShownValue, Sources, Unchanged, Valued,
    WantedGrant,
};
pub use rules::{
    Decision, EgressRules, FileGlob, HeldBy, IpcRules, LimitRules, ModelRules, Remembered,
    SshRules, Tightening, ToolDecision, ToolRule, ToolRules, egress::is_forbidden_addr,
    matches_model,
};
pub use runtime::RuntimeKind;
