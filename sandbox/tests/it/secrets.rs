//! `[secrets] files` in real sandboxes: the agent gets a copy that it can read, and nothing else of the file.

use super::harness::modes;
use super::workloads::Launch;
use super::{inputs, load};
use agentd_kernel::grant::Kind;
use agentd_sandbox::{Access, CallerContext, GrantInput, Mode, plan};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_secret_is_a_copy_that_the_agent_alone_reads_and_cannot_change() {
    for mode in modes() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("vault.txt");
        std::fs::write(&file, "hunter2\n").expect("written");
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
        let mut launch = Launch::new(mode);
        launch.policy += &format!("\n[secrets]\nfiles = {{ key = {file:?} }}\n");
        let script = "cat /run/agentd/secrets/key; stat -c '%a %U %n' /run/agentd/secrets /run/agentd/secrets/*; \
            env | grep -c hunter2; grep -c hunter2 /proc/1/environ /proc/1/cmdline; \
            for f in key new; do (echo x > /run/agentd/secrets/$f) 2>/dev/null && echo written; done; \
            rm -f /run/agentd/secrets/key 2>/dev/null && echo removed; \
            mv /run/agentd/secrets /tmp/s 2>/dev/null && echo moved; ls \"$1\" 2>/dev/null; true";
        let outside = folder.path().to_str().expect("UTF-8");
        let ended = launch.run(&["/bin/bash", "-c", script, "bash", outside]);
        let lines: Vec<&str> = ended.stdout.lines().collect();
        assert_eq!(
            lines,
            [
                "hunter2",
                "700 tester /run/agentd/secrets",
                "400 tester /run/agentd/secrets/key",
                "0",
            ],
            "{mode:?} {}",
            ended.stderr
        );
    }
}

#[test]
fn a_secret_that_was_not_handed_over_or_that_no_line_names_refuses_the_launch() {
    let policy = load("extends = \"base\"\n[secrets]\nfiles = { key = \"/srv/vault\" }\n");
    let policy = policy.expect("loads");
    let caller = CallerContext::default();
    let wanted = policy.wanted_grants(&caller);
    let secret = wanted
        .iter()
        .find(|w| w.kind == Kind::Content)
        .expect("wanted");
    assert_eq!(secret.src.to_str(), Some("/srv/vault"));
    assert!(
        !secret.optional,
        "an agent does not start without what it was promised"
    );

    let refused = |dst: Option<&str>| {
        let mut inputs = inputs(Mode::Root);
        inputs.workspace = None;
        inputs.grants.clear();
        inputs.grants.extend(dst.map(|dst| GrantInput {
            dst: dst.into(),
            access: Access::ReadOnly,
        }));
        plan(&policy, &inputs, &super::host(7, &[]))
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    let error = refused(None).expect_err("nothing came");
    assert!(
        error.starts_with(
            "secrets.files.key = /srv/vault (example.toml:3): the file was not handed over"
        ),
        "{error}"
    );
    let error = refused(Some("/run/agentd/secrets/other")).expect_err("no line");
    assert!(
        error.contains("policy example has no such line under secrets.files"),
        "{error}"
    );
    assert_eq!(refused(Some("/run/agentd/secrets/key")), Ok(()));
}
