//! Whatever is killed, nothing of an agent is left behind, and what is left is said.

use crate::harness::{
    Daemon, Mode, children_of, descendants_of, is_alive, modes, output, signal, text, wait_until,
};
use rustix::process::Signal;

/// Orphans in sessions of their own, one of which ignores every polite signal.
const TREE: &str = "for i in 1 2 3; do (setsid sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1000; done' &) ; done; \
                    sleep 1000 & echo up; wait";

/// Starts the tree and returns every process of it.
fn grow(daemon: &Daemon, work: &std::path::Path) -> Vec<i32> {
    let (code, _, err) =
        text(&daemon.run_with(work, &["--detach", "--name", "tree"], &["sh", "-c", TREE]));
    assert_eq!(code, 0, "{err}");
    let mut all = Vec::new();
    wait_until("the tree has grown", || {
        all = descendants_of(daemon.broker);
        // init, sh, its sleep, and three times sh and sleep
        all.len() >= 9
    });
    all
}

fn wait_dead(tree: &[i32]) {
    wait_until("everything is dead", || {
        !tree.iter().any(|pid| is_alive(*pid))
    });
}

#[test]
fn a_kill_takes_the_whole_tree() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let tree = grow(&daemon, work.path());
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "tree"])));
        assert_eq!(code, 0, "{err}");
        wait_dead(&tree);
    }
}

#[test]
fn the_death_of_the_program_the_init_or_its_main_process_takes_the_whole_tree() {
    for mode in modes() {
        for victim in [0, 1] {
            let daemon = Daemon::start(mode);
            let work = daemon.workspace();
            let tree = grow(&daemon, work.path());
            // Each the oldest child of the one before: not by their numbers, which begin anew some time.
            let init = children_of(daemon.broker)[0];
            let program = children_of(init)[0];
            signal([init, program][victim], Signal::KILL);
            wait_dead(&tree);
            wait_until("agentd knows", || {
                !text(&output(&mut daemon.agentctl(["ps"])))
                    .1
                    .contains("tree")
            });
            let (_, out, _) = text(&output(&mut daemon.agentctl(["--json", "inspect", "tree"])));
            let record: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            let kind = record["exit"]["kind"].as_str().expect("an exit").to_owned();
            assert_eq!(
                kind,
                if victim == 0 { "lost" } else { "signaled" },
                "{mode:?}: {out}"
            );
        }
    }
}

#[test]
fn both_lifelines_gone_takes_the_whole_tree() {
    for mode in modes() {
        for broker_first in [true, false] {
            let mut daemon = Daemon::start(mode);
            let work = daemon.workspace();
            let tree = grow(&daemon, work.path());
            if broker_first {
                signal(daemon.broker, Signal::KILL);
                daemon.kill();
            } else {
                let broker = daemon.broker;
                daemon.kill();
                signal(broker, Signal::KILL);
            }
            wait_dead(&tree);
            sweep(mode, &daemon);
        }
    }
}

#[test]
fn with_no_grace_one_lifeline_is_enough() {
    for mode in modes() {
        let mut daemon = Daemon::with_config(mode, "[daemon]\nlifeline_grace_ms = 0\n");
        let work = daemon.workspace();
        let tree = grow(&daemon, work.path());
        daemon.kill();
        wait_dead(&tree);
        let broker = daemon.supervisor;
        wait_until("the broker ends too", || !is_alive(broker));
    }
}

#[test]
fn agentd_ends_with_its_broker_and_says_why() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let pid = daemon.pid();
        signal(daemon.supervisor, Signal::KILL);
        signal(daemon.broker, Signal::KILL);
        wait_until("agentd ends", || !is_alive(pid));
        wait_until("it says why", || {
            daemon.log().contains("agentd-broker has gone")
        });
    }
}

#[test]
fn a_terminated_agentd_stops_its_agents_and_leaves_nothing() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let tree = grow(&daemon, work.path());
        let broker = daemon.supervisor;
        assert!(daemon.terminate().success(), "{}", daemon.log());
        wait_dead(&tree);
        wait_until("the broker ends", || !is_alive(broker));
        assert_eq!(left_cgroups(broker), Vec::<String>::new());
    }
}

#[test]
fn the_record_survives_the_kill_of_agentd() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let work = daemon.workspace();
        grow(&daemon, work.path());
        let broker = daemon.broker;
        daemon.kill();
        signal(broker, Signal::KILL);
        // A second daemon on the same state reads it back.
        let state = daemon.state_dir();
        let database = state.join("agentd.db");
        assert!(database.exists());
        let runtime = tokio::runtime::Runtime::new().expect("runtime");
        let launches = runtime.block_on(async {
            let store = crate::harness::record_of_the_dead(&database).await;
            store
                .launches(agentd_storage::Viewer::Root, 10)
                .await
                .expect("reads")
        });
        assert_eq!(launches.len(), 1);
        assert_eq!(launches[0].name, "tree");
        sweep(mode, &daemon);
    }
}

/// What a killed broker left in its cgroups the next one sweeps; here the test plays the next one.
fn sweep(mode: Mode, daemon: &Daemon) {
    let broker = daemon.supervisor;
    wait_until("the broker is gone", || !is_alive(broker));
    drop(Daemon::start(mode));
}

/// Cgroups that carry the broker's pid in their name, in any hierarchy.
fn left_cgroups(broker: i32) -> Vec<String> {
    let mut left = Vec::new();
    let mut next = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = next.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("agentd") && name.ends_with(&format!("-{broker}")) {
                    left.push(entry.path().display().to_string());
                }
                next.push(entry.path());
            }
        }
    }
    left
}
