//! What the kernel plane counted: of the living by `agentctl inspect` and D-Bus, of the dead in the record.

use agentd_testkit::skip;
use serde_json::Value;

use crate::harness::{Daemon, Mode, modes, output, text, wait_until};

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
