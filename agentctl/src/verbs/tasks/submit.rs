//! `tasks submit`: from the words of a command line to a task on the disk, and with `--wait` to its result.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;

use agentd_api::tasks::{MAX_TASK_TEXT, TaskSpec, TasksProxy};
use serde_json::Value;

use super::{Row, broken};
use crate::cli::tasks::SubmitArgs;
use crate::failure::Failure;
use crate::output::{Out, stderr_line};
use crate::resolve::{Context, parse_time, time};

/// Exit code of `--wait` when the deadline passed.
const TIMED_OUT: u8 = 124;

/// One task as it was meant.
#[derive(Debug)]
pub struct SubmitRequest {
    spec: TaskSpec,
    wait: bool,
}

pub fn resolve(args: SubmitArgs) -> Result<SubmitRequest, Failure> {
    let targets = [&args.agent, &args.unit, &args.role, &args.capability];
    if targets.into_iter().flatten().count() != 1 {
        return Err(Failure::usage(
            "can't submit a task",
            "say who is to do it, with one of --agent, --unit, --role and --capability",
        )
        .try_next("agentctl tasks submit --agent NAME 'what to do'"));
    }
    let (deadline_ms, deadline_at_ms) = match args.deadline.as_deref() {
        None => (None, None),
        Some(typed) => deadline(typed)?,
    };
    let backoff = args.backoff.map(|t| time("--backoff", &t)).transpose()?;
    let spec = TaskSpec {
        text: text(args.text, args.file.as_deref())?,
        agent: args.agent,
        unit: args.unit,
        role: args.role,
        capability: args.capability,
        priority: args.priority,
        deadline_ms,
        deadline_at_ms,
        after: Some(args.after).filter(|after| !after.is_empty()),
        on_dependency_failure: args.on_dependency_failure,
        retries: args.retries,
        backoff_ms: backoff.map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX)),
        backoff_cap_ms: None,
        request_id: args.request_id,
    };
    Ok(SubmitRequest {
        spec,
        wait: args.wait,
    })
}

/// The text from the command line, a file or stdin.
fn text(words: Vec<String>, file: Option<&Path>) -> Result<String, Failure> {
    if !words.is_empty() {
        return Ok(words.join(" "));
    }
    let what = "can't read the task's text";
    // One byte more than a task may have tells too much from just enough.
    let limit = MAX_TASK_TEXT as u64 + 1;
    let mut text = String::new();
    let read = match file.filter(|file| *file != Path::new("-")) {
        Some(file) => std::fs::File::open(file)
            .and_then(|it| it.take(limit).read_to_string(&mut text))
            .map_err(|e| Failure::usage(format!("{what} from {}", file.display()), e)),
        None if file.is_none() && std::io::stdin().is_terminal() => {
            return Err(Failure::usage("can't submit a task", "it has no text")
                .try_next("agentctl tasks submit --agent NAME 'what to do'"));
        }
        None => std::io::stdin()
            .take(limit)
            .read_to_string(&mut text)
            .map_err(|e| Failure::usage(format!("{what} from stdin"), e)),
    };
    read?;
    if text.len() > MAX_TASK_TEXT {
        return Err(Failure::usage(
            "can't submit a task",
            format!("its text has more than {MAX_TASK_TEXT} bytes"),
        )
        .try_next("put the rest into a file that the agent can read, and name it in the text"));
    }
    Ok(text)
}

/// `30m` is a time from now; `2026-11-30T18:00Z` a moment.
fn deadline(typed: &str) -> Result<(Option<u64>, Option<i64>), Failure> {
    if let Some(time) = parse_time(typed) {
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        return Ok((Some(ms), None));
    }
    match parse_moment(typed) {
        Some(at) => Ok((None, Some(at))),
        None => Err(Failure::usage(
            format!("can't use --deadline {typed:?}"),
            "allowed: a time from now such as 90, 30m or 1h30m, or a moment in UTC such as 2026-11-30T18:00Z",
        )),
    }
}

/// `2026-11-30T18:00Z`, `2026-11-30T18:00:30Z`: Unix milliseconds.
fn parse_moment(typed: &str) -> Option<i64> {
    let (date, clock) = typed.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by: char| -> Option<Vec<i64>> {
        let digits = |part: &str| part.len() >= 2 && part.bytes().all(|b| b.is_ascii_digit());
        let parts = text.split(by);
        parts
            .map(|p| p.parse().ok().filter(|_| digits(p)))
            .collect()
    };
    let [year, month, day] = numbers(date, '-')?.try_into().ok()?;
    let (hour, minute, second) = match numbers(clock, ':')?.as_slice() {
        [h, m] => (*h, *m, 0),
        [h, m, s] => (*h, *m, *s),
        _ => return None,
    };
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let february = if leap { 29 } else { 28 };
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month.checked_sub(1)?).ok()?)?;
    let sound = (1970..=9999).contains(&year)
        && (1..=length).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    if !sound {
        return None;
    }
    // Days before this year, then before this month.
    let y = year - 1;
    let leap_days = |y: i64| y / 4 - y / 100 + y / 400;
    let before = (year - 1970) * 365 + leap_days(y) - leap_days(1969);
    let in_year: i64 = lengths.iter().take(usize::try_from(month - 1).ok()?).sum();
    let days = before + in_year + day - 1;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000)
}

pub async fn submit(
    context: &Context,
    proxy: &TasksProxy<'_>,
    request: SubmitRequest,
) -> Result<u8, Failure> {
    let reply = proxy.submit(&request.spec).await;
    let reply = reply.map_err(|e| Failure::api("can't submit the task", &e))?;
    let mut out = Out::stdout();
    if !request.wait {
        if context.is_json() {
            out.json(&reply.to_json())?;
        } else {
            out.line(&reply.id)?;
        }
        out.flush()?;
        return Ok(0);
    }
    let what = || format!("can't wait for task {}", reply.id);
    context.tell(&format!("task {} is on the disk", reply.id));
    let waited = proxy.wait(&reply.id).await;
    waited.map_err(|e| {
        Failure::api(what(), &e).try_next(format!("agentctl tasks watch {}", reply.id))
    })?;
    let text = proxy.get(&reply.id).await;
    let text = text.map_err(|e| Failure::api(what(), &e))?;
    let document: Value = serde_json::from_str(&text).map_err(broken)?;
    if context.is_json() {
        out.json(&document)?;
    }
    let row: Row = serde_json::from_value(document).map_err(broken)?;
    if let Some(result) = row.result.filter(|_| !context.is_json()) {
        out.line(result)?;
    }
    out.flush()?;
    match row.state.as_str() {
        "succeeded" => Ok(0),
        state => {
            if !context.is_json() {
                stderr_line(&format!("agentctl: task {} {state}: {}", row.id, row.cause));
            }
            Ok(if state == "timed-out" { TIMED_OUT } else { 1 })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_utc() {
        assert_eq!(parse_moment("1970-01-01T00:00Z"), Some(0));
        assert_eq!(parse_moment("2000-03-01T00:00:01Z"), Some(951_868_801_000));
        assert_eq!(parse_moment("2026-11-30T18:00Z"), Some(1_796_061_600_000));
        for bad in [
            "2026-11-30T18:00",
            "2026-02-29T00:00Z",
            "2026-13-01T00:00Z",
            "2026-11-30T24:00Z",
            "2026-11-30Z",
            "2026-1-3T1:2Z",
        ] {
            assert_eq!(parse_moment(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_deadline_is_a_time_or_a_moment() {
        assert_eq!(deadline("30m").unwrap(), (Some(1_800_000), None));
        assert_eq!(deadline("1970-01-01T00:00Z").unwrap(), (None, Some(0)));
        let why = deadline("tomorrow").unwrap_err().why;
        assert!(why.contains("2026-11-30T18:00Z"), "{why}");
    }
}
