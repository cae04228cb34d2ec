//! Landlock rules: what the host's version of it takes, and no more than is needed.

use agentd_launch::plan::{Plan, Record};
use agentd_sandbox::{Mode, plan};

use super::{MODES, landlock_rules, planned};
use crate::{host, inputs, named};

#[test]
fn landlock_is_reduced_to_what_the_host_knows() {
    for (abi, handled, scopes) in [
        (7, 0xffff, 3),
        (6, 0xffff, 3),
        (3, 0x7fff, 0),
        (2, 0x3fff, 0),
        (1, 0x1fff, 0),
        (11, 0xffff, 3),
    ] {
        let plan = plan(&named("coding"), &inputs(Mode::Root), &host(abi, &[])).expect("planned");
        let parsed = Plan::parse(&plan.wire).expect("a plan");
        let ruleset = parsed.records().find_map(|r| match r {
            Record::Landlock {
                handled_fs,
                handled_net,
                scoped,
                min_abi,
            } => Some((handled_fs, handled_net, scoped, min_abi)),
            _ => None,
        });
        assert_eq!(ruleset, Some((handled, 0, scopes, abi.min(7))), "ABI {abi}");
        assert!(
            landlock_rules(&plan)
                .iter()
                .all(|(_, access)| access & !handled == 0 && *access != 0),
            "ABI {abi}"
        );
    }
}

#[test]
fn a_landlock_rule_that_gives_no_more_than_one_above_it_is_left_out() {
    for mode in MODES {
        let rules = landlock_rules(&planned(mode));
        assert!(rules.iter().any(|(path, _)| path == "/etc"));
        for (path, access) in &rules {
            let given = rules.iter().find(|(above, given)| {
                let is_above = above != path && std::path::Path::new(path).starts_with(above);
                is_above && access & !given == 0
            });
            // One that may be missing gives nothing where it is.
            assert!(given.is_none_or(|(above, _)| above != "/etc"), "{path}");
        }
    }
}

#[test]
fn landlock_lets_nothing_be_written_but_the_workspace_and_private_places() {
    const WRITE_FILE: u64 = 2;
    let rules = landlock_rules(&planned(Mode::Root));
    let writable: Vec<&str> = rules
        .iter()
        .filter(|(_, a)| a & WRITE_FILE != 0)
        .map(|(p, _)| p.as_str())
        .collect();
    assert_eq!(
        writable,
        [
            "/dev",
            "/dev/shm",
            "/dev/mqueue",
            "/home/ada",
            "/home/ada/repo",
            "/tmp",
            "/var/tmp"
        ]
    );
    const READ_FILE: u64 = 4;
    let root = rules
        .iter()
        .find(|(p, _)| p == "/")
        .expect("a rule for the root");
    assert_eq!(
        root.1 & (READ_FILE | WRITE_FILE | 1),
        0,
        "the root folder may be listed and no more"
    );
}
