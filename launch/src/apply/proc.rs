//! `/proc`: the sandbox's own processes, read-only, without what tells of the host's kernel, hardware or keys.
//!
//! Everything in it that root alone may read or write is closed to the agent by its uid already; the mount being read-only
//! closes `/proc/sys`, `sysrq-trigger` and the switches of one's own process (`oom_score_adj`, `coredump_filter`, `attr`,
//! `uid_map`, `mem`) whoever the agent is. What anybody may read there and no program needs is masked. Runs in the launcher.

use core::ffi::CStr;

use agentd_kernel::sys::Errno;
use agentd_kernel::sys::fs::{self, FileKind, O_CREAT, O_EXCL, O_RDONLY};
use agentd_kernel::sys::mount::{self, ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, Depth};

use super::view::{RESOLVE, View};

/// Hidden where they are there at all: what anybody may read of kernel addresses and configuration,
/// keys of this uid, others' locks, disks, the command line that the kernel was started with (which
/// may hold what unlocks a disk), and timers and interrupts, of which keystrokes can be read.
const MASKED: [&CStr; 19] = [
    c"bootconfig",
    c"cmdline",
    c"config.gz",
    c"diskstats",
    c"interrupts",
    c"iomem",
    c"ioports",
    c"kallsyms",
    c"key-users",
    c"keys",
    c"locks",
    c"mdstat",
    c"modules",
    c"partitions",
    c"sched_debug",
    c"schedstat",
    c"softirqs",
    c"swaps",
    c"timer_list",
];

const ATTRIBUTES: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC | ATTR_RDONLY;

const EMPTY: &CStr = c".masked";

impl View {
    /// Its own processes only, and of them only those that the reader could trace: not the init.
    pub(super) fn proc(&mut self, dst: &CStr) -> Result<(), Errno> {
        let proc = mount::new_mount(c"proc", &[(c"hidepid", c"2")], ATTRIBUTES)?;
        self.attach(&proc, dst, FileKind::Directory)?;

        let flags = O_RDONLY | O_CREAT | O_EXCL;
        let empty = fs::openat2(self.root(), EMPTY, flags, 0, RESOLVE)?;
        let mut cover = None;
        for name in MASKED {
            // Names that are known, in a filesystem that is new: nobody has put a link there.
            let next = match cover.take() {
                Some(cover) => cover,
                None => mount::clone_tree(empty.borrow(), Depth::One)?,
            };
            match mount::attach_named(next.borrow(), proc.borrow(), name) {
                Ok(()) => {}
                Err(Errno::NOENT) => cover = Some(next),
                Err(errno) => return Err(errno),
            }
        }
        mount::set_attributes(proc.borrow(), ATTRIBUTES, Depth::Tree)?;
        fs::unlinkat(self.root(), EMPTY)
    }
}
