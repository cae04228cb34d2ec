//! Placeholders: empty files and folders that keep a name for as long as a sandbox lives.
//!
//! A policy can protect or deny a name inside a writable grant that nothing has yet. The launcher
//! can only cover what is there, so the broker makes an empty file or folder first, beneath the
//! granted descriptor, with the giver's ids, and removes it when the last sandbox that it serves
//! has ended: only if it is still the same inode, still empty, and nobody has it open for writing.
//! What the user puts there meanwhile stays. Where the folder around the name isn't there either,
//! or the agent could not make the name anyway, nothing is made.
//!
//! What was made is also written to a note (`note.rs`), a file of the broker's own that the
//! sandbox's init holds locked: a broker that comes after a crash finds the note unlocked and
//! removes what it names.
//!
//! In root mode all of it happens with the giver's file system ids, which leaves the broker none of
//! root's. Paths are resolved beneath the grant, never through a symbolic link; the one in a note
//! must lead to the same folder as before.

use crate::failure::failed;
use crate::log::log;
use agentd_broker::protocol::{ErrorCode, Failure};
use agentd_kernel::grant::Grant;
use agentd_launch::plan::{MountFlags, Plan, Record};
use rustix::fs::{AtFlags, FileType, Mode as FileMode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

mod note;

pub use note::Keeper;

const RESOLVE: ResolveFlags = ResolveFlags::NO_SYMLINKS.union(ResolveFlags::NO_MAGICLINKS);
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Whose files the placeholders are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// The file system ids of somebody else, for as long as it lives. The process has one thread.
struct ActingAs(Option<Owner>);

impl ActingAs {
    /// Nothing changes where this process has the ids anyway.
    fn owner(owner: Owner) -> io::Result<ActingAs> {
        let own = own_ids();
        if own == owner {
            return Ok(ActingAs(None));
        }
        let acting = ActingAs(Some(own));
        set_file_ids(owner).map(|()| acting)
    }
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        if let Some(own) = self.0 {
            set_file_ids(own).expect("going back to one's own ids needs no privilege");
        }
    }
}

fn own_ids() -> Owner {
    Owner {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    }
}

fn set_file_ids(ids: Owner) -> io::Result<()> {
    // SAFETY: both calls take and return numbers; -1 changes nothing and returns what is set.
    let now = unsafe {
        libc::setfsgid(ids.gid);
        libc::setfsuid(ids.uid);
        (libc::setfsgid(u32::MAX), libc::setfsuid(u32::MAX))
    };
    if now == (ids.gid.cast_signed(), ids.uid.cast_signed()) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

/// Which file something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity {
            dev: stat.st_dev,
            ino: stat.st_ino,
        }
    }
}

/// One placeholder.
#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    name: CString,
    kind: FileType,
    identity: Identity,
}

/// Those of one sandbox.
#[derive(Debug)]
pub struct Placeholders {
    made: Vec<Made>,
    owner: Owner,
    note: Option<note::Note>,
}

impl Placeholders {
    /// For the sandbox's init to hold.
    pub fn note(&self) -> Option<BorrowedFd<'_>> {
        self.note.as_ref().map(|note| note.file.as_fd())
    }

    fn make(
        &mut self,
        plan: &Plan<'_>,
        grants: &[Grant],
        is_held: &dyn Fn(Identity) -> bool,
    ) -> Result<(), Failure> {
        for record in plan.records() {
            let (Record::Mask { dst, flags }
            | Record::Protect { dst, flags }
            | Record::Copy { dst, flags, .. }) = record
            else {
                continue;
            };
            let Some(Record::GrantMount {
                index,
                dst: mount,
                flags: mounted,
            }) = plan.mount_of(dst)
            else {
                continue;
            };
            let wanted = flags.contains(MountFlags::PLACEHOLDER);
            if !wanted || mounted.contains(MountFlags::RDONLY) {
                continue;
            }
            let Some(grant) = grants.get(index as usize) else {
                continue;
            };
            let kind = match flags.contains(MountFlags::FOLDER) {
                true => FileType::Directory,
                false => FileType::RegularFile,
            };
            let below = &dst.to_bytes()[mount.count_bytes()..];
            self.make_one(grant.object.as_fd(), below, kind, is_held)
                .map_err(|error| {
                    let what = format!("keeping the name {}", dst.to_string_lossy());
                    failed(ErrorCode::Placeholder, what, &error)
                })?;
        }
        Ok(())
    }

    /// `below` begins with a slash; it is empty for the granted object itself, which is there.
    /// What is there already counts as made if it is the placeholder of a sandbox that lives: `is_held` looks that up, with
    /// this process's own ids.
    fn make_one(
        &mut self,
        grant: BorrowedFd<'_>,
        below: &[u8],
        kind: FileType,
        is_held: &dyn Fn(Identity) -> bool,
    ) -> io::Result<()> {
        let Some(slash) = below.iter().rposition(|byte| *byte == b'/') else {
            return Ok(());
        };
        let (folder, name) = (&below[..slash], CString::new(&below[slash + 1..])?);
        let folder = folder.strip_prefix(b"/").unwrap_or(b".");
        let acting = ActingAs::owner(self.owner)?;
        let beneath = RESOLVE | ResolveFlags::BENEATH;
        let parent = match rustix::fs::openat2(grant, folder, FOLDER, FileMode::empty(), beneath) {
            // The agent can make the folder, and then the name. A link, a file: the launcher says so.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            // What the giver can't even look into, neither can the agent.
            Err(Errno::ACCESS) => return Ok(()),
            parent => parent?,
        };
        let made = match kind {
            FileType::Directory => rustix::fs::mkdirat(&parent, &name, FileMode::RWXU),
            _ => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = FileMode::RUSR | FileMode::WUSR;
                rustix::fs::openat(&parent, &name, flags, mode).map(drop)
            }
        };
        let there = rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW);
        let there = there.map(|stat| Identity::of(&stat));
        drop(acting);
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) if there.is_ok_and(is_held) => {}
            Err(Errno::EXIST | Errno::ROFS) => return Ok(()),
            // Whoever doesn't own the folder can't open it for itself either.
            Err(Errno::ACCESS | Errno::PERM)
                if rustix::fs::fstat(&parent)?.st_uid != self.owner.uid =>
            {
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        }
        self.made.push(Made {
            parent,
            name,
            kind,
            identity: there?,
        });
        Ok(())
    }

    /// Removes what is still as it was made and serves no other sandbox, and the note. The sandbox has ended.
    pub fn remove(self) {
        let note = self.note.as_ref().map(|note| note.path.as_path());
        let held = note::Held::by_others_than(note.and_then(Path::parent), note);
        self.remove_but(&held);
    }

    fn remove_but(self, held: &note::Held) {
        match ActingAs::owner(self.owner) {
            Err(error) => return log!("removing placeholders: {error}"),
            Ok(_acting) => {
                let made = self.made.iter();
                for made in made.filter(|made| !held.contains(made.identity)) {
                    if let Err(error) = made.remove() {
                        log!("placeholder {}: {error}", made.name.to_string_lossy());
                    }
                }
            }
        }
        if let Some(note) = self.note
            && let Err(error) = note::remove(&note.path)
        {
            log!("{}: {error}", note.path.display());
        }
    }
}

impl Made {
    fn is_untouched(&self, stat: &Stat) -> bool {
        Identity::of(stat) == self.identity
            && FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Directory || stat.st_size == 0)
    }

    /// Removes it if nobody has made anything of it.
    fn remove(&self) -> io::Result<()> {
        let there =
            |name: &CStr| match rustix::fs::statat(&self.parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => Ok(false),
                Err(errno) => Err(errno),
                Ok(stat) => Ok(self.is_untouched(&stat)),
            };
        if !there(&self.name)? {
            return Ok(());
        }
        if self.kind == FileType::Directory {
            // The kernel itself refuses one that is not empty.
            return match rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        // Out of the way first: what is found at the other name can't be opened or replaced by its own any more.
        let aside = CString::new(format!(".agentd-placeholder-{}", self.identity.ino))?;
        let rename = |from: &CStr, to: &CStr| {
            rustix::fs::renameat_with(&self.parent, from, &self.parent, to, RenameFlags::NOREPLACE)
        };
        rename(&self.name, &aside)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let unused =
            rustix::fs::openat(&self.parent, &aside, flags, FileMode::empty()).is_ok_and(|file| {
                nobody_writes(file.as_fd())
                    && rustix::fs::fstat(&file).is_ok_and(|stat| self.is_untouched(&stat))
            });
        if unused {
            rustix::fs::unlinkat(&self.parent, &aside, AtFlags::empty())?;
        } else {
            rename(&aside, &self.name)?;
        }
        Ok(())
    }
}

/// Whether nobody has the file open for writing; on file systems without leases nobody can tell, and so nobody has.
fn nobody_writes(file: BorrowedFd<'_>) -> bool {
    const F_SETSIG: i32 = 10;
    // SAFETY: fcntl with numbers only. Whoever breaks the lease makes the kernel send SIGURG, which is ignored by default.
    let taken = unsafe {
        libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG) == 0
            && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) == 0
    };
    taken || io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::io::Write;

    pub fn placeholders(folder: &Path, names: &[(&str, FileType)]) -> Placeholders {
        placeholders_beside(folder, names, &note::Held::default())
    }

    pub fn placeholders_beside(
        folder: &Path,
        names: &[(&str, FileType)],
        held: &note::Held,
    ) -> Placeholders {
        let mut out = Placeholders {
            made: Vec::new(),
            owner: own_ids(),
            note: None,
        };
        let grant = File::open(folder).expect("folder");
        for (name, kind) in names {
            out.make_one(grant.as_fd(), name.as_bytes(), *kind, &|it| {
                held.contains(it)
            })
            .expect(name);
        }
        out
    }

    pub const NAMES: [(&str, FileType); 3] = [
        ("/.envrc", FileType::RegularFile),
        ("/.vscode", FileType::Directory),
        ("/absent/name", FileType::RegularFile),
    ];

    pub fn list(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("list");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .into_string()
                    .expect("UTF-8")
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_made_is_removed_and_what_was_there_is_not() {
        let folder = tempfile::tempdir().expect("tempdir");
        fs::write(folder.path().join("there"), "").expect("write");
        let mut names = NAMES.to_vec();
        names.push(("/there", FileType::RegularFile));
        let made = placeholders(folder.path(), &names);
        assert_eq!(list(folder.path()), [".envrc", ".vscode", "there"]);
        made.remove();
        assert_eq!(list(folder.path()), ["there"]);
    }

    #[test]
    fn what_the_user_made_of_it_stays() {
        let folder = tempfile::tempdir().expect("tempdir");
        let path = |name: &str| folder.path().join(name);
        let file = FileType::RegularFile;
        let made = placeholders(
            folder.path(),
            &[
                ("/written", file),
                ("/replaced", file),
                ("/open", file),
                ("/dir", FileType::Directory),
            ],
        );
        fs::write(path("written"), "mine").expect("write");
        fs::write(path("new"), "").expect("write");
        fs::rename(path("new"), path("replaced")).expect("rename");
        let mut open = File::options()
            .append(true)
            .open(path("open"))
            .expect("open");
        fs::write(path("dir/settings"), "mine").expect("write");
        made.remove();
        open.write_all(b"late").expect("write");
        assert_eq!(list(folder.path()), ["dir", "open", "replaced", "written"]);
        assert_eq!(fs::read_to_string(path("open")).expect("read"), "late");
    }
}
