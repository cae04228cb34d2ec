//! `policy diff`: which lines only one of two policies has, and which of the two allows more.

use agentd_sandbox::PolicyRef;
use agentd_sandbox::policy::Excess;
use serde_json::json;

use super::{load, name_of};
use crate::failure::Failure;
use crate::output::{Out, Style};
use crate::resolve::Context;

/// Exit code 1 where they differ, as of diff(1).
pub fn diff(context: &Context, left: &PolicyRef, right: &PolicyRef) -> Result<u8, Failure> {
    let (one, two) = (load(context, left, &[])?, load(context, right, &[])?);
    let diff = one.diff(&two);
    let same = diff.differences.is_empty();
    let mut out = Out::stdout();
    if context.is_json() {
        let mut value = serde_json::to_value(&diff)
            .map_err(|e| Failure::local("can't print the difference", e))?;
        value["same"] = json!(same);
        value["left"] = json!({ "policy": name_of(left), "hash": one.hash() });
        value["right"] = json!({ "policy": name_of(right), "hash": two.hash() });
        out.json(&value)?;
        return Ok(u8::from(!same));
    }
    let (left, right) = (name_of(left), name_of(right));
    for difference in &diff.differences {
        for (mark, style, lines) in [
            ("-", Style::Bad, &difference.left),
            ("+", Style::Good, &difference.right),
        ] {
            for line in lines {
                let text = out
                    .colour
                    .paint(style, &format!("{mark} {} = {}", line.key, line.value));
                out.line(format!("{text}  # {}", line.origin))?;
            }
        }
    }
    more(&mut out, left, right, &diff.left_exceeds)?;
    more(&mut out, right, left, &diff.right_exceeds)?;
    if same {
        out.line(format!("{left} and {right} mean the same"))?;
    }
    out.flush()?;
    Ok(u8::from(!same))
}

fn more(out: &mut Out, who: &str, whom: &str, found: &[Excess]) -> Result<(), Failure> {
    if found.is_empty() {
        return Ok(());
    }
    let heading = format!("{who} allows more than {whom}:");
    out.line("")?;
    out.line(out.colour.paint(Style::Bold, &heading))?;
    found
        .iter()
        .try_for_each(|excess| out.line(format!("  {excess}")))
}
