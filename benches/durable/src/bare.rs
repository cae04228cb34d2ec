//! The least that a durable log can do: the same bytes, `pwrite` and `fdatasync`, one thread, nothing else.
//!
//! In a file whose blocks are there and hold zeros, so that a sync changes no metadata: the quickest plain way. `growing` is
//! what a simple log does, an append to the end of the file; `direct` leaves the page cache out.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::OFlags;

use crate::{BATCH, BATCH_BYTES, Contender, noise, rate};

/// Larger than what a run writes between two turns at its beginning.
const SIZE: u64 = 64 << 20;
const BLOCK: usize = 4096;

struct Bare {
    file: File,
    /// Written again and again.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
    at: u64,
    /// Where to begin again.
    end: u64,
}

pub fn preallocated(directory: &Path) -> Result<Box<dyn Contender>> {
    begin(directory, Some(SIZE), OFlags::empty())
}

pub fn direct(directory: &Path) -> Result<Box<dyn Contender>> {
    begin(directory, Some(SIZE), OFlags::DIRECT)
}

pub fn growing(directory: &Path) -> Result<Box<dyn Contender>> {
    begin(directory, None, OFlags::empty())
}

fn begin(directory: &Path, size: Option<u64>, flags: OFlags) -> Result<Box<dyn Contender>> {
    let path = directory.join("log");
    if let Some(size) = size {
        let file = File::create(&path).context("make the file")?;
        let zeros = vec![0; 1 << 20];
        for at in (0..size).step_by(zeros.len()) {
            rustix::io::pwrite(&file, &zeros, at).context("fill the file")?;
        }
        file.sync_all().context("fsync")?;
    }
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).truncate(false);
    let file = file.open(&path).context("open the file")?;
    rustix::fs::fcntl_setfl(&file, flags).context("O_DIRECT")?;
    let direct = flags.contains(OFlags::DIRECT);
    let len = if direct {
        BATCH_BYTES.next_multiple_of(BLOCK)
    } else {
        BATCH_BYTES
    };
    let bytes = noise(7, len + BLOCK);
    let start = if direct {
        bytes.as_ptr().align_offset(BLOCK)
    } else {
        0
    };
    Ok(Box::new(Bare {
        file,
        bytes,
        start,
        len,
        at: 0,
        end: size.unwrap_or(u64::MAX),
    }))
}

impl Contender for Bare {
    fn enqueue(&mut self, batches: usize) -> Result<f64> {
        rate(batches * BATCH, || {
            for _ in 0..batches {
                if self.at + self.len as u64 > self.end {
                    self.at = 0;
                }
                let bytes = &self.bytes[self.start..self.start + self.len];
                let written = rustix::io::pwrite(&self.file, bytes, self.at).context("pwrite")?;
                anyhow::ensure!(written == bytes.len(), "a short write");
                rustix::fs::fdatasync(&self.file).context("fdatasync")?;
                self.at += written as u64;
            }
            Ok(())
        })
    }
}
