//! Tightening: a policy is laid over that of a running agent, takes what it does not allow, closes what is open by it, gives
//! nothing, and is lifted by the right hand only.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

use agentd_testkit::skip;
use serde_json::Value;

use crate::bus_verbs::{Talker, lanes_from};
use crate::harness::{ALICE, BOB, Daemon, Mode, dir_of, modes, ok, output, text, wait_until};
use crate::orders::Orders;
use crate::standin::Standin;

/// A driven agent that tries what it is ordered to.
const OBEDIENT: &str = r#"
import json, os, socket, subprocess, sys, urllib.error, urllib.request
print(json.dumps({"type": "ready"}), flush=True)
sys.stdin.readline()
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
tunnels = {}
streams = {}

def mcp(tool, arguments):
    meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "agent", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": tool, "arguments": arguments, "_meta": meta}}
    request = urllib.request.Request(os.environ["AGENTD_MCP_URL"], json.dumps(body).encode(), {
        "Content-Type": "application/json", "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool})
    result = json.load(opener.open(request))["result"]
    return "refused: " + result["content"][0]["text"].replace("\n", " ") if result.get("isError") else "ok"

def obey(verb, arg):
    if verb == "tunnel":
        s = tunnels[arg] = socket.create_connection(("127.0.0.1", 3128))
        s.sendall(b"CONNECT 127.0.0.1:%s HTTP/1.1\r\nHost: x\r\n\r\n" % arg.encode())
        return s.recv(4096).decode().replace("\r", "").replace("\n", " ")
    if verb == "echo":
        try:
            tunnels[arg].sendall(b"x")
            return tunnels[arg].recv(1).decode() or "ended"
        except ConnectionResetError:
            return "reset"
    if verb == "publish":
        return mcp("publish", {"topic": arg, "message": "x"})
    if verb == "model":
        try:
            return str(opener.open("http://127.0.0.1:8080/v1/models").status)
        except urllib.error.HTTPError as e:
            return str(e.code)
    if verb == "memory":
        # In a child, so that the kernel ends that one.
        hog = subprocess.run([sys.executable, "-c", "b'x' * (%s << 20)" % arg])
        return "ok" if hog.returncode == 0 else "refused: killed by %d" % -hog.returncode
    if verb == "fork":
        children = []
        try:
            for _ in range(int(arg)):
                children.append(subprocess.Popen(["sleep", "1000"]))
            return "ok"
        except BlockingIOError:
            return "refused: no more processes"
        finally:
            for child in children:
                child.kill()
                child.wait()
    if verb == "sh":
        ran = subprocess.run(["sh", "-c", arg], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said = ran.stdout.decode(errors="replace").replace("\n", " ")
        return "ok" if ran.returncode == 0 else "refused: %d %s" % (ran.returncode, said)
    if verb == "delegate":
        return mcp("task_submit", {"text": "x", "agent": arg})
    if verb == "stream":
        body = {"model": arg, "max_tokens": 1000, "stream": True, "messages": [{"role": "user", "content": "hi"}]}
        request = urllib.request.Request("http://127.0.0.1:8080/v1/messages", json.dumps(body).encode(),
            {"Content-Type": "application/json", "anthropic-version": "2023-06-01"})
        streams[arg] = opener.open(request)
        return next("ok" for line in streams[arg] if b"abcdefgh" in line)
    if verb == "rest":
        lines = [line for line in streams[arg] if line.startswith(b"data:")]
        return lines[-1].decode().strip()
    if verb == "tool":
        print(json.dumps({"type": "permission", "id": "p", "tool": "Bash", "input": {"command": arg}}), flush=True)
        verdict = json.loads(sys.stdin.readline())
        return "ok" if verdict["allow"] else "refused: " + verdict["why"]

with open("ask") as ask, open("answer", "w") as answer:
    for line in ask:
        verb, _, arg = line.strip().partition(" ")
        print(obey(verb, arg), file=answer, flush=True)
"#;

/// The agent, from outside.
pub struct Obedient {
    orders: Orders,
}

impl Obedient {
    /// Starts it as `uid`'s agent called `name`, in `work`, under `policy`.
    pub fn start(daemon: &Daemon, uid: u32, name: &str, work: &Path, policy: &str) -> Self {
        std::fs::write(work.join("agent.py"), OBEDIENT).expect("write the agent");
        let policy = file(work, "policy", policy);
        let options = [
            "run", "--detach", "--no-tty", "--driver", "jsonl", "--prompt", "go",
        ];
        let mut run = daemon.agentctl_as(uid, options);
        run.args(["--name", name, "--policy", &policy, "--workspace"]);
        run.arg(work).args(["--", "python3", "agent.py"]);
        let orders = Orders::start(work, uid, || {
            let (code, out, err) = text(&output(&mut run));
            assert_eq!(code, 0, "{out} {err}");
        });
        Self { orders }
    }

    pub fn told(&mut self, line: &str) -> String {
        self.orders.told(line)
    }

    pub fn is_refused(&mut self, line: &str) -> String {
        let said = self.told(line);
        assert!(
            said.starts_with("refused") || said.starts_with("HTTP/1.1 403"),
            "{line}: {said}"
        );
        said
    }

    pub fn is_done(&mut self, line: &str) {
        let said = self.told(line);
        assert!(
            said == "ok" || said.starts_with("HTTP/1.1 200"),
            "{line}: {said}"
        );
    }
}

/// A policy file in `dir`, with its path.
fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(format!("{name}.toml"));
    std::fs::write(&path, text).expect("write a policy");
    path.to_str().expect("UTF-8").to_owned()
}

/// Somebody on the host who gives back what comes.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            std::thread::spawn(move || {
                let mut byte = [0];
                // A reset from the proxy ends it as well.
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
    port
}

/// Free to reach these ports, to use the bus, and any tool.
fn open_policy(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports
        .iter()
        .map(|port| format!("{{ host = \"127.0.0.1:{port}\", private = true }}"))
        .collect();
    format!(
        "extends = \"coding\"\n[net]\nallow = [{}]\n",
        hosts.join(", ")
    )
}

fn ctl(daemon: &Daemon, uid: u32, args: &[&str]) -> (i32, String, String) {
    text(&output(&mut daemon.agentctl_as(uid, args)))
}

/// Until a refusal of the layer rests on this line.
pub fn is_told_with(daemon: &Daemon, uid: u32, layer: &str, line: &str) {
    wait_until("the refusal is on record with its line", || {
        let told = lines(daemon, uid, layer, "coder");
        told.iter().any(|told| told == line)
    });
}

/// The lines of the policy that refusals of `layer` rested on.
fn lines(daemon: &Daemon, uid: u32, layer: &str, agent: &str) -> Vec<String> {
    let denials = ok(daemon, uid, &["--json", "denials", agent]);
    let denials: Value = serde_json::from_str(&denials).expect("JSON");
    let all = denials["denials"].as_array().expect("a list").clone();
    let of_layer = all.iter().filter(|denial| denial["layer"] == layer);
    of_layer
        .filter_map(|denial| denial["origin"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn what_is_refused_now_ends_with_what_is_open_by_it_and_names_its_line() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let work = daemon.workspace();
        let (kept, gone) = (echo(), echo());
        let policy = open_policy(&[kept, gone]);
        let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), &policy);
        for port in [kept, gone] {
            agent.is_done(&format!("tunnel {port}"));
            assert_eq!(agent.told(&format!("echo {port}")), "x");
        }
        for wish in ["publish build.done", "publish secret", "tool git push"] {
            agent.is_done(wish);
        }
        let model = agent.told("model");
        assert_ne!(model, "403", "{mode:?}");

        let tight = file(
            work.path(),
            "tight",
            &format!(
                "extends = \"coding\"\n[net]\nallow = [\n  {{ host = \"127.0.0.1:{kept}\", private = true }},\n]\n\
                 [ipc]\npublish = {{ replace = [\"build.#\"] }}\nsubscribe = {{ replace = [\"build.#\"] }}\n\
                 [tools]\ndeny = [\"Bash(git push*)\"]\n[fs]\nwrite = [\"/srv/x\"]\n\
                 [model]\naccess = \"none\"\n"
            ),
        );
        let said = ok(&daemon, owner, &["tighten", "coder", "--policy", &tight]);
        assert_eq!(
            said,
            format!(
                "coder: tightened by tight, 1 connection shut\n\
                 coder: {tight}:12: fs.write is not changed while it runs; `agentctl revoke write` takes changing files \
                 from it; for the rest start it anew under the policy\n"
            ),
            "{mode:?}"
        );
        assert_eq!(agent.told(&format!("echo {gone}")), "reset", "{mode:?}");
        assert_eq!(agent.told(&format!("echo {kept}")), "x", "{mode:?}");
        agent.is_done(&format!("tunnel {kept}"));
        let why = agent.is_refused(&format!("tunnel {gone}"));
        assert!(why.contains(&format!("{tight}:4")), "{why}");
        for wish in ["publish build.done", "tool git status"] {
            agent.is_done(wish);
        }
        agent.is_refused("publish secret");
        let why = agent.is_refused("tool git push");
        assert!(why.contains(&format!("{tight}:10")), "{why}");
        assert_eq!(agent.told("model"), "403", "{mode:?}");
        for (layer, line) in [("egress", 4), ("bus", 7), ("driver", 10), ("gateway", 14)] {
            wait_until("the refusal is on record with its line", || {
                lines(&daemon, owner, layer, "coder") == [format!("{tight}:{line}")]
            });
        }
        let record = ok(&daemon, owner, &["inspect", "coder"]);
        let noted = format!("tightened by uid {owner} with policy tight (hash ");
        assert!(record.contains(&noted), "{record}");

        let said = ok(&daemon, owner, &["restore", "policy", "coder"]);
        assert_eq!(said, "coder: nothing is taken from it\n");
        for wish in [
            &*format!("tunnel {gone}"),
            "publish secret",
            "tool git push",
        ] {
            agent.is_done(wish);
        }
        assert_eq!(agent.told("model"), model);
        let record = ok(&daemon, owner, &["inspect", "coder"]);
        assert!(
            record.contains(&format!("policy restored by uid {owner}")),
            "{record}"
        );
        ok(&daemon, owner, &["kill", "coder"]);
        ok(&daemon, owner, &["audit", "verify"]);
    }
}

#[test]
fn what_would_allow_more_gives_nothing_and_what_cannot_hold_is_refused_by_name() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let work = daemon.workspace();
        let (own, other) = (echo(), echo());
        let policy = format!(
            "extends = \"coding\"\n[net]\nallow = [{{ host = \"127.0.0.1:{own}\", private = true }}]\n\
             [ipc]\npublish = {{ replace = [\"build.#\"] }}\n[tools]\ndeny = [\"Bash(curl *)\"]\nask = [\"Bash(make *)\"]\n"
        );
        let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), &policy);
        agent.is_refused(&format!("tunnel {other}"));
        let own_line = work.path().join("policy.toml").display().to_string() + ":3";
        wait_until("its own policy's line is on record", || {
            lines(&daemon, owner, "egress", "coder") == [own_line.as_str()]
        });
        let wide = file(work.path(), "wide", &open_policy(&[own, other]));
        let said = ok(&daemon, owner, &["tighten", "coder", "--policy", &wide]);
        assert_eq!(said, "coder: tightened by wide\n");
        agent.is_refused(&format!("tunnel {other}"));
        agent.is_refused("publish secret");
        agent.is_refused("tool curl x");
        // A question that waits is judged anew when somebody answers it.
        agent.orders.say("tool make all");
        let mut question = String::new();
        wait_until("a person is asked", || {
            let list = ok(&daemon, owner, &["--json", "approvals", "list"]);
            let list: Value = serde_json::from_str(&list).expect("JSON");
            let id = list["approvals"][0]["id"].as_str();
            question = id.unwrap_or_default().to_owned();
            !question.is_empty()
        });
        ok(
            &daemon,
            owner,
            &["tighten", "coder", "--set", "tools.deny=Bash(make *)"],
        );
        ok(&daemon, owner, &["approvals", "allow", &question]);
        let said = agent.orders.hear();
        assert!(
            said.starts_with("refused") && said.contains("--set tools.deny"),
            "{said}"
        );
        let refused = |args: &[&str], wanted: &[&str]| {
            let all = [&["tighten", "coder"], args].concat();
            let (code, out, err) = ctl(&daemon, owner, &all);
            assert!(code != 0 && out.is_empty(), "{args:?}: {code} {out}");
            for text in wanted {
                assert!(err.contains(text), "{args:?}: {text}: {err}");
            }
        };
        refused(
            &["--set", "fs.write=/srv", "--set", "net.mode=none"],
            &[
                "--set fs.write",
                "is not changed while the agent runs",
                "agentctl revoke write",
            ],
        );
        refused(
            &["--set", "net.alow=x"],
            &["there is no such setting", "net.allow"],
        );
        refused(
            &["--set", "limits.tokens=many"],
            &["limits.tokens", "a whole number"],
        );
        let broken = file(work.path(), "broken", "[net]\nmode = \"proxy\nallow = 1\n");
        refused(&["--policy", &broken], &[&format!("{broken}:2")]);
        refused(&["--policy", "codign"], &["codign", "coding"]);
        // Nothing of a refused tightening holds.
        agent.is_done(&format!("tunnel {own}"));
        agent.is_done("publish build.done");
        let said = ok(&daemon, owner, &["--json", "restore", "net", "coder"]);
        let now: Value = serde_json::from_str(&said).expect("JSON");
        assert_eq!(now["agents"][0]["tightened"][0]["name"], "wide", "{now}");
        ok(&daemon, owner, &["kill", "coder"]);
    }
}

#[test]
fn a_tightening_outlives_agentd_and_only_the_right_hand_lifts_it() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        // Under root's daemon root tightens, and she can't lift it; under her own there is only her.
        let (agents_owner, hand) = match mode {
            Mode::Root => (ALICE, 0),
            Mode::User => (daemon.owner(), daemon.owner()),
        };
        let work = dir_of(agents_owner);
        let (own, other) = (echo(), echo());
        let policy = open_policy(&[own, other]);
        let mut agent = Obedient::start(&daemon, agents_owner, "mine", work.path(), &policy);
        let set = format!("net.allow=127.0.0.1:{own}");
        let tighten = [
            "tighten",
            "mine",
            "--set",
            &set,
            "--set",
            "ipc.publish=build.#",
            "--set",
            "tools.deny=Bash(git push*)",
        ];
        if mode == Mode::Root {
            let (code, _, err) = ctl(&daemon, BOB, &tighten);
            assert_ne!(code, 0);
            assert!(err.contains("mine"), "{err}");
            agent.is_done("publish secret");
        }
        ok(&daemon, hand, &tighten);
        let is_tight = |agent: &mut Obedient| {
            agent.is_refused(&format!("tunnel {other}"));
            agent.is_refused("publish secret");
            agent.is_refused("tool git push");
            agent.is_done("publish build.done");
            agent.is_done("tool git status");
        };
        is_tight(&mut agent);
        // Its own address is private, and the setting lets public ones by alone.
        let why = agent.is_refused(&format!("tunnel {own}"));
        assert!(why.contains("loopback"), "{why}");
        daemon.kill();
        daemon.start_again();
        is_tight(&mut agent);
        if mode == Mode::Root {
            for all in ["policy", "all"] {
                let (code, _, err) = ctl(&daemon, ALICE, &["restore", all, "mine"]);
                assert_eq!(code, 4, "{err}");
                assert!(err.contains("uid 0 took it"), "{err}");
            }
            // What she adds is hers to lift, and no more.
            let said = ok(
                &daemon,
                ALICE,
                &["tighten", "mine", "--set", "tools.deny=*"],
            );
            assert!(said.contains("tools.deny=*"), "{said}");
            agent.is_refused("tool git status");
            ok(&daemon, ALICE, &["restore", "policy", "mine"]);
            is_tight(&mut agent);
        }
        ok(&daemon, hand, &["restore", "all", "mine"]);
        agent.is_done(&format!("tunnel {other}"));
        agent.is_done("publish secret");
        agent.is_done("tool git push");
        ok(&daemon, agents_owner, &["kill", "mine"]);
    }
}

#[test]
fn lanes_that_a_tightened_agent_may_not_have_are_closed_and_nobody_elses() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let uid = daemon.owner();
        let first = Talker::start(&daemon, uid, "talk", 0, 2);
        let second = Talker::start(&daemon, uid, "talk", 1, 2);
        let (name, other) = (first.name.as_str(), second.name.as_str());
        wait_until("both have lanes", || {
            !lanes_from(&daemon, name).is_empty() && !lanes_from(&daemon, other).is_empty()
        });
        let said = ok(
            &daemon,
            uid,
            &["--json", "tighten", name, "--set", "ipc.send=nobody"],
        );
        let now: Value = serde_json::from_str(&said).expect("JSON");
        assert!(now["agents"][0]["closed"].as_u64() > Some(0), "{now}");
        // Closed by the verb; listed until both sides have let go.
        wait_until("both sides have let go", || {
            lanes_from(&daemon, name).is_empty()
        });
        assert!(!lanes_from(&daemon, other).is_empty(), "the other's go on");
        // What is given back on the bus is what was taken there.
        ok(&daemon, uid, &["bus", "restore", name]);
        let denied = ok(&daemon, uid, &["--json", "restore", "net", name]);
        assert!(denied.contains("ipc.send=nobody"), "{denied}");
        ok(&daemon, uid, &["restore", "policy", name]);
        wait_until("it sends again", || !lanes_from(&daemon, name).is_empty());
    }
}

#[test]
fn limits_of_the_cgroup_are_lowered_while_it_runs_outlive_agentd_and_come_back() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let owner = daemon.owner();
        let work = daemon.workspace();
        let policy = "extends = \"coding\"\n[limits]\npids = 200\n";
        let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), policy);
        for wish in ["memory 200", "fork 60"] {
            agent.is_done(wish);
        }
        let fixed = ["tighten", "coder", "--set", "limits.nofile=10"];
        let (code, _, err) = ctl(&daemon, owner, &fixed);
        assert!(
            code != 0 && err.contains("start it anew"),
            "{mode:?}: {err}"
        );
        let tighten = [
            "tighten",
            "coder",
            "--set",
            "limits.memory=96MiB",
            "--set",
            "limits.pids=40",
        ];
        let (code, out, err) = ctl(&daemon, owner, &tighten);
        if code != 0 {
            // An ordinary user without a delegated cgroup; root without the controllers.
            for key in ["memory", "pids"] {
                let why = format!("this host gives agents' cgroups no {key} controller");
                assert!(err.contains(&why), "{mode:?}: {out}{err}");
            }
            assert_eq!(mode, Mode::User, "root's agents have limits: {err}");
            let named = file(
                work.path(),
                "named",
                "extends = \"coding\"\n[limits]\npids = 7\n",
            );
            let said = ok(&daemon, owner, &["tighten", "coder", "--policy", &named]);
            let line = format!("{named}:3: limits.pids is not changed while it runs; this host");
            assert!(said.contains(&line), "{said}");
            agent.is_done("fork 60");
            ok(&daemon, owner, &["kill", "coder"]);
            continue;
        }
        let is_tight = |agent: &mut Obedient| {
            agent.is_refused("memory 200");
            agent.is_refused("fork 60");
            agent.is_done("memory 16");
            agent.is_done("fork 10");
        };
        is_tight(&mut agent);
        // What would allow more gives nothing.
        let wide = ["--set", "limits.memory=64GiB", "--set", "limits.pids=4000"];
        ok(&daemon, owner, &[&["tighten", "coder"], &wide[..]].concat());
        is_tight(&mut agent);
        daemon.kill();
        daemon.start_again();
        is_tight(&mut agent);
        ok(&daemon, owner, &["restore", "policy", "coder"]);
        for wish in ["memory 200", "fork 60"] {
            agent.is_done(wish);
        }
        // The launch's own limit is back, not none.
        agent.is_refused("fork 250");
        ok(&daemon, owner, &["kill", "coder"]);
        ok(&daemon, owner, &["audit", "verify"]);
    }
}

#[test]
fn a_limit_below_what_is_in_use_changes_nothing_where_the_kernel_refuses_it() {
    let daemon = Daemon::start(modes()[0]);
    let v1 = Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes");
    if daemon.mode == Mode::User || !v1.exists() {
        return skip("cgroup-v1-memory", "no version 1 memory controller");
    }
    let owner = daemon.owner();
    let work = daemon.workspace();
    let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), &open_policy(&[]));
    let settings = ["--set", "limits.pids=40", "--set", "limits.memory=1MiB"];
    let tighten = [&["tighten", "coder"], &settings[..]].concat();
    let (code, out, err) = ctl(&daemon, owner, &tighten);
    assert!(code != 0 && out.is_empty(), "{code} {out}");
    assert!(
        err.contains("bytes of memory") && err.contains("limits.memory=1MiB"),
        "{err}"
    );
    for wish in ["memory 200", "fork 60"] {
        agent.is_done(wish);
    }
    let said = ok(&daemon, owner, &["--json", "restore", "net", "coder"]);
    let now: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        now["agents"][0]["tightened"],
        serde_json::json!([]),
        "{now}"
    );
    ok(&daemon, owner, &["kill", "coder"]);
}

#[test]
fn a_request_to_a_model_that_is_refused_now_is_cut_and_names_its_line() {
    const SCRIPT: &str = "[[rule]]\nname = \"hang\"\nreply = { text = 'abcdefgh ', hang = true, \
                          usage = { input = 40, output = 9 } }\n";
    for mode in modes() {
        let kit = tempfile::tempdir().expect("a directory");
        let standin = Standin::start(kit.path(), SCRIPT);
        // Silence ends a stream, too, long after the test has seen that the verb did not.
        let config = format!(
            "[model]\nidle_timeout_ms = 60000\n[model.anthropic]\nbase_url = \"http://{}\"\nkey = \"none\"\n",
            standin.address
        );
        let daemon = Daemon::with_config(mode, &config);
        let owner = daemon.owner();
        let work = daemon.workspace();
        let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), &open_policy(&[]));
        for setting in ["model.models=a-*", "model.access=none", "limits.tokens=20"] {
            agent.is_done("stream m-1");
            let said = ok(&daemon, owner, &["tighten", "coder", "--set", setting]);
            let (key, _) = setting.split_once('=').expect("key=value");
            assert_eq!(
                said,
                format!("coder: tightened by {setting}, 1 request to a model cut\n"),
                "{mode:?}"
            );
            let rest = agent.told("rest m-1");
            let line = format!("--set {key}");
            assert!(
                rest.contains("\"error\"") && rest.contains(&line),
                "{mode:?} {setting}: {rest}"
            );
            is_told_with(&daemon, owner, "gateway", &line);
            ok(&daemon, owner, &["restore", "policy", "coder"]);
        }
        // What is allowed still goes on.
        agent.is_done("stream m-1");
        let settings = ["--set", "model.models=m-*", "--set", "limits.tokens=9000"];
        let tighten = [&["--json", "tighten", "coder"], &settings[..]].concat();
        let now: Value = serde_json::from_str(&ok(&daemon, owner, &tighten)).expect("JSON");
        assert_eq!(now["agents"][0]["cut"], 0, "{now}");
        ok(&daemon, owner, &["kill", "coder"]);
        ok(&daemon, owner, &["audit", "verify"]);
    }
}

#[test]
fn a_task_for_whom_it_may_not_ask_any_more_is_told_with_the_line() {
    let daemon = Daemon::start(modes()[0]);
    let owner = daemon.owner();
    let work = daemon.workspace();
    let mut agent = Obedient::start(&daemon, owner, "coder", work.path(), &open_policy(&[]));
    agent.is_done("delegate backend");
    ok(
        &daemon,
        owner,
        &["tighten", "coder", "--set", "ipc.request=nobody"],
    );
    let why = agent.is_refused("delegate backend");
    assert!(why.contains("--set ipc.request"), "{why}");
    is_told_with(&daemon, owner, "bus", "--set ipc.request");
    ok(&daemon, owner, &["kill", "coder"]);
}
