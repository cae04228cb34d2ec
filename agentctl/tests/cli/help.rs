//! What agentctl prints about itself, against files: a change of the surface is seen in review.

use std::path::PathBuf;

use crate::fake::agentctl;

/// Compares with a golden file. `AGENTCTL_BLESS=1 cargo test -p agentctl` rewrites the files.
pub fn compare(name: &str, got: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("AGENTCTL_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("mkdir");
        std::fs::write(&file, got).expect("write the golden file");
        return;
    }
    let expected = std::fs::read_to_string(&file).expect("the golden file");
    assert!(
        got == expected,
        "{} differs; if that is meant: AGENTCTL_BLESS=1 cargo test -p agentctl\n--- got\n{got}",
        file.display()
    );
}

#[test]
fn help_texts() {
    let verbs = [
        "",
        "run",
        "ps",
        "inspect",
        "logs",
        "attach",
        "stop",
        "kill",
        "revoke",
        "tighten",
        "restore",
        "freeze",
        "thaw",
        "signal",
        "wait",
        "records",
        "sched",
        "prune",
        "db",
        "db check",
        "db backup",
        "db recover",
        "audit",
        "audit verify",
        "audit head",
        "audit key",
        "approvals",
        "approvals list",
        "approvals show",
        "approvals allow",
        "approvals deny",
        "approvals rules",
        "approvals revoke",
        "approvals watch",
        "tasks",
        "tasks submit",
        "tasks list",
        "tasks show",
        "tasks watch",
        "tasks cancel",
        "tasks retry",
        "bus",
        "bus peers",
        "bus channels",
        "bus top",
        "bus tap",
        "bus publish",
        "bus subscribe",
        "bus request",
        "bus send",
        "bus revoke",
        "bus restore",
        "bench",
        "bench throughput",
        "bench latency",
        "bench stress",
        "agents",
        "agents list",
        "agents show",
        "agents cat",
        "agents start",
        "agents stop",
        "agents restart",
        "agents enable",
        "agents disable",
        "agents logs",
        "agents attach",
        "agents reload",
        "config",
        "config check",
        "config show",
        "config diff",
        "policy",
        "policy show",
        "policy lint",
        "policy diff",
        "policy test",
        "policy schema",
        "doctor",
        "selftest",
        "version",
        "shutdown",
        "completions",
    ];
    let mut all = String::new();
    for verb in verbs {
        let output = agentctl()
            .args(verb.split_whitespace())
            .arg("--help")
            .output();
        let output = output.expect("agentctl runs");
        assert_eq!(output.status.code(), Some(0), "{verb}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        all.push_str(&format!("$ agentctl {verb} --help\n{text}\n"));
    }
    compare("help.txt", &all);
}

#[test]
fn usage_errors_go_to_stderr_with_code_2() {
    for args in [&["--frob"][..], &["ps", "--frob"], &["stop"], &[]] {
        let output = agentctl().args(args).output().expect("agentctl runs");
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{args:?}"
        );
    }
}
