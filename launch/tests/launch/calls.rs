//! The launcher under a filter of exactly the calls it declares. A call that it does not declare is named, and fails the test.
//!
//! The filter is loaded before the launcher exists and looks at the instruction pointer: only calls from the launcher's own
//! code count, from its first instruction to the end of the init; the agent's are let through. What is not declared goes to a
//! listener, which writes it down and lets it go on, so that one run names all of them.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use agentd_launch::LAUNCHER_ELF;
use agentd_launch::apply::SYSTEM_CALLS;
use agentd_launch::plan::{BUS, ExecFlags, MCP, Mode, MountFlags, PlanBuilder, Stdio};
use agentd_launch::status::{Control, Lifeline, Status, Target};

use crate::harness::*;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const NOTIFY: u32 = libc::SECCOMP_RET_USER_NOTIF;

/// Where the launcher's code is: it is linked to fixed addresses.
fn code() -> std::ops::Range<u32> {
    let word = |at: usize, len: usize| {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(&LAUNCHER_ELF[at..at + len]);
        usize::try_from(u64::from_le_bytes(bytes)).unwrap()
    };
    const EXECUTABLE_LOAD: (usize, usize) = (1, 5);
    let (table, size, count) = (word(32, 8), word(54, 2), word(56, 2));
    let header = (0..count)
        .map(|n| table + n * size)
        .find(|at| (word(*at, 4), word(at + 4, 4)) == EXECUTABLE_LOAD)
        .expect("the launcher has code");
    let (start, len) = (word(header + 16, 8), word(header + 40, 8));
    u32::try_from(start).unwrap()..u32::try_from(start + len).unwrap()
}

/// Lets everything through but what the launcher's code calls and `declared` lacks.
fn filter(declared: &[u32]) -> Vec<libc::sock_filter> {
    const LD: u16 = 0x20;
    const JEQ: u16 = 0x15;
    const JGE: u16 = 0x35;
    const RET: u16 = 0x06;
    let op = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let code = code();
    let mut program = vec![
        op(LD, 12, 0, 0),
        op(JEQ, 0, 0, 3),
        op(LD, 8, 0, 0),
        op(JGE, code.start, 0, 1),
        op(JGE, code.end, 0, 1),
        op(RET, ALLOW, 0, 0),
        op(LD, 0, 0, 0),
    ];
    for number in declared {
        program.push(op(JEQ, *number, 0, 1));
        program.push(op(RET, ALLOW, 0, 0));
    }
    program.push(op(RET, NOTIFY, 0, 0));
    program
}

/// Loads it on this thread and on what this thread starts.
pub fn load(program: &[libc::sock_filter]) -> OwnedFd {
    let description = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap(),
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: numbers, and a description of `program`, which outlives the call; the listener is a new descriptor.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const description,
        );
        assert!(
            listener >= 0,
            "seccomp: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(i32::try_from(listener).unwrap())
    }
}

/// Writes down every call that is notified and lets it go on, until nobody is left under the filter.
fn listen(listener: OwnedFd) -> BTreeSet<u32> {
    const RECEIVE: libc::c_ulong = 0xc050_2100;
    const SEND: libc::c_ulong = 0xc018_2101;
    const GO_ON: u64 = 1 << 32;
    let mut seen = BTreeSet::new();
    loop {
        let mut poll = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one `struct pollfd`; then the kernel fills a `struct seccomp_notif` of 80 bytes and reads a
        // `struct seccomp_notif_resp` of 24.
        unsafe {
            if libc::poll(&raw mut poll, 1, -1) < 0 || poll.revents & libc::POLLIN == 0 {
                if poll.revents & libc::POLLHUP != 0 {
                    return seen;
                }
                continue;
            }
            let mut call = [0u64; 10];
            if libc::ioctl(listener.as_raw_fd(), RECEIVE, call.as_mut_ptr()) != 0 {
                continue; // whoever called is dead
            }
            // id; pid and flags; then struct seccomp_data, whose first half word is the number
            seen.insert(call[2] as u32);
            let answer = [call[0], 0, GO_ON];
            libc::ioctl(listener.as_raw_fd(), SEND, answer.as_ptr());
        }
    }
}

/// Runs `plan` with a filter that lets the launcher make the `declared` calls. The others that it made.
fn calls(
    mode: Mode,
    plan: &PlanBuilder,
    grants: &[OwnedFd],
    declared: &[u32],
    meanwhile: impl FnOnce(&mut Sandbox),
) -> BTreeSet<u32> {
    let bytes = plan.finish().expect("a valid plan");
    let program = filter(declared);
    let (sandbox, seen) = std::thread::scope(|scope| {
        let (send, receive) = std::sync::mpsc::channel();
        let supervisor = scope.spawn(move || listen(receive.recv().expect("a listener")));
        let mut sandbox = as_broker(mode, || {
            send.send(load(&program)).expect("somebody listens");
            spawn(mode, &bytes, grants)
        });
        meanwhile(&mut sandbox);
        (sandbox, supervisor.join().expect("the supervisor"))
    });
    drop(sandbox);
    seen
}

/// A file to be copied.
fn copied() -> [OwnedFd; 1] {
    [std::fs::File::open("/etc/passwd").unwrap().into()]
}

/// Everything that a plan can ask of the launcher without a mounted grant.
fn everything(mode: Mode, stdio: Stdio) -> PlanBuilder {
    let mut plan = plan_with(
        mode,
        &["/bin/sh", "-c", "kill -STOP $$; cat /etc/hello; read line"],
        stdio,
    );
    let copy = MountFlags::RDONLY | MountFlags::NOEXEC | MountFlags::COPY;
    plan.file("/etc/hello", 0o644, "hello\n")
        .grant_mount(0, "/etc/copied", copy)
        .dir("/srv", 0o755)
        .symlink("/etc/link", "hello")
        .tmpfs("/run", 1 << 20, 64, 0o755, MountFlags::RDONLY)
        .file("/etc/secret", 0o600, "secret")
        .mask("/etc/secret", MountFlags::NONE)
        .mask("/srv", MountFlags::NONE)
        .rlimit(7, 64, 64)
        .exec_policy(ExecFlags::MDWE | ExecFlags::MEMFD_NOEXEC | ExecFlags::TELL)
        .tcp_listener(8765, MCP)
        .unix_listener("/etc/bus.sock", BUS, 0o600)
        .seccomp([6, 0, 0, 0, 0, 0, 0xff, 0x7f]);
    const READ_AND_RUN: u64 = 1 | 1 << 2 | 1 << 3;
    match agentd_kernel::sys::security::landlock::abi() {
        4.. => {
            plan.landlock(READ_AND_RUN, 3, 0, 4)
                .landlock_path("/", READ_AND_RUN, MountFlags::NONE)
                .landlock_port(8765, 2);
        }
        // Ports came later.
        2..=3 => {
            plan.landlock(READ_AND_RUN, 0, 0, 2)
                .landlock_path("/", READ_AND_RUN, MountFlags::NONE);
        }
        _ => {}
    }
    plan
}

/// Stops, goes on, renews a lifeline, and ends the program.
fn drive(sandbox: &mut Sandbox) {
    let (fds, _) = sandbox.ready();
    assert!(matches!(
        sandbox.receive(),
        Some((Status::Stopped { .. }, _))
    ));
    let signal = |signal, target| Control::Signal { signal, target };
    sandbox.send(signal(libc::SIGCONT as u32, Target::Main));
    assert!(matches!(sandbox.receive(), Some((Status::Continued, _))));
    sandbox.agentd_lifeline = None;
    // What comes back says that the init has looked at its lifelines since.
    sandbox.send(signal(libc::SIGSTOP as u32, Target::Main));
    assert!(matches!(
        sandbox.receive(),
        Some((Status::Stopped { .. }, _))
    ));
    sandbox.agentd_lifeline = Some(sandbox.renew(Lifeline::Agentd));
    sandbox.send(signal(libc::SIGWINCH as u32, Target::Foreground));
    sandbox.send(signal(libc::SIGKILL as u32, Target::All));
    assert!(matches!(
        sandbox.receive(),
        Some((Status::Exited { .. }, _))
    ));
    drop(fds);
    sandbox.wait();
}

fn declared() -> Vec<u32> {
    SYSTEM_CALLS.iter().map(|(number, _)| *number).collect()
}

#[test]
fn the_launcher_makes_no_call_that_it_does_not_declare() {
    for mode in modes() {
        for stdio in [Stdio::Pipes, Stdio::Pty { rows: 24, cols: 80 }] {
            let unexpected = calls(
                mode,
                &everything(mode, stdio),
                &copied(),
                &declared(),
                drive,
            );
            assert!(
                unexpected.is_empty(),
                "{mode:?} {stdio:?}: system calls {unexpected:?} are not in SYSTEM_CALLS"
            );
        }
    }
}

#[test]
fn grants_scratch_folders_and_protections_take_no_other_call() {
    let placed = MountFlags::OPTIONAL | MountFlags::PLACEHOLDER;
    for mode in modes() {
        let folder = crate::cover::workspace();
        let grants =
            [(); 2].map(|()| as_broker(Mode::Root, || grant(mode, folder.path(), inside_id())));
        let mut plan = plan(
            mode,
            &["/bin/sh", "-c", "echo x > /scratch/new; rm /scratch/.env"],
        );
        plan.grant_mount(0, "/work", MountFlags::NONE)
            .overlay(1, "/scratch", 1 << 20, 64, MountFlags::NOEXEC)
            .protect("/scratch/.git/config", placed)
            .protect("/scratch/.envrc", placed)
            .protect("/work/.git/hooks", MountFlags::OPTIONAL)
            .copy("/work/.git/config", "/copies/0/config", placed)
            .mask("/work/.env", MountFlags::NONE)
            .mqueue("/dev/mqueue");
        let unexpected = calls(mode, &plan, &grants, &declared(), |sandbox| {
            let (fds, _) = sandbox.ready();
            assert!(matches!(
                sandbox.receive(),
                Some((Status::Exited { .. }, _))
            ));
            drop(fds);
            sandbox.wait();
        });
        assert!(
            unexpected.is_empty(),
            "{mode:?}: system calls {unexpected:?} are not in SYSTEM_CALLS"
        );
    }
}

#[test]
fn a_launch_that_fails_makes_no_other_call_either() {
    for mode in modes() {
        let mut plan = plan(mode, &["/nowhere/program"]);
        plan.tmpfs("/run", 1 << 20, 64, 0o755, MountFlags::NONE);
        let unexpected = calls(mode, &plan, &[], &declared(), |sandbox| {
            assert!(matches!(sandbox.receive(), Some((Status::Failed(_), _))));
            sandbox.wait();
        });
        assert!(
            unexpected.is_empty(),
            "{mode:?}: system calls {unexpected:?} are not in SYSTEM_CALLS"
        );
    }
}

#[test]
fn a_call_that_is_not_declared_is_found() {
    let but_one: Vec<u32> = declared()
        .into_iter()
        .filter(|number| i64::from(*number) != libc::SYS_keyctl)
        .collect();
    for mode in modes() {
        let unexpected = calls(
            mode,
            &everything(mode, Stdio::Pipes),
            &copied(),
            &but_one,
            drive,
        );
        assert_eq!(
            unexpected.into_iter().map(i64::from).collect::<Vec<_>>(),
            [libc::SYS_keyctl]
        );
    }
}

#[test]
fn every_call_that_is_declared_is_made() {
    let mut made = BTreeSet::new();
    for mode in modes() {
        for stdio in [Stdio::Pipes, Stdio::Pty { rows: 24, cols: 80 }] {
            made.extend(calls(mode, &everything(mode, stdio), &copied(), &[], drive));
        }
    }
    let idle: Vec<_> = SYSTEM_CALLS
        .iter()
        .filter(|(number, _)| !made.contains(number))
        .collect();
    assert!(idle.is_empty(), "declared and never made: {idle:?}");
}
