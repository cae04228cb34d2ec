//! The part of an agent's record (`agentctl inspect --json`) that the demo shows.
//!
//! A reader's view: fields that the demo has no use for are passed over, a missing one is an error that names it.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Record {
    pub name: String,
    pub policy: String,
    pub mode: String,
    pub pid: Option<u32>,
    pub layers: Vec<String>,
    pub landlock_abi: Option<u32>,
    pub degradations: Vec<Degradation>,
    pub started_at_ms: i64,
    pub ended_at_ms: Option<i64>,
    pub exit: Option<Exit>,
    pub tokens: Tokens,
    pub messages: Vec<Message>,
    pub denials: Vec<Denial>,
    pub timeline: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
pub struct Degradation {
    pub property: String,
    pub why: String,
}

#[derive(Debug, Deserialize)]
pub struct Exit {
    pub kind: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub cause: String,
    pub resources: Resources,
}

#[derive(Debug, Deserialize)]
pub struct Resources {
    pub user_us: u64,
    pub system_us: u64,
    pub max_rss_kib: u64,
    pub memory_peak_bytes: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, Deserialize)]
pub struct Tokens {
    pub requests: u64,
    pub input: u64,
    pub output: u64,
    pub cache_read: u64,
    pub cache_write: u64,
}

impl Tokens {
    pub fn all(self) -> u64 {
        self.input + self.output + self.cache_read + self.cache_write
    }
}

#[derive(Debug, Deserialize)]
pub struct Message {
    pub seq: i64,
    pub at_ms: i64,
    pub from: String,
    pub to: String,
    pub kind: String,
    pub subject: Option<String>,
    pub bytes: u64,
    pub outcome: String,
}

#[derive(Debug, Deserialize)]
pub struct Denial {
    pub layer: String,
    pub what: String,
    pub target: String,
    pub rule: String,
}

/// One line of the timeline.
#[derive(Debug, Deserialize)]
pub struct Entry {
    pub seq: i64,
    pub at_ms: i64,
    pub kind: String,
    pub text: String,
}
