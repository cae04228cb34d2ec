//! A machine that a later daemon rebuilds from the record goes on as the one that lived through it, wherever the record
//! was cut. The record is that of a real session (fixture), and for what no real agent says, made up.

use std::collections::VecDeque;

use agentd_orchestrator::driver::claude::Claude;
use agentd_orchestrator::driver::jsonl::Jsonl;
use agentd_orchestrator::driver::{
    Action, Answer, Asker, Line, Machine, Recorded, RequestId, Turn, TurnId, TurnRefused,
    Unresumable, Verdict, resume,
};
use serde_json::{Value, json};

const TRANSCRIPT: &str = include_str!("fixtures/claude-2.1.329.jsonl");

/// Which way, and the line.
fn transcript() -> Vec<(bool, String)> {
    TRANSCRIPT
        .lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            (
                record["direction"] == "out",
                record["line"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

fn recorded((out, line): &(bool, String)) -> Recorded {
    if *out {
        Recorded::Out(line.clone())
    } else {
        Recorded::In(Line::Text(line.clone()))
    }
}

fn turn(id: u64, text: &str) -> Turn {
    Turn {
        id: TurnId(id),
        asked_by: None,
        text: text.to_owned(),
    }
}

/// A daemon that decides as the one of the fixture did.
struct Player<'a> {
    claude: Claude,
    record: &'a [(bool, Value)],
    turns: u64,
    written: VecDeque<Value>,
}

impl Player<'_> {
    /// What the daemon of the fixture answered to question `id`.
    fn answer_on_record(&self, id: &RequestId) -> Value {
        let answer = self.record.iter().find(|(out, line)| {
            *out && line["type"] == "control_response" && line["response"]["request_id"] == id.0
        });
        answer
            .map(|(_, line)| line["response"]["response"].clone())
            .unwrap_or_default()
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            let answer = match action {
                Action::Write(line) => {
                    self.written.push_back(serde_json::from_str(&line).unwrap());
                    continue;
                }
                Action::AskTool(request) => {
                    let was = self.answer_on_record(&request.id);
                    let verdict = match was
                        .pointer("/hookSpecificOutput/permissionDecision")
                        .and_then(Value::as_str)
                    {
                        Some("deny") => Verdict::Deny {
                            why: was["hookSpecificOutput"]["permissionDecisionReason"]
                                .as_str()
                                .unwrap()
                                .to_owned(),
                        },
                        _ => Verdict::Allow,
                    };
                    Answer::Tool {
                        id: request.id,
                        verdict,
                    }
                }
                Action::Mcp { id, .. } => {
                    let reply = self.answer_on_record(&id)["mcp_response"].clone();
                    let reply = (reply["result"] != json!({})).then_some(reply);
                    Answer::Mcp { id, reply }
                }
                Action::ProtocolError { what, line } => panic!("{what}: {line}"),
                _ => continue,
            };
            let actions = self.claude.answer(answer);
            self.perform(actions);
        }
    }
}

#[test]
fn wherever_a_real_session_is_cut_the_rest_is_written_once_and_to_the_letter() {
    let lines = transcript();
    let values: Vec<(bool, Value)> = lines
        .iter()
        .map(|(out, line)| (*out, serde_json::from_str(line).unwrap()))
        .collect();
    for cut in 0..=lines.len() {
        let mut claude = Claude::new();
        let resumed = resume(&mut claude, lines[..cut].iter().map(recorded)).unwrap();
        let mut player = Player {
            claude,
            record: &values,
            turns: resumed.turns,
            written: VecDeque::new(),
        };
        player.perform(resumed.actions);
        for (out, line) in &values[cut..] {
            if !out {
                let actions = player.claude.receive(&Line::Text(line.to_string()));
                player.perform(actions);
                continue;
            }
            // What the daemon does of its own accord.
            if line["type"] == "user" {
                player.turns += 1;
                let turn = turn(player.turns, line["message"]["content"].as_str().unwrap());
                let actions = player.claude.begin_turn(&turn).unwrap();
                player.perform(actions);
            } else if line["request"]["subtype"] == "interrupt" {
                let actions = player.claude.interrupt();
                player.perform(actions);
            }
            assert_eq!(player.written.pop_front().as_ref(), Some(line), "cut {cut}");
        }
        assert_eq!(
            player.written,
            VecDeque::<Value>::new(),
            "cut {cut}: nothing more"
        );
    }
}

#[test]
fn a_real_session_says_what_it_was_doing_when_it_was_cut() {
    let lines = transcript();
    let mut claude = Claude::new();
    let begun = lines
        .iter()
        .position(|(out, line)| *out && line.contains(r#""user""#))
        .unwrap();
    let resumed = resume(&mut claude, lines[..=begun].iter().map(recorded)).unwrap();
    assert!(resumed.ready);
    assert_eq!((resumed.turns, resumed.open), (1, Some(TurnId(1))));
    assert_eq!(
        claude.begin_turn(&turn(2, "more")),
        Err(TurnRefused::Busy),
        "the turn is not begun again"
    );
    let mut claude = Claude::new();
    let resumed = resume(&mut claude, lines.iter().map(recorded)).unwrap();
    assert_eq!((resumed.turns, resumed.open), (5, None));
    assert_eq!(resumed.last_end.unwrap().0, TurnId(5));
    assert!(!resumed.session.unwrap().id.is_empty());
}

fn said(line: Value) -> Recorded {
    Recorded::In(Line::Text(line.to_string()))
}

fn wrote(actions: &[Action]) -> Vec<Recorded> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Write(line) => Some(Recorded::Out(line.clone())),
            _ => None,
        })
        .collect()
}

#[test]
fn a_question_is_asked_again_until_its_answer_is_on_record() {
    let ask =
        said(json!({"type": "permission", "id": "p1", "tool": "Bash", "input": {"command": "ls"}}));
    let mut history = vec![said(json!({"type": "ready"})), ask];
    let mut jsonl = Jsonl::new();
    let resumed = resume(&mut jsonl, history.clone()).unwrap();
    let [Action::AskTool(request)] = resumed.actions.as_slice() else {
        panic!("{:?}", resumed.actions);
    };
    assert_eq!(request.tool, "Bash");
    let answer = jsonl.answer(Answer::Tool {
        id: request.id.clone(),
        verdict: Verdict::Allow,
    });
    history.extend(wrote(&answer));
    let resumed = resume(&mut Jsonl::new(), history).unwrap();
    assert_eq!(resumed.actions, []);
}

#[test]
fn a_peer_that_was_asked_is_asked_again() {
    let history = [
        said(json!({"type": "ready"})),
        said(
            json!({"type": "request", "id": "r1", "to": "fixer", "method": "ask", "payload": "x"}),
        ),
        said(json!({"type": "log", "text": "waiting"})),
    ];
    let resumed = resume(&mut Jsonl::new(), history).unwrap();
    assert!(
        matches!(resumed.actions.as_slice(), [Action::AskPeer(request)] if request.to == "fixer"),
        "{:?}",
        resumed.actions
    );
}

#[test]
fn a_refusal_is_written_exactly_once_also_in_the_words_of_another_version() {
    let broken = said(json!({"type": "permission", "id": "p1"}));
    let mut jsonl = Jsonl::new();
    let unrecorded = resume(&mut jsonl, [broken.clone()]).unwrap();
    let lines = wrote(&unrecorded.actions);
    assert_eq!(lines.len(), 2, "a verdict and a complaint");
    let mut history = vec![broken.clone()];
    history.extend(lines);
    let resumed = resume(&mut Jsonl::new(), history).unwrap();
    assert_eq!(resumed.actions, []);
    let other_words = [
        broken,
        Recorded::Out(
            json!({"type": "verdict", "id": "p1", "allow": false, "why": "older words"})
                .to_string(),
        ),
        Recorded::Out(json!({"type": "error", "what": "older words", "line": ""}).to_string()),
    ];
    let resumed = resume(&mut Jsonl::new(), other_words).unwrap();
    assert_eq!(resumed.actions, []);
}

#[test]
fn a_turn_is_open_until_its_result_and_its_end_is_known() {
    let mut jsonl = Jsonl::new();
    jsonl.receive(&Line::Text(json!({"type": "ready"}).to_string()));
    let asked = Turn {
        asked_by: Some(Asker {
            name: "boss".into(),
            method: "ask".into(),
        }),
        ..turn(7, "do it")
    };
    let begun = jsonl.begin_turn(&asked).unwrap();
    let mut history = vec![said(json!({"type": "ready"}))];
    history.extend(wrote(&begun));
    let resumed = resume(&mut Jsonl::new(), history.clone()).unwrap();
    assert_eq!((resumed.turns, resumed.open), (7, Some(TurnId(7))));
    history.push(said(json!({"type": "result", "id": "7", "text": "done"})));
    let mut jsonl = Jsonl::new();
    let resumed = resume(&mut jsonl, history).unwrap();
    let (ended, outcome) = resumed.last_end.unwrap();
    assert_eq!(
        (resumed.open, ended, outcome.text.as_str()),
        (None, TurnId(7), "done")
    );
    assert!(jsonl.begin_turn(&turn(8, "next")).is_ok());
}

#[test]
fn a_line_of_another_protocol_and_a_failed_conversation_are_said() {
    let foreign = resume(&mut Jsonl::new(), [Recorded::Out("{}".into())]);
    assert_eq!(foreign, Err(Unresumable::Line { line: "{}".into() }));
    let refused = json!({"type": "control_response", "response": {"subtype": "error", "request_id": "agentd-initialize", "error": "no"}});
    let failed = resume(
        &mut Claude::new(),
        [Recorded::Out("{}".into()), said(refused)],
    );
    assert!(
        matches!(failed, Err(Unresumable::Failed { .. })),
        "{failed:?}"
    );
}
