//! The broker: the one process of agentd that keeps privilege.
//!
//! It serves one client, agentd, on the socket it finds on descriptor 3, with the fixed requests of
//! [`agentd_broker::protocol`]. It never parses policies, network bytes or agents' output, opens no path that a client
//! names, and reads no environment. Single-threaded; runs as root (one kernel uid per agent) or as a user (single-id map),
//! by its effective uid. It ends when agentd asks, when it is told to by SIGTERM, or when agentd has gone and the last
//! agent with it. Read on in `server.rs` (the loop), `launch.rs` (a launch), `docs/broker-protocol.md`.

mod agents;
mod failure;
mod harden;
mod idmap;
mod launch;
mod server;
mod spawn;
mod start;

use std::process::ExitCode;

const USAGE: &str = "usage: agentd-broker [--client-uid UID]\n\n\
Started by agentd (or by systemd) with an AF_UNIX SOCK_SEQPACKET socket on descriptor 3: connected, or listening for\n\
exactly one connection. The peer must be UID (by default this process's own).";

fn main() -> ExitCode {
    let client_uid = match start::parse_arguments(std::env::args_os().skip(1)) {
        Ok(start::Arguments::Serve { client_uid }) => client_uid,
        Ok(start::Arguments::Version) => {
            eprintln!("agentd-broker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("agentd-broker: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match start::prepare(client_uid).and_then(server::Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agentd-broker: {error}");
            ExitCode::FAILURE
        }
    }
}
