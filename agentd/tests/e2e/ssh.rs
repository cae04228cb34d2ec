//! The caller's ssh-agent, filtered: a real ssh-agent outside, ssh-add and ssh-keygen inside.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agentd_testkit::skip;

use crate::harness::{Daemon, as_user, dir_of, is_root, modes, output, runtime, text, wait_until};
use crate::tighten::{Obedient, is_told_with};

/// An ssh-agent with two keys of its own.
struct Agent {
    child: Child,
    dir: tempfile::TempDir,
    /// By key: the fingerprint.
    keys: Vec<String>,
}

impl Agent {
    fn start(uid: u32) -> Self {
        let dir = dir_of(uid);
        let socket = dir.path().join("agent.sock");
        let mut command = as_user("/usr/bin/ssh-agent".into(), uid);
        let child = command
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .expect("ssh-agent");
        // Its name is there before it listens.
        wait_until("the ssh-agent listens", || {
            UnixStream::connect(&socket).is_ok()
        });
        let keys = ["work", "private"].map(|name| {
            let file = dir.path().join(name);
            // ssh-keygen wants a user with a passwd entry, which the tests' ordinary users don't have.
            let own = rustix::process::geteuid().as_raw();
            let mut make = as_user("/usr/bin/ssh-keygen".into(), own);
            quiet(
                make.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
                    .arg(&file),
            );
            if is_root() {
                std::os::unix::fs::chown(&file, Some(uid), Some(uid)).expect("chown");
            }
            let mut add = as_user("/usr/bin/ssh-add".into(), uid);
            quiet(add.env("SSH_AUTH_SOCK", &socket).arg("-q").arg(&file));
            let mut show = as_user("/usr/bin/ssh-keygen".into(), own);
            let shown = quiet(show.arg("-lf").arg(&file));
            shown
                .split_whitespace()
                .nth(1)
                .expect("a fingerprint")
                .to_owned()
        });
        Self {
            child,
            dir,
            keys: keys.into(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // One that has died already is as good; waiting reaps it either way.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Hands the ssh-agent over once more, as the user of this test: the way that `agentctl run` does it.
fn forward_again(daemon: &Daemon, name: &str, agent: &Agent) {
    runtime().block_on(async {
        let connection = daemon.control().await;
        let manager = agentd_api::ManagerProxy::new(&connection)
            .await
            .expect("a proxy");
        let upstream = UnixStream::connect(agent.socket()).expect("the ssh-agent");
        let handed = manager.forward_ssh_agent(name, upstream.as_fd().into());
        handed.await.expect("forward");
    });
}

fn quiet(command: &mut Command) -> String {
    let (code, out, err) = text(&output(command));
    assert_eq!(code, 0, "{command:?}: {err}");
    out
}

fn has_openssh() -> bool {
    let programs = ["ssh-agent", "ssh-add", "ssh-keygen"];
    let all = programs
        .iter()
        .all(|program| Path::new("/usr/bin").join(program).exists());
    if !all {
        skip("ssh-agent", "there is no OpenSSH client on this host");
    }
    all
}

/// Asks for a signature with the key of `private.pub`, as a client that does not ask first which keys there are.
const RAW: &str = "perl -e 'use Socket; my $blob = qx(cut -d\" \" -f2 private.pub | base64 -d); \
                   socket(my $s, PF_UNIX, SOCK_STREAM, 0); connect($s, sockaddr_un($ENV{SSH_AUTH_SOCK})) or die $!; \
                   syswrite($s, pack(\"N/a*\", pack(\"C N/a* N/a* N\", 13, $blob, \"data\", 0))); \
                   sysread($s, my $answer, 5); print \"raw: \", unpack(\"H*\", $answer), \"\\n\"'";

#[test]
fn only_listing_and_signing_with_named_keys_pass() {
    if !has_openssh() {
        return;
    }
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let agent = Agent::start(owner);
        let work = daemon.workspace();
        for name in ["work", "private"] {
            std::fs::copy(
                agent.dir.path().join(format!("{name}.pub")),
                work.path().join(format!("{name}.pub")),
            )
            .expect("copy");
        }
        let policy = format!(
            "extends = \"coding\"\n[ssh]\nagent = \"forward\"\nkeys = [\"{}\"]\n",
            agent.keys[0]
        );
        std::fs::write(work.path().join("policy.toml"), policy).expect("write the policy");
        let run = |script: &str| {
            let mut command = daemon.agentctl(["run", "--no-tty", "--name", "signer", "--policy"]);
            command
                .env("SSH_AUTH_SOCK", agent.socket())
                .arg(work.path().join("policy.toml"));
            command
                .arg("--workspace")
                .arg(work.path())
                .args(["--", "sh", "-c", script]);
            text(&output(&mut command))
        };
        let (code, out, err) = run("ssh-add -l");
        assert_eq!(code, 0, "{mode:?}: {out}{err}");
        assert!(
            out.contains(&agent.keys[0]) && !out.contains(&agent.keys[1]),
            "{out}"
        );

        let sign = "cd $HOME; cp $OLDPWD/*.pub .; echo text > file; ssh-keygen -q -Y sign -n file -f work.pub file && \
                    ssh-keygen -Y check-novalidate -n file -s file.sig < file; \
                    echo more > other; ssh-keygen -q -Y sign -n file -f private.pub other; echo refused: $?; \
                    ssh-add -q -D; echo removing: $?; ssh-add -x </dev/null; ssh-add -l";
        let (_, out, err) = run(&format!("{sign}; {RAW}"));
        assert!(
            out.contains("Good \"file\" signature"),
            "{mode:?}: {out}{err}"
        );
        assert!(
            out.contains("refused: 255") || out.contains("refused: 1"),
            "{out}{err}"
        );
        assert!(!out.contains("removing: 0"), "{out}{err}");
        // SSH_AGENT_FAILURE.
        assert!(out.contains("raw: 0000000105"), "{out}{err}");
        let mut list = as_user("/usr/bin/ssh-add".into(), owner);
        let left = quiet(list.env("SSH_AUTH_SOCK", agent.socket()).arg("-l"));
        assert!(agent.keys.iter().all(|k| left.contains(k)), "{left}");
        let record = quiet(&mut daemon.agentctl(["--json", "inspect", "signer"]));
        let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
        assert!(
            record["approvals"].to_string().contains(&agent.keys[0]),
            "{record}"
        );
        assert!(
            record["denials"].to_string().contains(&agent.keys[1]),
            "{record}"
        );
    }
}

#[test]
fn a_key_that_is_taken_while_the_agent_runs_stays_taken_after_a_restart_of_agentd() {
    if !has_openssh() {
        return;
    }
    // Whoever owns the agent hands the ssh-agent over again, and that is this process.
    let mode = modes()[0];
    let mut daemon = Daemon::start(mode);
    let owner = daemon.owner();
    let keys = Agent::start(owner);
    let work = daemon.workspace();
    for name in ["work", "private"] {
        let public = format!("{name}.pub");
        std::fs::copy(keys.dir.path().join(&public), work.path().join(&public)).expect("copy");
    }
    let policy = "extends = \"coding\"\n[ssh]\nagent = \"forward\"\n";
    let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), policy);
    forward_again(&daemon, "coder", &keys);
    let sign = |name: &str| {
        let public = format!("$HOME/{name}.pub");
        format!(
            "sh cp {name}.pub $HOME && echo text > $HOME/file && \
             ssh-keygen -q -Y sign -n file -f {public} $HOME/file && rm $HOME/file.sig"
        )
    };
    for name in ["work", "private"] {
        agent.is_done(&sign(name));
    }
    let setting = format!("ssh.keys={}", keys.keys[0]);
    quiet(&mut daemon.agentctl(["tighten", "coder", "--set", &setting]));
    let is_tight = |agent: &mut Obedient| {
        agent.is_done(&sign("work"));
        agent.is_refused(&sign("private"));
        let listed = format!("sh ssh-add -l | grep -q {}", keys.keys[1]);
        agent.is_refused(&listed);
    };
    is_tight(&mut agent);
    agent.is_done(&format!("sh {RAW}"));
    is_told_with(&daemon, owner, "ssh", "--set ssh.keys");
    daemon.kill();
    daemon.start_again();
    forward_again(&daemon, "coder", &keys);
    is_tight(&mut agent);
    quiet(&mut daemon.agentctl(["restore", "policy", "coder"]));
    agent.is_done(&sign("private"));
    quiet(&mut daemon.agentctl(["kill", "coder"]));
}
