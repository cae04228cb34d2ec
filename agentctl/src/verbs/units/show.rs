//! How units are printed.

use agentd_api::units::{UnitState, UnitStatus};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Cell, Out, Style, Table, shorten, span};
use crate::resolve::Context;

pub fn list(context: &Context, units: &[UnitStatus]) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        let units: Vec<Value> = units.iter().map(UnitStatus::to_json).collect();
        out.json(&json!({ "units": units }))?;
        return Ok(0);
    }
    let many_users = units.windows(2).any(|pair| pair[0].uid != pair[1].uid);
    let mut table = Table::new(&[
        "",
        "UNIT",
        "STATE",
        "ENABLED",
        "AGENTS",
        "ROLE",
        "DESCRIPTION",
    ]);
    for unit in units {
        let name = if many_users {
            format!("{} (uid {})", unit.name, unit.uid)
        } else {
            unit.name.clone()
        };
        let enabled = match (unit.state, unit.enabled) {
            (UnitState::Template, _) => "-",
            (_, true) => "enabled",
            (_, false) => "disabled",
        };
        let agents = match unit.state {
            UnitState::Template => String::new(),
            _ => format!("{}/{}", unit.agents.len(), unit.max),
        };
        let about = unit
            .why
            .as_deref()
            .or(unit.description.as_deref())
            .unwrap_or_default();
        table.row(vec![
            Cell::styled(style(unit.state), mark(unit.state)),
            Cell::styled(Style::Bold, name),
            Cell::styled(style(unit.state), state(unit)),
            enabled.into(),
            agents.into(),
            unit.role.as_deref().unwrap_or("-").into(),
            shorten(about, 80).into(),
        ]);
    }
    table.print(&mut out)?;
    out.flush()?;
    Ok(0)
}

/// One unit in one line, after something was done to it.
pub fn line(out: &mut Out, unit: &UnitStatus) -> Result<(), Failure> {
    let word = out.colour.paint(style(unit.state), &state(unit));
    let enabled = if unit.enabled { ", enabled" } else { "" };
    let agents: Vec<&str> = unit
        .agents
        .iter()
        .map(|(_, name, _)| name.as_str())
        .collect();
    let agents = match agents.is_empty() {
        true => String::new(),
        false => format!(": {}", agents.join(", ")),
    };
    out.line(format!("{} {word}{enabled}{agents}", unit.name))
}

pub fn show(context: &Context, document: &Value) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(document)?;
        return Ok(0);
    }
    let status = &document["status"];
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let parsed: UnitState = text("state").parse().unwrap_or(UnitState::Inactive);
    let dot = out.colour.paint(style(parsed), mark(parsed));
    let name = out.colour.paint(Style::Bold, &text("name"));
    let about = text("description");
    let dash = if about.is_empty() { "" } else { " - " };
    out.line(format!(
        "{dot} {name}{dash}{}",
        crate::output::visible(&about)
    ))?;
    let kind = if status["system"] == true {
        "system"
    } else {
        "own"
    };
    let enabled = if status["enabled"] == true {
        "enabled"
    } else {
        "disabled"
    };
    out.line(format!(
        "  unit: {kind}, {enabled}, {}, uid {}",
        text("status"),
        status["uid"]
    ))?;
    out.line(format!(
        "  state: {}",
        out.colour.paint(style(parsed), &text("state"))
    ))?;
    if let Some(why) = status["why"].as_str() {
        out.line(format!("  why: {}", crate::output::visible(why)))?;
    }
    if let Some(ms) = status["next_restart_ms"].as_u64() {
        out.line(format!("  next restart: in {}", span(ms)))?;
    }
    if status["removed"] == true {
        out.line("  its file is gone: it runs on until it is stopped")?;
    }
    out.line(format!("  restarts: {}", status["restarts"]))?;
    if let Some(uuid) = status["uuid"].as_str() {
        out.line(format!("  uuid: {uuid}"))?;
    }
    for agent in status["agents"].as_array().into_iter().flatten() {
        let word = |key: &str| agent[key].as_str().unwrap_or_default().to_owned();
        out.line(format!("  agent: {} {}", word("name"), word("id")))?;
    }
    for note in document["notes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        out.line(format!(
            "  {}: {note}",
            out.colour.paint(Style::Warn, "note")
        ))?;
    }
    out.line("")?;
    values(
        &mut out,
        document["values"].as_array().map_or(&[][..], Vec::as_slice),
        Origins::Shown,
    )?;
    out.flush()?;
    Ok(0)
}

/// Whether each value says where it was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origins {
    Shown,
    Hidden,
}

/// Values as `key = value`, with their origins behind them.
pub fn values(out: &mut Out, values: &[Value], origins: Origins) -> Result<(), Failure> {
    let heading: &[&str] = match origins {
        Origins::Shown => &["KEY", "VALUE", "FROM"],
        Origins::Hidden => &["KEY", "VALUE"],
    };
    let mut table = Table::new(heading);
    for value in values {
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let mut row = vec![text("key").into(), shorten(&text("value"), 70).into()];
        if origins == Origins::Shown {
            row.push(Cell::styled(Style::Dim, origin(value)));
        }
        table.row(row);
    }
    table.print(out)
}

fn origin(value: &Value) -> String {
    let file = value["file"].as_str().unwrap_or_default();
    match value["line"].as_u64() {
        Some(line) if line > 0 => format!("{file}:{line}"),
        _ => file.to_owned(),
    }
}

/// The text of one value of a document.
pub fn value_of(document: &Value, key: &str) -> Option<String> {
    let values = document["values"].as_array()?;
    let found = values.iter().find(|value| value["key"] == key)?;
    serde_json::from_str(found["value"].as_str()?).ok()
}

pub fn cat(context: &Context, document: &Value) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(&json!({ "files": document["files"] }))?;
        return Ok(0);
    }
    for file in document["files"].as_array().into_iter().flatten() {
        let text = |key: &str| file[key].as_str().unwrap_or_default();
        out.line(out.colour.paint(Style::Dim, &format!("# {}", text("file"))))?;
        out.line(text("text").trim_end())?;
        out.line("")?;
    }
    out.flush()?;
    Ok(0)
}

/// What a reload changed.
pub fn reloaded(context: &Context, report: &Value) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    if context.is_json() {
        out.json(report)?;
        return Ok(0);
    }
    let mut any = false;
    for diff in ["system", "own"].iter().map(|key| &report[*key]) {
        any |= print_diff(&mut out, diff)?;
    }
    if !any {
        out.line("nothing has changed")?;
    }
    out.flush()?;
    Ok(0)
}

/// Prints a difference; whether there was one.
pub fn print_diff(out: &mut Out, diff: &Value) -> Result<bool, Failure> {
    let mut any = false;
    for (key, sign, style) in [("added", "+", Style::Good), ("removed", "-", Style::Bad)] {
        for name in diff[key]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
        {
            any = true;
            out.line(out.colour.paint(style, &format!("{sign} {name}")))?;
        }
    }
    for changed in diff["changed"].as_array().into_iter().flatten() {
        any = true;
        out.line(format!(
            "~ {}",
            changed["unit"].as_str().unwrap_or_default()
        ))?;
        for value in changed["values"].as_array().into_iter().flatten() {
            let word = |key: &str| value[key].as_str().unwrap_or("(nothing)").to_owned();
            out.line(format!(
                "    {}: {} -> {}",
                word("key"),
                word("old"),
                word("new")
            ))?;
        }
    }
    Ok(any)
}

fn state(unit: &UnitStatus) -> String {
    match unit.next_restart_ms {
        Some(ms) if unit.state == UnitState::Restarting => format!("restarting in {}", span(ms)),
        _ => unit.state.to_string(),
    }
}

fn mark(state: UnitState) -> &'static str {
    match state {
        UnitState::Running => "●",
        UnitState::Failed => "✗",
        UnitState::Template => "@",
        UnitState::Inactive | UnitState::Waiting => "○",
        UnitState::Starting | UnitState::Restarting | UnitState::Stopping => "◐",
    }
}

fn style(state: UnitState) -> Style {
    match state {
        UnitState::Running => Style::Good,
        UnitState::Failed => Style::Bad,
        UnitState::Starting | UnitState::Restarting | UnitState::Stopping => Style::Warn,
        UnitState::Waiting | UnitState::Inactive | UnitState::Template => Style::Dim,
    }
}
