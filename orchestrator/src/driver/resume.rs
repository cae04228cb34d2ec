//! Going on with a conversation that an earlier daemon began: the state of a [`Machine`], rebuilt from the record.
//!
//! Pure: recorded lines in, a machine in the state it had and what is left to do out. It rests on two facts that the
//! daemon keeps true. A line from the agent is on record before the machine sees it, and a line to the agent is on
//! record before it is written; and whatever is on record for the agent's stdin reaches it exactly once, however often
//! the daemon dies (the daemon's feed sees to that). So nothing here guesses whether the agent has read a line: a
//! recorded line *was said*, and only what is not on record is still to be done.
//!
//! Replaying is: give the agent's lines to [`Machine::receive`] and the daemon's to [`Machine::wrote`], and keep of the
//! actions what had no chance to leave a trace: questions that were never answered, and lines that were never recorded.
//! A question asked again is at-least-once: a tool, an MCP call or another agent may have been asked before the daemon
//! died. A turn is never begun twice.

use super::{Action, Line, Machine, RequestId, Session, TurnId, TurnOutcome};

/// One line of the record, in the order of recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// From the agent.
    In(Line),
    /// To the agent.
    Out(String),
}

/// What a line of the daemon was, as the machine that could have written it understands it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrote {
    /// It began this turn.
    Turn(TurnId),
    /// It answered this question.
    Answer(RequestId),
    /// Anything else that this machine writes.
    Other,
    /// This machine writes no such line.
    Unknown,
}

/// A conversation that goes on.
#[derive(Debug, Default, PartialEq)]
pub struct Resumed {
    /// What is still to be done: lines that were never recorded, then questions that were never answered.
    pub actions: Vec<Action>,
    /// Whether the agent takes turns.
    pub ready: bool,
    /// The number of the last turn that was begun; 0 before the first.
    pub turns: u64,
    /// The turn that the agent works on.
    pub open: Option<TurnId>,
    /// The last turn that ended. Whoever waited for it may not have been told.
    pub last_end: Option<(TurnId, TurnOutcome)>,
    /// What the agent said of its session, with whose id it could be resumed by itself.
    pub session: Option<Session>,
}

/// Why a conversation can't go on. The agent has to be ended; its own session may be resumed in a new launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresumable {
    /// The driver was not written for it.
    #[error("this driver cannot go on with a conversation that another agentd began")]
    Driver,
    /// A recorded line makes no sense to the driver, which may be of another version.
    #[error("the driver does not know this line, which was written to the agent before: {line}")]
    Line {
        /// Its beginning.
        line: String,
    },
    /// It was over before.
    #[error("the conversation had failed: {why}")]
    Failed {
        /// Why.
        why: String,
    },
}

/// Brings `machine`, which is new, into the state after `history`.
///
/// # Errors
/// [`Unresumable`]; the machine is of no use then.
pub fn resume(
    machine: &mut dyn Machine,
    history: impl IntoIterator<Item = Recorded>,
) -> Result<Resumed, Unresumable> {
    if !machine.is_resumable() {
        return Err(Unresumable::Driver);
    }
    let mut resumed = Resumed::default();
    let mut replay = Replay::default();
    replay.take(&mut resumed, machine.start())?;
    // The first lines of every conversation, whatever an agentd of another version put into them.
    let mut greeting = replay.unwritten.len();
    for line in history {
        match line {
            Recorded::In(line) => {
                let actions = machine.receive(&line);
                replay.take(&mut resumed, actions)?;
            }
            Recorded::Out(_) if greeting > 0 => {
                greeting -= 1;
                replay.unwritten.remove(0);
            }
            Recorded::Out(line) if replay.was_wanted(&line) => {}
            Recorded::Out(line) => match machine.wrote(&line) {
                Wrote::Turn(turn) => {
                    resumed.turns = turn.0;
                    resumed.open = Some(turn);
                }
                Wrote::Answer(id) => replay.answered.push(id),
                Wrote::Other => replay.others += 1,
                Wrote::Unknown => {
                    return Err(Unresumable::Line {
                        line: super::excerpt(&line),
                    });
                }
            },
        }
    }
    resumed.actions = replay.rest(machine);
    Ok(resumed)
}

/// What the replayed actions leave to be done.
#[derive(Debug, Default)]
struct Replay {
    /// Lines that the machine wanted written and that have not been met on record yet, oldest first.
    unwritten: Vec<String>,
    /// Every question, in order; the machine says which are open.
    questions: Vec<(RequestId, Action)>,
    /// Recorded answers that are not word for word what the machine wants written: decisions, and refusals in the
    /// words of an agentd of another version.
    answered: Vec<RequestId>,
    /// Recorded lines of no consequence that the machine did not want word for word.
    others: usize,
}

impl Replay {
    fn take(&mut self, resumed: &mut Resumed, actions: Vec<Action>) -> Result<(), Unresumable> {
        for action in actions {
            match action {
                Action::Write(line) => self.unwritten.push(line),
                Action::Ready => resumed.ready = true,
                Action::Failed(why) => return Err(Unresumable::Failed { why }),
                Action::Session(session) => resumed.session = Some(session),
                Action::TurnEnded { turn, outcome } => {
                    resumed.open = None;
                    resumed.last_end = Some((turn, outcome));
                }
                Action::AskTool(ref request) => {
                    let id = request.id.clone();
                    self.ask(id, action);
                }
                Action::Mcp { ref id, .. } => {
                    let id = id.clone();
                    self.ask(id, action);
                }
                Action::AskPeer(ref request) => {
                    let id = request.id.clone();
                    self.ask(id, action);
                }
                // Told once, and to people: what they were told is in the log.
                Action::Text(_)
                | Action::ToolUse { .. }
                | Action::Withdrawn(_)
                | Action::Usage(_)
                | Action::Log(_)
                | Action::Ignored { .. }
                | Action::ProtocolError { .. } => {}
            }
        }
        Ok(())
    }

    /// An id may be used again once its question is answered: the last one with it counts.
    fn ask(&mut self, id: RequestId, question: Action) {
        self.questions.retain(|(other, _)| *other != id);
        self.questions.push((id, question));
    }

    fn was_wanted(&mut self, line: &str) -> bool {
        let found = self.unwritten.iter().position(|wanted| wanted == line);
        if let Some(at) = found {
            self.unwritten.remove(at);
        }
        found.is_some()
    }

    /// What never left a trace on record.
    fn rest(mut self, machine: &mut dyn Machine) -> Vec<Action> {
        let mut rest = Vec::new();
        for line in self.unwritten {
            // Refused by the machine itself, so nothing of its state depends on these lines.
            match machine.wrote(&line) {
                Wrote::Answer(id) if self.answered.contains(&id) => {}
                Wrote::Other if self.others > 0 => self.others -= 1,
                _ => rest.push(Action::Write(line)),
            }
        }
        let open = self
            .questions
            .into_iter()
            .filter(|(id, _)| machine.is_open(id))
            .map(|(_, question)| question);
        rest.extend(open);
        rest
    }
}
