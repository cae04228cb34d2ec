//! What lies over parts of the view: masks, which hide, protections, which make read-only, and copies, which take changes.
//!
//! All are mounts on what is there, so they hold for the file itself, however its name is spelt (case-folding directories
//! included), and a mount point can be neither renamed, removed nor replaced. Each directory between a cover and the mount
//! that it lies on becomes a mount of its own too, or it could be renamed away with the cover in it and made anew. A file with
//! a second name (a hard link) is refused, unless the plan says that it has seen to all of them. Runs in the launcher.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{
    self, FileKind, O_CREAT, O_EXCL, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, RESOLVE_NO_XDEV,
};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Depth};
use agentd_kernel::sys::{Errno, Fd};

use super::view::{PathBuffer, RESOLVE, View, copy_content, place_directory, place_file, relative};
use crate::plan::{MountFlags, Plan, Record};

/// Where a mask for a file is made.
const EMPTY: &CStr = c".masked";
/// Where the link to a copy is made.
const LINK: &CStr = c".copied";
/// The longest file that is copied: settings, no more.
const MAX_COPY_BYTES: u64 = 1 << 20;
const FOUND: u32 = O_PATH | O_NOFOLLOW;

impl View {
    /// Hides what is at `dst`. A link is refused: what it leads to would stay visible.
    pub(super) fn mask(&self, plan: &Plan<'_>, dst: &CStr, flags: MountFlags) -> Result<(), Errno> {
        const HIDDEN: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_RDONLY;
        let Some((target, kind)) = self.coverable(plan, dst, flags)? else {
            return Ok(());
        };
        if kind == FileKind::Directory {
            let options = [(c"size", c"4k"), (c"nr_inodes", c"1"), (c"mode", c"0")];
            let cover = mount::new_mount(c"tmpfs", &options, HIDDEN)?;
            return mount::attach(cover.borrow(), target.borrow());
        }
        let empty = fs::openat2(self.root(), EMPTY, O_RDONLY | O_CREAT | O_EXCL, 0, RESOLVE)?;
        let cover = mount::clone_tree(empty.borrow(), Depth::One)?;
        mount::set_attributes(cover.borrow(), HIDDEN, Depth::One)?;
        mount::attach(cover.borrow(), target.borrow())?;
        fs::unlinkat(self.root(), EMPTY)
    }

    /// Makes what is at `dst` read-only. A link is refused: it could not be kept from being replaced.
    pub(super) fn protect(
        &self,
        plan: &Plan<'_>,
        dst: &CStr,
        flags: MountFlags,
    ) -> Result<(), Errno> {
        let Some((target, _)) = self.coverable(plan, dst, flags)? else {
            return Ok(());
        };
        let cover = mount::clone_tree(target.borrow(), Depth::Tree)?;
        mount::set_attributes(cover.borrow(), ATTR_RDONLY, Depth::Tree)?;
        mount::attach(cover.borrow(), target.borrow())
    }

    /// Puts a link to a copy over the file at `dst`. Only the file is ever read; whoever replaces it meanwhile by something
    /// else finds the launch refused.
    pub(super) fn copy(
        &mut self,
        plan: &Plan<'_>,
        dst: &CStr,
        to: &CStr,
        flags: MountFlags,
    ) -> Result<(), Errno> {
        const LINKED: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_RDONLY;
        let Some((target, kind)) = self.coverable(plan, dst, flags)? else {
            return Ok(());
        };
        if kind != FileKind::File {
            return Err(Errno::INVAL);
        }
        let from = fs::openat2(
            self.root(),
            relative(dst)?,
            O_RDONLY | O_NONBLOCK,
            0,
            RESOLVE,
        )?;
        let (found, opened) = (fs::fstat(target.borrow())?, fs::fstat(from.borrow())?);
        if (found.dev, found.ino) != (opened.dev, opened.ino) {
            return Err(Errno::STALE);
        }
        let copy = self.new_file(to, 0o644)?;
        copy_content(from.borrow(), copy.borrow(), MAX_COPY_BYTES)?;
        fs::symlinkat(to, self.root(), LINK)?;
        let link = fs::openat2(self.root(), LINK, FOUND, 0, RESOLVE)?;
        let cover = mount::clone_tree(link.borrow(), Depth::One)?;
        mount::set_attributes(cover.borrow(), LINKED, Depth::One)?;
        mount::attach(cover.borrow(), target.borrow())?;
        fs::unlinkat(self.root(), LINK)
    }

    /// What is at `dst`, with everything above it pinned; `None` for what is not there and need not be.
    fn coverable(
        &self,
        plan: &Plan<'_>,
        dst: &CStr,
        flags: MountFlags,
    ) -> Result<Option<(Fd, FileKind)>, Errno> {
        let target = match plan.mount_of(dst) {
            Some(Record::Overlay { dst: mount, .. }) => {
                self.pinned(mount, dst, placeholder_kind(flags))
            }
            Some(Record::GrantMount {
                dst: mount, flags, ..
            }) if !flags.contains(MountFlags::RDONLY) => {
                // Where the plan wants a placeholder, the broker has made it by now.
                self.pinned(mount, dst, None)
            }
            _ => fs::openat2(self.root(), relative(dst)?, FOUND, 0, RESOLVE),
        };
        let target = match target {
            Err(Errno::NOENT | Errno::NOTDIR) if flags.contains(MountFlags::OPTIONAL) => {
                return Ok(None);
            }
            target => target?,
        };
        let found = fs::fstat(target.borrow())?;
        match found.kind {
            FileKind::Symlink => Err(Errno::LOOP),
            FileKind::File if found.links > 1 && !flags.contains(MountFlags::LINKED) => {
                Err(Errno::MLINK)
            }
            kind => Ok(Some((target, kind))),
        }
    }

    /// Opens `dst`, and makes each directory between `mount`, the mount point that it lies below, and itself a mount.
    /// Where nothing is in an existing directory, a `placeholder` is made.
    fn pinned(&self, mount: &CStr, dst: &CStr, placeholder: Option<FileKind>) -> Result<Fd, Errno> {
        let mut directory = fs::openat2(self.root(), relative(mount)?, FOUND, 0, RESOLVE)?;
        let below = dst.to_bytes().strip_prefix(mount.to_bytes());
        let Some([b'/', below @ ..]) = below else {
            return Ok(directory);
        };
        let mut buffer = PathBuffer::new();
        let mut components = below.split(|byte| *byte == b'/').peekable();
        while let Some(component) = components.next() {
            let name = buffer.join(&[component])?;
            let open = |extra| fs::openat2(directory.borrow(), name, FOUND, 0, RESOLVE | extra);
            let last = components.peek().is_none();
            let found = match open(RESOLVE_NO_XDEV) {
                Ok(found) if !last => {
                    let same = mount::clone_tree(found.borrow(), Depth::Tree)?;
                    mount::attach(same.borrow(), found.borrow())?;
                    open(0)?
                }
                // A mount of its own already.
                Err(Errno::XDEV) => open(0)?,
                Err(Errno::NOENT) if last && placeholder == Some(FileKind::Directory) => {
                    place_directory(directory.borrow(), name, 0o755)?
                }
                Err(Errno::NOENT) if last && placeholder.is_some() => {
                    place_file(directory.borrow(), name)?
                }
                found => found?,
            };
            directory = found;
        }
        Ok(directory)
    }
}

fn placeholder_kind(flags: MountFlags) -> Option<FileKind> {
    let kind = match flags.contains(MountFlags::FOLDER) {
        true => FileKind::Directory,
        false => FileKind::File,
    };
    flags.contains(MountFlags::PLACEHOLDER).then_some(kind)
}
