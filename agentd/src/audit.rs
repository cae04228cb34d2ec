//! `agentd --verify-record` and `--record-head`: the record's audit chain, for whoever may read the files. Works on a
//! record in use and on a lone copy; reads only. What is found is data, not an error.

use std::path::{Path, PathBuf};

use agentd_storage::{Head, PublicKey, Verify};
use anyhow::{Context as _, bail};
use serde_json::json;

use crate::daemon::RECORD;

/// What to verify: what was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verifying {
    /// A copy, instead of the record in the state directory.
    pub record: Option<PathBuf>,
    /// The public key in hex, or a file that holds it; otherwise the one beside the record.
    pub key: Option<String>,
    /// A head that was noted.
    pub noted: Option<String>,
    /// Notes of incidents that somebody looked into.
    pub known: Vec<i64>,
}

/// Verifies; the verdict as JSON.
///
/// # Errors
/// The record or the key can't be read. Damage of the record is no error.
pub async fn verify(what: &Verifying, state_dir: &Path) -> anyhow::Result<String> {
    let record = match &what.record {
        Some(copy) => copy.clone(),
        None => state_dir.join(RECORD),
    };
    // In front of the database, which may be in use: the file never says more than the database already holds.
    let on_file =
        Head::beside(&record).with_context(|| format!("cannot read {}.head", record.display()))?;
    let verdict = agentd_storage::verify(&Verify {
        key: key(what.key.as_deref(), &record)?,
        noted: what.noted.as_deref().map(str::parse).transpose()?,
        on_file,
        wants_file: what.record.is_none(),
        known: what.known.clone(),
        record,
    })
    .await?;
    Ok(serde_json::to_string(&verdict)?)
}

/// The head on file and the public key, as JSON.
///
/// # Errors
/// There is none, or it can't be read.
pub fn head(state_dir: &Path) -> anyhow::Result<String> {
    let record = state_dir.join(RECORD);
    let key = PublicKey::beside(&record)?;
    let head =
        Head::beside(&record).with_context(|| format!("cannot read {}.head", record.display()))?;
    let Some(head) = head else {
        bail!("no head is on file beside {}", record.display());
    };
    if !head.is_signed_by(&key) {
        bail!(
            "the head on file beside {} is not signed by the key beside it; `agentctl audit verify` says more",
            record.display()
        );
    }
    let document = json!({
        "record": record,
        "key": key.to_string(),
        "head": head.noted().to_string(),
        "at_ms": head.at_ms(),
    });
    Ok(document.to_string())
}

fn key(typed: Option<&str>, record: &Path) -> anyhow::Result<PublicKey> {
    let Some(typed) = typed else {
        return Ok(PublicKey::beside(record)?);
    };
    if !typed.contains('/') {
        return Ok(typed.parse()?);
    }
    let text = std::fs::read_to_string(typed).with_context(|| format!("cannot read {typed}"))?;
    Ok(text.trim().parse()?)
}
