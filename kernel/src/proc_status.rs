//! What `/proc/PID/status` says of a process: whose child it is, as whom it runs, and which pid it has in its own namespace.
//!
//! Reads one file, never blocks, needs no privilege. A pid can be used again: hold a pidfd of the process and look whether
//! it has exited *after* reading. Fails when there is no such process, or the file lacks a field.

use std::fs;
use std::io;

/// Fields of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcStatus {
    /// The parent's pid; 0 if it can't be seen from here.
    pub parent: i32,
    /// Real, effective, saved and file system uid.
    pub uids: [u32; 4],
    /// Its pid in each pid namespace from that of this procfs down to its own.
    pub pids: Vec<i32>,
}

impl ProcStatus {
    /// Reads the file.
    pub fn read(pid: i32) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
        Self::parse(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    }

    /// Whether it is the first process of a pid namespace below that of this procfs.
    pub fn is_init_below(&self) -> bool {
        self.pids.len() > 1 && self.pids.last() == Some(&1)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(str::split_whitespace)
        };
        let uids: Vec<u32> = field("Uid")?.map_while(|id| id.parse().ok()).collect();
        Some(Self {
            parent: field("PPid")?.next()?.parse().ok()?,
            uids: uids.try_into().ok()?,
            pids: field("NSpid")?.map_while(|pid| pid.parse().ok()).collect(),
        })
    }
}

/// The real uids of all processes that this procfs shows. Those that end meanwhile may be missing.
pub fn uids() -> io::Result<Vec<u32>> {
    let pids = fs::read_dir("/proc")?.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse::<i32>().ok()
    });
    Ok(pids
        .filter_map(|pid| Some(ProcStatus::read(pid).ok()?.uids[0]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_process_is_as_the_kernel_says() {
        let pid = std::process::id() as i32;
        let status = ProcStatus::read(pid).expect("own status");
        let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
        assert_eq!(status.parent, parent);
        assert_eq!(status.uids[0], rustix::process::getuid().as_raw());
        assert_eq!(status.pids[0], pid);
        assert!(!status.is_init_below());
        assert!(uids().expect("all").contains(&status.uids[0]));
    }

    #[test]
    fn an_init_is_pid_1_of_a_namespace_further_down() {
        let of = |pids: &str| {
            let text =
                format!("Name:\tx\nPPid:\t5\nUid:\t1\t2\t3\t4\nNSpid:\t{pids}\nThreads:\t1\n");
            ProcStatus::parse(&text).expect("whole").is_init_below()
        };
        assert!(of("4711\t1") && of("4711\t20\t1"));
        assert!(!of("1") && !of("4711") && !of("4711\t1\t7"));
        assert_eq!(
            ProcStatus::parse("PPid:\t5\nUid:\t1\t2\t3\nNSpid:\t7\n"),
            None
        );
    }
}
