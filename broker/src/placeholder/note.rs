//! Notes of placeholders, for a broker that comes after a crash.
//!
//! A note is a file in a folder that only this process's user can write. The worker that writes it holds a lock on it, and so
//! does the sandbox's init, through the same open file: a note that can be locked is of a sandbox that has ended, and of a
//! broker that can't tidy up after it any more. Folders are noted by path and identity, and reopened as their owner; one that
//! is not the same any more is left alone.

use super::{ActingAs, FOLDER, Identity, Made, Owner, Placeholders, RESOLVE, own_ids};
use crate::failure::failed;
use crate::log::log;
use agentd_broker::protocol::{ErrorCode, Failure, Mode, Slot};
use agentd_kernel::grant::Grant;
use agentd_launch::plan::Plan;
use rustix::fs::{FileType, FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where root's broker keeps its notes.
pub const ROOT_NOTES: &str = "/var/lib/agentd-broker";
const NOTE_PREFIX: &str = "placeholders-";
const NOTE_HEADER: &str = "agentd-broker placeholders 1";
/// More than a plan can ask for.
const MAX_NOTE: u64 = 8 << 20;

#[derive(Debug)]
pub(super) struct Note {
    /// Locked, by this process and by the sandbox's init.
    pub(super) file: File,
    pub(super) path: PathBuf,
}

/// Where notes are kept, if anywhere.
#[derive(Debug)]
pub struct Keeper {
    folder: Option<PathBuf>,
    written: u64,
}

impl Keeper {
    /// `folder` as the command line says; root's has a place of its own.
    pub fn new(mode: Mode, folder: Option<PathBuf>) -> Keeper {
        let default = || (mode == Mode::Root).then(|| PathBuf::from(ROOT_NOTES));
        Keeper {
            folder: folder.or_else(default),
            written: 0,
        }
    }

    /// Makes the placeholders that the plan asks for and that are needed, and notes them.
    pub fn make(
        &mut self,
        slot: Slot,
        plan: &Plan<'_>,
        grants: &[Grant],
        owner: Owner,
    ) -> Result<Placeholders, Failure> {
        let mut placeholders = Placeholders {
            made: Vec::new(),
            owner,
            note: None,
        };
        let result = placeholders
            .make(plan, grants)
            .and_then(|()| self.note(slot, &mut placeholders));
        match result {
            Ok(()) => Ok(placeholders),
            Err(failure) => {
                placeholders.remove();
                Err(failure)
            }
        }
    }

    fn note(&mut self, slot: Slot, placeholders: &mut Placeholders) -> Result<(), Failure> {
        let Some(folder) = self
            .folder
            .clone()
            .filter(|_| !placeholders.made.is_empty())
        else {
            return Ok(());
        };
        let fault = |error: io::Error| {
            let what = format!("noting placeholders in {}", folder.display());
            failed(ErrorCode::Placeholder, what, &error)
        };
        let text = placeholders.to_note().map_err(fault)?;
        let own = std::process::id();
        let mut write = || {
            own_folder(&folder)?;
            self.written += 1;
            let path = folder.join(format!("{NOTE_PREFIX}{own}-{slot}-{}", self.written));
            let mut file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            file.write_all(&text)?;
            Ok(Note { file, path })
        };
        placeholders.note = Some(write().map_err(fault)?);
        Ok(())
    }

    /// Removes the placeholders of sandboxes that have ended without a broker.
    pub fn sweep(&self) {
        let Some(folder) = &self.folder else { return };
        // Not there: nothing was ever noted.
        let Ok(entries) = std::fs::read_dir(folder) else {
            return;
        };
        if let Err(error) = own_folder(folder) {
            return log!("{}: {error}", folder.display());
        }
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(OsStr::to_str);
            if name.is_some_and(|name| name.starts_with(NOTE_PREFIX))
                && let Err(error) = sweep_note(&path)
            {
                log!("{}: {error}", path.display());
            }
        }
    }
}

/// Makes the folder if need be; it must be this user's, and closed to others.
fn own_folder(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let found = std::fs::symlink_metadata(folder)?;
    if found.is_dir() && found.uid() == own_ids().uid && found.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "it must be a directory of this process's user that nobody else can write",
    ))
}

/// Undoes one note, unless its sandbox lives.
fn sweep_note(path: &Path) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, FileMode::empty())?);
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    let mut text = Vec::new();
    (&mut file).take(MAX_NOTE).read_to_end(&mut text)?;
    match Placeholders::from_note(&text) {
        Some(placeholders) => placeholders.remove(),
        // It was being written when its broker died.
        None => log!("{} is not whole", path.display()),
    }
    std::fs::remove_file(path)
}

impl Placeholders {
    /// A line about the owner, then for each placeholder a line and two strings that end in NUL.
    fn to_note(&self) -> io::Result<Vec<u8>> {
        let Owner { uid, gid } = self.owner;
        let mut out = format!("{NOTE_HEADER}\n{uid} {gid}\n").into_bytes();
        for made in &self.made {
            let kind = match made.kind {
                FileType::Directory => 'd',
                _ => 'f',
            };
            let parent = Identity::of(&rustix::fs::fstat(&made.parent)?);
            let mut line = String::new();
            let Identity { dev, ino } = made.identity;
            // Writing to a string does not fail.
            writeln!(line, "{kind} {dev} {ino} {} {}", parent.dev, parent.ino).ok();
            out.extend_from_slice(line.as_bytes());
            let path = std::fs::read_link(format!("/proc/self/fd/{}", made.parent.as_raw_fd()))?;
            out.extend_from_slice(&path.into_os_string().into_vec());
            out.push(0);
            out.extend_from_slice(made.name.as_bytes_with_nul());
        }
        Ok(out)
    }

    /// What the note says, as far as the folders are still where they were. `None` if it is not a whole note.
    fn from_note(text: &[u8]) -> Option<Placeholders> {
        let mut rest = text
            .strip_prefix(NOTE_HEADER.as_bytes())?
            .strip_prefix(b"\n")?;
        let numbers = |rest: &mut &[u8]| -> Option<(Vec<u64>, Option<char>)> {
            let end = rest.iter().position(|byte| *byte == b'\n')?;
            let line = std::str::from_utf8(&rest[..end]).ok()?;
            *rest = &rest[end + 1..];
            let kind = line.chars().next().filter(char::is_ascii_alphabetic);
            let words = line.split(' ').skip(kind.map_or(0, |_| 1));
            let numbers: Result<_, _> = words.map(str::parse).collect();
            Some((numbers.ok()?, kind))
        };
        let (ids, None) = numbers(&mut rest)? else {
            return None;
        };
        let [uid, gid] = ids[..] else { return None };
        let owner = Owner {
            uid: uid.try_into().ok()?,
            gid: gid.try_into().ok()?,
        };
        let mut placeholders = Placeholders {
            made: Vec::new(),
            owner,
            note: None,
        };
        while !rest.is_empty() {
            let (of, kind) = numbers(&mut rest)?;
            let [dev, ino, parent_dev, parent_ino] = of[..] else {
                return None;
            };
            let mut string = || {
                let string = CStr::from_bytes_until_nul(rest).ok()?;
                rest = &rest[string.count_bytes() + 1..];
                Some(string)
            };
            let (path, name) = (string()?, string()?);
            let expected = Identity {
                dev: parent_dev,
                ino: parent_ino,
            };
            let Some(parent) = reopen(path, expected, owner) else {
                log!(
                    "the placeholder {} is not looked for: its folder is not {} any more",
                    name.to_string_lossy(),
                    path.to_string_lossy()
                );
                continue;
            };
            placeholders.made.push(Made {
                parent,
                name: name.to_owned(),
                kind: match kind? {
                    'd' => FileType::Directory,
                    'f' => FileType::RegularFile,
                    _ => return None,
                },
                identity: Identity { dev, ino },
            });
        }
        Some(placeholders)
    }
}

fn reopen(path: &CStr, expected: Identity, owner: Owner) -> Option<OwnedFd> {
    let _acting = ActingAs::owner(owner).ok()?;
    let folder =
        rustix::fs::openat2(rustix::fs::CWD, path, FOLDER, FileMode::empty(), RESOLVE).ok()?;
    let found = rustix::fs::fstat(&folder).ok()?;
    (Identity::of(&found) == expected).then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NAMES, list, placeholders};
    use super::*;
    use std::fs;

    #[test]
    fn a_later_broker_removes_what_an_unlocked_note_names() {
        let (folder, notes) = (
            tempfile::tempdir().expect("t"),
            tempfile::tempdir().expect("t"),
        );
        let notes = notes.path().join("notes");
        let mut keeper = Keeper::new(Mode::User, Some(notes.clone()));
        let mut made = placeholders(folder.path(), &NAMES);
        keeper.note(Slot(1), &mut made).expect("note");
        keeper.sweep();
        assert_eq!(
            list(folder.path()),
            [".envrc", ".vscode"],
            "its sandbox lives"
        );
        drop(made);
        keeper.sweep();
        assert_eq!((list(folder.path()), list(&notes)), (vec![], vec![]));
    }

    #[test]
    fn a_note_about_a_folder_that_was_replaced_removes_nothing() {
        let (folder, notes) = (
            tempfile::tempdir().expect("t"),
            tempfile::tempdir().expect("t"),
        );
        let workspace = folder.path().join("w");
        fs::create_dir(&workspace).expect("mkdir");
        let mut keeper = Keeper::new(Mode::User, Some(notes.path().join("notes")));
        let mut made = placeholders(&workspace, &NAMES);
        keeper.note(Slot(1), &mut made).expect("note");
        drop(made);
        fs::rename(&workspace, folder.path().join("moved")).expect("rename");
        fs::create_dir(&workspace).expect("mkdir");
        fs::write(workspace.join(".envrc"), "").expect("write");
        keeper.sweep();
        assert_eq!(list(&workspace), [".envrc"]);
    }

    #[test]
    fn a_torn_note_is_not_read() {
        let folder = tempfile::tempdir().expect("tempdir");
        let made = placeholders(folder.path(), &NAMES);
        let note = made.to_note().expect("note");
        assert_eq!(Placeholders::from_note(&note).expect("whole").made.len(), 2);
        let header = NOTE_HEADER.len() + 1;
        for len in (0..note.len()).filter(|len| *len < header || note[*len - 1] != 0) {
            let read = Placeholders::from_note(&note[..len]);
            assert!(read.is_none_or(|read| read.made.is_empty()), "{len} bytes");
        }
    }

    #[test]
    fn a_folder_that_others_can_write_holds_no_notes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("tempdir");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        assert!(own_folder(folder.path()).is_err());
    }
}
