//! `bus tap` and `bus subscribe`: lines of a pipe that the daemon writes, until enough were read, time is up, or the
//! daemon has gone.

use std::os::fd::OwnedFd;
use std::time::Duration;

use agentd_api::ErrorCode;
use agentd_api::bus::{BusProxy, TapOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use super::failure;
use crate::failure::Failure;
use crate::output::{Out, Style, size, stderr_line, visible};
use crate::resolve::Context;

/// Exit code when `--timeout` passed first.
const TIMED_OUT: u8 = 124;

/// Lines of JSON from the daemon.
struct Objects {
    lines: Lines<BufReader<pipe::Receiver>>,
    deadline: Option<Instant>,
    /// For a failure.
    what: &'static str,
}

/// What the next line brings.
enum Next {
    Object(Value),
    TimedOut,
}

impl Objects {
    fn new(pipe: OwnedFd, timeout: Option<Duration>, what: &'static str) -> Result<Self, Failure> {
        let receiver = pipe::Receiver::from_owned_fd(pipe).map_err(|e| Failure::local(what, e))?;
        Ok(Self {
            lines: BufReader::new(receiver).lines(),
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            what,
        })
    }

    async fn next(&mut self) -> Result<Next, Failure> {
        let line = match self.deadline {
            None => self.lines.next_line().await,
            Some(deadline) => {
                match tokio::time::timeout_at(deadline, self.lines.next_line()).await {
                    Ok(line) => line,
                    Err(_) => return Ok(Next::TimedOut),
                }
            }
        };
        match line.map_err(|e| Failure::local(self.what, e))? {
            Some(line) => serde_json::from_str(&line)
                .map(Next::Object)
                .map_err(|e| Failure::of_code(ErrorCode::Internal, self.what, e)),
            None => Err(Failure::of_code(
                ErrorCode::Unreachable,
                self.what,
                "agentd has ended, or closed the stream",
            )
            .try_next("agentctl version")),
        }
    }
}

pub async fn tap(
    context: &Context,
    proxy: &BusProxy<'_>,
    options: &TapOptions,
    count: Option<u64>,
) -> Result<u8, Failure> {
    let what = "can't tap the bus";
    let pipe = proxy.tap(options).await.map_err(|e| failure(what, &e))?;
    let mut objects = Objects::new(pipe.into(), None, what)?;
    let mut out = Out::stdout();
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) {
        let Next::Object(message) = objects.next().await? else {
            break;
        };
        let left_out = message["left_out"].as_u64();
        if context.is_json() {
            out.json(&message)?;
        } else if let Some(left_out) = left_out {
            stderr_line(&format!(
                "agentctl: {left_out} messages are left out here: this reads too slowly"
            ));
        } else {
            out.line(tapped(&message, &out))?;
            out.flush()?;
        }
        seen += u64::from(left_out.is_none());
    }
    Ok(0)
}

/// Prints the lines of one request, until its answer, or of one message of a queue, until it is done with.
pub async fn trace(
    context: &Context,
    proxy: &BusProxy<'_>,
    mut number: Option<u64>,
    options: &TapOptions,
    timeout: Duration,
) -> Result<u8, Failure> {
    let (what, end) = match &options.queue {
        Some(_) => ("can't trace a message", "the message was done with"),
        None => ("can't trace a request", "the answer"),
    };
    let pipe = proxy.tap(options).await.map_err(|e| failure(what, &e))?;
    context.tell("following");
    let mut objects = Objects::new(pipe.into(), Some(timeout), what)?;
    let mut out = Out::stdout();
    loop {
        let Next::Object(message) = objects.next().await? else {
            stderr_line(&format!("agentctl: the time-out passed before {end}"));
            return Ok(TIMED_OUT);
        };
        let Some(line) = Traced::of(&message) else {
            continue;
        };
        if number.is_none() && !line.may_be_first {
            continue;
        }
        if *number.get_or_insert(line.number) != line.number {
            continue;
        }
        if context.is_json() {
            out.json(&message)?;
        } else {
            out.line(tapped(&message, &out))?;
        }
        out.flush()?;
        if line.is_last {
            return Ok(0);
        }
    }
}

/// A line of a trace: whose it is, and where in it.
#[derive(Debug, PartialEq, Eq)]
struct Traced {
    number: u64,
    /// Nothing has to have come before it.
    may_be_first: bool,
    is_last: bool,
}

impl Traced {
    fn of(message: &Value) -> Option<Self> {
        if let Some(step) = message["step"].as_str() {
            return Some(Self {
                number: message["message"].as_u64()?,
                may_be_first: true,
                is_last: ["acked", "dead", "dropped"].contains(&step),
            });
        }
        let number = message["correlation"].as_u64().filter(|of| *of != 0)?;
        let kind = message["kind"].as_str().unwrap_or_default();
        Some(Self {
            number,
            may_be_first: kind == "request",
            is_last: kind == "response",
        })
    }
}

/// `17:20:02.123 delivered  queue builds  message 17 (312 B), delivery 2, builder`.
fn stepped(message: &Value, out: &Out) -> String {
    let text = |key: &str| visible(message[key].as_str().unwrap_or_default());
    let number = |key: &str| message[key].as_u64().unwrap_or_default();
    let step = text("step");
    let style = match &*step {
        "acked" => Style::Good,
        "expired" | "returned" | "dead" | "dropped" => Style::Bad,
        _ => Style::Bold,
    };
    let mut line = format!(
        "{} {}  queue {}  message {} ({})",
        out.colour.paint(Style::Dim, &clock(&message["at_ns"])),
        out.colour.paint(style, &format!("{step:<9}")),
        text("queue"),
        number("message"),
        size(number("bytes")),
    );
    if number("deliveries") > 0 {
        line += &format!(", delivery {}", number("deliveries"));
    }
    for more in ["why", "by"] {
        if message[more].is_string() {
            line += &format!(", {}", text(more));
        }
    }
    line
}

/// `17:20:02.123 request  fixer → builder  fix  312 B  ok`.
fn tapped(message: &Value, out: &Out) -> String {
    if message["step"].is_string() {
        return stepped(message, out);
    }
    let text = |key: &str| visible(message[key].as_str().unwrap_or_default());
    let receiver = match (message["to"].as_str(), message["topic"].as_str()) {
        (Some(to), _) => visible(to),
        (None, Some(topic)) => {
            let n = message["receivers"].as_u64().unwrap_or_default();
            format!("{} ({n})", visible(topic))
        }
        (None, None) => {
            let n = message["receivers"].as_u64().unwrap_or_default();
            format!("all ({n})")
        }
    };
    let outcome = text("outcome");
    let style = if outcome == "ok" {
        Style::Good
    } else {
        Style::Bad
    };
    format!(
        "{} {:<9} {} → {}  {}  {}  {}",
        out.colour.paint(Style::Dim, &clock(&message["at_ns"])),
        text("kind"),
        out.colour.paint(Style::Bold, &text("from")),
        out.colour.paint(Style::Bold, &receiver),
        text("what"),
        size(message["bytes"].as_u64().unwrap_or_default()),
        out.colour.paint(style, &outcome),
    )
}

/// Time of day in UTC, to the millisecond.
fn clock(at_ns: &Value) -> String {
    let ms = at_ns.as_u64().unwrap_or_default() / 1_000_000;
    let s = ms / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        s / 3600,
        s / 60 % 60,
        s % 60,
        ms % 1000
    )
}

pub async fn subscribe(
    context: &Context,
    proxy: &BusProxy<'_>,
    pattern: &str,
    count: Option<u64>,
    timeout: Option<Duration>,
    uid: Option<u32>,
) -> Result<u8, Failure> {
    let what = "can't follow the topic";
    let uid = uid.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    let pipe = proxy.subscribe(pattern, uid).await;
    let pipe = pipe.map_err(|e| failure(format!("can't follow {pattern:?}"), &e))?;
    context.tell(&format!("following {pattern}"));
    let mut objects = Objects::new(pipe.into(), timeout, what)?;
    let mut out = Out::stdout();
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) {
        let message = match objects.next().await? {
            Next::Object(message) => message,
            // Without --count, time is how this was meant to end.
            Next::TimedOut if count.is_none() => return Ok(0),
            Next::TimedOut => {
                stderr_line(&format!("agentctl: time is up after {seen} messages"));
                return Ok(TIMED_OUT);
            }
        };
        if let Some(lost) = message["lost"].as_u64() {
            if context.is_json() {
                out.json(&message)?;
            } else {
                stderr_line(&format!(
                    "agentctl: {lost} messages were lost here: they came faster than they were read"
                ));
            }
            continue;
        }
        seen += 1;
        if context.is_json() {
            out.json(&message)?;
            continue;
        }
        let data = data_of(&message);
        if out.is_terminal() {
            let head = format!(
                "{} {} {}:",
                clock(&message["at_ns"]),
                visible(message["topic"].as_str().unwrap_or_default()),
                visible(message["from"].as_str().unwrap_or_default())
            );
            let text = visible(String::from_utf8_lossy(&data).trim_end());
            out.line(format!("{} {text}", out.colour.paint(Style::Dim, &head)))?;
        } else {
            out.bytes(&data)?;
            if data.last() != Some(&b'\n') {
                out.bytes(b"\n")?;
            }
        }
        out.flush()?;
    }
    Ok(0)
}

/// The contents of a message as the daemon and `--json` show them.
fn data_of(message: &Value) -> Vec<u8> {
    if let Some(text) = message["text"].as_str() {
        return text.as_bytes().to_vec();
    }
    let encoded = message["base64"].as_str().unwrap_or_default();
    STANDARD.decode(encoded).unwrap_or_default()
}

/// Puts contents into an object: `text` if they are UTF-8, else `base64`.
pub fn put_data(object: &mut Value, data: &[u8]) {
    object["bytes"] = data.len().into();
    match std::str::from_utf8(data) {
        Ok(text) => object["text"] = text.into(),
        Err(_) => object["base64"] = STANDARD.encode(data).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn contents_survive_both_forms() {
        for data in [&b"plain"[..], b"", &[0xff, 0, 1]] {
            let mut object = json!({});
            put_data(&mut object, data);
            assert_eq!(data_of(&object), data);
            assert_eq!(object["bytes"], data.len());
        }
    }

    #[test]
    fn a_trace_begins_with_a_request_and_ends_with_its_answer() {
        let line =
            |kind, correlation| Traced::of(&json!({ "kind": kind, "correlation": correlation }));
        assert_eq!(line("publish", 0), None);
        for (kind, may_be_first, is_last) in [("request", true, false), ("response", false, true)] {
            let number = 7;
            let expected = Traced {
                number,
                may_be_first,
                is_last,
            };
            assert_eq!(line(kind, number), Some(expected));
        }
    }

    #[test]
    fn a_trace_of_a_queue_begins_anywhere_and_ends_when_the_message_is_done_with() {
        for (step, is_last) in [
            ("produced", false),
            ("delivered", false),
            ("nacked", false),
            ("acked", true),
            ("dead", true),
            ("dropped", true),
        ] {
            let line = json!({ "step": step, "message": 3 });
            let expected = Traced {
                number: 3,
                may_be_first: true,
                is_last,
            };
            assert_eq!(Traced::of(&line), Some(expected), "{step}");
        }
    }

    #[test]
    fn a_time_of_day_is_that_of_utc() {
        assert_eq!(clock(&json!(1_700_000_000_123_456_789_u64)), "22:13:20.123");
    }
}
