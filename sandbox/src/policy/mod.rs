//! The policy language: from TOML text to values that know where they came from.
//!
//! [`EffectivePolicy::load`] reads a policy and the ones it extends, checks every key and value, and joins them.
//! A policy never changes after that. `docs/policy.md` is the reference for people; its examples are tests.
//! Errors list everything that is wrong, each with file, line, key, value and what is allowed.
//! Start reading at `schema.rs`, the table of keys; `layer.rs` reads one file, `effective.rs` joins them.

mod effective;
mod error;
mod layer;
mod lint;
mod origin;
mod path;
mod schema;
mod sources;
mod suggest;
pub(crate) mod units;

pub use effective::{
    CallerContext, EffectivePolicy, EnvRules, FsRules, Limits, ShownValue, WantedGrant,
};
pub use error::{PolicyDiagnostic, PolicyError, Severity};
pub use origin::{Origin, Valued};
pub use path::{PathBase, PathTemplate};
pub use sources::{PolicyRef, Sources};
