//! The life of one agent: starting → running ⇄ stopped → exited, or failed if it never ran.
//!
//! Pure. The daemon feeds it what the kernel and the launcher said ([`Happening`]), and publishes the transitions
//! with their causes. Anything that can't follow from the present state is an error, never a silent correction: it
//! means that two parts of the daemon disagree about an agent.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an agent is doing, as far as the kernel can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Accepted; the sandbox is being built.
    Starting,
    /// Its program runs.
    Running,
    /// Its program is stopped by a job-control signal or a freeze.
    Stopped,
    /// It ran, and is gone.
    Exited,
    /// It never ran.
    Failed,
}

impl State {
    /// No further transition can happen.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Exited | Self::Failed)
    }

    /// The name in the record and on D-Bus.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The launcher reported that the sandbox stands and the program runs.
    Ready,
    /// The launch came to nothing; the text says at which step.
    LaunchFailed(String),
    /// A signal stopped the program.
    Stopped {
        /// Its number.
        signal: i32,
    },
    /// The program goes on.
    Continued,
    /// Somebody asked for the end; the agent may take a while. Only remembered, as the cause of what follows.
    EndRequested(String),
    /// The program ended with this code.
    Exited {
        /// 0 to 255.
        code: i32,
    },
    /// A signal ended the program.
    Signaled {
        /// Its number.
        signal: i32,
    },
    /// The sandbox is gone (pidfd) and nobody saw how.
    Vanished,
}

/// A change of state and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
    /// Why, for the record: one line.
    pub cause: String,
}

/// Something that can't happen in this state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an agent that is {state} can't see {happening:?}")]
pub struct Impossible {
    /// The state it is in.
    pub state: State,
    /// What was reported.
    pub happening: Happening,
}

/// One agent's life so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    state: State,
    end_cause: Option<String>,
}

impl Default for Life {
    fn default() -> Self {
        Self::new()
    }
}

impl Life {
    /// A life that begins: starting.
    pub fn new() -> Self {
        Self {
            state: State::Starting,
            end_cause: None,
        }
    }

    /// The present state.
    pub fn state(&self) -> State {
        self.state
    }

    /// Who asked for the end first, if anybody did.
    pub fn end_cause(&self) -> Option<&str> {
        self.end_cause.as_deref()
    }

    /// Takes what was seen; the transition it means, if it means one.
    ///
    /// # Errors
    /// [`Impossible`], and nothing has changed.
    pub fn see(&mut self, happening: Happening) -> Result<Option<Transition>, Impossible> {
        use State::{Exited, Failed, Running, Starting, Stopped};
        let (to, cause) = match (self.state, &happening) {
            (Starting, Happening::Ready) => (Running, "the sandbox stands".to_owned()),
            (Starting, Happening::LaunchFailed(why)) => (Failed, why.clone()),
            (Starting, Happening::Vanished) => (
                Failed,
                self.blame("the sandbox ended before it was ready".to_owned()),
            ),
            (Starting | Running | Stopped, Happening::EndRequested(who)) => {
                // The first to ask is the cause; a stop that turns into a kill stays a stop.
                self.end_cause.get_or_insert_with(|| who.clone());
                return Ok(None);
            }
            (Running, Happening::Stopped { signal }) => {
                (Stopped, format!("stopped by signal {signal}"))
            }
            (Stopped, Happening::Stopped { .. }) | (Running, Happening::Continued) => {
                return Ok(None);
            }
            (Stopped, Happening::Continued) => (Running, "continued".to_owned()),
            (Running | Stopped, Happening::Exited { code }) => (
                Exited,
                self.blame(format!("the program ended with code {code}")),
            ),
            (Running | Stopped, Happening::Signaled { signal }) => {
                (Exited, self.blame(format!("ended by signal {signal}")))
            }
            (Running | Stopped, Happening::Vanished) => (
                Exited,
                self.blame("the sandbox is gone and left no status".to_owned()),
            ),
            // The pidfd fires after the launcher's own report: the same death seen twice.
            (Exited | Failed, Happening::Vanished) => return Ok(None),
            // Asking twice for the end is no conflict either.
            (Exited | Failed, Happening::EndRequested(_)) => return Ok(None),
            (state, _) => return Err(Impossible { state, happening }),
        };
        let from = std::mem::replace(&mut self.state, to);
        Ok(Some(Transition { from, to, cause }))
    }

    fn blame(&self, what: String) -> String {
        match &self.end_cause {
            Some(who) => format!("{what}: {who}"),
            None => what,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_life_runs_stops_continues_and_exits() {
        let mut life = Life::new();
        let mut states = vec![life.state()];
        for happening in [
            Happening::Ready,
            Happening::Stopped { signal: 20 },
            Happening::Continued,
            Happening::Exited { code: 3 },
        ] {
            let transition = life.see(happening).unwrap().unwrap();
            states.push(transition.to);
        }
        assert_eq!(
            states,
            [
                State::Starting,
                State::Running,
                State::Stopped,
                State::Running,
                State::Exited
            ]
        );
    }

    #[test]
    fn the_first_to_ask_for_the_end_is_the_cause() {
        let mut life = Life::new();
        life.see(Happening::Ready).unwrap();
        life.see(Happening::EndRequested("stop by uid 1000".into()))
            .unwrap();
        life.see(Happening::EndRequested("grace is over".into()))
            .unwrap();
        let end = life
            .see(Happening::Signaled { signal: 9 })
            .unwrap()
            .unwrap();
        assert_eq!(end.cause, "ended by signal 9: stop by uid 1000");
    }

    #[test]
    fn a_launch_that_fails_never_ran() {
        let mut life = Life::new();
        let end = life
            .see(Happening::LaunchFailed("mount /usr".into()))
            .unwrap()
            .unwrap();
        assert_eq!((end.to, end.cause.as_str()), (State::Failed, "mount /usr"));
        assert!(life.see(Happening::Ready).is_err());
    }

    #[test]
    fn a_death_seen_twice_is_one_death() {
        let mut life = Life::new();
        life.see(Happening::Ready).unwrap();
        life.see(Happening::Exited { code: 0 }).unwrap();
        assert_eq!(life.see(Happening::Vanished), Ok(None));
        assert!(life.see(Happening::Exited { code: 1 }).is_err());
    }

    fn any_happening() -> impl Strategy<Value = Happening> {
        prop_oneof![
            Just(Happening::Ready),
            Just(Happening::LaunchFailed("x".into())),
            (1..64i32).prop_map(|signal| Happening::Stopped { signal }),
            Just(Happening::Continued),
            Just(Happening::EndRequested("y".into())),
            (0..256i32).prop_map(|code| Happening::Exited { code }),
            (1..64i32).prop_map(|signal| Happening::Signaled { signal }),
            Just(Happening::Vanished),
        ]
    }

    proptest! {
        #[test]
        fn final_states_are_never_left_and_errors_change_nothing(seen in prop::collection::vec(any_happening(), 0..20)) {
            let mut life = Life::new();
            for happening in seen {
                let before = life.clone();
                match life.see(happening) {
                    Ok(Some(t)) => {
                        prop_assert_eq!(t.from, before.state());
                        prop_assert_eq!(t.to, life.state());
                        prop_assert!(!t.from.is_final());
                        prop_assert!(!t.cause.is_empty());
                    }
                    Ok(None) => prop_assert_eq!(before.state(), life.state()),
                    Err(_) => prop_assert_eq!(&before, &life),
                }
            }
        }
    }
}
