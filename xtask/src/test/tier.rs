//! The tiers of `cargo xtask test` and what one of them reports.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::skips::{Skip, summary};

/// A group of tests with the same needs. The order is the order in which they run: cheapest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Tier {
    /// Format, lints, crate arrows, generated files, promises and verbs named in the documents.
    Checks,
    /// Inline tests of every crate, and the examples in its documentation.
    Unit,
    /// Every schedule of the lock-free parts, under loom.
    Model,
    /// The kept inputs of every fuzz target, then a few seconds of libFuzzer for each.
    Fuzz,
    /// `tests/` of the library crates: real kernel objects, many of them as root.
    Integration,
    /// The eBPF programs in this kernel: the committed object, and the one that its source builds.
    Kernel,
    /// The daemon as a whole: agentd, broker, launcher, agentctl.
    E2e,
    /// A few runs of `cargo xtask bench crash`: seeded kill -9 while tasks are worked off.
    Crash,
    /// `cargo xtask attack`: the escape suite under `strict` and `coding`, as root and as an ordinary user.
    Attack,
    /// `cargo xtask workloads`: real programs in real sandboxes, as root and as an ordinary user.
    Workloads,
    /// `cargo xtask systemd`: agentd as a service of a real systemd, in namespaces.
    Systemd,
    /// `cargo xtask vm --kernel 6.1,6.12`: the sandbox on the kernels of two Debian releases, in QEMU.
    Vm,
    /// `cargo xtask demo`, as root and as an ordinary user.
    Demo,
    /// `cargo xtask demo --claude`: the real Claude Code.
    Claude,
    /// `cargo xtask demo --codex`: the real Codex.
    Codex,
    /// `cargo xtask demo --acp`: the real opencode, over the Agent Client Protocol.
    Acp,
}

impl Tier {
    pub const ALL: [Self; 16] = [
        Self::Checks,
        Self::Unit,
        Self::Model,
        Self::Fuzz,
        Self::Integration,
        Self::Kernel,
        Self::E2e,
        Self::Crash,
        Self::Attack,
        Self::Workloads,
        Self::Systemd,
        Self::Vm,
        Self::Demo,
        Self::Claude,
        Self::Codex,
        Self::Acp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Checks => "checks",
            Self::Unit => "unit",
            Self::Model => "model",
            Self::Fuzz => "fuzz",
            Self::Integration => "integration",
            Self::Kernel => "kernel",
            Self::E2e => "e2e",
            Self::Crash => "crash",
            Self::Attack => "attack",
            Self::Workloads => "workloads",
            Self::Systemd => "systemd",
            Self::Vm => "vm",
            Self::Demo => "demo",
            Self::Claude => "claude",
            Self::Codex => "codex",
            Self::Acp => "acp",
        }
    }
}

/// What a tier reports.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Outcome {
    pub passed: u32,
    pub failed: u32,
    pub skips: Vec<Skip>,
    /// What failed, one line each, told again at the end of the run.
    pub failures: Vec<String>,
    /// What failed beside other tests and passed each time by itself: counted as passed, and told by name.
    pub unsteady: Vec<String>,
}

impl Outcome {
    /// Of what could not be run at all.
    pub fn failed(what: impl Into<String>) -> Self {
        let mut outcome = Self::default();
        outcome.fail(what);
        outcome
    }

    pub fn pass(&mut self) {
        self.passed += 1;
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        self.failed += 1;
        self.failures.push(what.into());
    }

    pub fn skip(&mut self, skip: Skip) {
        self.skips.push(skip);
    }

    /// Counts another run as a part of this one.
    pub fn absorb(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skips.extend(other.skips);
        self.failures.extend(other.failures);
        self.unsteady.extend(other.unsteady);
    }

    /// Its failures were accidents.
    pub fn steadied(mut self) -> Self {
        self.passed += std::mem::take(&mut self.failed);
        self.unsteady.append(&mut self.failures);
        self
    }

    /// `tier NAME: N passed, N failed, N skipped[, N unsteady] in N s (reasons)`
    pub fn line(&self, tier: Tier, took: Duration) -> String {
        let mut line = format!(
            "tier {}: {} passed, {} failed, {} skipped",
            tier.name(),
            self.passed,
            self.failed,
            self.skips.len(),
        );
        if !self.unsteady.is_empty() {
            line += &format!(", {} unsteady", self.unsteady.len());
        }
        line += &format!(" in {} s", took.as_secs());
        if !self.skips.is_empty() {
            line += &format!(" ({})", summary(&self.skips));
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_line_gives_the_reasons_of_its_skips() {
        let mut outcome = Outcome {
            passed: 3,
            ..Outcome::default()
        };
        assert_eq!(
            outcome.line(Tier::Unit, Duration::from_millis(2900)),
            "tier unit: 3 passed, 0 failed, 0 skipped in 2 s"
        );
        outcome.skip(Skip::new("root", "run it as root"));
        outcome.fail("a::b");
        assert_eq!(
            outcome.line(Tier::E2e, Duration::from_secs(60)),
            "tier e2e: 3 passed, 1 failed, 1 skipped in 60 s (root: run it as root)"
        );
        assert_eq!(
            outcome.steadied().line(Tier::E2e, Duration::from_secs(60)),
            "tier e2e: 4 passed, 0 failed, 1 skipped, 1 unsteady in 60 s (root: run it as root)"
        );
    }
}
