//! The driver machines against what real agents said (fixtures recorded from the real program, ids scrubbed) and
//! against what no agent should say.

use agentd_orchestrator::driver::claude::Claude;
use agentd_orchestrator::driver::jsonl::Jsonl;
use agentd_orchestrator::driver::{
    Action, Answer, Asker, Line, Machine, RequestId, Turn, TurnId, TurnOutcome, TurnRefused,
    Verdict,
};
use proptest::prelude::*;
use serde_json::{Value, json};

const TRANSCRIPT: &str = include_str!("fixtures/claude-2.1.329.jsonl");

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

fn written(actions: &[Action]) -> Vec<Value> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Write(line) => Some(serde_json::from_str(line).expect("machines write JSON")),
            _ => None,
        })
        .collect()
}

fn deny(why: &str) -> Verdict {
    Verdict::Deny {
        why: why.to_owned(),
    }
}

/// Plays the recorded session: what agentd wrote then must be what the machine writes now, line by line.
#[test]
fn a_real_session_is_followed_to_the_letter() {
    let transcript: Vec<(String, Value)> = TRANSCRIPT
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            let inner = serde_json::from_str(record["line"].as_str().unwrap()).unwrap();
            (record["direction"].as_str().unwrap().to_owned(), inner)
        })
        .collect();
    let mut claude = Claude::new();
    let mut expected = transcript
        .iter()
        .filter(|(way, _)| way == "out")
        .map(|(_, line)| line.clone());
    let mut pending = written(&claude.start());
    let (mut turns, mut tools, mut outcomes, mut ready, mut mcp_answers) =
        (0, Vec::new(), Vec::new(), 0, Vec::new());
    for (way, message) in &transcript {
        if way == "out" {
            let want = expected.next().unwrap();
            assert_eq!(&want, message);
            match message["type"].as_str().unwrap() {
                "user" => {
                    turns += 1;
                    let begun = claude
                        .begin_turn(&turn(
                            turns,
                            message["message"]["content"].as_str().unwrap(),
                        ))
                        .unwrap();
                    pending.extend(written(&begun));
                }
                "control_request" if message["request"]["subtype"] == "interrupt" => {
                    pending.extend(written(&claude.interrupt()));
                }
                "control_response"
                    if message["response"]["response"]
                        .get("mcp_response")
                        .is_some() =>
                {
                    let id: RequestId = mcp_answers.remove(0);
                    let reply = message["response"]["response"]["mcp_response"].clone();
                    // The recorded answer to a notification is the empty one that the machine makes up.
                    let reply = (reply["result"] != json!({})).then_some(reply);
                    pending.extend(written(&claude.answer(Answer::Mcp { id, reply })));
                }
                _ => {}
            }
            assert_eq!(pending.remove(0), want);
            continue;
        }
        for action in claude.receive(&text(message)) {
            match action {
                Action::Ready => ready += 1,
                Action::AskTool(request) => {
                    let verdict = if tools.len() == 1 {
                        deny("denied by the agent's policy: Bash")
                    } else {
                        Verdict::Allow
                    };
                    tools.push(request.tool);
                    pending.extend(written(&claude.answer(Answer::Tool {
                        id: request.id,
                        verdict,
                    })));
                }
                Action::Mcp { id, .. } => mcp_answers.push(id),
                Action::TurnEnded { turn, outcome } => outcomes.push((turn.0, outcome)),
                Action::ProtocolError { what, line } => panic!("{what}: {line}"),
                Action::Write(line) => panic!("nothing to write by itself: {line}"),
                _ => {}
            }
        }
    }
    assert_eq!(pending, Vec::<Value>::new());
    assert_eq!(ready, 1);
    assert_eq!(tools, ["Bash", "Bash", "mcp__agentd__agents"]);
    let ends: Vec<(u64, bool, &str)> = outcomes
        .iter()
        .map(|(turn, end)| (*turn, end.is_error, end.kind.as_str()))
        .collect();
    assert_eq!(
        ends,
        [
            (1, false, "success"),
            (2, false, "success"),
            (3, false, "success"),
            (4, true, "error_during_execution"),
            (5, true, "success")
        ]
    );
    assert_eq!(outcomes[0].1.text, "Tool said: hi");
    assert_eq!(
        outcomes[1].1.text,
        "Tool said: PreToolUse:Bash hook error: denied by the agent's policy: Bash"
    );
    assert_eq!(outcomes[2].1.text, "Tool said: alice, bob");
    assert!(
        outcomes[4].1.text.starts_with("API Error: 400"),
        "{}",
        outcomes[4].1.text
    );
}

/// A Claude that has been initialized.
fn ready_claude() -> Claude {
    let mut claude = Claude::new();
    claude.start();
    let actions = claude.receive(&text(json!({
        "type": "control_response",
        "response": {"subtype": "success", "request_id": "agentd-initialize",
                     "response": {"hooks_applied": true, "hook_on_failure_supported": true}},
    })));
    assert_eq!(actions, [Action::Ready]);
    claude
}

fn hook(id: &str, callback: &str, input: Value) -> Line {
    text(json!({"type": "control_request", "request_id": id,
        "request": {"subtype": "hook_callback", "callback_id": callback, "input": input}}))
}

const PRE_TOOL: &str = "agentd-pre-tool-use";

fn decision(message: &Value) -> &Value {
    &message["response"]["response"]["hookSpecificOutput"]["permissionDecision"]
}

#[test]
fn a_claude_that_would_let_failed_hooks_pass_is_refused() {
    for response in [
        json!({"hooks_applied": true}),
        json!({"hooks_applied": false, "hook_on_failure_supported": true}),
        json!({}),
    ] {
        let mut claude = Claude::new();
        claude.start();
        let actions = claude.receive(&text(json!({"type": "control_response",
            "response": {"subtype": "success", "request_id": "agentd-initialize", "response": response}})));
        assert!(
            matches!(&actions[..], [Action::Failed(why)] if why.contains("2.1.329")),
            "{actions:?}"
        );
        assert_eq!(claude.begin_turn(&turn(1, "x")), Err(TurnRefused::Ended));
    }
}

#[test]
fn turns_come_one_at_a_time_and_only_when_ready() {
    let mut claude = Claude::new();
    claude.start();
    assert_eq!(claude.begin_turn(&turn(1, "x")), Err(TurnRefused::NotReady));
    let mut claude = ready_claude();
    claude.begin_turn(&turn(1, "x")).unwrap();
    assert_eq!(claude.begin_turn(&turn(2, "y")), Err(TurnRefused::Busy));
    let end = claude.close();
    assert!(matches!(
        &end[..],
        [Action::TurnEnded {
            turn: TurnId(1),
            outcome: TurnOutcome { is_error: true, .. }
        }]
    ));
    assert_eq!(claude.begin_turn(&turn(3, "z")), Err(TurnRefused::Ended));
}

#[test]
fn the_words_of_another_agent_are_introduced() {
    let mut claude = ready_claude();
    let asked = Turn {
        asked_by: Some(Asker {
            name: "finder".into(),
            method: "ask".into(),
        }),
        ..turn(1, "why?")
    };
    let actions = claude.begin_turn(&asked).unwrap();
    let content = written(&actions)[0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        content.contains("finder") && content.ends_with("\n\nwhy?"),
        "{content}"
    );
}

#[test]
fn a_hook_that_makes_no_sense_is_denied_never_failed() {
    let broken = [
        hook(
            "h1",
            "some-other-hook",
            json!({"hook_event_name": "PreToolUse", "tool_name": "Bash"}),
        ),
        hook(
            "h2",
            PRE_TOOL,
            json!({"hook_event_name": "Stop", "tool_name": "Bash"}),
        ),
        hook("h3", PRE_TOOL, json!({"hook_event_name": "PreToolUse"})),
        hook("h4", PRE_TOOL, json!(7)),
        text(
            json!({"type": "control_request", "request_id": "h5", "request": {"subtype": "hook_callback"}}),
        ),
    ];
    for line in broken {
        let actions = ready_claude().receive(&line);
        let answers = written(&actions);
        assert_eq!(answers.len(), 1, "{actions:?}");
        assert_eq!(answers[0]["response"]["subtype"], "success");
        assert_eq!(decision(&answers[0]), "deny");
        assert!(matches!(actions.last(), Some(Action::ProtocolError { .. })));
    }
}

#[test]
fn a_permission_request_that_makes_no_sense_is_denied() {
    let line = json!({"type": "control_request", "request_id": "p", "request": {"subtype": "can_use_tool", "tool_name": 4}});
    let answers = written(&ready_claude().receive(&text(line)));
    assert_eq!(answers[0]["response"]["response"]["behavior"], "deny");
}

#[test]
fn an_approval_repeats_the_input() {
    let mut claude = ready_claude();
    let input = json!({"command": "ls", "n": [1, {"a": null}]});
    claude.receive(&text(json!({"type": "control_request", "request_id": "p",
        "request": {"subtype": "can_use_tool", "tool_name": "Bash", "input": input}})));
    let answers = written(&claude.answer(Answer::Tool {
        id: RequestId("p".into()),
        verdict: Verdict::Allow,
    }));
    assert_eq!(
        answers[0]["response"]["response"],
        json!({"behavior": "allow", "updatedInput": input})
    );
}

#[test]
fn an_answer_is_given_once_and_not_after_it_was_withdrawn() {
    let mut claude = ready_claude();
    let ask = |id: &str| {
        hook(
            id,
            PRE_TOOL,
            json!({"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {}}),
        )
    };
    let answer = |id: &str| Answer::Tool {
        id: RequestId(id.into()),
        verdict: Verdict::Allow,
    };
    claude.receive(&ask("a"));
    assert_eq!(claude.answer(answer("a")).len(), 1);
    assert_eq!(claude.answer(answer("a")), []);
    claude.receive(&ask("b"));
    let cancel = json!({"type": "control_cancel_request", "request_id": "b"});
    assert_eq!(
        claude.receive(&text(cancel)),
        [Action::Withdrawn(RequestId("b".into()))]
    );
    assert_eq!(claude.answer(answer("b")), []);
}

#[test]
fn a_repeated_request_id_and_a_flood_are_denied() {
    let mut claude = ready_claude();
    let ask = |id: &str| {
        hook(
            id,
            PRE_TOOL,
            json!({"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {}}),
        )
    };
    claude.receive(&ask("same"));
    assert_eq!(decision(&written(&claude.receive(&ask("same")))[0]), "deny");
    for n in 0..255 {
        assert!(matches!(
            claude.receive(&ask(&n.to_string()))[..],
            [Action::AskTool(_)]
        ));
    }
    assert_eq!(
        decision(&written(&claude.receive(&ask("one too many")))[0]),
        "deny"
    );
}

#[test]
fn an_answer_of_the_wrong_kind_denies() {
    let mut claude = ready_claude();
    claude.receive(&hook(
        "h",
        PRE_TOOL,
        json!({"hook_event_name": "PreToolUse", "tool_name": "Bash"}),
    ));
    let answers = written(&claude.answer(Answer::Peer {
        id: RequestId("h".into()),
        result: Ok("allow".into()),
    }));
    assert_eq!(decision(&answers[0]), "deny");
}

#[test]
fn unknown_kinds_are_ignored_and_unknown_questions_get_an_error() {
    let mut claude = ready_claude();
    let unknown = json!({"type": "keep_alive", "x": 1});
    assert_eq!(
        claude.receive(&text(unknown)),
        [Action::Ignored {
            kind: "keep_alive".into()
        }]
    );
    let question = json!({"type": "control_request", "request_id": "e", "request": {"subtype": "elicitation"}});
    let answers = written(&claude.receive(&text(question)));
    assert_eq!(answers[0]["response"]["subtype"], "error");
    let elsewhere = json!({"type": "control_request", "request_id": "m",
        "request": {"subtype": "mcp_message", "server_name": "other", "message": {}}});
    assert_eq!(
        written(&claude.receive(&text(elsewhere)))[0]["response"]["subtype"],
        "error"
    );
}

#[test]
fn a_broken_line_is_reported_and_the_next_is_read() {
    let mut claude = ready_claude();
    for bad in [
        "{\"type\":",
        "[]",
        "{}",
        "null",
        "{\"type\":\"result\"}",
        "{\"type\":\"control_request\"}",
    ] {
        assert!(
            matches!(
                &claude.receive(&text(bad))[..],
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
        matches!(&claude.receive(&long)[..], [Action::ProtocolError { what, .. }] if what.contains("9000000"))
    );
    claude.begin_turn(&turn(1, "still there?")).unwrap();
}

fn ready_jsonl() -> Jsonl {
    let mut jsonl = Jsonl::new();
    jsonl.start();
    assert_eq!(jsonl.receive(&text(r#"{"type":"ready"}"#)), [Action::Ready]);
    jsonl
}

#[test]
fn a_jsonl_turn_is_answered() {
    let mut jsonl = ready_jsonl();
    let asked = Turn {
        asked_by: Some(Asker {
            name: "a".into(),
            method: "ask".into(),
        }),
        ..turn(7, "hi")
    };
    assert_eq!(
        written(&jsonl.begin_turn(&asked).unwrap()),
        [json!({"type": "turn", "id": "7", "text": "hi", "from": "a", "method": "ask"})]
    );
    let actions = jsonl.receive(&text(r#"{"type":"result","id":"7","text":"hello"}"#));
    assert!(
        matches!(&actions[..], [Action::TurnEnded { turn: TurnId(7), outcome }] if outcome.text == "hello" && !outcome.is_error)
    );
    jsonl.begin_turn(&turn(8, "again")).unwrap();
}

#[test]
fn jsonl_is_strict_and_says_so_to_the_agent() {
    for bad in [
        "nonsense",
        r#"{"type":"result","id":"1","text":"x"}"#,
        r#"{"type":"ready"}"#,
        r#"{"type":"log","text":"x","extra":1}"#,
        r#"{"type":"fly"}"#,
        r#"{"type":"request","id":"1"}"#,
    ] {
        let actions = ready_jsonl().receive(&text(bad));
        assert_eq!(written(&actions)[0]["type"], "error", "{bad}");
        assert!(
            matches!(actions.last(), Some(Action::ProtocolError { .. })),
            "{bad}"
        );
    }
}

#[test]
fn a_broken_jsonl_permission_is_denied_by_name() {
    let actions = ready_jsonl().receive(&text(r#"{"type":"permission","id":"p1","tool":5}"#));
    let answers = written(&actions);
    assert_eq!(
        (&answers[0]["type"], &answers[0]["id"], &answers[0]["allow"]),
        (&json!("verdict"), &json!("p1"), &json!(false))
    );
}

#[test]
fn jsonl_questions_are_answered_in_their_own_form() {
    let mut jsonl = ready_jsonl();
    jsonl.receive(&text(
        r#"{"type":"request","id":"r","to":"b","method":"ask","payload":"x"}"#,
    ));
    let answers = written(&jsonl.answer(Answer::Peer {
        id: RequestId("r".into()),
        result: Ok("y".into()),
    }));
    assert_eq!(
        answers,
        [json!({"type": "response", "id": "r", "payload": "y"})]
    );
    jsonl.receive(&text(
        r#"{"type":"permission","id":"p","tool":"Bash","input":{}}"#,
    ));
    let answers = written(&jsonl.answer(Answer::Tool {
        id: RequestId("p".into()),
        verdict: deny("no"),
    }));
    assert_eq!(
        answers,
        [json!({"type": "verdict", "id": "p", "allow": false, "why": "no"})]
    );
}

#[test]
fn a_program_that_never_said_ready_has_failed() {
    let mut jsonl = Jsonl::new();
    assert!(matches!(&jsonl.close()[..], [Action::Failed(_)]));
}

/// Lines that look like the protocol, with parts missing, of wrong types, or surprising.
fn any_line() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just(json!(null)),
        Just(json!(1)),
        Just(json!("x")),
        Just(json!({})),
        Just(json!([])),
        Just(json!(PRE_TOOL)),
        Just(json!("Bash")),
        Just(json!({"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {}})),
        Just(json!({"jsonrpc": "2.0", "method": "tools/list", "id": 1})),
    ];
    let field = prop_oneof![
        Just("callback_id"),
        Just("input"),
        Just("tool_name"),
        Just("server_name"),
        Just("message"),
    ];
    let subtype = prop_oneof![
        Just("hook_callback"),
        Just("can_use_tool"),
        Just("mcp_message"),
        Just("other")
    ];
    (
        subtype,
        prop::collection::vec((field, value), 0..5),
        0..1000u32,
    )
        .prop_map(|(subtype, fields, id)| {
            let mut request = json!({"subtype": subtype});
            for (field, value) in fields {
                request[field] = value;
            }
            json!({"type": "control_request", "request_id": format!("q{id}"), "request": request})
                .to_string()
        })
}

proptest! {
    /// Whatever a question looks like: it is handed out to be decided, or refused at once; nothing is allowed unasked
    /// and nothing is left hanging.
    #[test]
    fn each_question_is_asked_or_refused(lines in prop::collection::vec(any_line(), 1..30)) {
        let mut claude = ready_claude();
        for line in lines {
            let actions = claude.receive(&text(&line));
            let handed_out = actions.iter().filter(|action| matches!(action, Action::AskTool(_) | Action::Mcp { .. })).count();
            let answers = written(&actions);
            prop_assert_eq!(handed_out + answers.len(), 1, "{} → {:?}", line, actions);
            for answer in answers {
                let response = &answer["response"];
                prop_assert!(decision(&answer) != "allow");
                prop_assert!(response["response"]["behavior"] != "allow");
                if line.contains(r#""subtype":"hook_callback""#) {
                    prop_assert_eq!(decision(&answer), "deny");
                }
            }
        }
    }

    #[test]
    fn no_bytes_make_a_machine_panic(lines in prop::collection::vec("\\PC{0,80}", 0..20)) {
        let (mut claude, mut jsonl) = (ready_claude(), ready_jsonl());
        for line in &lines {
            claude.receive(&text(line));
            jsonl.receive(&text(line));
        }
        prop_assert!(claude.begin_turn(&turn(1, "x")).is_ok());
        prop_assert!(jsonl.begin_turn(&turn(1, "x")).is_ok());
    }
}
