//! `agentctl selftest` against real launches: what is stopped, what a policy opens with its line, and what is on record.

use serde_json::Value;

use crate::harness::{Daemon, modes, optional_program, output, text};

/// Whether the suite was built; it is a crate of its own.
fn suite_is_there() -> bool {
    optional_program("agentd-escape").is_some()
}

fn selftest(daemon: &Daemon, policy: &str, cases: &str) -> (i32, Value, String) {
    let arguments = ["--json", "selftest", "--policy", policy, "--case", cases];
    let mut command = daemon.agentctl(arguments);
    // The victims' place, where an ordinary user has no HOME.
    command.env("HOME", daemon.dir.path());
    let (code, out, err) = text(&output(&mut command));
    let report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    (code, report, err)
}

#[test]
fn a_selftest_says_what_is_stopped_and_what_the_policy_opens_and_is_on_record() {
    if !suite_is_there() {
        return agentd_testkit::skip(
            "agentd-escape",
            "the escape suite is not built: cargo build -p agentd-escape",
        );
    }
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let (code, report, err) = selftest(&daemon, "coding", "fs_read_abs,sig_victim,ex_wx");
        assert_eq!(code, 0, "{report:#}{err}");
        assert_eq!(report["whole"], true);
        assert_eq!(report["escaped"].as_array().map(Vec::len), Some(0));
        // A policy for building things lets memory be written and executed, and says where.
        let opened = report["opened"].as_array().expect("a list");
        assert_eq!(opened.len(), 1, "{report:#}");
        let by = opened[0]["opened_by"].as_str().expect("a line");
        assert!(
            by.contains("coding (built in):") && by.contains("write_exec"),
            "{by}"
        );

        let launch = &report["launch"];
        let suite = report["suite"].as_str().expect("a digest");
        assert_eq!(suite.len(), 64);
        assert!(launch["landlock_abi"].is_number() && launch["kernel"].is_string());
        let id = launch["id"].as_str().expect("an id");
        let (code, out, err) = text(&output(&mut daemon.agentctl(["inspect", id])));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(suite), "{out}");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["audit", "verify"])));
        assert_eq!(code, 0, "{err}");
    }
}

#[test]
fn a_selftest_of_a_case_that_is_not_there_says_so() {
    if !suite_is_there() {
        return agentd_testkit::skip(
            "agentd-escape",
            "the escape suite is not built: cargo build -p agentd-escape",
        );
    }
    let mode = modes().pop().expect("a mode");
    let daemon = Daemon::start(mode);
    let mut command = daemon.agentctl(["selftest", "--case", "no_such_case"]);
    let (code, _, err) = text(&output(command.env("HOME", daemon.dir.path())));
    assert!(code == 1 && err.contains("no_such_case"), "{err}");
}
