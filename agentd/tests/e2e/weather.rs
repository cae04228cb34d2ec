//! Bad weather: a full disk, a damaged record, no descriptors left. What runs goes on, what is new is refused with a
//! sentence that helps, and when the weather is over everything is as before.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{
    ALICE, BOB, Daemon, Mode, dir_of, is_root, modes, output, program, text, wait_until,
};

/// A tmpfs that is gone with the test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str, owner: u32) -> Self {
        std::fs::create_dir_all(at).expect("a mount point");
        let mut mount = Command::new("mount");
        let options = format!("size={size},mode=700,uid={owner},gid={owner}");
        mount.args(["-t", "tmpfs", "-o", &options]);
        let (code, _, err) = text(&output(mount.arg("none").arg(at)));
        assert_eq!(code, 0, "{err}");
        Self(at.to_owned())
    }

    fn fill(&self) -> PathBuf {
        use std::io::Write as _;
        let path = self.0.join("fill");
        let mut file = std::fs::File::create(&path).expect("a file that fills the disk");
        while file.write_all(&[0; 512]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon on it ends after its disk in a test that fails.
        let (code, _, err) = text(&output(Command::new("umount").arg("-l").arg(&self.0)));
        assert_eq!(code, 0, "{err}");
    }
}

const COUNTER: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done";

fn start_counter(daemon: &Daemon, workspace: &Path, name: &str) {
    let mut run = daemon.agentctl(["run", "-d", "--name", name, "--workspace"]);
    run.arg(workspace).args(["--", "sh", "-c", COUNTER]);
    let (code, _, err) = text(&output(&mut run));
    assert_eq!(code, 0, "{err}");
}

/// How far the counter has come; every number up to there must be in its log, once.
fn counted(daemon: &Daemon, name: &str) -> usize {
    let (code, out, err) = text(&output(&mut daemon.agentctl(["logs", name])));
    assert_eq!(code, 0, "{err}");
    let numbers: Vec<usize> = out.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(
        numbers.iter().copied().eq(0..numbers.len()),
        "a gap or a repetition in {numbers:?}"
    );
    numbers.len()
}

#[test]
fn on_a_full_disk_agents_go_on_new_ones_are_refused_and_room_heals_it() {
    if !is_root() {
        return agentd_testkit::skip("root", "a small disk is mounted");
    }
    for mode in modes() {
        let mut disk = None;
        let owner = if mode == Mode::Root { 0 } else { ALICE };
        let mut daemon = Daemon::prepared(mode, "", &[], |dir| {
            disk = Some(SmallDisk::mount(&dir.join("state"), "16m", owner));
        });
        let disk = disk.expect("mounted");
        let work = daemon.workspace();
        start_counter(&daemon, work.path(), "counter");
        start_counter(&daemon, work.path(), "doomed");
        wait_until("both count", || {
            counted(&daemon, "counter") > 2 && counted(&daemon, "doomed") > 2
        });
        let fill = disk.fill();

        let (code, _, err) = text(&daemon.run(work.path(), &["true"]));
        assert_eq!(code, 125, "{err}");
        let state = daemon.state_dir().display().to_string();
        assert!(
            err.contains(&state) && err.contains("agentctl prune"),
            "{err}"
        );
        let before = counted(&daemon, "counter");
        wait_until("the counter goes on", || {
            counted(&daemon, "counter") > before + 10
        });
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "doomed"])));
        assert_eq!(code, 0, "{err}");

        std::fs::remove_file(&fill).expect("make room");
        wait_until("launches work again", || {
            text(&daemon.run(work.path(), &["true"])).0 == 0
        });
        wait_until("the exit that could not be recorded is", || {
            let record = output(&mut daemon.agentctl(["inspect", "doomed", "--json"]));
            text(&record).1.contains("agentctl kill")
        });
        let before = counted(&daemon, "counter");
        wait_until("the counter goes on", || {
            counted(&daemon, "counter") > before + 10
        });
        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "counter"])));
        assert_eq!(code, 0, "{err}");
        assert!(daemon.terminate().success());
        drop(disk);
    }
}

#[test]
fn without_descriptors_new_agents_are_refused_and_everything_else_goes_on() {
    for mode in modes() {
        let limited = ["prlimit", "--nofile=192:192", "--"];
        let daemon = Daemon::prepared(mode, "", &limited, |_dir| {});
        let work = daemon.workspace();
        start_counter(&daemon, work.path(), "counter");
        let mut refused = None;
        for n in 0..192 {
            let mut run = daemon.agentctl(["run", "-d", "--name", &format!("more-{n}"), "-w"]);
            run.arg(work.path()).args(["--", "sleep", "1000"]);
            let (code, _, err) = text(&output(&mut run));
            if code != 0 {
                refused = Some((code, err));
                break;
            }
        }
        let (code, err) = refused.expect("the limit is reached");
        assert_eq!(code, 125, "{err}");
        assert!(
            err.contains("descriptors") && err.contains("LimitNOFILE"),
            "{err}"
        );
        let (code, out, err) = text(&output(&mut daemon.agentctl(["ps"])));
        assert!(code == 0 && out.contains("counter"), "{out}{err}");
        let before = counted(&daemon, "counter");
        wait_until("the counter goes on", || {
            counted(&daemon, "counter") > before + 10
        });

        let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", "more-0", "more-1"])));
        assert_eq!(code, 0, "{err}");
        wait_until("there is room again", || {
            text(&daemon.run(work.path(), &["true"])).0 == 0
        });
    }
}

#[test]
fn a_record_that_is_no_database_is_refused_at_start_with_the_verb_that_helps() {
    let dir = dir_of(rustix::process::geteuid().as_raw());
    let state = dir.path().join("state");
    std::fs::create_dir(&state).expect("a state directory");
    let record = state.join("agentd.db");
    std::fs::write(&record, "no database, but long enough for one. ".repeat(40)).expect("a file");
    // A root agentd opens it as its own user.
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let mut agentd = Command::new(program("agentd"));
    agentd.arg("--runtime-dir").arg(dir.path().join("run"));
    let (code, _, err) = text(&output(agentd.arg("--state-dir").arg(&state)));
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("agentctl db recover"), "{err}");
}

#[test]
fn what_ended_is_pruned_by_its_owner_only_and_what_lives_is_not() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        start_counter(&daemon, work.path(), "alive");
        let run = daemon.run_with(work.path(), &["--name", "done"], &["echo", "gone"]);
        assert_eq!(text(&run).0, 0);
        let prune = ["prune", "--older-than", "1ms", "--yes", "--json"];
        if mode == Mode::Root {
            let other = daemon.agentctl_as(BOB, prune);
            let (code, out, err) = text(&output(&mut { other }));
            assert!(code == 0 && !out.contains("done"), "{out}{err}");
        }
        let logs = || {
            std::fs::read_dir(daemon.state_dir().join("logs"))
                .expect("logs")
                .count()
        };
        let before = logs();
        let (code, out, err) = text(&output(&mut daemon.agentctl(prune)));
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("done") && !out.contains("alive"), "{out}");
        assert!(logs() < before);
        let (code, out, err) = text(&output(&mut daemon.agentctl(["records"])));
        assert!(
            code == 0 && out.contains("alive") && !out.contains("done"),
            "{out}{err}"
        );
        let backup = daemon.dir.path().join("copy.db");
        let mut command = daemon.agentctl(["db", "backup"]);
        if mode == Mode::Root {
            let (code, _, err) = text(&output(command.arg(&backup)));
            assert_eq!(code, 0, "{err}");
            assert!(backup.metadata().expect("the copy").len() > 0);
        }
        let (code, out, err) = text(&output(&mut daemon.agentctl(["db", "check"])));
        assert_eq!((code, out.trim()), (0, "ok"), "{err}");
    }
}
