//! `/proc` and `/sys`: other processes, the machine's own knobs, and one's own that outlive the agent's rights.

use std::fs;
use std::io::Write;

use super::{done, loot};
use crate::case::{Case, Effect, Try};
use crate::raw::Refused;
use crate::scene::Scene;

const ROOTS: &str = "the file is root's";
const ADMIN: &str = "most knobs are root's, and those that open for all take no value from them";

/// Opens for writing what should be read-only or absent; nothing is written.
fn writable(paths: &[&str]) -> Try {
    let mut last = Refused::new("open", libc::ENOENT);
    for path in paths {
        match fs::File::options().write(true).open(path) {
            Ok(_) => return done(format!("{path} is open for writing")),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn readable(paths: &[&str]) -> Try {
    let mut last = Refused::new("open", libc::ENOENT);
    for path in paths {
        match fs::File::open(path) {
            Ok(mut file) => {
                let mut some = [0; 64];
                match std::io::Read::read(&mut file, &mut some) {
                    Ok(1..) => return done(format!("{path} was read")),
                    Ok(0) => last = Refused::without_errno(format!("{path} is empty")),
                    Err(error) => last = error.into(),
                }
            }
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// One of these folders shows something.
fn listed(paths: &[&str]) -> Try {
    let mut last = Refused::new("opendir", libc::ENOENT);
    for path in paths {
        match fs::read_dir(path) {
            Ok(names) => match names.count() {
                0 => last = Refused::without_errno(format!("{path} is empty")),
                names => return done(format!("{names} names in {path}")),
            },
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

fn of_victim(s: &Scene, name: &str) -> String {
    format!("/proc/{}/{name}", s.victim.pid)
}

macro_rules! write_to {
    ($id:literal, $title:literal, [$($path:literal),+]) => {
        Case::new($id, $title, |_| writable(&[$($path),+])).cannot(ADMIN)
    };
}

pub const CASES: &[Case] = &[
    Case::new("proc_list", "a host process shows in /proc", |s| {
        fs::metadata(of_victim(s, ""))?;
        done("it shows")
    }),
    Case::new("proc_v_cmdline", "its arguments", |s| {
        fs::read(of_victim(s, "cmdline"))?;
        done("read")
    }),
    Case::new("proc_v_status", "its status", |s| {
        fs::read(of_victim(s, "status"))?;
        done("read")
    }),
    Case::new("proc_v_maps", "its address space", |s| {
        fs::read(of_victim(s, "maps"))?;
        done("read")
    }),
    Case::new("proc_v_mem", "its memory, for reading", |s| {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; 128];
        fs::File::open(of_victim(s, "mem"))?.read_at(&mut bytes, s.victim.secret_at)?;
        Ok(crate::case::Attempt::Loot(bytes))
    })
    .secret(),
    Case::new("proc_1_environ", "the environment of pid 1", |_| {
        loot("/proc/1/environ")
    })
    .secret()
    .cannot("the host's init belongs to root"),
    Case::new(
        "proc_any_environ",
        "the environment of every process that shows",
        every_environ,
    )
    .secret(),
    Case::new(
        "proc_host_processes",
        "processes that the session did not start",
        |s| {
            // Init and the session itself: what else shows belongs to somebody else.
            let marked = |pid: u32| {
                fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&s.mark))
            };
            let others: Vec<u32> = fs::read_dir("/proc")?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .filter(|pid| *pid > 2 && !marked(*pid) && !ours(*pid))
                .collect();
            if others.is_empty() {
                return Err(Refused::without_errno("none"));
            }
            done(format!("{} processes of others", others.len()))
        },
    ),
    Case::new("proc_net_tcp", "the host's connections", |s| {
        let wanted = format!(":{:04X}", s.tcp);
        found("/proc/net/tcp", &wanted)
    }),
    Case::new("proc_net_unix", "the host's Unix sockets", |s| {
        found("/proc/net/unix", &s.abstract_stream)
    }),
    Case::new("proc_sysvipc", "the host's shared memory", |s| {
        found("/proc/sysvipc/shm", &format!(" {} ", s.shm_key))
    }),
    Case::new("proc_locks", "the host's file locks", |_| {
        let text = fs::read_to_string("/proc/locks")?;
        if text.trim().is_empty() {
            return Err(Refused::without_errno("none shows"));
        }
        done("locks of others show")
    })
    .cannot("whether anybody holds a lock is the host's affair"),
    Case::new(
        "proc_cmdline",
        "the command line of the host's kernel",
        |_| loot("/proc/cmdline"),
    )
    .effect(Effect::SameAs("/proc/cmdline")),
    Case::new("proc_keys", "keys", |s| found("/proc/keys", &s.key_name)),
    Case::new("proc_kallsyms", "the kernel's addresses", |_| {
        let text = fs::read_to_string("/proc/kallsyms")?;
        if text
            .lines()
            .take(100)
            .any(|line| !line.starts_with("0000000000000000"))
        {
            return done("they are not zero");
        }
        Err(Refused::without_errno("zeros"))
    })
    .cannot("kptr_restrict hides them from anybody unprivileged"),
    Case::new("proc_kcore", "the kernel's memory", |_| {
        readable(&["/proc/kcore", "/proc/kpagecount", "/proc/kpageflags"])
    })
    .cannot(ROOTS),
    Case::new("proc_kmsg", "the kernel's log", |_| {
        readable(&["/proc/kmsg"])
    })
    .cannot(ROOTS),
    Case::new(
        "proc_timer",
        "timers, with kernel addresses and other processes",
        |_| {
            readable(&[
                "/proc/timer_list",
                "/proc/sched_debug",
                "/proc/latency_stats",
            ])
        },
    )
    .cannot(ROOTS),
    Case::new("proc_slab", "the kernel's allocations", |_| {
        readable(&[
            "/proc/slabinfo",
            "/proc/vmallocinfo",
            "/proc/pagetypeinfo",
            "/proc/allocinfo",
        ])
    })
    .cannot(ROOTS),
    Case::new(
        "proc_pagemap",
        "physical addresses of one's own pages",
        |_| {
            use std::os::unix::fs::FileExt;
            let here = 0_u64;
            let at = (&raw const here).expose_provenance() as u64 / 4096 * 8;
            let mut entry = [0; 8];
            fs::File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, at)?;
            if u64::from_ne_bytes(entry) & ((1 << 55) - 1) == 0 {
                return Err(Refused::without_errno("frame numbers are zero"));
            }
            done("a frame number was read")
        },
    )
    .cannot("frame numbers need CAP_SYS_ADMIN"),
    Case::new(
        "proc_kernel_config",
        "the kernel's build, modules, command line",
        |_| {
            readable(&[
                "/proc/config.gz",
                "/proc/modules",
                "/proc/interrupts",
                "/proc/iomem",
                "/proc/ioports",
                "/proc/softirqs",
            ])
        },
    ),
    Case::new("proc_diskstats", "the host's disks", |_| {
        readable(&["/proc/diskstats", "/proc/partitions", "/proc/mdstat"])
    }),
    write_to!(
        "proc_core_pattern",
        "core_pattern: a program that the kernel runs as root",
        ["/proc/sys/kernel/core_pattern"]
    ),
    write_to!(
        "proc_modprobe",
        "modprobe: the same",
        [
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/hotplug",
            "/proc/sys/kernel/usermodehelper/bset"
        ]
    ),
    write_to!(
        "proc_sysrq",
        "sysrq-trigger",
        ["/proc/sysrq-trigger", "/proc/sys/kernel/sysrq"]
    )
    .emulated(super::emulated::SETTINGS),
    write_to!(
        "proc_sys_kernel",
        "knobs of the kernel",
        [
            "/proc/sys/kernel/randomize_va_space",
            "/proc/sys/kernel/hostname",
            "/proc/sys/kernel/ns_last_pid",
            "/proc/sys/kernel/pid_max"
        ]
    ),
    write_to!(
        "proc_sys_vm",
        "knobs of memory",
        [
            "/proc/sys/vm/drop_caches",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sys/vm/memfd_noexec",
            "/proc/sys/vm/mmap_min_addr"
        ]
    ),
    write_to!(
        "proc_sys_fs",
        "knobs of file systems",
        [
            "/proc/sys/fs/suid_dumpable",
            "/proc/sys/fs/protected_symlinks",
            "/proc/sys/fs/file-max",
            "/proc/sys/fs/binfmt_misc/register"
        ]
    ),
    write_to!(
        "proc_sys_net",
        "knobs of the network",
        [
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv4/ping_group_range",
            "/proc/sys/net/core/somaxconn"
        ]
    ),
    write_to!(
        "proc_sys_user",
        "limits on namespaces",
        ["/proc/sys/user/max_user_namespaces"]
    ),
    write_to!(
        "proc_irq",
        "interrupts, buses, ACPI",
        [
            "/proc/irq/default_smp_affinity",
            "/proc/acpi/wakeup",
            "/proc/bus/pci/00/00.0",
            "/proc/mtrr",
            "/proc/fs/nfsd"
        ]
    ),
    Case::new(
        "proc_oom_down",
        "protect oneself from the OOM killer",
        |_| {
            fs::write("/proc/self/oom_score_adj", "-1000")?;
            done("oom_score_adj is -1000")
        },
    )
    .emulated(super::emulated::SETTINGS)
    .cannot("lowering it needs CAP_SYS_RESOURCE"),
    Case::new(
        "X36",
        "/proc/self: attr, coredump_filter, autogroup",
        |_| {
            writable(&[
                "/proc/self/coredump_filter",
                "/proc/self/autogroup",
                "/proc/self/attr/current",
            ])
        },
    ),
    Case::new(
        "proc_self_clear_refs",
        "/proc/self: clear_refs, timerslack_ns, comm of others' threads",
        |_| writable(&["/proc/self/clear_refs", "/proc/self/timerslack_ns"]),
    ),
    Case::new(
        "proc_self_uid_map",
        "a map of one's own user namespace",
        |_| {
            fs::write("/proc/self/uid_map", "0 0 1")?;
            done("written")
        },
    )
    .cannot("a map is written once, by a privileged parent"),
    Case::new(
        "proc_self_mem_code",
        "store into one's own code through /proc/self/mem",
        self_mem,
    )
    .opens(crate::case::Opening::Is("exec.write_exec", "true")),
    Case::new("sys_list", "hardware in /sys", |_| {
        listed(&[
            "/sys/block",
            "/sys/class/dmi/id",
            "/sys/devices/system/cpu",
            "/sys/bus/pci/devices",
            "/sys/class/net",
        ])
    })
    .emulated(super::emulated::DEVICES),
    Case::new("sys_kernel", "the kernel's own parameters in /sys", |_| {
        listed(&["/sys/kernel", "/sys/module", "/sys/power", "/sys/firmware"])
    }),
    Case::new("sys_write", "knobs in /sys", |_| {
        writable(&[
            "/sys/kernel/mm/ksm/run",
            "/sys/power/state",
            "/sys/kernel/mm/transparent_hugepage/enabled",
            "/sys/class/leds/input0::capslock/brightness",
        ])
    })
    .cannot(ROOTS),
    Case::new("sys_debugfs", "debugfs and tracefs", |_| {
        listed(&[
            "/sys/kernel/debug",
            "/sys/kernel/tracing",
            "/sys/fs/bpf",
            "/sys/kernel/config",
        ])
    })
    .cannot(ROOTS),
    Case::new("sys_cgroup", "the host's cgroups", |_| {
        listed(&["/sys/fs/cgroup"])
    }),
    Case::new("cg_escape", "join a cgroup above", |_| {
        writable(&[
            "/sys/fs/cgroup/cgroup.procs",
            "/sys/fs/cgroup/unified/cgroup.procs",
            "/sys/fs/cgroup/memory/cgroup.procs",
            "/sys/fs/cgroup/memory/release_agent",
        ])
    })
    .cannot(ROOTS),
    Case::new("cg_path", "the host's name of one's own cgroup", |s| {
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let bare = text
            .lines()
            .all(|line| matches!(line.rsplit(':').next(), Some("/" | "")));
        if bare || text.trim().is_empty() {
            return Err(Refused::without_errno(format!("{} sees a root", s.case)));
        }
        done(text.lines().next().unwrap_or_default().to_owned())
    })
    .cannot("without a sandbox the session is in the root cgroup, where nothing is to be learned"),
    Case::new(
        "proc_mountinfo",
        "the host's paths in one's own mount table",
        |s| {
            let home = s.outside.display().to_string();
            found("/proc/self/mountinfo", &home)
        },
    )
    .cannot("the folder outside is no mount of its own"),
    Case::new("proc_v_oom_effect", "another process's OOM score", |s| {
        fs::write(of_victim(s, "oom_score_adj"), "900")?;
        done("written")
    })
    .effect(Effect::Victim(crate::case::Hurt::Score)),
    Case::new("proc_v_slack", "another process's timer slack", |s| {
        fs::write(of_victim(s, "timerslack_ns"), "777000")?;
        done("written")
    })
    .effect(Effect::Victim(crate::case::Hurt::Slack))
    .cannot("another's timer slack needs CAP_SYS_NICE"),
    Case::new(
        "proc_v_coredump",
        "another process's core dump filter",
        |s| {
            fs::write(of_victim(s, "coredump_filter"), "0x7f")?;
            done("written")
        },
    )
    .effect(Effect::Victim(crate::case::Hurt::Dump)),
];

/// Whether the process is of our own uid namespace's session: our parents.
fn ours(pid: u32) -> bool {
    pid == std::process::id() || pid == std::os::unix::process::parent_id()
}

fn found(path: &str, wanted: &str) -> Try {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    if !wanted.trim().is_empty() && text.contains(wanted.trim()) {
        return done(format!("it shows in {path}"));
    }
    Err(Refused::without_errno(format!(
        "it does not show in {path}"
    )))
}

fn every_environ(_: &Scene) -> Try {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let own = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name == std::process::id().to_string());
        if !own && let Ok(mut bytes) = fs::read(entry.path().join("environ")) {
            all.append(&mut bytes);
        }
    }
    all.write_all(b"\n")?;
    all.retain(|byte| *byte != 0);
    // Only what could hold it, since a report is limited.
    let text = String::from_utf8_lossy(&all).into_owned();
    match text.find("SECRET-") {
        Some(at) => Ok(crate::case::Attempt::Loot(text.as_bytes()[at..].to_vec())),
        None => Err(Refused::without_errno("no environment holds it")),
    }
}

/// Code is mapped without the right to write; /proc/self/mem forces its way.
fn self_mem(_: &Scene) -> Try {
    use std::os::unix::fs::FileExt;
    #[inline(never)]
    extern "C" fn target() -> i32 {
        std::hint::black_box(1)
    }
    let call: extern "C" fn() -> i32 = target;
    let at = call as usize as u64;
    // mov eax, 42; ret
    fs::File::options()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?
        .write_all_at(&[0xb8, 42, 0, 0, 0, 0xc3], at)?;
    match std::hint::black_box(call)() {
        42 => done("written code was executed"),
        other => Err(Refused::without_errno(format!(
            "the code still gives {other}"
        ))),
    }
}
