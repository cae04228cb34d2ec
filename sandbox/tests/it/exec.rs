//! Where code comes from, from inside real sandboxes in both modes: what is refused under a tight policy is refused, the ways
//! around it too, and the programs of the system run all the same.

use super::harness::{Ended, modes};
use super::workloads::{Launch, installed};
use agentd_launch::layers::{LAYER_LANDLOCK_NET, LAYER_MDWE, LAYER_MEMFD_NOEXEC};
use agentd_launch::plan::Mode;

/// A writable workspace and nothing that may be executed there.
const TIGHT: &str = "extends = \"base\"\n[fs]\nwrite = [\"${workspace}\"]\n[degrade]\nallow = [\"cgroup-limits\"]\n";

/// Python that calls the kernel directly; `call` gives the name of the error, or `ok`.
const PRELUDE: &str = r#"
import ctypes, errno, mmap, os, shutil, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def raw(nr, *args):
    ctypes.set_errno(0)
    return libc.syscall(ctypes.c_long(nr), *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
def call(nr, *args):
    return errno.errorcode[ctypes.get_errno()] if raw(nr, *args) < 0 else "ok"
def attempt(f):
    try:
        f(); return "ok"
    except OSError as e:
        return errno.errorcode.get(e.errno, "error")
def child(*argv, **how):
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
        return "ran" if b"payload ran" in done.stdout else "refused"
    except OSError as e:
        return errno.errorcode[e.errno]
LDSO = "/lib64/ld-linux-x86-64.so.2"
def payload(path, mode=0o755):
    shutil.copyfile("/usr/bin/echo", path); os.chmod(path, mode); return path
"#;

/// Runs a script under a policy in each mode and compares what it says.
fn says(policy: &str, script: &str, expected: fn(Mode) -> Vec<&'static str>) {
    if !installed("python3") {
        return;
    }
    for mode in modes() {
        let ended = run(mode, policy, script);
        let said: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(said, expected(mode), "{mode:?}: {ended:#?}");
    }
}

fn run(mode: Mode, policy: &str, script: &str) -> Ended {
    let mut launch = Launch::new(mode);
    launch.policy = policy.into();
    launch.put("probe.py", &format!("{PRELUDE}{script}"));
    launch.run(&["/usr/bin/python3", "-I", "probe.py"])
}

#[test]
fn nothing_writable_is_executed_by_any_way() {
    let script = r#"
work = os.getcwd()
for place in (work, "/tmp", "/var/tmp", "/dev/shm", os.environ["HOME"]):
    at = payload(place + "/dropped")
    fd = os.open(at, os.O_RDONLY)
    pathfd = os.open(at, os.O_PATH)
    argv = (ctypes.c_char_p * 3)(b"dropped", b"payload ran", None)
    print(child(at, "payload ran"), child(LDSO, at, "payload ran"), child(f"/proc/self/fd/{fd}", "payload ran", pass_fds=[fd]),
          call(322, fd, b"", argv, None, 0x1000), call(322, pathfd, b"", argv, None, 0x1000), attempt(lambda: mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)))
    link = place + "/library.so"
    shutil.copyfile(os.path.realpath("/lib/x86_64-linux-gnu/libm.so.6"), link)
    print(attempt(lambda: ctypes.CDLL(link)), child("/usr/bin/echo", "payload ran", env={"LD_PRELOAD": link}))
"#;
    // A preload that can't be mapped is left out, and the program of the system runs.
    let expected = |_| {
        let line = "EACCES refused EACCES EACCES EACCES EPERM";
        [line, "error ran"].into_iter().cycle().take(10).collect()
    };
    says(TIGHT, script, expected);
}

#[test]
fn a_line_of_the_policy_lets_the_workspace_be_executed() {
    let policy = TIGHT.replace("[degrade]", "exec = [\"${workspace}\"]\n[degrade]");
    let script = r#"
at = payload("./dropped")
print(child(at, "payload ran"), child(LDSO, at, "payload ran"))
print(child(payload("/tmp/dropped"), "payload ran"))
"#;
    says(&policy, script, |_| vec!["ran ran", "EACCES"]);
}

#[test]
fn memory_is_never_written_and_then_executed() {
    let script = r#"
R, W, X = 1, 2, 4
PRIVATE, SHARED, ANON = 2, 1, 0x20
def map(prot, flags, fd=-1):
    return raw(9, 0, 4096, prot, flags, fd, 0)
print("rwx", call(9, 0, 4096, R|W|X, PRIVATE|ANON, -1, 0), "rx", call(9, 0, 4096, R|X, PRIVATE|ANON, -1, 0),
      "shared", call(9, 0, 4096, R|X, SHARED|ANON, -1, 0), "huge", call(9, 0, 1 << 21, R|W, PRIVATE|ANON|0x40000, -1, 0))
page = map(R|W, PRIVATE|ANON)
print("mprotect", call(10, page, 4096, R|X), "all", call(10, page, 4096, R|W|X), "only", call(10, page, 4096, X),
      "pkey", call(329, page, 4096, R|X, -1), "growsdown", call(10, page, 4096, R|X|0x01000000))
system = os.open("/usr/bin/true", os.O_RDONLY)
code = map(R|X, PRIVATE, system)
print("code", "ok" if code > 0 else "refused", "and writable", call(10, code, 4096, R|W|X), "shared code", call(9, 0, 4096, R|X, SHARED, system, 0),
      "writable code", call(9, 0, 4096, R|W|X, PRIVATE, system, 0))
# write first, then ask for the right that the mapping never had
data = map(R|W, PRIVATE, system)
print("then", call(10, data, 4096, R|X))
# a mapping that was executable is made writable, written, and wants to be executable again
print("write", call(10, code, 4096, R|W), "back", call(10, code, 4096, R|X))
print("mem", attempt(lambda: os.open("/proc/self/mem", os.O_RDWR)), "remap", call(216, page, 4096, 0, 0, 0),
      "personality", call(135, 0x400000), "shm", call(29, 0, 4096, 0o1600), call(30, 0, 0, 0o100000))
"#;
    says(TIGHT, script, |_| {
        vec![
            "rwx EACCES rx EACCES shared EACCES huge ENOMEM",
            "mprotect EACCES all EACCES only EACCES pkey EACCES growsdown EACCES",
            "code ok and writable EACCES shared code EACCES writable code EACCES",
            "then EACCES",
            "write ok back EACCES",
            "mem EROFS remap EPERM personality EPERM shm EPERM EPERM",
        ]
    });
}

#[test]
fn just_in_time_compilers_have_a_line_of_their_own() {
    let policy = format!("{TIGHT}[exec]\nwrite_exec = true\n");
    let script = r#"
print(call(9, 0, 4096, 7, 0x22, -1, 0))
page = raw(9, 0, 4096, 3, 0x22, -1, 0)
print(call(10, page, 4096, 5))
"#;
    says(&policy, script, |_| vec!["ok", "ok"]);
}

#[test]
fn the_kernel_denies_write_and_execute_too_where_it_can() {
    for mode in modes() {
        let script = "print(libc.prctl(66, 0, 0, 0, 0))";
        let ended = run(mode, TIGHT, script);
        // What PR_GET_MDWE says in the program, after exec, is what the launcher reported.
        let expected = if ended.layers & LAYER_MDWE != 0 {
            "1"
        } else {
            "-1"
        };
        assert_eq!(ended.stdout.trim(), expected, "{mode:?}: {ended:#?}");
        let with_jit = run(mode, &format!("{TIGHT}[exec]\nwrite_exec = true\n"), script);
        assert_eq!(with_jit.layers & LAYER_MDWE, 0);
        assert_ne!(with_jit.stdout.trim(), "1");
    }
}

/// Ways to execute what is in a memory file, if there is one.
const MEMORY_FILE: &str = r#"
def memory_file(flags):
    fd = raw(319, b"m", flags)
    if fd < 0:
        return errno.errorcode[ctypes.get_errno()]
    os.write(fd, open("/usr/bin/echo", "rb").read())
    chmod = attempt(lambda: os.fchmod(fd, 0o755))
    os.set_inheritable(fd, True)
    argv = (ctypes.c_char_p * 3)(b"echo", b"payload ran", None)
    readable = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    return " ".join(["made", chmod, child(f"/proc/self/fd/{readable}", "payload ran", pass_fds=[readable]), call(322, readable, b"", argv, None, 0x1000)])
for flags in (0, 1, 2, 8, 10, 0x10):
    print(memory_file(flags))
"#;

#[test]
fn memory_files_are_data_or_not_at_all() {
    let none = format!("{TIGHT}[exec]\nmemfd = \"none\"\n");
    says(&none, MEMORY_FILE, |_| vec!["ENOSYS"; 6]);
    if !std::path::Path::new("/proc/sys/vm/memfd_noexec").exists() {
        let why = "before Linux 6.3 memory files are made and executed, or not made";
        return super::harness::skip("memfd-noexec", why);
    }
    let data = format!("{TIGHT}[exec]\nmemfd = \"data\"\n");
    says(&data, MEMORY_FILE, |mode| {
        let never = "made EPERM EACCES EACCES";
        // plain, CLOEXEC, ALLOW_SEALING, NOEXEC_SEAL, both, MFD_EXEC
        match mode {
            Mode::Root => vec![never, never, never, never, never, "EACCES"],
            Mode::User => vec!["ENOSYS", "ENOSYS", "ENOSYS", never, never, "ENOSYS"],
        }
    });
    for mode in modes() {
        for policy in [&data, &none] {
            let layers = run(mode, policy, "").layers;
            let by_sysctl = layers & LAYER_MEMFD_NOEXEC != 0;
            assert_eq!(by_sysctl, mode == Mode::Root, "{mode:?}");
        }
    }
    let any = format!("{TIGHT}[exec]\nmemfd = \"any\"\n");
    says(&any, MEMORY_FILE, |_| {
        // The last way replaces the prober, which had said nothing yet.
        vec!["payload ran"]
    });
}

#[test]
fn programs_of_the_system_run_without_writable_code() {
    let script = r#"
export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
set -e
/lib64/ld-linux-x86-64.so.2 /bin/echo ld.so
python3 -c 'import json, re, ssl, sqlite3, ctypes, multiprocessing; print("python", re.sub("a+", "b", "caab"), ctypes.CDLL(None).abs(-3))'
echo "aXb" | grep -P 'a(?=X)' > /dev/null && echo grep
perl -e 'print "perl\n"' 
if command -v git > /dev/null; then
  git init -q r && cd r && git config user.email a@b && git config user.name a && echo x > f && git add f && git commit -qm m && git log --format=tformat:git
else echo git; fi
awk 'BEGIN { print "awk" }'; sed -n p <<< sed; tar cf /tmp/t.tar f && echo tar
"#;
    for mode in modes() {
        if ["python3", "perl"].iter().any(|p| !installed(p)) {
            return;
        }
        let mut launch = Launch::new(mode);
        launch.policy = format!("{TIGHT}[exec]\nmemfd = \"none\"\n");
        let ended = launch.shell(script);
        assert_eq!(
            ended.stdout.lines().collect::<Vec<_>>(),
            [
                "ld.so",
                "python cbb 3",
                "grep",
                "perl",
                "git",
                "awk",
                "sed",
                "tar"
            ],
            "{mode:?}: {ended:#?}"
        );
    }
}

#[test]
fn ports_are_those_of_the_policy() {
    let script = r#"
def listen(port):
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port)); s.listen(); return s
print(attempt(lambda: listen(3000)), attempt(lambda: listen(3001)), attempt(lambda: listen(0)))
print(attempt(lambda: socket.create_connection(("127.0.0.1", 8765), 5)), attempt(lambda: socket.create_connection(("127.0.0.1", 9), 5)))
print(attempt(lambda: socket.socket().connect(("127.0.0.1", 3001))))
u = socket.socket(socket.AF_UNIX); u.bind("/tmp/s"); print(attempt(u.listen))
for option in (23, 30, 31):
    print(attempt(lambda: socket.socket().setsockopt(6, option, b"mptcp" if option == 31 else 1)))
print(attempt(lambda: socket.socket().sendto(b"x", 0x20000000, ("127.0.0.1", 8765))))
"#;
    let abi = agentd_kernel::sys::security::landlock::abi();
    if abi < 4 {
        return super::harness::skip("landlock-net", "Landlock here is older than ABI 4");
    }
    let common = ["ENOPROTOOPT", "ENOPROTOOPT", "ENOPROTOOPT", "ENOTSUP"];
    let policy = |ports: &str| format!("{TIGHT}[net]\nports = {ports}\n");
    for mode in modes() {
        let said = |ports: &str| {
            let ended = run(mode, &policy(ports), script);
            let ruled = ended.layers & LAYER_LANDLOCK_NET != 0;
            assert_eq!(ruled, ports != "\"any\"", "{mode:?} {ports}");
            let lines: Vec<String> = ended.stdout.lines().map(str::to_owned).collect();
            (lines, ended)
        };
        for (ports, expected) in [
            (
                "[]",
                ["EACCES EACCES EACCES", "ok EACCES", "EACCES", "EACCES"],
            ),
            ("[3000]", ["ok EACCES EACCES", "ok EACCES", "EACCES", "ok"]),
            (
                "\"any\"",
                ["ok ok ok", "ok ECONNREFUSED", "ECONNREFUSED", "ok"],
            ),
        ] {
            let (lines, ended) = said(ports);
            let expected: Vec<&str> = expected.into_iter().chain(common).collect();
            assert_eq!(lines, expected, "{mode:?} {ports}: {ended:#?}");
        }
    }
}

#[test]
fn locks_are_a_set_of_their_own() {
    let script = r#"
import fcntl
ro = open("/etc/ld.so.cache", "rb")
own = open("own", "w+b")
for f in (ro, own):
    print(attempt(lambda: fcntl.flock(f, fcntl.LOCK_SH)), attempt(lambda: fcntl.lockf(f, fcntl.LOCK_SH if f is ro else fcntl.LOCK_EX)),
          call(72, f.fileno(), 37, b"\0" * 32), attempt(lambda: fcntl.fcntl(f, 1024, 0)))
"#;
    let without = TIGHT.replace(
        "[degrade]",
        "[syscalls]\nallow = { remove = [\"locks\"] }\n[degrade]",
    );
    says(&without, script, |_| vec!["ENOLCK ENOLCK ENOLCK ENOLCK"; 2]);
    says(TIGHT, script, |_| {
        // The third meets the second; a lease is the owner's, and only while nobody writes.
        vec!["ok ok ok EACCES", "ok ok EAGAIN EAGAIN"]
    });
}

#[test]
fn debugging_reaches_ones_own_processes_and_not_the_init() {
    let script = r#"
import signal, time
pid = os.fork()
if pid == 0:
    signal.pause(); os._exit(0)
def words(p, nr):
    buffer = ctypes.create_string_buffer(8)
    own = ctypes.create_string_buffer(b"readable")
    local = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(own), 8)
    return call(nr, p, local, 1, remote, 1, 0)
for p in (pid, 1):
    print(call(101, 0x4206, p, 0, 0), words(os.getpid() if p == pid else 1, 310), words(os.getpid() if p == pid else 1, 311), call(312, os.getpid(), p, 0, 1, 1), call(438, raw(434, p, 0), 0, 0))
os.kill(pid, 9)
"#;
    let with = TIGHT.replace(
        "[degrade]",
        "[exec]\nwrite_exec = true\n[syscalls]\nallow = [\"debug\"]\n[degrade]",
    );
    says(&with, script, |_| {
        vec!["ok ok ok ok EPERM", "EPERM EPERM EPERM EPERM EPERM"]
    });
    says(TIGHT, script, |_| vec!["EPERM EPERM EPERM EPERM EPERM"; 2]);
}

#[test]
fn the_init_has_the_agents_uid_and_cannot_be_weakened() {
    let script = r#"
import resource
limits = struct.pack("QQ", 0, 0)
print(call(302, 1, 1, limits, 0), call(302, 1, 7, limits, 0), call(141, 0, 1, 19), call(141, 1, 1, 19), call(141, 2, 0, 19), call(251, 1, 1, 3 << 13),
      call(251, 3, os.getuid(), 3 << 13), call(144, 1, 5, bytes(4)), call(203, 1, 8, bytes(8)), call(314, 1, bytes(48), 0))
print(attempt(lambda: os.kill(1, 9)), attempt(lambda: os.kill(1, 19)), attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(1), 9)))
print(attempt(lambda: os.nice(5)), attempt(lambda: resource.setrlimit(7, (64, 64))), attempt(lambda: os.sched_setaffinity(0, os.sched_getaffinity(0))))
"#;
    let script = format!("import signal, struct\n{script}");
    says(TIGHT, &script, |_| {
        const REFUSED: &str = "EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM EPERM";
        // Before Landlock's signal scope the signal goes out, and the kernel drops it at the init of a namespace.
        let signals = if agentd_kernel::sys::security::landlock::abi() < 6 {
            "ok ok ok"
        } else {
            "EPERM EPERM EPERM"
        };
        vec![REFUSED, signals, "ok ok ok"]
    });
}
