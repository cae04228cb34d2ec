//! Scheduler telemetry: of the living by `agentctl sched`, of the dead in the record, and the reason where nothing counts.

use agentd_testkit::skip;
use serde_json::Value;

use crate::harness::{Daemon, Mode, modes, output, text, wait_until};

#[test]
fn what_the_scheduler_did_is_told_of_the_living_and_kept_of_the_dead() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let naps = "while :; do sleep 0.02; done";
        let options = ["--detach", "--name", "napper"];
        let (code, _, err) = text(&daemon.run_with(work.path(), &options, &["sh", "-c", naps]));
        assert_eq!(code, 0, "{mode:?}: {err}");
        let look = || text(&output(&mut daemon.agentctl(["--json", "sched", "napper"])));
        let (code, _, err) = look();
        if code != 0 {
            assert!(err.contains("not loaded"), "{mode:?}: {err}");
            assert!(err.contains("agentctl doctor"), "{mode:?}: {err}");
            if mode == Mode::Root {
                skip("bpf-sched", &err);
            }
            continue;
        }
        let switches = || {
            let (code, out, err) = look();
            assert_eq!(code, 0, "{mode:?}: {err}");
            let answer: Value = serde_json::from_str(&out).expect("JSON");
            let agent = &answer["agents"][0];
            assert_eq!(agent["name"], "napper");
            agent["switches"]["voluntary"].as_u64().expect("a count")
        };
        let first = switches();
        wait_until("it napped on", || switches() > first + 3);
        let (code, out, err) = text(&output(&mut daemon.agentctl(["sched"])));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("napper"), "{out}");

        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "napper"])));
        assert_eq!(code, 0, "{err}");
        let (code, _, err) = look();
        assert_eq!(code, 1, "{err}");
        assert!(err.contains("agentctl inspect napper"), "{err}");
        let (code, out, err) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "napper"]),
        ));
        assert_eq!(code, 0, "{err}");
        let record: Value = serde_json::from_str(&out).expect("JSON");
        let kept = &record["exit"]["resources"]["scheduled"];
        assert!(
            kept["voluntary"].as_u64().is_some_and(|n| n > first + 3),
            "{kept}"
        );
        assert!(kept["run_ns"].as_u64().is_some_and(|ns| ns > 0), "{kept}");
    }
}
