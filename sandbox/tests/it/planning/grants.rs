//! What is handed over: within the policy, never wider, and never mixed up with what is the caller's own.

use agentd_launch::plan::{Plan, Record};
use agentd_sandbox::{Access, GrantInput, HomeFile, Mode, plan};

use super::text;
use crate::{host, inputs, load, named};

#[test]
fn grants_stay_within_the_policy() {
    let refused = |dst: &str| {
        let mut i = inputs(Mode::Root);
        i.grants.push(GrantInput {
            dst: dst.into(),
            access: Access::ReadOnly,
        });
        plan(&named("coding"), &i, &host(7, &[]))
            .expect_err("refused")
            .to_string()
    };
    assert!(
        refused("/home/ada/.ssh")
            .starts_with("grant /home/ada/.ssh: policy coding does not show it; grants are")
    );
    for reserved in [
        "/",
        "/tmp",
        "/proc/self",
        "/dev/shm",
        "/sys",
        "/run/agentd/x",
        "/home/ada",
    ] {
        assert!(refused(reserved).contains(reserved), "{reserved}");
    }
    assert!(refused("/home/ada/repo").contains("two grants have this path"));
}

#[test]
fn a_grant_is_never_wider_than_the_policy() {
    let mut i = inputs(Mode::Root);
    // The caller hands the toolchain over writable; the policy says read.
    i.grants[2].access = Access::ReadWrite;
    i.grants[1].access = Access::ReadWrite;
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    for path in ["/home/ada/.cargo/bin", "/home/ada/repo/.git/hooks"] {
        let mount = plan
            .summary
            .mounts
            .iter()
            .find(|m| m.path == path)
            .expect("mounted");
        assert_eq!(mount.access, "read-only", "{path}");
    }
}

#[test]
fn a_grant_below_a_protected_path_is_read_only() {
    let policy = load("extends = \"coding\"\n[fs]\nprotect = { replace = [\"${workspace}\"] }\n")
        .expect("loads");
    let plan = plan(&policy, &inputs(Mode::Root), &host(7, &[])).expect("planned");
    let workspace = plan
        .summary
        .mounts
        .iter()
        .find(|m| m.path == "/home/ada/repo");
    assert_eq!(workspace.map(|m| m.access.as_str()), Some("read-only"));
}

#[test]
fn the_program_may_be_granted_and_is_found() {
    let mut i = inputs(Mode::User);
    i.argv = vec!["claude".into(), "--version".into()];
    i.grants.push(GrantInput {
        dst: "/srv/tools/bin/claude".into(),
        access: Access::ReadWrite,
    });
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let mount = plan
        .summary
        .mounts
        .iter()
        .find(|m| m.path == "/srv/tools/bin/claude")
        .expect("mounted");
    assert!(mount.exec && mount.access == "read-only");
    assert!(
        plan.summary
            .env
            .iter()
            .any(|e| e.starts_with("PATH=/srv/tools/bin:"))
    );
}

#[test]
fn a_granted_file_that_happens_to_have_the_programs_name_is_not_the_program() {
    let mut i = inputs(Mode::User);
    i.argv = vec!["registry".into()];
    i.grants.push(GrantInput {
        dst: "/home/ada/.cargo/registry".into(),
        access: Access::ReadOnly,
    });
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let path = plan
        .summary
        .env
        .iter()
        .find_map(|e| e.strip_prefix("PATH="));
    assert!(path.is_some_and(|p| p.starts_with("/home/ada/.cargo/bin:")));
}

#[test]
fn a_workspace_that_holds_home_moves_home_away() {
    let mut i = inputs(Mode::User);
    i.workspace = Some("/home/ada".into());
    i.grants = vec![GrantInput {
        dst: "/home/ada".into(),
        access: Access::ReadWrite,
    }];
    let plan = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    assert_eq!(plan.summary.home, "/home/agent");
    assert_eq!(plan.summary.cwd, "/home/ada");
}

#[test]
fn seeded_files_never_land_in_the_callers_own() {
    let mut i = inputs(Mode::User);
    i.home_files = vec![HomeFile {
        path: ".claude.json".into(),
        mode: 0o600,
        content: b"{}".to_vec(),
    }];
    let seeded = plan(&named("coding"), &i, &host(7, &[])).expect("planned");
    let parsed = Plan::parse(&seeded.wire).expect("a plan");
    assert!(
        parsed.records().any(
            |r| matches!(r, Record::File { dst, .. } if text(dst) == "/home/ada/.claude.json")
        )
    );
    for bad in ["repo/x", ".cargo/bin/cargo", "../x", "/etc/passwd", ""] {
        i.home_files[0].path = bad.into();
        let refused = plan(&named("coding"), &i, &host(7, &[])).expect_err(bad);
        assert!(
            refused.to_string().starts_with("home file "),
            "{bad}: {refused}"
        );
    }
}
