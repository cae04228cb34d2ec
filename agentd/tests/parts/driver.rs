//! Conversations with driven agents: the real bus, the real record, and on the other end of the pipes a program played
//! by the test, or the real Claude Code (`AGENTD_TEST_CLAUDE` names its binary) against the stand-in model.

use std::process::Stdio;
use std::sync::Arc;

use agentd::agents::Caller;
use agentd::approvals::{Approvals, Change};
use agentd::bus::{AgentPort, BusServer, Unrecorded};
use agentd::driver::{Conversation, NoTasks, Outcome, Said, claude, work_port};
use agentd_api::approvals::{Answer, Approval, Decision};
use agentd_api::{AgentId, AgentIdentity};
use agentd_orchestrator::driver::{Machine, claude::Claude, jsonl::Jsonl};
use agentd_sandbox::rules::ToolRule;
use agentd_sandbox::rules::ipc::NamePattern;
use agentd_sandbox::{IpcRules, Origin, ToolRules};
use agentd_storage::{
    Direction, Event, Fact, Launch, LaunchId, Record, Store, UsageSource, Viewer,
};
use agentd_testkit::skip;
use agentd_testkit::standin::{Script, Standin};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream, Lines};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::lab::WATCHDOG;

const OWNER: u32 = 1000;

/// A bus and a record, on which agents are put.
pub struct House {
    bus: BusServer,
    store: Store,
    approvals: Arc<Approvals>,
    folder: TempDir,
}

/// An agent of the house, before its conversation begins.
pub struct Guest {
    pub port: AgentPort,
    id: LaunchId,
}

impl House {
    pub async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().join("record.db")).await.unwrap();
        Self {
            bus: BusServer::start(Arc::new(Unrecorded)),
            approvals: Approvals::start(store.clone()).await.unwrap(),
            store,
            folder,
        }
    }

    pub async fn guest(&self, name: &str) -> Guest {
        let identity = AgentIdentity::new(AgentId::new(), name, OWNER);
        let id = LaunchId::new(identity.id.to_string());
        let launch = Fact::Launch(Launch {
            name: name.into(),
            uid: OWNER,
            ..Launch::default()
        });
        self.store
            .record_durable(Event::now(id.clone(), launch))
            .await
            .unwrap();
        let everyone = || vec![NamePattern::parse("#").unwrap()];
        let rules = IpcRules {
            send: everyone(),
            request: everyone(),
            publish: everyone(),
            subscribe: everyone(),
            shared_memory: true,
            tightened: Vec::new(),
        };
        let socket = std::os::unix::net::UnixListener::bind(self.folder.path().join(name)).unwrap();
        let port = self.bus.attach(identity, rules, socket).unwrap();
        Guest { port, id }
    }

    /// A conversation with `guest`, and what the agent says in it.
    pub fn conversation(
        &self,
        guest: &Guest,
        machine: impl Machine + 'static,
        prompt: Option<&str>,
    ) -> (Conversation, mpsc::Receiver<Said>) {
        let (said, words) = mpsc::channel(1024);
        let rule = |text| vec![ToolRule::parse(text, Origin::built_in("test")).unwrap()];
        let conversation = Conversation {
            machine: Box::new(machine),
            port: guest.port.clone(),
            store: self.store.clone(),
            tools: ToolRules {
                allow: Vec::new(),
                deny: rule("Bash(rm *)"),
                ask: rule("Bash(touch *)"),
                ..ToolRules::default()
            }
            .into(),
            approvals: Arc::clone(&self.approvals),
            unit: None,
            workspace: None,
            prompt: prompt.map(str::to_owned),
            work: work_port(Arc::default()).1,
            tasks: Arc::new(NoTasks),
            delegation: None,
            said,
            sent: 0,
            history: None,
            start_limit: WATCHDOG,
            from: 0,
        };
        (conversation, words)
    }

    /// A JSON-lines agent whose other end the test holds.
    fn jsonl(&self, guest: &Guest, prompt: Option<&str>) -> Played {
        let (conversation, words) = self.conversation(guest, Jsonl::new(), prompt);
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let (from_agent, to_agent) = tokio::io::split(theirs);
        let (reads, writes) = tokio::io::split(ours);
        Played {
            running: tokio::spawn(conversation.run(from_agent, to_agent)),
            lines: BufReader::new(reads).lines(),
            writes,
            _words: words,
        }
    }

    pub async fn record(&self, guest: &Guest) -> Record {
        self.store.flush().await.unwrap();
        self.store
            .inspect(Viewer::Root, &guest.id)
            .await
            .unwrap()
            .unwrap()
    }

    /// Decides the next question that is asked.
    fn decide_next(&self, answer: Answer) -> JoinHandle<Approval> {
        let (approvals, mut changes) = (Arc::clone(&self.approvals), self.approvals.changes());
        tokio::spawn(async move {
            let asked = loop {
                if let Change::Added(asked) = changes.recv().await.unwrap() {
                    break asked;
                }
            };
            let decision = Decision {
                answer,
                always: None,
                rule: None,
                reason: Some("as the test says".into()),
            };
            let owner = Caller {
                uid: OWNER,
                gid: OWNER,
            };
            approvals.decide(owner, &asked.id, &decision).await.unwrap()
        })
    }

    async fn lines(&self, guest: &Guest, direction: Direction) -> Vec<String> {
        let lines = self
            .store
            .driver_lines(Viewer::Root, &guest.id, 0, 10_000)
            .await
            .unwrap();
        lines
            .into_iter()
            .filter(|line| line.direction == direction)
            .map(|line| line.line)
            .collect()
    }
}

/// An agent that the test plays.
struct Played {
    running: JoinHandle<Outcome>,
    lines: Lines<BufReader<tokio::io::ReadHalf<DuplexStream>>>,
    writes: tokio::io::WriteHalf<DuplexStream>,
    _words: mpsc::Receiver<Said>,
}

impl Played {
    async fn say(&mut self, message: Value) {
        self.writes
            .write_all(format!("{message}\n").as_bytes())
            .await
            .unwrap();
    }

    /// The next line for the agent; `None` once its stdin is closed.
    async fn hear(&mut self) -> Option<Value> {
        let line = within(self.lines.next_line()).await.unwrap()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    async fn end(mut self) -> Outcome {
        self.writes.shutdown().await.unwrap();
        within(self.running).await.unwrap()
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future)
        .await
        .expect("something hangs")
}

#[tokio::test]
async fn one_agent_asks_another_and_the_answer_comes_back() {
    let house = House::new().await;
    let (finder, fixer) = (house.guest("finder").await, house.guest("fixer").await);
    let mut asks = house.jsonl(&finder, Some("find it"));
    let mut answers = house.jsonl(&fixer, None);

    answers.say(json!({"type": "ready"})).await;
    asks.say(json!({"type": "ready"})).await;
    assert_eq!(
        asks.hear().await.unwrap(),
        json!({"type": "turn", "id": "1", "text": "find it"})
    );
    // The fixer's readiness and the finder's question race; the bus keeps the question until it is served.
    asks.say(
        json!({"type": "request", "id": "q", "to": "fixer", "method": "fix", "payload": "line 3"}),
    )
    .await;
    assert_eq!(
        answers.hear().await.unwrap(),
        json!({"type": "turn", "id": "1", "text": "line 3", "from": "finder", "method": "fix"})
    );
    answers
        .say(json!({"type": "result", "id": "1", "text": "fixed"}))
        .await;
    assert_eq!(
        asks.hear().await.unwrap(),
        json!({"type": "response", "id": "q", "payload": "fixed"})
    );
    asks.say(json!({"type": "usage", "model": "m", "input": 5, "output": 6}))
        .await;
    asks.say(json!({"type": "result", "id": "1", "text": "all done"}))
        .await;

    // The prompt's turn is over: the agent's stdin ends. The one that serves goes on until it goes away itself.
    assert_eq!(asks.hear().await, None);
    let outcome = asks.end().await;
    assert!(
        matches!(&outcome, Outcome::PromptDone(end) if end.text == "all done"),
        "{outcome:?}"
    );
    assert!(!answers.running.is_finished());
    assert_eq!(answers.end().await, Outcome::AgentClosed);

    let usage = &house.record(&finder).await.usage[0].what;
    assert_eq!(
        (usage.source, usage.input, usage.output),
        (UsageSource::Protocol, 5, 6)
    );
    assert_eq!(house.lines(&finder, Direction::In).await.len(), 4);
    assert_eq!(house.lines(&finder, Direction::Out).await.len(), 2);
}

#[tokio::test]
async fn a_decision_is_on_record_before_the_agent_hears_of_it() {
    let house = House::new().await;
    let guest = house.guest("worker").await;
    let mut agent = house.jsonl(&guest, None);
    agent.say(json!({"type": "ready"})).await;
    for (id, command, allowed) in [("1", "ls", true), ("2", "rm -rf x", false)] {
        agent.say(json!({"type": "permission", "id": id, "tool": "Bash", "input": {"command": command}})).await;
        let verdict = agent.hear().await.unwrap();
        // No flush: what the agent has heard must be there already.
        let record = house
            .store
            .inspect(Viewer::Root, &guest.id)
            .await
            .unwrap()
            .unwrap();
        let approval = &record.approvals.last().unwrap().what;
        let expected = if allowed { "allow" } else { "deny" };
        assert_eq!(
            (approval.request_id.as_str(), approval.decision.as_str()),
            (id, expected)
        );
        assert_eq!(verdict["allow"], allowed);
        assert_eq!(
            house.lines(&guest, Direction::Out).await.last().unwrap(),
            &verdict.to_string()
        );
    }
    let denials = house.record(&guest).await.denials;
    assert_eq!(denials.len(), 1);
    assert_eq!(
        (
            denials[0].what.what.as_str(),
            denials[0].what.layer.as_str()
        ),
        ("tool Bash", "driver")
    );
    assert!(denials[0].what.target.contains("rm -rf x"));
    agent.end().await;
}

#[tokio::test]
async fn others_go_on_while_one_question_waits_for_a_person() {
    let house = House::new().await;
    let guest = house.guest("worker").await;
    let mut agent = house.jsonl(&guest, None);
    let mut changes = house.approvals.changes();
    agent.say(json!({"type": "ready"})).await;
    let ask = |id: &str, command: &str| json!({"type": "permission", "id": id, "tool": "Bash", "input": {"command": command}});
    agent.say(ask("slow", "touch made")).await;
    let Change::Added(question) = within(changes.recv()).await.unwrap() else {
        panic!("the question is the first change")
    };
    agent.say(ask("quick", "ls")).await;
    let verdict = agent.hear().await.unwrap();
    assert_eq!(
        (&verdict["id"], &verdict["allow"]),
        (&json!("quick"), &json!(true))
    );

    let owner = Caller {
        uid: OWNER,
        gid: OWNER,
    };
    let yes = Decision {
        answer: Answer::Allow,
        always: None,
        rule: None,
        reason: None,
    };
    house
        .approvals
        .decide(owner, &question.id, &yes)
        .await
        .unwrap();
    let verdict = agent.hear().await.unwrap();
    assert_eq!(
        (&verdict["id"], &verdict["allow"]),
        (&json!("slow"), &json!(true))
    );
    let approvals = house.record(&guest).await.approvals;
    let by: Vec<_> = approvals
        .iter()
        .map(|it| (it.what.request_id.as_str(), it.what.by.as_str()))
        .collect();
    assert_eq!(by, [("quick", "policy"), ("slow", "uid 1000")]);

    // The agent goes away: what it still asks is closed.
    agent.say(ask("last", "touch more")).await;
    let asked = within(changes.recv()).await.unwrap();
    let Change::Decided(_) = asked else {
        panic!("{asked:?}")
    };
    assert!(matches!(
        within(changes.recv()).await.unwrap(),
        Change::Added(_)
    ));
    assert_eq!(agent.end().await, Outcome::AgentClosed);
    assert!(matches!(
        within(changes.recv()).await.unwrap(),
        Change::Removed(_)
    ));
    assert!(house.approvals.list(owner).is_empty());
}

#[tokio::test]
async fn without_a_record_everything_is_refused_and_nothing_hangs() {
    let house = House::new().await;
    let guest = house.guest("worker").await;
    let mut agent = house.jsonl(&guest, None);
    agent.say(json!({"type": "ready"})).await;
    agent
        .say(json!({"type": "permission", "id": "1", "tool": "Bash", "input": {}}))
        .await;
    assert_eq!(agent.hear().await.unwrap()["allow"], true);
    house.store.close().await.unwrap();
    agent
        .say(json!({"type": "permission", "id": "2", "tool": "Bash", "input": {}}))
        .await;
    let verdict = agent.hear().await.unwrap();
    assert_eq!(verdict["allow"], false);
    assert!(
        verdict["why"].as_str().unwrap().contains("record"),
        "{verdict}"
    );
    agent
        .say(json!({"type": "request", "id": "3", "to": "x", "method": "m", "payload": ""}))
        .await;
    assert!(
        agent.hear().await.unwrap()["error"]
            .as_str()
            .unwrap()
            .contains("record")
    );
    agent.end().await;
}

#[tokio::test]
async fn an_asker_that_gives_up_interrupts_the_turn_and_the_next_is_served() {
    let house = House::new().await;
    let (asker, guest) = (house.guest("asker").await, house.guest("worker").await);
    let mut agent = house.jsonl(&guest, None);
    agent.say(json!({"type": "ready"})).await;
    let port = asker.port.clone();
    let question =
        tokio::spawn(async move { port.request("worker", "ask", "slow", WATCHDOG).await });
    assert_eq!(agent.hear().await.unwrap()["text"], "slow");
    question.abort();
    assert_eq!(
        agent.hear().await.unwrap(),
        json!({"type": "interrupt", "id": "1"})
    );
    agent
        .say(json!({"type": "result", "id": "1", "text": "given up", "error": true}))
        .await;
    let port = asker.port.clone();
    let question =
        tokio::spawn(async move { port.request("worker", "ask", "again", WATCHDOG).await });
    assert_eq!(agent.hear().await.unwrap()["text"], "again");
    agent
        .say(json!({"type": "result", "id": "2", "text": "no luck", "error": true}))
        .await;
    let error = within(question).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("no luck"), "{error}");
    agent.end().await;
}

#[tokio::test]
async fn nonsense_from_an_agent_is_recorded_answered_and_survived() {
    let house = House::new().await;
    let guest = house.guest("odd").await;
    let mut agent = house.jsonl(&guest, None);
    agent.writes.write_all(b"\xff\xfe what?\n").await.unwrap();
    assert_eq!(agent.hear().await.unwrap()["type"], "error");
    agent.say(json!({"type": "ready"})).await;
    agent
        .say(json!({"type": "permission", "id": "1", "tool": "Read", "input": {}}))
        .await;
    assert_eq!(agent.hear().await.unwrap()["allow"], true);
    agent.end().await;
    let timeline = house.record(&guest).await.timeline;
    assert!(
        timeline
            .iter()
            .any(|entry| entry.text.contains("protocol error")),
        "{timeline:?}"
    );
}

#[tokio::test]
async fn an_agent_that_ends_before_it_is_ready_has_failed() {
    let house = House::new().await;
    let guest = house.guest("mute").await;
    let outcome = house.jsonl(&guest, Some("hello?")).end().await;
    assert!(
        matches!(&outcome, Outcome::Failed(why) if why.contains("ready")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn an_agent_that_never_becomes_ready_has_failed_while_it_still_runs() {
    let house = House::new().await;
    let guest = house.guest("mute").await;
    let (mut conversation, mut words) = house.conversation(&guest, Jsonl::new(), Some("hello?"));
    conversation.start_limit = std::time::Duration::from_millis(10);
    // The other end stays open and silent.
    let (_ours, theirs) = tokio::io::duplex(1 << 16);
    let (from_agent, to_agent) = tokio::io::split(theirs);
    let outcome = within(conversation.run(from_agent, to_agent)).await;
    assert!(
        matches!(&outcome, Outcome::Failed(why) if why.contains("not ready within 0.01 s")),
        "{outcome:?}"
    );
    assert!(matches!(words.recv().await, Some(Said::Log(why)) if why.contains("not ready")));
}

const SCRIPT: &str = r#"
[[rule]]
when = { tool_result = "(?s)(.*)" }
reply = { text = "the tool said: {{1}}" }
[[rule]]
when = { user = "run: (.*)" }
reply = { tools = [{ name = "Bash", input = { command = "{{1}}", description = "as told" } }] }
[[rule]]
when = { user = "who is there", tool = "mcp__agentd__agents" }
reply = { tools = [{ name = "mcp__agentd__agents", input = {} }] }
[[rule]]
reply = { text = "hello" }
"#;

/// A real Claude Code in a seeded HOME, talking to the stand-in model.
struct RealClaude {
    binary: String,
    model: Standin,
    home: TempDir,
}

impl RealClaude {
    /// `None`, counted as a skip, when no binary is named.
    fn new() -> Option<Self> {
        let Ok(binary) = std::env::var("AGENTD_TEST_CLAUDE") else {
            skip(
                "claude",
                "AGENTD_TEST_CLAUDE does not name a Claude Code binary",
            );
            return None;
        };
        let model = Standin::start(
            Script::from_text(SCRIPT).unwrap(),
            "127.0.0.1:0".parse().unwrap(),
        )
        .unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("repo")).unwrap();
        let repo = home.path().join("repo");
        for file in claude::home_files(&[repo.to_str().unwrap()]) {
            let path = home.path().join(&file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, &file.content).unwrap();
        }
        Some(Self {
            binary,
            model,
            home,
        })
    }

    fn environment(&self) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = claude::environment().into_iter().collect();
        for (name, value) in [
            ("PATH", "/usr/bin:/bin"),
            ("LANG", "C.UTF-8"),
            ("HOME", self.home.path().to_str().unwrap()),
            ("ANTHROPIC_BASE_URL", &self.model.url()),
            ("ANTHROPIC_API_KEY", agentd_sandbox::ports::PLACEHOLDER_KEY),
        ] {
            environment.push((name.to_owned(), value.to_owned()));
        }
        environment
    }

    fn spawn(&self) -> tokio::process::Child {
        let line = claude::command_line(std::slice::from_ref(&self.binary)).unwrap();
        tokio::process::Command::new(&line[0])
            .args(&line[1..])
            .current_dir(self.home.path().join("repo"))
            .env_clear()
            .envs(self.environment())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }
}

#[tokio::test]
async fn the_real_claude_runs_a_prompt_to_its_end() {
    let Some(real) = RealClaude::new() else {
        return;
    };
    let house = House::new().await;
    let guest = house.guest("claude").await;
    let mut program = real.spawn();
    let (conversation, mut words) =
        house.conversation(&guest, Claude::new(), Some("run: echo > made && echo done"));
    let outcome = within(conversation.run(
        program.stdout.take().unwrap(),
        program.stdin.take().unwrap(),
    ))
    .await;
    assert!(
        matches!(&outcome, Outcome::PromptDone(end) if end.text == "the tool said: done"),
        "{outcome:?}"
    );
    assert!(within(program.wait()).await.unwrap().success());
    assert!(real.home.path().join("repo/made").exists());
    assert!(matches!(words.try_recv(), Ok(Said::Words(text)) if text == "the tool said: done"));
    let record = house.record(&guest).await;
    let decided: Vec<_> = record
        .approvals
        .iter()
        .map(|it| (it.what.tool.as_str(), it.what.decision.as_str()))
        .collect();
    assert_eq!(decided, [("Bash", "allow")]);
    assert!(
        record
            .usage
            .iter()
            .any(|it| it.what.source == UsageSource::Protocol && it.what.input > 0)
    );
    assert!(
        record
            .timeline
            .iter()
            .any(|entry| entry.text.contains("mcp agentd connected")),
        "{:?}",
        record.timeline
    );
}

#[tokio::test]
async fn the_real_claude_serves_requests_under_the_policy() {
    let Some(real) = RealClaude::new() else {
        return;
    };
    let house = House::new().await;
    let (asker, guest) = (house.guest("asker").await, house.guest("claude").await);
    std::fs::write(real.home.path().join("repo/precious"), "x").unwrap();
    let mut program = real.spawn();
    let (conversation, _words) = house.conversation(&guest, Claude::new(), None);
    let running = tokio::spawn(conversation.run(
        program.stdout.take().unwrap(),
        program.stdin.take().unwrap(),
    ));
    let ask = async |text: &str| {
        let reply = asker
            .port
            .request("claude", "ask", text, WATCHDOG)
            .await
            .unwrap();
        String::from_utf8(reply.payload).unwrap()
    };
    let denied = ask("run: rm precious").await;
    assert!(
        denied.contains("denied by the agent's policy: Bash(rm *)"),
        "{denied}"
    );
    assert!(real.home.path().join("repo/precious").exists());
    assert_eq!(ask("run: echo hi").await, "the tool said: hi");
    let seen = ask("who is there").await;
    assert!(seen.contains("asker"), "{seen}");
    assert_eq!(house.record(&guest).await.denials.len(), 1);
    program.start_kill().unwrap();
    assert_eq!(within(running).await.unwrap(), Outcome::AgentClosed);
}

#[tokio::test]
async fn the_real_claude_waits_for_a_person() {
    let Some(real) = RealClaude::new() else {
        return;
    };
    for (answer, made) in [(Answer::Allow, true), (Answer::Deny, false)] {
        let house = House::new().await;
        let guest = house.guest("claude").await;
        let file = real.home.path().join("repo/made");
        let mut program = real.spawn();
        let (conversation, _words) =
            house.conversation(&guest, Claude::new(), Some("run: touch made && echo done"));
        let deciding = house.decide_next(answer);
        let outcome = within(conversation.run(
            program.stdout.take().unwrap(),
            program.stdin.take().unwrap(),
        ))
        .await;
        let question = deciding.await.unwrap();
        assert_eq!(
            (question.tool.as_str(), question.about().as_str()),
            ("Bash", "touch made && echo done")
        );
        let Outcome::PromptDone(end) = outcome else {
            panic!("{outcome:?}")
        };
        let told = if made { "done" } else { "as the test says" };
        assert!(end.text.contains(told), "{end:?}");
        assert_eq!(file.exists(), made);
        if made {
            std::fs::remove_file(&file).unwrap();
        }
        assert!(within(program.wait()).await.unwrap().success());
    }
}

/// A terminal multiplexer of its own, gone with the test.
struct Tmux(String);

impl Tmux {
    fn run(&self, args: &[&str]) -> String {
        let output = std::process::Command::new("tmux")
            .args(["-L", &self.0])
            .args(args)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

/// The screen is looked at here only because it is what a person gets; agentd itself never does.
#[tokio::test]
async fn the_real_claude_in_a_terminal_starts_without_dialogs() {
    let Some(real) = RealClaude::new() else {
        return;
    };
    if std::process::Command::new("tmux")
        .arg("-V")
        .output()
        .is_err()
    {
        return skip(
            "tmux",
            "tmux is not installed: sudo apt-get install -y tmux",
        );
    }
    let tmux = Tmux(format!("agentd-driver-{}", std::process::id()));
    let repo = real.home.path().join("repo");
    let mut command = vec![
        "new-session",
        "-d",
        "-x",
        "120",
        "-y",
        "40",
        "-c",
        repo.to_str().unwrap(),
        "env",
        "-i",
    ];
    let environment: Vec<String> = real
        .environment()
        .into_iter()
        .chain([("TERM".to_owned(), "xterm-256color".to_owned())])
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    command.extend(environment.iter().map(String::as_str));
    command.push(&real.binary);
    tmux.run(&command);
    let until = async |what: &str| {
        let seen = async {
            loop {
                let screen = tmux.run(&["capture-pane", "-p"]);
                if screen.contains(what) {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let found = tokio::time::timeout(WATCHDOG, seen).await;
        assert!(
            found.is_ok(),
            "no {what:?} on the screen:\n{}",
            tmux.run(&["capture-pane", "-p"])
        );
    };
    until("❯").await;
    tmux.run(&["send-keys", "good morning"]);
    until("good morning").await;
    tmux.run(&["send-keys", "Enter"]);
    until("● hello").await;
}
