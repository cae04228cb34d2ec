//! What the kernel holds, by kind of object: for the `conns` rows.
//!
//! Slab objects in use, each with its share of the pages that its cache cuts up, and what does not come from slabs: page
//! tables, per-CPU memory, mapped areas, buffers of sockets. Objects, not pages: a page that is half empty because others
//! have left it is not anybody's. Reads `/proc` (slabinfo as root); changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

/// Bytes by kind.
#[derive(Debug)]
pub struct KernelMemory(BTreeMap<String, f64>);

/// The kernel gives objects back with a delay.
const PAUSE: Duration = Duration::from_millis(300);
/// Caches of what is on disks, which grow and shrink with whatever else the host does. No socket is in them.
const FILES: [&str; 8] = [
    "ext4_",
    "jbd2_",
    "buffer_head",
    "radix_tree_node",
    "inode_cache",
    "shmem_inode_cache",
    "proc_inode_cache",
    "ovl_inode",
];
/// Less than that comes and goes by itself.
const NOISE: f64 = 256e3;

impl KernelMemory {
    fn read() -> Result<Self> {
        let mut kinds = BTreeMap::new();
        let slabs = std::fs::read_to_string("/proc/slabinfo")
            .context("/proc/slabinfo, which only root reads")?;
        // Two lines of headings.
        for line in slabs.lines().skip(2) {
            let mut words = line.split_whitespace();
            let name = words.next().context("a name")?;
            if FILES.iter().any(|files| name.starts_with(files)) {
                continue;
            }
            let numbers: Vec<f64> = words.take(5).filter_map(|word| word.parse().ok()).collect();
            if let [active, _, _, per_slab, pages] = numbers[..] {
                kinds.insert(name.to_owned(), active * pages * page() / per_slab);
            }
        }
        let text = std::fs::read_to_string("/proc/meminfo")?;
        for name in ["Percpu", "PageTables", "KernelStack", "VmallocUsed"] {
            let line = text
                .lines()
                .find(|line| line.split(':').next() == Some(name));
            let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok());
            kinds.insert(name.to_owned(), kib.context(name)? * 1024.0);
        }
        let sockets = std::fs::read_to_string("/proc/net/sockstat")?;
        let pages = sockets.lines().filter_map(|line| {
            let pages = line.split_once(" mem ")?.1.split_whitespace().next()?;
            pages.parse::<f64>().ok()
        });
        kinds.insert("socket buffers".to_owned(), pages.sum::<f64>() * page());
        Ok(Self(kinds))
    }

    /// When nothing large is on its way back any more.
    pub fn settled() -> Result<Self> {
        let mut last = Self::read()?;
        loop {
            std::thread::sleep(PAUSE);
            let now = Self::read()?;
            if now.since(&last).abs() < NOISE {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Bytes that have come since.
    pub fn since(&self, before: &Self) -> f64 {
        self.grown(before).map(|(_, grown)| grown).sum()
    }

    fn grown<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = (&'a str, f64)> {
        let kinds = self.0.iter();
        kinds.map(|(name, bytes)| (name.as_str(), bytes - before.0.get(name).unwrap_or(&0.0)))
    }

    /// The kinds that have grown most.
    pub fn largest_since<'a>(&'a self, before: &'a Self) -> Vec<(&'a str, f64)> {
        let mut grown: Vec<_> = self.grown(before).collect();
        grown.sort_by(|a, b| b.1.total_cmp(&a.1));
        grown.truncate(12);
        grown
    }
}

fn page() -> f64 {
    rustix::param::page_size() as f64
}
