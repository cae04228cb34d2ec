//! What a policy leaves to people waits for a person: the owner, over agentctl or the desktop, and nobody else.

use std::io::Read as _;
use std::process::{Child, Stdio};
use std::sync::mpsc;

use agentd_testkit::skip;
use serde_json::Value;

use crate::harness::{
    ALICE, BOB, Daemon, Mode, WATCHDOG, is_root, modes, output, text, wait_child, wait_until,
};
use crate::private_bus::PrivateBus;
use crate::standin::Standin;

const POLICY: &str = "extends = \"coding\"\n[tools]\nask = [\"Bash(git push*)\"]\n";

/// Asks for each of its arguments in turn and says what it hears.
const AGENT: &str = r#"
echo '{"type":"ready"}'
read -r turn
n=0
for command in "$@"; do
    n=$((n + 1))
    printf '{"type":"permission","id":"%s","tool":"Bash","input":{"command":"%s"}}\n' "$n" "$command"
    read -r verdict
    case "$verdict" in
        *'"allow":true'*) printf '{"type":"say","text":"%s: allowed"}\n' "$command" ;;
        *) printf '{"type":"say","text":"%s: refused"}\n' "$command" ;;
    esac
done
echo '{"type":"result","id":"1","text":"done"}'
"#;

/// `agentctl run` of the asking agent as `uid`, started and left to itself.
struct Running {
    child: Child,
    _work: tempfile::TempDir,
}

impl Running {
    fn start(daemon: &Daemon, uid: u32, name: &str, policy: &str, commands: &[&str]) -> Self {
        let work = crate::harness::dir_of(uid);
        std::fs::write(work.path().join("agent.sh"), AGENT).expect("write the agent");
        std::fs::write(work.path().join("policy.toml"), policy).expect("write the policy");
        let mut command = daemon.agentctl_as(
            uid,
            ["run", "--no-tty", "--driver", "jsonl", "--prompt", "go"],
        );
        command
            .args(["--name", name, "--policy"])
            .arg(work.path().join("policy.toml"));
        command.arg("--workspace").arg(work.path());
        command.args(["--", "sh", "agent.sh"]).args(commands);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start agentctl");
        Self { child, _work: work }
    }

    /// Its exit code, what the agent said, and what agentctl told.
    fn end(mut self) -> (i32, String, String) {
        let status = wait_child(&mut self.child);
        let (mut out, mut err) = (String::new(), String::new());
        let pipes = (self.child.stdout.take(), self.child.stderr.take());
        pipes
            .0
            .expect("piped")
            .read_to_string(&mut out)
            .expect("stdout");
        pipes
            .1
            .expect("piped")
            .read_to_string(&mut err)
            .expect("stderr");
        (status.code().unwrap_or(-1), out, err)
    }
}

fn json(daemon: &Daemon, uid: u32, args: &[&str]) -> Value {
    let (code, out, err) = text(&output(daemon.agentctl_as(uid, ["--json"]).args(args)));
    assert_eq!(code, 0, "{args:?}: {err}");
    serde_json::from_str(&out).expect("JSON")
}

/// The one question that waits for `uid`, once it waits.
fn question(daemon: &Daemon, uid: u32) -> Value {
    let mut found = Value::Null;
    wait_until("a question waits", || {
        let mut list = json(daemon, uid, &["approvals", "list"]);
        if let Some(first) = list.pointer_mut("/approvals/0") {
            found = first.take();
        }
        !found.is_null()
    });
    found
}

fn id(question: &Value) -> &str {
    question["id"].as_str().expect("an id")
}

#[test]
fn an_owner_decides_and_a_stranger_finds_nothing() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = if is_root() { ALICE } else { daemon.owner() };
        let run = Running::start(
            &daemon,
            owner,
            "pusher",
            POLICY,
            &["git push", "ls", "git push -f"],
        );

        let first = question(&daemon, owner);
        assert_eq!(first["agent"], "pusher");
        assert_eq!(first["input"]["command"], "git push");
        assert_eq!(first["uid"], owner);
        if mode == Mode::Root {
            let (code, _, err) = text(&output(
                &mut daemon.agentctl_as(BOB, ["approvals", "allow", id(&first)]),
            ));
            assert_eq!(code, 1, "{err}");
            assert!(err.contains("no question is called"), "{err}");
            assert_eq!(
                json(&daemon, BOB, &["approvals", "list"])["approvals"],
                serde_json::json!([])
            );
        }
        json(&daemon, owner, &["approvals", "allow", id(&first)]);
        let second = question(&daemon, owner);
        assert_eq!(second["input"]["command"], "git push -f");
        json(
            &daemon,
            owner,
            &[
                "approvals",
                "deny",
                id(&second),
                "--reason",
                "never by force",
            ],
        );

        let (code, said, told) = run.end();
        assert_eq!(code, 0, "{told}");
        assert_eq!(
            said, "git push: allowed\nls: allowed\ngit push -f: refused\n",
            "{told}"
        );
        let hint = format!("agentctl approvals allow {}", &id(&first)[28..]);
        assert!(told.contains(&hint), "{mode:?}: {told}");

        let record = json(&daemon, owner, &["inspect", "pusher"]);
        let by: Vec<_> = record["approvals"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|a| {
                (
                    a["decision"].as_str().unwrap_or_default(),
                    a["by"].as_str().unwrap_or_default(),
                )
            })
            .collect();
        let me = format!("uid {owner}");
        assert_eq!(
            by,
            [
                ("allow", me.as_str()),
                ("allow", "policy"),
                ("deny", me.as_str())
            ]
        );
        assert!(
            record["approvals"][2]["reason"]
                .as_str()
                .is_some_and(|r| r == "never by force")
        );
        let settled = json(&daemon, owner, &["approvals", "show", id(&second)]);
        assert_eq!(settled["decision"], "deny");
    }
}

#[test]
fn always_holds_for_the_next_launch_until_it_is_revoked() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let run = Running::start(&daemon, owner, "pusher", POLICY, &["git push origin main"]);
        let asked = question(&daemon, owner);
        json(
            &daemon,
            owner,
            &[
                "approvals",
                "allow",
                id(&asked),
                "--always",
                "--rule",
                "Bash(git push origin *)",
            ],
        );
        assert_eq!(run.end().1, "git push origin main: allowed\n");

        // Nobody answers this time.
        let run = Running::start(&daemon, owner, "pusher", POLICY, &["git push origin dev"]);
        let (code, said, told) = run.end();
        assert_eq!(
            (code, said.as_str()),
            (0, "git push origin dev: allowed\n"),
            "{told}"
        );
        assert!(!told.contains("approvals allow"), "{told}");

        let rules = json(&daemon, owner, &["approvals", "rules"]);
        assert_eq!(rules["rules"][0]["covers"], "Bash(git push origin *)");
        json(
            &daemon,
            owner,
            &["approvals", "revoke", id(&rules["rules"][0])],
        );
        let run = Running::start(&daemon, owner, "pusher", POLICY, &["git push origin dev"]);
        let asked = question(&daemon, owner);
        json(&daemon, owner, &["approvals", "deny", id(&asked)]);
        assert_eq!(run.end().1, "git push origin dev: refused\n");
    }
}

#[test]
fn silence_means_no_and_death_closes_the_question() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let short = format!("{POLICY}ask_timeout = \"1s\"\n");
        let run = Running::start(&daemon, owner, "hasty", &short, &["git push"]);
        let (code, said, told) = run.end();
        assert_eq!((code, said.as_str()), (0, "git push: refused\n"), "{told}");
        let record = json(&daemon, owner, &["inspect", "hasty"]);
        assert_eq!(record["approvals"][0]["by"], "time-out");

        let run = Running::start(&daemon, owner, "mortal", POLICY, &["git push"]);
        let asked = question(&daemon, owner);
        json(&daemon, owner, &["kill", "mortal"]);
        run.end();
        wait_until("the question of a dead agent is closed", || {
            json(&daemon, owner, &["approvals", "show", id(&asked)])["decision"] == "withdrawn"
        });
        let (code, _, err) = text(&output(&mut daemon.agentctl([
            "approvals",
            "allow",
            id(&asked),
        ])));
        assert_eq!(code, 1);
        assert!(err.contains("withdrawn by agent"), "{err}");
    }
}

#[test]
fn an_agent_reaches_no_d_bus_to_answer_itself() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let control = daemon.runtime_dir().join("control.sock");
        let probe = format!(
            "for bus in {0} /run/dbus/system_bus_socket /run/user/$(id -u)/bus /var/run/dbus; do \
               [ -e \"$bus\" ] && echo \"$bus is there\"; done; \
             env | grep -i dbus; \
             perl -e 'use Socket; for my $p (\"{0}\", \"/run/dbus/system_bus_socket\") {{ \
               socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die; connect($s, sockaddr_un($p)) and print \"connected to $p\\n\" }} \
               print \"tried\\n\"'",
            control.display()
        );
        let (code, out, err) = text(&daemon.run(work.path(), &["sh", "-c", &probe]));
        assert_eq!((code, out.as_str()), (0, "tried\n"), "{mode:?}: {err}");
    }
}

#[test]
fn a_destination_is_asked_for_and_its_connection_waits() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let serving = std::thread::spawn(move || {
            use std::io::Write as _;
            let (mut stream, _) = listener.accept().expect("a connection");
            stream.write_all(b"hello from outside").expect("write");
        });
        let work = daemon.workspace();
        let policy = format!(
            "extends = \"coding\"\n[net]\nask = [{{ host = \"127.0.0.1:{port}\", private = true }}]\n"
        );
        std::fs::write(work.path().join("policy.toml"), policy).expect("write the policy");
        let fetch = format!(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0); connect($s, sockaddr_in(3128, inet_aton('127.0.0.1'))) or die $!; \
             syswrite($s, \"CONNECT 127.0.0.1:{port} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n\"); local $/; print scalar <$s>;"
        );
        let mut command = daemon.agentctl(["run", "--no-tty", "--name", "caller", "--policy"]);
        command
            .arg(work.path().join("policy.toml"))
            .arg("--workspace")
            .arg(work.path());
        command.args(["--", "perl", "-e", &fetch]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("agentctl");
        let asked = question(&daemon, owner);
        assert_eq!(
            (&asked["kind"], &asked["tool"]),
            (&"connect".into(), &format!("127.0.0.1:{port}").into())
        );
        json(&daemon, owner, &["approvals", "allow", id(&asked)]);
        let status = wait_child(&mut child);
        let (mut out, mut err) = (String::new(), String::new());
        child
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut out)
            .expect("stdout");
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut err)
            .expect("stderr");
        assert!(
            status.success() && out.ends_with("hello from outside"),
            "{mode:?}: {out} {err}"
        );
        assert!(
            err.contains("waits for your approval to connect to 127.0.0.1"),
            "{err}"
        );
        serving.join().expect("the server");
        let record = json(&daemon, owner, &["inspect", "caller"]);
        assert_eq!(record["approvals"][0]["by"], format!("uid {owner}"));
    }
}

const SCRIPT: &str = r#"
[[rule]]
name = "after"
when = { tool_result = "." }
reply = { text = "over" }
[[rule]]
name = "push"
when = { user = "push" }
reply = { tools = [{ name = "Bash", input = { command = "echo git push", description = "push" } }] }
"#;

#[test]
fn the_real_claude_code_waits_for_its_owner() {
    let Ok(claude) = std::env::var("AGENTD_TEST_CLAUDE") else {
        skip(
            "claude",
            "AGENTD_TEST_CLAUDE does not name a Claude Code binary",
        );
        return;
    };
    for mode in modes() {
        let kit = tempfile::tempdir().expect("a directory");
        let standin = Standin::start(kit.path(), SCRIPT);
        let config = format!(
            "[model.anthropic]\nbase_url = \"http://{}\"\nkey = \"none\"\n",
            standin.address
        );
        let daemon = Daemon::with_config(mode, &config);
        let owner = daemon.owner();
        let work = daemon.workspace();
        let policy = "extends = \"coding\"\n[tools]\nask = [\"Bash(echo git push*)\"]\n";
        std::fs::write(work.path().join("policy.toml"), policy).expect("write the policy");
        let mut command =
            daemon.agentctl(["run", "--no-tty", "--name", "claude", "--driver", "claude"]);
        command
            .args(["--prompt", "push", "--policy"])
            .arg(work.path().join("policy.toml"));
        command
            .arg("--workspace")
            .arg(work.path())
            .arg("--")
            .arg(&claude);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("agentctl");
        let asked = question(&daemon, owner);
        assert_eq!(asked["input"]["command"], "echo git push");
        json(&daemon, owner, &["approvals", "allow", id(&asked)]);
        let status = wait_child(&mut child);
        let mut err = String::new();
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut err)
            .expect("stderr");
        assert!(status.success(), "{mode:?}: {err}");
        let record = json(&daemon, owner, &["inspect", "claude"]);
        assert_eq!(
            record["approvals"][0]["by"],
            format!("uid {owner}"),
            "{mode:?}"
        );
    }
}

/// Stands in for the desktop: takes a notification and presses its second button.
struct Desktop {
    shown: mpsc::Sender<(String, String, Vec<String>)>,
    closed: mpsc::Sender<u32>,
}

#[zbus::interface(name = "org.freedesktop.Notifications")]
impl Desktop {
    #[expect(
        clippy::too_many_arguments,
        reason = "the specification's own arguments"
    )]
    async fn notify(
        &self,
        _app_name: String,
        _replaces_id: u32,
        _icon: String,
        summary: String,
        body: String,
        actions: Vec<String>,
        _hints: std::collections::HashMap<String, zbus::OwnedVariant>,
        _expire: i32,
    ) -> u32 {
        self.shown
            .send((summary, body, actions))
            .expect("the test listens");
        7
    }

    async fn close_notification(&self, id: u32) {
        self.closed.send(id).expect("the test listens");
    }

    #[zbus(signal)]
    async fn action_invoked(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        id: u32,
        action_key: &str,
    ) -> zbus::Result<()>;
}

#[test]
fn a_question_is_answered_on_the_desktop() {
    // A dbus-daemon wants users with a passwd entry, which the tests' ordinary users don't have: as root only root's
    // mode is left. agentctl, the only part that speaks on that bus, is the same in both.
    for mode in modes().into_iter().take(1) {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let Some(bus) = PrivateBus::start(owner) else {
            return;
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let (shown, notifications) = mpsc::channel();
        let (closed, closings) = mpsc::channel();
        let desktop = runtime.block_on(async {
            zbus::connection::Builder::address(bus.address.as_str())
                .name("org.freedesktop.Notifications")
                .serve_at("/org/freedesktop/Notifications", Desktop { shown, closed })
                .build()
                .await
                .expect("the stand-in desktop on the bus")
        });
        let mut watch = daemon.agentctl(["approvals", "watch", "--notify"]);
        let mut watch = watch
            .env("DBUS_SESSION_BUS_ADDRESS", &bus.address)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("agentctl");
        let run = Running::start(&daemon, owner, "pusher", POLICY, &["git push <b>"]);
        let (summary, body, actions) = notifications
            .recv_timeout(WATCHDOG)
            .expect("a notification");
        assert_eq!(summary, "pusher wants to use Bash");
        assert!(body.starts_with("git push &lt;b&gt;\n"), "{body}");
        assert_eq!(actions, ["allow", "Allow", "deny", "Deny"]);
        runtime.block_on(async {
            let path = "/org/freedesktop/Notifications";
            let emitter = zbus::object_server::SignalEmitter::new(&desktop, path).expect("a path");
            Desktop::action_invoked(&emitter, 7, "allow")
                .await
                .expect("a signal");
        });
        assert_eq!(run.end().1, "git push <b>: allowed\n");
        assert_eq!(
            closings
                .recv_timeout(WATCHDOG)
                .expect("the notification goes"),
            7
        );
        watch.kill().expect("end the watch");
        let mut out = String::new();
        watch
            .stdout
            .take()
            .expect("piped")
            .read_to_string(&mut out)
            .expect("stdout");
        watch.wait().expect("reap the watch");
        assert!(
            out.contains("pusher: waits Bash git push <b>") && out.contains("pusher: allow by uid"),
            "{out}"
        );
    }
}
