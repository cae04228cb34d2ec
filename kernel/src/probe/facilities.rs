//! What makes agentd better but protects nobody: helpers, huge pages, io_uring, perf, MSRs.

use super::calls::from;
use super::child::check;
use super::{Feature, ProbeState, Roots};
use rustix::io::Errno;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// (feature, state, what was seen)
pub(super) fn probe(roots: &Roots) -> Vec<(Feature, ProbeState, Option<String>)> {
    let (memfd, memfd_detail) = memfd_noexec(roots);
    let (huge, huge_detail) = huge_pages(roots);
    vec![
        (Feature::MemfdNoexec, memfd, memfd_detail),
        (Feature::Mdwe, from(mdwe(), "prctl(PR_GET_MDWE)"), None),
        (Feature::NewUidMap, newuidmap(), None),
        (Feature::HugePages, huge, huge_detail),
        (
            Feature::IoUring,
            with_capability(io_uring(), "io_uring_setup", "kernel.io_uring_disabled=0"),
            None,
        ),
        (
            Feature::Perf,
            with_capability(perf(), "perf_event_open", "CAP_PERFMON"),
            None,
        ),
        (Feature::Msr, msr(roots), None),
    ]
}

fn with_capability(result: Result<(), Errno>, call: &str, capability: &str) -> ProbeState {
    match from(result, call) {
        ProbeState::Denied { why, .. } => ProbeState::Denied {
            capability: capability.into(),
            why,
        },
        state => state,
    }
}

/// The sysctl is per pid namespace, so its being there means that root can set it for a sandbox, and that memory files can
/// be sealed against execution.
fn memfd_noexec(roots: &Roots) -> (ProbeState, Option<String>) {
    let path = roots.proc.join("sys/vm/memfd_noexec");
    let Ok(value) = fs::read_to_string(&path) else {
        let why = "there is no vm.memfd_noexec".into();
        return (ProbeState::Unsupported { why }, None);
    };
    let detail = Some(format!("the host's is {}", value.trim()));
    let read_only = rustix::fs::statvfs(&path)
        .is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    if read_only {
        let denied = ProbeState::Denied {
            capability: "a writable /proc/sys".into(),
            why: "vm.memfd_noexec can't be set: /proc/sys is read-only, as in a container".into(),
        };
        return (denied, detail);
    }
    (ProbeState::Supported, detail)
}

/// Asks for the flags of this process; that there are any is the answer.
fn mdwe() -> Result<(), Errno> {
    const PR_GET_MDWE: libc::c_int = 66;
    // SAFETY: the option takes no pointer and changes nothing.
    check(unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) }.into()).map(drop)
}

/// A descriptor that a raw call made.
pub(super) fn own(fd: i32) -> OwnedFd {
    // SAFETY: the call that returned it has just opened it, and nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn newuidmap() -> ProbeState {
    let found = [
        "/usr/bin/newuidmap",
        "/bin/newuidmap",
        "/usr/local/bin/newuidmap",
    ]
    .iter()
    .find_map(|p| fs::metadata(p).ok());
    match found {
        Some(file) if file.permissions().mode() & 0o111 != 0 => ProbeState::Supported,
        Some(_) => ProbeState::Unsupported {
            why: "newuidmap is not executable".into(),
        },
        None => ProbeState::Unsupported {
            why: "newuidmap is not installed".into(),
        },
    }
}

/// Maps one page and lets it go; nothing is touched, so nothing is taken from the pool for longer than that.
fn huge_pages(roots: &Roots) -> (ProbeState, Option<String>) {
    let reserved: u64 = fs::read_to_string(roots.proc.join("sys/vm/nr_hugepages"))
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0);
    let detail = Some(format!("{reserved} reserved"));
    const LENGTH: usize = 2 << 20;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB;
    // SAFETY: a new anonymous mapping at a place of the kernel's choosing.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            LENGTH,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    if at == libc::MAP_FAILED {
        let why = if reserved == 0 {
            "no huge pages are reserved"
        } else {
            "no huge page is free"
        };
        return (ProbeState::Unsupported { why: why.into() }, detail);
    }
    // SAFETY: exactly the mapping made above, which nothing refers to.
    unsafe { libc::munmap(at, LENGTH) };
    (ProbeState::Supported, detail)
}

fn io_uring() -> Result<(), Errno> {
    // struct io_uring_params is 120 bytes; zeroes ask for a plain ring.
    let mut params = [0u64; 15];
    // SAFETY: params is as large as the structure and lives through the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) })?;
    drop(own(fd));
    Ok(())
}

/// Counts this process's own CPU clock.
fn perf() -> Result<(), Errno> {
    // struct perf_event_attr, version 0 (64 bytes): type software, size, config cpu-clock, the rest zero.
    let mut attributes = [0u32; 16];
    attributes[0] = 1;
    attributes[1] = 64;
    // SAFETY: the attributes live through the call and hold their own size.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes.as_mut_ptr(),
            0,
            -1,
            -1,
            0,
        )
    })?;
    drop(own(fd));
    Ok(())
}

fn msr(roots: &Roots) -> ProbeState {
    let path = roots.dev.join("cpu/0/msr");
    match fs::File::open(Path::new(&path)) {
        Ok(_) => ProbeState::Supported,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => ProbeState::Denied {
            capability: "CAP_SYS_RAWIO".into(),
            why: format!("{}: {e}", path.display()),
        },
        Err(e) => ProbeState::Unsupported {
            why: format!("{}: {e}", path.display()),
        },
    }
}
