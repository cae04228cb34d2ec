//! Signals to a process of the host. Each case has a signal of its own, which the victim counts.

use super::{done, fd, in_child};
use crate::case::{Case, Effect, Hurt, Try};
use crate::raw::{Refused, call};
use crate::scene::Scene;

/// `fcntl`: which signal says that a descriptor is ready.
const F_SETSIG: i32 = 10;
/// The first real-time signal that C libraries leave alone.
const FIRST: i32 = 40;

const fn signal(
    id: &'static str,
    title: &'static str,
    number: i32,
    run: fn(&Scene) -> Try,
) -> Case {
    Case::new(id, title, run).effect(Effect::Victim(Hurt::Signal(number)))
}

pub const CASES: &[Case] = &[
    Case::new("sig_victim", "kill(pid, 0): whether it is there", |s| {
        call!(libc::SYS_kill, s.victim.pid, 0)?;
        done("it is there")
    }),
    signal("sig_kill", "kill", FIRST, |s| {
        call!(libc::SYS_kill, s.victim.pid, FIRST)?;
        done("sent")
    }),
    signal("sig_tkill", "tgkill", FIRST + 1, |s| {
        call!(libc::SYS_tgkill, s.victim.pid, s.victim.pid, FIRST + 1)?;
        done("sent")
    }),
    signal("sig_tkill_old", "tkill", FIRST + 2, |s| {
        call!(libc::SYS_tkill, s.victim.pid, FIRST + 2)?;
        done("sent")
    }),
    signal("sig_queue", "rt_sigqueueinfo", FIRST + 3, |s| {
        let mut info = info(FIRST + 3);
        call!(
            libc::SYS_rt_sigqueueinfo,
            s.victim.pid,
            FIRST + 3,
            info.as_mut_ptr()
        )?;
        done("sent")
    }),
    signal("sig_tgqueue", "rt_tgsigqueueinfo", FIRST + 4, |s| {
        let mut info = info(FIRST + 4);
        call!(
            libc::SYS_rt_tgsigqueueinfo,
            s.victim.pid,
            s.victim.pid,
            FIRST + 4,
            info.as_mut_ptr()
        )?;
        done("sent")
    }),
    signal(
        "sig_pidfd",
        "pidfd_open, pidfd_send_signal",
        FIRST + 5,
        |s| {
            let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
            call!(libc::SYS_pidfd_send_signal, pidfd, FIRST + 5, 0, 0)?;
            done("sent")
        },
    ),
    signal(
        "sig_proc_fd",
        "pidfd_send_signal on its /proc folder",
        FIRST + 6,
        |s| {
            let folder = super::opened(format!("/proc/{}", s.victim.pid), libc::O_DIRECTORY)?;
            call!(libc::SYS_pidfd_send_signal, folder, FIRST + 6, 0, 0)?;
            done("sent")
        },
    ),
    signal(
        "sig_sigio",
        "F_SETOWN and F_SETSIG: the kernel sends it",
        FIRST + 7,
        |s| owned(s, libc::F_SETOWN, s.victim.pid, FIRST + 7),
    ),
    signal("sig_sigio_ex", "F_SETOWN_EX", FIRST + 8, |s| {
        let mut owner = [0_i32, s.victim.pid];
        let ends = socket_pair()?;
        call!(libc::SYS_fcntl, ends[0], F_SETSIG, FIRST + 8)?;
        // F_OWNER_TID
        call!(libc::SYS_fcntl, ends[0], 15, owner.as_mut_ptr())?;
        wake(ends)
    }),
    signal("sig_siocspgrp", "FIOSETOWN on a socket", libc::SIGIO, |s| {
        let ends = socket_pair()?;
        let mut pid = s.victim.pid;
        call!(libc::SYS_ioctl, ends[0], 0x8901, &mut pid)?;
        wake(ends)
    }),
    signal("pr_pgid_kill", "its process group", FIRST + 9, |s| {
        call!(libc::SYS_kill, -s.victim.pid, FIRST + 9)?;
        done("sent")
    }),
    signal(
        "sig_pidfd_group",
        "its process group by pidfd",
        FIRST + 10,
        |s| {
            let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
            // PIDFD_SIGNAL_PROCESS_GROUP
            call!(libc::SYS_pidfd_send_signal, pidfd, FIRST + 10, 0, 4)?;
            done("sent")
        },
    ),
    signal(
        "sig_all",
        "everybody that may be signalled",
        libc::SIGWINCH,
        |_| {
            call!(libc::SYS_kill, -1, libc::SIGWINCH)?;
            done("sent")
        },
    ),
    signal(
        "sig_child",
        "from a child whose parent is gone",
        FIRST + 11,
        |s| {
            let status =
                in_child(|| i32::from(call!(libc::SYS_kill, s.victim.pid, FIRST + 11).is_err()))?;
            if status == 0 {
                done("sent")
            } else {
                Err(Refused::new("kill", libc::ESRCH))
            }
        },
    ),
    signal(
        "sig_mq_notify",
        "a message queue's notice to it",
        FIRST + 12,
        |s| {
            // Only for the caller itself: the pid can't be named, and that is the case.
            let timer = timer_for(s.victim.pid, FIRST + 12)?;
            done(format!("timer {timer} is set"))
        },
    )
    .cannot("the kernel takes only threads of the same process"),
    signal(
        "sig_robust",
        "the parent-death signal of a child that a host process would adopt",
        FIRST + 13,
        |s| {
            call!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, FIRST + 13, 0, 0, 0)?;
            call!(libc::SYS_kill, s.victim.pid, FIRST + 13)?;
            done("sent")
        },
    ),
];

/// `siginfo_t` as user space may make it: number, errno, code (SI_QUEUE).
fn socket_pair() -> Result<[i32; 2], Refused> {
    let mut ends = [0_i32; 2];
    call!(
        libc::SYS_socketpair,
        libc::AF_UNIX,
        libc::SOCK_STREAM,
        0,
        ends.as_mut_ptr()
    )?;
    Ok(ends)
}

/// Has the kernel send the owner of the first end its signal.
fn wake(ends: [i32; 2]) -> Try {
    call!(
        libc::SYS_fcntl,
        ends[0],
        libc::F_SETFL,
        libc::O_ASYNC | libc::O_NONBLOCK
    )?;
    call!(libc::SYS_write, ends[1], c"x", 1)?;
    done("asked for")
}

fn info(signal: i32) -> [i32; 32] {
    let mut info = [0; 32];
    info[0] = signal;
    info[2] = -1;
    info[4] = fd(std::process::id() as usize);
    info
}

fn owned(_: &Scene, command: i32, pid: i32, signal: i32) -> Try {
    let ends = socket_pair()?;
    call!(libc::SYS_fcntl, ends[0], F_SETSIG, signal)?;
    call!(libc::SYS_fcntl, ends[0], command, pid)?;
    wake(ends)
}

fn timer_for(pid: i32, signal: i32) -> Result<i32, Refused> {
    // struct sigevent: value, signo, notify (SIGEV_THREAD_ID), tid
    let mut event = [0_i32; 16];
    event[2] = signal;
    event[3] = 4;
    event[4] = pid;
    let mut timer = 0_i32;
    call!(libc::SYS_timer_create, 1, event.as_mut_ptr(), &mut timer)?;
    Ok(timer)
}
