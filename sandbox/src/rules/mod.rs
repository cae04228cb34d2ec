//! The rules that hold outside the kernel: at the egress proxy, the model gateway, the bus and the drivers.
//!
//! Pure questions with pure answers, each naming the policy line it rests on. They are asked on daemon tasks
//! with no privilege; they never resolve names, connect or keep state. One file per kind of rule.

pub mod egress;
pub mod held;
pub mod ipc;
pub mod limits;
pub mod model;
pub mod ssh;
pub mod tighten;
pub mod tools;

pub use egress::{Decision, EgressRule, EgressRules};
pub use held::{FileGlob, HeldBy};
pub use ipc::IpcRules;
pub use limits::LimitRules;
pub use model::{ModelRules, matches_model};
pub use ssh::SshRules;
pub use tighten::Tightening;
pub use tools::{Remembered, ToolDecision, ToolRule, ToolRules};
