//! What the program must not be able to do, tried from inside.

use agentd_launch::layers::*;
use agentd_launch::plan::{ExecFlags, Mode, MountFlags};
use agentd_launch::status::{Status, Step};

use crate::harness::*;

/// Python that calls the kernel directly and prints errno names.
const PRELUDE: &str = "
import ctypes, errno, os, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(name, nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    print(name, 'ok' if r >= 0 else errno.errorcode[ctypes.get_errno()])
    return r
";

fn attempt(script: &str, expected: &str) {
    for mode in modes() {
        let Some(ended) = python(mode, &format!("{PRELUDE}{script}")) else {
            return;
        };
        assert_eq!(
            ended.stdout.trim(),
            expected.trim(),
            "{mode:?}: {}",
            ended.stderr
        );
    }
}

#[test]
fn set_id_bits_cannot_be_set_by_any_call() {
    attempt(
        "
os.chdir('/tmp'); f = os.open('f', os.O_CREAT|os.O_RDWR, 0o755)
call('chmod', 90, b'f', 0o4755)
call('fchmod', 91, f, 0o2755)
call('fchmodat', 268, -100, b'f', 0o4755)
call('fchmodat2', 452, -100, b'f', 0o4755, 0)
call('open', 2, b'a', os.O_CREAT|os.O_RDWR, 0o4755)
call('openat', 257, -100, b'b', os.O_CREAT|os.O_RDWR, 0o4755)
call('tmpfile', 257, -100, b'.', os.O_TMPFILE|os.O_RDWR, 0o4755)
call('openat2', 437, -100, b'c', (ctypes.c_uint64*3)(os.O_CREAT|os.O_RDWR, 0o4755, 0), 24)
call('creat', 85, b'd', 0o4755)
call('mknod', 133, b'e', 0o104755, 0)
call('mknodat', 259, -100, b'g', 0o104755, 0)
call('allowed', 90, b'f', 0o1777)
print(sorted(os.listdir('.')), oct(os.stat('f').st_mode))",
        "
chmod EPERM
fchmod EPERM
fchmodat EPERM
fchmodat2 ENOSYS
open EPERM
openat EPERM
tmpfile EPERM
openat2 ENOSYS
creat EPERM
mknod EPERM
mknodat EPERM
allowed ok
['f'] 0o101777",
    );
}

#[test]
fn the_x32_abi_is_absent() {
    attempt(
        "call('x32', 0x40000000 | 90, b'/tmp', 0o4755)",
        "x32 ENOSYS",
    );
}

#[test]
fn the_32_bit_entry_kills() {
    // mov eax, 15 (chmod of i386); int 0x80; ret
    let script = "
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ|mmap.PROT_WRITE|mmap.PROT_EXEC)
code.write(bytes.fromhex('b80f000000cd80c3'))
print('before', flush=True)
ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
print('after')";
    for mode in modes() {
        let Some(ended) = python(mode, &format!("{PRELUDE}{script}")) else {
            return;
        };
        assert_eq!(
            (ended.stdout.as_str(), ended.signal()),
            ("before\n", Some(libc::SIGSYS)),
            "{}",
            ended.stderr
        );
    }
}

#[test]
fn what_would_undo_the_sandbox_is_refused() {
    attempt(
        "
for name, nr, args in (
    ('mount', 165, (b'x', b'/tmp', b'tmpfs', 0, 0)), ('umount2', 166, (b'/proc', 2)), ('pivot_root', 155, (b'/tmp', b'/tmp')),
    ('chroot', 161, (b'/tmp',)), ('unshare', 272, (0x10000000,)), ('unshare-time', 272, (0x80,)), ('clone-newns', 56, (0x20000|17, 0)),
    ('clone-newuser', 56, (0x10000000|17, 0)), ('clone3', 435, (0, 0)), ('setns', 308, (0, 0)), ('ptrace', 101, (0, 0)),
    ('process_vm_readv', 310, (1, 0, 0, 0, 0, 0)), ('pidfd_getfd', 438, (0, 0, 0)), ('bpf', 321, (0, 0, 0)),
    ('perf_event_open', 298, (0, 0, 0, 0, 0)), ('io_uring_setup', 425, (1, 0)), ('userfaultfd', 323, (0,)),
    ('keyctl', 250, (0, -3)), ('add_key', 248, (0, 0, 0, 0, 0)), ('request_key', 249, (0, 0, 0, 0)),
    ('open_tree', 428, (-100, b'/', 1)), ('fsopen', 430, (b'tmpfs', 0)), ('mount_setattr', 442, (-100, b'/', 0, 0, 0)),
    ('open_by_handle_at', 304, (0, 0, 0)), ('sethostname', 170, (b'x', 1)), ('tiocsti', 16, (0, 0x5412, b'x')),
    ('tiocsti-high', 16, (0, 0x100005412, b'x')), ('tioclinux', 16, (0, 0x541c, b'x'))):
    call(name, nr, *args)",
        "
mount EPERM
umount2 EPERM
pivot_root EPERM
chroot EPERM
unshare EPERM
unshare-time EPERM
clone-newns EPERM
clone-newuser EPERM
clone3 ENOSYS
setns EPERM
ptrace EPERM
process_vm_readv EPERM
pidfd_getfd EPERM
bpf EPERM
perf_event_open EPERM
io_uring_setup EPERM
userfaultfd EPERM
keyctl EPERM
add_key EPERM
request_key EPERM
open_tree EPERM
fsopen EPERM
mount_setattr EPERM
open_by_handle_at EPERM
sethostname EPERM
tiocsti EPERM
tiocsti-high EPERM
tioclinux EPERM",
    );
}

#[test]
fn every_capability_set_is_empty_and_nothing_fills_it() {
    for mode in modes() {
        let ended = shell(
            mode,
            "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status",
        );
        let none = "0000000000000000";
        let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
            .map(|set| format!("{set}:\t{none}\n"))
            .concat();
        assert_eq!(ended.stdout, format!("{sets}NoNewPrivs:\t1\nSeccomp:\t2\n"));
    }
}

#[test]
fn the_plans_filter_is_loaded_over_the_base() {
    // ld nr; jeq getcwd (79) → EACCES; allow
    let filter: [[u8; 8]; 4] = [
        [0x20, 0, 0, 0, 0, 0, 0, 0],
        [0x15, 0, 0, 1, 79, 0, 0, 0],
        [0x06, 0, 0, 0, 13, 0, 5, 0],
        [0x06, 0, 0, 0, 0, 0, 0xff, 0x7f],
    ];
    for mode in modes() {
        let mut plan = plan(
            mode,
            &[
                "/usr/bin/python3",
                "-I",
                "-c",
                "import os\ntry: os.getcwd()\nexcept OSError as e: print(e.errno)\ntry: os.chmod('/tmp', 0o4777)\nexcept OSError as e: print(e.errno)",
            ],
        );
        plan.seccomp(filter.concat());
        assert_eq!(run_with(mode, &plan, &[]).stdout, "13\n1\n");
    }
}

#[test]
fn landlock_rules_hold_and_an_old_kernel_fails_closed() {
    const READ: u64 = 1 << 2 | 1 << 3;
    const EXECUTE: u64 = 1;
    if agentd_kernel::sys::security::landlock::abi() == 0 {
        return skip("landlock", "this kernel has no Landlock");
    }
    for mode in modes() {
        let script = "cat /etc/open; cat /etc/closed; ls /usr/bin/env";
        let mut allowed = plan(mode, &["/bin/sh", "-c", script]);
        allowed
            .file("/etc/open", 0o644, "open\n")
            .file("/etc/closed", 0o644, "closed\n")
            .require(LAYER_LANDLOCK);
        allowed.landlock(READ | EXECUTE, 0, 0, 1).landlock_path(
            "/etc/open",
            READ,
            MountFlags::NONE,
        );
        allowed.landlock_path("/etc/ld.so.cache", READ, MountFlags::OPTIONAL);
        for path in ["/usr", "/bin", "/lib", "/lib64", "/nowhere"] {
            allowed.landlock_path(path, READ | EXECUTE, MountFlags::OPTIONAL);
        }
        let mut too_new = plan(mode, &["/bin/true"]);
        too_new.landlock(READ, 0, 0, 255);
        let bytes = too_new.finish().unwrap();
        let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        assert_eq!(
            (failure.step, failure.errno),
            (Step::Landlock, libc::EOPNOTSUPP)
        );
        let ended = run_with(mode, &allowed, &[]);
        assert_eq!(ended.stdout, "open\n/usr/bin/env\n", "{}", ended.stderr);
        assert!(
            ended.stderr.contains("/etc/closed: Permission denied"),
            "{}",
            ended.stderr
        );
        assert_ne!(ended.layers & LAYER_LANDLOCK, 0);
    }
}

#[test]
fn limits_are_set_and_cannot_be_raised() {
    for mode in modes() {
        let mut plan = plan(
            mode,
            &[
                "/bin/sh",
                "-c",
                "ulimit -n; ulimit -Hn; ulimit -n 65; echo $?",
            ],
        );
        plan.rlimit(7, 32, 64);
        let ended = run_with(mode, &plan, &[]);
        assert!(ended.stdout.starts_with("32\n64\n"), "{}", ended.stdout);
        assert!(!ended.stdout.ends_with("\n0\n"), "{}", ended.stdout);
        assert_ne!(ended.layers & LAYER_RLIMITS, 0);
    }
}

#[test]
fn a_plan_below_the_floor_is_refused_by_the_launcher_too() {
    for mode in modes() {
        let mut plan = plan(mode, &["/bin/true"]);
        plan.bind("/usr", "/again", MountFlags::NONE);
        let bytes = plan.finish().unwrap();
        let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        assert_eq!(failure.step, Step::Floor);
        let sandbox = as_broker(mode, || spawn(mode, &bytes[..bytes.len() - 8], &[]));
        let Some((Status::Failed(failure), _)) = sandbox.receive() else {
            panic!("the launch should fail")
        };
        assert_eq!(failure.step, Step::ParsePlan);
    }
}

fn has_python() -> bool {
    let there = std::path::Path::new("/usr/bin/python3").exists();
    if !there {
        skip("python3", "/usr/bin/python3 is not there");
    }
    there
}

/// Runs Python under a plan that `change` has had a hand in; its output and the layers.
fn changed(
    mode: Mode,
    script: &str,
    change: impl FnOnce(&mut agentd_launch::plan::PlanBuilder),
) -> Ended {
    let script = format!("{PRELUDE}{script}");
    let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-c", &script]);
    change(&mut plan);
    run_with(mode, &plan, &[])
}

#[test]
fn memory_files_are_never_executed_where_root_can_say_so() {
    if !has_python() {
        return;
    }
    if !std::path::Path::new("/proc/sys/vm/memfd_noexec").exists() {
        return skip("memfd-noexec", "this kernel has no vm.memfd_noexec");
    }
    let script = "
f = call('create', 319, b'm', 0)
print(oct(os.fstat(f).st_mode), open('/proc/sys/vm/memfd_noexec').read().strip())
try: os.fchmod(f, 0o700); print('chmod ok')
except OSError as e: print(errno.errorcode[e.errno])
call('executable', 319, b'm', 0x10)";
    for mode in modes() {
        let with = changed(mode, script, |plan| {
            plan.exec_policy(ExecFlags::MEMFD_NOEXEC);
        });
        let without = changed(mode, script, |_| {});
        let never = "create ok\n0o100666 2\nEPERM\nexecutable EACCES\n";
        // Whatever the host says for everybody, which the init reads in its namespace.
        let host = std::fs::read_to_string("/proc/sys/vm/memfd_noexec").unwrap();
        match mode {
            Mode::Root => {
                assert_eq!(with.stdout, never, "{}", with.stderr);
                assert_ne!(with.layers & LAYER_MEMFD_NOEXEC, 0);
            }
            Mode::User => assert_eq!(with.stdout, without.stdout, "{}", with.stderr),
        }
        let everywhere = host.trim() == "2";
        assert_eq!(without.layers & LAYER_MEMFD_NOEXEC != 0, everywhere);
        if mode == Mode::User && !everywhere {
            let mut plan = plan(mode, &["/bin/true"]);
            plan.exec_policy(ExecFlags::MEMFD_NOEXEC)
                .require(LAYER_MEMFD_NOEXEC);
            let bytes = plan.finish().unwrap();
            let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
            let Some((Status::Failed(failure), _)) = sandbox.receive() else {
                panic!("the launch should fail")
            };
            assert_eq!(
                (failure.step, failure.detail),
                (Step::Require, LAYER_MEMFD_NOEXEC)
            );
        }
    }
}

#[test]
fn memory_never_becomes_executable_under_mdwe() {
    if !has_python() {
        return;
    }
    let script = "
print(libc.prctl(66, 0, 0, 0, 0))
call('anonymous', 9, 0, 4096, 7, 0x22, -1, 0)
libc.mmap.restype = ctypes.c_void_p
page = libc.mmap(None, ctypes.c_size_t(4096), 3, 0x22, -1, ctypes.c_long(0))
call('protected', 10, page, 4096, 5)";
    for mode in modes() {
        let with = changed(mode, script, |plan| {
            plan.exec_policy(ExecFlags::MDWE);
        });
        if with.layers & LAYER_MDWE == 0 {
            return skip("mdwe", "this kernel has no PR_SET_MDWE");
        }
        assert_eq!(
            with.stdout, "1\nanonymous EACCES\nprotected EACCES\n",
            "{}",
            with.stderr
        );
        let without = changed(mode, script, |_| {});
        assert_eq!(without.layers & LAYER_MDWE, 0);
        assert_eq!(
            without.stdout, "0\nanonymous ok\nprotected ok\n",
            "{}",
            without.stderr
        );
    }
}

#[test]
fn a_plan_may_open_tracing_and_it_stays_inside() {
    if !has_python() {
        return;
    }
    let script = "
child = os.fork()
if child == 0:
    import signal
    signal.pause()
own = ctypes.create_string_buffer(8)
vector = (ctypes.c_size_t * 2)(ctypes.addressof(own), 8)
for name, pid in (('own', child), ('init', 1)):
    call(name, 101, 0x4206, pid, 0, 0)
call('read', 310, os.getpid(), vector, 1, vector, 1, 0)
call('read init', 310, 1, vector, 1, vector, 1, 0)
call('outside', 101, 0x4206, 4000000, 0, 0)
call('descriptors', 438, os.pidfd_open(child), 0, 0)
os.kill(child, 9)";
    for mode in modes() {
        let with = changed(mode, script, |plan| {
            plan.exec_policy(ExecFlags::DEBUG);
        });
        assert_eq!(
            with.stdout,
            "own ok\ninit EPERM\nread ok\nread init EPERM\noutside ESRCH\ndescriptors EPERM\n",
            "{mode:?}: {}",
            with.stderr
        );
        let without = changed(mode, script, |_| {});
        assert!(
            without.stdout.lines().all(|line| line.ends_with("EPERM")),
            "{}",
            without.stdout
        );
    }
}

#[test]
fn tcp_ports_and_signals_are_those_that_landlock_leaves() {
    if !has_python() {
        return;
    }
    if agentd_kernel::sys::security::landlock::abi() < 6 {
        return skip("landlock-net", "this kernel's Landlock is older than ABI 6");
    }
    let script = "
import socket
def attempt(name, f):
    try: f(); print(name, 'ok')
    except OSError as e: print(name, errno.errorcode[e.errno])
def bind(port):
    s = socket.socket(); s.bind(('127.0.0.1', port)); s.listen(); return s
attempt('listen', lambda: bind(3000))
attempt('other', lambda: bind(3001))
attempt('service', lambda: socket.create_connection(('127.0.0.1', 8765), 5))
attempt('connect', lambda: socket.create_connection(('127.0.0.1', 3001), 5))
attempt('signal', lambda: os.kill(1, 0))
attempt('own', lambda: os.kill(os.getpid(), 0))";
    for mode in modes() {
        let ruled = changed(mode, script, |plan| {
            plan.tcp_listener(8765, 3)
                .landlock(0, 3, 3, 6)
                .landlock_port(3000, 3)
                .landlock_port(8765, 2);
        });
        assert_eq!(
            ruled.stdout,
            "listen ok\nother EACCES\nservice ok\nconnect EACCES\nsignal EPERM\nown ok\n",
            "{mode:?}: {}",
            ruled.stderr
        );
        assert_ne!(ruled.layers & LAYER_LANDLOCK_NET, 0);
        let free = changed(mode, script, |plan| {
            plan.tcp_listener(8765, 3);
        });
        assert_eq!(
            free.stdout,
            "listen ok\nother ok\nservice ok\nconnect ECONNREFUSED\nsignal ok\nown ok\n",
            "{mode:?}: {}",
            free.stderr
        );
        assert_eq!(free.layers & LAYER_LANDLOCK_NET, 0);
    }
}

#[test]
fn keys_of_the_caller_are_in_another_keyring() {
    // The floor refuses every call about keys; that the session keyring is another one is the layer.
    for mode in modes() {
        let ended = shell(mode, "true");
        assert_ne!(ended.layers & LAYER_KEYRING, 0);
    }
    attempt(
        "call('session', 250, 0, -3, 0); call('link', 250, 8, -4, -3); call('add', 248, b'user', b'x', b'y', 1, -3)",
        "session EPERM\nlink EPERM\nadd EPERM",
    );
}
