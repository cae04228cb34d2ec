//! The list of questions: one entry per feature, with what is lost without it and how to get it.
//!
//! Pure data. The probes that answer are in the sibling files; `docs/host-requirements.md` is checked against
//! this table by a test.

use serde::{Deserialize, Serialize};

/// What happens when a feature is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// No launch without it.
    Required,
    /// A launch goes on without it only if its policy allows that by name.
    Degrade,
    /// Nothing that protects anybody depends on it.
    Optional,
}

/// How an ordinary user's agentd gets a cgroup that it may divide: it keeps the one that it was started in.
const DELEGATE: &str =
    "agentctl shutdown; systemd-run --user --scope -p Delegate=yes agentctl run ...";

macro_rules! features {
    ($( $variant:ident, $name:literal, $need:ident, lost $lost:literal, fix $fix:expr; )*) => {
        /// Something the host may or may not offer.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Feature { $( $variant, )* }

        impl Feature {
            /// Every feature, in the order `doctor` prints them.
            pub const ALL: &'static [Feature] = &[ $( Feature::$variant, )* ];

            /// The stable name, such as `user-ns`.
            pub fn name(self) -> &'static str {
                match self { $( Feature::$variant => $name, )* }
            }

            pub fn need(self) -> Need {
                match self { $( Feature::$variant => Need::$need, )* }
            }

            /// What is lost without it.
            pub fn lost(self) -> &'static str {
                match self { $( Feature::$variant => $lost, )* }
            }

            /// The usual remedy; a probe that knows the cause gives a better one.
            pub fn usual_fix(self) -> Option<&'static str> {
                match self { $( Feature::$variant => $fix, )* }
            }
        }
    };
}

features! {
    UserNs, "user-ns", Required,
        lost "every launch: an agent would keep the ids and rights of the host",
        fix Some("sudo sysctl -w user.max_user_namespaces=15000");
    IdMap, "id-map", Required,
        lost "every launch: no id could be mapped into the sandbox",
        fix None;
    MountNs, "mount-ns", Required,
        lost "every launch: an agent would see the host's files",
        fix Some("sudo sysctl -w user.max_mnt_namespaces=15000");
    PidNs, "pid-ns", Required,
        lost "every launch: an agent could see and signal host processes, and outlive its session",
        fix Some("sudo sysctl -w user.max_pid_namespaces=15000");
    NetNs, "net-ns", Required,
        lost "every launch: an agent would reach the host's network past the proxy",
        fix Some("sudo sysctl -w user.max_net_namespaces=15000");
    IpcNs, "ipc-ns", Required,
        lost "every launch: System V shared memory and POSIX queues of the host would be reachable",
        fix Some("sudo sysctl -w user.max_ipc_namespaces=15000");
    UtsNs, "uts-ns", Required,
        lost "every launch: the sandbox could not have a host name of its own",
        fix Some("sudo sysctl -w user.max_uts_namespaces=15000");
    CgroupNs, "cgroup-ns", Degrade,
        lost "/proc/self/cgroup inside shows the host's cgroup path",
        fix Some("sudo sysctl -w user.max_cgroup_namespaces=15000");
    TimeNs, "time-ns", Degrade,
        lost "nothing an agent may change; it guards against a clock being set inside",
        fix Some("sudo sysctl -w user.max_time_namespaces=15000");
    ProcMount, "proc-mount", Required,
        lost "every launch: no procfs of its own for the sandbox",
        fix Some("start the outer container with: docker run --security-opt systempaths=unconfined");
    MountApi, "mount-api", Required,
        lost "every launch: mounts by descriptor (open_tree, move_mount, mount_setattr; Linux 5.12)",
        fix None;
    Seccomp, "seccomp", Required,
        lost "every launch: system calls could not be filtered",
        fix None;
    Pidfd, "pidfd", Required,
        lost "every launch: the death of an agent could not be waited for without a race (Linux 5.4)",
        fix None;
    CloseRange, "close-range", Required,
        lost "every launch: stray descriptors could not be closed in one step (Linux 5.9)",
        fix None;
    MemfdSeals, "memfd-seals", Required,
        lost "every launch: plans and bus lanes could be changed after they were checked (Linux 5.1)",
        fix None;
    Landlock, "landlock", Degrade,
        lost "the second layer under the mount view: files, abstract sockets and signals rest on namespaces alone",
        fix Some("boot with lsm=landlock,... (kernel built with CONFIG_SECURITY_LANDLOCK=y)");
    IdmappedMounts, "idmapped-mounts", Degrade,
        lost "one kernel uid per agent: agents run under the caller's uid and files are not idmapped",
        fix Some("run agentd as root, on a file system that allows it: ext4, xfs, btrfs, tmpfs (Linux 6.3)");
    CgroupMemory, "cgroup-memory", Degrade,
        lost "memory limits: an agent can use all of the host's memory",
        fix Some(DELEGATE);
    CgroupPids, "cgroup-pids", Degrade,
        lost "process limits hold per uid only (RLIMIT_NPROC), not per agent",
        fix Some(DELEGATE);
    CgroupCpu, "cgroup-cpu", Degrade,
        lost "CPU limits: an agent can keep every core busy",
        fix Some(DELEGATE);
    CgroupKill, "cgroup-kill", Optional,
        lost "killing a whole agent in one write; its pid namespace is killed through its init instead (Linux 5.14)",
        fix None;
    CloneIntoCgroup, "clone-into-cgroup", Optional,
        lost "starting an agent inside its cgroup; its first process enters it before it does anything else instead",
        fix None;
    MemfdNoexec, "memfd-noexec", Degrade,
        lost "refusing to execute an anonymous memory file inside a sandbox (vm.memfd_noexec; Linux 6.3)",
        fix None;
    Mdwe, "mdwe", Optional,
        lost "the second layer under the filter against memory that is written and then executed (PR_SET_MDWE; Linux 6.3)",
        fix None;
    Gvisor, "gvisor", Optional,
        lost "the runtime gvisor: agents run on the host's kernel, behind the filter and Landlock",
        fix Some("sudo apt-get install runsc");
    SeccompNotify, "seccomp-notify", Optional,
        lost "telling of refused system calls: they are refused all the same, and nobody hears of it",
        fix None;
    NewUidMap, "newuidmap", Optional,
        lost "nothing today: a sandbox maps a single id and needs no subordinate range",
        fix Some("sudo apt-get install uidmap");
    HugePages, "huge-pages", Optional,
        lost "bus arenas backed by huge pages",
        fix Some("sudo sysctl -w vm.nr_hugepages=64");
    IoUring, "io-uring", Optional,
        lost "batched file and socket work in the daemon; agents never get io_uring",
        fix Some("sudo sysctl -w kernel.io_uring_disabled=0");
    Bpf, "bpf", Optional,
        lost "live revocation: the network of a running agent can be cut only by stopping the proxy or the agent",
        fix Some("run agentd as root, or: sudo setcap cap_bpf,cap_perfmon,cap_net_admin+ep agentd-broker");
    BpfLsm, "bpf-lsm", Optional,
        lost "live revocation of programs and writes, and telling of what the guard refuses",
        fix Some("boot with lsm=...,bpf (kernel built with CONFIG_BPF_LSM=y), and run agentd as root");
    BpfTracing, "bpf-tracing", Optional,
        lost "scheduler telemetry: agentctl sched",
        fix Some("run agentd as root, on a kernel built with CONFIG_DEBUG_INFO_BTF=y");
    BpfReceipts, "bpf-receipts", Optional,
        lost "the direct path between two agents: their messages go through agentd (the tracepoint sock_recv_length, Linux 6.3)",
        fix None;
    Perf, "perf", Optional,
        lost "per-agent counters of CPU time, switches and migrations",
        fix Some("sudo sysctl -w kernel.perf_event_paranoid=1");
    Msr, "msr", Optional,
        lost "core temperature, power and frequency readings",
        fix Some("sudo modprobe msr");
}
