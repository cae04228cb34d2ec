//! Notes of placeholders, for a broker that comes after a crash.
//!
//! A note is a file in a folder that only this process's user can write. The worker that writes it holds a lock on it, and so
//! does the sandbox's init, through the same open file: a note that can be locked is of a sandbox that has ended, and of a
//! broker that can't tidy up after it any more. Folders are noted by path and identity, and reopened as their owner; one that
//! is not the same any more is left alone.
//!
//! Sandboxes may share a folder. A placeholder is in the note of each that it serves, and goes with the last of them: to
//! remove it earlier would take the others' covers with it.

use super::{ActingAs, FOLDER, Identity, Made, Owner, Placeholders, RESOLVE, own_ids};
use crate::failure::failed;
use crate::log::log;
use agentd_broker::protocol::{ErrorCode, Failure, Mode, Slot};
use agentd_kernel::grant::Grant;
use agentd_launch::plan::Plan;
use rustix::fs::{FileType, FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use std::cell::LazyCell;
use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
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
        // Read only where a name is taken already.
        let held = LazyCell::new(|| Held::by_others_than(self.folder.as_deref(), None));
        let made = placeholders.make(plan, grants, &|identity| held.contains(identity));
        let result = made.and_then(|()| self.note(slot, &mut placeholders));
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
            self.written += 1;
            let path = folder.join(format!("{NOTE_PREFIX}{own}-{slot}-{}", self.written));
            let make = || {
                own_folder(&folder)?;
                let mut options = File::options();
                options.read(true).write(true).create_new(true).open(&path)
            };
            // Another broker may have removed the folder with its last note just now.
            let mut file = make().or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => make(),
                _ => Err(error),
            })?;
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
            if is_note(&path)
                && let Err(error) = sweep_note(folder, &path)
            {
                log!("{}: {error}", path.display());
            }
        }
    }
}

/// The placeholders of the sandboxes that live.
#[derive(Debug, Default)]
pub(super) struct Held(Vec<Identity>);

impl Held {
    /// What is in the notes in `folder` that somebody holds locked, `except` for one.
    pub(super) fn by_others_than(folder: Option<&Path>, except: Option<&Path>) -> Held {
        let mut held = Held::default();
        let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok());
        for path in entries.into_iter().flatten().flatten().map(|e| e.path()) {
            if Some(path.as_path()) == except || !is_note(&path) {
                continue;
            }
            // One that goes away meanwhile is of a sandbox that has ended.
            if let Ok(Read::Held(text)) = read_note(&path)
                && let Some((_, noted)) = parse(&text)
            {
                held.0.extend(noted.iter().map(|noted| noted.identity));
            }
        }
        held
    }

    pub(super) fn contains(&self, identity: Identity) -> bool {
        self.0.contains(&identity)
    }
}

fn is_note(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str);
    name.is_some_and(|name| name.starts_with(NOTE_PREFIX))
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

/// A note, and whether somebody holds it locked.
enum Read {
    Held(Vec<u8>),
    /// It is locked by the file given, for as long as that lives.
    Left(Vec<u8>, File),
}

fn read_note(path: &Path) -> io::Result<Read> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::open(path, flags, FileMode::empty())?);
    let locked = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive);
    let mut text = Vec::new();
    (&mut file).take(MAX_NOTE).read_to_end(&mut text)?;
    match locked {
        Ok(()) => Ok(Read::Left(text, file)),
        Err(Errno::WOULDBLOCK) => Ok(Read::Held(text)),
        Err(errno) => Err(errno.into()),
    }
}

/// Undoes one note, unless its sandbox lives.
fn sweep_note(folder: &Path, path: &Path) -> io::Result<()> {
    let Read::Left(text, _lock) = read_note(path)? else {
        return Ok(());
    };
    match Placeholders::from_note(&text) {
        Some(placeholders) => {
            placeholders.remove_but(&Held::by_others_than(Some(folder), Some(path)));
        }
        // It was being written when its broker died.
        None => log!("{} is not whole", path.display()),
    }
    remove(path)
}

/// Removes a note, and the folder with the last of them.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)?;
    if let Some(folder) = path.parent() {
        // Another note is in it, or it is a mount that a service was given.
        std::fs::remove_dir(folder).ok();
    }
    Ok(())
}

/// One placeholder, as a note has it.
struct Noted<'a> {
    kind: FileType,
    identity: Identity,
    folder: Identity,
    path: &'a CStr,
    name: &'a CStr,
}

/// What a note says; `None` if it is not a whole note.
fn parse(text: &[u8]) -> Option<(Owner, Vec<Noted<'_>>)> {
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
    let mut all = Vec::new();
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
        all.push(Noted {
            kind: match kind? {
                'd' => FileType::Directory,
                'f' => FileType::RegularFile,
                _ => return None,
            },
            identity: Identity { dev, ino },
            folder: Identity {
                dev: parent_dev,
                ino: parent_ino,
            },
            path: string()?,
            name: string()?,
        });
    }
    Some((owner, all))
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
        let (owner, noted) = parse(text)?;
        let reopened = noted.iter().filter_map(|noted| {
            let parent = reopen(noted.path, noted.folder, owner);
            if parent.is_none() {
                log!(
                    "the placeholder {} is not looked for: its folder is not {} any more",
                    noted.name.to_string_lossy(),
                    noted.path.to_string_lossy()
                );
            }
            Some(Made {
                parent: parent?,
                name: noted.name.to_owned(),
                kind: noted.kind,
                identity: noted.identity,
            })
        });
        Some(Placeholders {
            made: reopened.collect(),
            owner,
            note: None,
        })
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
    use super::super::tests::{NAMES, list, placeholders, placeholders_beside};
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
        assert_eq!((list(folder.path()), notes.exists()), (vec![], false));
    }

    #[test]
    fn what_two_sandboxes_share_goes_with_the_last_of_them() {
        let folder = tempfile::tempdir().expect("tempdir");
        let notes = folder.path().join("notes");
        let workspace = folder.path().join("w");
        let mut keeper = Keeper::new(Mode::User, Some(notes.clone()));
        let mut launch = |slot| {
            let held = Held::by_others_than(Some(&notes), None);
            let mut made = placeholders_beside(&workspace, &NAMES, &held);
            keeper.note(Slot(slot), &mut made).expect("note");
            made
        };
        let end: [fn(&Keeper, Placeholders); 2] = [
            |_, ended| ended.remove(),
            // Its broker has died, and another comes.
            |keeper, ended| {
                drop(ended);
                keeper.sweep();
            },
        ];
        for end in end {
            fs::create_dir(&workspace).expect("mkdir");
            fs::write(workspace.join("mine"), "").expect("write");
            let (first, second) = (launch(1), launch(2));
            let keeper = Keeper::new(Mode::User, Some(notes.clone()));
            end(&keeper, first);
            assert_eq!(list(&workspace), [".envrc", ".vscode", "mine"]);
            end(&keeper, second);
            assert_eq!(list(&workspace), ["mine"]);
            assert!(!notes.exists(), "the folder goes with the last note");
            fs::remove_dir_all(&workspace).expect("remove");
        }
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
