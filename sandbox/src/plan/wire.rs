//! The plan's parts as records of the launcher's format.

use super::landlock::{self, Rights};
use super::view::{Absent, Cover, Mount, Source, View};
use super::{LaunchInputs, ListenerPlan, Mode, PlanRefused, StdioMode, etc};
use crate::policy::{EffectivePolicy, NetMode};
use crate::seccomp::SyscallSet;
use crate::seccomp::{self, Surface};
use agentd_kernel::sys::SockFilter;
use agentd_launch::plan::{
    self as wire, CgroupLimits, DiskLimit, ExecFlags, GvisorFlags, MountFlags, Network,
    PlanBuilder, Stdio,
};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `/dev/shm` of a sandbox: browsers and Python's multiprocessing use it.
const MAX_SHM_BYTES: u64 = 1 << 30;
/// What may be pinned in memory: enough for keys and rings, too little to starve the host.
const MEMLOCK_BYTES: u64 = 16 << 20;
/// Room for a bundle of TLS roots, which is a few hundred KiB.
const TRUST_BYTES: u64 = 4 << 20;
const TRUST_INODES: u64 = 64;
/// Where POSIX message queues are named.
const MQUEUE: &str = "/dev/mqueue";
/// Where the copies of `fs.copy` lie: in a private folder.
const COPIES: &str = "/var/tmp/agentd-copies";
const PAGE_BYTES: u64 = 4096;
/// What a user namespace's signal queues and message queues may take of the kernel's memory; the usual defaults of a host.
const SIGPENDING: u64 = 4096;
const MSGQUEUE_BYTES: u64 = 819_200;
const STACK_BYTES: u64 = 8 << 20;
const NONE: u64 = u64::MAX;

pub(crate) struct Parts<'a> {
    pub policy: &'a EffectivePolicy,
    pub inputs: &'a LaunchInputs,
    pub view: View,
    /// Of the host, at most the one this was written for; 0 without Landlock.
    pub landlock_abi: u8,
    pub cgroup: CgroupLimits,
    pub env: BTreeMap<String, String>,
    pub listeners: &'a [ListenerPlan],
    pub required_layers: u64,
    /// What the agent may ask of the kernel, and the program that becomes of it.
    pub surface: Surface,
    pub filter: Vec<SockFilter>,
    pub exec: ExecFlags,
    /// The runtime is gVisor, and this is how it is started.
    pub gvisor: Option<GvisorFlags>,
    /// The agent's own TCP ports, where there is a list and a kernel that holds it.
    pub ports: Option<Vec<u16>>,
}

/// A resource limit: name, number, soft, hard.
pub(crate) type Rlimit = (&'static str, u32, u64, u64);

impl Parts<'_> {
    pub(crate) fn encode(&self) -> Result<Vec<u8>, PlanRefused> {
        let inputs = self.inputs;
        let mode = match inputs.mode {
            Mode::Root => wire::Mode::Root,
            Mode::User => wire::Mode::User,
        };
        let mut plan = PlanBuilder::new(mode);
        plan.ids(inputs.uid, inputs.gid);
        plan.hostname(etc::host_name(&inputs.name));
        plan.lifeline_grace(inputs.lifeline_grace_ms);
        self.mounts(&mut plan)?;
        self.landlock(&mut plan);
        plan.exec_policy(self.exec);
        if let Some(flags) = self.gvisor {
            plan.gvisor(flags);
        }
        let limits = &self.policy.limits;
        if limits.disk_bytes.is_some() || limits.disk_inodes.is_some() {
            plan.disk_limit(DiskLimit {
                bytes: limits.disk_bytes.unwrap_or(0),
                inodes: limits.disk_inodes.unwrap_or(0),
            });
        }
        if network(self.policy) == Network::Host {
            plan.host_network();
        }
        plan.seccomp(
            self.filter
                .iter()
                .flat_map(seccomp::to_bytes)
                .collect::<Vec<u8>>(),
        );
        for (_, resource, soft, hard) in self.rlimits() {
            plan.rlimit(resource, soft, hard);
        }
        if self.cgroup.required {
            plan.cgroup(self.cgroup);
        }
        for (name, value) in &self.env {
            plan.env(format!("{name}={value}"));
        }
        for arg in &inputs.argv {
            plan.arg(arg);
        }
        plan.cwd(bytes(&self.cwd()));
        plan.stdio(match inputs.stdio {
            StdioMode::Pty { rows, cols } => Stdio::Pty { rows, cols },
            StdioMode::Pipes => Stdio::Pipes,
            StdioMode::Null => Stdio::Null,
        });
        for listener in self.listeners {
            match listener
                .address
                .rsplit_once(':')
                .and_then(|(_, port)| port.parse().ok())
            {
                Some(port) => plan.tcp_listener(port, listener.tag),
                None => plan.unix_listener(&listener.address, listener.tag, 0o600),
            };
        }
        plan.require(self.required_layers);
        plan.finish().map_err(|e| PlanRefused::Wire(e.to_string()))
    }

    pub(crate) fn cwd(&self) -> PathBuf {
        let inputs = self.inputs;
        inputs
            .cwd
            .clone()
            .or_else(|| inputs.workspace.clone())
            .unwrap_or_else(|| self.view.home.clone())
    }

    /// Size of each private folder: what the policy says, or as much that all of them together are no more than the memory
    /// that they lie in, also where no cgroup counts it.
    pub(crate) fn tmp_bytes(&self) -> u64 {
        let limits = &self.policy.limits;
        let private = |m: &&Mount| matches!(m.source, Source::Tmpfs | Source::Scratch(_));
        let shm = 1;
        let places = self.view.mounts.iter().filter(private).count() as u64 + shm;
        // The kernel counts whole pages.
        let share = |memory: u64| (memory / places) & !(PAGE_BYTES - 1);
        limits.memory_bytes.map_or(limits.tmp_bytes, |memory| {
            limits.tmp_bytes.min(share(memory).max(PAGE_BYTES))
        })
    }

    pub(crate) fn shm_bytes(&self) -> u64 {
        self.tmp_bytes().min(MAX_SHM_BYTES)
    }

    pub(crate) fn rlimits(&self) -> Vec<Rlimit> {
        let limits = &self.policy.limits;
        let both = |name, number, value| (name, number, value, value);
        let mut out = vec![
            both("core", 4, 0),
            both("nofile", 7, limits.nofile),
            both("memlock", 8, MEMLOCK_BYTES),
            both("rtprio", 14, 0),
            both("nice", 13, 0),
            both("sigpending", 11, SIGPENDING),
            both("msgqueue", 12, MSGQUEUE_BYTES),
            ("stack", 3, STACK_BYTES, NONE),
        ];
        if let Some(fsize) = limits.fsize_bytes {
            out.push(both("fsize", 1, fsize));
        }
        if let Some(pids) = limits.pids {
            out.push(both("nproc", 6, pids));
        }
        out
    }

    fn mounts(&self, plan: &mut PlanBuilder) -> Result<(), PlanRefused> {
        let (limits, tmp_bytes) = (&self.policy.limits, self.tmp_bytes());
        plan.proc("/proc");
        plan.dev("/dev", self.shm_bytes());
        if self.has_queues() {
            plan.mqueue(MQUEUE);
        }
        for mount in &self.view.mounts {
            let dst = bytes(&mount.dst);
            let mut flags = MountFlags::NONE;
            if !mount.writable {
                flags = flags | MountFlags::RDONLY;
            }
            if !mount.exec {
                flags = flags | MountFlags::NOEXEC;
            }
            match mount.source {
                Source::System => plan.bind(
                    dst,
                    dst,
                    flags | MountFlags::OPTIONAL | MountFlags::KEEP_LINK,
                ),
                Source::Grant(index) => plan.grant_mount(index, dst, flags),
                Source::Socket(index) => plan.grant_mount(index, dst, flags | MountFlags::SOCKET),
                // Opening a device for writing takes no writable mount.
                Source::Device(index) => plan.grant_mount(index, dst, flags | MountFlags::DEVICE),
                Source::Scratch(index) => {
                    plan.overlay(index, dst, tmp_bytes, limits.tmp_inodes, flags)
                }
                // It becomes read-only once they are in it.
                Source::Secrets(count) => plan.tmpfs(
                    dst,
                    u64::from(count) * wire::MAX_SECRET_BYTES,
                    u64::from(count) + 1,
                    0o700,
                    flags,
                ),
                Source::Secret(index) => plan.grant_mount(index, dst, flags | MountFlags::COPY),
                Source::Trust => plan.tmpfs(dst, TRUST_BYTES, TRUST_INODES, 0o755, flags),
                Source::Tmpfs => {
                    let mode = if mount.dst == self.view.home {
                        0o700
                    } else {
                        0o1777
                    };
                    plan.tmpfs(dst, tmp_bytes, limits.tmp_inodes, mode, flags)
                }
            };
        }
        for (path, content) in etc::files(
            self.inputs,
            &self.view.home,
            self.policy.net.mode,
            self.policy.runtime,
        ) {
            plan.file(path, 0o644, content);
        }
        if let Some(trust) = &self.inputs.trust {
            plan.file(bytes(&trust.path), 0o644, &trust.pem);
        }
        plan.symlink("/etc/mtab", "/proc/mounts");
        for file in &self.inputs.home_files {
            let path = self.view.home.join(&file.path);
            let inside = self.view.mounts.iter().rfind(|m| path.starts_with(&m.dst));
            if inside.is_some_and(|m| m.source != Source::Tmpfs) {
                // It would be written to the caller's own files.
                return Err(PlanRefused::Input {
                    what: format!("home file {}", path.display()),
                    problem: "a grant covers it".into(),
                    allowed: "only the private part of HOME can be seeded".into(),
                });
            }
            plan.file(bytes(&path), file.mode, &file.content);
        }
        for cover in &self.view.masks {
            plan.mask(bytes(&cover.path), cover_flags(cover));
        }
        for cover in &self.view.protected {
            plan.protect(bytes(&cover.path), cover_flags(cover));
        }
        for (number, cover) in self.view.copies.iter().enumerate() {
            // A folder each: programs write the new content beside the old.
            let name = cover.path.file_name().unwrap_or_default();
            let to = Path::new(COPIES).join(number.to_string()).join(name);
            plan.copy(bytes(&cover.path), bytes(&to), cover_flags(cover));
        }
        Ok(())
    }

    fn has_queues(&self) -> bool {
        self.surface.sets.contains(&SyscallSet::Ipc)
    }

    /// (path, rights, whether it may be absent)
    pub(crate) fn landlock_rules(&self) -> Vec<(PathBuf, Rights, bool)> {
        if self.landlock_abi == 0 || self.gvisor.is_some() {
            return Vec::new();
        }
        let mut rules = vec![
            (PathBuf::from("/"), Rights::List, false),
            ("/etc".into(), Rights::Read { exec: false }, false),
            ("/run".into(), Rights::Read { exec: false }, true),
            // Reading only: /proc/self holds switches of the kernel's (oom_score_adj, attr, coredump_filter).
            ("/proc".into(), Rights::Read { exec: false }, false),
            ("/dev".into(), Rights::Devices, false),
            ("/dev/shm".into(), Rights::Write { exec: false }, false),
        ];
        if self.has_queues() {
            rules.push((MQUEUE.into(), Rights::Write { exec: false }, false));
        }
        rules.extend(
            self.view
                .mounts
                .iter()
                .map(|m| (m.dst.clone(), m.rights(), m.source == Source::System)),
        );
        rules
    }

    /// (port, rights): agentd's services may be used, and the agent's own be offered too. `None`: ports are not ruled.
    pub(crate) fn landlock_ports(&self) -> Option<Vec<(u16, u64)>> {
        let own = self.ports.as_ref()?;
        let services = self
            .listeners
            .iter()
            .filter_map(|l| l.address.rsplit_once(':')?.1.parse().ok())
            .filter(|port| !own.contains(port))
            .map(|port| (port, landlock::USE_TCP));
        Some(
            services
                .chain(own.iter().map(|port| (*port, landlock::TCP)))
                .collect(),
        )
    }

    /// Whether there is anything for Landlock to hold.
    fn has_landlock(&self) -> bool {
        let abi = self.landlock_abi;
        abi > 0 && (self.gvisor.is_none() || self.ports.is_some() || landlock::scopes(abi) != 0)
    }

    fn landlock(&self, plan: &mut PlanBuilder) {
        let abi = self.landlock_abi;
        if abi == 0 {
            return;
        }
        let rules = self.landlock_ports();
        let net = if rules.is_some() { landlock::TCP } else { 0 };
        if !self.has_landlock() {
            return;
        }
        let files = match self.gvisor {
            None => landlock::handled(abi),
            Some(_) => 0,
        };
        plan.landlock(files, net, landlock::scopes(abi), abi);
        for (port, access) in rules.into_iter().flatten() {
            plan.landlock_port(port, access);
        }
        let rules = self.landlock_rules();
        for (path, rights, optional) in &rules {
            // Rights add up on the way to the root, so a rule to read that gives no more than one above it only costs time.
            let gives = rights.bits(abi);
            let is_given = rules.iter().any(|(above, rights, optional)| {
                let is_above = path != above && path.starts_with(above);
                is_above && !optional && gives & !rights.bits(abi) == 0
            });
            if is_given && matches!(rights, Rights::List | Rights::Read { .. }) {
                continue;
            }
            let flags = if *optional {
                MountFlags::OPTIONAL
            } else {
                MountFlags::NONE
            };
            plan.landlock_path(bytes(path), gives, flags);
        }
    }
}

pub(crate) fn network(policy: &EffectivePolicy) -> Network {
    match policy.net.mode {
        NetMode::Host => Network::Host,
        NetMode::None | NetMode::Proxy => Network::Own,
    }
}

fn cover_flags(cover: &Cover) -> MountFlags {
    let placed = MountFlags::OPTIONAL | MountFlags::PLACEHOLDER;
    let flags = match cover.absent {
        Absent::Free => MountFlags::OPTIONAL,
        Absent::File => placed,
        Absent::Folder => placed | MountFlags::FOLDER,
    };
    match cover.linked {
        true => flags | MountFlags::LINKED,
        false => flags,
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}
