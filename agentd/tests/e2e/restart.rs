//! agentd and its broker are ended and started again under traffic: what is not delivered is told to its sender.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    Daemon, modes, output, program, put_program, signal, text, wait_until, worker_of,
};

const SENDER: &str = "sender";
const RECEIVER: &str = "receiver";
/// Messages between two ends.
const MESSAGES: u64 = 1500;

fn start(daemon: &Daemon, work: &Path, name: &str, args: &[&str]) {
    put_program(&program("traffic-agent"), &work.join("traffic-agent"));
    let argv = [&["./traffic-agent"], args].concat();
    let (code, _, err) = text(&daemon.run_with(work, &["--detach", "--name", name], &argv));
    assert_eq!(code, 0, "{err}");
}

/// How many messages of the lane it has noted.
fn noted(work: &Path) -> u64 {
    let text = std::fs::read_to_string(work.join("notes")).unwrap_or_default();
    // The last line may be half written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    assert!(
        !whole.lines().any(|line| line.starts_with("error")),
        "{whole}"
    );
    let mut numbers = whole
        .lines()
        .filter_map(|line| line.strip_prefix("lane ")?.parse().ok());
    numbers.next_back().unwrap_or(0)
}

fn report(work: &Path, file: &str) -> Value {
    let path = work.join(file);
    wait_until(file, || {
        noted(work);
        path.exists()
    });
    let text = std::fs::read_to_string(&path).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

/// Ends what the broker's worker is now, and waits until agentd has handed its agents to the next one.
fn end_worker(daemon: &mut Daemon, end: impl FnOnce(&Daemon)) {
    let before = daemon.broker;
    end(daemon);
    wait_until("another worker", || {
        let next = worker_of(daemon.supervisor).filter(|pid| *pid != before);
        daemon.broker = next.unwrap_or(before);
        next.is_some()
    });
    // What agentd launches now it launches by that one, after it has handed over those that live.
    let (code, _, err) = text(&output(&mut daemon.agentctl([
        "run",
        "--no-workspace",
        "--",
        "true",
    ])));
    assert_eq!(code, 0, "{err}");
}

#[test]
fn what_is_lost_while_agentd_and_its_broker_restart_is_told_to_its_sender() {
    for mode in modes() {
        let mut daemon = Daemon::with_config(mode, "[daemon]\non_stop = \"keep\"\n");
        let (receiver, sender) = (daemon.workspace(), daemon.workspace());
        start(&daemon, receiver.path(), RECEIVER, &["receive"]);
        let rates = ["--lane", "3000", "--requests", "100"];
        let args = [&["send", RECEIVER], &rates[..]].concat();
        start(&daemon, sender.path(), SENDER, &args);
        let go_on = || {
            for work in [sender.path(), receiver.path()] {
                let before = noted(work);
                wait_until("the traffic goes on", || noted(work) >= before + MESSAGES);
            }
        };
        go_on();
        daemon.kill();
        daemon.start_again();
        go_on();
        end_worker(&mut daemon, |daemon| signal(daemon.broker, Signal::KILL));
        go_on();
        daemon.terminate();
        daemon.start_again();
        go_on();
        end_worker(&mut daemon, |daemon| {
            signal(daemon.supervisor, Signal::USR2);
        });
        go_on();
        std::fs::write(sender.path().join("stop"), "").expect("stop");
        let (sent, received) = (
            report(sender.path(), "sent.json"),
            report(receiver.path(), "received.json"),
        );
        let number = |of: &Value| of.as_u64().unwrap_or_else(|| panic!("{sent} {received}"));
        let (lane, requests) = (&sent["lane"], &sent["requests"]);
        assert_eq!(
            number(&received["lane"]["twice"]),
            0,
            "{mode:?}: {received}"
        );
        // Nobody of the two died, so the lane repeats what it had taken: nothing is lost at all.
        assert_eq!(number(&lane["said_lost"]), 0, "{mode:?}: {sent}");
        assert_eq!(
            number(&received["lane"]["distinct"]),
            number(&lane["taken"]),
            "{mode:?}: {sent} {received}"
        );
        assert_eq!(
            number(&requests["answered"]) + number(&requests["said_lost"]),
            number(&requests["taken"]),
            "{mode:?}: {sent}"
        );
        assert!(number(&requests["answered"]) > 0, "{mode:?}: {sent}");
        wait_until("both have ended", || {
            let (code, out, err) = text(&output(&mut daemon.agentctl(["ps"])));
            assert_eq!(code, 0, "{err}");
            !out.contains(SENDER) && !out.contains(RECEIVER)
        });
    }
}
