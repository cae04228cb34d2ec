//! What an agent tells a test: a file of its current directory, a line each, so that the test can wait for it from outside.

use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

/// A file of lines that threads share.
#[derive(Clone, Debug)]
pub struct Lines(Arc<Mutex<File>>);

impl Lines {
    /// Goes on behind what the file has.
    ///
    /// # Errors
    ///
    /// When it can't be opened for appending.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(name)
            .with_context(|| format!("{name} in the current directory"))?;
        Ok(Self(Arc::new(Mutex::new(file))))
    }

    pub fn say(&self, line: &str) {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A test that waits for the line in vain says so.
        if let Err(error) = writeln!(file, "{line}") {
            eprintln!("{line}: {error}");
        }
    }
}
