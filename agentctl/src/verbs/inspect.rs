//! `inspect`: everything on record about one launch.
//!
//! The record is a JSON document that the daemon keeps; `--json` prints it as it came. The types here
//! name what is shown to people, with defaults for what an older or newer daemon leaves out.

use agentd_api::NanoUsd;
use serde::Deserialize;

use crate::connect::Daemon;
use crate::failure::Failure;
use crate::output::{
    Cell, Out, Style, Table, command_line, grouped, nanoseconds, shorten, size, span, visible,
};
use crate::resolve::{Context, signal_name};

/// How an agent ended.
#[derive(Debug, Deserialize)]
pub struct Exit {
    kind: String,
    code: Option<i32>,
    signal: Option<i32>,
    #[serde(default)]
    cause: String,
    #[serde(default)]
    resources: Resources,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resources {
    user_us: u64,
    system_us: u64,
    max_rss_kib: u64,
    memory_peak_bytes: Option<u64>,
    /// `None` where nothing counted it.
    scheduled: Option<Scheduled>,
    /// `None` where nothing counted it.
    counted: Option<Counted>,
}

/// What went through its sockets, and what the kernel plane refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counted {
    packets_in: u64,
    packets_out: u64,
    bytes_in: u64,
    bytes_out: u64,
    refused: u64,
    untold: u64,
}

/// What the scheduler did with it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Scheduled {
    run_ns: u64,
    wait_ns: u64,
    wait_p99_ns: u64,
    io_ns: u64,
    voluntary: u64,
    involuntary: u64,
    migrations: u64,
}

/// Tokens of a whole launch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tokens {
    pub requests: u64,
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
    pub aborted: u64,
    #[serde(default)]
    pub cost_nano_usd: Option<NanoUsd>,
}

#[derive(Debug, Deserialize)]
struct Degradation {
    property: String,
    why: String,
}

#[derive(Debug, Deserialize)]
struct Trouble {
    step: String,
    text: String,
}

#[derive(Debug, Deserialize)]
struct Usage {
    at_ms: i64,
    source: String,
    provider: String,
    model: String,
    input: u64,
    output: u64,
    #[serde(default)]
    aborted: bool,
    #[serde(default)]
    estimated: bool,
    #[serde(default)]
    cost_nano_usd: Option<NanoUsd>,
}

#[derive(Debug, Deserialize)]
struct Message {
    at_ms: i64,
    from: String,
    to: String,
    kind: String,
    subject: Option<String>,
    bytes: u64,
    outcome: String,
}

#[derive(Debug, Deserialize)]
struct Denial {
    at_ms: i64,
    layer: String,
    what: String,
    target: String,
    rule: String,
    origin: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Approval {
    at_ms: i64,
    tool: String,
    decision: String,
    by: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
struct Moment {
    at_ms: i64,
    kind: String,
    text: String,
}

/// What else explains the launch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    suite: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Record {
    id: agentd_api::AgentId,
    name: String,
    uid: u32,
    policy: String,
    policy_hash: String,
    argv: Vec<String>,
    workspace: Option<String>,
    driver: String,
    mode: String,
    kernel: String,
    /// `null` where nothing else does.
    details: Option<Details>,
    state: String,
    started_at_ms: i64,
    ready_at_ms: Option<i64>,
    ended_at_ms: Option<i64>,
    pid: Option<u32>,
    host_uid: Option<u32>,
    #[serde(default)]
    layers: Vec<String>,
    landlock_abi: Option<u32>,
    #[serde(default)]
    degradations: Vec<Degradation>,
    failure: Option<Trouble>,
    exit: Option<Exit>,
    /// Of a living agent; at the end it is with the exit.
    counted: Option<Counted>,
    #[serde(default)]
    tokens: Tokens,
    #[serde(default)]
    usage: Vec<Usage>,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    denials: Vec<Denial>,
    #[serde(default)]
    approvals: Vec<Approval>,
    #[serde(default)]
    timeline: Vec<Moment>,
}

pub async fn inspect(context: &Context, agent: &str) -> Result<u8, Failure> {
    let daemon = Daemon::connect(context).await?;
    let text = daemon.manager().await?.record(agent).await.map_err(|e| {
        Failure::api(format!("can't find a record of {agent:?}"), &e).try_next("agentctl records")
    })?;
    let what = || format!("can't read the record of {agent:?}");
    let mut out = Out::stdout();
    if context.is_json() {
        let document: serde_json::Value =
            serde_json::from_str(&text).map_err(|e| Failure::local(what(), e))?;
        out.json(&document)?;
        return Ok(0);
    }
    let record: Record = serde_json::from_str(&text).map_err(|e| {
        Failure::local(what(), e).try_next(format!("agentctl --json inspect {agent}"))
    })?;
    show(&record, &mut out)?;
    out.flush()?;
    Ok(0)
}

fn show(record: &Record, out: &mut Out) -> Result<(), Failure> {
    show_launch(record, out)?;
    show_sandbox(record, out)?;
    show_end(record, out)?;
    show_tokens(record, out)?;
    show_traffic(record, out)?;
    show_refusals(record, out)?;
    section(out, "Timeline")?;
    for moment in &record.timeline {
        let after = span((moment.at_ms - record.started_at_ms).max(0) as u64);
        let kind = out
            .colour
            .paint(kind_style(&moment.kind), &format!("{:<13}", moment.kind));
        out.line(format!(
            "  {:>8}  {kind}  {}",
            format!("+{after}"),
            visible(&moment.text)
        ))?;
    }
    Ok(())
}

fn kind_style(kind: &str) -> Style {
    match kind {
        "denial" | "launch-failed" => Style::Bad,
        "message" | "usage" => Style::Dim,
        "ready" | "exit" | "launch" => Style::Bold,
        _ => Style::Plain,
    }
}

fn section(out: &mut Out, name: &str) -> Result<(), Failure> {
    let name = out.colour.paint(Style::Bold, name);
    out.line("")?;
    out.line(name)
}

fn field(out: &mut Out, name: &str, value: impl AsRef<str>) -> Result<(), Failure> {
    out.line(format!("  {name:<12} {}", visible(value.as_ref())))
}

fn show_launch(record: &Record, out: &mut Out) -> Result<(), Failure> {
    let name = out.colour.paint(Style::Bold, &visible(&record.name));
    out.line(format!("{name}  {}", record.id))?;
    section(out, "Launch")?;
    field(out, "state", &record.state)?;
    field(out, "command", command_line(&record.argv))?;
    field(
        out,
        "workspace",
        record.workspace.as_deref().unwrap_or("none"),
    )?;
    let hash = record.policy_hash.get(..12).unwrap_or(&record.policy_hash);
    field(out, "policy", format!("{} (sha256 {hash}…)", record.policy))?;
    field(out, "driver", &record.driver)?;
    field(out, "owner", format!("uid {}", record.uid))?;
    field(out, "started", moment(record.started_at_ms))?;
    if let Some(ready) = record.ready_at_ms {
        field(
            out,
            "ready after",
            span((ready - record.started_at_ms).max(0) as u64),
        )?;
    }
    if let Some(end) = record.ended_at_ms {
        field(
            out,
            "took",
            span((end - record.started_at_ms).max(0) as u64),
        )?;
    }
    if let Some(pid) = record.pid {
        let uid = record
            .host_uid
            .map(|u| format!(", kernel uid {u}"))
            .unwrap_or_default();
        field(out, "process", format!("pid {pid}{uid}"))?;
    }
    field(
        out,
        "host",
        format!("{} mode, Linux {}", record.mode, record.kernel),
    )
}

fn show_sandbox(record: &Record, out: &mut Out) -> Result<(), Failure> {
    if let Some(suite) = record.details.as_ref().and_then(|d| d.suite.as_ref()) {
        field(out, "escape suite", suite)?;
    }
    section(out, "Layers really active")?;
    if record.layers.is_empty() {
        return out.line("  none: the sandbox never stood");
    }
    out.line(format!("  {}", record.layers.join("  ")))?;
    if let Some(abi) = record.landlock_abi.filter(|abi| *abi > 0) {
        field(out, "landlock ABI", abi.to_string())?;
    }
    for weaker in &record.degradations {
        let word = out.colour.paint(Style::Warn, "weaker");
        out.line(format!("  {word}: {}: {}", weaker.property, weaker.why))?;
    }
    Ok(())
}

fn show_end(record: &Record, out: &mut Out) -> Result<(), Failure> {
    if let Some(failure) = &record.failure {
        section(out, "Launch failed")?;
        field(out, "step", &failure.step)?;
        field(out, "why", &failure.text)?;
    }
    let Some(exit) = &record.exit else {
        if let Some(counted) = &record.counted {
            section(out, "Counted in the kernel so far")?;
            show_counted(counted, out)?;
        }
        return Ok(());
    };
    section(out, "End")?;
    field(out, "how", exit_text(exit))?;
    if !exit.cause.is_empty() {
        field(out, "why", &exit.cause)?;
    }
    let used = &exit.resources;
    field(
        out,
        "CPU",
        format!(
            "{} user, {} system",
            micros(used.user_us),
            micros(used.system_us)
        ),
    )?;
    let peak = used
        .memory_peak_bytes
        .map(|b| format!(", {} in all", size(b)))
        .unwrap_or_default();
    field(
        out,
        "memory",
        format!("{} largest process{peak}", size(used.max_rss_kib * 1024)),
    )?;
    if let Some(scheduled) = &used.scheduled {
        show_scheduled(scheduled, out)?;
    }
    if let Some(counted) = &used.counted {
        show_counted(counted, out)?;
    }
    Ok(())
}

fn show_counted(counted: &Counted, out: &mut Out) -> Result<(), Failure> {
    field(
        out,
        "packets",
        format!(
            "{} in with {}, {} out with {}, its own loopback included",
            grouped(counted.packets_in),
            size(counted.bytes_in),
            grouped(counted.packets_out),
            size(counted.bytes_out),
        ),
    )?;
    if counted.refused == 0 {
        return Ok(());
    }
    let untold = match counted.untold {
        0 => String::new(),
        untold => format!(", {} of them untold", grouped(untold)),
    };
    let refused = grouped(counted.refused);
    field(
        out,
        "refused",
        format!("{refused} calls and packets by the kernel plane{untold}"),
    )
}

fn show_scheduled(scheduled: &Scheduled, out: &mut Out) -> Result<(), Failure> {
    field(
        out,
        "scheduler",
        format!(
            "{} on processors, {} waiting for one (99 % ≤ {}), {} for a disk; {} switches, {} of them forced, {} moves",
            nanoseconds(scheduled.run_ns),
            nanoseconds(scheduled.wait_ns),
            nanoseconds(scheduled.wait_p99_ns),
            nanoseconds(scheduled.io_ns),
            grouped(scheduled.voluntary.saturating_add(scheduled.involuntary)),
            grouped(scheduled.involuntary),
            grouped(scheduled.migrations),
        ),
    )
}

fn show_tokens(record: &Record, out: &mut Out) -> Result<(), Failure> {
    section(out, "Tokens")?;
    let t = &record.tokens;
    if t.requests == 0 && record.usage.is_empty() {
        return out.line("  none");
    }
    out.line(format!(
        "  {} in {} request{}: {} input, {} output, {} read from and {} written to the provider's cache",
        grouped(t.input.saturating_add(t.output)),
        grouped(t.requests),
        if t.requests == 1 { "" } else { "s" },
        grouped(t.input),
        grouped(t.output),
        grouped(t.cache_read),
        grouped(t.cache_write),
    ))?;
    if let Some(cost) = t.cost_nano_usd {
        out.line(format!("  {cost} at the prices of agentd's configuration"))?;
    }
    let mut table = Table::new(&["  AT", "MODEL", "INPUT", "OUTPUT", "COST", ""]);
    for usage in record.usage.iter().filter(|u| u.source == "gateway") {
        let mut notes = Vec::new();
        if usage.aborted {
            notes.push("aborted");
        }
        if usage.estimated {
            notes.push("estimated");
        }
        table.row(vec![
            format!("  {}", clock(usage.at_ms)).into(),
            format!("{} ({})", usage.model, usage.provider).into(),
            grouped(usage.input).into(),
            grouped(usage.output).into(),
            usage
                .cost_nano_usd
                .map_or_else(|| "-".to_owned(), |cost| cost.to_string())
                .into(),
            Cell::styled(Style::Warn, notes.join(", ")),
        ]);
    }
    table.print(out)
}

fn show_traffic(record: &Record, out: &mut Out) -> Result<(), Failure> {
    if record.messages.is_empty() {
        return Ok(());
    }
    section(out, "Messages")?;
    let mut table = Table::new(&["  AT", "KIND", "FROM", "TO", "SUBJECT", "SIZE", "OUTCOME"]);
    for message in &record.messages {
        let good = matches!(message.outcome.as_str(), "delivered" | "answered" | "ok");
        let style = if good { Style::Good } else { Style::Warn };
        table.row(vec![
            format!("  {}", clock(message.at_ms)).into(),
            message.kind.as_str().into(),
            message.from.as_str().into(),
            message.to.as_str().into(),
            shorten(message.subject.as_deref().unwrap_or("-"), 30).into(),
            size(message.bytes).into(),
            Cell::styled(style, message.outcome.as_str()),
        ]);
    }
    table.print(out)
}

fn show_refusals(record: &Record, out: &mut Out) -> Result<(), Failure> {
    section(out, "Denials")?;
    if record.denials.is_empty() {
        out.line("  none")?;
    } else {
        let mut table = Table::new(&["  AT", "LAYER", "WHAT", "TARGET", "RULE"]);
        for denial in &record.denials {
            let rule = match &denial.origin {
                Some(origin) => format!("{} ({origin})", denial.rule),
                None => denial.rule.clone(),
            };
            table.row(vec![
                format!("  {}", clock(denial.at_ms)).into(),
                Cell::styled(Style::Bad, denial.layer.as_str()),
                denial.what.as_str().into(),
                shorten(&denial.target, 60).into(),
                rule.into(),
            ]);
        }
        table.print(out)?;
    }
    if record.approvals.is_empty() {
        return Ok(());
    }
    section(out, "Tool decisions")?;
    let mut table = Table::new(&["  AT", "TOOL", "DECISION", "BY", "WHY"]);
    for approval in &record.approvals {
        let style = if approval.decision == "allow" {
            Style::Good
        } else {
            Style::Bad
        };
        table.row(vec![
            format!("  {}", clock(approval.at_ms)).into(),
            approval.tool.as_str().into(),
            Cell::styled(style, approval.decision.as_str()),
            approval.by.as_str().into(),
            shorten(&approval.reason, 60).into(),
        ]);
    }
    table.print(out)
}

/// `exited 0`, `killed by SIGTERM`, `timed-out (SIGKILL)`.
pub fn exit_text(exit: &Exit) -> String {
    match (exit.kind.as_str(), exit.code, exit.signal) {
        ("exited", Some(code), _) => format!("exited {code}"),
        ("signaled", _, Some(signo)) => format!("killed by {}", signal_name(signo)),
        (kind, _, Some(signo)) => format!("{kind} ({})", signal_name(signo)),
        (kind, Some(code), None) => format!("{kind} ({code})"),
        (kind, None, None) => kind.to_owned(),
    }
}

fn micros(us: u64) -> String {
    if us < 1000 {
        format!("{us}µs")
    } else {
        span(us / 1000)
    }
}

/// A moment in UTC: `2026-11-21 10:53:07Z`.
pub fn moment(unix_ms: i64) -> String {
    let days = unix_ms.div_euclid(86_400_000);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {}Z", clock(unix_ms))
}

/// The time of day of a moment, UTC.
fn clock(unix_ms: i64) -> String {
    let s = unix_ms.rem_euclid(86_400_000) / 1000;
    format!("{:02}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60)
}

/// Days since 1970-01-01 to a date of the Gregorian calendar: H. Hinnant's `civil_from_days`.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        assert_eq!(moment(0), "1970-01-01 00:00:00Z");
        assert_eq!(moment(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(moment(1_795_258_387_123), "2026-11-21 10:53:07Z");
        assert_eq!(moment(-1), "1969-12-31 23:59:59Z");
    }

    #[test]
    fn ends_read_as_sentences() {
        let exit = |json: &str| exit_text(&serde_json::from_str(json).expect("an exit"));
        assert_eq!(
            exit(r#"{"kind":"exited","code":3,"signal":null}"#),
            "exited 3"
        );
        assert_eq!(
            exit(r#"{"kind":"signaled","code":null,"signal":15}"#),
            "killed by SIGTERM"
        );
        assert_eq!(
            exit(r#"{"kind":"timed-out","code":null,"signal":9}"#),
            "timed-out (SIGKILL)"
        );
        assert_eq!(exit(r#"{"kind":"lost","code":null,"signal":null}"#), "lost");
    }
}
