//! One user can't see or touch another's agents. Needs root mode: there several users share one agentd.

use crate::harness::{ALICE, BOB, Daemon, Mode, dir_of, is_root, output, text, wait_until};

#[test]
fn users_see_and_touch_only_their_own_agents_and_records() {
    if !is_root() {
        agentd_testkit::skip("root", "several users on one agentd need root mode");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let work = dir_of(ALICE);
    let mut run = daemon.agentctl_as(ALICE, ["run", "--detach", "--name", "mine", "--workspace"]);
    run.arg(work.path())
        .args(["--", "sh", "-c", "touch made; exec sleep 1000"]);
    let (code, _, err) = text(&output(&mut run));
    assert_eq!(code, 0, "{err}");
    wait_until("it has made a file", || work.path().join("made").exists());

    for args in [&["ps", "-a"][..], &["records"][..]] {
        let (code, out, err) = text(&output(&mut daemon.agentctl_as(BOB, args)));
        assert_eq!(code, 0, "{args:?}: {err}");
        assert!(!out.contains("mine"), "{args:?}: {out}");
    }
    for verb in ["inspect", "logs", "stop", "kill", "attach"] {
        let (code, out, err) = text(&output(&mut daemon.agentctl_as(BOB, [verb, "mine"])));
        assert_eq!(code, 1, "{verb}: {out} {err}");
        assert!(err.contains("mine"), "{verb}: {err}");
    }
    let (_, out, _) = text(&output(&mut daemon.agentctl_as(ALICE, ["ps"])));
    assert!(out.contains("mine"), "alice still has hers: {out}");
    let (code, _, err) = text(&output(&mut daemon.agentctl_as(0, ["kill", "mine"])));
    assert_eq!(code, 0, "root may: {err}");
    assert_eq!(
        std::os::unix::fs::MetadataExt::uid(
            &std::fs::metadata(work.path().join("made")).expect("made")
        ),
        ALICE
    );
}

#[test]
fn a_user_cannot_launch_into_anothers_directory() {
    if !is_root() {
        agentd_testkit::skip("root", "several users on one agentd need root mode");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let work = dir_of(ALICE);
    let mut run = daemon.agentctl_as(BOB, ["run", "--no-tty", "--workspace"]);
    run.arg(work.path())
        .args(["--", "sh", "-c", "touch planted"]);
    let (code, out, err) = text(&output(&mut run));
    assert_ne!(code, 0, "{out} {err}");
    assert!(!work.path().join("planted").exists());
}

#[test]
fn only_the_owner_or_root_may_shut_the_daemon_down() {
    if !is_root() {
        agentd_testkit::skip("root", "several users on one agentd need root mode");
        return;
    }
    let daemon = Daemon::start(Mode::Root);
    let (code, out, err) = text(&output(&mut daemon.agentctl_as(BOB, ["shutdown"])));
    assert_eq!(code, 4, "{out} {err}");
    let (code, ..) = text(&output(&mut daemon.agentctl_as(BOB, ["ps"])));
    assert_eq!(code, 0, "it still serves");
}
