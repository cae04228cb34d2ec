//! What the stand-in was asked, for assertions: in memory, and as JSON lines when a file is given.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

/// One request as it arrived.
#[derive(Debug, Clone, Serialize)]
pub struct Logged {
    /// Counts from 0.
    pub number: u64,
    /// Method and path with its query.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// All headers, names in lower case; several values joined by a comma.
    pub headers: BTreeMap<String, String>,
    /// The body as JSON, or as a string where it is none.
    pub body: Value,
    /// The rule that answered.
    pub rule: Option<String>,
    /// The status answered with.
    pub status: u16,
    /// How the answer ended; `None` while it is under way.
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All of it was handed to the connection.
    Complete,
    /// The script broke it off.
    Truncated,
    /// The client went away first.
    Aborted,
}

/// The log of one stand-in.
#[derive(Debug, Default)]
pub struct Log {
    entries: Mutex<Vec<Logged>>,
    changed: Condvar,
    file: Option<Mutex<File>>,
}

impl Log {
    /// A log that also writes JSON lines to `file`.
    pub fn new(file: Option<File>) -> Self {
        Self {
            file: file.map(Mutex::new),
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Logged>> {
        self.entries
            .lock()
            .expect("no thread panics while it holds the log")
    }

    /// Adds a request and says under which number.
    pub fn request(&self, mut entry: Logged) -> u64 {
        let mut entries = self.lock();
        entry.number = entries.len() as u64;
        let number = entry.number;
        self.write(&serde_json::json!({"event": "request", "request": entry}));
        entries.push(entry);
        self.changed.notify_all();
        number
    }

    /// Notes how the answer to request `number` ended; the first word counts.
    pub fn end(&self, number: u64, end: End) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(number as usize)
            && entry.end.is_none()
        {
            entry.end = Some(end);
            self.write(&serde_json::json!({"event": "end", "number": number, "end": end}));
            self.changed.notify_all();
        }
    }

    /// All requests so far.
    pub fn entries(&self) -> Vec<Logged> {
        self.lock().clone()
    }

    /// Waits until `ready` holds; false when `timeout` passed first. Blocks the calling thread.
    pub fn wait(&self, timeout: Duration, ready: impl Fn(&[Logged]) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut entries = self.lock();
        while !ready(&entries) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            entries = self
                .changed
                .wait_timeout(entries, left)
                .expect("no thread panics while it holds the log")
                .0;
        }
        true
    }

    fn write(&self, line: &Value) {
        if let Some(file) = &self.file {
            let mut file = file
                .lock()
                .expect("no thread panics while it holds the file");
            if let Err(e) = writeln!(file, "{line}") {
                // The log is the stand-in's only product besides answers: a test must not trust half of it.
                panic!("cannot write the request log: {e}");
            }
        }
    }
}

/// Opens the file for [`Log::new`], empty.
pub fn create(path: &std::path::Path) -> io::Result<File> {
    File::create(path)
}
