//! Which layers' refusals the running daemon tells of (`agentctl denials`), as rows of `doctor`.
//!
//! The daemon's word, as `denials --layers` has it: nothing is probed here.

use agentd_api::denials::DenialLayer;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::output::{Out, Style};

/// Told of elsewhere: the kernel plane has a section of its own, and nobody can ever be told of what a view lacks.
const ELSEWHERE: [&str; 2] = ["bpf", "mounts"];

pub fn to_json(layers: &[DenialLayer]) -> Value {
    let rows = layers.iter().map(|layer| {
        let why_not = reason(layer);
        json!({ "layer": layer.layer, "observable": why_not.is_none(), "why_not": why_not })
    });
    rows.collect()
}

pub fn print(layers: &[DenialLayer], out: &mut Out) -> Result<(), Failure> {
    let heading = "Refusals that agentd tells of: agentctl denials";
    let heading = out.colour.paint(Style::Bold, heading);
    out.line("")?;
    out.line(heading)?;
    let told = layers.iter().filter(|layer| reason(layer).is_none());
    let told: Vec<&str> = told.map(|layer| layer.layer.as_str()).collect();
    if !told.is_empty() {
        let mark = out.colour.paint(Style::Good, "✓");
        out.line(format!("  {mark} {}", told.join(", ")))?;
    }
    for layer in layers {
        if let Some(why) = reason(layer)
            && !ELSEWHERE.contains(&layer.layer.as_str())
        {
            let mark = out.colour.paint(Style::Dim, "–");
            out.line(format!("  {mark} {:<18} {why}", layer.layer))?;
        }
    }
    Ok(())
}

/// Why a layer's refusals can't be seen, without the words that say that they can't.
fn reason(layer: &DenialLayer) -> Option<&str> {
    let why = layer.why_not.as_str();
    let why = why.strip_prefix("not observable here: ").unwrap_or(why);
    (!why.is_empty()).then_some(why)
}
