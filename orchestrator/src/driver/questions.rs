//! The open questions of one conversation whose agent may ask about several tools at once: a patch of three files is
//! one question of Codex and three of the policy's.
//!
//! Pure and bounded. All of them must be allowed; the first refusal answers the agent's question and takes the others
//! back. What `T` is belongs to the driver: whatever it needs to word the answer.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Action, RequestId, ToolRequest, Verdict};

/// Questions that may be open at once; an agent that asks more is refused at once.
pub(super) const MAX_OPEN: usize = 256;

#[derive(Debug)]
pub(super) struct Questions<T> {
    /// By the agent's own id, as JSON text.
    open: BTreeMap<String, Open<T>>,
}

#[derive(Debug)]
struct Open<T> {
    asked: T,
    waiting: Vec<RequestId>,
}

/// What an answer settled.
#[derive(Debug, PartialEq)]
pub(super) enum Settled<T> {
    /// Nothing: others are still out, or nobody waits for it.
    Not,
    /// The agent's question may be answered with yes.
    Allowed(T),
    /// With no; the others that it stood for are taken back.
    Refused {
        asked: T,
        why: String,
        withdrawn: Vec<RequestId>,
    },
}

impl<T> Default for Questions<T> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
        }
    }
}

impl<T> Questions<T> {
    /// Opens the agent's question `id`; the actions that ask the policy about each of `tools`.
    ///
    /// # Errors
    /// A sentence, when it can't be asked; nothing has changed.
    pub fn ask(
        &mut self,
        id: &Value,
        asked: T,
        tools: Vec<(String, Value)>,
    ) -> Result<Vec<Action>, String> {
        let key = id.to_string();
        if self.open.contains_key(&key) {
            return Err(format!("request {key} is open already"));
        }
        if tools.is_empty() {
            return Err(format!("request {key} names nothing to decide about"));
        }
        let waiting: usize = self.open.values().map(|open| open.waiting.len()).sum();
        if waiting + tools.len() > MAX_OPEN {
            return Err(format!("more than {MAX_OPEN} questions are open"));
        }
        let single = tools.len() == 1;
        let requests: Vec<ToolRequest> = tools
            .into_iter()
            .zip(1..)
            .map(|((tool, input), number)| ToolRequest {
                id: RequestId(if single {
                    key.clone()
                } else {
                    format!("{key}/{number}")
                }),
                tool,
                input,
            })
            .collect();
        let waiting = requests.iter().map(|request| request.id.clone()).collect();
        self.open.insert(key, Open { asked, waiting });
        Ok(requests.into_iter().map(Action::AskTool).collect())
    }

    /// Takes the policy's answer to one of them.
    pub fn answer(&mut self, id: &RequestId, verdict: Verdict) -> Settled<T> {
        let found = self
            .open
            .iter()
            .find(|(_, open)| open.waiting.contains(id))
            .map(|(key, _)| key.clone());
        let Some(key) = found else {
            return Settled::Not;
        };
        let Some(mut open) = self.open.remove(&key) else {
            return Settled::Not;
        };
        open.waiting.retain(|waiting| waiting != id);
        match verdict {
            Verdict::Deny { why } => Settled::Refused {
                asked: open.asked,
                why,
                withdrawn: open.waiting,
            },
            Verdict::Allow if open.waiting.is_empty() => Settled::Allowed(open.asked),
            Verdict::Allow => {
                self.open.insert(key, open);
                Settled::Not
            }
        }
    }

    /// The agent's question is answered or no longer wanted.
    pub fn close(&mut self, id: &Value) -> Vec<Action> {
        self.open
            .remove(&id.to_string())
            .into_iter()
            .flat_map(|open| open.waiting)
            .map(Action::Withdrawn)
            .collect()
    }

    /// All of them, with what was asked: the turn that they belong to is over.
    pub fn close_all(&mut self) -> Vec<(T, Vec<RequestId>)> {
        std::mem::take(&mut self.open)
            .into_values()
            .map(|open| (open.asked, open.waiting))
            .collect()
    }

    /// Whether the policy's answer is still waited for.
    pub fn is_open(&self, id: &RequestId) -> bool {
        self.open.values().any(|open| open.waiting.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tools(count: usize) -> Vec<(String, Value)> {
        (0..count)
            .map(|n| ("Edit".to_owned(), json!({ "file_path": n })))
            .collect()
    }

    fn id(text: &str) -> RequestId {
        RequestId(text.into())
    }

    #[test]
    fn all_must_be_allowed() {
        let mut questions = Questions::default();
        assert_eq!(
            questions.ask(&json!(0), "patch", tools(2)).unwrap().len(),
            2
        );
        assert_eq!(questions.answer(&id("0/2"), Verdict::Allow), Settled::Not);
        assert!(questions.is_open(&id("0/1")) && !questions.is_open(&id("0/2")));
        assert_eq!(
            questions.answer(&id("0/1"), Verdict::Allow),
            Settled::Allowed("patch")
        );
        assert_eq!(questions.answer(&id("0/1"), Verdict::Allow), Settled::Not);
    }

    #[test]
    fn one_refusal_is_enough_and_takes_the_others_back() {
        let mut questions = Questions::default();
        questions.ask(&json!("a"), (), tools(3)).unwrap();
        let deny = Verdict::Deny { why: "no".into() };
        assert_eq!(
            questions.answer(&id("\"a\"/2"), deny),
            Settled::Refused {
                asked: (),
                why: "no".into(),
                withdrawn: vec![id("\"a\"/1"), id("\"a\"/3")]
            }
        );
    }

    #[test]
    fn a_repeated_id_an_empty_question_and_a_flood_are_refused() {
        let mut questions = Questions::default();
        questions.ask(&json!(1), (), tools(1)).unwrap();
        assert!(questions.ask(&json!(1), (), tools(1)).is_err());
        assert!(questions.ask(&json!(2), (), tools(0)).is_err());
        assert!(questions.ask(&json!(3), (), tools(MAX_OPEN)).is_err());
        // A number and a string are two ids.
        questions.ask(&json!("1"), (), tools(MAX_OPEN - 1)).unwrap();
        assert!(questions.ask(&json!(4), (), tools(1)).is_err());
    }
}
