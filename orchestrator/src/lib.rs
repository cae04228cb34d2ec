//! Agent life cycles, driver protocols and tasks, as pure state machines.
//!
//! Nothing here reads a clock, a file or a socket, and nothing is async: bytes, answers and events go in, [`driver::Action`]s and
//! transitions come out. The daemon runs these machines over an agent's pipes (`agentd::driver`) and acts on what
//! they say. So every protocol rule is a unit test, and recorded transcripts of real agents are fixtures.
//!
//! Start reading at [`agent::Life`], then [`driver::Machine`]; work that can't get lost is in [`task`], what an
//! administrator declares in [`unit`].
#![forbid(unsafe_code)]

pub mod agent;
pub mod driver;
pub mod task;
pub mod unit;
