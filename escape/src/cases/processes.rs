//! What can be changed of a process of the host without a signal: priority, CPUs, limits, group.

use super::done;
use crate::case::{Case, Effect, Hurt, Try};
use crate::raw::call;
use crate::scene::Scene;

const fn hurt(id: &'static str, title: &'static str, hurt: Hurt, run: fn(&Scene) -> Try) -> Case {
    Case::new(id, title, run).effect(Effect::Victim(hurt))
}

pub const CASES: &[Case] = &[
    hurt("pr_prlimit", "prlimit: its limits", Hurt::Limit, |s| {
        let mut limit = [128_u64, 128];
        call!(
            libc::SYS_prlimit64,
            s.victim.pid,
            libc::RLIMIT_NOFILE,
            limit.as_mut_ptr(),
            0
        )?;
        done("set")
    }),
    Case::new("pr_prlimit_read", "prlimit: read its limits", |s| {
        let mut limit = [0_u64; 2];
        call!(
            libc::SYS_prlimit64,
            s.victim.pid,
            libc::RLIMIT_NOFILE,
            0,
            limit.as_mut_ptr()
        )?;
        done("read")
    }),
    hurt("pr_setprio", "setpriority", Hurt::Nice, |s| {
        call!(libc::SYS_setpriority, libc::PRIO_PROCESS, s.victim.pid, 7)?;
        done("set")
    }),
    hurt(
        "pr_setprio_user",
        "setpriority of all of the caller's processes",
        Hurt::Nice,
        |s| {
            call!(libc::SYS_setpriority, libc::PRIO_USER, s.uid, 9)?;
            done("set")
        },
    ),
    hurt("pr_affinity", "sched_setaffinity", Hurt::Affinity, |s| {
        let mut mask = [1_u64; 1];
        call!(
            libc::SYS_sched_setaffinity,
            s.victim.pid,
            8,
            mask.as_mut_ptr()
        )?;
        done("set")
    }),
    hurt("pr_policy", "sched_setscheduler", Hurt::Policy, |s| {
        let mut parameter = 0_i32;
        call!(
            libc::SYS_sched_setscheduler,
            s.victim.pid,
            libc::SCHED_BATCH,
            &mut parameter
        )?;
        done("set")
    }),
    hurt("pr_attr", "sched_setattr", Hurt::Nice, |s| {
        // struct sched_attr: size, policy, flags, nice, …
        let mut attr = [0_u32; 12];
        attr[0] = 48;
        attr[1] = libc::SCHED_BATCH as u32;
        attr[4] = 11;
        call!(libc::SYS_sched_setattr, s.victim.pid, attr.as_mut_ptr(), 0)?;
        done("set")
    }),
    hurt("pr_ioprio", "ioprio_set", Hurt::IoPriority, |s| {
        call!(libc::SYS_ioprio_set, 1, s.victim.pid, 3 << 13)?;
        done("set")
    }),
    hurt("pr_setpgid", "setpgid", Hurt::Group, |s| {
        call!(libc::SYS_setpgid, s.victim.pid, std::process::id())?;
        done("set")
    })
    .cannot("only one's own children can be moved"),
    Case::new("pr_getsid", "its session and group", |s| {
        call!(libc::SYS_getpgid, s.victim.pid)?;
        done("told")
    }),
    Case::new("pr_getprio", "its priority", |s| {
        call!(libc::SYS_getpriority, libc::PRIO_PROCESS, s.victim.pid)?;
        done("told")
    }),
    Case::new("pr_sched_read", "its scheduling policy and CPUs", |s| {
        call!(libc::SYS_sched_getscheduler, s.victim.pid)?;
        done("told")
    }),
    Case::new("pr_pidfd_open", "a pidfd of it", |s| {
        call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
        done("open")
    }),
    Case::new("pr_cpu_clock", "its CPU clock", |s| {
        let mut time = [0_i64; 2];
        let clock = (!s.victim.pid << 3) | 2;
        call!(libc::SYS_clock_gettime, clock, time.as_mut_ptr())?;
        done("told")
    }),
    Case::new("pr_robust", "get_robust_list: an address in it", |s| {
        let (mut head, mut length) = (0_usize, 0_usize);
        call!(
            libc::SYS_get_robust_list,
            s.victim.pid,
            &mut head,
            &mut length
        )?;
        done("told")
    }),
    Case::new("pr_capget", "its capabilities", |s| {
        let mut header = [0x2008_0522_u32, s.victim.pid as u32];
        let mut data = [0_u32; 6];
        call!(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr())?;
        done("told")
    }),
    Case::new(
        "pr_core_sched",
        "PR_SCHED_CORE: its core scheduling cookie",
        |s| {
            // PR_SCHED_CORE_SHARE_FROM
            call!(libc::SYS_prctl, 62, 3, s.victim.pid, 0, 0)?;
            done("shared")
        },
    )
    .cannot("this kernel may have no core scheduling"),
];
