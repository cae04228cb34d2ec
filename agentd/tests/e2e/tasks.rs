//! Tasks with real driven agents: they are done, in order, once, again after a death, and only for their owner.

use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{
    ALICE, BOB, Daemon, Mode, dir_of, is_root, modes, output, text, wait_child, wait_until,
};

/// A JSON-lines agent that does as the first word of its turn says.
const AGENT: &str = r#"
import json, os, sys, time, urllib.request

def say(message):
    print(json.dumps(message), flush=True)

def call(tool, **arguments):
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "agent", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": tool, "arguments": arguments, "_meta": meta}}
    request = urllib.request.Request(os.environ["AGENTD_MCP_URL"], json.dumps(body).encode(), {
        "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool})
    # The proxy of the sandbox is not for its own loopback.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    result = json.load(opener.open(request))["result"]
    if result.get("isError"):
        raise RuntimeError(result["content"][0]["text"])
    return result["structuredContent"]

def work(words):
    verb, rest = words[0], words[1:]
    if verb == "echo":
        return " ".join(rest)
    if verb == "gate":
        while not os.path.exists(rest[0]):
            time.sleep(0.005)
        return "through " + rest[0]
    if verb == "hang":
        interrupt = json.loads(sys.stdin.readline())
        assert interrupt["type"] == "interrupt", interrupt
        open("interrupted", "w").close()
        raise RuntimeError("interrupted")
    if verb == "die-once":
        if not os.path.exists("died"):
            open("died", "w").close()
            os._exit(7)
        return "survived"
    if verb == "fail":
        with open("failed", "a") as log:
            log.write("x")
        raise RuntimeError("no idea")
    if verb == "lead":
        ids = [call("task_submit", text="echo part of " + name, agent=name, request_id=name)["id"] for name in rest]
        again = call("task_submit", text="echo part of " + rest[0], agent=rest[0], request_id=rest[0])
        assert again == {"id": ids[0], "new": False}, again
        done = [call("task_result", id=one) for one in ids]
        assert all(one["ended"] for one in done), done
        assert len(call("task_list")["tasks"]) == len(ids)
        return " + ".join(one["result"] for one in done)
    if verb == "try":
        try:
            return json.dumps(call(rest[0], **json.loads(" ".join(rest[1:]))))
        except RuntimeError as error:
            return "refused: " + str(error)
    raise RuntimeError("unknown verb " + verb)

say({"type": "ready"})
for line in iter(sys.stdin.readline, ""):
    turn = json.loads(line)
    if turn["type"] != "turn":
        continue
    try:
        say({"type": "result", "id": turn["id"], "text": work(turn["text"].split())})
    except RuntimeError as error:
        say({"type": "result", "id": turn["id"], "text": str(error), "error": True})
"#;

/// Some agents of one user, each in the same workspace.
struct Crew<'a> {
    daemon: &'a Daemon,
    uid: u32,
    work: tempfile::TempDir,
}

impl<'a> Crew<'a> {
    fn new(daemon: &'a Daemon, uid: u32) -> Self {
        let work = dir_of(uid);
        std::fs::write(work.path().join("agent.py"), AGENT).expect("write the agent");
        Self { daemon, uid, work }
    }

    fn start(&self, name: &str) {
        self.start_under(name, "coding");
    }

    fn start_under(&self, name: &str, policy: &str) {
        let mut command = self.daemon.agentctl_as(
            self.uid,
            ["run", "--detach", "--driver", "jsonl", "--name", name],
        );
        command.args(["--policy", policy, "--workspace"]);
        command.arg(self.work.path());
        let (code, _, err) = text(&output(command.args(["--", "python3", "agent.py"])));
        assert_eq!(code, 0, "{err}");
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.work.path().join(name)
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").expect("write a file");
    }

    fn ctl(&self, args: &[&str]) -> (i32, String, String) {
        text(&output(
            self.daemon.agentctl_as(self.uid, ["tasks"]).args(args),
        ))
    }

    /// Submits and gives the id.
    fn submit(&self, args: &[&str]) -> String {
        let (code, out, err) = self.ctl(&[&["submit"], args].concat());
        assert_eq!(code, 0, "{args:?}: {err}");
        out.trim().to_owned()
    }

    fn show(&self, id: &str) -> Value {
        let (code, out, err) = self.ctl(&["show", "--json", id]);
        assert_eq!(code, 0, "{err}");
        serde_json::from_str(&out).expect("JSON")
    }

    fn state(&self, id: &str) -> String {
        self.show(id)["state"].as_str().expect("a state").to_owned()
    }

    fn wait_for(&self, id: &str, state: &str) {
        wait_until(&format!("task {id} is {state}"), || self.state(id) == state);
    }

    /// The states that a task went through.
    fn life(&self, id: &str) -> Vec<String> {
        let document = self.show(id);
        let steps = document["transitions"].as_array().expect("a list").iter();
        steps
            .map(|it| it["to"].as_str().expect("a word").to_owned())
            .collect()
    }
}

fn owner(daemon: &Daemon) -> u32 {
    match daemon.mode {
        Mode::Root => ALICE,
        Mode::User => daemon.owner(),
    }
}

fn spawn(crew: &Crew<'_>, args: &[&str]) -> Child {
    let mut command = crew.daemon.agentctl_as(crew.uid, ["tasks"]);
    command
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("start agentctl")
}

#[test]
fn a_task_is_done_by_its_agent_and_its_whole_life_is_on_record() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let crew = Crew::new(&daemon, owner(&daemon));
        // Before there is anybody who could do it.
        let early = crew.submit(&["--agent", "coder", "echo", "hello"]);
        let why = crew.show(&early)["waits_because"].to_string();
        assert!(why.contains("no agent named coder"), "{why}");
        crew.start("coder");
        let (code, out, err) =
            crew.ctl(&["submit", "--agent", "coder", "--wait", "echo", "second"]);
        assert_eq!((code, out.as_str()), (0, "second\n"), "{err}");
        crew.wait_for(&early, "succeeded");
        assert_eq!(
            crew.life(&early),
            ["queued", "assigned", "running", "succeeded"]
        );
        let document = crew.show(&early);
        assert_eq!(document["result"], "hello");
        assert_eq!(document["agent"], "coder");
        let (_, out, err) = text(&output(
            &mut daemon.agentctl_as(crew.uid, ["inspect", "coder"]),
        ));
        let link = format!("attempt 1 of task {early}");
        assert!(out.contains(&link), "{out}{err}");
        let (_, out, _) = crew.ctl(&["show", &early]);
        assert!(out.contains("coder gave a result"), "{out}");
        let (code, _, err) = crew.ctl(&[
            "submit",
            "--agent",
            "coder",
            "--retries",
            "0",
            "--wait",
            "fail",
        ]);
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("attempt 1 failed: no idea"), "{err}");
    }
}

#[test]
fn urgent_tasks_go_first_and_dependants_wait() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let crew = Crew::new(&daemon, owner(&daemon));
        crew.start("coder");
        let gate = crew.submit(&["--agent", "coder", "gate", "open"]);
        crew.wait_for(&gate, "running");
        let low = crew.submit(&["--agent", "coder", "-p", "low", "echo", "low"]);
        let after = crew.submit(&[
            "--agent", "coder", "-p", "9", "--after", &low, "echo", "after",
        ]);
        let urgent = crew.submit(&["--agent", "coder", "-p", "urgent", "echo", "urgent"]);
        assert_eq!(crew.state(&after), "waiting");
        crew.touch("open");
        crew.wait_for(&after, "succeeded");
        let began = |id: &str| {
            let document = crew.show(id);
            let steps = document["transitions"].as_array().expect("a list").clone();
            let running = steps.into_iter().find(|it| it["to"] == "running");
            running.expect("it ran")["seq"].as_i64().expect("a number")
        };
        assert!(
            began(&gate) < began(&urgent)
                && began(&urgent) < began(&low)
                && began(&low) < began(&after)
        );

        // A chain whose first link fails.
        let bad = crew.submit(&["--agent", "coder", "--retries", "0", "fail"]);
        let fails = crew.submit(&["--agent", "coder", "--after", &bad, "echo", "x"]);
        let skip = ["--on-dependency-failure", "skip", "echo", "x"];
        let skips = crew.submit(&[&["--agent", "coder", "--after", &fails][..], &skip].concat());
        crew.wait_for(&skips, "cancelled");
        assert_eq!(
            (crew.state(&bad).as_str(), crew.state(&fails).as_str()),
            ("failed", "failed")
        );
    }
}

#[test]
fn a_task_outlives_its_agent_and_its_failed_attempts() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let crew = Crew::new(&daemon, owner(&daemon));
        crew.start("coder");
        let id = crew.submit(&["--agent", "coder", "--backoff", "1ms", "die-once"]);
        wait_until("the agent is gone", || {
            let (_, out, _) = text(&output(&mut daemon.agentctl_as(crew.uid, ["ps"])));
            !out.contains("coder")
        });
        crew.wait_for(&id, "queued");
        crew.start("coder");
        crew.wait_for(&id, "succeeded");
        assert_eq!(
            crew.life(&id),
            [
                "queued",
                "assigned",
                "running",
                "queued",
                "assigned",
                "running",
                "succeeded"
            ]
        );
        assert_eq!(crew.show(&id)["attempt"], 2);

        let hopeless = crew.submit(&[
            "--agent",
            "coder",
            "--retries",
            "2",
            "--backoff",
            "1ms",
            "fail",
        ]);
        crew.wait_for(&hopeless, "failed");
        assert_eq!(
            std::fs::read_to_string(crew.path("failed")).expect("the agent's log"),
            "xxx"
        );
        let (code, again, err) = crew.ctl(&["retry", &hopeless]);
        assert_eq!(code, 0, "{err}");
        let again = again.trim();
        assert_ne!(again, hopeless);
        crew.wait_for(again, "failed");
        assert_eq!(crew.show(again)["retry_of"], hopeless);
    }
}

#[test]
fn a_deadline_and_a_cancel_interrupt_the_agent() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let crew = Crew::new(&daemon, owner(&daemon));
        crew.start("coder");
        let cancelled = crew.submit(&["--agent", "coder", "hang"]);
        crew.wait_for(&cancelled, "running");
        let (code, _, err) = crew.ctl(&["cancel", &cancelled]);
        assert_eq!(code, 0, "{err}");
        assert_eq!(crew.state(&cancelled), "cancelled");
        wait_until("the agent was interrupted", || {
            crew.path("interrupted").exists()
        });
        std::fs::remove_file(crew.path("interrupted")).expect("remove the mark");
        // It is free again, so that the next task is its own at once.
        let (code, out, err) = crew.ctl(&["submit", "--agent", "coder", "--wait", "echo", "free"]);
        assert_eq!((code, out.as_str()), (0, "free\n"), "{err}");

        // Long enough for a busy machine to hand the task over: one that is over before is never begun.
        let (code, _, err) = crew.ctl(&[
            "submit",
            "--agent",
            "coder",
            "--deadline",
            "5s",
            "--wait",
            "hang",
        ]);
        assert_eq!(code, 124, "{err}");
        wait_until("the agent was interrupted", || {
            crew.path("interrupted").exists()
        });
        // It is free again.
        let (code, out, err) = crew.ctl(&["submit", "--agent", "coder", "--wait", "echo", "free"]);
        assert_eq!((code, out.as_str()), (0, "free\n"), "{err}");
        let (code, _, err) = crew.ctl(&["cancel", &cancelled]);
        assert_eq!(code, 1);
        assert!(err.contains("ended already"), "{err}");
    }
}

#[test]
fn eight_clients_with_one_request_id_submit_one_task() {
    let mode = modes()[0];
    let daemon = Daemon::start(mode);
    let crew = Crew::new(&daemon, owner(&daemon));
    let args = [
        "submit",
        "--agent",
        "coder",
        "--request-id",
        "once",
        "echo",
        "once",
    ];
    let clients: Vec<Child> = (0..8).map(|_| spawn(&crew, &args)).collect();
    let ids: std::collections::BTreeSet<String> = clients
        .into_iter()
        .map(|mut client| {
            assert!(wait_child(&mut client).success());
            let output = client.wait_with_output().expect("its output");
            String::from_utf8(output.stdout).expect("UTF-8")
        })
        .collect();
    assert_eq!(ids.len(), 1, "{ids:?}");
    let (_, out, _) = crew.ctl(&["list", "--all", "--quiet"]);
    assert_eq!(out.lines().count(), 1);
    let (code, _, err) = crew.ctl(&[
        "submit",
        "--agent",
        "coder",
        "--request-id",
        "once",
        "echo",
        "other",
    ]);
    assert_eq!(code, 1);
    assert!(err.contains("used for another task"), "{err}");
}

#[test]
fn a_coordinator_delegates_to_specialists_and_gathers_their_results() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let crew = Crew::new(&daemon, owner(&daemon));
        for name in ["lead", "frontend", "backend"] {
            crew.start(name);
        }
        let (code, out, err) = crew.ctl(&[
            "submit", "--agent", "lead", "--wait", "lead", "frontend", "backend",
        ]);
        assert_eq!(
            (code, out.as_str()),
            (0, "part of frontend + part of backend\n"),
            "{err}"
        );
        let (_, out, _) = crew.ctl(&["list", "--all", "--json"]);
        let list: Value = serde_json::from_str(&out).expect("JSON");
        let parent = list["tasks"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|it| it["parent"].is_null());
        let parent = parent.expect("the first task")["id"]
            .as_str()
            .expect("an id")
            .to_owned();
        let document = crew.show(&parent);
        let results: Vec<&str> = document["children"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|child| child["result"].as_str().expect("a result"))
            .collect();
        assert_eq!(results, ["part of frontend", "part of backend"]);
        let (_, shown, _) = crew.ctl(&["show", &parent]);
        assert!(shown.contains("Children: 2 of 2 succeeded"), "{shown}");

        // Others' tasks are not an agent's to see, and nobody delegates to itself.
        let foreign = crew.submit(&["--agent", "nobody", "echo", "x"]);
        let tries = [
            (
                format!(r#"task_cancel {{"id": "{foreign}"}}"#),
                "you delegated no task",
            ),
            (
                r#"task_submit {"text": "x", "agent": "lead"}"#.to_owned(),
                "to itself",
            ),
            (r#"task_submit {"text": "x"}"#.to_owned(), "exactly one of"),
        ];
        for (call, says) in tries {
            let (_, out, err) = crew.ctl(&["submit", "--agent", "lead", "--wait", "try", &call]);
            assert!(
                out.contains("refused") && out.contains(says),
                "{call}: {out}{err}"
            );
        }
    }
}

#[test]
fn a_policy_says_to_whom_an_agent_may_delegate() {
    let daemon = Daemon::start(modes()[0]);
    let crew = Crew::new(&daemon, owner(&daemon));
    let policy = "extends = \"coding\"\n[ipc]\nrequest = { replace = [\"backend\"] }\n";
    std::fs::write(crew.path("narrow.toml"), policy).expect("write the policy");
    let policy = crew.path("narrow.toml");
    crew.start_under("lead", policy.to_str().expect("UTF-8"));
    let ask = |agent: &str| {
        let call = format!(r#"task_submit {{"text": "echo x", "agent": "{agent}"}}"#);
        let (_, out, err) = crew.ctl(&["submit", "--agent", "lead", "--wait", "try", &call]);
        format!("{out}{err}")
    };
    let refused = ask("frontend");
    assert!(refused.contains("does not let it delegate"), "{refused}");
    let line = format!("{}:3", policy.display());
    wait_until("the refusal is told, with the line of the policy", || {
        let mut denials = daemon.agentctl_as(crew.uid, ["--json", "denials", "lead"]);
        let told: Value = serde_json::from_str(&text(&output(&mut denials)).1).expect("JSON");
        let mut told = told["denials"].as_array().expect("a list").iter();
        told.any(|it| {
            let wanted = ["bus", "request", "frontend", line.as_str()];
            ["layer", "what", "target", "origin"].map(|field| &it[field]) == wanted
        })
    });
    let taken = ask("backend");
    assert!(taken.contains("\"new\": true"), "{taken}");
}

#[test]
fn users_have_their_own_tasks() {
    if !is_root() {
        return agentd_testkit::skip("root", "two users need root: run the tests with sudo");
    }
    let daemon = Daemon::start(Mode::Root);
    let (alice, bob) = (Crew::new(&daemon, ALICE), Crew::new(&daemon, BOB));
    alice.start("coder");
    let secret = alice.submit(&["--agent", "coder", "echo", "secret"]);
    // Bob's task for an agent of that name is not Alice's agent's.
    let bobs = bob.submit(&["--agent", "coder", "echo", "bob"]);
    alice.wait_for(&secret, "succeeded");
    assert_eq!(bob.state(&bobs), "queued");
    for verb in ["show", "cancel", "retry", "watch"] {
        let (code, out, err) = bob.ctl(&[verb, &secret]);
        assert_eq!((code, out.as_str()), (1, ""), "{verb}");
        assert!(err.contains("no task is called"), "{verb}: {err}");
    }
    let (_, out, _) = bob.ctl(&["list", "--all", "--quiet"]);
    assert_eq!(out.trim(), bobs);
    let (code, _, err) = bob.ctl(&[
        "submit", "--agent", "coder", "--after", &secret, "echo", "x",
    ]);
    assert_eq!(code, 1, "{err}");
}

#[test]
fn a_watcher_sees_each_change_until_the_end() {
    let daemon = Daemon::start(modes()[0]);
    let crew = Crew::new(&daemon, owner(&daemon));
    let id = crew.submit(&["--agent", "coder", "echo", "x"]);
    let mut watcher = spawn(&crew, &["watch", &id]);
    let mut lines = std::io::BufReader::new(watcher.stdout.take().expect("piped"));
    let mut first = String::new();
    std::io::BufRead::read_line(&mut lines, &mut first).expect("a line");
    assert!(first.contains("queued"), "{first}");
    crew.start("coder");
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut lines, &mut rest).expect("the rest");
    assert!(wait_child(&mut watcher).success());
    let states: Vec<&str> = rest
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert_eq!(states, ["assigned", "running", "succeeded"], "{rest}");
}

/// The queue is in the record, so a daemon that dies takes nothing with it.
#[test]
fn what_was_acknowledged_is_there_for_the_next_daemon() {
    let mut daemon = Daemon::start(modes()[0]);
    let ids: Vec<String> = {
        let crew = Crew::new(&daemon, owner(&daemon));
        (0..3)
            .map(|n| crew.submit(&["--agent", "coder", "echo", &n.to_string()]))
            .collect()
    };
    daemon.kill();
    let database: &Path = &daemon.state_dir().join("agentd.db");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let open = runtime.block_on(async {
        let store = crate::harness::record_of_the_dead(database).await;
        store.open_tasks().await.expect("readable")
    });
    let found: Vec<&str> = open.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(found, ids.iter().map(String::as_str).collect::<Vec<_>>());
}
