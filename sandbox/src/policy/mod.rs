//! The policy language: from TOML text to values that know where they came from.
//!
//! [`EffectivePolicy::load`] reads a policy and the ones it extends, checks every key and value, and joins them.
//! A policy never changes after that. `docs/policy.md` is the reference for people; its examples are tests.
//! Errors list everything that is wrong, each with file, line, key, value and what is allowed.
//! Start reading at `schema.rs`, the table of keys; `layer.rs` reads one file, `merge.rs` joins them into an
//! `effective.rs`, `grants.rs` says which paths a launch needs.

mod ceiling;
mod ceiling_files;
mod diff;
mod effective;
mod error;
mod expect;
mod grants;
mod json_schema;
mod layer;
mod lint;
mod merge;
mod origin;
mod path;
mod question;
mod schema;
mod settings;
mod sources;
mod suggest;
mod tighten;
mod trust;
pub(crate) mod units;
mod value;

pub use ceiling::Excess;
pub use diff::{Difference, PolicyDiff};
pub use effective::{
    CallerContext, EffectivePolicy, EnvRules, ExecRules, FsRules, HardLinks, Limits, LoopbackPorts,
    Memfd, NetMode, NetRules, ShownValue, WantedGrant,
};
pub use error::{PolicyDiagnostic, PolicyError, Severity};
pub use expect::Expectation;
pub use json_schema::{SCHEMA_FILE, json_schema};
pub use origin::{Origin, Valued};
pub use path::{PathBase, PathTemplate};
pub use question::{Answer, QUESTIONS, Question, Verdict};
pub use sources::{PolicyRef, Sources};
pub use tighten::{Beyond, Unchanged};
pub use trust::read_policy_file;
