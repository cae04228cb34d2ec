//! `policy lint`: every finding with file, line and remedy.

use agentd_sandbox::policy::Severity;
use agentd_sandbox::{EffectivePolicy, PolicyDiagnostic, PolicyRef};
use serde_json::{Value, json};

use super::{name_of, sources};
use crate::failure::Failure;
use crate::output::{Out, Style};
use crate::resolve::Context;

/// Checks each policy; errors give exit code 1, warnings 0.
pub fn lint(context: &Context, policies: &[PolicyRef]) -> Result<u8, Failure> {
    let mut out = Out::stdout();
    let mut errors = 0;
    let mut reports = Vec::new();
    for policy in policies {
        let (findings, other) = match EffectivePolicy::load(policy, &sources(context, &[])) {
            Ok(policy) => (policy.lint(), None),
            Err(e) if e.diagnostics().is_empty() => (Vec::new(), Some(e.to_string())),
            Err(e) => (e.diagnostics().to_vec(), None),
        };
        let is_error = |f: &&PolicyDiagnostic| f.severity == Severity::Error;
        errors += findings.iter().filter(is_error).count() + usize::from(other.is_some());
        reports.push((name_of(policy), findings, other));
    }
    if context.is_json() {
        let reports: Vec<Value> = reports
            .iter()
            .map(|(policy, findings, error)| {
                json!({ "policy": policy, "findings": findings, "error": error })
            })
            .collect();
        out.json(&json!({ "ok": errors == 0, "policies": reports }))?;
        return Ok(u8::from(errors > 0));
    }
    for (policy, findings, error) in reports {
        if findings.is_empty() && error.is_none() {
            let word = out.colour.paint(Style::Good, "ok");
            out.line(format!("{policy}: {word}"))?;
        }
        for finding in findings {
            let (style, word) = match finding.severity {
                Severity::Error => (Style::Bad, "error"),
                Severity::Warning => (Style::Warn, "warning"),
            };
            let word = out.colour.paint(style, word);
            out.line(format!("{word}: {finding}"))?;
        }
        if let Some(error) = error {
            let word = out.colour.paint(Style::Bad, "error");
            out.line(format!("{word}: {error}"))?;
        }
    }
    out.flush()?;
    Ok(u8::from(errors > 0))
}
