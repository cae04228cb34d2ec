//! The broker: the one process of agentd that keeps privilege.
//!
//! It serves one client at a time, agentd, on the socket it finds on descriptor 3, with the fixed requests of
//! [`agentd_broker::protocol`]. It never parses policies, network bytes or agents' output, opens no path that a client
//! names, and reads no environment. Single-threaded; runs as root (one kernel uid per agent) or as a user (single-id map),
//! by its effective uid. It ends when agentd asks, when it is told to by SIGTERM, or when agentd has gone and the last
//! agent with it.
//!
//! On a listening socket it is two processes: a supervisor that does next to nothing, and the worker that it forks for the
//! client, and again for the next connection after the worker died. Read on in `supervisor.rs`, `server.rs` (the worker's
//! loop), `launch.rs` (a launch), `adopt.rs` (agents of a dead worker), `docs/broker-protocol.md`.

mod adopt;
mod agents;
mod answer;
mod audit;
mod connection;
mod failure;
mod harden;
mod idmap;
mod launch;
mod limit;
mod log;
mod meter;
mod placeholder;
mod plane;
mod server;
mod spawn;
mod start;
mod supervisor;

use start::{Arguments, Command, Prepared, Socket, StartError, Supervision};
use std::process::ExitCode;
use std::sync::Arc;

const USAGE: &str = "\
usage: agentd-broker [--client-uid UID] [--cgroup DIR] [--notes DIR] [--host-network] [--kernel-audit] [--keep-agents] [--no-supervisor]
       agentd-broker --remove-pins --cgroup DIR

Started by agentd (or by systemd) with an AF_UNIX SOCK_SEQPACKET socket on descriptor 3: connected, or listening for
one client after the other.

  --client-uid UID  who may connect, besides this process's own user; by default the owner of the socket's file
  --cgroup DIR      keep agents in DIR, a delegated cgroup2 directory without processes
  --notes DIR       what to remove after a crash is noted there; for root by default in /var/lib/agentd-broker
  --host-network    as root, give agents the host's network where their policy asks for it; an ordinary user's are given it anyway
  --kernel-audit    as root, listen to the kernel's audit for what Landlock refuses agents; turn it on where it is off
  --keep-agents     on SIGTERM, leave the agents to the next agentd-broker, for their grace
  --remove-pins     only detach and remove the eBPF programs of the agents in DIR, when no agentd-broker runs for it
  --no-supervisor   whoever started this process starts it again when it dies";

fn main() -> ExitCode {
    let arguments = match start::parse_arguments(std::env::args_os().skip(1)) {
        Ok(Command::Serve(arguments)) => arguments,
        Ok(Command::RemovePins(cgroup)) => {
            return match plane::remove_pins(&cgroup) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    log::log!("{error}");
                    ExitCode::FAILURE
                }
            };
        }
        Ok(Command::Version) => {
            eprintln!("agentd-broker {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("agentd-broker: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match start::prepare(&arguments).and_then(|prepared| run(prepared, &arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::log!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(prepared: Prepared, arguments: &Arguments) -> Result<(), StartError> {
    let serve = |prepared| server::Server::new(prepared, arguments)?.run();
    let supervised = arguments.supervision == Supervision::Own
        && matches!(prepared.socket, Socket::Listening(_));
    let audit = Arc::clone(&prepared.audit);
    let removable = if supervised {
        match supervisor::run(prepared, arguments)? {
            // The supervisor removes what its workers leave.
            supervisor::Role::Worker(prepared) => return serve(prepared).map(|_| ()),
            supervisor::Role::Supervisor(holdings) => holdings,
        }
    } else {
        serve(prepared)?
    };
    audit.leave();
    if let Some(holdings) = removable {
        harden::remove(holdings);
    }
    Ok(())
}
