//! The same promises under gVisor, where the host has its `runsc`: the program runs on gVisor's kernel, the view is the
//! view, and the launch tells what really holds.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;

use agentd_launch::layers::*;
use agentd_launch::plan::{BUS, GvisorFlags, MCP, Mode, MountFlags, PlanBuilder, Stdio};
use agentd_launch::status::{Control, Status, Step, Target};

use crate::harness::*;

/// What this host's runsc needs to be told; `None`, and a named skip, where there is none.
fn gvisor() -> Option<GvisorFlags> {
    let found = agentd_launch::apply::RUNSC
        .iter()
        .filter_map(|path| path.to_str().ok())
        .find(|path| std::path::Path::new(path).is_file());
    let Some(path) = found else {
        skip("gvisor", "there is no runsc in /usr/local/bin or /usr/bin");
        return None;
    };
    let version = std::process::Command::new(path)
        .arg("--version")
        .output()
        .unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let year = version
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| digits.len() == 8)
        .unwrap_or_else(|| panic!("a release has its date: {version}"));
    Some(match year < "20230601" {
        true => GvisorFlags::NONE,
        false => GvisorFlags::NO_DIRECTFS,
    })
}

fn script(mode: Mode, flags: GvisorFlags, text: &str) -> PlanBuilder {
    let mut plan = plan(mode, &["/bin/sh", "-c", text]);
    plan.gvisor(flags).require(LAYER_GVISOR);
    plan
}

#[test]
fn the_program_runs_on_another_kernel_in_the_same_view() {
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        let mut plan = script(
            mode,
            flags,
            "cat /proc/version; cat /etc/hello; echo no > /usr/made || echo read-only; \
             echo kept > /tmp/made; cat /tmp/made; echo /tmp/*; id -u; exit 7",
        );
        plan.file("/etc/hello", 0o644, "hello\n");
        let ended = run_with(mode, &plan, &[]);
        assert_eq!(ended.code(), Some(7), "{}{}", ended.stdout, ended.stderr);
        let lines: Vec<_> = ended.stdout.lines().collect();
        assert!(
            lines[0].starts_with("Linux version 4.4"),
            "{}{}",
            ended.stdout,
            ended.stderr
        );
        assert_eq!(
            lines[1..],
            ["hello", "read-only", "kept", "/tmp/made", "0"],
            "{}{}",
            ended.stdout,
            ended.stderr
        );
    }
}

#[test]
fn the_services_of_agentd_are_reached_and_the_streams_are_the_programs() {
    let Some(flags) = gvisor() else { return };
    if python(Mode::User, "pass").is_none() {
        return;
    }
    for mode in modes() {
        let talk = "import socket, sys\n\
            tcp = socket.create_connection(('127.0.0.1', 8765)); tcp.sendall(b'over tcp')\n\
            unix = socket.socket(socket.AF_UNIX); unix.connect('/run/agentd/bus.sock'); unix.sendall(b'over unix')\n\
            print(sys.stdin.readline().strip(), 'was read', flush=True)\n";
        let mut plan = plan(mode, &["/usr/bin/python3", "-c", talk]);
        plan.gvisor(flags)
            .require(LAYER_GVISOR)
            .tcp_listener(8765, MCP)
            .unix_listener("/run/agentd/bus.sock", BUS, 0o600);
        let bytes = plan.finish().unwrap();
        let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, layers) = sandbox.ready();
        assert_ne!(layers & LAYER_GVISOR, 0, "{layers:#x}");
        let unix = accepted(&fds.pop().unwrap());
        let tcp = accepted(&fds.pop().unwrap());
        std::fs::File::from(fds.remove(0))
            .write_all(b"a line\n")
            .unwrap();
        assert_eq!(read_all(fds.remove(0)), "a line was read\n");
        assert_eq!(
            (read_all(tcp), read_all(unix)),
            ("over tcp".into(), "over unix".into())
        );
    }
}

/// The one connection that comes, over a listener that does not block.
fn accepted(listener: &OwnedFd) -> OwnedFd {
    let mut wait = [rustix::event::PollFd::new(
        listener,
        rustix::event::PollFlags::IN,
    )];
    rustix::event::poll(&mut wait, None).unwrap();
    rustix::net::accept(listener).unwrap()
}

#[test]
fn a_terminal_is_one() {
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        let mut plan = plan_with(
            mode,
            &[
                "/bin/sh",
                "-c",
                "trap 'exit 9' TERM; test -t 0 && echo terminal; stty size; echo up; while :; do sleep 0.01; done",
            ],
            Stdio::Pty { rows: 24, cols: 80 },
        );
        plan.gvisor(flags);
        let bytes = plan.finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, _) = sandbox.ready();
        let master = fds.remove(0);
        rustix::io::ioctl_fionbio(&master, false).unwrap();
        let mut terminal = BufReader::new(std::fs::File::from(master));
        let mut said = Vec::new();
        while said.last().is_none_or(|last| last != "up") {
            let mut line = String::new();
            terminal.read_line(&mut line).unwrap();
            said.push(line.trim_end().to_owned());
        }
        assert_eq!(said[0], "terminal");
        assert_eq!(said[1], "24 80");
        sandbox.send(Control::Signal {
            signal: libc::SIGTERM as u32,
            target: Target::Foreground,
        });
        let exit =
            |status| matches!(status, Status::Exited { wait_status, .. } if wait_status == 9 << 8);
        assert!(exit(sandbox.receive().unwrap().0));
        assert_eq!(sandbox.wait(), Some(9));
    }
}

/// A shell that has just begun to make a child waits for it before it obeys: the child must get the key, too.
#[test]
fn control_c_ends_whatever_a_shell_has_just_started() {
    const ROUNDS: usize = 24;
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        // Whoever misses the key says so once its own minute is over, instead of hanging the test.
        let script = format!(
            "trap : INT; i=0; while [ $i -lt {ROUNDS} ]; do i=$((i+1)); \
             sh -c 'echo up; sleep 60; echo missed'; done; echo through"
        );
        let mut plan = plan_with(
            mode,
            &["/bin/sh", "-c", &script],
            Stdio::Pty { rows: 24, cols: 80 },
        );
        plan.gvisor(flags);
        let bytes = plan.finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, _) = sandbox.ready();
        let master = fds.remove(0);
        rustix::io::ioctl_fionbio(&master, false).unwrap();
        let mut keys = std::fs::File::from(master.try_clone().unwrap());
        let mut terminal = BufReader::new(std::fs::File::from(master));
        let mut rounds = 0;
        loop {
            let mut line = String::new();
            terminal.read_line(&mut line).unwrap();
            // The key's echo stands before whatever comes next.
            match line.trim_end().trim_start_matches("^C") {
                "up" => {
                    rounds += 1;
                    keys.write_all(b"\x03").unwrap();
                }
                "" => {}
                last => {
                    assert_eq!((last, rounds), ("through", ROUNDS), "{mode:?}");
                    break;
                }
            }
        }
        assert_eq!(sandbox.wait(), Some(0));
    }
}

#[test]
fn a_program_that_is_not_there_is_told_as_without_gvisor() {
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        for (program, errno) in [("nowhere", libc::ENOENT), ("/etc", libc::EACCES)] {
            let mut plan = plan(mode, &[program]);
            plan.gvisor(flags);
            let bytes = plan.finish().unwrap();
            let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
            match sandbox.receive() {
                Some((Status::Failed(failure), _)) => {
                    assert_eq!(
                        (failure.step, failure.errno),
                        (Step::Exec, errno),
                        "{program}"
                    );
                }
                other => panic!("{program}: {other:?}"),
            }
        }
    }
}

#[test]
fn the_views_flags_covers_and_the_filters_hold() {
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        let folder = tempfile::tempdir().unwrap();
        let owner = if is_root() { USER } else { inside_id() };
        for (name, content) in [
            ("program", "#!/bin/sh\necho ran\n"),
            ("secret", "key"),
            ("kept", "as it was"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
            if is_root() {
                std::os::unix::fs::chown(&path, Some(owner), Some(owner)).unwrap();
            }
        }
        if is_root() {
            std::os::unix::fs::chown(folder.path(), Some(owner), Some(owner)).unwrap();
        }
        let mut plan = script(
            mode,
            flags,
            "cd /work; ./program && echo executed; cat secret && echo seen; echo changed > kept; \
             chmod 4755 program && echo set-id; cat kept; echo; echo new > made; cat made; \
             unshare -U true && echo namespace; ulimit -n",
        );
        plan.grant_mount(0, "/work", MountFlags::NOEXEC)
            .mask("/work/secret", MountFlags::NONE)
            .protect("/work/kept", MountFlags::NONE)
            .rlimit(7, 77, 77);
        let ended = run_with(mode, &plan, &[grant(mode, folder.path(), owner)]);
        assert_eq!(ended.stdout, "as it was\nnew\n77\n", "{}", ended.stderr);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("made")).unwrap(),
            "new\n"
        );
        let made = std::fs::metadata(folder.path().join("made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), owner);
    }
}

#[test]
fn signals_reach_the_program_and_its_death_is_told() {
    let Some(flags) = gvisor() else { return };
    for mode in modes() {
        for (signal, code) in [(libc::SIGTERM, 9), (libc::SIGKILL, 128 + libc::SIGKILL)] {
            let plan = script(
                mode,
                flags,
                "trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done",
            );
            let bytes = plan.finish().unwrap();
            let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
            let (fds, _) = sandbox.ready();
            let mut out = BufReader::new(std::fs::File::from(fds.into_iter().nth(1).unwrap()));
            let mut line = String::new();
            out.read_line(&mut line).unwrap();
            sandbox.send(Control::Signal {
                signal: signal as u32,
                target: Target::Main,
            });
            assert!(matches!(
                sandbox.receive(),
                Some((Status::Exited { .. }, _))
            ));
            assert_eq!(sandbox.wait(), Some(code), "signal {signal}");
        }
    }
}
