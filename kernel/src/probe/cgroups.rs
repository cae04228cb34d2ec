//! Cgroups: which controllers exist where, and whether this process may use them.
//!
//! A child cgroup is made and removed again in each hierarchy; nothing else is changed, and controllers are not
//! enabled: that would move this process.

use super::calls::from;
use super::child::{check, last_error};
use super::{CgroupController, CgroupHost, CgroupVersion, Feature, ProbeState, Roots};
use crate::cgroup::{Controller, Layout};
use rustix::io::Errno;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) fn probe(roots: &Roots) -> (CgroupHost, Vec<(Feature, ProbeState)>) {
    let layout = match Layout::detect(roots) {
        Ok(layout) => layout,
        Err(e) => {
            let missing = || ProbeState::Unsupported { why: e.to_string() };
            let features = [
                Feature::CgroupMemory,
                Feature::CgroupPids,
                Feature::CgroupCpu,
                Feature::CgroupKill,
                Feature::CloneIntoCgroup,
            ];
            return (
                CgroupHost::default(),
                features.map(|f| (f, missing())).to_vec(),
            );
        }
    };
    let mut host = CgroupHost {
        v2: layout.unified.as_ref().map(|u| u.own.clone()),
        controllers: Vec::new(),
    };
    let mut add = |own: &Path, controllers: &[Controller], version| {
        let writable = controllers.is_empty() || may_make_children(own, version).is_ok();
        host.controllers
            .extend(controllers.iter().map(|c| CgroupController {
                name: c.name().into(),
                version,
                path: own.to_owned(),
                writable,
            }));
    };
    for hierarchy in &layout.v1 {
        add(&hierarchy.own, &hierarchy.controllers, CgroupVersion::V1);
    }
    if let Some(unified) = &layout.unified {
        add(&unified.own, &unified.controllers, CgroupVersion::V2);
    }
    let controller = |name: &str| match host.controller(name) {
        None => ProbeState::Unsupported {
            why: format!("no mounted cgroup hierarchy has the {name} controller"),
        },
        Some(c) if c.writable => ProbeState::Supported,
        Some(c) => ProbeState::Denied {
            capability: "a delegated cgroup".into(),
            why: format!("{} is not writable", c.path.display()),
        },
    };
    let mut states = vec![
        (Feature::CgroupMemory, controller("memory")),
        (Feature::CgroupPids, controller("pids")),
        (Feature::CgroupCpu, controller("cpu")),
    ];
    states.extend(unified_abilities(host.v2.as_deref()));
    (host, states)
}

/// A child cgroup that is removed when dropped.
struct Trial(PathBuf);

impl Trial {
    fn make(own: &Path) -> io::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own.join(format!("agentd-probe-{}-{number}", std::process::id()));
        fs::create_dir(&path).map(|()| Self(path))
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // An empty directory of ours: it goes, or it was never usable.
        drop(fs::remove_dir(&self.0));
    }
}

fn may_make_children(own: &Path, version: CgroupVersion) -> io::Result<()> {
    let trial = Trial::make(own)?;
    if version == CgroupVersion::V2 {
        // Children get controllers only through the parent's subtree_control.
        fs::OpenOptions::new()
            .write(true)
            .open(own.join("cgroup.subtree_control"))?;
    }
    fs::OpenOptions::new()
        .write(true)
        .open(trial.0.join("cgroup.procs"))
        .map(drop)
}

/// What a child cgroup of the cgroup2 hierarchy can do.
fn unified_abilities(own: Option<&Path>) -> [(Feature, ProbeState); 2] {
    let both = |state: ProbeState| {
        [
            (Feature::CgroupKill, state.clone()),
            (Feature::CloneIntoCgroup, state),
        ]
    };
    let Some(own) = own else {
        return both(ProbeState::Unsupported {
            why: "no cgroup2 hierarchy is mounted".into(),
        });
    };
    let trial = match Trial::make(own) {
        Ok(trial) => trial,
        Err(e) => {
            let why = format!("{}: {e}", own.display());
            return both(ProbeState::Denied {
                capability: "a delegated cgroup".into(),
                why,
            });
        }
    };
    let kill = if trial.0.join("cgroup.kill").exists() {
        ProbeState::Supported
    } else {
        ProbeState::Unsupported {
            why: "cgroups have no cgroup.kill file".into(),
        }
    };
    let into = fs::File::open(&trial.0)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
        .and_then(|dir| clone_into(&OwnedFd::from(dir)));
    [
        (Feature::CgroupKill, kill),
        (Feature::CloneIntoCgroup, from(into, "clone3 into a cgroup")),
    ]
}

/// Starts a child in the cgroup; it ends at once.
fn clone_into(cgroup: &OwnedFd) -> Result<(), Errno> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut arguments = [0u64; 11];
    arguments[0] = CLONE_INTO_CGROUP;
    arguments[10] = u64::try_from(cgroup.as_raw_fd()).unwrap_or(u64::MAX);
    // SAFETY: struct clone_args as eleven words of its full size; no CLONE_VM, so a null stack is right.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            arguments.as_ptr(),
            size_of_val(&arguments),
        )
    };
    if pid == 0 {
        // SAFETY: ends the child without running anything that belongs to the parent.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
        unreachable!("exit_group does not return");
    }
    let pid = check(pid)?;
    let mut status = 0;
    loop {
        // SAFETY: a child of ours without exit signal; status is a valid place.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } == pid {
            return Ok(());
        }
        if last_error() != Errno::INTR {
            return Err(last_error());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_cgroup_goes_when_it_is_dropped() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let trial = Trial::make(place.path()).expect("a trial");
        assert!(trial.0.is_dir());
        drop(trial);
        assert_eq!(fs::read_dir(place.path()).expect("readable").count(), 0);
    }

    #[test]
    fn a_hybrid_host_is_read_from_its_mounts() {
        let place = tempfile::tempdir().expect("a temporary folder");
        let (proc, cgroup) = (place.path().join("proc"), place.path().join("cgroup"));
        for folder in [
            proc.join("self"),
            cgroup.join("memory/a"),
            cgroup.join("unified/a"),
        ] {
            fs::create_dir_all(folder).expect("made");
        }
        let at = cgroup.display();
        let mounts = format!(
            "30 20 0:1 / {at}/memory rw - cgroup cgroup rw,memory\n31 20 0:2 / {at}/unified rw - cgroup2 cgroup2 rw\n"
        );
        fs::write(proc.join("self/mountinfo"), mounts).expect("written");
        fs::write(proc.join("self/cgroup"), "5:memory:/a\n0::/a\n").expect("written");
        let (host, states) = probe(&Roots {
            proc,
            ..Roots::default()
        });
        assert_eq!(host.v2, Some(cgroup.join("unified/a")));
        let memory = host.controller("memory").expect("found");
        assert_eq!(
            (memory.version, &memory.path),
            (CgroupVersion::V1, &cgroup.join("memory/a"))
        );
        // A plain folder gets no cgroup.procs, so nothing could be put into a child of it.
        assert!(!memory.writable);
        let pids = states
            .iter()
            .find(|(f, _)| *f == Feature::CgroupPids)
            .map(|(_, s)| s.clone());
        let why = "no mounted cgroup hierarchy has the pids controller".to_owned();
        assert_eq!(pids, Some(ProbeState::Unsupported { why }));
    }
}
