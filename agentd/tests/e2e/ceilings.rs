//! What a launch may be at most, and what no agent may write: the rules of the next launch.

use crate::harness::{Daemon, modes, output, text};

/// As the operator knows it.
fn home_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").expect("readable");
    let uid = uid.to_string();
    let mut users = passwd.lines().map(|l| l.split(':').collect::<Vec<_>>());
    let fields = users.find(|f| f.get(2) == Some(&uid.as_str()))?;
    fields.get(5).map(|home| (*home).to_owned())
}

/// Root is under a ceiling only by name.
const CONFIG: &str =
    "[[ceiling]]\npolicy = \"review\"\n[[ceiling]]\nusers = [0]\npolicy = \"review\"\n";

#[test]
fn a_launch_beyond_the_operators_ceiling_is_denied_by_name_text_and_setting() {
    for mode in modes() {
        let daemon = Daemon::with_config(mode, CONFIG);
        let work = daemon.workspace();
        let policy = work.path().join("mine.toml");
        let text_of = "extends = \"review\"\n\n[limits]\nmemory = \"none\"\n";
        std::fs::write(&policy, text_of).expect("write");
        let policy = policy.to_str().expect("utf-8");
        let home = home_of(daemon.owner());
        let run = |options: &[&str]| {
            let place = work.path().to_str().expect("utf-8");
            let mut args = vec!["run", "--workspace", place];
            args.extend(options);
            args.extend(["--", "true"]);
            let mut command = daemon.agentctl(args);
            if let Some(home) = &home {
                command.env("HOME", home);
            }
            text(&output(&mut command))
        };
        let within = run(&["--policy", "review", "--set", "limits.memory=1GiB"]);
        assert_eq!(within.0, 0, "{mode:?}: {within:?}");
        for (options, needles) in [
            (
                &["--policy", "coding"][..],
                &[
                    "coding goes beyond it",
                    "net.mode = proxy",
                    "fs.write = ${workspace}",
                ][..],
            ),
            (
                &["--policy", "review", "--set", "net.mode=proxy"],
                &["--set net.mode: net.mode = proxy", "allows none"],
            ),
            (
                &["--policy", policy],
                &["mine.toml:4: limits.memory = none", "at most 4GiB"],
            ),
        ] {
            let (code, _, err) = run(options);
            assert_eq!(code, 125, "{mode:?} {options:?}: {err}");
            for needle in needles.iter().chain(&["at most policy review"]) {
                assert!(
                    err.contains(needle),
                    "{mode:?} {options:?} lacks {needle}: {err}"
                );
            }
        }
    }
}

#[test]
fn an_agent_does_not_write_the_policy_that_it_runs_under() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let folder = work.path().join("rules");
        std::fs::create_dir(&folder).expect("mkdir");
        let policy = folder.join("mine.toml");
        let written = "extends = \"coding\"\n";
        std::fs::write(&policy, written).expect("write");
        std::os::unix::fs::chown(&folder, Some(daemon.owner()), None).expect("chown");
        std::os::unix::fs::chown(&policy, Some(daemon.owner()), None).expect("chown");
        let script = "echo more > here && echo '[net]' >> rules/mine.toml; rm rules/mine.toml; mv rules other; cat rules/mine.toml";
        let options = ["--policy", policy.to_str().expect("utf-8")];
        let (code, out, err) = text(&daemon.run_with(work.path(), &options, &["sh", "-c", script]));
        assert_eq!((code, out.trim()), (0, written.trim()), "{mode:?}: {err}");
        assert!(err.contains("Read-only file system"), "{mode:?}: {err}");
        assert!(work.path().join("here").exists() && !work.path().join("other").exists());
        assert_eq!(
            std::fs::read_to_string(&policy).expect("still there"),
            written
        );
    }
}

#[test]
fn what_a_tool_may_not_read_no_program_can() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        for name in [".env", "deep/.env.local", "deep/plain"] {
            let path = work.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("mkdir");
            std::fs::write(&path, "secret").expect("write");
        }
        let options = ["--policy", "coding", "--set", "tools.deny=Read(.env*)"];
        let script = "cat .env deep/.env.local; cat deep/plain";
        let (_, out, err) = text(&daemon.run_with(work.path(), &options, &["sh", "-c", script]));
        assert_eq!(out.trim(), "secret", "{mode:?}: {err}");
        assert_eq!(
            err.matches("ermission denied").count(),
            2,
            "{mode:?}: {err}"
        );
    }
}
