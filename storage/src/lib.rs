//! The record: launches, tasks, messages, tokens, denials and exits, in SQLite.
//!
//! One [`Store`] is one database file (`record.db` in the state directory; WAL, `synchronous=FULL`). All writes go
//! through one task that takes whatever is queued into one transaction (group commit) and acknowledges after
//! COMMIT, so an acknowledged fact survives a crash and a power cut. Reads use a small pool of read-only
//! connections and never wait for the writer. Every query takes a [`Viewer`].
//!
//! It runs in the daemon, under the daemon's unprivileged user, on tokio; SQLite itself works on threads of its
//! own. It never interprets what it stores, never prints, and never drops a fact silently: what could not be
//! written is reported to whoever waits for it, and counted in [`Health`] if nobody does.
//!
//! Start reading at [`Event`] (what goes in) and [`Record`] (what comes out), then `writer.rs`.
#![deny(unsafe_code)]

mod approval;
mod audit;
mod backup;
mod error;
mod event;
mod open;
mod prune;
mod query;
mod record;
mod revocation;
mod row;
mod store;
pub mod stream;
mod task;
mod task_query;
mod task_write;
mod transaction;
mod unit;
mod writer;

pub use approval::{Asked, Question, Settlement, StandingRule};
pub use audit::{
    Finding, FindingKind, Folded, Head, KeyError, Note, NoteKind, NotedHead, NotedHeadError,
    PublicKey, Verification, Verify, verify,
};
pub use backup::{Salvage, SalvagedTable, backup, check, recover};
pub use error::StoreError;
pub use event::{
    Approval, Counted, Degradation, Denial, Direction, Event, Exit, ExitKind, Fact, Launch,
    LaunchFailure, LaunchId, Message, MessageKind, Ready, Resources, Scheduled, Usage, UsageSource,
    unix_ms,
};
pub use prune::{Expired, ExpiredLaunch};
pub use record::{
    At, DriverLine, LaunchSummary, Launched, Record, TimelineEntry, TokenTotals, Unended, Viewer,
};
pub use revocation::Revocation;
pub use store::{Health, Store, Told};
pub use task::{
    BootMoment, NewTask, OpenTask, TaskBatch, TaskChange, TaskRecord, TaskSummary, TaskTaken,
    TaskTransition,
};
pub use task_query::Which;
pub use unit::{UnitRow, UnitText};
