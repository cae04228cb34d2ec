//! Agents outlive agentd, and their next agentd knows all about them.
//!
//! Each test kills for real, in root and in user mode, and waits for what is observed: a process, a file, a line of output.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Daemon, is_alive, modes, output, program, put_program, signal, text, wait_until, worker_of,
};

/// Lines that the counting program prints: more than a terminal, a pipe and the log's reader hold together.
const COUNT: usize = 20_000;

fn start(daemon: &Daemon, work: &Path, options: &[&str], argv: &[&str]) {
    let options = [&["--detach", "--name", "it"], options].concat();
    let (code, _, err) = text(&daemon.run_with(work, &options, argv));
    assert_eq!(code, 0, "{err}");
}

/// One row of `agentctl ps --all --json`.
fn row(daemon: &Daemon) -> Option<Value> {
    let (code, out, err) = text(&output(&mut daemon.agentctl(["ps", "--all", "--json"])));
    assert_eq!(code, 0, "{err}");
    let list: Value = serde_json::from_str(&out).expect("JSON");
    let agents = list["agents"].as_array().expect("a list").clone();
    agents.into_iter().find(|agent| agent["name"] == "it")
}

fn record(daemon: &Daemon) -> Value {
    let (code, out, err) = text(&output(&mut daemon.agentctl(["inspect", "it", "--json"])));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("JSON")
}

fn wait_for_file(path: &Path) {
    wait_until("the agent has written a file", || path.exists());
}

/// Says "go" to an agent that waits for it.
fn go(work: &Path) {
    std::fs::write(work.join("go"), "").expect("write a file");
}

#[test]
fn an_agent_lives_on_under_the_next_agentd_and_obeys_it() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &[],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        let before = row(&daemon).expect("it runs");
        daemon.kill();
        assert!(is_alive(daemon.broker), "the broker holds it");
        daemon.start_again();
        let after = row(&daemon).expect("it runs on");
        for key in ["id", "pid", "state", "policy", "started_at_ms", "argv"] {
            assert_eq!(after[key], before[key], "{key}");
        }
        // Its name is taken, it takes orders, and its end has the right cause.
        let (code, _, err) =
            text(&daemon.run_with(work.path(), &["-d", "--name", "it"], &["true"]));
        assert_eq!(code, 125, "{err}");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["stop", "it"])));
        assert_eq!(code, 0, "{err}");
        assert_eq!(record(&daemon)["exit"]["kind"], "stopped");
    }
}

#[test]
fn a_terminal_is_read_without_a_gap_or_a_repeat_over_several_kills() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script =
            format!("i=0; while [ $i -lt {COUNT} ]; do i=$((i+1)); echo $i; done; touch done; cat");
        let mut run = daemon.agentctl(["run", "--detach", "--tty", "--name", "it", "--workspace"]);
        run.arg(work.path()).args(["--", "sh", "-c", &script]);
        let (code, _, err) = text(&output(&mut run));
        assert_eq!(code, 0, "{err}");
        let log = || text(&output(&mut daemon_ctl(&daemon))).1;
        wait_until("it has begun to count", || log().len() > 1000);
        daemon.kill();
        daemon.start_again();
        daemon.kill();
        daemon.start_again();
        wait_for_file(&work.path().join("done"));
        let mut lines = String::new();
        wait_until("the last line is in the log", || {
            lines = text(&output(&mut daemon_ctl(&daemon))).1;
            lines.contains(&format!("{COUNT}\r\n"))
        });
        let counted: Vec<&str> = lines
            .split("\r\n")
            .filter(|line| !line.is_empty())
            .collect();
        let expected: Vec<String> = (1..=COUNT).map(|n| n.to_string()).collect();
        assert!(counted == expected, "{} lines of {COUNT}", counted.len());
    }
}

fn daemon_ctl(daemon: &Daemon) -> std::process::Command {
    daemon.agentctl(["logs", "it"])
}

/// A program that speaks JSON lines: in its first turn it asks for a permission once `go` is there, and writes the answer
/// down.
const ASKING: &str = r#"
echo '{"type":"ready"}'
read -r turn; printf '%s\n' "$turn" >>turns
until [ -e go ]; do sleep 0.02; done
echo '{"type":"permission","id":"p1","tool":"Bash","input":{"command":"ls"}}'
touch asked
read -r verdict; printf '%s\n' "$verdict" >>verdicts
echo '{"type":"result","id":"1","text":"done"}'
while read -r line; do printf '%s\n' "$line" >>turns; done
touch ended
"#;

#[test]
fn a_question_asked_of_nobody_is_answered_by_the_next_agentd() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let options = ["--driver", "jsonl", "--prompt", "work"];
        start(&daemon, work.path(), &options, &["sh", "-c", ASKING]);
        wait_for_file(&work.path().join("turns"));
        daemon.kill();
        go(work.path());
        wait_for_file(&work.path().join("asked"));
        assert!(!work.path().join("verdicts").exists(), "nobody is there");
        daemon.start_again();
        // The prompt's turn ends with its result, and the agent's stdin with it: nobody keeps it open.
        wait_for_file(&work.path().join("ended"));
        let read = |name| std::fs::read_to_string(work.path().join(name)).expect(name);
        assert_eq!(read("turns").lines().count(), 1, "no turn is begun twice");
        let verdicts = read("verdicts");
        assert_eq!(verdicts.lines().count(), 1, "{verdicts}");
        assert!(verdicts.contains(r#""allow":true"#), "{verdicts}");
        wait_until("its end is known", || {
            row(&daemon).is_none_or(|row| row["state"] == "exited")
        });
        let record = record(&daemon);
        assert_eq!(record["exit"]["code"], 0);
        assert_eq!(record["approvals"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn the_exit_of_an_agent_that_ended_while_nobody_looked_is_known() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = "touch up; until [ -e go ]; do sleep 0.02; done; echo last words; exit 7";
        start(&daemon, work.path(), &[], &["sh", "-c", script]);
        wait_for_file(&work.path().join("up"));
        let pid = row(&daemon).expect("it runs")["pid"]
            .as_i64()
            .expect("a pid");
        daemon.kill();
        go(work.path());
        wait_until("it has ended", || {
            !is_alive(i32::try_from(pid).expect("a pid"))
        });
        daemon.start_again();
        let (code, _, err) = text(&output(&mut daemon.agentctl(["wait", "it"])));
        assert_eq!(code, 7, "{err}");
        let record = record(&daemon);
        assert_eq!(
            (&record["exit"]["kind"], &record["exit"]["code"]),
            (&"exited".into(), &7.into())
        );
        let (_, out, _) = text(&output(&mut daemon_ctl(&daemon)));
        assert!(out.contains("last words"), "{out}");
    }
}

#[test]
fn agentd_goes_on_with_the_broker_s_next_worker() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &[],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        let worker = daemon.broker;
        signal(worker, Signal::KILL);
        wait_until("there is another worker", || {
            worker_of(daemon.supervisor).is_some_and(|pid| pid != worker)
        });
        // A launch waits for the succession, and the agent is still known and obeys.
        let (code, _, err) = text(&daemon.run(work.path(), &["true"]));
        assert_eq!(code, 0, "{err}");
        assert_eq!(row(&daemon).expect("it runs on")["state"], "running");
        // Then the other order: agentd after its broker's worker.
        daemon.kill();
        daemon.start_again();
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "it"])));
        assert_eq!(code, 0, "{err}");
        assert_eq!(record(&daemon)["exit"]["kind"], "stopped");
    }
}

#[test]
fn a_deadline_goes_on_counting() {
    // Time for a busy machine to bring the agent up and to end agentd before it is over.
    const LIMIT: &str = "10s";
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &["--timeout", LIMIT],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        daemon.kill();
        daemon.start_again();
        let (code, _, err) = text(&output(&mut daemon.agentctl(["wait", "it"])));
        assert_eq!(code, 124, "{err}");
        assert_eq!(record(&daemon)["exit"]["kind"], "timed-out");
    }
}

#[test]
fn an_upgrade_leaves_the_agents_to_the_new_programs() {
    for mode in modes() {
        let mut daemon = Daemon::with_config(mode, "[daemon]\non_stop = \"keep\"\n");
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &[],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        let pid = row(&daemon).expect("it runs")["pid"].clone();
        assert!(daemon.terminate().success(), "{}", daemon.log());
        // The new version: other files of the same name, in another directory.
        let new = crate::harness::dir_of(0);
        for name in ["agentd", "agentd-broker", "agentctl"] {
            put_program(&program(name), &new.path().join(name));
        }
        daemon.start_again_as(&new.path().join("agentd"));
        assert_eq!(row(&daemon).expect("it runs on")["pid"], pid);
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "it"])));
        assert_eq!(code, 0, "{err}");
        // Nobody is left to be kept.
        assert!(daemon.terminate().success(), "{}", daemon.log());
        let supervisor = daemon.supervisor;
        wait_until("the broker ends", || !is_alive(supervisor));
    }
}

#[test]
fn with_agentd_and_broker_gone_agents_die_at_once_and_the_record_is_closed() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &[],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        let pid = row(&daemon).expect("it runs")["pid"]
            .as_i64()
            .expect("a pid");
        signal(daemon.supervisor, Signal::KILL);
        signal(daemon.broker, Signal::KILL);
        daemon.kill();
        wait_until("it is dead", || {
            !is_alive(i32::try_from(pid).expect("a pid"))
        });
        daemon.start_again();
        assert_eq!(record(&daemon)["exit"]["kind"], "lost");
    }
}

/// Starts a command whose output goes into a file, so that a test can see how far it is.
fn into_file(mut command: std::process::Command, at: &Path) -> std::process::Child {
    let file = std::fs::File::create(at).expect("a file");
    command.stdout(file).stderr(std::process::Stdio::piped());
    command.spawn().expect("start the command")
}

#[test]
fn whoever_follows_an_agent_goes_on_after_the_restart() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = "echo one; until [ -e go ]; do sleep 0.02; done; echo two; exit 3";
        let mut command = daemon.agentctl(["run", "--no-tty", "--name", "it", "--workspace"]);
        command.arg(work.path()).args(["--", "sh", "-c", script]);
        let (ran, followed) = (
            daemon.dir.path().join("ran"),
            daemon.dir.path().join("followed"),
        );
        let read = |at: &Path| std::fs::read_to_string(at).expect("read a file");
        let running = into_file(command, &ran);
        wait_until("run shows output", || read(&ran) == "one\n");
        let following = into_file(daemon.agentctl(["logs", "--follow", "it"]), &followed);
        wait_until("logs shows output", || read(&followed) == "one\n");
        daemon.kill();
        daemon.start_again();
        go(work.path());
        for (child, at, code) in [(running, &ran, 3), (following, &followed, 0)] {
            let ended = child.wait_with_output().expect("wait");
            let (got, _, err) = text(&ended);
            assert_eq!((got, read(at).as_str()), (code, "one\ntwo\n"), "{err}");
            assert!(err.contains("agentd is back"), "{err}");
        }
    }
}

#[test]
fn whoever_waits_for_agentd_to_come_back_can_be_ended() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let mut command = daemon.agentctl(["run", "--no-tty", "--name", "it", "--workspace"]);
        command.arg(work.path());
        command.args(["--", "sh", "-c", "echo up; sleep 1000"]);
        let shown = daemon.dir.path().join("shown");
        let mut waiting = into_file(command, &shown);
        wait_until("it runs", || {
            std::fs::read_to_string(&shown).expect("read a file") == "up\n"
        });
        daemon.kill();
        let stderr = waiting.stderr.take().expect("piped");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
        let lost = lines.next().expect("a line").expect("text");
        assert!(lost.contains("waiting for it to come back"), "{lost}");
        let pid = rustix::process::Pid::from_child(&waiting);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signal it");
        let why = lines.next().expect("a line").expect("text");
        assert!(why.contains("TERM while waiting for agentd"), "{why}");
        assert!(!waiting.wait().expect("wait").success());
        daemon.start_again();
    }
}

#[test]
fn an_agent_outlives_agentd_by_its_grace_and_no_longer() {
    for mode in modes() {
        let mut daemon = Daemon::with_config(mode, "[daemon]\nlifeline_grace_ms = 300\n");
        let work = daemon.workspace();
        start(
            &daemon,
            work.path(),
            &[],
            &["sh", "-c", "touch up; sleep 1000"],
        );
        wait_for_file(&work.path().join("up"));
        let pid = row(&daemon).expect("it runs")["pid"]
            .as_i64()
            .expect("a pid");
        daemon.kill();
        wait_until("its grace is over", || {
            !is_alive(i32::try_from(pid).expect("a pid"))
        });
        daemon.start_again();
        assert_eq!(record(&daemon)["exit"]["kind"], "lost");
    }
}
