//! The drivers that speak JSON-RPC, Codex's app-server and the Agent Client Protocol, against what real agents said
//! (fixtures recorded from the real programs, ids and paths scrubbed), cut anywhere and taken up again, and against what
//! no agent should say.

use std::collections::VecDeque;

use agentd_orchestrator::driver::acp::{Acp, Setting};
use agentd_orchestrator::driver::codex::Codex;
use agentd_orchestrator::driver::{
    Action, Answer, Line, Machine, Recorded, RequestId, Turn, TurnId, TurnOutcome, TurnRefused,
    Verdict, resume,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const CODEX: &str = include_str!("fixtures/codex-0.169.0.jsonl");
const OPENCODE: &str = include_str!("fixtures/opencode-1.18.33.jsonl");
/// Where the recorded opencode worked.
const CWD: &str = "/home/user/repository";
const MCP_URL: &str = "http://127.0.0.1:8765/mcp";

fn text(line: impl ToString) -> Line {
    Line::Text(line.to_string())
}

fn turn(id: u64, text: &str) -> Turn {
    Turn {
        id: TurnId(id),
        asked_by: None,
        text: text.to_owned(),
    }
}

fn acp() -> Acp {
    Acp::new(Setting {
        cwd: CWD.to_owned(),
        mcp_url: MCP_URL.to_owned(),
    })
}

fn written(actions: &[Action]) -> Vec<Value> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Write(line) => Some(serde_json::from_str(line).expect("machines write JSON")),
            _ => None,
        })
        .collect()
}

/// Which way (true is to the agent), and the message.
fn transcript(fixture: &str) -> Vec<(bool, Value)> {
    fixture
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let inner = serde_json::from_str(record["line"].as_str().unwrap()).unwrap();
            (record["direction"] == "out", inner)
        })
        .collect()
}

/// A daemon that decides as the one of the fixture did.
struct Player<'a> {
    machine: Box<dyn Machine>,
    record: &'a [(bool, Value)],
    written: VecDeque<Value>,
    ready: usize,
    asked: Vec<(String, Value)>,
    ends: Vec<(u64, TurnOutcome)>,
    input_tokens: u64,
}

impl<'a> Player<'a> {
    fn new(machine: impl Machine + 'static, record: &'a [(bool, Value)]) -> Self {
        Self {
            machine: Box::new(machine),
            record,
            written: VecDeque::new(),
            ready: 0,
            asked: Vec::new(),
            ends: Vec::new(),
            input_tokens: 0,
        }
    }

    /// What was decided about question `id`; `None` where its turn ended first.
    fn verdict(&self, id: &RequestId) -> Option<Verdict> {
        let id: Value = serde_json::from_str(id.0.split('/').next().unwrap()).unwrap();
        let at = self
            .record
            .iter()
            .position(|(out, line)| *out && line.get("method").is_none() && line["id"] == id)?;
        let result = &self.record[at].1["result"];
        let word = [
            &result["decision"],
            &result["action"],
            &result["outcome"]["optionId"],
        ]
        .into_iter()
        .find_map(Value::as_str)?;
        if ["accept", "once"].contains(&word) {
            return Some(Verdict::Allow);
        }
        // The reason, where the agent was told one.
        let why = self.record[at + 1..]
            .iter()
            .find(|(_, line)| line["method"] == "turn/steer")
            .and_then(|(_, line)| line["params"]["input"][0]["text"].as_str())
            .and_then(|text| text.split("was refused: ").nth(1))
            .unwrap_or_default();
        Some(Verdict::Deny {
            why: why.to_owned(),
        })
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Write(line) => {
                    self.written.push_back(serde_json::from_str(&line).unwrap());
                }
                Action::Ready => self.ready += 1,
                Action::AskTool(request) => {
                    let verdict = self.verdict(&request.id);
                    self.asked.push((request.tool, request.input));
                    if let Some(verdict) = verdict {
                        let id = request.id;
                        let actions = self.machine.answer(Answer::Tool { id, verdict });
                        self.perform(actions);
                    }
                }
                Action::TurnEnded { turn, outcome } => self.ends.push((turn.0, outcome)),
                Action::Usage(usage) => self.input_tokens += usage.input,
                Action::ProtocolError { what, line } => panic!("{what}: {line}"),
                Action::Failed(why) => panic!("{why}"),
                _ => {}
            }
        }
    }

    /// Goes through the record from `at`: what the daemon wrote then must be what the machine writes now.
    fn play(&mut self, at: usize) {
        for (out, line) in &self.record[at..] {
            if !out {
                let actions = self.machine.receive(&text(line));
                self.perform(actions);
                continue;
            }
            // What the daemon does of its own accord.
            let params = &line["params"];
            match line["method"].as_str() {
                Some("turn/start" | "session/prompt") => {
                    let id = line["id"].as_str().unwrap().strip_prefix("turn-").unwrap();
                    let said = params["input"][0]["text"].as_str();
                    let said = said.or(params["prompt"][0]["text"].as_str()).unwrap();
                    let turn = turn(id.parse().unwrap(), said);
                    let actions = self.machine.begin_turn(&turn).unwrap();
                    self.perform(actions);
                }
                Some("turn/interrupt" | "session/cancel") => {
                    let actions = self.machine.interrupt();
                    self.perform(actions);
                }
                _ => {}
            }
            assert_eq!(self.written.pop_front().as_ref(), Some(line));
        }
        assert_eq!(self.written, VecDeque::<Value>::new(), "nothing more");
    }

    fn ends(&self) -> Vec<(u64, bool, &str)> {
        self.ends
            .iter()
            .map(|(turn, end)| (*turn, end.is_error, end.kind.as_str()))
            .collect()
    }

    fn tools(&self) -> Vec<&str> {
        self.asked.iter().map(|(tool, _)| tool.as_str()).collect()
    }
}

#[test]
fn a_real_codex_is_followed_to_the_letter() {
    let record = transcript(CODEX);
    let mut player = Player::new(Codex::new(), &record);
    let first = player.machine.start();
    player.perform(first);
    player.play(0);
    assert_eq!(player.ready, 1);
    assert_eq!(
        player.tools(),
        ["Bash", "Bash", "mcp__agentd__agents", "Write", "Edit"]
    );
    assert_eq!(player.asked[0].1["command"], "touch made && echo hi");
    assert_eq!(player.asked[3].1["file_path"], format!("{CWD}/a.txt"));
    assert_eq!(
        player.ends(),
        [
            (1, false, "completed"),
            (2, false, "completed"),
            (3, false, "completed"),
            (4, false, "completed"),
            (5, true, "interrupted"),
            (6, true, "failed"),
        ]
    );
    assert!(player.ends[0].1.text.contains("hi"), "{:?}", player.ends[0]);
    assert_eq!(player.ends[5].1.text, "bad thing");
    assert!(player.input_tokens > 0);
}

#[test]
fn a_real_opencode_is_followed_to_the_letter() {
    let record = transcript(OPENCODE);
    let mut player = Player::new(acp(), &record);
    let first = player.machine.start();
    player.perform(first);
    player.play(0);
    assert_eq!(player.ready, 1);
    assert_eq!(
        player.tools(),
        ["Bash", "Bash", "mcp__agentd__agents", "Write", "Edit"]
    );
    assert_eq!(player.asked[0].1["command"], "touch made && echo hi");
    assert_eq!(player.asked[3].1["file_path"], format!("{CWD}/a.txt"));
    assert_eq!(
        player.ends(),
        [
            (1, false, "end_turn"),
            (2, false, "end_turn"),
            (3, false, "end_turn"),
            (4, false, "end_turn"),
            (5, false, "end_turn"),
            (6, true, "cancelled"),
            (7, true, "error"),
        ]
    );
    assert!(player.ends[0].1.text.contains("hi"), "{:?}", player.ends[0]);
    assert!(player.ends[6].1.text.contains("bad thing"));
    assert!(player.input_tokens > 0);
}

fn cut_everywhere(record: &[(bool, Value)], new: impl Fn() -> Box<dyn Machine>) {
    let recorded: Vec<Recorded> = record
        .iter()
        .map(|(out, line)| match out {
            true => Recorded::Out(line.to_string()),
            false => Recorded::In(text(line)),
        })
        .collect();
    for cut in 0..=record.len() {
        let mut player = Player::new(Codex::new(), record);
        player.machine = new();
        let resumed = resume(player.machine.as_mut(), recorded[..cut].iter().cloned())
            .unwrap_or_else(|why| panic!("cut {cut}: {why}"));
        // A refusal and its explanation are two lines; the second is lost where agentd died between them.
        let explains = |line: &(bool, Value)| line.1["method"] == "turn/steer";
        let from = if record.get(cut).is_some_and(explains) {
            cut + 1
        } else {
            cut
        };
        player.perform(resumed.actions);
        player.play(from);
    }
}

#[test]
fn wherever_a_real_session_is_cut_the_rest_is_written_once_and_to_the_letter() {
    cut_everywhere(&transcript(CODEX), || Box::new(Codex::new()));
    cut_everywhere(&transcript(OPENCODE), || Box::new(acp()));
}

fn ready_codex() -> Codex {
    let mut codex = Codex::new();
    codex.start();
    codex.receive(&text(
        json!({"id": "initialize", "result": {"userAgent": "agentd/0.169.0 (x)"}}),
    ));
    let actions = codex.receive(&text(codex_started("untrusted", "user")));
    assert!(actions.contains(&Action::Ready), "{actions:?}");
    codex
}

fn codex_started(policy: &str, reviewer: &str) -> Value {
    json!({"id": "thread", "result": {"thread": {"id": "t"}, "model": "m",
        "approvalPolicy": policy, "approvalsReviewer": reviewer}})
}

fn ready_acp() -> Acp {
    let mut acp = acp();
    acp.start();
    acp.receive(&text(
        json!({"jsonrpc": "2.0", "id": "initialize", "result":
        {"protocolVersion": 1, "agentCapabilities": {"mcpCapabilities": {"http": true}}}}),
    ));
    let actions = acp.receive(&text(
        json!({"jsonrpc": "2.0", "id": "session", "result": {"sessionId": "s"}}),
    ));
    assert!(actions.contains(&Action::Ready), "{actions:?}");
    acp
}

#[test]
fn a_codex_that_would_not_ask_is_refused() {
    for (policy, reviewer) in [
        ("never", "user"),
        ("on-request", "user"),
        ("untrusted", "auto"),
    ] {
        let mut codex = Codex::new();
        codex.start();
        codex.receive(&text(
            json!({"id": "initialize", "result": {"userAgent": "agentd/9 (x)"}}),
        ));
        let actions = codex.receive(&text(codex_started(policy, reviewer)));
        assert!(
            matches!(&actions[..], [Action::Failed(why)] if why.contains("0.169.0") && why.contains(policy)),
            "{actions:?}"
        );
        assert_eq!(codex.begin_turn(&turn(1, "x")), Err(TurnRefused::Ended));
    }
}

#[test]
fn an_agent_of_another_protocol_version_or_without_a_login_is_refused() {
    let mut other = acp();
    other.start();
    let actions = other.receive(&text(
        json!({"jsonrpc": "2.0", "id": "initialize", "result": {"protocolVersion": 2}}),
    ));
    assert!(matches!(&actions[..], [Action::Failed(why)] if why.contains("version 2")));
    let mut locked = acp();
    locked.start();
    locked.receive(&text(
        json!({"jsonrpc": "2.0", "id": "initialize", "result":
        {"protocolVersion": 1, "authMethods": [{"id": "browser"}]}}),
    ));
    let actions = locked.receive(&text(json!({"jsonrpc": "2.0", "id": "session",
        "error": {"code": -32000, "message": "Authentication required"}})));
    assert!(
        matches!(&actions[..], [Action::Failed(why)] if why.contains("browser") && why.contains("gateway")),
        "{actions:?}"
    );
}

fn approval(method: &str, params: Value) -> Line {
    let mut all = json!({"threadId": "t", "turnId": "u", "itemId": "i"});
    all.as_object_mut()
        .unwrap()
        .extend(params.as_object().unwrap().clone());
    text(json!({"id": 3, "method": method, "params": all}))
}

#[test]
fn a_codex_question_that_makes_no_sense_is_declined_never_failed() {
    const COMMAND: &str = "item/commandExecution/requestApproval";
    for (method, params) in [
        (COMMAND, json!({})),
        (COMMAND, json!({"command": 5})),
        (COMMAND, json!({"command": "bash -lc 'x"})),
        (COMMAND, json!({"command": "ls", "kind": "writeStdin"})),
        (
            COMMAND,
            json!({"command": "ls", "networkApprovalContext": {"host": "e.org"}}),
        ),
        ("item/fileChange/requestApproval", json!({})),
        ("item/fileChange/requestApproval", json!({"itemId": 4})),
        ("mcpServer/elicitation/request", json!({"serverName": "x"})),
        (
            "mcpServer/elicitation/request",
            json!({"serverName": "x", "_meta": {"codex_approval_kind": "other"}}),
        ),
    ] {
        let actions = ready_codex().receive(&approval(method, params.clone()));
        let answers = written(&actions);
        assert_eq!(answers.len(), 1, "{method} {params}: {actions:?}");
        let result = &answers[0]["result"];
        assert!(
            result["decision"] == "decline" || result["action"] == "decline",
            "{method} {params}: {result}"
        );
        assert!(matches!(actions.last(), Some(Action::ProtocolError { .. })));
    }
    for method in [
        "item/tool/call",
        "execCommandApproval",
        "account/chatgptAuthTokens/refresh",
    ] {
        let answers = written(&ready_codex().receive(&approval(method, json!({}))));
        assert_eq!(answers[0]["error"]["code"], -32601, "{method}");
    }
    // What needs a person, or more rights than the sandbox gave, gets nothing.
    let nothing =
        written(&ready_codex().receive(&approval("item/tool/requestUserInput", json!({}))));
    assert_eq!(nothing[0]["result"], json!({"answers": {}}));
    let nothing =
        written(&ready_codex().receive(&approval("item/permissions/requestApproval", json!({}))));
    assert_eq!(nothing[0]["result"]["permissions"], json!({}));
}

#[test]
fn a_patch_is_judged_file_by_file() {
    let mut codex = ready_codex();
    codex.begin_turn(&turn(1, "x")).unwrap();
    codex.receive(&text(
        json!({"id": "turn-1", "result": {"turn": {"id": "u", "status": "inProgress"}}}),
    ));
    let changes = json!([
        {"path": "/w/a", "kind": {"type": "update", "move_path": "/w/b"}, "diff": ""},
        {"path": "/w/c", "kind": {"type": "delete"}, "diff": ""},
    ]);
    codex.receive(&text(
        json!({"method": "item/started", "params": {"threadId": "t",
        "item": {"type": "fileChange", "id": "i", "changes": changes}}}),
    ));
    let asked = codex.receive(&approval("item/fileChange/requestApproval", json!({})));
    let tools: Vec<_> = asked
        .iter()
        .map(|action| match action {
            Action::AskTool(it) => (it.tool.as_str(), it.input["file_path"].as_str().unwrap()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        tools,
        [("Edit", "/w/a"), ("Write", "/w/b"), ("Write", "/w/c")]
    );
    let answer = |number: usize, verdict| Answer::Tool {
        id: RequestId(format!("3/{number}")),
        verdict,
    };
    assert_eq!(codex.answer(answer(1, Verdict::Allow)), []);
    let why = "denied by the agent's policy: Write(/w/b)".to_owned();
    let actions = codex.answer(answer(2, Verdict::Deny { why: why.clone() }));
    let lines = written(&actions);
    assert_eq!(
        lines[0],
        json!({"id": 3, "result": {"decision": "decline"}})
    );
    assert_eq!(lines[1]["method"], "turn/steer");
    assert!(
        lines[1].to_string().contains("Write(/w/b)"),
        "the model is told why"
    );
    assert_eq!(
        actions.last(),
        Some(&Action::Withdrawn(RequestId("3/3".into())))
    );
    assert_eq!(codex.answer(answer(3, Verdict::Allow)), []);
}

#[test]
fn an_interrupt_waits_for_the_turns_name() {
    let mut codex = ready_codex();
    codex.begin_turn(&turn(1, "x")).unwrap();
    assert_eq!(codex.interrupt(), []);
    let begun = json!({"id": "turn-1", "result": {"turn": {"id": "u", "status": "inProgress"}}});
    let lines = written(&codex.receive(&text(begun)));
    assert_eq!(lines[0]["method"], "turn/interrupt");
    assert_eq!(lines[0]["params"], json!({"threadId": "t", "turnId": "u"}));
}

fn permission(params: Value) -> Line {
    let mut all = json!({"sessionId": "s", "toolCall": {"toolCallId": "c", "kind": "execute", "rawInput": {"command": "ls"}},
        "options": [{"optionId": "yes", "kind": "allow_once"}, {"optionId": "no", "kind": "reject_once"}]});
    all.as_object_mut()
        .unwrap()
        .extend(params.as_object().unwrap().clone());
    text(
        json!({"jsonrpc": "2.0", "id": "p", "method": "session/request_permission", "params": all}),
    )
}

#[test]
fn a_permission_is_given_once_and_refused_in_the_agents_own_terms() {
    let verdicts = [
        (Verdict::Allow, "yes"),
        (Verdict::Deny { why: "no".into() }, "no"),
    ];
    for (verdict, option) in verdicts {
        let mut acp = ready_acp();
        let asked = acp.receive(&permission(json!({})));
        let [Action::AskTool(request)] = &asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!(
            (request.tool.as_str(), &request.input),
            ("Bash", &json!({"command": "ls"}))
        );
        let id = request.id.clone();
        assert!(acp.is_open(&id));
        let lines = written(&acp.answer(Answer::Tool {
            id: id.clone(),
            verdict,
        }));
        assert_eq!(
            lines,
            [
                json!({"jsonrpc": "2.0", "id": "p", "result": {"outcome": {"outcome": "selected", "optionId": option}}})
            ]
        );
        assert!(!acp.is_open(&id));
    }
}

#[test]
fn a_permission_that_makes_no_sense_is_refused() {
    for params in [
        json!({"options": [{"optionId": "always", "kind": "allow_always"}, {"optionId": "no", "kind": "reject_once"}]}),
        json!({"options": []}),
        json!({"sessionId": "other"}),
        json!({"toolCall": {"toolCallId": "c", "kind": "execute"}}),
        json!({"toolCall": 7}),
        json!({"toolCall": {"toolCallId": "c", "kind": "other", "title": "do it"}}),
    ] {
        let actions = ready_acp().receive(&permission(params.clone()));
        let answers = written(&actions);
        assert_eq!(answers.len(), 1, "{params}: {actions:?}");
        let outcome = &answers[0]["result"]["outcome"];
        assert!(
            outcome["outcome"] == "cancelled" || outcome["optionId"] == "no",
            "{params}: {outcome}"
        );
    }
}

#[test]
fn files_and_terminals_are_not_offered() {
    for method in [
        "fs/read_text_file",
        "fs/write_text_file",
        "terminal/create",
        "session/other",
    ] {
        let line =
            json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"sessionId": "s"}});
        let answers = written(&ready_acp().receive(&text(line)));
        assert_eq!(answers[0]["error"]["code"], -32601, "{method}");
    }
}

#[test]
fn giving_up_cancels_the_turn_and_every_open_permission() {
    let mut acp = ready_acp();
    acp.begin_turn(&turn(1, "x")).unwrap();
    acp.receive(&permission(json!({})));
    let actions = acp.interrupt();
    let lines = written(&actions);
    assert_eq!(lines[0]["method"], "session/cancel");
    assert_eq!(
        lines[1]["result"],
        json!({"outcome": {"outcome": "cancelled"}})
    );
    assert!(matches!(actions.last(), Some(Action::Withdrawn(_))));
    let end = acp.receive(&text(
        json!({"jsonrpc": "2.0", "id": "turn-1", "result": {"stopReason": "cancelled"}}),
    ));
    assert!(matches!(
        &end[..],
        [Action::TurnEnded {
            turn: TurnId(1),
            outcome: TurnOutcome { is_error: true, .. }
        }]
    ));
    assert_eq!(acp.begin_turn(&turn(2, "y")).unwrap().len(), 1);
}

#[test]
fn an_end_before_the_beginning_is_a_failure_and_one_in_a_turn_an_error() {
    for mut machine in [Box::new(Codex::new()) as Box<dyn Machine>, Box::new(acp())] {
        machine.start();
        assert_eq!(
            machine.begin_turn(&turn(1, "x")),
            Err(TurnRefused::NotReady)
        );
        assert!(matches!(&machine.close()[..], [Action::Failed(_)]));
    }
    for mut machine in [
        Box::new(ready_codex()) as Box<dyn Machine>,
        Box::new(ready_acp()),
    ] {
        machine.begin_turn(&turn(1, "x")).unwrap();
        assert_eq!(machine.begin_turn(&turn(2, "y")), Err(TurnRefused::Busy));
        assert!(
            matches!(&machine.close()[..], [Action::TurnEnded { turn: TurnId(1), outcome }] if outcome.is_error)
        );
        assert_eq!(machine.begin_turn(&turn(3, "z")), Err(TurnRefused::Ended));
    }
}

#[test]
fn a_broken_line_is_reported_and_the_next_is_read() {
    for mut machine in [
        Box::new(ready_codex()) as Box<dyn Machine>,
        Box::new(ready_acp()),
    ] {
        for bad in ["{\"id\":", "[]", "{}", "null", "{\"id\":9,\"result\":1}"] {
            assert!(
                matches!(
                    &machine.receive(&text(bad))[..],
                    [Action::ProtocolError { .. }]
                ),
                "{bad}"
            );
        }
        let long = Line::TooLong {
            start: "{".into(),
            bytes: 9_000_000,
        };
        assert!(
            matches!(&machine.receive(&long)[..], [Action::ProtocolError { what, .. }] if what.contains("9000000"))
        );
        machine.begin_turn(&turn(1, "still there?")).unwrap();
    }
}

/// Questions that look like the protocols', with parts missing, of wrong types, or surprising.
fn any_question() -> impl Strategy<Value = (u32, String)> {
    let method = prop_oneof![
        Just("item/commandExecution/requestApproval"),
        Just("item/fileChange/requestApproval"),
        Just("mcpServer/elicitation/request"),
        Just("item/permissions/requestApproval"),
        Just("session/request_permission"),
        Just("fs/write_text_file"),
        Just("something/else"),
    ];
    let value = prop_oneof![
        Just(json!(null)),
        Just(json!(1)),
        Just(json!("s")),
        Just(json!("bash -lc 'ls'")),
        Just(json!({})),
        Just(json!([])),
        Just(json!({"codex_approval_kind": "mcp_tool_call", "tool_name": "x"})),
        Just(json!({"toolCallId": "c", "kind": "execute", "rawInput": {"command": "ls"}})),
        Just(json!([{"optionId": "yes", "kind": "allow_once"}])),
    ];
    let field = prop_oneof![
        Just("threadId"),
        Just("itemId"),
        Just("command"),
        Just("kind"),
        Just("serverName"),
        Just("_meta"),
        Just("sessionId"),
        Just("toolCall"),
        Just("options"),
    ];
    (
        method,
        prop::collection::vec((field, value), 0..6),
        0..1000u32,
    )
        .prop_map(|(method, fields, id)| {
            let mut params = json!({});
            for (field, value) in fields {
                params[field] = value;
            }
            (
                id,
                json!({"id": id, "method": method, "params": params}).to_string(),
            )
        })
}

proptest! {
    /// Whatever a question looks like: it is handed out to be decided, or refused at once; nothing is allowed unasked
    /// and nothing is left hanging.
    #[test]
    fn each_question_is_asked_or_refused(questions in prop::collection::vec(any_question(), 1..30)) {
        for mut machine in [Box::new(ready_codex()) as Box<dyn Machine>, Box::new(ready_acp())] {
            for (_, line) in &questions {
                let actions = machine.receive(&text(line));
                let handed_out = actions.iter().filter(|action| matches!(action, Action::AskTool(_))).count();
                let answers = written(&actions);
                prop_assert_eq!(handed_out + answers.len(), 1, "{} → {:?}", line, actions);
                for answer in answers {
                    let result = &answer["result"];
                    prop_assert!(result["decision"] != "accept" && result["action"] != "accept", "{}", answer);
                    prop_assert!(result["outcome"]["optionId"] != "yes", "{}", answer);
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_machine_panic(lines in prop::collection::vec("\\PC{0,80}", 0..20)) {
        for mut machine in [Box::new(ready_codex()) as Box<dyn Machine>, Box::new(ready_acp())] {
            for line in &lines {
                machine.receive(&text(line));
            }
            prop_assert!(machine.begin_turn(&turn(1, "x")).is_ok());
        }
    }
}
