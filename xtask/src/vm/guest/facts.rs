//! What this kernel offers: the host's probes, and which mechanisms hold each property of the `coding` policy here.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Bed, PROGRAMS, Teller};
use crate::child::capture;

/// What the oldest kernel can't hold, or a user without root.
const MAY_BE_OPEN: [&str; 4] = ["own-uid", "own-groups", "memfd-exec", "disk-limit"];

/// As `uname -r` says it.
pub fn release() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("read /proc/sys/kernel/osrelease")?;
    Ok(text.trim().to_owned())
}

/// Reports `doctor` and the plan, and checks that they agree with the running kernel.
pub fn tell(teller: &Teller, bed: &Bed) -> Result<()> {
    let doctor = bed.lab.ask(&["doctor"])?;
    teller.fact("landlock_abi", doctor["landlock_abi"].clone())?;
    teller.fact("probes", probes(&doctor))?;
    let plan = plan(bed, "coding")?;
    teller.fact("properties", properties(&plan))?;
    teller.run("plan.properties", || {
        let held = properties(&plan);
        let open: Vec<&String> = held
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, by)| by.as_array().is_none_or(Vec::is_empty))
            .map(|(name, _)| name)
            .collect();
        let empty = held.as_object().is_none_or(serde_json::Map::is_empty);
        anyhow::ensure!(!empty, "the plan lists no properties: {plan}");
        anyhow::ensure!(
            open.iter().all(|name| MAY_BE_OPEN.contains(&name.as_str())),
            "nothing holds {open:?} here"
        );
        Ok(())
    })?;
    teller.run("doctor.fit", || match doctor["ok"].as_bool() {
        Some(true) => Ok(()),
        _ => bail!("agentctl doctor says that nothing can be launched: {doctor}"),
    })?;
    teller.run("record.layers", || layers(bed))
}

/// As `doctor` finds it, without a daemon.
pub fn landlock_abi() -> Result<u64> {
    let mut doctor = Command::new(format!("{PROGRAMS}/agentctl"));
    let said = capture(doctor.args(["--json", "doctor"]))?;
    let doctor: Value = serde_json::from_str(&said).context("read what doctor says")?;
    let abi = doctor["landlock_abi"].as_u64();
    abi.with_context(|| format!("doctor names no Landlock ABI: {doctor}"))
}

/// Feature and state of each probe.
fn probes(doctor: &Value) -> Value {
    let list = doctor["probes"].as_array();
    Value::Object(
        list.into_iter()
            .flatten()
            .filter_map(|probe| {
                Some((
                    probe["feature"].as_str()?.to_owned(),
                    probe["state"].clone(),
                ))
            })
            .collect(),
    )
}

/// What becomes of a policy on this kernel.
fn plan(bed: &Bed, policy: &str) -> Result<Value> {
    let workspace = bed.workspace()?;
    let mut command = bed.lab.agentctl();
    command
        .args(["--json", "policy", "show", policy, "--plan", "--workspace"])
        .arg(workspace.path());
    serde_json::from_str(&capture(&mut command)?).context("read the plan")
}

/// The properties that a policy lets go here.
pub fn degradations(bed: &Bed, policy: &str) -> Result<Vec<String>> {
    let plan = plan(bed, policy)?;
    Ok(plan["degradations"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|lost| Some(lost["property"].as_str()?.to_owned()))
        .collect())
}

/// The mechanisms that hold each property.
fn properties(plan: &Value) -> Value {
    let list = plan["summary"]["properties"].as_array();
    Value::Object(
        list.into_iter()
            .flatten()
            .filter_map(|row| Some((row["property"].as_str()?.to_owned(), row["by"].clone())))
            .collect(),
    )
}

/// A launch under `coding` succeeds, and its record lists Landlock and seccomp as really active.
fn layers(bed: &Bed) -> Result<()> {
    let done = bed.run(&["--name", "layers"], &["true"])?;
    if done.code != Some(0) {
        bail!("agentctl run -- true: {:?}: {}", done.code, done.err);
    }
    let shown = bed.lab.ask(&["inspect", "layers"])?;
    let active = shown["layers"]
        .as_array()
        .with_context(|| format!("the record lists no layers: {shown}"))?;
    for layer in ["landlock", "seccomp"] {
        if !active.iter().any(|name| name == &json!(layer)) {
            bail!("layer {layer} is not among {active:?}");
        }
    }
    Ok(())
}
