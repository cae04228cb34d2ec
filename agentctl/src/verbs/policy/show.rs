//! `policy show`: every effective value with its origin, or the sandbox that would be built here.

use agentd_api::ErrorCode;
use agentd_kernel::probe::{Roots, probe_host};
use agentd_sandbox::{
    CallerContext, EffectivePolicy, GrantInput, LaunchInputs, Mode, PlanSummary, PolicyRef,
    RuntimeKind, SandboxPlan, StdioMode,
};
use serde_json::json;

use super::load;
use crate::failure::Failure;
use crate::output::{Out, Style, Table};
use crate::resolve::{Context, Workspace};

pub fn show(
    context: &Context,
    policy_ref: &PolicyRef,
    settings: &[(String, String)],
    plan_in: Option<&Workspace>,
) -> Result<u8, Failure> {
    let policy = load(context, policy_ref, settings)?;
    let mut out = Out::stdout();
    match plan_in {
        Some(workspace) => {
            let plan = plan_here(context, &policy, workspace)?;
            if context.is_json() {
                let plan = serde_json::to_value(&plan)
                    .map_err(|e| Failure::local("can't print the plan", e))?;
                out.json(&plan)?;
            } else {
                print_plan(&plan, &mut out)?;
            }
        }
        None if context.is_json() => {
            let mut value = serde_json::to_value(&policy)
                .map_err(|e| Failure::local("can't print the policy", e))?;
            value["hash"] = json!(policy.hash());
            out.json(&value)?;
        }
        None => out.bytes(policy.show().as_bytes())?,
    }
    out.flush()?;
    Ok(0)
}

/// The plan of a launch of `/bin/sh` here and now, by the caller.
fn plan_here(
    context: &Context,
    policy: &EffectivePolicy,
    workspace: &Workspace,
) -> Result<SandboxPlan, Failure> {
    let caller = CallerContext {
        home: context.dirs.home.clone(),
        workspace: workspace.path().map(Into::into),
        exe: None,
        keep: Vec::new(),
    };
    let grants = policy.wanted_grants(&caller).into_iter();
    let grants = grants
        .filter(|g| !g.optional || g.src.exists())
        .map(|g| GrantInput {
            dst: g.dst,
            access: g.access,
        })
        .collect();
    let is_root = context.dirs.uid == 0;
    let gid = rustix::process::getegid().as_raw();
    let inputs = LaunchInputs {
        argv: vec!["/bin/sh".to_owned()],
        exe_hint: None,
        cwd: None,
        caller_env: std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect(),
        extra_env: Default::default(),
        workspace: caller.workspace,
        grants,
        stdio: StdioMode::Pty { rows: 24, cols: 80 },
        uid: if is_root { 1000 } else { context.dirs.uid },
        gid: if is_root || gid == 0 { 1000 } else { gid },
        user_name: "agent".to_owned(),
        caller_home: caller.home,
        home: None,
        home_files: Vec::new(),
        trust: None,
        name: "example".to_owned(),
        mode: if is_root { Mode::Root } else { Mode::User },
        lifeline_grace_ms: 30_000,
        resolver: None,
        direct: false,
    };
    agentd_sandbox::plan(policy, &inputs, &probe_host(&Roots::default())).map_err(|e| {
        Failure::of_code(ErrorCode::LaunchRefused, "can't plan a sandbox here", e)
            .try_next("agentctl doctor")
    })
}

fn print_plan(plan: &SandboxPlan, out: &mut Out) -> Result<(), Failure> {
    out.line(format!(
        "policy {}, sha256 {}",
        plan.policy, plan.policy_hash
    ))?;
    let PlanSummary {
        runtime,
        properties,
        layers,
        mounts,
        masks,
        protected,
        copies,
        landlock_abi,
        landlock,
        ports,
        syscalls,
        seccomp_instructions,
        limits,
        listeners,
        env,
        home,
        cwd,
        argv,
    } = &plan.summary;
    if *runtime != RuntimeKind::Native {
        out.line(format!("runtime {runtime}"))?;
    }
    let heading = |out: &mut Out, text: &str| {
        let text = out.colour.paint(Style::Bold, text);
        out.line("")?;
        out.line(text)
    };
    heading(out, "Properties")?;
    for property in properties {
        let (mark, by) = match property.by.is_empty() {
            false => (out.colour.paint(Style::Good, "✓"), property.by.join(", ")),
            true => (out.colour.paint(Style::Warn, "✗"), "nothing".to_owned()),
        };
        out.line(format!(
            "  {mark} {}: {} (by {by})",
            property.property, property.promise
        ))?;
        for without in &property.without {
            out.line(format!("      without {without}"))?;
        }
    }
    for weaker in &plan.degradations {
        let word = out.colour.paint(Style::Warn, "weaker");
        out.line(format!(
            "  {word}: {}: {}; lost: {}",
            weaker.property, weaker.missing, weaker.lost
        ))?;
    }
    heading(out, "Layers that must be active")?;
    out.line(format!("  {}", layers.join("  ")))?;
    heading(out, "Files")?;
    let mut table = Table::new(&["  PATH", "SOURCE", "ACCESS", "EXEC"]);
    for mount in mounts {
        table.row(vec![
            format!("  {}", mount.path).into(),
            mount.source.as_str().into(),
            mount.access.as_str().into(),
            if mount.exec { "yes" } else { "no" }.into(),
        ]);
    }
    table.print(out)?;
    lines(out, "  hidden: ", masks)?;
    lines(out, "  protected: ", protected)?;
    lines(out, "  copied: ", copies)?;
    heading(out, &format!("Landlock, ABI {landlock_abi}"))?;
    let mut table = Table::new(&["  PATH", "RIGHTS"]);
    for rule in landlock {
        table.row(vec![
            format!("  {}", rule.path).into(),
            rule.rights.as_str().into(),
        ]);
    }
    table.print(out)?;
    if let Some(ports) = ports {
        out.line(format!("  TCP ports: {}", ports.join(", ")))?;
    }
    heading(
        out,
        &format!("System calls, {seccomp_instructions} filter instructions"),
    )?;
    let sets: Vec<&str> = syscalls.iter().map(|set| set.name()).collect();
    out.line(format!("  {}", sets.join("  ")))?;
    heading(out, "Limits")?;
    lines(out, "  ", limits)?;
    heading(out, "Services inside")?;
    lines(out, "  ", listeners)?;
    heading(out, "Environment")?;
    lines(out, "  ", env)?;
    heading(out, "Start")?;
    out.line(format!(
        "  home {home}, in {cwd}: {}",
        crate::output::command_line(argv)
    ))
}

fn lines(out: &mut Out, before: &str, texts: &[String]) -> Result<(), Failure> {
    texts
        .iter()
        .try_for_each(|text| out.line(format!("{before}{}", crate::output::visible(text))))
}
