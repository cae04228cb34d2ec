//! How a sandbox lives and ends: exit codes, signals, terminals, and the death of everything in it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;

use agentd_launch::plan::{Mode, MountFlags, PlanBuilder, Stdio};
use agentd_launch::status::{Control, Lifeline, Status, Step, Target};

use crate::harness::*;

/// The sandbox, its output, and the other ends of its streams, which must stay open.
fn start(mode: Mode, script: &str) -> (Sandbox, BufReader<File>, Vec<OwnedFd>) {
    let mut plan = plan(mode, &["/bin/sh", "-c", script]);
    plan.lifeline_grace(0);
    start_plan(mode, &plan)
}

fn start_plan(mode: Mode, plan: &PlanBuilder) -> (Sandbox, BufReader<File>, Vec<OwnedFd>) {
    let bytes = plan.finish().unwrap();
    let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
    let (mut fds, _) = sandbox.ready();
    let out = BufReader::new(File::from(fds.remove(1)));
    (sandbox, out, fds)
}

fn line(reader: &mut BufReader<File>) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

#[test]
fn exit_codes_and_signals_are_reported() {
    for mode in modes() {
        for code in [0, 1, 77, 255] {
            let ended = shell(mode, &format!("exit {code}"));
            assert_eq!((ended.code(), ended.init_code), (Some(code), Some(code)));
        }
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV] {
            let ended = shell(mode, &format!("kill -{signal} $$"));
            assert_eq!(
                (ended.signal(), ended.init_code),
                (Some(signal), Some(128 + signal))
            );
        }
    }
}

#[test]
fn a_program_that_is_not_there_or_not_executable_is_told_apart() {
    for mode in modes() {
        let fail = |argv: &str, content: Option<(&str, u32)>| {
            let mut plan = plan(mode, &[argv]);
            if let Some((content, mode)) = content {
                plan.tmpfs("/opt", 1 << 20, 16, 0o755, MountFlags::NONE)
                    .file("/opt/bin/program", mode, content);
                plan.env("PATH=/opt/bin");
            }
            let bytes = plan.finish().unwrap();
            let sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
            match sandbox.receive() {
                Some((Status::Failed(failure), _)) => {
                    assert_eq!(failure.step, Step::Exec);
                    (failure.shell_code(), failure.errno)
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(fail("no-such-program", None), (127, libc::ENOENT));
        assert_eq!(fail("/no/such/program", None), (127, libc::ENOENT));
        assert_eq!(fail("/tmp", None), (126, libc::EACCES));
        assert_eq!(
            fail("/opt/bin/program", Some(("#!/bin/sh\n", 0o644))),
            (126, libc::EACCES)
        );
        assert_eq!(
            fail("/opt/bin/program", Some(("not a program", 0o755))),
            (126, libc::ENOEXEC)
        );
    }
}

#[test]
fn a_name_without_a_slash_is_looked_up_in_the_plans_path() {
    for mode in modes() {
        let mut plan = plan(mode, &["env", "-i", "echo", "found"]);
        plan.file("/opt/a/env", 0o644, "not executable");
        assert_eq!(run_with(mode, &plan, &[]).stdout, "found\n");
    }
}

#[test]
fn the_program_is_stopped_continued_and_signalled() {
    for mode in modes() {
        let (mut sandbox, mut out, _streams) = start(
            mode,
            "trap 'echo term; exit 9' TERM; echo up; while :; do sleep 0.05; done",
        );
        assert_eq!(line(&mut out), "up");
        let send = |signal: i32, target| {
            sandbox.send(Control::Signal {
                signal: signal.cast_unsigned(),
                target,
            })
        };
        send(libc::SIGSTOP, Target::Main);
        let stopped = Status::Stopped {
            signal: libc::SIGSTOP.cast_unsigned(),
        };
        assert_eq!(sandbox.receive().unwrap().0, stopped);
        send(libc::SIGCONT, Target::Main);
        assert_eq!(sandbox.receive().unwrap().0, Status::Continued);
        send(libc::SIGTERM, Target::Foreground);
        assert_eq!(line(&mut out), "term");
        assert!(matches!(
            sandbox.receive().unwrap().0,
            Status::Exited {
                wait_status: 0x900,
                ..
            }
        ));
        assert_eq!(sandbox.wait(), Some(9));
    }
}

#[test]
fn a_terminal_has_a_size_job_control_and_delivers_ctrl_c_and_ctrl_z() {
    for mode in modes() {
        let script = "tty; stty size; [ -t 0 ] && [ -t 2 ] && echo terminal; read x; echo got $x; read y; sleep 60";
        let plan = plan_with(
            mode,
            &["/bin/sh", "-c", script],
            Stdio::Pty {
                rows: 33,
                cols: 101,
            },
        );
        let bytes = plan.finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, _) = sandbox.ready();
        let master = fds.pop().unwrap();
        rustix::io::ioctl_fionbio(&master, false).unwrap();
        let mut keys = File::from(master.try_clone().unwrap());
        let mut screen = BufReader::new(File::from(master));
        assert_eq!(line(&mut screen), "/dev/pts/0");
        assert_eq!(line(&mut screen), "33 101");
        assert_eq!(line(&mut screen), "terminal");
        keys.write_all(b"word\n").unwrap();
        assert_eq!(
            (line(&mut screen), line(&mut screen)),
            ("word".into(), "got word".into())
        );
        keys.write_all(b"\x1a").unwrap();
        let stopped = Status::Stopped {
            signal: libc::SIGTSTP.cast_unsigned(),
        };
        assert_eq!(sandbox.receive().unwrap().0, stopped);
        sandbox.send(Control::Signal {
            signal: libc::SIGCONT.cast_unsigned(),
            target: Target::Foreground,
        });
        assert_eq!(sandbox.receive().unwrap().0, Status::Continued);
        keys.write_all(b"\x03").unwrap();
        let Some((Status::Exited { wait_status, .. }, _)) = sandbox.receive() else {
            panic!("expected the end")
        };
        assert_eq!(wait_status, libc::SIGINT);
        assert_eq!(sandbox.wait(), Some(128 + libc::SIGINT));
    }
}

#[test]
fn without_streams_the_program_has_dev_null() {
    for mode in modes() {
        let script = "[ -c /dev/stdin ] && [ -z \"$(cat)\" ] && echo lost && exit 4";
        let bytes = plan_with(mode, &["/bin/sh", "-c", script], Stdio::Null)
            .finish()
            .unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        assert_eq!(sandbox.ready().0.len(), 0);
        assert_eq!(sandbox.wait(), Some(4));
    }
}

/// Daemons that have left their session, their parent and their process group.
const DAEMONS: &str =
    "sleep 1000 & (setsid sh -c '(sleep 1000 & sleep 1000 & echo up; wait) & wait' &); wait";

fn pids_of(init: i32) -> Vec<i32> {
    let mut found = vec![init];
    let mut at = 0;
    while at < found.len() {
        let tasks = format!("/proc/{0}/task/{0}/children", found[at]);
        found.extend(
            std::fs::read_to_string(tasks)
                .unwrap_or_default()
                .split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
        at += 1;
    }
    found
}

fn all_dead(pidfds: &[OwnedFd]) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    pidfds.iter().all(|pidfd| {
        let mut polls = [PollFd::new(pidfd, PollFlags::IN)];
        poll(
            &mut polls,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )
        .unwrap()
            == 1
    })
}

#[test]
fn everything_dies_with_both_lifelines() {
    for mode in modes() {
        let mut plan = plan(mode, &["/bin/sh", "-c", DAEMONS]);
        plan.lifeline_grace(600_000);
        let (mut sandbox, mut out, _streams) = start_plan(mode, &plan);
        assert_eq!(line(&mut out), "up");
        let pidfds: Vec<OwnedFd> = pids_of(sandbox.pid)
            .into_iter()
            .filter_map(pidfd_of)
            .collect();
        assert!(pidfds.len() >= 6, "only {} processes", pidfds.len());
        sandbox.agentd_lifeline = None;
        assert!(!all_dead(&pidfds[..1]));
        sandbox.broker_lifeline = None;
        assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LIFELINES_LOST));
        assert!(all_dead(&pidfds));
    }
}

#[test]
fn one_lifeline_is_enough_for_the_grace_and_no_longer() {
    for mode in modes() {
        let mut plan = plan(
            mode,
            &["/bin/sh", "-c", "echo up; read x; echo still; sleep 1000"],
        );
        plan.lifeline_grace(300);
        let bytes = plan.finish().unwrap();
        for broker_dies in [true, false] {
            let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
            let (mut fds, _) = sandbox.ready();
            let mut out = BufReader::new(File::from(fds.remove(1)));
            assert_eq!(line(&mut out), "up");
            let began = std::time::Instant::now();
            let lifeline = if broker_dies {
                &mut sandbox.broker_lifeline
            } else {
                &mut sandbox.agentd_lifeline
            };
            *lifeline = None;
            File::from(fds.remove(0)).write_all(b"x\n").unwrap();
            assert_eq!(line(&mut out), "still");
            assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LIFELINES_LOST));
            assert!(
                began.elapsed().as_millis() >= 300,
                "died before the grace was over"
            );
        }
    }
}

#[test]
fn a_renewed_lifeline_takes_the_place_of_the_old_one() {
    for mode in modes() {
        // Without grace the end of any lifeline that counts is the end of all.
        let (mut sandbox, mut out, streams) =
            start(mode, "echo up; while read x; do echo $x; done; sleep 1000");
        assert_eq!(line(&mut out), "up");
        let mut input = File::from(streams.into_iter().next().unwrap());
        let agentd = sandbox.renew(Lifeline::Agentd);
        let broker = sandbox.renew(Lifeline::Broker);
        // Answered: the init has read what was sent before.
        sandbox.send(Control::Signal {
            signal: libc::SIGSTOP.cast_unsigned(),
            target: Target::Main,
        });
        assert!(matches!(
            sandbox.receive(),
            Some((Status::Stopped { .. }, _))
        ));
        sandbox.send(Control::Signal {
            signal: libc::SIGCONT.cast_unsigned(),
            target: Target::Main,
        });
        assert!(matches!(sandbox.receive(), Some((Status::Continued, _))));
        sandbox.agentd_lifeline = None;
        sandbox.broker_lifeline = None;
        input.write_all(b"alive\n").unwrap();
        assert_eq!(line(&mut out), "alive");
        drop(broker);
        assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LIFELINES_LOST));
        drop(agentd);
    }
}

#[test]
fn with_both_lifelines_alive_again_the_grace_no_longer_runs() {
    for mode in modes() {
        let script = "echo up; read x; sleep 2.5; echo still; sleep 1000";
        let mut plan = plan(mode, &["/bin/sh", "-c", script]);
        plan.lifeline_grace(2000);
        let (mut sandbox, mut out, streams) = start_plan(mode, &plan);
        assert_eq!(line(&mut out), "up");
        sandbox.agentd_lifeline = None;
        let agentd = sandbox.renew(Lifeline::Agentd);
        let mut input = File::from(streams.into_iter().next().unwrap());
        input.write_all(b"x\n").unwrap();
        assert_eq!(line(&mut out), "still");
        drop((agentd, sandbox.broker_lifeline.take()));
        assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LIFELINES_LOST));
    }
}

#[test]
fn the_last_report_is_on_file_whether_or_not_anybody_listens() {
    for mode in modes() {
        let (mut sandbox, mut out, streams) = start(mode, "echo up; read x; exit 7");
        assert_eq!(line(&mut out), "up");
        assert!(sandbox.on_file().is_empty());
        let (nobody, _) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        sandbox.status = nobody;
        drop(streams);
        assert_eq!(sandbox.wait(), Some(7));
        assert!(matches!(
            Status::decode(&sandbox.on_file()),
            Some(Status::Exited {
                wait_status: 0x700,
                ..
            })
        ));
        let bytes = plan(mode, &["/no/such/program"]).finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let Some((failed @ Status::Failed(_), _)) = sandbox.receive() else {
            panic!("executed nothing")
        };
        assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LAUNCH_FAILED));
        assert_eq!(Status::decode(&sandbox.on_file()), Some(failed));
    }
}

#[test]
fn a_grace_of_zero_ends_with_the_first_lifeline() {
    for mode in modes() {
        let (mut sandbox, mut out, _streams) = start(mode, "echo up; sleep 1000");
        assert_eq!(line(&mut out), "up");
        sandbox.agentd_lifeline = None;
        assert_eq!(sandbox.wait(), Some(agentd_launch::parent::LIFELINES_LOST));
    }
}

#[test]
fn everything_dies_with_the_program_and_with_the_init() {
    for mode in modes() {
        for kill_init in [true, false] {
            let (mut sandbox, mut out, _streams) = start(mode, DAEMONS);
            assert_eq!(line(&mut out), "up");
            let pids = pids_of(sandbox.pid);
            let pidfds: Vec<OwnedFd> = pids.iter().copied().filter_map(pidfd_of).collect();
            if kill_init {
                rustix::process::pidfd_send_signal(&sandbox.pidfd, rustix::process::Signal::KILL)
                    .unwrap();
                assert_eq!(sandbox.wait(), None);
            } else {
                sandbox.send(Control::Signal {
                    signal: 9,
                    target: Target::Main,
                });
                assert_eq!(sandbox.wait(), Some(137));
            }
            assert!(all_dead(&pidfds));
        }
    }
}

#[test]
fn orphans_are_reaped() {
    for mode in modes() {
        let script = "i=0; while [ $i -lt 50 ]; do (true & true &); i=$((i+1)); done
i=0; while grep -qs '^State:.Z' /proc/[0-9]*/status; do i=$((i+1)); [ $i = 1000 ] && echo zombies && break; done; echo done";
        assert_eq!(shell(mode, script).stdout, "done\n");
    }
}

#[test]
fn the_end_is_reported_with_what_was_used() {
    for mode in modes() {
        let ended = shell(mode, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done");
        let Status::Exited {
            utime_us,
            maxrss_kb,
            ..
        } = ended.status
        else {
            panic!("{ended:?}")
        };
        assert!(utime_us > 1000 && maxrss_kb > 100, "{ended:?}");
    }
}

#[test]
fn output_is_not_lost_when_the_program_ends_at_once() {
    for mode in modes() {
        let bytes = plan(mode, &["/bin/echo", "quick"]).finish().unwrap();
        let mut sandbox = as_broker(mode, || spawn(mode, &bytes, &[]));
        let (mut fds, _) = sandbox.ready();
        assert_eq!(sandbox.wait(), Some(0));
        let mut text = String::new();
        File::from(fds.remove(1)).read_to_string(&mut text).unwrap();
        assert_eq!(text, "quick\n");
    }
}
