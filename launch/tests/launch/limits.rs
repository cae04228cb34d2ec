//! What an agent can't exhaust: descriptors, processes, locked memory, file sizes, names; and that nothing stays of what it did.

use agentd_launch::plan::MountFlags;

use crate::harness::*;

fn python_with(mode: agentd_launch::plan::Mode, script: &str) -> Option<Ended> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        skip("python3", "/usr/bin/python3 is not there");
        return None;
    }
    let mut plan = plan(mode, &["/usr/bin/python3", "-I", "-c", script]);
    let both = |limit: u64| (limit, limit);
    for (resource, (soft, hard)) in [
        (libc::RLIMIT_FSIZE, both(1 << 20)),
        (libc::RLIMIT_NPROC, both(16)),
        (libc::RLIMIT_NOFILE, both(64)),
        (libc::RLIMIT_MEMLOCK, both(1 << 20)),
        (libc::RLIMIT_SIGPENDING, both(8)),
        (libc::RLIMIT_CORE, both(0)),
    ] {
        plan.rlimit(resource, soft, hard);
    }
    plan.tmpfs("/many", 1 << 30, 120_000, 0o1777, MountFlags::NONE);
    Some(run_with(mode, &plan, &[]))
}

#[test]
fn limits_hold_and_cant_be_raised() {
    const SCRIPT: &str = r#"
import ctypes, errno, os, resource, signal
libc = ctypes.CDLL(None, use_errno=True)
def most(attempt):
    count = 0
    try:
        while count < 1000:
            attempt()
            count += 1
    except OSError as e:
        return errno.errorcode[e.errno]
    return count
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def child():
    if os.fork() == 0:
        signal.pause()
print(most(child))
print(most(lambda: os.open('/dev/null', os.O_RDONLY)))
os.closerange(3, 100)
page = ctypes.create_string_buffer(64 << 20)
print(libc.mlock(page, 64 << 20), errno.errorcode[ctypes.get_errno()])
big = os.open('/tmp/big', os.O_WRONLY | os.O_CREAT)
for size in (2 << 20, (1 << 63) - 1):
    try:
        os.ftruncate(big, size)
    except OSError as e:
        print(errno.errorcode[e.errno])
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
def queue():
    if libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), 0) != 0:
        raise OSError(ctypes.get_errno(), '')
print(most(queue))
for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
    try:
        resource.setrlimit(limit, (1 << 30, 1 << 30))
        print('raised')
    except (OSError, ValueError):
        pass
os.kill(-1, signal.SIGKILL)
"#;
    for mode in modes() {
        let Some(ended) = python_with(mode, SCRIPT) else {
            return;
        };
        assert_eq!(
            ended.stdout, "EAGAIN\nEMFILE\n-1 ENOMEM\nEFBIG\nEFBIG\nEAGAIN\n",
            "{}",
            ended.stderr
        );
    }
}

/// Whatever an agent leaves in its private folders goes with the mounts; nobody walks through it.
#[test]
fn a_tree_of_a_hundred_thousand_levels_goes_with_the_sandbox() {
    const SCRIPT: &str = r#"
import os
os.chdir('/many')
name = 'd' * 255
depth = 0
try:
    while True:
        os.mkdir(name)
        os.chdir(name)
        depth += 1
except OSError as e:
    print(depth, e.strerror)
"#;
    for mode in modes() {
        let Some(ended) = python_with(mode, SCRIPT) else {
            return;
        };
        let (depth, why) = ended.stdout.split_once(' ').expect("two words");
        assert!(
            depth.parse::<u32>().is_ok_and(|depth| depth > 100_000),
            "{}",
            ended.stdout
        );
        assert_eq!(why, "No space left on device\n");
    }
}
