//! agentctl as a program, against a daemon that the test plays itself.
//!
//! The real binary runs with real pipes and a real pseudo-terminal; only the other end of the control
//! socket is ours, so every answer, frame and failure can be chosen.

mod fake;
mod help;
mod pipes;
mod pty;
mod start;
mod terminal;
mod verbs;
