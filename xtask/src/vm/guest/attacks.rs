//! The attack suite (`escape/`) under the shipped policies: what is stopped on this kernel, and what a line of the policy
//! or a property that nothing holds here leaves open.
//!
//! Runs as root, which also raises the victims; agents run as an ordinary user. User mode gets a daemon of its own.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Bed, PROGRAMS, Teller, facts};
use crate::attack::Runtime;
use crate::attack::ours::{self, Target};
use crate::attack::suite::{Judgement, Outcome, Suite};
use crate::child::capture;
use crate::lab::{Mode, Programs};

/// Cases, by how their ids begin, that stay open where nothing holds a property that the policy lets go.
const DEGRADED: [(&str, &str); 1] = [("memfd-exec", "ex_memfd")];

/// Gigabytes and thousands of processes: minutes here, no matter of the kernel's version, and `limits.*` show the limits.
const LEFT_OUT: &str = "resource";

pub fn cases(teller: &Teller, bed: &Bed) -> Result<()> {
    let suite = Suite::at(&Path::new(PROGRAMS).join("agentd-escape"))?;
    let programs = Programs::in_directory(PROGRAMS.as_ref())?;
    let families = families(&suite)?;
    for policy in ["strict", "coding"] {
        teller.run(&format!("attack.{policy}"), || {
            let place = tempfile::Builder::new()
                .prefix("victims-")
                .permissions(std::fs::Permissions::from_mode(0o755))
                .tempdir()
                .context("make a directory for the victims")?;
            let target = target(policy, Mode::Root);
            let judged = ours::run(&suite, &bed.lab, target, Some(place.path()), &families)?;
            judge(teller, bed, policy, Mode::Root, &judged)
        })?;
    }
    teller.run("attack.coding.user", || {
        let judged = ours::judge(&suite, &programs, target("coding", Mode::User), &families)?;
        judge(teller, bed, "coding", Mode::User, &judged)
    })
}

fn target(policy: &str, mode: Mode) -> Target<'_> {
    Target {
        policy,
        mode,
        runtime: Runtime::Native,
    }
}

/// The suite's families but the one that is left out.
fn families(suite: &Suite) -> Result<Vec<String>> {
    let said = capture(Command::new(suite.program()).arg("list"))?;
    let list: Vec<Value> = serde_json::from_str(&said).context("read the list of cases")?;
    let families: BTreeSet<String> = list
        .iter()
        .filter_map(|case| case["family"].as_str())
        .filter(|family| *family != LEFT_OUT)
        .map(str::to_owned)
        .collect();
    ensure!(!families.is_empty(), "the suite lists no cases");
    Ok(families.into_iter().collect())
}

/// Reports a session, and fails for what is open and should not be.
fn judge(teller: &Teller, bed: &Bed, policy: &str, mode: Mode, judged: &Judgement) -> Result<()> {
    let ids = |wanted: Outcome| -> Vec<&str> {
        judged
            .verdicts
            .iter()
            .filter(|verdict| verdict.outcome == wanted)
            .map(|verdict| verdict.id.as_str())
            .collect()
    };
    let opened: Vec<Value> = judged
        .escaped()
        .map(|verdict| json!({"id": verdict.id, "by": verdict.opened_by}))
        .collect();
    teller.fact(
        &format!("attack.{policy}.{}", mode.name()),
        json!({
            "suite": judged.suite,
            "stopped": judged.count(Outcome::Stopped),
            "escaped": opened,
            "unavailable": ids(Outcome::Unavailable),
        }),
    )?;
    ensure!(judged.whole, "the session broke off: {}", judged.session);
    let degraded = facts::degradations(bed, policy)?;
    let excused = |id: &str| {
        DEGRADED.iter().any(|(property, begin)| {
            degraded.iter().any(|name| name == property) && id.starts_with(begin)
        })
    };
    let open: Vec<String> = judged
        .unopened()
        .filter(|verdict| !excused(&verdict.id))
        .map(|verdict| format!("{} ({}): {}", verdict.id, verdict.title, verdict.detail))
        .collect();
    ensure!(
        open.is_empty(),
        "{} of {} attacks are open by no line of {policy}: {}",
        open.len(),
        judged.verdicts.len(),
        open.join("; ")
    );
    Ok(())
}
