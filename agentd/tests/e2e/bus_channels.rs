//! Agents that stream to each other over shared memory, while one of them, or agentd, is killed.

use std::path::Path;

use rustix::process::Signal;

use crate::harness::{Daemon, descendants_of, modes, output, program, signal, text, wait_until};

/// The reading agent and what it sees.
pub const READER: &str = "reader";
const WRITER: &str = "writer";

/// Starts the streaming program as agent `name`, in a workspace that has it.
pub fn start(daemon: &Daemon, work: &Path, name: &str, options: &[&str], args: &[&str]) {
    put_program(work);
    let options = [&["--detach", "--name", name], options].concat();
    let argv = [&["./channel-agent"], args].concat();
    let (code, _, err) = text(&daemon.run_with(work, &options, &argv));
    assert_eq!(code, 0, "{err}");
}

pub fn put_program(work: &Path) {
    crate::harness::put_program(&program("channel-agent"), &work.join("channel-agent"));
}

fn lines(work: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(work.join(file)).unwrap_or_default();
    // The last line may be half-written.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let lines: Vec<String> = whole.lines().map(str::to_owned).collect();
    assert!(
        !lines.iter().any(|line| line.starts_with("error")),
        "{lines:#?}"
    );
    lines
}

/// Waits for a line that begins so, after the first `skip` of that kind; gives it.
pub fn wait_for_line(work: &Path, file: &str, begin: &str, skip: usize) -> String {
    let mut found = None;
    wait_until(&format!("{file} says {begin:?}"), || {
        found = lines(work, file)
            .into_iter()
            .filter(|line| line.starts_with(begin))
            .nth(skip);
        found.is_some()
    });
    found.expect("just seen")
}

/// How many the writer knows it has sent.
fn sent(work: &Path) -> u64 {
    let noted = lines(work, "sent");
    noted
        .last()
        .map_or(0, |line| line.parse().expect("a number"))
}

/// `N` of "… end after N: …".
fn ended_after(line: &str) -> u64 {
    let number = line.split(" end after ").nth(1).expect("an end");
    number
        .split(':')
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

/// The pid of the streaming program that was started with these arguments.
fn pid_of(daemon: &Daemon, args: &[&str]) -> i32 {
    let wanted: Vec<u8> = [&["./channel-agent"], args]
        .concat()
        .iter()
        .flat_map(|arg| [arg.as_bytes(), b"\0"].concat())
        .collect();
    let mut found = None;
    wait_until("the program runs", || {
        found = descendants_of(daemon.broker)
            .into_iter()
            .find(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == wanted));
        found.is_some()
    });
    found.expect("just found")
}

/// Descriptors and mappings of shared memory that agentd holds.
fn held(daemon: &Daemon) -> (usize, usize) {
    let is_shared =
        |text: &str| text.contains("/memfd:agentd-lane") || text.contains("/memfd:agentd-log");
    let fds =
        std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("agentd's descriptors");
    let fds = fds
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok())
        .filter(|link| is_shared(&link.to_string_lossy()))
        .count();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", daemon.pid())).expect("maps");
    (fds, maps.lines().filter(|line| is_shared(line)).count())
}

pub fn end(daemon: &Daemon, name: &str) {
    let (code, _, err) = text(&output(&mut daemon.agentctl(["kill", name])));
    assert_eq!(code, 0, "{err}");
}

/// Streams of one kind: the writer's arguments, and what its reader calls it.
const STREAMS: [(&[&str], &str); 2] = [(&["lane", READER], "lane"), (&["log"], "log")];

#[test]
fn a_killed_producer_loses_nothing_that_it_had_sent() {
    for mode in modes() {
        for (args, kind) in STREAMS {
            let daemon = Daemon::start(mode);
            let (reader, writer) = (daemon.workspace(), daemon.workspace());
            start(&daemon, reader.path(), READER, &[], &["read"]);
            start(&daemon, writer.path(), WRITER, &[], args);
            wait_for_line(reader.path(), "events", &format!("{kind} 3000"), 0);
            // A descriptor that is just passing through is none that is held.
            wait_until(
                "agentd looks at the channel, by mappings that need no descriptor",
                || {
                    let (fds, maps) = held(&daemon);
                    maps >= 2 && fds <= 1
                },
            );
            signal(pid_of(&daemon, args), Signal::KILL);
            let line = wait_for_line(reader.path(), "events", &format!("{kind} end after"), 0);
            assert!(line.ends_with("peer gone"), "{mode:?}: {line}");
            assert!(
                ended_after(&line) >= sent(writer.path()),
                "{mode:?}: {line}, {} sent",
                sent(writer.path())
            );
            wait_until("agentd has let go of the memory", || {
                held(&daemon) == (0, 0)
            });
            end(&daemon, READER);
        }
    }
}

#[test]
fn a_killed_consumer_is_told_and_what_it_left_is_on_record() {
    for mode in modes() {
        for (args, kind) in STREAMS {
            let daemon = Daemon::start(mode);
            let (reader, writer) = (daemon.workspace(), daemon.workspace());
            start(&daemon, reader.path(), READER, &[], &["read"]);
            start(&daemon, writer.path(), WRITER, &[], args);
            wait_for_line(reader.path(), "events", &format!("{kind} 3000"), 0);
            signal(pid_of(&daemon, &["read"]), Signal::KILL);
            let told = match kind {
                "lane" => "end after",
                _ => "nobody reads",
            };
            let line = wait_for_line(writer.path(), "events", told, 0);
            assert!(kind == "log" || line.ends_with("peer gone"), "{line}");
            if kind == "lane" {
                wait_until("agentd has let go of the memory", || {
                    held(&daemon) == (0, 0)
                });
            } else {
                // The log itself stays: one mapping, and the descriptor for readers that may come.
                wait_until("agentd has let go of the reader", || {
                    held(&daemon) == (1, 1)
                });
                end(&daemon, WRITER);
                wait_until("agentd has let go of the log", || held(&daemon) == (0, 0));
            }
        }
    }
}

#[test]
fn a_lane_and_a_log_go_on_after_agentd_was_killed() {
    for mode in modes() {
        for (args, kind) in STREAMS {
            let mut daemon = Daemon::start(mode);
            let (reader, writer) = (daemon.workspace(), daemon.workspace());
            start(&daemon, reader.path(), READER, &[], &["read"]);
            start(&daemon, writer.path(), WRITER, &[], args);
            wait_for_line(reader.path(), "events", &format!("{kind} 3000"), 0);
            daemon.kill();
            let line = wait_for_line(reader.path(), "events", &format!("{kind} end after"), 0);
            assert!(line.ends_with("replaced"), "{mode:?}: {line}");
            daemon.start_again();
            // Another channel, on which messages go on.
            wait_for_line(reader.path(), "events", &format!("{kind} open"), 1);
            let before = lines(reader.path(), "events").len();
            wait_until("the stream goes on", || {
                lines(reader.path(), "events").len() > before + 2
            });
            end(&daemon, WRITER);
            let line = wait_for_line(reader.path(), "events", &format!("{kind} end after"), 1);
            assert!(line.ends_with("peer gone"), "{mode:?}: {line}");
            wait_until("agentd has let go of the memory", || {
                held(&daemon) == (0, 0)
            });
            end(&daemon, READER);
        }
    }
}

#[test]
fn every_message_of_a_lasting_lane_arrives_once_however_often_agentd_is_killed() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let (reader, writer) = (daemon.workspace(), daemon.workspace());
        start(&daemon, reader.path(), READER, &[], &["read", "--lasting"]);
        let args = ["lasting", READER];
        start(&daemon, writer.path(), WRITER, &[], &args);
        for kill in 0..4 {
            wait_for_line(reader.path(), "events", "lane open", kill);
            let before = lines(reader.path(), "events").len();
            wait_until("the stream goes on", || {
                lines(reader.path(), "events").len() > before + 2
            });
            daemon.kill();
            wait_for_line(reader.path(), "events", "lane end after", kill);
            daemon.start_again();
        }
        wait_for_line(reader.path(), "events", "lane open", 4);
        // The reader says "error" at the first number that is missing or there twice.
        let noted = sent(writer.path());
        let line = format!("lane {}", (noted / 1000 + 1) * 1000);
        wait_for_line(reader.path(), "events", &line, 0);
        end(&daemon, WRITER);
        end(&daemon, READER);
    }
}

/// A quick reader and a slow starter of the same log: what one has read is not what the other has.
#[test]
fn every_message_of_a_lasting_log_is_read_once_by_each_reader_however_often_agentd_is_killed() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let writer = daemon.workspace();
        let readers = [READER, "reader2"].map(|name| (name, daemon.workspace()));
        for (name, work) in &readers {
            start(&daemon, work.path(), name, &[], &["read", "--lasting"]);
        }
        start(&daemon, writer.path(), WRITER, &[], &["lasting-log", "2"]);
        for kill in 0..3 {
            for (_, work) in &readers {
                wait_for_line(work.path(), "events", "log open", kill);
                let before = lines(work.path(), "events").len();
                wait_until("the stream goes on", || {
                    lines(work.path(), "events").len() > before + 2
                });
            }
            daemon.kill();
            for (_, work) in &readers {
                wait_for_line(work.path(), "events", "log end after", kill);
            }
            daemon.start_again();
        }
        // A reader says "error" at the first number that is missing or there twice, and the writer when one stays away.
        let noted = sent(writer.path());
        for (_, work) in &readers {
            wait_for_line(work.path(), "events", "log open", 3);
            let line = format!("log {}", (noted / 1000 + 1) * 1000);
            wait_for_line(work.path(), "events", &line, 0);
        }
        lines(writer.path(), "events");
        end(&daemon, WRITER);
        for (name, _) in &readers {
            end(&daemon, name);
        }
    }
}

#[test]
fn everything_killed_at_once_leaves_nothing() {
    for mode in modes() {
        let mut daemon = Daemon::start(mode);
        let (reader, writer) = (daemon.workspace(), daemon.workspace());
        start(&daemon, reader.path(), READER, &[], &["read"]);
        start(&daemon, writer.path(), WRITER, &[], &["lane", READER]);
        wait_for_line(reader.path(), "events", "lane 3000", 0);
        let (producer, consumer) = (
            pid_of(&daemon, &["lane", READER]),
            pid_of(&daemon, &["read"]),
        );
        signal(producer, Signal::KILL);
        signal(consumer, Signal::KILL);
        daemon.kill();
        daemon.start_again();
        // Their inits may still be at it when the next agentd takes them over.
        wait_until("nothing is left", || {
            let (code, out, err) = text(&output(&mut daemon.agentctl(["ps"])));
            assert_eq!(code, 0, "{err}");
            !out.contains(WRITER) && !out.contains(READER) && held(&daemon) == (0, 0)
        });
    }
}

#[test]
fn a_policy_decides_about_lanes_logs_and_shared_memory() {
    for mode in modes() {
        let daemon = Daemon::start(mode);
        let (reader, other) = (daemon.workspace(), daemon.workspace());
        start(&daemon, reader.path(), READER, &[], &["read"]);
        wait_for_line(reader.path(), "events", "reading", 0);
        put_program(other.path());
        let policy = other.path().join("quiet.toml");
        std::fs::write(
            &policy,
            "extends = \"coding\"\n[ipc]\nsend = { replace = [\"somebody\"] }\npublish = { replace = [\"own.#\"] }\n\
             subscribe = { replace = [\"own.#\"] }\n",
        )
        .expect("write a policy");
        let attempt = |options: &[&str]| {
            let argv = ["./channel-agent", "try", READER];
            let (code, out, err) = text(&daemon.run_with(other.path(), options, &argv));
            assert_eq!(code, 0, "{err}");
            out.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let all = attempt(&[]);
        assert_eq!(
            all,
            [
                "tier: shared memory",
                "lane: given",
                "log: given",
                "follow: given",
                "socket: given"
            ]
        );
        let denied = attempt(&["--policy", policy.to_str().expect("utf-8")]);
        assert_eq!(denied[0], "tier: shared memory");
        for (line, key) in denied[1..]
            .iter()
            .zip(["send", "publish", "subscribe", "send"])
        {
            assert!(
                line.contains(": denied:") && line.contains(&format!("[ipc] {key} list")),
                "{mode:?}: {line}"
            );
        }
        let strict = attempt(&["--set", "ipc.shared_memory=false"]);
        assert_eq!(
            strict[0],
            "tier: socket: its policy has [ipc] shared_memory = false"
        );
        for line in &strict[1..4] {
            assert!(
                line.contains(": unsupported:") && line.contains("go through the socket"),
                "{mode:?}: {line}"
            );
        }
        assert_eq!(strict[4], "socket: given", "the documented way out");
        end(&daemon, READER);
    }
}
