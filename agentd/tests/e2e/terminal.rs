//! A person at a terminal: a real terminal emulator (tmux) runs `agentctl run`.

use std::process::Command;

use crate::harness::{
    ALICE, Daemon, Mode, as_user, is_root, modes, output, program, put_program, text, wait_until,
};
use crate::standin::Standin;

/// A tmux server of this test's own.
struct Tmux {
    socket: tempfile::TempDir,
    uid: u32,
}

impl Tmux {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = as_user("tmux".into(), self.uid);
        command
            .env("TERM", "xterm-256color")
            .arg("-S")
            .arg(self.socket.path().join("s"))
            .arg("-f")
            .arg("/dev/null")
            .args(args);
        command
    }

    fn start(uid: u32, line: &str) -> Option<Self> {
        let tmux = Self {
            socket: crate::harness::dir_of(uid),
            uid,
        };
        match tmux
            .command(&["new-session", "-d", "-x", "100", "-y", "30", line])
            .output()
        {
            Ok(out) if out.status.success() => Some(tmux),
            Ok(out) => panic!("tmux: {}", String::from_utf8_lossy(&out.stderr)),
            Err(_) => {
                agentd_testkit::skip(
                    "tmux",
                    "the terminal tests need tmux: sudo apt-get install -y tmux",
                );
                None
            }
        }
    }

    fn screen(&self) -> String {
        text(&output(&mut self.command(&["capture-pane", "-p"]))).1
    }

    fn keys(&self, keys: &[&str]) {
        let mut args = vec!["send-keys"];
        args.extend(keys);
        let (code, _, err) = text(&output(&mut self.command(&args)));
        assert_eq!(code, 0, "{err}");
    }

    fn wait_for(&self, needle: &str) {
        let mut screen = String::new();
        wait_until(&format!("{needle:?} is on the screen"), || {
            screen = self.screen();
            screen.contains(needle)
        });
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        // The server may have ended with its last session.
        drop(self.command(&["kill-server"]).output());
    }
}

/// An interactive shell into which a person types `agentctl run … -- argv`.
fn session(daemon: &Daemon, work: &std::path::Path, argv: &str) -> Option<Tmux> {
    let uid = if is_root() && daemon.mode == Mode::User {
        ALICE
    } else {
        rustix::process::geteuid().as_raw()
    };
    let tmux = Tmux::start(uid, "PS1='outside> ' exec bash --norc --noprofile -i")?;
    tmux.wait_for("outside>");
    let line = format!(
        "clear; {} --runtime-dir {} run --workspace {} -- {argv}",
        program("agentctl").display(),
        daemon.runtime_dir().display(),
        work.display()
    );
    tmux.keys(&[&line, "Enter"]);
    Some(tmux)
}

#[test]
fn a_shell_in_a_terminal_has_its_own_tty_its_size_and_ctrl_c() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let Some(tmux) = session(&daemon, work.path(), "bash --norc --noprofile") else {
            return;
        };
        tmux.keys(&["PS1=in\\>\\ ; tty; stty size", "Enter"]);
        tmux.wait_for("/dev/pts/0");
        tmux.wait_for("30 100");
        // Ctrl-C is for whoever is in the foreground: until the shell has put it there, that is the shell.
        tmux.keys(&["sh -c 'echo as''leep; exec sleep 1000'", "Enter"]);
        tmux.wait_for("asleep");
        tmux.keys(&["C-c"]);
        tmux.keys(&["echo rc=$?", "Enter"]);
        tmux.wait_for("rc=130");
        let (code, _, err) = text(&output(&mut tmux.command(&[
            "resize-window",
            "-x",
            "90",
            "-y",
            "25",
        ])));
        assert_eq!(code, 0, "{err}");
        wait_until("the new size arrives", || {
            tmux.keys(&["clear; stty size", "Enter"]);
            tmux.screen().contains("25 90")
        });
        tmux.keys(&["exit 5", "Enter"]);
        tmux.wait_for("outside>");
        tmux.keys(&["echo code=$?", "Enter"]);
        tmux.wait_for("code=5");
        // The caller's terminal is as it was: it echoes and edits lines.
        tmux.keys(&[
            "echo modes=$(stty -a | tr ' ' '\\n' | grep -cxE 'echo|icanon')",
            "Enter",
        ]);
        tmux.wait_for("modes=2");
    }
}

#[test]
fn ctrl_z_of_the_program_suspends_agentctl_and_fg_resumes_it() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let Some(tmux) = session(&daemon, work.path(), "cat") else {
            return;
        };
        tmux.keys(&["before", "Enter"]);
        // The terminal's echo and cat's answer.
        let mut screen = String::new();
        wait_until("cat answers", || {
            screen = tmux.screen();
            screen.matches("before").count() >= 2
        });
        tmux.keys(&["C-z"]);
        tmux.wait_for("Stopped");
        let is = |state: &str| {
            let (_, out, _) = text(&output(&mut daemon.agentctl(["ps"])));
            out.contains(state)
        };
        assert!(is("stopped"), "the agent stopped before agentctl did");
        tmux.keys(&["fg", "Enter"]);
        // Only now does the terminal belong to cat again.
        wait_until("the agent runs again", || is("running"));
        tmux.keys(&["after", "Enter"]);
        wait_until("cat answers again", || {
            tmux.screen().matches("after").count() >= 2
        });
        tmux.keys(&["C-d"]);
        wait_until("cat has ended", || {
            !text(&output(&mut daemon.agentctl(["ps"])))
                .1
                .contains("cat")
        });
    }
}

/// The real Claude Code, with a stand-in for its model, as a person would use it.
#[test]
fn claude_starts_without_questions_answers_and_leaves() {
    let Some(claude) = std::env::var_os("AGENTD_TEST_CLAUDE").map(std::path::PathBuf::from) else {
        agentd_testkit::skip(
            "claude",
            "AGENTD_TEST_CLAUDE does not name the program; cargo xtask test installs it",
        );
        return;
    };
    for mode in modes() {
        let kit = tempfile::tempdir().expect("a directory");
        let standin = Standin::start(
            kit.path(),
            "[[rule]]\nname = \"greet\"\nwhen = {}\nreply = { text = \"Greetings from the stand-in.\" }\n",
        );
        let config = format!(
            "[model.anthropic]\nbase_url = \"http://{}\"\nkey = \"none\"\n",
            standin.address
        );
        let daemon = Daemon::with_config(mode, &config);
        let work = daemon.workspace();
        // Where an ordinary user can read it as well.
        let program = work.path().join("claude");
        put_program(&claude, &program);
        let Some(tmux) = session(&daemon, work.path(), program.to_str().expect("utf-8")) else {
            return;
        };
        tmux.wait_for("Claude Code v");
        tmux.wait_for("? for shortcuts");
        tmux.keys(&["good day"]);
        tmux.wait_for("good day");
        tmux.keys(&["Enter"]);
        tmux.wait_for("Greetings from the stand-in.");
        tmux.keys(&["/exit"]);
        tmux.wait_for("/exit");
        tmux.keys(&["Enter"]);
        tmux.wait_for("outside>");
        tmux.keys(&["echo code=$?", "Enter"]);
        tmux.wait_for("code=0");
        let (_, out, _) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "claude"]),
        ));
        let record: serde_json::Value = serde_json::from_str(&out).expect("JSON");
        assert!(
            record["tokens"]["output"].as_u64() > Some(0),
            "{mode:?}: {out}"
        );
    }
}
