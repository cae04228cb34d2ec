//! From what a client or an agent asks for to what the book and the record take. Pure.

use agentd_api::Error;
use agentd_api::tasks::{MAX_REQUEST_ID, MAX_TASK_TEXT, TaskSpec};
use agentd_orchestrator::task::{
    Deadline, MAX_RETRIES, OnDependencyFailure, Priority, Retry, State, Target, TaskId, Terms,
};

/// Longest name of a target, in bytes.
const MAX_NAME: usize = 255;
/// Longest pause between attempts.
const MAX_BACKOFF_MS: u64 = 24 * 3_600_000;
/// Longest relative deadline: ten years.
const MAX_DEADLINE_MS: u64 = 10 * 365 * 24 * 3_600_000;

/// A submission that is well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    pub uid: u32,
    /// Who hands it in, for people.
    pub by: String,
    pub text: String,
    pub terms: Terms,
    pub request_id: Option<String>,
    pub parent: Option<TaskId>,
    pub retry_of: Option<TaskId>,
    /// States of its dependencies, by the record.
    pub known: Vec<(TaskId, State)>,
}

/// Text and terms of a spec; `after` must hold whole ids.
///
/// # Errors
/// [`Error::InvalidArgument`], which names the key and what is allowed.
pub fn parse(spec: TaskSpec) -> Result<(String, Terms, Option<String>), Error> {
    let invalid = |text: String| Err(Error::InvalidArgument(text));
    if spec.text.trim().is_empty() {
        return invalid("the task has no text; say what is to be done".into());
    }
    if spec.text.len() > MAX_TASK_TEXT {
        return invalid(format!(
            "the text has {} bytes; at most {MAX_TASK_TEXT}: put the rest into a file that the agent can read",
            spec.text.len()
        ));
    }
    let target = target(&spec)?;
    let priority: Priority = match &spec.priority {
        Some(word) => word.parse().map_err(bad)?,
        None => Priority::default(),
    };
    let deadline = match (spec.deadline_ms, spec.deadline_at_ms) {
        (Some(_), Some(_)) => {
            return invalid(
                "deadline_ms and deadline_at_ms are both given; a task has one deadline".into(),
            );
        }
        (Some(ms), None) if !(1..=MAX_DEADLINE_MS).contains(&ms) => {
            return invalid(format!(
                "deadline_ms is {ms}; allowed are 1 to {MAX_DEADLINE_MS} (ten years)"
            ));
        }
        (Some(ms), None) => Some(Deadline::In(ms)),
        (None, at) => at.map(Deadline::At),
    };
    let on_dependency_failure: OnDependencyFailure = match &spec.on_dependency_failure {
        Some(word) => word.parse().map_err(bad)?,
        None => OnDependencyFailure::default(),
    };
    let usual = Retry::default();
    let retry = Retry {
        retries: spec.retries.unwrap_or(usual.retries),
        base_ms: spec.backoff_ms.unwrap_or(usual.base_ms),
        cap_ms: spec.backoff_cap_ms.unwrap_or(usual.cap_ms),
    };
    if retry.retries > MAX_RETRIES {
        return invalid(format!(
            "retries is {}; allowed are 0 to {MAX_RETRIES}",
            retry.retries
        ));
    }
    if retry.base_ms.max(retry.cap_ms) > MAX_BACKOFF_MS {
        return invalid(format!(
            "a back-off may last {MAX_BACKOFF_MS} ms (a day) at most, not {} ms",
            retry.base_ms.max(retry.cap_ms)
        ));
    }
    if let Some(id) = &spec.request_id
        && !(1..=MAX_REQUEST_ID).contains(&id.len())
    {
        return invalid(format!(
            "request_id has {} bytes; allowed are 1 to {MAX_REQUEST_ID}",
            id.len()
        ));
    }
    let mut after = Vec::new();
    for id in spec.after.unwrap_or_default() {
        let id: TaskId = id
            .parse()
            .map_err(|_| Error::InvalidArgument(format!("{id:?} in `after` is no task id")))?;
        if !after.contains(&id) {
            after.push(id);
        }
    }
    let terms = Terms {
        target,
        priority,
        deadline,
        after,
        on_dependency_failure,
        retry,
    };
    Ok((spec.text, terms, spec.request_id))
}

fn bad(error: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(error.to_string())
}

fn target(spec: &TaskSpec) -> Result<Target, Error> {
    let given: Vec<Target> = [
        spec.agent.clone().map(Target::Agent),
        spec.unit.clone().map(Target::Unit),
        spec.role.clone().map(Target::Role),
        spec.capability.clone().map(Target::Capability),
    ]
    .into_iter()
    .flatten()
    .collect();
    let [target] = given.as_slice() else {
        return Err(Error::InvalidArgument(format!(
            "say who is to do it, with exactly one of agent, unit, role and capability; {} are given",
            given.len()
        )));
    };
    if !(1..=MAX_NAME).contains(&target.name().len()) {
        return Err(Error::InvalidArgument(format!(
            "the name of the {} has {} bytes; allowed are 1 to {MAX_NAME}",
            target.kind(),
            target.name().len()
        )));
    }
    Ok(target.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> TaskSpec {
        TaskSpec {
            text: "do it".into(),
            agent: Some("coder".into()),
            ..TaskSpec::default()
        }
    }

    #[test]
    fn what_is_not_said_has_a_usual_value() {
        let (text, terms, request) = parse(spec()).unwrap();
        assert_eq!((text.as_str(), request), ("do it", None));
        assert_eq!(terms, Terms::new(Target::Agent("coder".into())));
    }

    #[test]
    fn a_bad_key_is_named_with_what_is_allowed() {
        type Spoil = fn(&mut TaskSpec);
        let cases: [(Spoil, &str); 9] = [
            (|s| s.text = "  ".into(), "no text"),
            (|s| s.agent = None, "exactly one of"),
            (|s| s.role = Some("qa".into()), "exactly one of"),
            (|s| s.agent = Some(String::new()), "1 to 255"),
            (|s| s.priority = Some("10".into()), "urgent (9)"),
            (
                |s| (s.deadline_ms, s.deadline_at_ms) = (Some(1), Some(1)),
                "one deadline",
            ),
            (|s| s.on_dependency_failure = Some("x".into()), "fail, skip"),
            (|s| s.retries = Some(101), "0 to 100"),
            (|s| s.request_id = Some("x".repeat(129)), "1 to 128"),
        ];
        for (spoil, says) in cases {
            let mut spoilt = spec();
            spoil(&mut spoilt);
            let error = parse(spoilt).unwrap_err().text();
            assert!(error.contains(says), "{error}");
        }
    }
}
