//! `config check | show | diff`: the daemon's configuration and the units, from their files.
//!
//! The daemon's file is judged by the daemon's own program (`agentd --check-config`), so that there is one parser; units
//! are judged here, by the same pure code that the daemon uses. Only `diff` talks with a daemon, if one runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentd_api::ErrorCode;
use agentd_orchestrator::unit::{Diagnostic, Diff, Unit, UnitFile, UnitName, UnitSet};
use agentd_sandbox::policy::PolicyError;
use agentd_sandbox::{EffectivePolicy, PolicyRef};
use serde_json::{Value, json};

use super::policy::sources;
use super::units::{files, parse, proxy, show};
use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{Out, Style};
use crate::resolve::Context;

/// Which files are meant.
#[derive(Debug, Default)]
pub struct ConfigFiles {
    pub config: Option<PathBuf>,
    pub from: Option<PathBuf>,
}

/// What to do with them.
#[derive(Debug)]
pub enum ConfigTask {
    Check(ConfigFiles),
    Show {
        unit: Option<String>,
        origins: show::Origins,
        files: ConfigFiles,
    },
    Diff(ConfigFiles),
}

pub async fn perform(context: &Context, task: ConfigTask) -> Result<u8, Failure> {
    match task {
        ConfigTask::Check(files) => check(context, &files),
        ConfigTask::Show {
            unit,
            origins,
            files,
        } => display(context, unit.as_deref(), origins, &files),
        ConfigTask::Diff(files) => diff(context, &files).await,
    }
}

/// What the daemon's own program says of its configuration.
fn daemon_config(context: &Context, files: &ConfigFiles) -> Result<Value, Failure> {
    let program = crate::start::find_program()?;
    context.tell(&format!("asking {}", program.display()));
    let mut command = Command::new(&program);
    command.arg("--check-config").stdin(Stdio::null());
    if let Some(file) = &files.config {
        command.arg("--config").arg(file);
    }
    let what = "can't check the daemon's configuration";
    let output = command
        .output()
        .map_err(|e| Failure::local(what, format!("{}: {e}", program.display())))?;
    if output.status.success() {
        return parse(&String::from_utf8_lossy(&output.stdout));
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim_end().trim_start_matches("agentd: ");
    Err(Failure::of_code(
        ErrorCode::InvalidPolicy,
        "the daemon's configuration is wrong",
        text,
    )
    .try_next("docs/operations.md, then: agentctl config check"))
}

/// The sets of units: whose, and either the set or its mistakes.
fn unit_sets(
    context: &Context,
    config: &Value,
    from: Option<&Path>,
) -> Result<Vec<(&'static str, Vec<UnitFile>)>, Failure> {
    let mut sets = Vec::new();
    let mut system = Vec::new();
    for dir in config["unit_dirs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        let dir = Path::new(dir);
        if dir.is_dir() && files::own_dir(context).is_none_or(|own| own != dir) {
            system.extend(files::open(dir)?.into_iter().map(|o| o.unit));
        }
    }
    sets.push(("system", system));
    let own = match from {
        Some(dir) => Some(dir.to_owned()),
        None => files::own_dir(context).filter(|dir| dir.is_dir()),
    };
    if let Some(dir) = own {
        sets.push((
            "own",
            files::open(&dir)?.into_iter().map(|o| o.unit).collect(),
        ));
    }
    Ok(sets)
}

fn ceiling(config: &Value) -> u32 {
    let stated = config["pool_ceiling"]
        .as_u64()
        .and_then(|n| u32::try_from(n).ok());
    stated.unwrap_or(agentd_orchestrator::unit::POOL_CEILING)
}

/// A unit's policy, with the unit's values laid over it.
fn policy_findings(context: &Context, unit: &Unit) -> Vec<Diagnostic> {
    let policy = PolicyRef::Name(unit.run.policy.clone());
    let error = match EffectivePolicy::load(&policy, &sources(context, &unit.run.settings)) {
        Ok(_) => return Vec::new(),
        Err(error) => error,
    };
    match error {
        PolicyError::Invalid(list) => list
            .into_iter()
            .map(|found| {
                let (value, help) = (&found.value, &found.help);
                unit.finding_of_policy(&found.origin.file, value, &found.problem, help)
                    .unwrap_or_else(|| unit.finding("run.policy", found.to_string()))
            })
            .collect(),
        other => vec![unit.finding("run.policy", other.to_string())],
    }
}

fn check(context: &Context, files: &ConfigFiles) -> Result<u8, Failure> {
    let (config, trouble) = match daemon_config(context, files) {
        Ok(config) => (config, None),
        Err(failure) => (Value::Null, Some(failure)),
    };
    let mut findings: Vec<Diagnostic> = Vec::new();
    let mut count = 0;
    for (_, texts) in unit_sets(context, &config, files.from.as_deref())? {
        match UnitSet::load(&texts, ceiling(&config)) {
            Err(error) => findings.extend(error.0),
            Ok(set) => {
                let names = set
                    .names()
                    .chain(set.startable().filter(|n| n.instance().is_some()));
                for unit in names.filter_map(|name| set.unit(name).ok()) {
                    count += 1;
                    findings.extend(policy_findings(context, &unit));
                }
            }
        }
    }
    let ok = findings.is_empty() && trouble.is_none();
    let mut out = Out::stdout();
    if context.is_json() {
        let wrong = trouble.as_ref().map(|f| f.why.clone());
        out.json(&json!({ "ok": ok, "units": count, "config": config["file"], "error": wrong, "findings": findings }))?;
        return Ok(u8::from(!ok));
    }
    let error = out.colour.paint(Style::Bad, "error");
    if let Some(failure) = &trouble {
        out.line(format!("{error}: {}", failure.why))?;
    }
    for finding in &findings {
        out.line(format!("{error}: {finding}"))?;
    }
    if ok {
        let word = out.colour.paint(Style::Good, "ok");
        let file = config["file"].as_str().unwrap_or_default();
        let there = if config["present"] == true {
            ""
        } else {
            " (not there: defaults)"
        };
        let s = if count == 1 { "" } else { "s" };
        out.line(format!("{word}: {file}{there}, {count} unit{s}"))?;
    }
    out.flush()?;
    Ok(u8::from(!ok))
}

fn display(
    context: &Context,
    unit: Option<&str>,
    origins: show::Origins,
    files: &ConfigFiles,
) -> Result<u8, Failure> {
    let config = daemon_config(context, files)?;
    let values: Vec<Value> = match unit {
        None => config["values"].as_array().cloned().unwrap_or_default(),
        Some(name) => {
            let what = || format!("can't show unit {name:?}");
            let parsed = UnitName::parse(name).map_err(|e| Failure::usage(what(), e))?;
            let mut found = Err(Failure::of_code(
                ErrorCode::NotFound,
                what(),
                "there are no units",
            ));
            // One's own before the system's.
            for (_, texts) in unit_sets(context, &config, files.from.as_deref())?
                .into_iter()
                .rev()
            {
                let set = UnitSet::load(&texts, ceiling(&config)).map_err(|e| {
                    Failure::of_code(ErrorCode::InvalidPolicy, what(), e)
                        .try_next("agentctl config check")
                })?;
                match set.unit(&parsed) {
                    Ok(unit) => {
                        found = Ok(unit);
                        break;
                    }
                    Err(e) => found = Err(Failure::of_code(ErrorCode::NotFound, what(), e)),
                }
            }
            let shown = |v: &agentd_orchestrator::unit::Shown| {
                let origin = &v.origin;
                json!({ "key": v.key, "value": v.value, "file": origin.file, "line": origin.line })
            };
            found?.values().iter().map(shown).collect()
        }
    };
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "unit": unit, "file": config["file"], "values": values }))?;
        return Ok(0);
    }
    show::values(&mut out, &values, origins)?;
    out.flush()?;
    Ok(0)
}

/// What the files say and the running daemon does not know yet. Exit code 1 when something differs.
async fn diff(context: &Context, files: &ConfigFiles) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let units = proxy(&daemon).await?;
    let fail = |e| Failure::api("can't ask agentd for its configuration", &e);
    let running = parse(&units.overview().await.map_err(fail)?)?;
    let mut files_meant = ConfigFiles {
        config: files.config.clone(),
        from: files.from.clone(),
    };
    if files_meant.config.is_none() {
        files_meant.config = running["config"]["file"]
            .as_str()
            .map(PathBuf::from)
            .filter(|f| f.exists());
    }
    let config = daemon_config(context, &files_meant)?;
    let changed = value_changes(&running["config"]["values"], &config["values"]);
    let mut report = vec![];
    for (whose, texts) in unit_sets(context, &config, files.from.as_deref())? {
        let set = UnitSet::load(&texts, ceiling(&config)).map_err(|e| {
            Failure::of_code(
                ErrorCode::InvalidPolicy,
                "the units in the files are wrong",
                e,
            )
            .try_next("agentctl config check")
        })?;
        let loaded = match units.texts(whose == "system").await {
            Ok(loaded) => loaded,
            // The system's units are root's to compare.
            Err(e) if e.code() == ErrorCode::Denied && whose == "system" => continue,
            Err(e) => return Err(fail(e)),
        };
        let old: Vec<UnitFile> = loaded
            .into_iter()
            .map(|(place, origin, text)| UnitFile {
                place,
                origin,
                text,
            })
            .collect();
        let old = UnitSet::load(&old, ceiling(&config)).unwrap_or_default();
        report.push((whose, Diff::between(&all(&old), &all(&set))));
    }
    let same = changed.is_empty() && report.iter().all(|(_, diff)| diff.is_empty());
    let shown = |diff: &Diff| {
        let values = |c: &agentd_orchestrator::unit::Changed| -> Vec<Value> {
            c.changes
                .iter()
                .map(|c| json!({ "key": c.key, "old": c.old, "new": c.new }))
                .collect()
        };
        let changed: Vec<Value> = diff
            .changed
            .iter()
            .map(|c| json!({ "unit": c.unit, "values": values(c) }))
            .collect();
        json!({ "added": diff.added, "removed": diff.removed, "changed": changed })
    };
    let mut out = Out::stdout();
    if context.is_json() {
        let units: serde_json::Map<String, Value> = report
            .iter()
            .map(|(whose, diff)| ((*whose).to_owned(), shown(diff)))
            .collect();
        out.json(&json!({ "same": same, "config": changed, "units": units }))?;
        return Ok(u8::from(!same));
    }
    for change in &changed {
        let word = |key: &str| change[key].as_str().unwrap_or("(nothing)").to_owned();
        out.line(format!(
            "~ {}: {} -> {} (needs a restart of agentd)",
            word("key"),
            word("old"),
            word("new")
        ))?;
    }
    for (_, diff) in &report {
        show::print_diff(&mut out, &shown(diff))?;
    }
    if same {
        out.line("the files say what agentd has taken in")?;
    }
    out.flush()?;
    Ok(u8::from(!same))
}

fn all(set: &UnitSet) -> Vec<Unit> {
    let mut names: Vec<&UnitName> = set.names().chain(set.startable()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| set.unit(name).ok())
        .collect()
}

fn value_changes(old: &Value, new: &Value) -> Vec<Value> {
    let map = |values: &Value| -> std::collections::BTreeMap<String, String> {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let values = values.as_array().cloned().unwrap_or_default();
        values
            .iter()
            .map(|v| (text(v, "key"), text(v, "value")))
            .collect()
    };
    let (old, new) = (map(old), map(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| json!({ "key": key, "old": old.get(key), "new": new.get(key) }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agentd_sandbox::Sources;

    #[test]
    fn the_shipped_units_and_their_policies_fit_together() {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../units");
        let texts: Vec<UnitFile> = files::open(&units)
            .expect("units/")
            .into_iter()
            .map(|opened| opened.unit)
            .collect();
        let set = UnitSet::load(&texts, agentd_orchestrator::unit::POOL_CEILING).expect("loads");
        let mut reviewing = 0;
        for unit in all(&set) {
            let sources = Sources {
                folders: vec![units.join("policy")],
                settings: unit.run.settings.clone(),
            };
            let policy = PolicyRef::Name(unit.run.policy.clone());
            let policy = EffectivePolicy::load(&policy, &sources)
                .unwrap_or_else(|e| panic!("{}: {e}", unit.name));
            let writes = policy.wanted_grants(&agentd_sandbox::CallerContext {
                home: None,
                workspace: Some("/work".into()),
                exe: None,
                keep: Vec::new(),
            });
            let workspace = writes.iter().find(|grant| grant.dst == Path::new("/work"));
            let workspace = workspace.expect("every one of them sees the workspace");
            if unit.run.policy == "reviewing" {
                reviewing += 1;
                assert_eq!(
                    workspace.access,
                    agentd_sandbox::Access::ReadOnly,
                    "{}",
                    unit.name
                );
            } else {
                assert_eq!(
                    workspace.access,
                    agentd_sandbox::Access::ReadWrite,
                    "{}",
                    unit.name
                );
            }
        }
        assert_eq!(reviewing, 2, "the coordinator and security change nothing");
    }

    #[test]
    fn a_value_that_differs_is_named_with_both_sides() {
        let values = |text: &str| json!([{ "key": "daemon.max_agents", "value": text }]);
        let changes = value_changes(&values("3"), &values("4"));
        assert_eq!(
            changes,
            [json!({ "key": "daemon.max_agents", "old": "3", "new": "4" })]
        );
        assert!(value_changes(&values("3"), &values("3")).is_empty());
    }
}
