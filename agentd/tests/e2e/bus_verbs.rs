//! `agentctl bus` and `agentctl bench` with real agents in real sandboxes.
//!
//! The agents are agentctl in the mode that the load tools use: it answers requests, opens lanes and publishes, as any
//! program with the client library would.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    ALICE, BOB, Daemon, Mode, is_root, modes, output, program, text, wait_child, wait_until,
};

/// An agent that speaks on the bus for as long as somebody speaks to it.
pub struct Talker {
    child: Child,
    /// Dropped, it ends the thread that holds the agent's stdin.
    stop: Option<Sender<()>>,
    speaker: Option<JoinHandle<()>>,
    /// Kept open: nobody reads what comes later, and nobody should get a broken pipe.
    _stdout: BufReader<ChildStdout>,
    pub name: String,
}

impl Talker {
    /// Agent `slot` of the `agents` of a run, ready and at work.
    pub fn start(daemon: &Daemon, uid: u32, run: &str, slot: u32, agents: u32) -> Self {
        let name = format!("{run}-{slot}");
        let orders = json!({ "mixed": {
            "run": run, "slot": slot, "agents": agents, "generation": 0, "seed": 1, "size": 48,
            "mode": "adaptive",
        }});
        let mut command = daemon.agentctl_as(uid, ["run", "--no-tty", "--no-workspace", "--name"]);
        command.arg(&name).arg("--").arg(program("agentctl"));
        command.args(["bench", "agent"]).arg(orders.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("start agentctl run");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut first = String::new();
        stdout.read_line(&mut first).expect("the agent speaks");
        assert_eq!(first, "\"ready\"\n");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(b"go\n").expect("the agent listens");
        let (stop, stopped) = channel::<()>();
        let speaker = std::thread::spawn(move || {
            while stopped.recv_timeout(Duration::from_secs(2)) == Err(RecvTimeoutError::Timeout) {
                // One that has ended needs no sign of life.
                drop(stdin.write_all(b"\n"));
            }
        });
        Self {
            child,
            stop: Some(stop),
            speaker: Some(speaker),
            _stdout: stdout,
            name,
        }
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // At the end of its stdin the agent ends, and so does what carries it.
        drop(self.stop.take());
        if let Some(speaker) = self.speaker.take() {
            drop(speaker.join());
        }
        wait_child(&mut self.child);
    }
}

fn run(daemon: &Daemon, args: &[&str]) -> Output {
    output(&mut daemon.agentctl(args))
}

/// What a verb printed with `--json`.
fn json_of(output: &Output) -> Value {
    let (code, out, err) = text(output);
    assert_eq!(code, 0, "{out} {err}");
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

pub fn peer(daemon: &Daemon, uid: u32, name: &str) -> Option<Value> {
    let peers = json_of(&output(
        &mut daemon.agentctl_as(uid, ["--json", "bus", "peers"]),
    ));
    let peers = peers["peers"].as_array().expect("a list").clone();
    peers.into_iter().find(|peer| peer["name"] == name)
}

/// A stream of lines, ended when dropped.
struct Stream {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Stream {
    fn start(daemon: &Daemon, uid: u32, args: &[&str]) -> Self {
        let mut command = daemon.agentctl_as(uid, args);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("start");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { child, lines }
    }

    fn next(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("readable");
        serde_json::from_str(&line).expect("JSON")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Gone already, if it ended by itself.
        drop(self.child.kill());
        self.child.wait().expect("reaped");
    }
}

/// Says that a test's thread may end, however the test does.
struct AtEnd<'a>(&'a AtomicBool);

impl Drop for AtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_user_asks_sends_publishes_and_follows() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let uid = daemon.owner();
        let talker = Talker::start(&daemon, uid, "talk", 0, 2);
        let name = talker.name.as_str();

        let (code, out, err) = text(&run(&daemon, &["bus", "request", name, "twice", "abc"]));
        assert_eq!((code, out.as_str()), (0, "abcabc"), "{err}");
        let answer = json_of(&run(
            &daemon,
            &["--json", "bus", "request", name, "twice", "x"],
        ));
        assert_eq!(
            (answer["from"].as_str(), answer["text"].as_str()),
            (Some(name), Some("xx"))
        );

        let (code, _, err) = text(&run(&daemon, &["bus", "send", name, "hello"]));
        assert_eq!(code, 0, "{err}");
        let seen = peer(&daemon, uid, name).expect("it is on the bus");
        assert_eq!(seen["queued"], 1, "{seen}");
        assert_eq!(
            (&seen["serving"], &seen["liveness"]),
            (&json!(true), &json!("alive"))
        );
        assert!(
            peer(&daemon, uid, "user").is_none(),
            "nobody speaks for the user now"
        );

        let args = ["--json", "bus", "subscribe", "build.#", "-n", "2"];
        let mut stream = Stream::start(&daemon, uid, &args);
        // `user.reader` is on the bus a moment before it has subscribed; what is published until then goes nowhere.
        wait_until("the subscription stands", || {
            let publish = ["bus", "publish", "build.linux", "done", "-t", "end"];
            let (code, _, err) = text(&run(&daemon, &publish));
            assert_eq!(code, 0, "{err}");
            let follows = err == "put into 1 queue\n";
            assert!(follows || err == "nobody follows build.linux\n", "{err}");
            follows
        });
        assert!(peer(&daemon, uid, "user.reader").is_some(), "it follows");
        let mut publish = daemon.agentctl(["--json", "bus", "publish", "build.mac"]);
        let mut publish = publish
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start");
        let mut stdin = publish.stdin.take().expect("piped");
        stdin.write_all(&[0xff, 0]).expect("written");
        drop(stdin);
        let published = publish.wait_with_output().expect("ends");
        assert_eq!(
            json_of(&published),
            json!({ "topic": "build.mac", "queues": 1 })
        );
        let first = stream.next();
        assert_eq!(
            (
                &first["topic"],
                &first["type"],
                &first["from"],
                &first["text"]
            ),
            (
                &json!("build.linux"),
                &json!("end"),
                &json!("user"),
                &json!("done")
            )
        );
        let second = stream.next();
        assert_eq!(
            (&second["base64"], &second["bytes"]),
            (&json!("/wA="), &json!(2))
        );
        assert!(stream.lines.next().is_none(), "two were asked for");
        wait_until("the follower has left", || {
            peer(&daemon, uid, "user.reader").is_none()
        });
    }
}

#[test]
fn a_tap_tells_who_sent_what_to_whom_and_never_the_contents() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let uid = daemon.owner();
        let talker = Talker::start(&daemon, uid, "tapped", 0, 2);
        let args = ["--json", "bus", "tap", "--agent", &talker.name];
        let mut tap = Stream::start(&daemon, uid, &args);
        // Asked again and again, because nobody says when the tap stands.
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = AtEnd(&done);
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    run(
                        &daemon,
                        &["bus", "request", &talker.name, "twice", "secret"],
                    );
                }
            });
            let mut missing = vec!["request", "response", "publish"];
            while !missing.is_empty() {
                let message = tap.next();
                let shown = message.to_string();
                assert!(!shown.contains("secret"), "{shown}");
                let sides = [&message["from"], &message["to"]];
                assert!(sides.contains(&&json!(talker.name)), "{shown}");
                assert_eq!(message["uid"], uid, "{shown}");
                missing.retain(|kind| message["kind"] != *kind);
            }
        });
    }
}

/// The lanes of which `from` is the sender.
pub fn lanes_from(daemon: &Daemon, from: &str) -> Vec<Value> {
    let channels = json_of(&run(daemon, &["--json", "bus", "channels"]));
    let channels = channels["channels"].as_array().expect("a list").clone();
    let mine = |c: &Value| c["from"] == from && c["kind"] == "lane";
    channels.into_iter().filter(mine).collect()
}

#[test]
fn channels_are_counted_from_outside_and_rights_taken_at_once() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let uid = daemon.owner();
        let first = Talker::start(&daemon, uid, "pair", 0, 2);
        let second = Talker::start(&daemon, uid, "pair", 1, 2);
        let name = first.name.as_str();
        // One message in 64 is timed, so there are samples when so many have come. Each opens its two lanes when it is ready.
        let mut lanes = Vec::new();
        wait_until("messages are counted and timed", || {
            lanes = lanes_from(&daemon, name);
            let timed = |lane: &Value| lane["latency_ns"]["samples"].as_u64() > Some(0);
            lanes.len() >= 2 && lanes.iter().all(timed)
        });
        wait_until("the other has lanes of its own", || {
            !lanes_from(&daemon, &second.name).is_empty()
        });
        for lane in lanes {
            assert_eq!(lane["to"], json!(second.name), "{lane}");
            assert!(lane["received"].as_u64() > Some(0), "{lane}");
            assert_eq!(
                (&lane["lost"], &lane["dropped"]),
                (&json!(0), &json!(0)),
                "{lane}"
            );
        }
        let seen = peer(&daemon, uid, name).expect("it is on the bus");
        // Its rings to the router may be there by now, or not yet.
        let tiers = ["shared-memory", "routed-shared-memory"];
        assert!(tiers.iter().any(|tier| seen["tier"] == *tier), "{seen}");

        let change = json_of(&run(&daemon, &["--json", "bus", "revoke", name, "send"]));
        assert!(change["closed"]["lanes"].as_u64() > Some(0), "{change}");
        assert_eq!(
            change["revoked"],
            json!([{ "right": "send", "pattern": "#" }])
        );
        // Closed before the verb returned; listed until both sides have let go.
        wait_until("both sides have let go", || {
            lanes_from(&daemon, name).is_empty()
        });
        assert!(
            !lanes_from(&daemon, &second.name).is_empty(),
            "the other's go on"
        );
        let (code, out, err) = text(&run(&daemon, &["bus", "peers"]));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("revoked: send"), "{out}");

        let change = json_of(&run(&daemon, &["--json", "bus", "restore", name]));
        assert_eq!(change["revoked"], json!([]));
        wait_until("it sends again", || !lanes_from(&daemon, name).is_empty());
        let (code, _, err) = text(&run(&daemon, &["bus", "revoke", name, "send=a..b"]));
        assert_eq!(code, 2, "{err}");
        let (code, _, err) = text(&run(&daemon, &["bus", "revoke", name, "shout"]));
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("publish"), "what is allowed is said: {err}");
    }
}

#[test]
fn what_was_taken_stays_taken_when_agentd_is_killed_and_what_was_given_back_is_not_taken_again() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let uid = daemon.owner();
        for name in ["held", "free"] {
            let mut sleeper =
                daemon.agentctl(["run", "-d", "--no-workspace", "--name", name, "--"]);
            let (code, _, err) = text(&output(sleeper.args(["sleep", "1000"])));
            assert_eq!(code, 0, "{err}");
            let rights = ["bus", "revoke", name, "send", "publish=secret.#", "send"];
            let (code, _, err) = text(&run(&daemon, &rights));
            assert_eq!(code, 0, "{err}");
        }
        let (code, _, err) = text(&run(&daemon, &["bus", "restore", "free"]));
        assert_eq!(code, 0, "{err}");
        for _ in 0..2 {
            daemon.kill();
            daemon.start_again();
            let revoked = |name: &str| {
                let seen = peer(&daemon, uid, name).expect("it was adopted");
                seen["revoked"].clone()
            };
            let taken = [("send", "#"), ("publish", "secret.#")];
            let taken = taken.map(|(right, pattern)| json!({ "right": right, "pattern": pattern }));
            assert_eq!(revoked("held"), json!(taken), "{mode:?}");
            assert_eq!(revoked("free"), json!([]), "{mode:?}");
        }
    }
}

#[test]
fn errors_say_what_to_do_and_have_their_codes() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let mut quiet = daemon.agentctl(["run", "-d", "--no-workspace", "--name", "quiet", "--"]);
        quiet.args(["sleep", "1000"]);
        assert_eq!(text(&output(&mut quiet)).0, 0);
        let cases: [(&[&str], i32, &str); 8] = [
            (&["bus", "request", "nobody", "fix", "x"], 1, "nobody"),
            (&["bus", "send", "nobody", "x"], 1, "nobody"),
            (&["bus", "tap", "--agent", "nobody"], 1, "nobody"),
            (
                &["bus", "request", "quiet", "fix", "x", "--timeout", "200ms"],
                124,
                "deadline",
            ),
            (&["bus", "publish", "agentd.peers", "x"], 4, "agentd."),
            (&["bus", "publish", "a..b", "x"], 2, "a..b"),
            (&["bus", "subscribe", "a.##"], 2, "a.##"),
            (
                &[
                    "run",
                    "-d",
                    "--no-workspace",
                    "--name",
                    "user",
                    "--",
                    "true",
                ],
                125,
                "user",
            ),
        ];
        for (args, code, says) in cases {
            let (got, out, err) = text(&run(&daemon, args));
            assert_eq!(got, code, "{args:?}: {out} {err}");
            assert!(err.contains(says), "{args:?}: {err}");
        }
        let (code, _, err) = text(&run(
            &daemon,
            &[
                "bus",
                "subscribe",
                "build.#",
                "-n",
                "1",
                "--timeout",
                "200ms",
            ],
        ));
        assert_eq!(code, 124, "{err}");
        let (code, out, err) = text(&run(
            &daemon,
            &["bus", "top", "--once", "--interval", "50ms", "--all"],
        ));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("quiet") && !out.contains('\x1b'), "{out}");
    }
}

#[test]
fn without_a_daemon_each_verb_says_that_there_is_none() {
    let dir = tempfile::tempdir().expect("a directory");
    for args in [
        &["bus", "peers"][..],
        &["bus", "channels"],
        &["bus", "top", "--once"],
        &["bus", "tap"],
        &["bus", "publish", "t", "x"],
        &["bus", "subscribe", "t"],
        &["bus", "request", "a", "m", "x"],
        &["bus", "send", "a", "x"],
        &["bus", "revoke", "a"],
        &["bus", "restore", "a"],
        &["bench", "throughput"],
        &["bench", "latency"],
        &["bench", "stress"],
    ] {
        let mut command =
            crate::harness::as_user(program("agentctl"), rustix::process::geteuid().as_raw());
        command.arg("--runtime-dir").arg(dir.path()).args(args);
        let (code, out, err) = text(&output(command.stdin(Stdio::null())));
        assert_eq!(code, 3, "{args:?}: {out} {err}");
        assert!(err.contains("try:"), "{args:?}: {err}");
    }
}

#[test]
fn users_see_neither_peers_nor_messages_nor_channels_of_one_another() {
    if !is_root() {
        agentd_testkit::skip("root", "several users on one agentd need root mode");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let first = Talker::start(&daemon, ALICE, "pair", 0, 2);
    let _second = Talker::start(&daemon, ALICE, "pair", 1, 2);
    assert!(peer(&daemon, BOB, &first.name).is_none());
    assert!(peer(&daemon, ALICE, &first.name).is_some());
    assert!(peer(&daemon, 0, &first.name).is_some(), "root sees all");
    let of_bob = json_of(&output(
        &mut daemon.agentctl_as(BOB, ["--json", "bus", "channels"]),
    ));
    assert_eq!(of_bob["channels"], json!([]));
    for args in [
        &["bus", "request", &first.name, "twice", "x"][..],
        &["bus", "send", &first.name, "x"],
        &["bus", "tap", "--agent", &first.name],
        &["bus", "revoke", &first.name],
        &["bus", "restore", &first.name],
    ] {
        let (code, _, err) = text(&output(&mut daemon.agentctl_as(BOB, args)));
        assert_eq!(code, 1, "{args:?}: {err}");
    }
    let alice = ALICE.to_string();
    let publish = ["bus", "publish", "t.x", "hi", "--uid", &alice];
    let (code, _, err) = text(&output(&mut daemon.agentctl_as(BOB, publish)));
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("only root"), "{err}");
    // Alice publishes all the time; Bob's tap hears only Bob.
    let args = ["--json", "bus", "tap", "-n", "1"];
    let mut tap = Stream::start(&daemon, BOB, &args);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = AtEnd(&done);
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                output(&mut daemon.agentctl_as(BOB, ["bus", "publish", "of.bob", "x"]));
            }
        });
        let heard = tap.next();
        assert_eq!(
            (&heard["uid"], &heard["topic"]),
            (&json!(BOB), &json!("of.bob"))
        );
    });
    let (code, out, err) = text(&output(
        &mut daemon.agentctl_as(0, ["bus", "request", &first.name, "twice", "r"]),
    ));
    assert_eq!(
        (code, out.as_str()),
        (0, "rr"),
        "root asks as the agent's user: {err}"
    );
}

/// Bench agents left on a daemon.
fn left(daemon: &Daemon) -> Vec<String> {
    let agents = json_of(&run(daemon, &["--json", "ps"]));
    let agents = agents["agents"].as_array().expect("a list");
    agents
        .iter()
        .map(|agent| agent["name"].to_string())
        .collect()
}

#[test]
fn throughput_counts_every_message_once() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        for waiting in ["blocking", "adaptive"] {
            let report = json_of(&run(
                &daemon,
                &[
                    "--json",
                    "bench",
                    "throughput",
                    "--messages",
                    "20k",
                    "--threads",
                    "2",
                    "--size",
                    "100",
                    "--waiting",
                    waiting,
                ],
            ));
            assert_eq!(report["received"], 20_000, "{report}");
            assert_eq!((&report["lost"], &report["broken"]), (&json!(0), &json!(0)));
            assert!(
                report["messages_per_second"].as_f64() > Some(0.0),
                "{report}"
            );
        }
        assert!(left(&daemon).is_empty());
    }
}

#[test]
fn latency_is_measured_open_and_closed() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let report = json_of(&run(
            &daemon,
            &[
                "--json",
                "bench",
                "latency",
                "--duration",
                "500ms",
                "--rate",
                "2000",
            ],
        ));
        assert_eq!(
            (&report["sent"], &report["received"]),
            (&json!(1000), &json!(1000)),
            "{report}"
        );
        assert_eq!(report["latency_ns"]["samples"], 1000, "{report}");
        let report = json_of(&run(
            &daemon,
            &["--json", "bench", "latency", "--duration", "300ms"],
        ));
        assert_eq!(
            (&report["loop"], &report["lost"]),
            (&json!("closed"), &json!(0)),
            "{report}"
        );
        assert_eq!(
            report["latency_ns"]["samples"], report["received"],
            "{report}"
        );
        assert!(left(&daemon).is_empty());
    }
}

#[test]
fn stress_loses_nothing_hangs_nowhere_and_leaves_nothing() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let report = json_of(&run(
            &daemon,
            &[
                "--json",
                "bench",
                "stress",
                "--agents",
                "6",
                "--duration",
                "4s",
                "--kills",
                "--seed",
                "7",
            ],
        ));
        for none in ["lost", "broken", "hangs", "leaks"] {
            assert_eq!(report[none], 0, "{none}: {report}");
        }
        assert_eq!(report["survivors"], 6, "{report}");
        assert!(report["killed"].as_u64() > Some(0), "{report}");
        assert!(report["lanes"]["messages"].as_u64() > Some(0), "{report}");
        assert!(
            report["requests"]["answered"].as_u64() > Some(0),
            "{report}"
        );
        assert!(report["topics"]["received"].as_u64() > Some(0), "{report}");
        assert!(left(&daemon).is_empty());
    }
}

#[test]
fn an_interrupted_bench_leaves_no_agents() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let mut command =
            daemon.agentctl(["bench", "stress", "--agents", "3", "--duration", "10m"]);
        let mut child = command.spawn().expect("start");
        wait_until("its agents are there", || left(&daemon).len() == 3);
        crate::harness::signal(child.id().cast_signed(), rustix::process::Signal::INT);
        assert_eq!(wait_child(&mut child).code(), Some(130));
        assert!(left(&daemon).is_empty());
    }
}

/// The path is where it is granted; a reader may look for it.
#[test]
fn the_program_of_a_bench_is_visible_inside_by_a_grant_alone() {
    let exe = program("agentctl");
    assert!(Path::new(&exe).is_absolute());
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let mut command = daemon.agentctl(["run", "--no-tty", "--no-workspace", "--"]);
        let (code, out, err) = text(&output(command.arg(&exe).arg("--version")));
        assert_eq!(code, 0, "{err}");
        assert!(out.starts_with("agentctl"), "{out}");
    }
}
