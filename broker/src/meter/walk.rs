//! What lies in the folders that an agent may write: bytes on disk and files, each file once.
//!
//! Descriptors only, no link followed, no file system entered that the folder is not on. What vanishes meanwhile is passed by.
//! Nothing here blocks for long on a local file system; a remote one may take its time.

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Folders in folders; each holds a descriptor open.
pub const MAX_DEPTH: usize = 256;

/// Bytes as allocated, so holes and what was reserved count as they do on the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

impl Usage {
    /// What has come since; never less than nothing.
    pub fn since(self, start: Usage) -> Usage {
        Usage {
            bytes: self.bytes.saturating_sub(start.bytes),
            inodes: self.inodes.saturating_sub(start.inodes),
        }
    }
}

/// Folders that nobody can look into without end.
#[derive(Debug, PartialEq, Eq)]
pub struct TooDeep;

/// Everything below these folders together.
pub fn measure(places: &[OwnedFd]) -> Result<Usage, TooDeep> {
    let mut walk = Walk::default();
    for place in places {
        let Ok(stat) = rustix::fs::fstat(place) else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            walk.device = stat.st_dev;
            let Ok(folder) = open(place.as_fd(), c".") else {
                continue;
            };
            walk.folder(folder, 0)?;
        } else {
            walk.count(&stat);
        }
    }
    Ok(walk.found)
}

#[derive(Default)]
struct Walk {
    found: Usage,
    device: u64,
    /// Files with several names, seen by one of them.
    linked: HashSet<(u64, u64)>,
}

impl Walk {
    fn folder(&mut self, folder: OwnedFd, depth: usize) -> Result<(), TooDeep> {
        let Ok(entries) = Dir::read_from(&folder) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            if stat.st_dev != self.device {
                continue;
            }
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            if depth == MAX_DEPTH {
                return Err(TooDeep);
            }
            match open(folder.as_fd(), name) {
                Ok(inner) => self.folder(inner, depth + 1)?,
                Err(Errno::MFILE | Errno::NFILE) => return Err(TooDeep),
                // Gone, or somebody else's: nothing of the agent's is in there.
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn count(&mut self, stat: &rustix::fs::Stat) {
        const BLOCK: u64 = 512;
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !folder && stat.st_nlink > 1 && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
        self.found.bytes = self
            .found
            .bytes
            .saturating_add(blocks.saturating_mul(BLOCK));
        self.found.inodes += 1;
    }
}

fn open(at: BorrowedFd<'_>, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn usage(folder: &std::path::Path) -> Result<Usage, TooDeep> {
        measure(&[fs::File::open(folder).expect("open").into()])
    }

    #[test]
    fn bytes_are_those_of_the_disk_and_each_file_counts_once() {
        let folder = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| folder.path().join(name);
        let start = usage(folder.path()).expect("measured");
        assert_eq!(start.inodes, 0);
        fs::create_dir(at("sub")).expect("mkdir");
        fs::write(at("sub/file"), vec![1; 1 << 20]).expect("write");
        fs::hard_link(at("sub/file"), at("again")).expect("link");
        std::os::unix::fs::symlink("/usr", at("out")).expect("symlink");
        // Nothing but a hole.
        fs::File::create(at("hole"))
            .and_then(|f| f.set_len(1 << 30))
            .expect("write");
        fs::File::open(at("sub/file"))
            .and_then(|f| f.sync_all())
            .expect("sync");
        let added = usage(folder.path()).expect("measured").since(start);
        assert_eq!(added.inodes, 4);
        assert!((1 << 20..2 << 20).contains(&added.bytes), "{added:?}");
        let shrunk = start.since(added);
        assert_eq!(shrunk, Usage::default());
    }

    #[test]
    fn folders_without_end_are_found_out() {
        let folder = tempfile::tempdir().expect("tempdir");
        let deep: std::path::PathBuf = std::iter::repeat_n("d", MAX_DEPTH).collect();
        fs::create_dir_all(folder.path().join(&deep)).expect("mkdir");
        assert!(usage(folder.path()).is_ok());
        fs::create_dir(folder.path().join(deep).join("d")).expect("mkdir");
        assert_eq!(usage(folder.path()), Err(TooDeep));
    }
}
