//! The policy language: from TOML text to values that know where they came from.
//!
//! [`EffectivePolicy::load`] reads a policy and the ones it extends, checks every key and value, and joins them.
//! A policy never changes after that. `docs/policy.md` is the reference for people; its examples are tests.
//! Errors list everything that is wrong, each with file, line, key, value and what is allowed.

mod effective;
mod error;
mod origin;
mod sources;

pub use effective::{CallerContext, EffectivePolicy, Limits, WantedGrant};
pub use error::{PolicyDiagnostic, PolicyError, Severity};
pub use origin::{Origin, Valued};
pub use sources::{PolicyRef, Sources};
