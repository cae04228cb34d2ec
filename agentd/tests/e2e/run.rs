//! `agentctl run` behaves like a good `docker run`.

use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Stdio;

use crate::harness::{Daemon, Mode, modes, output, put_program, text, wait_until};

#[test]
fn exit_codes_are_the_programs_own_or_dockers() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        for (argv, code) in [
            (&["true"][..], 0),
            (&["sh", "-c", "exit 7"][..], 7),
            (&["sh", "-c", "kill -TERM $$"][..], 128 + 15),
            (&["no-such-program"][..], 127),
            (&["/etc/passwd"][..], 126),
        ] {
            let result = text(&daemon.run(work.path(), argv));
            assert_eq!(result.0, code, "{mode:?} {argv:?}: {result:?}");
        }
        let result = text(&daemon.run_with(work.path(), &["--timeout", "1"], &["sleep", "60"]));
        assert_eq!(result.0, 124, "{mode:?}: {result:?}");
        let result =
            text(&daemon.run_with(work.path(), &["--policy", "no-such-policy"], &["true"]));
        assert_eq!(result.0, 125, "{mode:?}: {result:?}");
        assert!(
            result.2.contains("no-such-policy") && result.2.contains("coding"),
            "{result:?}"
        );
    }
}

#[test]
fn streams_are_separate_and_whole() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let (code, out, err) =
            text(&daemon.run(work.path(), &["sh", "-c", "echo out; echo err >&2"]));
        assert_eq!((code, out.as_str()), (0, "out\n"), "{err}");
        assert!(err.contains("err\n"), "{err}");

        let size = 3_000_000;
        let (code, out, err) = text(&daemon.run(
            work.path(),
            &[
                "sh",
                "-c",
                &format!("head -c {size} /dev/zero | tr '\\0' x"),
            ],
        ));
        assert_eq!((code, out.len()), (0, size), "{err}");

        let mut child = daemon
            .agentctl([
                "run",
                "--no-tty",
                "--workspace",
                work.path().to_str().expect("utf-8"),
                "--",
                "wc",
                "-c",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start agentctl");
        let mut stdin = child.stdin.take().expect("piped");
        stdin.write_all(&vec![b'x'; 1_000_000]).expect("write");
        drop(stdin);
        let result = child.wait_with_output().expect("wait");
        assert_eq!(text(&result).1.trim(), "1000000");
    }
}

#[test]
fn the_workspace_is_writable_and_its_files_belong_to_the_caller() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script = "umask 022; echo text > new && mkdir dir && touch dir/file && id -u && pwd";
        let (code, out, err) = text(&daemon.run(work.path(), &["sh", "-c", script]));
        assert_eq!(code, 0, "{err}");
        let inside = if daemon.owner() == 0 {
            1000
        } else {
            daemon.owner()
        };
        assert_eq!(out, format!("{inside}\n{}\n", work.path().display()));
        for name in ["new", "dir", "dir/file"] {
            let meta = std::fs::metadata(work.path().join(name)).expect("it was made");
            assert_eq!(
                (meta.uid(), meta.gid()),
                (daemon.owner(), daemon.owner()),
                "{mode:?} {name}"
            );
        }
    }
}

#[test]
fn everything_is_on_record() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let result = text(&daemon.run_with(
            work.path(),
            &["--name", "scribe"],
            &["sh", "-c", "echo said; exit 3"],
        ));
        assert_eq!(result.0, 3, "{result:?}");
        let (code, out, err) = text(&output(
            &mut daemon.agentctl(["--json", "inspect", "scribe"]),
        ));
        assert_eq!(code, 0, "{err}");
        let record: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
        assert_eq!(record["exit"]["code"], 3);
        assert_eq!(record["policy"], "coding");
        assert_eq!(
            record["argv"],
            serde_json::json!(["sh", "-c", "echo said; exit 3"])
        );
        let layers: Vec<&str> = record["layers"]
            .as_array()
            .expect("layers")
            .iter()
            .filter_map(|l| l.as_str())
            .collect();
        for layer in [
            "user-ns",
            "mount-ns",
            "pid-ns",
            "net-ns",
            "mount-view",
            "landlock",
            "seccomp",
            "no-new-privs",
            "caps-dropped",
        ] {
            assert!(
                layers.contains(&layer),
                "{mode:?}: {layer} is missing in {layers:?}"
            );
        }
        let (code, out, err) = text(&output(&mut daemon.agentctl(["logs", "scribe"])));
        assert_eq!((code, out.as_str()), (0, "said\n"), "{err}");
    }
}

#[test]
fn a_detached_agent_is_listed_stopped_and_waited_for() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let (code, _, err) = text(&daemon.run_with(
            work.path(),
            &["--detach", "--name", "bg"],
            &["sh", "-c", "echo up; exec sleep 1000"],
        ));
        assert_eq!(code, 0, "{err}");
        let (_, out, _) = text(&output(&mut daemon.agentctl(["--json", "ps"])));
        assert!(out.contains("\"bg\""), "{out}");
        // Launched is not yet run: what is stopped before its first line has none.
        wait_until("it has said something", || {
            text(&output(&mut daemon.agentctl(["logs", "bg"]))).1 == "up\n"
        });
        let mut follow = daemon
            .agentctl(["logs", "--follow", "bg"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("logs");
        let (code, _, err) = text(&output(&mut daemon.agentctl(["stop", "bg"])));
        assert_eq!(code, 0, "{err}");
        wait_until("the follower ends with the agent", || {
            matches!(follow.try_wait(), Ok(Some(_)))
        });
        assert_eq!(text(&follow.wait_with_output().expect("logs")).1, "up\n");
        let (_, out, _) = text(&output(&mut daemon.agentctl(["ps"])));
        assert!(!out.contains("bg"), "{out}");
        let (_, out, _) = text(&output(&mut daemon.agentctl(["--json", "inspect", "bg"])));
        assert!(out.contains("stopped"), "{out}");
    }
}

#[test]
fn names_that_were_kept_are_gone_when_the_program_has_ended() {
    const POLICY: [&str; 6] = [
        "--set",
        "fs.protect=${workspace}/.envrc",
        "--set",
        "fs.protect=${workspace}/.editor/",
        "--set",
        "fs.deny=${workspace}/.secret",
    ];
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let script =
            "for f in .envrc .editor/x .secret; do echo x > $f && echo $f; done; ls -d .editor";
        let (code, out, err) = text(&daemon.run_with(work.path(), &POLICY, &["sh", "-c", script]));
        assert_eq!((code, out.as_str()), (0, ".editor\n"), "{mode:?}: {err}");
        let left = std::fs::read_dir(work.path()).expect("list").count();
        assert_eq!(left, 0, "{mode:?}");
    }
}

#[test]
fn a_scratch_workspace_is_changed_for_the_program_alone() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        let file = work.path().join("file");
        std::fs::write(&file, "as it was").expect("write");
        let owner = Some(daemon.owner());
        std::os::unix::fs::chown(&file, owner, owner).expect("chown");
        let before = std::fs::metadata(&file).expect("metadata");
        let script = "echo changed > file; mkdir new; cat file; ls";
        // strict goes without nothing, so it needs what an ordinary user hasn't got: cgroups.
        let options = match mode {
            Mode::Root => ["--policy", "strict"],
            Mode::User => ["--set", "fs.scratch=${workspace}"],
        };
        let (code, out, err) = text(&daemon.run_with(work.path(), &options, &["sh", "-c", script]));
        assert_eq!(
            (code, out.as_str()),
            (0, "changed\nfile\nnew\n"),
            "{mode:?}: {err}"
        );
        let after = std::fs::metadata(&file).expect("metadata");
        assert_eq!(
            (before.ino(), before.ctime_nsec()),
            (after.ino(), after.ctime_nsec())
        );
        assert_eq!(std::fs::read_dir(work.path()).expect("list").count(), 1);
    }
}

#[test]
fn the_program_asked_for_runs_from_a_workspace_where_nothing_else_does() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let work = daemon.workspace();
        for name in ["program", "other"] {
            put_program("/bin/sh".as_ref(), &work.path().join(name));
        }
        // Read-only; writable; writable in memory: in none of them is anything else executed.
        for options in [
            ["--policy", "review"].as_slice(),
            &[
                "--policy",
                "python-task",
                "--set",
                "degrade.allow=cgroup-limits",
            ],
            &[
                "--policy",
                "base",
                "--set",
                "fs.scratch=${workspace}",
                "--set",
                "degrade.allow=cgroup-limits",
            ],
        ] {
            let script =
                "echo ran; ./other -c true; echo $?; echo x >> program && echo changed; true";
            let program = work.path().join("program");
            let program = program.to_str().expect("UTF-8");
            let ended = daemon.run_with(work.path(), options, &[program, "-c", script]);
            let (code, out, err) = text(&ended);
            assert_eq!(
                (code, out.as_str()),
                (0, "ran\n126\n"),
                "{mode:?} {options:?}: {err}"
            );
        }
    }
}
