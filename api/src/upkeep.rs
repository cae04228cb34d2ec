//! Keeping what agentd has written small and whole: forgetting old launches, copies and checks of the record, and the
//! output of launches that only the record knows.

use serde_json::{Value, json};
use zbus::{DeserializeDict, OwnedFd, SerializeDict, Type};

use crate::{Error, LogOptions};

/// Which launches to forget. Only what has ended is ever forgotten.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", deny_unknown_fields)]
pub struct PruneOptions {
    /// Only those that ended at least so long ago, in milliseconds.
    pub older_than_ms: Option<u64>,
    /// Never the newest so many of each user.
    pub keep: Option<u32>,
    /// Say what would be forgotten, and forget nothing.
    pub dry_run: Option<bool>,
}

/// What was forgotten, or would be.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct Pruned {
    /// Ids of the launches, the oldest end first.
    pub ids: Vec<String>,
    /// Their names, in the same order.
    pub names: Vec<String>,
    /// Bytes of their logs.
    pub log_bytes: u64,
}

impl Pruned {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        let launches: Vec<Value> = self
            .ids
            .iter()
            .zip(&self.names)
            .map(|(id, name)| json!({ "id": id, "name": name }))
            .collect();
        json!({ "launches": launches, "log_bytes": self.log_bytes })
    }
}

/// The signed head of the record, and what verifies it.
#[derive(Debug, Clone, Default, PartialEq, Eq, SerializeDict, DeserializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub struct AuditHead {
    /// The database file.
    pub record: String,
    /// The public key, 64 hex digits.
    pub key: String,
    /// `NUMBER:HASH`.
    pub head: String,
    /// When it was committed, ms since the epoch.
    pub at_ms: i64,
}

impl AuditHead {
    /// The form that `--json` prints.
    pub fn to_json(&self) -> Value {
        json!({ "record": self.record, "key": self.key, "head": self.head, "at_ms": self.at_ms })
    }
}

/// `org.agentd1.Upkeep` at `/org/agentd1`.
#[zbus::proxy(
    interface = "org.agentd1.Upkeep",
    default_service = "org.agentd1",
    default_path = "/org/agentd1"
)]
pub trait Upkeep {
    /// Forgets launches of the caller (of everybody, for root): their record, logs and status files.
    fn prune(&self, options: &PruneOptions) -> Result<Pruned, Error>;

    /// Checks the whole record: "ok", or a list of damages. For the administrator.
    fn check_record(&self) -> Result<String, Error>;

    /// A copy of the record as of now, open for reading. For the administrator.
    fn backup_record(&self) -> Result<OwnedFd, Error>;

    /// The head that the record ends with now, to be noted somewhere else.
    fn audit_head(&self) -> Result<AuditHead, Error>;

    /// The output of a launch of the caller that the record knows, also of an earlier daemon: a pipe that ends with it.
    fn read_log(&self, name_or_id: &str, options: &LogOptions) -> Result<OwnedFd, Error>;
}
