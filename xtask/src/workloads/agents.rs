//! The real Claude Code and Codex under `coding`: the demo that each of them plays, in each mode.
//!
//! Nothing of its own: what is launched and judged is `cargo xtask demo --claude` and `--codex`. Without npm they are
//! skipped by name.

use std::time::Instant;

use anyhow::{Context, Result};

use super::{Args, Ended, MAIN_POLICY, Mode, Verdict};
use crate::demo::npm::{self, Agent};
use crate::test::{Outcome, demos, needs};

pub const NAMES: [&str; 2] = ["claude-code", "codex"];
const AGENTS: [(&str, &str, &Agent); 2] = [
    (NAMES[0], "--claude", &npm::CLAUDE),
    (NAMES[1], "--codex", &npm::CODEX),
];

/// Those that the arguments name.
pub fn run(args: &Args) -> Result<Vec<Ended>> {
    let is_root = rustix::process::geteuid().is_root();
    let scratch = tempfile::Builder::new()
        .prefix("agentd-workloads-")
        .tempdir()
        .context("make a scratch directory")?;
    let mut all = Vec::new();
    for (name, flag, agent) in AGENTS {
        if !args.names(name, MAIN_POLICY) {
            continue;
        }
        for mode in [Mode::Root, Mode::User] {
            if !args.wants(mode) || (mode == Mode::Root && !is_root) {
                continue;
            }
            let begun = Instant::now();
            let played = || -> Result<Outcome> {
                let programs = args.programs()?;
                if is_root && mode == Mode::User {
                    demos::real_as_somebody(&programs, flag, agent)
                } else {
                    demos::real_as_caller(&programs, scratch.path(), flag, agent)
                }
            };
            let verdict = if needs::which("npm").is_none() {
                Verdict::Skipped {
                    feature: "npm".to_owned(),
                    why: format!(
                        "{} comes from npm: sudo apt-get install -y npm",
                        agent.title
                    ),
                }
            } else {
                match played() {
                    Ok(outcome) if outcome.failed == 0 => Verdict::Passed,
                    Ok(outcome) => Verdict::Failed(outcome.failures.join("; ")),
                    Err(error) => Verdict::Failed(format!("{error:#}")),
                }
            };
            crate::stop::check()?;
            let ended = Ended {
                mode,
                name: name.to_owned(),
                policy: MAIN_POLICY.to_owned(),
                verdict,
                seconds: begun.elapsed().as_secs_f64(),
            };
            ended.tell();
            all.push(ended);
        }
    }
    Ok(all)
}
