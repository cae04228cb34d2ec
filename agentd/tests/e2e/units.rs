//! Declared agents: started with their user's own directories, restarted as their unit says, and never taken from a
//! place that agentd may not read.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::harness::{
    self, ALICE, BOB, Daemon, Mode, WATCHDOG, as_user, dir_of, is_root, modes, output, program,
    runtime, text, wait_until,
};

/// A daemon whose system units lie in a directory of the test, and that directory.
fn daemon(mode: Mode) -> (Daemon, tempfile::TempDir) {
    let owner = match mode {
        Mode::Root => 0,
        Mode::User if is_root() => ALICE,
        Mode::User => rustix::process::geteuid().as_raw(),
    };
    let units = dir_of(owner);
    let config = format!("[units]\ndirs = [{:?}]\n", units.path());
    (Daemon::with_config(mode, &config), units)
}

/// Writes a file that belongs to whoever owns the directory, as an administrator or a user would.
fn write(dir: &Path, place: &str, content: &str) {
    use std::os::unix::fs::MetadataExt as _;
    let path = dir.join(place);
    let parent = path.parent().expect("a parent");
    std::fs::create_dir_all(parent).expect("mkdir");
    std::fs::write(&path, content).expect("write");
    if is_root() {
        let owner = std::fs::metadata(dir).expect("the directory").uid();
        for made in [parent, &path] {
            std::os::unix::fs::chown(made, Some(owner), Some(owner)).expect("chown");
        }
    }
}

fn ok(daemon: &Daemon, args: &[&str]) -> String {
    harness::ok(daemon, daemon.owner(), args)
}

fn status(daemon: &Daemon, unit: &str) -> Value {
    let out = ok(daemon, &["agents", "show", "--json", unit]);
    let document: Value = serde_json::from_str(&out).expect("JSON");
    document["status"].clone()
}

fn wait_state(daemon: &Daemon, unit: &str, state: &str) -> Value {
    let mut last = Value::Null;
    let start = std::time::Instant::now();
    while last["state"] != state {
        assert!(
            start.elapsed() < WATCHDOG,
            "{unit} is not {state} but {last}"
        );
        last = status(daemon, unit);
    }
    last
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[test]
fn a_rule_that_nothing_would_hold_refuses_the_unit() {
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        let unit = |deny| format!("[run]\ncommand = [\"true\"]\n\n[tools]\ndeny = [{deny:?}]\n");
        write(units.path(), "pattern.toml", &unit("Read(.env*)"));
        write(units.path(), "driver.toml", &unit("WebSearch"));
        ok(&daemon, &["agents", "reload"]);
        let start = ["agents", "start", "pattern"];
        let (code, _, err) = text(&output(&mut daemon.agentctl(start)));
        assert_ne!(code, 0);
        assert!(
            err.contains("Read(.env*)") && err.contains("nothing would hold it"),
            "{err}"
        );
        ok(&daemon, &["agents", "start", "driver"]);
    }
}

#[test]
fn a_failing_unit_is_restarted_until_its_start_limit_which_says_so() {
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        let work = daemon.workspace();
        let runs = work.path().join("runs");
        write(
            units.path(),
            "crash.toml",
            &format!(
                "[run]\ncommand = [\"sh\", \"-c\", \"echo $AGENTD_TRIGGER >> runs; exit 3\"]\nworkspace = {:?}\n\
                 [restart]\ndelay = \"20ms\"\njitter = \"0%\"\nburst = 3\n",
                work.path()
            ),
        );
        ok(&daemon, &["agents", "reload"]);
        for round in 1..=2 {
            // Whether the program still lives when the answer comes is nobody's promise.
            output(&mut daemon.agentctl(["agents", "start", "crash"]));
            let status = wait_state(&daemon, "crash", "failed");
            let why = status["why"].as_str().expect("a reason");
            assert!(
                why.contains("start limit reached: restarted 3 times within 10m, and then it exited with code 3")
                    && why.contains("agentctl agents start crash"),
                "{why}"
            );
            assert_eq!(
                lines(&runs),
                4 * round,
                "the first start and three restarts"
            );
        }
        let told = std::fs::read_to_string(&runs).expect("runs");
        assert_eq!(
            told.lines().take(2).collect::<Vec<_>>(),
            ["start", "restart"]
        );
        let list = ok(&daemon, &["agents", "list"]);
        assert!(list.contains("crash") && list.contains("failed"), "{list}");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["agents", "start", "crsh"])));
        assert_eq!(code, 1);
        assert!(
            err.contains("no unit is called `crsh`; there are crash"),
            "{err}"
        );
    }
}

#[test]
fn a_killed_agent_comes_back_and_a_stopped_one_does_not() {
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        write(
            units.path(),
            "steady.toml",
            "[run]\ncommand = [\"sh\", \"-c\", \"echo up; sleep 1000\"]\nstop_grace = \"2s\"\n[restart]\ndelay = \"10ms\"\n",
        );
        ok(&daemon, &["agents", "reload"]);
        let out = ok(&daemon, &["agents", "start", "steady"]);
        assert!(out.starts_with("steady running: steady"), "{out}");
        let first = status(&daemon, "steady")["agents"][0]["id"].clone();
        ok(&daemon, &["signal", "steady", "KILL"]);
        wait_until("another agent of the unit runs", || {
            let agents = status(&daemon, "steady")["agents"].clone();
            agents[0]["id"].is_string() && agents[0]["id"] != first
        });
        assert_eq!(status(&daemon, "steady")["restarts"], 1);
        let record = ok(&daemon, &["inspect", "--json", "steady"]);
        assert!(record.contains("\"unit\":\"steady\""), "{record}");
        wait_until("its output is in the log", || {
            ok(&daemon, &["agents", "logs", "steady"]).contains("up")
        });
        let again = ok(&daemon, &["agents", "restart", "steady"]);
        assert!(again.contains("running"), "{again}");
        assert_eq!(
            ok(&daemon, &["agents", "stop", "steady"]),
            "steady inactive\n"
        );
        assert_eq!(status(&daemon, "steady")["agents"], serde_json::json!([]));
        assert_eq!(ok(&daemon, &["ps", "-q"]), "");
    }
}

#[test]
fn instances_of_a_template_work_each_in_its_place() {
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        let work = daemon.workspace();
        for name in ["api", "web"] {
            write(work.path(), &format!("{name}/here"), "");
        }
        write(
            units.path(),
            "coder@.toml",
            &format!(
                "[run]\ncommand = [\"sh\", \"-c\", \"touch %p-%i; sleep 1000\"]\nworkspace = \"{}/%i\"\nstop_grace = \"0s\"\n",
                work.path().display()
            ),
        );
        write(
            units.path(),
            "coder@web.toml.d/role.toml",
            "[agent]\nrole = \"frontend\"\n",
        );
        ok(&daemon, &["agents", "reload"]);
        ok(&daemon, &["agents", "start", "coder@api", "coder@web"]);
        for name in ["api", "web"] {
            let made = work.path().join(name).join(format!("coder-{name}"));
            wait_until("the instance works in its place", || made.exists());
        }
        assert_eq!(status(&daemon, "coder@web")["role"], "frontend");
        assert_eq!(status(&daemon, "coder@api")["role"], Value::Null);
        let uuids = ["coder@api", "coder@web"].map(|u| status(&daemon, u)["uuid"].clone());
        assert!(uuids[0].is_string() && uuids[0] != uuids[1], "{uuids:?}");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["agents", "start", "coder@"])));
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("it is a template"), "{err}");
        ok(&daemon, &["agents", "stop", "coder@api", "coder@web"]);
    }
}

#[test]
fn a_reload_takes_all_or_nothing() {
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        write(units.path(), "good.toml", "[run]\ncommand = [\"true\"]\n");
        ok(&daemon, &["agents", "reload"]);
        write(units.path(), "good.toml", "[run]\ncommand = [\"false\"]\n");
        write(
            units.path(),
            "bad.toml",
            "[run]\ncommand = [\"x\"]\npolicy = \"codin\"\n\n[restart]\npolicy = \"sometimes\"\ndelya = \"1s\"\n",
        );
        let (code, out, err) = text(&output(&mut daemon.agentctl(["agents", "reload"])));
        assert_eq!(code, 1, "{out}");
        for needle in [
            "bad.toml:6: restart.policy = \"sometimes\": this is not one of the words; allowed are never, on-failure, on-abnormal, always",
            "bad.toml:7: restart.delya: there is no such key in [restart]; did you mean delay?",
        ] {
            assert!(err.contains(needle), "{err}\nshould say {needle}");
        }
        let shown = ok(&daemon, &["agents", "show", "good"]);
        assert!(shown.contains("[\"true\"]"), "the old set holds: {shown}");
        write(
            units.path(),
            "bad.toml",
            "[run]\ncommand = [\"x\"]\npolicy = \"codin\"\n[tools]\ndeny = [\"Bash(\"]\n",
        );
        let (code, _, err) = text(&output(&mut daemon.agentctl(["agents", "reload"])));
        assert_eq!(code, 1);
        assert!(
            err.contains("bad.toml:3: run.policy = \"codin\": no policy is named")
                && err.contains("coding"),
            "{err}"
        );
        std::fs::remove_file(units.path().join("bad.toml")).expect("remove");
        let out = ok(&daemon, &["agents", "reload"]);
        assert_eq!(out, "~ good\n    run.command: [\"true\"] -> [\"false\"]\n");
        assert_eq!(ok(&daemon, &["agents", "reload"]), "nothing has changed\n");
    }
}

#[test]
fn a_users_directory_is_read_by_the_user_alone() {
    if !is_root() {
        agentd_testkit::skip("root", "a root agentd and a user of it need root");
        return;
    }
    let (daemon, _units) = daemon(Mode::Root);
    let home = dir_of(ALICE);
    write(home.path(), "work/here", "");
    write(
        home.path(),
        "agents/mine.toml",
        &format!(
            "[run]\ncommand = [\"sh\", \"-c\", \"ls > seen; sleep 1000\"]\nworkspace = {:?}\n",
            home.path().join("work")
        ),
    );
    // Nobody but alice can so much as enter it.
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    let service =
        std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("agentd's status");
    let uids = service
        .lines()
        .find(|line| line.starts_with("Uid:"))
        .expect("uids");
    assert!(
        !uids
            .split_whitespace()
            .skip(1)
            .any(|uid| uid == "0" || uid == ALICE.to_string()),
        "{uids}"
    );

    let from = home.path().join("agents");
    let mut start = daemon.agentctl_as(ALICE, ["agents", "start", "--from"]);
    let (code, out, err) = text(&output(start.arg(&from).arg("mine")));
    assert_eq!(code, 0, "{out} {err}");
    wait_until("the agent sees its workspace", || {
        std::fs::read_to_string(home.path().join("work/seen"))
            .is_ok_and(|seen| seen.contains("here"))
    });
    // It is alice's: nobody else's list has it, and root's has.
    for (uid, args, code) in [
        (BOB, &["agents", "show", "mine"][..], 1),
        (BOB, &["agents", "stop", "mine"][..], 1),
        (0, &["agents", "show", "mine"][..], 0),
        (ALICE, &["agents", "stop", "mine"][..], 0),
    ] {
        let (got, out, err) = text(&output(&mut daemon.agentctl_as(uid, args)));
        assert_eq!(got, code, "{uid} {args:?}: {out} {err}");
    }
    let (_, out, _) = text(&output(&mut daemon.agentctl_as(BOB, ["agents", "list"])));
    assert!(!out.contains("mine"), "{out}");
    // Directories of alice are alice's to hand over, not root's.
    let (code, _, err) = text(&output(
        &mut daemon.agentctl_as(0, ["agents", "start", "mine"]),
    ));
    assert_eq!(code, 4, "{err}");
}

#[test]
fn an_enabled_unit_starts_with_the_daemon() {
    for mode in modes() {
        let (mut daemon, units) = daemon(mode);
        let work = daemon.workspace();
        write(work.path(), "a/here", "");
        for (name, place) in [("keeper.toml", ""), ("keeper@.toml", "/%i")] {
            let workspace = format!("{}{place}", work.path().display());
            let unit = format!(
                "[run]\ncommand = [\"sh\", \"-c\", \"touch up; sleep 1000\"]\nworkspace = {workspace:?}\nstop_grace = \"0s\"\n"
            );
            write(units.path(), name, &unit);
        }
        ok(&daemon, &["agents", "reload"]);
        for unit in ["keeper", "keeper@a"] {
            let out = ok(&daemon, &["agents", "enable", unit]);
            assert_eq!(out, format!("{unit} inactive, enabled\n"));
        }
        let uuid = status(&daemon, "keeper@a")["uuid"].clone();
        daemon.restart();
        for (unit, made) in [("keeper", "up"), ("keeper@a", "a/up")] {
            wait_state(&daemon, unit, "running");
            wait_until("it works in its workspace", || {
                work.path().join(made).exists()
            });
        }
        assert_eq!(status(&daemon, "keeper@a")["uuid"], uuid, "kept for ever");
        ok(
            &daemon,
            &["agents", "disable", "--now", "keeper", "keeper@a"],
        );
        daemon.restart();
        for unit in ["keeper", "keeper@a"] {
            assert_eq!(status(&daemon, unit)["state"], "inactive");
        }
    }
}

#[test]
fn configuration_is_checked_shown_and_compared_without_starting_anything() {
    let (daemon, units) = daemon(Mode::User);
    write(
        units.path(),
        "a.toml",
        "[agent]\nrole = \"qa\"\n[run]\ncommand = [\"true\"]\n",
    );
    write(
        units.path(),
        "a.toml.d/10-more.toml",
        "[budget]\nmemory = \"1GiB\"\n",
    );
    let config = daemon.dir.path().join("agentd.toml");
    let agentctl = |args: &[&str]| {
        let mut command = as_user(program("agentctl"), daemon.owner());
        command
            .args(args)
            .arg("--config")
            .arg(&config)
            .stdin(std::process::Stdio::null());
        text(&output(&mut command))
    };
    let (code, out, err) = agentctl(&["config", "check"]);
    assert_eq!(code, 0, "{out} {err}");
    assert!(out.starts_with("ok: ") && out.contains("1 unit\n"), "{out}");
    let (_, out, _) = agentctl(&["config", "show", "--origin", "a"]);
    for needle in [
        "agent.role",
        "a.toml:2",
        "budget.memory",
        "10-more.toml:2",
        "restart.policy",
        "default",
    ] {
        assert!(out.contains(needle), "{out}\nshould have {needle}");
    }
    let (_, out, _) = agentctl(&["config", "show", "--origin"]);
    assert!(
        out.contains("units.dirs")
            && out.contains("agentd.toml:2")
            && out.contains("daemon.max_agents"),
        "{out}"
    );

    let diff = |daemon: &Daemon| text(&output(&mut daemon.agentctl(["config", "diff"])));
    let (code, out, err) = diff(&daemon);
    assert_eq!(code, 1, "{err}");
    assert_eq!(out, "+ a\n", "{err}");
    ok(&daemon, &["agents", "reload"]);
    let (code, out, err) = diff(&daemon);
    assert_eq!(
        (code, out.as_str()),
        (0, "the files say what agentd has taken in\n"),
        "{err}"
    );

    write(
        units.path(),
        "a.toml.d/10-more.toml",
        "[budget]\nmemory = \"much\"\ntoken = 5\n",
    );
    std::fs::write(
        &config,
        format!("[units]\ndirs = [{:?}]\npool_ceiling = 0\n", units.path()),
    )
    .expect("write");
    let (code, out, _) = agentctl(&["config", "check"]);
    assert_eq!(code, 1, "{out}");
    assert!(
        out.contains("`units.pool_ceiling = 0` is not allowed; 1 to 1000 agents"),
        "{out}"
    );
    std::fs::write(&config, format!("[units]\ndirs = [{:?}]\n", units.path())).expect("write");
    let (code, out, _) = agentctl(&["config", "check"]);
    assert_eq!(code, 1, "{out}");
    for needle in [
        "10-more.toml:2: budget.memory = \"much\"",
        "10-more.toml:3: budget.token: there is no such key in [budget]; did you mean tokens?",
    ] {
        assert!(out.contains(needle), "{out}\nshould have {needle}");
    }
}

/// An agent that speaks JSON lines and holds each turn until the file `go` is there.
const WORKER: &str = r#"
echo '{"type":"ready"}'
while read -r line; do
    case $line in *'"type":"turn"'*) ;; *) continue ;; esac
    id=$(printf %s "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
    until [ -e go ]; do sleep 0.02; done
    printf '{"type":"result","id":"%s","text":"done"}\n' "$id"
done
"#;

/// Gives tasks to a role, as the user of this test, and calls `meanwhile` before it waits for them; their last states.
fn run_tasks(daemon: &Daemon, role: &str, count: usize, meanwhile: impl FnOnce()) -> Vec<String> {
    runtime().block_on(async {
        let connection = daemon.control().await;
        let tasks = agentd_api::tasks::TasksProxy::new(&connection)
            .await
            .expect("a proxy");
        let mut ids = Vec::new();
        for number in 0..count {
            let spec = agentd_api::tasks::TaskSpec {
                role: Some(role.to_owned()),
                text: format!("job {number}"),
                ..agentd_api::tasks::TaskSpec::default()
            };
            ids.push(tasks.submit(&spec).await.expect("submit").id);
        }
        meanwhile();
        let mut states = Vec::new();
        for id in ids {
            states.push(tasks.wait(&id).await.expect("wait"));
        }
        states
    })
}

#[test]
fn a_pool_grows_for_tasks_to_its_ceiling_and_shrinks_again() {
    // The tasks are those of whoever runs this test.
    let (daemon, units) = daemon(if is_root() { Mode::Root } else { Mode::User });
    let work = daemon.workspace();
    write(work.path(), "worker.sh", WORKER);
    write(
        units.path(),
        "pool.toml",
        &format!(
            "[agent]\nname = \"worker\"\nrole = \"worker\"\n[run]\ncommand = [\"sh\", \"worker.sh\"]\ndriver = \"jsonl\"\nworkspace = {:?}\n\
             [pool]\nmin = 1\nmax = 3\nidle = \"1s\"\n[triggers]\non_task = true\n",
            work.path()
        ),
    );
    ok(&daemon, &["agents", "reload"]);
    let out = ok(&daemon, &["agents", "start", "pool"]);
    assert!(out.contains("running: worker.1\n"), "{out}");
    let names = || -> Vec<String> {
        let status = status(&daemon, "pool");
        let agents = status["agents"].as_array().cloned().unwrap_or_default();
        agents
            .iter()
            .filter_map(|a| a["name"].as_str().map(str::to_owned))
            .collect()
    };
    let states = run_tasks(&daemon, "worker", 5, || {
        wait_until("the pool has grown", || names().len() == 3);
        assert_eq!(names(), ["worker.1", "worker.2", "worker.3"]);
        std::fs::write(work.path().join("go"), "").expect("let them go on");
    });
    assert_eq!(states, ["succeeded"; 5]);
    wait_until("the pool is as small as before", || names().len() == 1);
    assert_eq!(status(&daemon, "pool")["state"], "running");
}

#[test]
fn a_pool_does_not_grow_while_a_member_gets_ready() {
    let (daemon, units) = daemon(if is_root() { Mode::Root } else { Mode::User });
    let work = daemon.workspace();
    let late = format!("until [ -e up ]; do sleep 0.02; done\n{WORKER}");
    write(work.path(), "worker.sh", &late);
    std::fs::write(work.path().join("go"), "").expect("hold no turn");
    write(
        units.path(),
        "pool.toml",
        &format!(
            "[agent]\nname = \"late\"\nrole = \"late\"\n[run]\ncommand = [\"sh\", \"worker.sh\"]\ndriver = \"jsonl\"\nworkspace = {:?}\n\
             [pool]\nmin = 1\nmax = 3\n[triggers]\non_task = true\n",
            work.path()
        ),
    );
    ok(&daemon, &["agents", "reload"]);
    ok(&daemon, &["agents", "start", "pool"]);
    let states = run_tasks(&daemon, "late", 2, || {
        // Each of these makes the daemon look for a free agent once more.
        for _ in 0..5 {
            ok(&daemon, &["tasks", "list"]);
        }
        std::fs::write(work.path().join("up"), "").expect("let it be ready");
    });
    assert_eq!(states, ["succeeded"; 2]);
    let launched = ok(&daemon, &["records"]);
    assert!(launched.contains("late.1"), "{launched}");
    assert!(!launched.contains("late.3"), "{launched}");
}

#[test]
fn a_message_wakes_a_waiting_unit() {
    if !Path::new("/usr/bin/curl").exists() {
        agentd_testkit::skip(
            "curl",
            "an agent of this test publishes with curl: install curl",
        );
        return;
    }
    for mode in modes() {
        let (daemon, units) = daemon(mode);
        let work = daemon.workspace();
        write(
            units.path(),
            "woken.toml",
            &format!(
                "[run]\ncommand = [\"sh\", \"-c\", \"echo $AGENTD_TRIGGER > woken\"]\nworkspace = {:?}\n\
                 [triggers]\non_message = [\"build.*.failed\"]\n",
                work.path()
            ),
        );
        ok(&daemon, &["agents", "reload"]);
        assert_eq!(
            ok(&daemon, &["agents", "start", "woken"]),
            "woken waiting\n"
        );
        let publish = |topic: &str| {
            let version = "2026-07-28";
            let call = serde_json::json!({
                "jsonrpc": "2.0", "id": 1, "method": "tools/call",
                "params": {
                    "name": "publish", "arguments": {"topic": topic, "message": "x"},
                    "_meta": {
                        "io.modelcontextprotocol/protocolVersion": version,
                        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
                        "io.modelcontextprotocol/clientCapabilities": {},
                    },
                },
            });
            let script = format!(
                "curl -sS --noproxy '*' -H 'Content-Type: application/json' -H 'MCP-Protocol-Version: {version}' \
                 -H 'MCP-Method: tools/call' -H 'MCP-Name: publish' \
                 -H 'Accept: application/json, text/event-stream' -d '{call}' \"$AGENTD_MCP_URL\""
            );
            let (code, out, err) = text(&daemon.run(work.path(), &["sh", "-c", &script]));
            assert_eq!(code, 0, "{out} {err}");
            assert!(
                out.contains("result") && !out.contains("\"isError\":true"),
                "{out}"
            );
        };
        publish("build.linux.done");
        assert_eq!(status(&daemon, "woken")["state"], "waiting");
        publish("build.linux.failed");
        let woken = work.path().join("woken");
        wait_until("the unit has run", || {
            std::fs::read_to_string(&woken).is_ok_and(|t| t == "message build.linux.failed\n")
        });
        wait_state(&daemon, "woken", "waiting");
    }
}
