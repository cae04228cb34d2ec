//! The minimal `/dev`: six devices of the host, links, a limited `shm`, and a devpts that only this sandbox has.
//!
//! It lies on the view's root, so it becomes read-only with it. Runs in the launcher.

use core::ffi::CStr;

use agentd_kernel::sys::fs::{self, FileKind, O_DIRECTORY, O_PATH};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, Depth};
use agentd_kernel::sys::{Errno, FdRef};

use super::view::{Decimal, PathBuffer, RESOLVE, View, attach_at};

/// Names on the host, and in the view.
const DEVICES: [&CStr; 6] = [c"null", c"zero", c"full", c"random", c"urandom", c"tty"];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

impl View {
    pub(super) fn devices(&mut self, dst: &CStr, shm_bytes: u64) -> Result<(), Errno> {
        let directory = self.place(dst, FileKind::Directory)?;
        let host = fs::openat2(self.host_root(), c"dev", O_PATH | O_DIRECTORY, 0, RESOLVE)?;
        for name in DEVICES {
            bind_device(host.borrow(), directory.borrow(), name)?;
        }
        for (target, name) in LINKS {
            fs::symlinkat(target, directory.borrow(), name)?;
        }
        let mut path = PathBuffer::new();
        let pts = mount::new_mount(
            c"devpts",
            &[(c"mode", c"0620"), (c"ptmxmode", c"0666")],
            ATTR_NOSUID | ATTR_NOEXEC,
        )?;
        self.attach(
            &pts,
            path.join(&[dst.to_bytes(), b"/pts"])?,
            FileKind::Directory,
        )?;
        self.shared_memory(dst, shm_bytes)
    }

    /// `/dev/shm` of the view. Under gVisor, too, whose own would let files be mapped as code in spite of `noexec`.
    pub(super) fn shared_memory(&mut self, dev: &CStr, bytes: u64) -> Result<(), Errno> {
        let mut path = PathBuffer::new();
        let mut size = Decimal::new();
        let options = [
            (c"size", size.of(bytes)),
            (c"nr_inodes", c"4096"),
            (c"mode", c"1777"),
        ];
        let shm = mount::new_mount(c"tmpfs", &options, ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?;
        self.attach(
            &shm,
            path.join(&[dev.to_bytes(), b"/shm"])?,
            FileKind::Directory,
        )
    }
}

impl View {
    pub(super) fn mqueue(&mut self, dst: &CStr) -> Result<(), Errno> {
        let queues = mount::new_mount(c"mqueue", &[], ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC)?;
        self.attach(&queues, dst, FileKind::Directory)
    }
}

/// Nobody may make device nodes in a user namespace, so the host's own are mounted one by one.
fn bind_device(host: FdRef<'_>, directory: FdRef<'_>, name: &CStr) -> Result<(), Errno> {
    let device = mount::clone_named(host, name, Depth::One)?;
    // Nobody maps `/dev/zero` as code.
    mount::set_attributes(device.borrow(), ATTR_NOSUID | ATTR_NOEXEC, Depth::One)?;
    attach_at(&device, directory, name, FileKind::CharDevice)
}
