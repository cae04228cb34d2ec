//! The other verbs: what they print, for people and as JSON, and their exit codes.

use std::process::{Output, Stdio};

use serde_json::Value;

use crate::fake::{FakeDaemon, WATCHDOG, agentctl};

fn run(daemon: &FakeDaemon, args: &[&str]) -> Output {
    daemon
        .agentctl(args)
        .stdin(Stdio::null())
        .output()
        .expect("agentctl runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).expect("one JSON object on stdout")
}

#[test]
fn ps_lists_live_agents_aligned_and_without_control_characters() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["ps"]);
    assert_eq!(output.status.code(), Some(0));
    let text = text(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[0].starts_with("NAME  ID        STATE    POLICY  PID   TOKENS"),
        "{text}"
    );
    assert!(
        lines[1].starts_with("bob   feedbeef  running  coding  4711  12 345"),
        "{text}"
    );
    assert!(
        lines[1].contains(r"\u{1b}[2J") && !text.contains('\x1b'),
        "{text}"
    );

    let all = run(&daemon, &["ps", "--all"]);
    assert!(self::text(&all.stdout).contains("exited (3)"), "{all:?}");
    let ids = run(&daemon, &["ps", "-q"]);
    assert_eq!(ids.stdout, b"0198c0de-1111-7222-8333-4444feedbeef\n");
}

#[test]
fn ps_json_is_one_object() {
    let daemon = FakeDaemon::start();
    let object = json(&run(&daemon, &["ps", "--json", "-a"]));
    let agents = object["agents"].as_array().expect("a list");
    assert_eq!(agents.len(), 2);
    assert_eq!(agents[0]["name"], "bob");
    assert_eq!(agents[1]["exit_code"], 3);
    assert_eq!(agents[0]["exit_code"], Value::Null);
}

#[test]
fn inspect_shows_every_section() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["inspect", "bob"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    crate::help::compare("inspect.txt", &text(&output.stdout));
    let object = json(&run(&daemon, &["--json", "inspect", "bob"]));
    assert_eq!(object["tokens"]["input"], 1200);
}

#[test]
fn records_list_launches() {
    let daemon = FakeDaemon::start();
    let output = text(&run(&daemon, &["records"]).stdout);
    assert_eq!(output.lines().count(), 3, "{output}");
    assert!(
        output.contains("2026-11-21 10:53:07Z  bob   feedbeef  exited 0"),
        "{output}"
    );
    let object = json(&run(&daemon, &["records", "--json", "--limit", "1"]));
    assert_eq!(object["records"].as_array().map(Vec::len), Some(1));
}

#[test]
fn logs_are_copied_and_options_passed() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["logs", "bob", "--tail", "5", "-f"]);
    assert_eq!(text(&output.stdout), "tail=Some(5)\nfollow=Some(true)\n");
    let output = run(&daemon, &["--json", "logs", "bob"]);
    let first = text(&output.stdout);
    let line: Value = serde_json::from_str(first.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["line"], "tail=None");
}

#[test]
fn stop_signal_and_wait_reach_the_agent() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["stop", "--grace", "500ms", "bob", "feedbeef"]);
    assert_eq!(text(&output.stdout), "bob\nfeedbeef\n");
    assert_eq!(
        run(&daemon, &["signal", "bob", "sigusr1"]).status.code(),
        Some(0)
    );
    assert_eq!(run(&daemon, &["wait", "bob"]).status.code(), Some(124));
    let seen = daemon.seen.lock().expect("no panic");
    assert_eq!(seen.calls, ["stop 500", "stop 500", "signal 10"]);
}

#[test]
fn rights_are_taken_and_given_back_agent_by_agent() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["revoke", "net", "bob", "feedbeef"]);
    let said = "bob: net revoked, 1 connection shut\nfeedbeef: net revoked, 1 connection shut\n";
    assert_eq!(text(&output.stdout), said);
    let output = run(&daemon, &["revoke", "exec,write", "bob"]);
    assert_eq!(output.status.code(), Some(1));
    let why = "agentctl: can't revoke \"bob\": no BPF LSM here\n";
    assert_eq!(text(&output.stderr), why);
    let output = run(&daemon, &["restore", "all", "bob"]);
    assert_eq!(text(&output.stdout), "bob: nothing is taken from it\n");
    let output = run(&daemon, &["--json", "freeze", "bob"]);
    let now: Value = serde_json::from_str(&text(&output.stdout)).expect("JSON");
    assert_eq!(now["agents"][0]["agent"], "bob");
    assert_eq!(now["agents"][0]["frozen"]["uid"], 1000);
    assert_eq!(run(&daemon, &["thaw", "bob"]).status.code(), Some(4));
    assert_eq!(
        run(&daemon, &["revoke", "files", "bob"]).status.code(),
        Some(2)
    );
    let seen = daemon.seen.lock().expect("no panic");
    let asked = [
        "revoke [Net]",
        "revoke [Net]",
        "revoke [Exec, Write]",
        "restore []",
        "freeze",
    ];
    assert_eq!(seen.calls, asked);
}

#[test]
fn agents_are_tightened_by_a_policy_or_by_settings_and_told_what_cannot_change() {
    let daemon = FakeDaemon::start();
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("f.toml");
    std::fs::write(&file, "[fs]\nwrite = []\n").expect("write");
    let file = file.to_str().expect("UTF-8");
    let output = run(&daemon, &["tighten", "bob", "--policy", file]);
    let said = "bob: tightened by f, 2 closed on the bus\n\
                bob: f.toml:2: fs.write is not changed while it runs; revoke write\n";
    assert_eq!(text(&output.stdout), said);
    let one = "net.mode=none";
    let set = [
        "--json", "tighten", "bob", "--set", one, "--policy", "review",
    ];
    let now: Value = serde_json::from_str(&text(&run(&daemon, &set).stdout)).expect("JSON");
    assert_eq!(now["agents"][0]["tightened"][0]["name"], "f");
    let output = run(&daemon, &["tighten", "bob", "--set", "fs.write=/x"]);
    assert_eq!(
        text(&output.stderr),
        "agentctl: can't tighten \"bob\": --set fs.write: not changed\n"
    );
    assert_eq!(run(&daemon, &["tighten", "bob"]).status.code(), Some(2));
    assert_eq!(
        run(&daemon, &["tighten", "bob", "--set", "x"])
            .status
            .code(),
        Some(2)
    );
    run(&daemon, &["restore", "policy,net", "bob"]);
    let seen = daemon.seen.lock().expect("no panic");
    let asked = [
        "tighten None Some(\"[fs]\\nwrite = []\\n\") []",
        "tighten Some(\"review\") None [(\"net.mode\", \"none\")]",
        "tighten None None [(\"fs.write\", \"/x\")]",
        "restore [Policy, Net]",
    ];
    assert_eq!(seen.calls, asked);
}

#[test]
fn stopping_what_has_ended_is_no_failure() {
    let daemon = FakeDaemon::start();
    let output = run(&daemon, &["stop", "--grace", "1ms", "bob"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stderr),
        "agentctl: bob: it has already ended\n"
    );
}

#[test]
fn attach_without_stdin_only_watches() {
    let daemon = FakeDaemon::start();
    let child = daemon
        .agentctl(&["attach", "--no-stdin", "bob"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("agentctl runs");
    let pid = rustix::process::Pid::from_child(&child);
    let attached = || !daemon.seen.lock().expect("no panic").calls.is_empty();
    let started = std::time::Instant::now();
    while !attached() {
        assert!(started.elapsed() < WATCHDOG, "it does not attach");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("kill");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "leaving is no failure");
    assert!(text(&output.stderr).contains("runs on"), "{output:?}");
    let seen = daemon.seen.lock().expect("no panic");
    assert_eq!(seen.calls, ["attach stdin=Some(false)"]);
}

#[test]
fn failures_have_their_exit_codes() {
    let daemon = FakeDaemon::start();
    assert_eq!(run(&daemon, &["kill", "bob"]).status.code(), Some(4));
    let missing = run(&daemon, &["stop", "nobody", "bob"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        text(&missing.stdout),
        "bob\n",
        "one failure does not stop the rest"
    );
    assert_eq!(
        text(&missing.stderr),
        "agentctl: can't find agent \"nobody\": no agent of yours is called \"nobody\"\n  \
         try: agentctl ps --all\n"
    );
    assert_eq!(run(&daemon, &["inspect", "nobody"]).status.code(), Some(1));
    // This daemon does not implement Shutdown.
    assert_eq!(run(&daemon, &["shutdown"]).status.code(), Some(1));
}

#[test]
fn without_a_daemon_verbs_exit_3_and_name_the_directory() {
    let dir = tempfile::tempdir().expect("tempdir");
    for verb in [
        &["ps"][..],
        &["inspect", "x"],
        &["logs", "x"],
        &["stop", "x"],
    ] {
        let output = agentctl()
            .arg("--runtime-dir")
            .arg(dir.path())
            .args(verb)
            .output()
            .expect("agentctl runs");
        assert_eq!(output.status.code(), Some(3), "{verb:?}");
        let text = text(&output.stderr);
        assert!(text.contains(dir.path().to_str().expect("UTF-8")), "{text}");
        assert!(text.contains("agentctl run"), "{text}");
    }
}

#[test]
fn version_names_both_and_does_without_the_daemon() {
    let daemon = FakeDaemon::start();
    let both = text(&run(&daemon, &["version"]).stdout);
    assert!(
        both.contains("agentd   9.9.9 (API 1), user mode, pid 42"),
        "{both}"
    );
    let dir = tempfile::tempdir().expect("tempdir");
    let alone = agentctl()
        .arg("--runtime-dir")
        .arg(dir.path())
        .arg("version")
        .output();
    let alone = alone.expect("agentctl runs");
    assert_eq!(alone.status.code(), Some(0));
    assert!(text(&alone.stdout).contains("not running"));
}

#[test]
fn doctor_needs_no_daemon_and_names_every_probe() {
    let dir = tempfile::tempdir().expect("tempdir");
    let output = agentctl()
        .arg("--runtime-dir")
        .arg(dir.path())
        .args(["doctor", "--json"])
        .output();
    let output = output.expect("agentctl runs");
    let report = json(&output);
    let probes = report["probes"].as_array().expect("a list");
    assert_eq!(probes.len(), agentd_kernel::probe::Feature::ALL.len());
    let unmet = probes
        .iter()
        .any(|p| p["required"] == true && p["state"] != "supported");
    assert_eq!(output.status.code(), Some(i32::from(unmet)));
    assert_eq!(report["ok"], !unmet);
    assert_eq!(report["daemon"]["reachable"], false);
    assert_eq!(report["plane"]["source"], "probe");
    let groups = report["plane"]["groups"].as_array().expect("a list");
    let names: Vec<_> = groups.iter().map(|g| g["group"].clone()).collect();
    assert_eq!(names, agentd_api::PLANE_GROUPS);
    for group in groups {
        assert_eq!(group["ok"] == true, group["why"].is_null(), "{group}");
    }

    let daemon = FakeDaemon::start();
    let people = text(&run(&daemon, &["doctor"]).stdout);
    for line in [
        "✓ net ",
        "– sched              sched_switch: the verifier says no",
        "lost: agentctl sched",
    ] {
        assert!(people.contains(line), "{line} in {people}");
    }
    assert!(
        people.contains("✓ agentd 9.9.9 in user mode, pid 42"),
        "{people}"
    );
    for probe in probes {
        assert!(
            people.contains(probe["name"].as_str().expect("a name")),
            "{people}"
        );
    }
}

#[test]
fn policies_are_asked_and_compared_without_a_daemon() {
    let dir = tempfile::tempdir().expect("tempdir");
    let run = |args: &[&str]| {
        agentctl()
            .args(["policy"])
            .args(args)
            .current_dir(&dir)
            .output()
            .expect("agentctl runs")
    };
    let asked = run(&[
        "test",
        "coding",
        "--json",
        "--read",
        "src",
        "--read",
        "/root/x",
        "--write",
        "/usr/bin/git",
        "--connect",
        "github.com:443",
        "--tool",
        "Bash(git push)",
    ]);
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    let answers = json(&asked)["answers"].clone();
    let verdicts: Vec<&str> = answers
        .as_array()
        .expect("a list")
        .iter()
        .map(|a| a["verdict"].as_str().expect("a word"))
        .collect();
    assert_eq!(verdicts, ["allow", "deny", "deny", "allow", "allow"]);
    assert!(answers[0]["by"]["line"].as_u64() > Some(0), "{answers}");

    let file = dir.path().join("expect.toml");
    let expectations =
        "allow = [\"connect github.com:443\"]\ndeny = [\n  \"write ${workspace}/a\",\n]\n";
    std::fs::write(&file, expectations).expect("write");
    let missed = run(&["test", "coding", "--file", "expect.toml"]);
    assert_eq!(missed.status.code(), Some(1), "{missed:?}");
    let report = text(&missed.stdout);
    assert!(
        report.contains("expect.toml:3: deny was expected: allow  write ${workspace}/a"),
        "{report}"
    );
    assert!(report.contains("1 of 2 expectations met"), "{report}");
    let met = run(&[
        "test",
        "review",
        "--file",
        "expect.toml",
        "--set",
        "net.mode=proxy",
        "--set",
        "net.allow=github.com:443",
    ]);
    assert_eq!(met.status.code(), Some(0), "{met:?}");
    for wrong in [
        &["test", "coding"][..],
        &["test", "coding", "--connect", "x"],
        &["test", "coding", "--file", "none.toml"],
    ] {
        assert_eq!(run(wrong).status.code(), Some(2), "{wrong:?}");
    }

    let differ = run(&["diff", "coding", "review", "--json"]);
    assert_eq!(differ.status.code(), Some(1), "{differ:?}");
    let differ = json(&differ);
    let more = differ["left_exceeds"].as_array().expect("a list");
    assert!(more.iter().any(|e| e["key"] == "fs.write"), "{differ}");
    let differ = text(&run(&["diff", "coding", "review"]).stdout);
    assert!(
        differ.contains("coding allows more than review:"),
        "{differ}"
    );
    assert_eq!(run(&["diff", "base", "base"]).status.code(), Some(0));

    let schema = json(&run(&["schema"]));
    assert_eq!(schema["properties"]["fs"]["additionalProperties"], false);
}

#[test]
fn policies_are_listed_shown_and_linted_without_a_daemon() {
    let output = agentctl()
        .args(["policy", "list", "--json"])
        .output()
        .expect("agentctl runs");
    let names: Vec<Value> = json(&output)["policies"]
        .as_array()
        .expect("a list")
        .clone();
    assert!(names.iter().any(|p| p["name"] == "coding"), "{names:?}");

    let shown = agentctl()
        .args(["policy", "show", "base"])
        .output()
        .expect("agentctl runs");
    assert!(
        text(&shown.stdout).contains("base (built in):"),
        "{shown:?}"
    );
    let unknown = agentctl()
        .args(["policy", "show", "codign"])
        .output()
        .expect("agentctl runs");
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("coding"), "{unknown:?}");

    let dir = tempfile::tempdir().expect("tempdir");
    let file = dir.path().join("p.toml");
    std::fs::write(&file, "extends = \"base\"\nlimts = 1\n").expect("write");
    let lint = agentctl()
        .args(["policy", "lint"])
        .arg(&file)
        .output()
        .expect("agentctl runs");
    assert_eq!(lint.status.code(), Some(1));
    assert!(text(&lint.stdout).contains("p.toml:2"), "{lint:?}");
    let good = agentctl()
        .args(["policy", "lint", "base"])
        .output()
        .expect("agentctl runs");
    assert_eq!(good.status.code(), Some(0), "{good:?}");
}

#[test]
fn a_closed_stdout_exits_0() {
    let daemon = FakeDaemon::start();
    for verb in [
        &["ps"][..],
        &["--json", "ps"],
        &["logs", "bob"],
        &["completions", "bash"],
    ] {
        let (reader, writer) = std::io::pipe().expect("pipe");
        drop(reader);
        let status = daemon
            .agentctl(verb)
            .stdout(writer)
            .status()
            .expect("agentctl runs");
        assert_eq!(status.code(), Some(0), "{verb:?}");
    }
}

#[test]
fn completions_are_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = agentctl()
            .args(["completions", shell])
            .output()
            .expect("agentctl runs");
        assert!(text(&output.stdout).contains("agentctl"), "{shell}");
    }
}
