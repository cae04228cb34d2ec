//! Memory and descriptors of a process of the host, and of those that run the sandbox itself.

use super::{done, fd, loot, loot_fd};
use crate::case::{Attempt, Case, Effect, Hurt, Opening, Try};
use crate::raw::{Refused, call};
use crate::scene::Scene;

const PTRACE_ATTACH: i32 = 16;
const PTRACE_DETACH: i32 = 17;
const PTRACE_SEIZE: i32 = 0x4206;
const PTRACE_INTERRUPT: i32 = 0x4207;
const PTRACE_PEEKDATA: i32 = 2;
const DEBUG: Opening = Opening::Has("syscalls.allow", "debug");

pub const CASES: &[Case] = &[
    Case::new("pt_seize", "PTRACE_SEIZE, then read its memory", |s| {
        call!(libc::SYS_ptrace, PTRACE_SEIZE, s.victim.pid, 0, 0)?;
        call!(libc::SYS_ptrace, PTRACE_INTERRUPT, s.victim.pid, 0, 0)?;
        peek(s)
    })
    .secret(),
    Case::new("pt_attach", "PTRACE_ATTACH, then read its memory", |s| {
        call!(libc::SYS_ptrace, PTRACE_ATTACH, s.victim.pid, 0, 0)?;
        peek(s)
    })
    .secret(),
    Case::new("pt_vmread", "process_vm_readv", |s| {
        let mut bytes = vec![0_u8; 128];
        let mut local = [bytes.as_mut_ptr().expose_provenance() as u64, 128];
        let mut remote = [s.victim.secret_at, 128];
        let count = call!(
            libc::SYS_process_vm_readv,
            s.victim.pid,
            local.as_mut_ptr(),
            1,
            remote.as_mut_ptr(),
            1,
            0
        )?;
        bytes.truncate(count);
        Ok(Attempt::Loot(bytes))
    })
    .secret(),
    Case::new("pt_vmwrite", "process_vm_writev", |s| {
        let mut word = 0xbad_u64;
        let mut local = [(&raw mut word).expose_provenance() as u64, 8];
        let mut remote = [s.victim.word_at, 8];
        call!(
            libc::SYS_process_vm_writev,
            s.victim.pid,
            local.as_mut_ptr(),
            1,
            remote.as_mut_ptr(),
            1,
            0
        )?;
        done("written")
    })
    .effect(Effect::Victim(Hurt::Memory)),
    Case::new("pt_mem_write", "/proc/PID/mem for writing", |s| {
        use std::os::unix::fs::FileExt;
        let memory = std::fs::File::options()
            .write(true)
            .open(format!("/proc/{}/mem", s.victim.pid))?;
        memory.write_all_at(&0xbad_u64.to_ne_bytes(), s.victim.word_at)?;
        done("written")
    })
    .effect(Effect::Victim(Hurt::Memory)),
    Case::new("pt_pidfd_getfd", "pidfd_getfd: its open secret file", |s| {
        let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
        let file = call!(libc::SYS_pidfd_getfd, pidfd, s.victim.fd, 0)?;
        loot_fd(fd(file))
    })
    .secret(),
    Case::new("pt_kcmp", "kcmp: whether it shares objects with us", |s| {
        call!(libc::SYS_kcmp, std::process::id(), s.victim.pid, 2, 0, 0)?;
        done("compared")
    }),
    Case::new("pt_madvise", "process_madvise on its memory", |s| {
        let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
        let mut range = [s.victim.word_at & !4095, 4096];
        call!(
            libc::SYS_process_madvise,
            pidfd,
            range.as_mut_ptr(),
            1,
            libc::MADV_COLD,
            0
        )?;
        done("advised")
    })
    .cannot("advice to others needs CAP_SYS_NICE"),
    Case::new("pt_mrelease", "process_mrelease", |s| {
        let pidfd = call!(libc::SYS_pidfd_open, s.victim.pid, 0)?;
        call!(libc::SYS_process_mrelease, pidfd, 0)?;
        done("released")
    })
    .cannot("only the dying are released"),
    Case::new("sc_lookup_dcookie", "move_pages of a host process", |s| {
        let mut pages = [s.victim.word_at & !4095];
        let mut status = [0_i32];
        call!(
            libc::SYS_move_pages,
            s.victim.pid,
            1,
            pages.as_mut_ptr(),
            0,
            status.as_mut_ptr(),
            0
        )?;
        done(format!("its page is on node {}", status[0]))
    }),
    Case::new("pt_migrate", "migrate_pages of a host process", |s| {
        let mut nodes = [1_u64];
        let from = nodes.as_mut_ptr();
        call!(libc::SYS_migrate_pages, s.victim.pid, 64, from, from)?;
        done("migrated")
    }),
    Case::new("pt_perf", "count its events with perf", |s| {
        let mut attr = [0_u64; 16];
        // type software, size 128, config context switches, exclude the kernel
        attr[0] = 1 | (128 << 32);
        attr[1] = 3;
        attr[5] = 1 << 5;
        call!(
            libc::SYS_perf_event_open,
            attr.as_mut_ptr(),
            s.victim.pid,
            -1,
            -1,
            0
        )?;
        done("a counter runs")
    }),
    Case::new(
        "pt_parent",
        "attach to the process that runs the cases",
        |_| {
            let parent = std::os::unix::process::parent_id();
            call!(libc::SYS_ptrace, PTRACE_SEIZE, parent, 0, 0)?;
            call!(libc::SYS_ptrace, PTRACE_INTERRUPT, parent, 0, 0)?;
            // It can be let go only once it has stopped.
            call!(libc::SYS_wait4, parent, 0, libc::__WALL, 0)?;
            detach(fd(parent as usize))?;
            done("attached")
        },
    )
    .opens(DEBUG),
    Case::new("pt_init", "attach to pid 1 of the sandbox", |_| {
        call!(libc::SYS_ptrace, PTRACE_SEIZE, 1, 0, 0)?;
        done("attached")
    })
    .cannot("the host's init belongs to root"),
    Case::new("pt_init_mem", "the memory of pid 1", |_| {
        std::fs::File::open("/proc/1/mem")?;
        done("open")
    })
    .cannot("the host's init belongs to root"),
    Case::new("pt_init_fd", "descriptors of pid 1", |_| {
        let names = std::fs::read_dir("/proc/1/fd")?.count();
        done(format!("{names} descriptors show"))
    })
    .emulated(super::emulated::INIT)
    .cannot("the host's init belongs to root"),
    Case::new("pt_init_getfd", "pidfd_getfd from pid 1", |_| {
        let pidfd = call!(libc::SYS_pidfd_open, 1, 0)?;
        let taken = (3..64).find_map(|number| call!(libc::SYS_pidfd_getfd, pidfd, number, 0).ok());
        match taken {
            Some(number) => done(format!("descriptor {number}")),
            None => Err(Refused::new("pidfd_getfd", libc::EPERM)),
        }
    })
    .cannot("the host's init belongs to root"),
    Case::new(
        "pt_init_maps",
        "the address space of pid 1",
        |_| match loot("/proc/1/maps")? {
            Attempt::Loot(bytes) if !bytes.is_empty() => done("read"),
            _ => Err(Refused::without_errno("empty")),
        },
    )
    .emulated(super::emulated::INIT)
    .cannot("the host's init belongs to root"),
    Case::new(
        "sc_ptrace_traceme_child",
        "trace a child of one's own",
        |_| {
            let pid = {
                // SAFETY: a case has one thread; the child asks to be traced and stops.
                match unsafe { libc::fork() } {
                    0 => {
                        let refused = call!(libc::SYS_ptrace, 0, 0, 0, 0).is_err();
                        // SAFETY: stops and ends the child.
                        unsafe {
                            if !refused {
                                libc::raise(libc::SIGSTOP);
                            }
                            libc::_exit(i32::from(refused))
                        }
                    }
                    pid => pid,
                }
            };
            let mut status = 0;
            // SAFETY: our own child, and room for its status.
            unsafe {
                libc::waitpid(pid, &raw mut status, 0);
                libc::kill(pid, libc::SIGKILL);
            }
            if libc::WIFSTOPPED(status) {
                done("the child is traced")
            } else {
                Err(Refused::new("ptrace", libc::EPERM))
            }
        },
    )
    .opens(DEBUG),
    Case::new(
        "pt_ptracer_any",
        "let the whole host trace us: PR_SET_PTRACER",
        |_| {
            call!(libc::SYS_prctl, libc::PR_SET_PTRACER, -1_i64, 0, 0, 0)?;
            done("anybody may")
        },
    )
    .cannot("it needs Yama, which not every kernel has, and gives others a right, not us"),
];

fn peek(s: &Scene) -> Try {
    let mut status = 0;
    // SAFETY: waits for the victim's stop; room for its status.
    unsafe { libc::waitpid(s.victim.pid, &raw mut status, libc::__WALL) };
    let mut bytes = Vec::new();
    for offset in 0..16 {
        let mut word = 0_u64;
        let at = s.victim.secret_at + offset * 8;
        call!(
            libc::SYS_ptrace,
            PTRACE_PEEKDATA,
            s.victim.pid,
            at,
            &mut word
        )?;
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    detach(s.victim.pid)?;
    Ok(Attempt::Loot(bytes))
}

fn detach(pid: i32) -> Result<usize, Refused> {
    call!(libc::SYS_ptrace, PTRACE_DETACH, pid, 0, 0)
}
