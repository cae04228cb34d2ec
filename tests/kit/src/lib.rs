//! Parts for tests and the demo: the stand-in model server and the project's own small agent.
//!
//! Nothing here is installed. The stand-in ([`standin`]) plays the model provider: it answers Anthropic- and
//! OpenAI-shaped requests by a script, on a thread and runtime of its own, so that a blocking test, an async
//! test and a separate process use it alike. The small agent (`small-agent`) is a real agent program: it asks
//! a model, runs the tools the model asks for, and talks to other agents over the bus. The other agents in `bin/`
//! are what the end-to-end tests run in sandboxes; [`lines`] and [`peers`] are what they share.

#![forbid(unsafe_code)]

pub mod lines;
pub mod peers;
pub mod skip;
pub mod standin;

pub use skip::skip;
