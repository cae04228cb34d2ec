//! The caller's ssh-agent, filtered: a real ssh-agent outside, ssh-add and ssh-keygen inside.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use agentd_testkit::skip;

use crate::harness::{Daemon, as_user, dir_of, is_root, modes, output, text, wait_until};

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
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
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

fn quiet(command: &mut Command) -> String {
    let (code, out, err) = text(&output(command));
    assert_eq!(code, 0, "{command:?}: {err}");
    out
}

#[test]
fn only_listing_and_signing_with_named_keys_pass() {
    if !["ssh-agent", "ssh-add", "ssh-keygen"]
        .iter()
        .all(|p| Path::new("/usr/bin").join(p).exists())
    {
        return skip("ssh-agent", "there is no OpenSSH client on this host");
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
        // A client that does not ask first which keys there are.
        let raw = "; perl -e 'use Socket; my $blob = qx(cut -d\" \" -f2 private.pub | base64 -d); \
                   socket(my $s, PF_UNIX, SOCK_STREAM, 0); connect($s, sockaddr_un($ENV{SSH_AUTH_SOCK})) or die $!; \
                   syswrite($s, pack(\"N/a*\", pack(\"C N/a* N/a* N\", 13, $blob, \"data\", 0))); \
                   sysread($s, my $answer, 5); print \"raw: \", unpack(\"H*\", $answer), \"\\n\"'";
        let (_, out, err) = run(&format!("{sign}{raw}"));
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
