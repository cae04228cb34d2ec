//! `policy test`: may an agent under this policy do that, and which line says so? By hand, or from a file of
//! expectations in CI.

use std::path::PathBuf;

use agentd_sandbox::policy::{Answer, Expectation, Question, Verdict};
use agentd_sandbox::{CallerContext, EffectivePolicy};
use serde_json::{Value, json};

use super::Task;
use crate::cli::policy::PolicyTestArgs;
use crate::failure::Failure;
use crate::output::{Out, Style};
use crate::resolve::{Context, Workspace, policy_ref, settings, workspace};

pub fn resolve(args: PolicyTestArgs, context: &Context) -> Result<Task, Failure> {
    let mut questions = Vec::new();
    for (kind, list) in [
        ("read", &args.read),
        ("write", &args.write),
        ("exec", &args.exec),
        ("connect", &args.connect),
        ("tool", &args.tool),
        ("model", &args.model),
        ("env", &args.env),
        ("syscalls", &args.syscalls),
        ("send", &args.send),
        ("request", &args.request),
        ("publish", &args.publish),
        ("subscribe", &args.subscribe),
    ] {
        for typed in list {
            questions.push(question(kind, typed)?);
        }
    }
    if questions.is_empty() && args.expectations.is_empty() {
        return Err(
            Failure::usage("can't test the policy", "nothing is asked").try_next(
                "agentctl policy test coding --read ~/.ssh/id_ed25519 --connect github.com:443",
            ),
        );
    }
    Ok(Task::Test {
        policy: policy_ref(&args.policy)?,
        settings: settings(&args.settings)?,
        questions,
        expectations: args.expectations,
        workspace: if args.no_workspace {
            Workspace::None
        } else {
            workspace(args.workspace.as_deref(), context)?
        },
    })
}

/// A question as typed: paths may be relative to where we are.
fn question(kind: &str, typed: &str) -> Result<Question, Failure> {
    let is_path = ["read", "write", "exec"].contains(&kind);
    let relative = is_path && !typed.is_empty() && !typed.starts_with(['/', '~', '$']);
    let about = if relative {
        let path = crate::resolve::absolute(PathBuf::from(typed))?;
        path.to_str().unwrap_or(typed).to_owned()
    } else {
        typed.to_owned()
    };
    Question::new(kind, &about)
        .map_err(|why| Failure::usage(format!("can't ask --{kind} {typed:?}"), why))
}

/// Exit code 1 where an expectation is not met; the answers themselves never fail.
pub fn test(
    context: &Context,
    policy: &EffectivePolicy,
    questions: &[Question],
    files: &[PathBuf],
    workspace: &Workspace,
) -> Result<u8, Failure> {
    let caller = CallerContext {
        home: context.dirs.home.clone(),
        workspace: workspace.path().map(Into::into),
        exe: None,
        keep: Vec::new(),
    };
    let mut out = Out::stdout();
    let answers: Vec<Answer> = questions
        .iter()
        .map(|q| policy.answer(q, &caller))
        .collect();
    let mut expected = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let fail = |e: &dyn std::fmt::Display| {
            Failure::usage(format!("can't use the expectations in {name}"), e)
        };
        let text = std::fs::read_to_string(file).map_err(|e| fail(&e))?;
        for expectation in Expectation::read(&name, &text).map_err(|e| fail(&e))? {
            let answer = policy.answer(&expectation.question, &caller);
            expected.push((expectation, answer));
        }
    }
    let misses = expected
        .iter()
        .filter(|(e, a)| e.verdict != a.verdict)
        .count();
    if context.is_json() {
        let expected: Vec<Value> = expected
            .iter()
            .map(|(e, a)| {
                json!({
                    "origin": e.origin, "expected": e.verdict, "met": e.verdict == a.verdict, "answer": a,
                })
            })
            .collect();
        out.json(&json!({
            "policy": policy.name, "hash": policy.hash(), "ok": misses == 0,
            "answers": answers, "expectations": expected,
        }))?;
        return Ok(u8::from(misses > 0));
    }
    for answer in &answers {
        say(&mut out, answer, "")?;
    }
    for (expectation, answer) in expected.iter().filter(|(e, a)| e.verdict != a.verdict) {
        let wanted = format!(
            "{}: {} was expected: ",
            expectation.origin,
            word(expectation.verdict)
        );
        say(&mut out, answer, &wanted)?;
    }
    if !expected.is_empty() {
        let met = expected.len() - misses;
        out.line(format!("{met} of {} expectations met", expected.len()))?;
    }
    out.flush()?;
    Ok(u8::from(misses > 0))
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Ask => "ask",
        Verdict::Deny => "deny",
    }
}

fn say(out: &mut Out, answer: &Answer, before: &str) -> Result<(), Failure> {
    let style = match answer.verdict {
        Verdict::Allow => Style::Good,
        Verdict::Ask => Style::Warn,
        Verdict::Deny => Style::Bad,
    };
    let word = out.colour.paint(style, word(answer.verdict));
    let by = answer
        .by
        .as_ref()
        .map_or(String::new(), |by| format!("  # {by}"));
    let question = crate::output::visible(&answer.question.to_string());
    let why = crate::output::visible(&answer.why);
    out.line(format!("{before}{word}  {question}: {why}{by}"))
}
