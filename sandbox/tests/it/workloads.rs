//! Real programs in real sandboxes, under the policies that ship: what people need works, and what the policies promise
//! to stop is stopped. In both modes where this user can; a program that is not installed is a counted skip.

use super::harness::{self, Ended, inside_id, is_root, modes, skip};
use super::load;
use agentd_kernel::grant::{self, Kind};
use agentd_kernel::probe::{Feature, HostCaps, ProbeState, Roots, probe_host};
use agentd_launch::layers::LAYER_SECCOMP_NOTIFY;
use agentd_launch::plan::Mode as WireMode;
use agentd_sandbox::{Access, CallerContext, GrantInput, LaunchInputs, Mode, StdioMode, plan};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A launch to be: a policy that extends `coding`, a workspace, a program.
pub(super) struct Launch {
    pub(super) mode: WireMode,
    pub(super) policy: String,
    workspace: tempfile::TempDir,
}

impl Launch {
    pub(super) fn new(mode: WireMode) -> Self {
        let workspace = tempfile::Builder::new()
            .prefix("agentd-workload-")
            .tempdir()
            .expect("a folder");
        if mode == WireMode::User && is_root() {
            std::os::unix::fs::chown(workspace.path(), Some(inside_id()), Some(inside_id()))
                .expect("chown");
        }
        Self {
            mode,
            policy: "extends = \"coding\"".into(),
            workspace,
        }
    }

    /// A file of the caller's in the workspace, there before the launch.
    pub(super) fn put(&self, path: &str, content: &str) {
        let path = self.workspace.path().join(path);
        let owner = self.workspace.path().metadata().expect("metadata").uid();
        for folder in path
            .ancestors()
            .skip(1)
            .take_while(|a| !a.exists())
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            std::fs::create_dir(folder).expect("made");
            std::os::unix::fs::chown(folder, Some(owner), Some(owner)).expect("chown");
        }
        std::fs::write(&path, content).expect("written");
        std::os::unix::fs::chown(&path, Some(owner), Some(owner)).expect("chown");
    }

    /// Gives everything in the workspace to its owner.
    fn own_all(&self) {
        let owner = self.workspace.path().metadata().expect("metadata").uid();
        let mut left = vec![self.workspace.path().to_owned()];
        while let Some(folder) = left.pop() {
            for entry in std::fs::read_dir(folder)
                .expect("readable")
                .map(|e| e.expect("readable").path())
            {
                std::os::unix::fs::lchown(&entry, Some(owner), Some(owner)).expect("chown");
                if entry.is_dir() {
                    left.push(entry);
                }
            }
        }
    }

    pub(super) fn run(&self, argv: &[&str]) -> Ended {
        let policy = load(&self.policy).expect("the policy loads");
        let home = std::env::var_os("HOME").map(PathBuf::from);
        let exe = Path::new(argv[0]);
        let caller = CallerContext {
            home: home.clone(),
            workspace: Some(self.workspace.path().into()),
            exe: exe.is_absolute().then(|| exe.into()),
            keep: Vec::new(),
        };
        // In user mode a root caller plays an ordinary one, who could not open root's files.
        let openable = |path: &Path| {
            path.exists()
                && (self.mode == WireMode::Root || !is_root() || !path.starts_with("/root"))
        };
        let wanted: Vec<_> = policy
            .wanted_grants(&caller)
            .into_iter()
            .filter(|w| openable(&w.src))
            .collect();
        let inputs = LaunchInputs {
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            exe_hint: caller.exe.clone(),
            cwd: None,
            caller_env: std::env::vars().collect(),
            extra_env: [].into(),
            workspace: caller.workspace.clone(),
            grants: wanted
                .iter()
                .map(|w| GrantInput {
                    dst: w.dst.clone(),
                    access: w.access,
                })
                .collect(),
            stdio: StdioMode::Pipes,
            uid: inside_id(),
            gid: inside_id(),
            user_name: "tester".into(),
            caller_home: home,
            home: None,
            home_files: Vec::new(),
            trust: None,
            name: "workload".into(),
            mode: if self.mode == WireMode::Root {
                Mode::Root
            } else {
                Mode::User
            },
            lifeline_grace_ms: 1000,
            resolver: None,
            direct: false,
        };
        let planned = plan(&policy, &inputs, &host()).unwrap_or_else(|e| panic!("{e}"));
        let grants: Vec<_> = wanted
            .iter()
            .map(|w| match w.kind {
                Kind::Content => grant::open(&w.src, w.kind, w.access).expect("opened"),
                _ => harness::grant(self.mode, &w.src, w.src.metadata().map_or(0, |m| m.uid())),
            })
            .collect();
        let mut sandbox = harness::as_broker(self.mode, || {
            harness::spawn(self.mode, &planned.wire, &grants)
        });
        let (mut fds, layers) = sandbox.ready();
        let listeners = fds.split_off(3);
        let refusals = usize::from(layers & LAYER_SECCOMP_NOTIFY != 0);
        assert_eq!(listeners.len(), planned.listeners.len() + refusals);
        let stderr = fds.remove(2);
        let reader = std::thread::spawn(move || harness::read_all(stderr));
        let stdout = harness::read_all(fds.remove(1));
        let stderr = reader.join().expect("read");
        let (status, _) = sandbox.receive().expect("the program's end");
        assert_eq!(layers & planned.required_layers, planned.required_layers);
        Ended {
            status,
            layers,
            stdout,
            stderr,
            init_code: sandbox.wait(),
        }
    }

    pub(super) fn shell(&self, script: &str) -> Ended {
        self.run(&["/bin/bash", "-c", script])
    }
}

/// This host, as the harness uses it: it makes neither cgroups nor time namespaces.
fn host() -> HostCaps {
    let mut caps = probe_host(&Roots::default());
    for feature in [
        Feature::CgroupMemory,
        Feature::CgroupPids,
        Feature::CgroupCpu,
        Feature::TimeNs,
    ] {
        caps.observe(
            feature,
            ProbeState::Unsupported {
                why: "the harness makes none".into(),
            },
        );
    }
    caps
}

pub(super) fn installed(program: &str) -> bool {
    let there = ["/usr/bin", "/usr/local/bin", "/bin"]
        .iter()
        .any(|d| Path::new(d).join(program).exists());
    if !there {
        skip(program, "it is not installed in a system folder");
    }
    there
}

/// Runs a script in every mode, where `program` is installed, and wants this on stdout.
fn works(program: &str, script: &str, expected: &str) {
    if !installed(program) {
        return;
    }
    for mode in modes() {
        let ended = Launch::new(mode).shell(script);
        assert_eq!(
            (ended.code(), ended.stdout.trim()),
            (Some(0), expected),
            "{mode:?}: {ended:#?}"
        );
    }
}

#[test]
fn bash_and_coreutils_work() {
    works(
        "bash",
        "set -e; mkdir -p a/b; echo one > a/b/f; cp -r a c; mv c/b c/d; ln -s d c/l; cat c/l/f; ls -l c >/dev/null; \
         find . -name f | sort | xargs wc -l >/dev/null; (sleep 0.01 & wait); cat <(echo two); mktemp >/dev/null; \
         test \"$(id -u)\" != 0; whoami >/dev/null; rm -r a c; truncate -s 10 t; stat -c %s t",
        "one\ntwo\n10",
    );
}

#[test]
fn python_works_with_threads_processes_and_sockets() {
    works(
        "python3",
        r#"/usr/bin/python3 - <<'E'
import subprocess, threading, multiprocessing, socket, tempfile, os, asyncio, ssl, json
def f(q): q.put(os.getpid())
q = multiprocessing.Queue(); p = multiprocessing.Process(target=f, args=(q,)); p.start(); assert q.get() == p.pid; p.join()
t = threading.Thread(target=lambda: None); t.start(); t.join()
s = socket.create_server(("127.0.0.1", 0)); c = socket.create_connection(s.getsockname()); c.close()
async def main():
    p = await asyncio.create_subprocess_exec("true"); assert await p.wait() == 0
asyncio.run(main())
tempfile.NamedTemporaryFile().close(); ssl.create_default_context()
print(subprocess.check_output(["echo", "ok"], text=True).strip())
E"#,
        "ok",
    );
}

#[test]
fn node_works_with_workers_children_and_servers() {
    works(
        "node",
        r#"node -e '
const os=require("os"), http=require("http"), {execSync}=require("child_process"), {Worker}=require("worker_threads"), fs=require("fs");
os.networkInterfaces(); os.cpus(); fs.writeFileSync("x","y"); fs.watch(".").close();
const s=http.createServer((q,r)=>r.end("ok")).listen(0,"127.0.0.1",()=>http.get({port:s.address().port,host:"127.0.0.1"},r=>r.on("data",d=>{
  const w=new Worker("require(\"worker_threads\").parentPort.postMessage(1)",{eval:true});
  w.on("message",()=>{console.log(d+execSync("echo !").toString().trim());s.close();w.terminate()})})));'"#,
        "ok!",
    );
}

#[test]
fn git_makes_commits_branches_and_clones() {
    works(
        "git",
        "set -e; export GIT_CONFIG_GLOBAL=/dev/null; git init -q -b main r; cd r; git config user.email a@b.c; git config user.name n; \
         echo x > f; git add f; git commit -qm one; git checkout -qb side; echo y >> f; git commit -qam two; git checkout -q main; \
         git merge -q side; cd ..; git clone -q r s; cd s; git log --oneline | wc -l; git gc -q; git fsck 2>/dev/null",
        "2",
    );
}

#[test]
fn git_works_in_the_callers_repository_too() {
    if !installed("git") {
        return;
    }
    for mode in modes() {
        let launch = Launch::new(mode);
        let git = std::process::Command::new("git")
            .args(["init", "-q", "-b", "main"])
            .current_dir(launch.workspace.path())
            .status();
        assert!(git.is_ok_and(|s| s.success()));
        launch.own_all();
        let ended = launch.shell(
            "set -e; export GIT_AUTHOR_NAME=n GIT_AUTHOR_EMAIL=a@b.c GIT_COMMITTER_NAME=n GIT_COMMITTER_EMAIL=a@b.c; \
             echo x > f; git add .; git commit -qm one; test \"$(git ls-files)\" = f; git checkout -qb side; echo y > f; git stash -q; git stash pop -q; git commit -qam two; git rebase -q main; git log --oneline | wc -l",
        );
        assert_eq!(
            (ended.code(), ended.stdout.trim()),
            (Some(0), "2"),
            "{mode:?}: {ended:#?}"
        );
    }
}

#[test]
fn c_programs_are_compiled_and_run() {
    works(
        "gcc",
        "set -e; printf '#include <stdio.h>\\nint main(){puts(\"built\");}' > a.c; gcc -O1 -pipe a.c -o a; ./a; \
         cp a /tmp/b; /tmp/b; cp a ~/c; ~/c",
        "built\nbuilt\nbuilt",
    );
}

#[test]
fn cargo_builds_and_tests_a_crate() {
    let cargo = std::env::var_os("HOME").map(|h| Path::new(&h).join(".cargo/bin/cargo"));
    if !cargo.as_ref().is_some_and(|c| c.exists()) {
        skip("cargo", "there is no ~/.cargo/bin/cargo");
        return;
    }
    for mode in modes() {
        if mode == WireMode::User && is_root() {
            continue; // root's toolchain is not an ordinary user's to open
        }
        let launch = Launch::new(mode);
        launch.put(
            "Cargo.toml",
            "[package]\nname = \"x\"\nversion = \"0.1.0\"\nedition = \"2021\"\n",
        );
        launch.put(
            "build.rs",
            "fn main() { println!(\"cargo:rustc-env=WORD=crab\"); }\n",
        );
        launch.put(
            "src/main.rs",
            "fn main() { println!(env!(\"WORD\")); }\n#[test] fn one() { assert_eq!(1, 1); }\n",
        );
        let ended = launch.shell(
            "cargo run -q --offline && cargo test -q --offline 2>&1 | grep -c 'test result: ok'",
        );
        assert_eq!(
            (ended.code(), ended.stdout.trim()),
            (Some(0), "crab\n1"),
            "{ended:#?}"
        );
        let built = launch
            .workspace
            .path()
            .join("target/debug/x")
            .metadata()
            .expect("built");
        assert_eq!(
            built.uid(),
            launch.workspace.path().metadata().expect("metadata").uid(),
            "files belong to the caller"
        );
    }
}

#[test]
fn claude_code_starts() {
    let Some(program) = std::env::var_os("AGENTD_TEST_CLAUDE").map(PathBuf::from) else {
        skip("claude", "AGENTD_TEST_CLAUDE does not name the program");
        return;
    };
    for mode in modes() {
        let ended = Launch::new(mode).run(&[program.to_str().expect("UTF-8"), "--version"]);
        assert_eq!(ended.code(), Some(0), "{mode:?}: {ended:#?}");
        assert!(ended.stdout.contains("Claude Code"), "{ended:#?}");
    }
}

#[test]
fn toolchains_are_read_only_and_hooks_stay_as_they_are() {
    for mode in modes() {
        let launch = Launch::new(mode);
        launch.put(".git/hooks/pre-commit", "#!/bin/sh\n");
        let ended = launch.shell(
            "for f in /usr/x /etc/x /x .git/hooks/x .git/hooks/pre-commit; do touch $f 2>&1 | sed 's/.*: //'; done; \
             mv .git/hooks .git/h 2>&1 | sed 's/.*: //'; mv .git g 2>&1 | sed 's/.*: //'; test -e g && echo moved; true",
        );
        let read_only = "Read-only file system";
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(lines[..5], [read_only; 5], "{mode:?}: {ended:#?}");
        assert_eq!(
            lines[5..],
            ["Device or resource busy", "Device or resource busy"],
            "{mode:?}: {ended:#?}"
        );
        assert!(
            launch
                .workspace
                .path()
                .join(".git/hooks/pre-commit")
                .exists()
        );
    }
}

#[test]
fn what_the_policy_denies_cannot_be_read_listed_or_renamed_away() {
    for mode in modes() {
        let mut launch = Launch::new(mode);
        launch.policy += "\n[fs]\ndeny = [\"${workspace}/.env\", \"${workspace}/secrets\", \"${workspace}/absent\"]\n";
        launch.put(".env", "KEY=hidden-value\n");
        launch.put("secrets/key", "hidden-value\n");
        let ended = launch.shell("cat .env; ls secrets; cat secrets/key; mv .env e; mv secrets s; grep -r hidden-value . ; rm -rf .env secrets; true");
        assert_eq!(ended.stdout, "", "{mode:?}: {ended:#?}");
        assert_eq!(
            std::fs::read_to_string(launch.workspace.path().join("secrets/key"))
                .expect("still there"),
            "hidden-value\n"
        );
        assert!(launch.workspace.path().join(".env").exists());
    }
}

#[test]
fn the_filter_refuses_what_is_in_no_set() {
    const SCRIPT: &str = r#"
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(nr, *args):
    ctypes.set_errno(0)
    r = libc.syscall(nr, *[ctypes.c_long(a) for a in args])
    return errno.errorcode[ctypes.get_errno()] if r < 0 else "ok"
def sock(*args):
    try:
        socket.socket(*args).close(); return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
print("mount", call(165, 0, 0, 0, 0, 0))
print("unshare-user", call(272, 0x10000000))
print("io_uring", call(425, 1, 0))
print("vmsplice", call(278, 0, 0, 0, 0))
print("modify_ldt", call(154, 0, 0, 0))
print("personality", call(135, 0x40000))
print("prctl", call(157, 35, 0, 0, 0, 0))
print("clone3", call(435, 0, 0))
print("unknown", call(999))
print("vsock", sock(40, socket.SOCK_STREAM))
print("packet", sock(17, socket.SOCK_RAW))
print("raw", sock(socket.AF_INET, socket.SOCK_RAW, 1))
print("mptcp", sock(socket.AF_INET, socket.SOCK_STREAM, 262))
print("tcp", sock(socket.AF_INET, socket.SOCK_STREAM))
print("route", sock(16, socket.SOCK_RAW, 0))
print("audit", sock(16, socket.SOCK_RAW, 9))
open("f", "w").close()
for mode in (0o4755, 0o2755, 0o1777):
    try:
        os.chmod("f", mode); print("chmod", oct(mode), "ok")
    except OSError as e:
        print("chmod", oct(mode), errno.errorcode[e.errno])
try:
    socket.create_connection(("10.0.0.1", 80), timeout=1)
except OSError as e:
    print("connect", errno.errorcode[e.errno])
"#;
    if !installed("python3") {
        return;
    }
    for mode in modes() {
        let launch = Launch::new(mode);
        launch.put("probe.py", SCRIPT);
        let ended = launch.run(&["/usr/bin/python3", "probe.py"]);
        assert_eq!(
            ended.stdout.lines().collect::<Vec<_>>(),
            [
                "mount EPERM",
                "unshare-user EPERM",
                "io_uring EPERM",
                "vmsplice EPERM",
                "modify_ldt EPERM",
                "personality EPERM",
                "prctl EPERM",
                "clone3 ENOSYS",
                "unknown ENOSYS",
                "vsock EAFNOSUPPORT",
                "packet EAFNOSUPPORT",
                "raw EPROTONOSUPPORT",
                "mptcp EPROTONOSUPPORT",
                "tcp ok",
                "route ok",
                "audit EPROTONOSUPPORT",
                "chmod 0o4755 EPERM",
                "chmod 0o2755 EPERM",
                "chmod 0o1777 ok",
                "connect ENETUNREACH",
            ],
            "{mode:?}: {ended:#?}"
        );
    }
}

#[test]
fn the_environment_and_the_home_are_the_agents_own() {
    for mode in modes() {
        let ended = Launch::new(mode).shell("env | cut -d= -f1 | sort | tr '\\n' ' '; ls -A ~ | grep -v -e '^\\.[a-z]*$'; touch ~/x && stat -c '%a %u' ~");
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        for name in ["CARGO_MANIFEST_DIR", "LD_LIBRARY_PATH", "GIT_SSL_CAINFO"] {
            assert!(!ended.stdout.contains(name), "{name} got in: {ended:#?}");
        }
        for name in [
            "ANTHROPIC_BASE_URL",
            "HTTPS_PROXY",
            "AGENTD_BUS",
            "HOME",
            "TMPDIR",
        ] {
            assert!(ended.stdout.contains(name), "{name} is missing: {ended:#?}");
        }
        assert!(
            ended.stdout.ends_with(&format!("700 {}\n", inside_id())),
            "{ended:#?}"
        );
    }
}

#[test]
fn writable_places_have_an_end() {
    for mode in modes() {
        let mut launch = Launch::new(mode);
        launch.policy +=
            "\n[limits]\ntmp = \"2MiB\"\ntmp_inodes = 300\nfsize = \"1MiB\"\nnofile = 70\n";
        let ended = launch.shell(
            "ulimit -n; ulimit -c; for i in 1 2 3; do head -c 1000000 /dev/zero > /tmp/f$i 2>/dev/null || echo full; done; rm /tmp/*; \
             (for i in $(seq 400); do : > /tmp/n$i || exit 1; done) 2>/dev/null || echo inodes; \
             (head -c 2000000 /dev/zero > big) 2>/dev/null; stat -c %s big",
        );
        assert_eq!(
            ended.stdout.lines().collect::<Vec<_>>(),
            ["70", "0", "full", "inodes", "1048576"],
            "{mode:?}: {ended:#?}"
        );
    }
}

#[test]
fn a_read_only_grant_is_read_only_whatever_is_tried() {
    for mode in modes() {
        let mut launch = Launch::new(mode);
        launch.policy += "\n[fs]\nread = [\"${workspace}/vendor\"]\n";
        launch.put("vendor/lib.c", "x\n");
        let ended = launch.shell(
            "chmod 777 vendor/lib.c; touch -d 2000-01-01 vendor/lib.c; echo y > vendor/lib.c; rm vendor/lib.c; mv vendor v; \
             ln vendor/lib.c l && echo y > l; cat vendor/lib.c",
        );
        assert_eq!(ended.stdout, "x\n", "{mode:?}: {ended:#?}");
        assert_eq!(
            std::fs::read_to_string(launch.workspace.path().join("vendor/lib.c")).expect("there"),
            "x\n"
        );
    }
}

#[test]
fn wanted_grants_and_the_plan_agree() {
    // What agentctl is asked to open is what the plan accepts, also for a writable folder of HOME.
    let mut launch = Launch::new(modes()[0]);
    launch.policy += "\n[fs]\nwrite = [\"~/agentd-no-such-folder\"]\n";
    let policy = load(&launch.policy).expect("loads");
    let caller = CallerContext {
        home: Some("/home/x".into()),
        ..CallerContext::default()
    };
    let wanted = policy.wanted_grants(&caller);
    assert!(
        wanted
            .iter()
            .any(|w| w.access == Access::ReadWrite && w.optional)
    );
    assert_eq!(launch.shell("true").code(), Some(0));
}
