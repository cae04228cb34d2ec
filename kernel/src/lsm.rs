//! Which security modules the running kernel has switched on.
//!
//! A program of BPF LSM loads and attaches wherever the kernel was built with it, but its hooks are
//! called only where `bpf` is among these: Debian's and Ubuntu's kernels are built with it and
//! leave it out. So the list is asked before anything counts on a hook. Kernel doc:
//! `Documentation/admin-guide/LSM/index.rst`, `Documentation/userspace-api/lsm.rst`. Any thread, no
//! privilege.

use std::fs;
use std::io;

use crate::probe::Roots;

/// `lsm_list_modules(2)`, Linux 6.8.
const LSM_LIST_MODULES: libc::c_long = 461;
const LSM_ID_BPF: u64 = 109;
/// Modules that one kernel can have.
const MOST: usize = 64;

/// Whether hooks of BPF LSM are called.
///
/// # Errors
/// Why they are not, or why that can't be known, in one line.
pub fn check_bpf(roots: &Roots) -> Result<(), String> {
    let path = roots.sys.join("kernel/security/lsm");
    match fs::read_to_string(&path) {
        Ok(list) => judge(list.trim().split(',').any(|name| name == "bpf"), || {
            format!("{} has {}", path.display(), list.trim())
        }),
        // securityfs may not be mounted; newer kernels can be asked directly.
        Err(error) => match list() {
            Ok(ids) => judge(ids.contains(&LSM_ID_BPF), || {
                format!("lsm_list_modules(2) has no {LSM_ID_BPF}")
            }),
            Err(_) => Err(format!(
                "whether the kernel calls BPF LSM can't be known: {}: {error}",
                path.display()
            )),
        },
    }
}

fn judge(is_there: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if is_there {
        Ok(())
    } else {
        Err(format!(
            "bpf is not among the kernel's active security modules ({})",
            what()
        ))
    }
}

fn list() -> io::Result<Vec<u64>> {
    let mut ids = [0u64; MOST];
    let mut bytes = size_of_val(&ids) as u32;
    // SAFETY: the kernel writes at most `bytes` bytes to `ids`, which is as long, and the length it
    // used to `bytes`; both live through the call.
    let count = unsafe { libc::syscall(LSM_LIST_MODULES, ids.as_mut_ptr(), &raw mut bytes, 0) };
    let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
    Ok(ids.into_iter().take(count).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(lsm: &str) -> (tempfile::TempDir, Roots) {
        let sys = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir_all(sys.path().join("kernel/security")).expect("made");
        fs::write(sys.path().join("kernel/security/lsm"), lsm).expect("written");
        let roots = Roots {
            sys: sys.path().into(),
            ..Roots::default()
        };
        (sys, roots)
    }

    #[test]
    fn a_kernel_that_does_not_call_the_hooks_says_which_modules_it_has() {
        let (_sys, with) = roots("lockdown,capability,landlock,bpf\n");
        assert_eq!(check_bpf(&with), Ok(()));
        let (_sys, without) = roots("lockdown,capability,apparmor");
        let why = check_bpf(&without).expect_err("not there");
        assert!(why.contains("lockdown,capability,apparmor"), "{why}");
        let (_sys, similar) = roots("bpfx,xbpf");
        assert!(check_bpf(&similar).is_err());
    }

    #[test]
    fn without_securityfs_the_kernel_is_asked() {
        let empty = tempfile::tempdir().expect("a temporary folder");
        let roots = Roots {
            sys: empty.path().into(),
            ..Roots::default()
        };
        match list() {
            Ok(ids) => assert_eq!(check_bpf(&roots).is_ok(), ids.contains(&LSM_ID_BPF)),
            Err(_) => {
                let why = check_bpf(&roots).expect_err("nobody to ask");
                assert!(why.contains("can't be known"), "{why}");
            }
        }
    }
}
