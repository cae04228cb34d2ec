//! Calls that the plan's filter holds: refused by the init, told by the init, and refused whoever reads, or does not, or is dead.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use agentd_launch::layers::LAYER_SECCOMP_NOTIFY;
use agentd_launch::plan::{ExecFlags, Mode, PlanBuilder};
use agentd_launch::refusal::{REFUSAL_LEN, Refusal};
use agentd_launch::status::Status;

use crate::calls::load;
use crate::harness::*;

const MOUNT: u32 = 165;
const PTRACE: u32 = 101;
/// In nobody's base filter: the plan's alone holds it.
const GETCWD: u32 = 79;

/// ld nr; jeq mount, ptrace, getcwd → hold; allow
const FILTER: [[u8; 8]; 6] = [
    [0x20, 0, 0, 0, 0, 0, 0, 0],
    [0x15, 0, 2, 0, MOUNT as u8, 0, 0, 0],
    [0x15, 0, 1, 0, PTRACE as u8, 0, 0, 0],
    [0x15, 0, 0, 1, GETCWD as u8, 0, 0, 0],
    [0x06, 0, 0, 0, 0, 0, 0xc0, 0x7f],
    [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f],
];

const PRELUDE: &str = "
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(nr, *args):
    r = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) for a in args])
    return 'ok' if r >= 0 else errno.errorcode[ctypes.get_errno()]
";

/// Python makes the calls itself, so that it is one process of a known name.
fn telling(mode: Mode, script: &str) -> PlanBuilder {
    let script = format!("{PRELUDE}{script}");
    let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-S", "-c", &script]);
    plan.env("PYTHONDONTWRITEBYTECODE=1")
        .exec_policy(ExecFlags::TELL)
        .seccomp(FILTER.concat());
    plan
}

fn launch(mode: Mode, plan: &PlanBuilder) -> Sandbox {
    let bytes = plan.finish().expect("a valid plan");
    as_broker(mode, || spawn(mode, &bytes, &[]))
}

/// Everything that was told, once nobody can tell any more.
fn told(pipe: OwnedFd) -> Vec<Refusal> {
    let mut bytes = Vec::new();
    let mut pipe = File::from(pipe);
    pipe.read_to_end(&mut bytes).expect("whole records");
    assert_eq!(bytes.len() % REFUSAL_LEN, 0);
    bytes
        .as_chunks::<REFUSAL_LEN>()
        .0
        .iter()
        .map(Refusal::decode)
        .collect()
}

#[test]
fn a_refused_call_is_refused_and_told() {
    for mode in modes() {
        let plan = telling(
            mode,
            "print(call(165, 7, 8, 9), call(101, 0), call(79, 0, 0), call(39))",
        );
        let mut sandbox = launch(mode, &plan);
        let (mut fds, layers) = sandbox.ready();
        assert_eq!(layers & LAYER_SECCOMP_NOTIFY, LAYER_SECCOMP_NOTIFY);
        let refusals = fds.pop().expect("the refusals come last");
        assert_eq!(
            read_all(fds.remove(1)),
            "EPERM EPERM EPERM ok\n",
            "{mode:?}"
        );
        sandbox.wait();
        let calls: Vec<_> = told(refusals)
            .into_iter()
            .map(|refusal| {
                assert!(refusal.time_ns > 0);
                assert_eq!(refusal.lost, 0);
                refusal.call.expect("a call")
            })
            .collect();
        let mount = calls
            .iter()
            .find(|call| call.number == MOUNT)
            .unwrap_or_else(|| panic!("{mode:?}: {calls:?}"));
        assert_eq!(mount.args, [7, 8, 9]);
        assert_eq!(&mount.comm[..7], b"python3");
        assert!(mount.pid > 1, "{mount:?}");
        for number in [PTRACE, GETCWD] {
            assert!(calls.iter().any(|call| call.number == number), "{calls:?}");
        }
    }
}

#[test]
fn refusing_waits_for_no_reader_and_says_how_many_nobody_heard_of() {
    const CALLS: u64 = 5000;
    for mode in modes() {
        let plan = telling(
            mode,
            &format!(
                "
print(set(call(165, n, 0, 0) for n in range({CALLS})), flush=True)
sys.stdin.readline()
print(call(165, 1, 2, 3))"
            ),
        );
        let mut sandbox = launch(mode, &plan);
        let (mut fds, _) = sandbox.ready();
        let refusals = File::from(fds.pop().expect("refusals"));
        let (stdin, stdout) = (fds.remove(0), fds.remove(0));
        let mut stdout = File::from(stdout);
        let mut line = [0; 10];
        stdout.read_exact(&mut line).expect("an answer");
        assert_eq!(&line, b"{'EPERM'}\n", "{mode:?}");
        // The pipe is full. What is taken out of it makes room for the number of those that were lost.
        let mut heard: Vec<u8> = vec![0; REFUSAL_LEN * 100];
        (&refusals).read_exact(&mut heard).expect("a hundred");
        rustix::io::write(&stdin, b"go\n").expect("it reads");
        drop(stdin);
        sandbox.wait();
        let mut rest = told(refusals.into());
        let last = rest.pop().expect("more than a hundred");
        assert_eq!(last.call.expect("the last call").args, [1, 2, 3]);
        let heard = rest.iter().filter(|told| told.call.is_some()).count() as u64 + 100;
        assert!(last.lost > 0);
        assert_eq!(heard + last.lost, CALLS, "{mode:?}");
    }
}

#[test]
fn a_call_is_refused_when_agentd_and_every_reader_are_gone() {
    for mode in modes() {
        let plan = telling(
            mode,
            "
sys.stdin.readline()
print(call(165, 0, 0, 0), call(79, 0, 0), call(165, 0, 0, 0))",
        );
        let mut sandbox = launch(mode, &plan);
        let (mut fds, _) = sandbox.ready();
        drop(fds.pop());
        // The broker still lives, so the sandbox does.
        sandbox.agentd_lifeline = None;
        let (stdin, stdout) = (fds.remove(0), fds.remove(0));
        rustix::io::write(&stdin, b"go\n").expect("it reads");
        assert_eq!(read_all(stdout), "EPERM EPERM EPERM\n", "{mode:?}");
        assert_eq!(sandbox.wait(), Some(0));
    }
}

#[test]
fn under_somebody_elses_listener_calls_are_refused_untold() {
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    for mode in modes() {
        let plan = telling(
            mode,
            "print(call(165, 0, 0, 0), call(101, 0), call(79, 0, 0))",
        );
        let bytes = plan.finish().expect("a valid plan");
        let (mut sandbox, _listener) = as_broker(mode, || {
            let allow = libc::sock_filter {
                code: 0x06,
                jt: 0,
                jf: 0,
                k: ALLOW,
            };
            let listener = load(&[allow]);
            (spawn(mode, &bytes, &[]), listener)
        });
        let (mut fds, layers) = sandbox.ready();
        assert_eq!(layers & LAYER_SECCOMP_NOTIFY, 0, "{mode:?}");
        assert_eq!(fds.len(), 3);
        // The base filter's own EPERM; what the plan's filter alone holds is refused by the kernel.
        assert_eq!(read_all(fds.remove(1)), "EPERM EPERM ENOSYS\n", "{mode:?}");
        assert!(matches!(
            sandbox.receive(),
            Some((Status::Exited { .. }, _))
        ));
        sandbox.wait();
    }
}
