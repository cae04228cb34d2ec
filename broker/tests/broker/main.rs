//! The real broker under a test client: as a hostile agentd that breaks every rule, and as an honest one whose agents must
//! run, be limited, be killed and leave nothing behind. As root in root mode; `user.rs` runs the same binary again as an
//! ordinary user. A test that this machine can't run is a counted skip.

mod agents;
mod death;
#[path = "../../../tests/kit/src/descriptors.rs"]
mod descriptors;
mod disk;
mod grants;
mod harness;
mod hostile;
mod limits;
mod names;
mod plane;
mod route;
#[path = "../../../tests/kit/src/skip.rs"]
mod skip;
mod succession;
mod user;
