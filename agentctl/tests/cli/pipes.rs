//! `agentctl run` between pipes: nothing lost, nothing reordered, the program's own exit code.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Output, Stdio};

use agentd_api::StdioMode;

use crate::fake::FakeDaemon;

fn run(daemon: &FakeDaemon, args: &[&str]) -> Output {
    daemon
        .agentctl(args)
        .stdin(Stdio::null())
        .output()
        .expect("agentctl runs")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it exited")
}

#[test]
fn the_exit_code_is_the_programs() {
    let daemon = FakeDaemon::start();
    for expected in [0, 1, 42, 255] {
        let output = run(&daemon, &["run", "exit", &expected.to_string()]);
        assert_eq!(code(&output), expected, "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn launch_failures_have_the_exit_codes_of_docker_and_env() {
    let daemon = FakeDaemon::start();
    let cases = [
        ("denied", 125),
        ("refused", 125),
        ("daemon-fault", 125),
        ("not-executable", 126),
        ("no-such-program", 127),
        ("exec-fails", 127),
        ("times-out", 124),
        ("vanishes", 125),
        ("talks-nonsense", 125),
    ];
    for (program, expected) in cases {
        let output = run(&daemon, &["run", program]);
        assert_eq!(code(&output), expected, "{program}: {output:?}");
        assert!(!output.stderr.is_empty(), "{program} must explain itself");
    }
}

#[test]
fn an_error_says_what_why_and_what_to_try() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["run", "refused"]);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(
        text,
        "agentctl: can't run \"refused\": because the test says so\n  try: agentctl doctor\n"
    );
    let output = run(&daemon, &["--json", "run", "refused"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stderr).expect("one object");
    assert_eq!(json["error"]["code"], "launch-refused");
    assert_eq!(json["error"]["exit_code"], 125);
}

#[test]
fn input_comes_back_whole_and_ends() {
    let daemon = FakeDaemon::start();
    let mut child = daemon
        .agentctl(&["run", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut stdin = child.stdin.take().expect("piped");
    let to_send = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&to_send));
    let mut back = Vec::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_end(&mut back)
        .expect("read");
    writer
        .join()
        .expect("no panic")
        .expect("all of it was taken");
    assert!(
        back == sent,
        "{} of {} bytes came back alike",
        back.len(),
        sent.len()
    );
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_file_can_be_stdin_and_stdout() {
    let daemon = FakeDaemon::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let content = "line\n".repeat(100_000);
    std::fs::write(&from, &content).expect("write");
    let status = daemon
        .agentctl(&["run", "cat"])
        .stdin(std::fs::File::open(&from).expect("open"))
        .stdout(std::fs::File::create(&to).expect("create"))
        .status()
        .expect("agentctl runs");
    assert!(status.success());
    assert!(std::fs::read_to_string(&to).expect("read") == content);
}

#[test]
fn much_output_for_a_slow_reader_is_whole_and_in_order() {
    let daemon = FakeDaemon::start();
    let mut child = daemon
        .agentctl(&["run", "count", "500000"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    let stdout = BufReader::with_capacity(512, child.stdout.take().expect("piped"));
    let mut next = 0;
    for line in stdout.lines() {
        assert_eq!(line.expect("text"), next.to_string());
        next += 1;
    }
    assert_eq!(next, 500_000);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn stdout_and_stderr_stay_apart() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["run", "both"]);
    assert_eq!(output.stdout, b"one\nthree\n");
    assert_eq!(output.stderr, b"two\n");
}

#[test]
fn stdout_and_stderr_into_one_pipe_keep_their_order() {
    let daemon = FakeDaemon::start();
    let (mut reader, writer) = std::io::pipe().expect("pipe");
    let mut child = daemon
        .agentctl(&["run", "both"])
        .stdin(Stdio::null())
        .stdout(writer.try_clone().expect("dup"))
        .stderr(writer)
        .spawn()
        .expect("agentctl runs");
    // The command holds the write ends until it is dropped; spawn's temporary is gone here.
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("text");
    assert_eq!(text, "one\ntwo\nthree\n");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn signals_are_passed_on() {
    let daemon = FakeDaemon::start();
    let mut child = daemon
        .agentctl(&["run", "signals"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    let pid = rustix::process::Pid::from_child(&child);
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut expect = |text: &str| {
        let mut line = String::new();
        stdout.read_line(&mut line).expect("text");
        assert_eq!(line, text);
    };
    expect("ready\n");
    use rustix::process::Signal;
    for (signal, text) in [
        (Signal::INT, "signal 2\n"),
        (Signal::INT, "signal 2\n"),
        (Signal::HUP, "signal 1\n"),
        (Signal::USR1, "signal 10\n"),
        // Ctrl-Z: a stop that can't be ignored, so that it always has an effect.
        (Signal::TSTP, "signal 19\n"),
    ] {
        rustix::process::kill_process(pid, signal).expect("kill");
        expect(text);
    }
    rustix::process::kill_process(pid, Signal::TERM).expect("kill");
    assert_eq!(child.wait().expect("it ends").code(), Some(143));
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut stderr)
        .expect("text");
    assert!(stderr.contains("agentctl kill"), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_and_exits_0() {
    let daemon = FakeDaemon::start();
    let mut child = daemon
        .agentctl(&["run", "pipe-victim"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    drop(child.stdout.take());
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(b"x").expect("agentctl reads");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(0));
}

#[test]
fn an_end_without_reading_all_input_is_an_ordinary_end() {
    let daemon = FakeDaemon::start();
    let mut child = daemon
        .agentctl(&["run", "refuses-input"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || {
        // Ends with EPIPE when agentctl does.
        stdin.write_all(&vec![b'x'; 4_000_000])
    });
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut text)
        .expect("text");
    assert_eq!(text, "enough\n");
    assert_eq!(child.wait().expect("it ends").code(), Some(5));
    assert!(writer.join().expect("no panic").is_err());
}

#[test]
fn lost_output_is_told() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["run", "loses-output"]);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        text.contains("77 bytes") && text.contains("agentctl logs bob"),
        "{text}"
    );
}

#[test]
fn json_comes_on_stderr_and_leaves_stdout_to_the_program() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["--json", "run", "both"]);
    assert_eq!(output.stdout, b"one\nthree\n");
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    let last = text.lines().last().expect("a line");
    let json: serde_json::Value = serde_json::from_str(last).expect("an object");
    assert_eq!(json["record"], "0198c0de-1111-7222-8333-4444feedbeef");
    assert_eq!(json["exit"]["exit_code"], 0);
    assert_eq!(json["layers"][0], "seccomp");
}

#[test]
fn detach_prints_the_id_and_returns() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["run", "-d", "--name", "x", "cat"]);
    assert_eq!(output.stdout, b"0198c0de-1111-7222-8333-4444feedbeef\n");
    let spec = daemon.last_launch();
    assert_eq!(spec.detach, Some(true));
    assert_eq!(spec.attach, Some(false));
    assert_eq!(spec.name.as_deref(), Some("x"));
}

#[test]
fn the_spec_says_what_was_typed_and_the_grant_is_the_workspace() {
    let daemon = FakeDaemon::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let work = dir.path().canonicalize().expect("exists");
    let output = daemon
        .agentctl(&[
            "run",
            "--timeout",
            "1m30s",
            "--policy",
            "base",
            "--set",
            "limits.pids=7",
        ])
        .args([
            "-e",
            "A=b=c",
            "-e",
            "TERM",
            "-e",
            "NOT_SET_HERE",
            "--workspace",
        ])
        .arg(&work)
        .args(["--", "exit", "0"])
        .env("TERM", "xterm")
        .env("SECRET_KEY", "hunter2")
        .stdin(Stdio::null())
        .output()
        .expect("agentctl runs");
    assert_eq!(code(&output), 0, "{output:?}");
    let spec = daemon.last_launch();
    assert_eq!(spec.argv, ["exit", "0"]);
    assert_eq!(spec.policy.as_deref(), Some("base"));
    assert_eq!(spec.timeout_ms, Some(90_000));
    assert_eq!(spec.stdio, Some(StdioMode::Pipes));
    assert_eq!(spec.workspace.as_deref(), work.to_str());
    let settings = spec.settings.clone().expect("settings");
    let expected = [
        ("limits.pids", "7"),
        ("env.set.A", "b=c"),
        ("env.set.TERM", "xterm"),
    ];
    assert_eq!(
        settings,
        expected.map(|(k, v)| (k.to_owned(), v.to_owned()))
    );
    assert!(!format!("{spec:?}").contains("hunter2"), "{spec:?}");
}

#[test]
fn the_workspace_is_granted_as_the_policy_says() {
    let daemon = FakeDaemon::start();
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    let work = dir.path().canonicalize().expect("exists");
    let output = daemon
        .agentctl(&["run", "--policy", "coding", "--workspace"])
        .arg(&work)
        .args(["exit", "0"])
        .stdin(Stdio::null())
        .output()
        .expect("agentctl runs");
    assert_eq!(code(&output), 0, "{output:?}");
    let seen = daemon.seen.lock().expect("no panic");
    let grants = &seen.grants;
    assert_eq!(
        grants[0],
        (work, agentd_kernel::grant::Access::ReadWrite),
        "{grants:?}"
    );
}

#[test]
fn what_cannot_be_meant_is_a_usage_error() {
    let daemon = FakeDaemon::start();
    let cases: &[&[&str]] = &[
        &["run"],
        &["run", "--timeout", "soon", "true"],
        &["run", "--set", "novalue", "true"],
        &["run", "--workspace", "/no/such/dir", "true"],
        &["run", "--workspace", "/", "true"],
        &["run", "--policy", "/no/such.toml", "true"],
        &["run", "--prompt", "x", "true"],
        &["run", "--detach-keys", "f12", "true"],
        &["run", "--driver", "telepathy", "true"],
        &["signal", "bob", "HELLO"],
        &["frobnicate"],
    ];
    for case in cases {
        let output = run(&daemon, case);
        assert_eq!(code(&output), 2, "{case:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{case:?} must explain itself");
    }
    let seen = daemon.seen.lock().expect("no panic");
    assert!(
        seen.launches.is_empty(),
        "nothing may be launched by a wrong command line"
    );
}

#[test]
fn a_broken_policy_is_told_with_file_line_and_key() {
    let daemon = FakeDaemon::start();
    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("mine.toml");
    std::fs::write(&file, "extends = \"base\"\n[limits]\nmemroy = \"1GiB\"\n").expect("write");
    let output = daemon
        .agentctl(&["run", "--policy"])
        .arg(&file)
        .arg("true")
        .output()
        .expect("agentctl runs");
    assert_eq!(code(&output), 125);
    let text = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(
        text.contains("mine.toml:3") && text.contains("memroy"),
        "{text}"
    );
}
