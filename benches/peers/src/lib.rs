//! Brokers that the bus is measured beside: NATS and Redis, each with its server started for the run and a client that
//! speaks its protocol without a runtime in between. What a client gathers and how it answers is what the broker's own
//! clients do where they are fast.

pub mod nats;
pub mod redis;
pub mod streams;
mod wire;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A directory for a server's files, removed with everything in it.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(what: &str) -> Result<Self> {
        let name = format!("bench-{what}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("remove {}: {error}", self.0.display());
        }
    }
}
