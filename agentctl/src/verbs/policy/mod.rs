//! `policy list | show | lint | diff | test | schema`: the policy language, without a daemon.
//!
//! Reads policy files as the caller and, for a plan, asks the host what it can do. Changes nothing.

mod diff;
mod lint;
mod show;
mod test;

use std::path::PathBuf;

use agentd_api::ErrorCode;
use agentd_sandbox::policy::{Question, json_schema};
use agentd_sandbox::{EffectivePolicy, PolicyError, PolicyRef, Sources};
use serde_json::{Value, json};

use crate::cli::policy::LowPolicyVerb;
use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table};
use crate::resolve::{Context, Workspace, policy_ref, settings, workspace};

/// One resolved `policy …`.
#[derive(Debug)]
pub enum Task {
    List,
    Show {
        policy: PolicyRef,
        settings: Vec<(String, String)>,
        /// The plan of a launch there is wanted, not the values.
        plan_in: Option<Workspace>,
    },
    Lint {
        policies: Vec<PolicyRef>,
    },
    Diff {
        left: PolicyRef,
        right: PolicyRef,
    },
    Test {
        policy: PolicyRef,
        settings: Vec<(String, String)>,
        questions: Vec<Question>,
        expectations: Vec<PathBuf>,
        workspace: Workspace,
    },
    Schema,
}

/// What was typed, checked.
pub fn resolve(verb: LowPolicyVerb, context: &Context) -> Result<Task, Failure> {
    Ok(match verb {
        LowPolicyVerb::List => Task::List,
        LowPolicyVerb::Show(a) => Task::Show {
            policy: policy_ref(&a.policy)?,
            settings: settings(&a.settings)?,
            plan_in: if a.plan {
                Some(workspace(a.workspace.as_deref(), context)?)
            } else {
                None
            },
        },
        LowPolicyVerb::Lint(a) => Task::Lint {
            policies: a
                .policies
                .iter()
                .map(|p| policy_ref(p))
                .collect::<Result<_, _>>()?,
        },
        LowPolicyVerb::Diff(a) => Task::Diff {
            left: policy_ref(&a.left)?,
            right: policy_ref(&a.right)?,
        },
        LowPolicyVerb::Test(a) => test::resolve(*a, context)?,
        LowPolicyVerb::Schema => Task::Schema,
    })
}

/// Does it.
pub fn perform(context: &Context, task: &Task) -> Result<u8, Failure> {
    match task {
        Task::List => list(context),
        Task::Show {
            policy,
            settings,
            plan_in,
        } => show::show(context, policy, settings, plan_in.as_ref()),
        Task::Lint { policies } => lint::lint(context, policies),
        Task::Diff { left, right } => diff::diff(context, left, right),
        Task::Test {
            policy,
            settings,
            questions,
            expectations,
            workspace,
        } => {
            let policy = load(context, policy, settings)?;
            test::test(context, &policy, questions, expectations, workspace)
        }
        Task::Schema => schema(),
    }
}

/// The policy with its settings, or why not.
fn load(
    context: &Context,
    policy: &PolicyRef,
    settings: &[(String, String)],
) -> Result<EffectivePolicy, Failure> {
    EffectivePolicy::load(policy, &sources(context, settings)).map_err(|e| failure(policy, &e))
}

/// The JSON schema of policy files, for editors.
fn schema() -> Result<u8, Failure> {
    let mut out = Out::stdout();
    let text = serde_json::to_string_pretty(&json_schema())
        .map_err(|e| Failure::local("can't print the schema", e))?;
    out.line(text)?;
    out.flush()?;
    Ok(0)
}

/// Where the host's operator keeps policies.
const SYSTEM_FOLDER: &str = "/etc/agentd/policy";

/// The folders in which names are looked up: the user's own, then the operator's.
pub fn sources(context: &Context, settings: &[(String, String)]) -> Sources {
    let mut folders: Vec<PathBuf> = own_folder(context).into_iter().collect();
    folders.push(SYSTEM_FOLDER.into());
    Sources {
        folders,
        settings: settings.to_vec(),
    }
}

/// The user's own policies; root's are the operator's.
pub fn own_folder(context: &Context) -> Option<PathBuf> {
    if context.dirs.uid == 0 {
        return None;
    }
    Some(super::units::files::config_dir(context)?.join("policy"))
}

/// A policy that did not load, as a failure.
pub fn failure(policy: &PolicyRef, error: &PolicyError) -> Failure {
    let what = format!("can't use policy {}", name_of(policy));
    match error {
        PolicyError::NotFound { .. } => {
            Failure::of_code(ErrorCode::NotFound, what, error).try_next("agentctl policy list")
        }
        _ => Failure::of_code(ErrorCode::InvalidPolicy, what, error)
            .try_next("the reference in docs/policy.md, then: agentctl policy lint FILE"),
    }
}

fn name_of(policy: &PolicyRef) -> &str {
    match policy {
        PolicyRef::Name(name) => name,
        PolicyRef::Text { origin, .. } => origin,
    }
}

fn list(context: &Context) -> Result<u8, Failure> {
    let sources = sources(context, &[]);
    let mut out = Out::stdout();
    let mut rows = Vec::new();
    for name in sources.names() {
        let loaded = EffectivePolicy::load(&PolicyRef::Name(name.clone()), &sources);
        let (description, file, error) = match loaded {
            Ok(policy) => (policy.description, policy.files.last().cloned(), None),
            Err(e) => (None, None, Some(e.to_string())),
        };
        rows.push((name, description, file, error));
    }
    if context.is_json() {
        let policies: Vec<Value> = rows
            .iter()
            .map(|(name, description, file, error)| {
                json!({ "name": name, "description": description, "file": file, "error": error })
            })
            .collect();
        out.json(&json!({ "policies": policies }))?;
        return Ok(0);
    }
    let mut table = Table::new(&["NAME", "FROM", "DESCRIPTION"]);
    for (name, description, file, error) in rows {
        let text = match error {
            Some(error) => Cell::styled(Style::Bad, error.lines().next().unwrap_or_default()),
            None => description.unwrap_or_default().into(),
        };
        table.row(vec![
            Cell::styled(Style::Bold, name),
            file.unwrap_or_default().into(),
            text,
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}
