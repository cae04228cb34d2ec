//! The installed product, end to end: real agentd, broker, launcher and agentctl, real namespaces, as root and as an
//! ordinary user. One module per promise; `SPECIFICATION.md` says which.

mod adopt;
mod approvals;
mod audit;
mod bus_channels;
mod bus_verbs;
mod ceilings;
mod counters;
mod credentials;
mod death;
mod denials;
mod direct;
mod durable;
mod gateway_peers;
mod gvisor;
mod harness;
mod isolation;
mod kernel_audit;
mod limits;
mod malformed;
mod orders;
mod private_bus;
mod restart;
mod revocation;
mod run;
mod sched;
mod secrets;
mod selftest;
mod ssh;
mod standin;
mod tasks;
mod terminal;
mod tighten;
mod units;
mod users;
mod weather;
