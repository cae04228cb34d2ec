//! What the kernel plane counted: of the living by `agentctl inspect` and D-Bus, of the dead in the record.

use std::collections::HashMap;

use agentd_api::{AgentProxy, ManagerProxy};
use agentd_testkit::skip;
use serde_json::Value;
use zbus::connection::{Builder, Connection};
use zbus::proxy::CacheProperties;

use crate::harness::{Daemon, Mode, modes, output, runtime, text, wait_until};
use crate::private_bus::PrivateBus;

/// Talks with itself over its own loopback.
const CHATTER: &str = r#"use Socket; use IO::Handle;
socket(my $l, PF_INET, SOCK_STREAM, 0) or die $!; listen($l, 9) or die $!;
my ($port) = sockaddr_in(getsockname($l));
socket(my $c, PF_INET, SOCK_STREAM, 0) or die $!; connect($c, sockaddr_in($port, INADDR_LOOPBACK)) or die $!; accept(my $s, $l) or die $!;
while (1) { syswrite($c, "x" x 1000); sysread($s, my $got, 1000); select(undef, undef, undef, 0.02) }"#;

fn record(daemon: &Daemon) -> Value {
    let (code, out, err) = text(&output(
        &mut daemon.agentctl(["--json", "inspect", "chatter"]),
    ));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).expect("JSON")
}

#[test]
fn packets_and_bytes_are_shown_of_the_living_and_kept_of_the_dead() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let options = ["--detach", "--name", "chatter"];
        let argv = ["perl", "-e", CHATTER];
        let (code, _, err) = text(&daemon.run_with(work.path(), &options, &argv));
        assert_eq!(code, 0, "{mode:?}: {err}");
        let living = record(&daemon);
        if living["counted"].is_null() {
            if mode == Mode::Root {
                let doctor = text(&output(&mut daemon.agentctl(["doctor"]))).1;
                let line = doctor.lines().find(|line| line.contains("– net "));
                skip("bpf-net", line.expect("doctor says why"));
            }
            continue;
        }
        assert_eq!(mode, Mode::Root, "a user's agentd has no kernel plane");
        let bytes = || record(&daemon)["counted"]["bytes_out"].as_u64();
        wait_until("ten messages have left", || {
            bytes().is_some_and(|bytes| bytes > 10_000)
        });
        let people = text(&output(&mut daemon.agentctl(["inspect", "chatter"]))).1;
        assert!(people.contains("Counted in the kernel so far"), "{people}");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "chatter"])));
        assert_eq!(code, 0, "{err}");
        let dead = record(&daemon);
        assert!(dead["counted"].is_null(), "{}", dead["counted"]);
        let kept = &dead["exit"]["resources"]["counted"];
        for (field, least) in [
            ("bytes_in", 10_000),
            ("bytes_out", 10_000),
            ("packets_out", 10),
        ] {
            assert!(kept[field].as_u64().is_some_and(|n| n > least), "{kept}");
        }
        assert_eq!(kept["refused"], 0);
    }
}

/// The property, asked of the daemon at the other end of a connection.
async fn property(connection: &Connection) -> HashMap<String, u64> {
    let manager = ManagerProxy::new(connection).await.expect("a proxy");
    let path = manager.find("chatter").await.expect("it is known");
    let agent = AgentProxy::builder(connection)
        .path(path)
        .cache_properties(CacheProperties::No)
        .build();
    let agent = agent.await.expect("a proxy");
    agent.kernel_counters().await.expect("the property")
}

/// What `inspect` says of the living.
fn shown(daemon: &Daemon) -> HashMap<String, u64> {
    let counted = &record(daemon)["counted"];
    let fields = counted.as_object().into_iter().flatten();
    fields
        .map(|(name, n)| (name.clone(), n.as_u64().expect("a number")))
        .collect()
}

#[test]
fn the_system_bus_and_the_control_socket_have_the_counters_of_the_living_as_a_property() {
    let runtime = runtime();
    for mode in modes() {
        let bus = match mode {
            Mode::Root => PrivateBus::start(mode.owner()),
            Mode::User => None,
        };
        let address = bus
            .as_ref()
            .map_or("unix:path=/nonexistent", |bus| &bus.address);
        let address = format!("DBUS_SYSTEM_BUS_ADDRESS={address}");
        // One whom a dbus-daemon knows.
        let config = "[daemon]\nuser = \"nobody\"\n";
        let daemon = Daemon::prepared(mode, config, &["env", &address], |_dir| {});
        let work = daemon.workspace();
        let options = ["--detach", "--name", "chatter"];
        let argv = ["perl", "-e", CHATTER];
        let (code, _, err) = text(&daemon.run_with(work.path(), &options, &argv));
        assert_eq!(code, 0, "{mode:?}: {err}");
        let mut ways = vec![runtime.block_on(async { ("control socket", daemon.control().await) })];
        if let Some(bus) = &bus {
            wait_until("agentd is on the bus", || {
                daemon
                    .log()
                    .contains("serving org.agentd1 on the system bus")
            });
            let connection = runtime.block_on(Builder::address(bus.address.as_str()).build());
            ways.push(("system bus", connection.expect("a connection")));
        }
        let counts = !shown(&daemon).is_empty();
        if counts {
            assert_eq!(mode, Mode::Root, "a user's agentd has no kernel plane");
            wait_until("ten messages have left", || {
                shown(&daemon)["bytes_out"] > 10_000
            });
        }
        for (way, connection) in &ways {
            let before = shown(&daemon);
            let asked = runtime.block_on(property(connection));
            let after = shown(&daemon);
            assert_eq!(asked.len(), before.len(), "{way}: {asked:?}");
            for (name, n) in &asked {
                assert!(
                    (before[name]..=after[name]).contains(n),
                    "{way}: {name} is {n}, between {before:?} and {after:?}"
                );
            }
        }
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "chatter"])));
        assert_eq!(code, 0, "{err}");
        for (way, connection) in &ways {
            let asked = runtime.block_on(property(connection));
            assert!(asked.is_empty(), "{way}: of a dead agent: {asked:?}");
        }
    }
}
