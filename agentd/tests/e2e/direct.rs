//! The direct path: agents without shared memory that ask each other, from socket to socket in the kernel, through every end.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use crate::harness::{self, Daemon, Mode, is_root, program, put_program, text, wait_until};
use crate::orders::{Orders, fifo};

const SERVER: &str = "server";
const ASKER: &str = "asker";

/// A daemon that offers the path. `None`: this host has none, and the test is skipped.
fn daemon() -> Option<Daemon> {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return None;
    }
    let daemon = Daemon::with_config(Mode::Root, "[bus]\ndirect = true\n");
    Some(daemon)
}

/// Whether the path is there, which an agent that is up shows.
fn has_path(daemon: &Daemon, name: &str) -> bool {
    let peer = peer(daemon, name);
    let why = peer["direct_why"].as_str().expect("a reason");
    if why.starts_with("this host has none") {
        agentd_testkit::skip("bpf-route", why);
        return false;
    }
    true
}

fn ok(daemon: &Daemon, args: &[&str]) -> String {
    harness::ok(daemon, daemon.owner(), args)
}

fn peer(daemon: &Daemon, name: &str) -> Value {
    let listed: Value =
        serde_json::from_str(&ok(daemon, &["--json", "bus", "peers"])).expect("JSON");
    let peers = listed["peers"].as_array().expect("a list");
    let found = peers.iter().find(|peer| peer["name"] == name);
    found
        .unwrap_or_else(|| panic!("{name} in {listed}"))
        .clone()
}

fn direct(daemon: &Daemon, name: &str, figure: &str) -> u64 {
    peer(daemon, name)[figure].as_u64().expect("a figure")
}

fn is_connected(daemon: &Daemon, name: &str) {
    wait_until(&format!("{name} is on the direct path"), || {
        peer(daemon, name)["direct"] == "connected"
    });
}

/// Starts the program as agent `name` under a policy without shared memory.
fn start(daemon: &Daemon, work: &Path, name: &str, args: &[&str]) {
    put_program(&program("request-agent"), &work.join("request-agent"));
    let policy = work.join("socket.toml");
    std::fs::write(
        &policy,
        "extends = \"coding\"\n[ipc]\nshared_memory = false\n",
    )
    .expect("write the policy");
    let policy = policy.to_str().expect("utf-8");
    let options = ["--detach", "--name", name, "--policy", policy];
    let argv = [&["./request-agent"], args].concat();
    let (code, _, err) = text(&daemon.run_with(work, &options, &argv));
    assert_eq!(code, 0, "{err}");
}

fn events(work: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(work.join("events")).unwrap_or_default();
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(
        !lines.iter().any(|line| line.starts_with("error")),
        "{lines:?}"
    );
    lines
}

/// The server, once it serves.
fn serve(daemon: &Daemon, work: &Path) {
    start(daemon, work, SERVER, &["serve"]);
    wait_until("it serves", || {
        events(work).iter().any(|line| line == "serving")
    });
}

/// The asking agent.
fn asker(daemon: &Daemon, work: &Path) -> Orders {
    fifo(&work.join("enough"), daemon.owner());
    Orders::start(work, daemon.owner(), || {
        start(daemon, work, ASKER, &["ask", SERVER]);
    })
}

/// Until both are on the path: the first request over the bus opens it.
fn connect(asker: &mut Orders, daemon: &Daemon) {
    assert_eq!(asker.told("use always"), "ok");
    assert_eq!(asker.told("echo 1 64"), "ok 1");
    is_connected(daemon, ASKER);
    is_connected(daemon, SERVER);
}

#[test]
fn small_requests_go_through_the_kernel_and_all_others_over_the_bus() {
    let Some(daemon) = daemon() else { return };
    let (there, here) = (daemon.workspace(), daemon.workspace());
    serve(&daemon, there.path());
    if !has_path(&daemon, SERVER) {
        return;
    }
    let mut asker = asker(&daemon, here.path());
    connect(&mut asker, &daemon);
    let before = peer(&daemon, ASKER);
    assert_eq!(asker.told("echo 200 64"), "ok 200");
    assert_eq!(asker.told("echo 100 4000"), "ok 100");
    let after = peer(&daemon, ASKER);
    let grown = |figure: &str| {
        let [before, after] = [&before, &after].map(|peer| peer[figure].as_u64().expect("u64"));
        after - before
    };
    assert!(
        grown("direct_sent") >= 300 && grown("direct_received") >= 300,
        "{after}"
    );
    assert_eq!(grown("sent"), 0, "none of them went over the bus");
    assert!(direct(&daemon, SERVER, "direct_received") >= 300);
    // The payloads, and a few dozen bytes that say what each request is for.
    let payloads = 200 * 64 + 100 * 4000;
    for figure in ["direct_sent_bytes", "direct_received_bytes"] {
        let bytes = grown(figure);
        assert!(
            (payloads..payloads + 300 * 64).contains(&bytes),
            "{figure}: {bytes}"
        );
    }
    assert_eq!(
        direct(&daemon, SERVER, "direct_received_bytes"),
        direct(&daemon, ASKER, "direct_sent_bytes")
    );

    // A request of a failure fails the same way; the answer that is too long for a frame comes over the bus, once.
    assert_eq!(asker.told("fail"), "failed: as it was asked to");
    assert_eq!(asker.told("large"), "ok 100000");
    let direct_sent = direct(&daemon, ASKER, "direct_sent");
    assert_eq!(asker.told("echo 20 5000"), "ok 20");
    assert_eq!(direct(&daemon, ASKER, "direct_sent"), direct_sent);
    let table = ok(&daemon, &["bus", "peers"]);
    assert!(
        table.contains("DIRECT") && table.contains(" KiB)"),
        "{table}"
    );
    events(there.path());
    for name in [ASKER, SERVER] {
        ok(&daemon, &["kill", name]);
    }
}

#[test]
fn a_right_that_is_taken_back_is_refused_at_once_and_the_answer_too() {
    let Some(daemon) = daemon() else { return };
    let (there, here) = (daemon.workspace(), daemon.workspace());
    serve(&daemon, there.path());
    if !has_path(&daemon, SERVER) {
        return;
    }
    let mut asker = asker(&daemon, here.path());
    connect(&mut asker, &daemon);
    assert_eq!(asker.told("echo 50 64"), "ok 50");
    let received = direct(&daemon, SERVER, "direct_received");
    let refused = direct(&daemon, ASKER, "direct_refused");
    ok(&daemon, &["bus", "revoke", ASKER, "request"]);
    let said = asker.told("echo 1 64");
    assert!(
        said.starts_with("denied:") && said.contains("[ipc] request"),
        "{said}"
    );
    assert_eq!(direct(&daemon, SERVER, "direct_received"), received);
    assert_eq!(direct(&daemon, ASKER, "direct_refused"), refused + 1);
    ok(&daemon, &["bus", "restore", ASKER]);
    // The client leaves the path alone for a while, as after anything that comes back.
    assert_eq!(asker.told("echo 50 64"), "ok 50");
    assert!(direct(&daemon, SERVER, "direct_received") > received);
    // What is laid over its policy takes it as well, before the verb is done.
    ok(&daemon, &["tighten", ASKER, "--set", "ipc.request=nobody"]);
    let received = direct(&daemon, SERVER, "direct_received");
    let said = asker.told("echo 1 64");
    assert!(said.starts_with("denied:"), "{said}");
    assert_eq!(direct(&daemon, SERVER, "direct_received"), received);
    ok(&daemon, &["restore", "policy", ASKER]);
    assert_eq!(asker.told("echo 50 64"), "ok 50");
    events(there.path());
    for name in [ASKER, SERVER] {
        ok(&daemon, &["kill", name]);
    }
}

#[test]
fn the_end_of_a_peer_is_told_and_its_successor_is_found() {
    let Some(daemon) = daemon() else { return };
    let (there, here) = (daemon.workspace(), daemon.workspace());
    serve(&daemon, there.path());
    if !has_path(&daemon, SERVER) {
        return;
    }
    let mut asker = asker(&daemon, here.path());
    connect(&mut asker, &daemon);
    // Nobody answers: the deadline, by the path.
    let sent = direct(&daemon, ASKER, "direct_sent");
    let said = asker.told("hold 100");
    assert!(
        said.starts_with("deadline passed:") && said.contains("not known"),
        "{said}"
    );
    assert_eq!(direct(&daemon, ASKER, "direct_sent"), sent + 1);
    // Killed under a request: at once, long before the deadline.
    asker.say("hold 3600000");
    wait_until("the request is there", || {
        events(there.path())
            .iter()
            .filter(|line| *line == "holding")
            .count()
            == 2
    });
    ok(&daemon, &["kill", SERVER]);
    let said = asker.hear();
    assert!(said.starts_with("peer gone:"), "{said}");
    // Nobody has the name.
    let said = asker.told("echo 1 64");
    assert!(said.starts_with("no such agent:"), "{said}");
    // Another has it, perhaps in the same slot.
    let again = daemon.workspace();
    serve(&daemon, again.path());
    is_connected(&daemon, SERVER);
    assert_eq!(asker.told("echo 200 64"), "ok 200");
    assert!(direct(&daemon, SERVER, "direct_received") > 0);
    events(again.path());
    for name in [ASKER, SERVER] {
        ok(&daemon, &["kill", name]);
    }
}

#[test]
fn every_request_is_answered_or_reported_however_often_agentd_is_killed() {
    let Some(mut daemon) = daemon() else { return };
    let (there, here) = (daemon.workspace(), daemon.workspace());
    serve(&daemon, there.path());
    if !has_path(&daemon, SERVER) {
        return;
    }
    let mut asker = asker(&daemon, here.path());
    connect(&mut asker, &daemon);
    assert_eq!(asker.told("flood"), "flooding");
    for _ in 0..3 {
        for name in [ASKER, SERVER] {
            is_connected(&daemon, name);
        }
        let before = direct(&daemon, SERVER, "direct_received");
        wait_until("requests go by the path", || {
            direct(&daemon, SERVER, "direct_received") > before + 100
        });
        daemon.kill();
        daemon.start_again();
    }
    is_connected(&daemon, SERVER);
    let before = direct(&daemon, SERVER, "direct_received");
    wait_until("requests go by the path again", || {
        direct(&daemon, SERVER, "direct_received") > before + 100
    });
    drop(
        File::options()
            .write(true)
            .open(here.path().join("enough"))
            .expect("enough"),
    );
    let said = asker.hear();
    assert!(said.contains(" answered, "), "{said}");
    eprintln!("{said}");
    // None of them was done twice.
    events(there.path());
    for name in [ASKER, SERVER] {
        ok(&daemon, &["kill", name]);
    }
}

#[test]
fn without_leave_in_the_configuration_or_with_shared_memory_nobody_is_on_the_path() {
    if !is_root() {
        agentd_testkit::skip("root", "the kernel plane is root's");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let work = daemon.workspace();
    serve(&daemon, work.path());
    let shown = peer(&daemon, SERVER);
    assert_eq!(shown["direct"], "none");
    let why = shown["direct_why"].as_str().expect("a reason");
    assert!(why.contains("[bus] direct = false"), "{why}");
    assert!(!ok(&daemon, &["bus", "peers"]).contains("DIRECT"));
    ok(&daemon, &["kill", SERVER]);
    drop(daemon);

    let daemon = Daemon::with_config(Mode::Root, "[bus]\ndirect = true\n");
    let work = daemon.workspace();
    put_program(
        &program("request-agent"),
        &work.path().join("request-agent"),
    );
    let options = ["--detach", "--name", SERVER];
    let (code, _, err) =
        text(&daemon.run_with(work.path(), &options, &["./request-agent", "serve"]));
    assert_eq!(code, 0, "{err}");
    wait_until("it serves", || !events(work.path()).is_empty());
    if has_path(&daemon, SERVER) {
        let shown = peer(&daemon, SERVER);
        assert_eq!(shown["direct"], "none");
        let why = shown["direct_why"].as_str().expect("a reason");
        assert!(why.contains("shares memory"), "{why}");
    }
    ok(&daemon, &["kill", SERVER]);
}
