//! Why there is no plan.

/// A launch that cannot be made as the policy demands. One line each, with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanRefused {
    #[error("this build confines x86_64 programs only and the host is {machine}")]
    Machine { machine: String },
    #[error(
        "property {property}: {missing}; {}to launch without it, add {property:?} to allow under [degrade] in the policy",
        fix.as_ref().map(|fix| format!("to get it: {fix}; ")).unwrap_or_default()
    )]
    Property {
        property: String,
        missing: String,
        /// What the caller can do, where it is known.
        fix: Option<String>,
    },
    #[error("property {property}: {missing}; {fix}")]
    Required {
        property: String,
        missing: String,
        fix: String,
    },
    #[error(
        "property {property}: held by {by} alone, and {demanded_by} demands {mechanisms} mechanisms where this kernel has them: {denied}; see agentctl doctor, or launch with another policy"
    )]
    Depth {
        property: String,
        by: String,
        denied: String,
        mechanisms: u8,
        /// The line of the policy.
        demanded_by: String,
    },
    #[error("{what}: {problem}; {allowed}")]
    Input {
        what: String,
        problem: String,
        allowed: String,
    },
    #[error("the plan does not fit the launcher's format: {0}")]
    Wire(String),
}
