//! `agentctl run` with no daemon: it starts one, once, and says why if it can't.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{FileType, Mode};

use crate::fake::{agentctl, bind, serve_for_ever};

/// A folder with a copy of agentctl and an `agentd` of ours next to it.
struct Install {
    dir: tempfile::TempDir,
}

impl Install {
    fn new(agentd: &str) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let script = dir.path().join("agentd");
        // Both are written by a child: what this process has open for writing, a child that another test's thread has just
        // forked has open, too, until its exec, and nobody can execute it meanwhile (ETXTBSY).
        let status = Command::new("sh")
            .args([
                "-euc",
                "cp \"$3\" \"$4\"; printf '%s' \"$1\" > \"$2\"",
                "sh",
                agentd,
            ])
            .arg(&script)
            .arg(env!("CARGO_BIN_EXE_agentctl"))
            .arg(dir.path().join("agentctl"))
            .status();
        assert!(status.expect("sh runs").success());
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self) -> Command {
        let mut command = Command::new(self.path("agentctl"));
        let like = agentctl();
        command
            .env_clear()
            .envs(like.get_envs().filter_map(|(k, v)| Some((k, v?))));
        command
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .env("AGENTD_RUNTIME_DIR", self.path("run"))
            .env("AGENTD_STATE_DIR", self.path("state"))
            .args(["run", "exit", "7"])
            .stdin(Stdio::null());
        command
    }
}

/// An `agentd` that writes its runtime directory, notification socket and pid to a FIFO and stays.
const TELLS_US: &str = "#!/bin/sh\nprintf '%s %s %s\\n' \"$2\" \"$NOTIFY_SOCKET\" $$ > \"$2/../fifo\"\nexec sleep 1000\n";

#[test]
fn four_at_once_start_one_daemon_and_all_run() {
    let install = Install::new(TELLS_US);
    let fifo = install.path("fifo");
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, mode, 0).expect("mkfifo");
    // Opened for writing too, so that it never ends: a second daemon's line would be seen.
    let fifo = File::options()
        .read(true)
        .write(true)
        .open(&fifo)
        .expect("open");
    let children: Vec<_> = (0..4)
        .map(|_| {
            install
                .run()
                .stderr(Stdio::piped())
                .spawn()
                .expect("agentctl runs")
        })
        .collect();
    let mut lines = BufReader::new(&fifo);
    let mut line = String::new();
    lines.read_line(&mut line).expect("a daemon was started");
    let [dir, notify, pid] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("the script wrote {line:?}")
    };
    let pid = pid
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .expect("a pid");
    let session = rustix::process::getsid(Some(pid)).expect("it lives");
    assert_eq!(
        session, pid,
        "in a session of its own, or the terminal's end would reach it"
    );

    let listener = bind(Path::new(dir));
    std::thread::spawn(move || serve_for_ever(listener, Arc::default()));
    let socket = UnixDatagram::unbound().expect("socket");
    socket
        .send_to(b"STATUS=almost", notify)
        .expect("agentctl listens");
    socket
        .send_to(b"READY=1\nSTATUS=serving", notify)
        .expect("agentctl listens");
    for child in children {
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
    (&fifo).write_all(b"end\n").expect("fits");
    line.clear();
    lines.read_line(&mut line).expect("our own line");
    assert_eq!(line, "end\n", "a second daemon was started");
}

#[test]
fn a_daemon_that_does_not_start_is_explained() {
    let install = Install::new("#!/bin/sh\necho 'agentd: the state is on fire' >&2\nexit 3\n");
    let output = install.run().output().expect("agentctl runs");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        text.contains("the state is on fire") && text.contains("exit status: 3"),
        "{text}"
    );
    assert!(text.contains("try: agentctl doctor"), "{text}");
}

#[test]
fn a_missing_daemon_program_is_named() {
    let install = Install::new("");
    std::fs::remove_file(install.path("agentd")).expect("remove");
    let output = install
        .run()
        .env("PATH", "/nonexistent")
        .output()
        .expect("agentctl runs");
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(text.contains("no program `agentd`"), "{text}");
}
