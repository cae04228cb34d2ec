//! Writing plans: one method per record, checked as a whole by [`PlanBuilder::finish`].
//!
//! Pure; runs in agentd (unprivileged) and in tests. It never writes a plan that [`Plan::parse`] refuses.

use super::parse::{FLAG_OPTIONAL, FLAG_REQUIRED, kind};
use super::{
    CgroupLimits, DiskLimit, ExecFlags, GvisorFlags, HEADER_LEN, MAGIC, MAX_RECORDS, Mode,
    MountFlags, Plan, PlanError, RECORD_HEADER_LEN, RecordFault, Stdio, VERSION,
};

/// Collects the records of a plan. A fault in one of them is reported by `finish`.
#[derive(Debug, Clone)]
pub struct PlanBuilder {
    bytes: Vec<u8>,
    mode: Mode,
    count: usize,
    fault: Option<PlanError>,
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new(mode: Mode) -> PlanBuilder {
        PlanBuilder {
            bytes: vec![0; HEADER_LEN],
            mode,
            count: 0,
            fault: None,
        }
    }

    fn record(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[&[u8]],
        strings: &[&[u8]],
        rest: &[u8],
    ) -> &mut Self {
        if strings.iter().any(|string| string.contains(&0)) && self.fault.is_none() {
            let index = u16::try_from(self.count).unwrap_or(u16::MAX);
            self.fault = Some(PlanError::Record {
                index,
                fault: RecordFault::Nul,
            });
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&kind.to_le_bytes());
        self.bytes.extend_from_slice(&flags.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        for field in fixed {
            self.bytes.extend_from_slice(field);
        }
        for string in strings {
            self.bytes.extend_from_slice(string);
            self.bytes.push(0);
        }
        self.bytes.extend_from_slice(rest);
        // A payload beyond 4 GiB is beyond MAX_BYTES too, and `finish` refuses it.
        let len = u32::try_from(self.bytes.len() - start - RECORD_HEADER_LEN).unwrap_or(u32::MAX);
        self.bytes[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        self.bytes
            .resize(self.bytes.len().next_multiple_of(RECORD_HEADER_LEN), 0);
        self.count += 1;
        self
    }

    /// See [`super::Record::Ids`].
    pub fn ids(&mut self, uid: u32, gid: u32) -> &mut Self {
        self.record(
            kind::IDS,
            0,
            &[&uid.to_le_bytes(), &gid.to_le_bytes()],
            &[],
            &[],
        )
    }

    /// See [`super::Record::Hostname`].
    pub fn hostname(&mut self, name: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::HOSTNAME, 0, &[], &[name.as_ref()], &[])
    }

    /// See [`super::Record::LifelineGrace`].
    pub fn lifeline_grace(&mut self, ms: u32) -> &mut Self {
        self.record(kind::LIFELINE_GRACE, 0, &[&ms.to_le_bytes()], &[], &[])
    }

    /// See [`super::Record::Bind`].
    pub fn bind(
        &mut self,
        src: impl AsRef<[u8]>,
        dst: impl AsRef<[u8]>,
        flags: MountFlags,
    ) -> &mut Self {
        self.record(
            kind::BIND,
            flags.bits(),
            &[],
            &[src.as_ref(), dst.as_ref()],
            &[],
        )
    }

    /// See [`super::Record::GrantMount`].
    pub fn grant_mount(
        &mut self,
        index: u32,
        dst: impl AsRef<[u8]>,
        flags: MountFlags,
    ) -> &mut Self {
        self.record(
            kind::GRANT_MOUNT,
            flags.bits(),
            &[&index.to_le_bytes()],
            &[dst.as_ref()],
            &[],
        )
    }

    /// See [`super::Record::ExecPolicy`].
    pub fn exec_policy(&mut self, flags: ExecFlags) -> &mut Self {
        self.record(kind::EXEC_POLICY, flags.bits(), &[], &[], &[])
    }

    /// See [`super::Record::DiskLimit`].
    pub fn disk_limit(&mut self, limit: DiskLimit) -> &mut Self {
        let fixed = [limit.bytes.to_le_bytes(), limit.inodes.to_le_bytes()];
        let fixed = fixed.each_ref().map(|word| word.as_slice());
        self.record(kind::DISK_LIMIT, 0, &fixed, &[], &[])
    }

    /// See [`super::Record::HostNetwork`].
    pub fn host_network(&mut self) -> &mut Self {
        self.record(kind::HOST_NETWORK, 0, &[], &[], &[])
    }

    /// See [`super::Record::Gvisor`].
    pub fn gvisor(&mut self, flags: GvisorFlags) -> &mut Self {
        self.record(kind::GVISOR, flags.bits(), &[], &[], &[])
    }

    /// See [`super::Record::Tmpfs`].
    pub fn tmpfs(
        &mut self,
        dst: impl AsRef<[u8]>,
        size_bytes: u64,
        inodes: u64,
        mode: u32,
        flags: MountFlags,
    ) -> &mut Self {
        let fixed: [&[u8]; 3] = [
            &size_bytes.to_le_bytes(),
            &inodes.to_le_bytes(),
            &mode.to_le_bytes(),
        ];
        self.record(kind::TMPFS, flags.bits(), &fixed, &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Proc`].
    pub fn proc(&mut self, dst: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::PROC, 0, &[], &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Mqueue`].
    pub fn mqueue(&mut self, dst: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::MQUEUE, 0, &[], &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Dev`].
    pub fn dev(&mut self, dst: impl AsRef<[u8]>, shm_bytes: u64) -> &mut Self {
        self.record(
            kind::DEV,
            0,
            &[&shm_bytes.to_le_bytes()],
            &[dst.as_ref()],
            &[],
        )
    }

    /// See [`super::Record::File`].
    pub fn file(
        &mut self,
        dst: impl AsRef<[u8]>,
        mode: u32,
        content: impl AsRef<[u8]>,
    ) -> &mut Self {
        self.record(
            kind::FILE,
            0,
            &[&mode.to_le_bytes()],
            &[dst.as_ref()],
            content.as_ref(),
        )
    }

    /// See [`super::Record::Symlink`].
    pub fn symlink(&mut self, dst: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::SYMLINK, 0, &[], &[dst.as_ref(), target.as_ref()], &[])
    }

    /// See [`super::Record::Dir`].
    pub fn dir(&mut self, dst: impl AsRef<[u8]>, mode: u32) -> &mut Self {
        self.record(kind::DIR, 0, &[&mode.to_le_bytes()], &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Mask`].
    pub fn mask(&mut self, dst: impl AsRef<[u8]>, flags: MountFlags) -> &mut Self {
        self.record(kind::MASK, flags.bits(), &[], &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Protect`].
    pub fn protect(&mut self, dst: impl AsRef<[u8]>, flags: MountFlags) -> &mut Self {
        self.record(kind::PROTECT, flags.bits(), &[], &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Copy`].
    pub fn copy(
        &mut self,
        dst: impl AsRef<[u8]>,
        to: impl AsRef<[u8]>,
        flags: MountFlags,
    ) -> &mut Self {
        let strings = [dst.as_ref(), to.as_ref()];
        self.record(kind::COPY, flags.bits(), &[], &strings, &[])
    }

    /// See [`super::Record::Overlay`].
    pub fn overlay(
        &mut self,
        index: u32,
        dst: impl AsRef<[u8]>,
        size_bytes: u64,
        inodes: u64,
        flags: MountFlags,
    ) -> &mut Self {
        let fixed: [&[u8]; 3] = [
            &index.to_le_bytes(),
            &size_bytes.to_le_bytes(),
            &inodes.to_le_bytes(),
        ];
        self.record(kind::OVERLAY, flags.bits(), &fixed, &[dst.as_ref()], &[])
    }

    /// See [`super::Record::Landlock`].
    pub fn landlock(
        &mut self,
        handled_fs: u64,
        handled_net: u64,
        scoped: u64,
        min_abi: u8,
    ) -> &mut Self {
        let fixed: [&[u8]; 4] = [
            &handled_fs.to_le_bytes(),
            &handled_net.to_le_bytes(),
            &scoped.to_le_bytes(),
            &[min_abi],
        ];
        self.record(kind::LANDLOCK, 0, &fixed, &[], &[])
    }

    /// See [`super::Record::LandlockPath`]; of the flags only `OPTIONAL` counts.
    pub fn landlock_path(
        &mut self,
        path: impl AsRef<[u8]>,
        access: u64,
        flags: MountFlags,
    ) -> &mut Self {
        let optional = if flags.contains(MountFlags::OPTIONAL) {
            FLAG_OPTIONAL
        } else {
            0
        };
        self.record(
            kind::LANDLOCK_PATH,
            optional,
            &[&access.to_le_bytes()],
            &[path.as_ref()],
            &[],
        )
    }

    /// See [`super::Record::LandlockPort`].
    pub fn landlock_port(&mut self, port: u16, access: u64) -> &mut Self {
        self.record(
            kind::LANDLOCK_PORT,
            0,
            &[&access.to_le_bytes(), &port.to_le_bytes()],
            &[],
            &[],
        )
    }

    /// See [`super::Record::Seccomp`].
    pub fn seccomp(&mut self, program: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::SECCOMP, 0, &[], &[], program.as_ref())
    }

    /// See [`super::Record::Rlimit`].
    pub fn rlimit(&mut self, resource: u32, soft: u64, hard: u64) -> &mut Self {
        let fixed: [&[u8]; 3] = [
            &resource.to_le_bytes(),
            &soft.to_le_bytes(),
            &hard.to_le_bytes(),
        ];
        self.record(kind::RLIMIT, 0, &fixed, &[], &[])
    }

    /// See [`super::Record::Cgroup`].
    pub fn cgroup(&mut self, limits: CgroupLimits) -> &mut Self {
        let CgroupLimits {
            memory_max_bytes,
            pids_max,
            cpu_quota_us,
            cpu_period_us,
            required,
        } = limits;
        let words = [memory_max_bytes, pids_max, cpu_quota_us, cpu_period_us].map(u64::to_le_bytes);
        let fixed = words.each_ref().map(|word| word.as_slice());
        self.record(
            kind::CGROUP,
            if required { FLAG_REQUIRED } else { 0 },
            &fixed,
            &[],
            &[],
        )
    }

    /// See [`super::Record::Env`].
    pub fn env(&mut self, variable: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::ENV, 0, &[], &[variable.as_ref()], &[])
    }

    /// See [`super::Record::Arg`].
    pub fn arg(&mut self, arg: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::ARG, 0, &[], &[arg.as_ref()], &[])
    }

    /// See [`super::Record::Cwd`].
    pub fn cwd(&mut self, path: impl AsRef<[u8]>) -> &mut Self {
        self.record(kind::CWD, 0, &[], &[path.as_ref()], &[])
    }

    /// See [`super::Record::Stdio`].
    pub fn stdio(&mut self, stdio: Stdio) -> &mut Self {
        let (what, rows, cols): (u16, u16, u16) = match stdio {
            Stdio::Null => (0, 0, 0),
            Stdio::Pipes => (1, 0, 0),
            Stdio::Pty { rows, cols } => (2, rows, cols),
        };
        self.record(
            kind::STDIO,
            0,
            &[
                &what.to_le_bytes(),
                &rows.to_le_bytes(),
                &cols.to_le_bytes(),
            ],
            &[],
            &[],
        )
    }

    /// See [`super::Record::TcpListener`].
    pub fn tcp_listener(&mut self, port: u16, tag: u16) -> &mut Self {
        self.record(
            kind::TCP_LISTENER,
            0,
            &[&port.to_le_bytes(), &tag.to_le_bytes()],
            &[],
            &[],
        )
    }

    /// See [`super::Record::UnixListener`].
    pub fn unix_listener(&mut self, path: impl AsRef<[u8]>, tag: u16, mode: u32) -> &mut Self {
        self.record(
            kind::UNIX_LISTENER,
            0,
            &[&mode.to_le_bytes(), &tag.to_le_bytes()],
            &[path.as_ref()],
            &[],
        )
    }

    /// See [`super::Record::Require`].
    pub fn require(&mut self, layers: u64) -> &mut Self {
        self.record(kind::REQUIRE, 0, &[&layers.to_le_bytes()], &[], &[])
    }

    /// The plan's bytes, or what is wrong with it. The builder stays usable.
    pub fn finish(&self) -> Result<Vec<u8>, PlanError> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut bytes = self.bytes.clone();
        let count = u16::try_from(self.count).unwrap_or(u16::MAX);
        if self.count > MAX_RECORDS {
            return Err(PlanError::RecordCount(count));
        }
        let total =
            u32::try_from(bytes.len()).map_err(|_| PlanError::Length { have: bytes.len() })?;
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&count.to_le_bytes());
        bytes[8..12].copy_from_slice(&total.to_le_bytes());
        bytes[12] = self.mode as u8;
        Plan::parse(&bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Record;
    use super::*;

    /// A plan with every kind of record.
    pub fn one_of_each() -> Vec<u8> {
        let limits = CgroupLimits {
            memory_max_bytes: 1 << 30,
            pids_max: 64,
            cpu_quota_us: 5,
            cpu_period_us: 10,
            required: true,
        };
        let mut plan = PlanBuilder::new(Mode::Root);
        plan.ids(1000, 1001).hostname("agent-1").lifeline_grace(7);
        plan.bind("/usr", "/usr", MountFlags::RDONLY | MountFlags::OPTIONAL);
        plan.grant_mount(0, "/work", MountFlags::NOEXEC);
        plan.tmpfs("/tmp", 1 << 20, 100, 0o1777, MountFlags::NONE);
        plan.proc("/proc")
            .dev("/dev", 1 << 16)
            .file("/etc/passwd", 0o644, "root:x:0:0\n");
        plan.symlink("/bin", "usr/bin")
            .dir("/home/agent", 0o700)
            .mask("/work/.env", MountFlags::OPTIONAL);
        plan.copy("/work/.git/config", "/tmp/config", MountFlags::OPTIONAL);
        plan.protect("/work/.envrc", MountFlags::PLACEHOLDER | MountFlags::FOLDER)
            .overlay(1, "/scratch", 1 << 20, 100, MountFlags::NOEXEC);
        plan.landlock(1, 2, 3, 4)
            .landlock_path("/usr", 5, MountFlags::OPTIONAL)
            .landlock_port(443, 2);
        plan.seccomp([6, 0, 0, 0, 0, 0, 0xff, 0x7f])
            .rlimit(7, 1, 2)
            .cgroup(limits)
            .env("A=b")
            .arg("true")
            .cwd("/work");
        plan.stdio(Stdio::Pty { rows: 24, cols: 80 })
            .tcp_listener(8080, super::super::GATEWAY);
        plan.unix_listener("/run/agentd/bus.sock", super::super::BUS, 0o600)
            .require(3)
            .exec_policy(ExecFlags::MDWE | ExecFlags::DEBUG)
            .gvisor(GvisorFlags::NO_DIRECTFS);
        plan.finish().unwrap()
    }

    #[test]
    fn what_is_built_is_what_is_parsed() {
        let bytes = one_of_each();
        let plan = Plan::parse(&bytes).unwrap();
        assert_eq!(
            (plan.mode(), plan.ids(), plan.cwd()),
            (Mode::Root, (1000, 1001), c"/work")
        );
        assert_eq!(
            (
                plan.grant_mounts(),
                plan.listeners(),
                plan.required_layers()
            ),
            (2, 2, 3)
        );
        assert_eq!(plan.exec(), ExecFlags::MDWE | ExecFlags::DEBUG);
        assert_eq!(
            (plan.args(), plan.envs(), plan.lifeline_grace_ms()),
            (1, 1, 7)
        );
        assert_eq!(plan.cgroup().unwrap().pids_max, 64);
        let records: Vec<_> = plan.records().collect();
        let flags = MountFlags::RDONLY | MountFlags::OPTIONAL;
        assert_eq!(
            records[3],
            Record::Bind {
                src: c"/usr",
                dst: c"/usr",
                flags
            }
        );
        let flags = MountFlags::NONE;
        assert_eq!(
            records[5],
            Record::Tmpfs {
                dst: c"/tmp",
                size_bytes: 1 << 20,
                inodes: 100,
                mode: 0o1777,
                flags
            }
        );
        assert_eq!(
            records[8],
            Record::File {
                dst: c"/etc/passwd",
                mode: 0o644,
                content: b"root:x:0:0\n"
            }
        );
        assert_eq!(
            records[9],
            Record::Symlink {
                dst: c"/bin",
                target: c"usr/bin"
            }
        );
        assert_eq!(
            records[16],
            Record::LandlockPath {
                path: c"/usr",
                access: 5,
                optional: true
            }
        );
        assert_eq!(records[23], Record::Cwd(c"/work"));
        assert_eq!(
            records[26],
            Record::UnixListener {
                path: c"/run/agentd/bus.sock",
                tag: 4,
                mode: 0o600
            }
        );
        assert_eq!(records.len(), 30);
    }

    #[test]
    fn too_many_records_are_refused() {
        let mut plan = PlanBuilder::new(Mode::User);
        for _ in 0..=MAX_RECORDS {
            plan.arg("x");
        }
        assert_eq!(plan.finish(), Err(PlanError::RecordCount(4097)));
    }
}
