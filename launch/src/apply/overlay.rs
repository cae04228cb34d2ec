//! Scratch directories: an overlay whose lower layer is a grant and whose upper layer is a limited tmpfs of the sandbox's own.
//!
//! The kernel clones both layers privately when the overlay is mounted, the lower one read-only and without access times, so
//! nothing that happens on the overlay can change the granted directory, and the layers themselves are nowhere in the view.
//! Whiteouts and opaque directories are `user.*` attributes (`userxattr`), as nothing else may be written in a user namespace.
//! Renaming a directory of the lower layer gives `EXDEV`, so programs copy it; on tmpfs before Linux 6.6, which has no such
//! attributes, making a directory where one of the lower layer was removed gives `EIO`. Runs in the launcher.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{self, FileKind, O_DIRECTORY, O_PATH};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Depth};
use agentd_kernel::sys::{Errno, Fd};

use super::view::{Decimal, RESOLVE, View, attributes};
use crate::plan::{Mode, MountFlags};

/// Where the layers are while the overlay is put together, and their names there.
const STAGE: &CStr = c"/.layers";
const LOWER: &CStr = c"lower";
const UPPER: &CStr = c"upper";
const WORK: &CStr = c"work";
/// The stage itself, the three directories, and the one that the kernel makes in `work`.
const OWN_INODES: u64 = 5;

impl View {
    pub(super) fn overlay(
        &mut self,
        mode: Mode,
        grant: Fd,
        dst: &CStr,
        (size, inodes): (u64, u64),
        flags: MountFlags,
    ) -> Result<(), Errno> {
        let lower = self.granted_tree(mode, grant)?;
        let root = fs::fstat(lower.borrow())?;
        if root.kind != FileKind::Directory {
            return Err(Errno::NOTDIR);
        }
        mount::set_attributes(
            lower.borrow(),
            ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC,
            Depth::Tree,
        )?;

        let (mut a, mut b) = (Decimal::new(), Decimal::new());
        let options = [
            (c"size", a.of(size)),
            (c"nr_inodes", b.of(inodes.saturating_add(OWN_INODES))),
            (c"mode", c"0700"),
        ];
        let stage = mount::new_mount(c"tmpfs", &options, ATTR_NOSUID | ATTR_NODEV)?;
        self.attach(&stage, STAGE, FileKind::Directory)?;
        // The root of the overlay takes its mode from the upper layer.
        for (name, mode) in [(LOWER, 0o700), (UPPER, root.mode & 0o777), (WORK, 0o700)] {
            fs::mkdirat(stage.borrow(), name, mode)?;
        }
        let place = fs::openat2(stage.borrow(), LOWER, O_PATH | O_DIRECTORY, 0, RESOLVE)?;
        mount::attach(lower.borrow(), place.borrow())?;

        // Layers are named by path only, before Linux 6.13.
        fs::fchdir(stage.borrow())?;
        let options = [
            (c"lowerdir", LOWER),
            (c"upperdir", UPPER),
            (c"workdir", WORK),
            (c"userxattr", c""),
        ];
        let overlay = mount::new_mount(c"overlay", &options, attributes(flags))?;
        self.attach(&overlay, dst, FileKind::Directory)?;
        mount::detach_here()?;
        fs::rmdirat(self.root(), super::view::relative(STAGE)?)
    }
}
