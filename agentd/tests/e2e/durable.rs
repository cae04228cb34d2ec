//! Durable queues through a real agentd that is killed: what was acknowledged comes as often as was promised, nothing is made up.
//!
//! An agent in a sandbox fills a queue and another one works off its beginning, acknowledging most and rejecting some; agentd is
//! killed while the first is at it and started again. Then a third agent takes what there is. Over both stores.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::harness::{Daemon, modes, output, program, put_program, text, wait_until};

const QUEUE: &str = "work";
/// The first consumer settles these, one after the other.
const SETTLED: u64 = 60;
/// And makes each multiple of this a dead letter.
const REJECTED: u64 = 7;
/// The producer has stored as many at least when agentd is killed.
const STORED: u64 = 200;

/// Starts the queue agent as agent `name` in a workspace of its own.
fn start(daemon: &Daemon, work: &Path, name: &str, args: &[&str]) {
    put_program(&program("queue-agent"), &work.join("queue-agent"));
    let argv = [&["./queue-agent"], args].concat();
    let (code, _, err) = text(&daemon.run_with(work, &["--detach", "--name", name], &argv));
    assert_eq!(code, 0, "{err}");
}

/// The numbers in a file that an agent writes; the last line may be half-written.
fn numbers(work: &Path, file: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(work.join(file)).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let number = |line: &str| line.parse().expect("a number");
    whole.lines().map(number).collect()
}

/// Waits until the agent of this workspace has ended; why it did.
fn ended(work: &Path) -> String {
    let mut why = String::new();
    wait_until("the agent has ended", || {
        why = std::fs::read_to_string(work.join("end")).unwrap_or_default();
        why.ends_with('\n')
    });
    assert!(!why.starts_with("error"), "{why}");
    why
}

fn bus(daemon: &Daemon, args: &[&str]) -> String {
    let (code, out, err) = text(&output(
        &mut daemon.agentctl([&["--json", "bus"], args].concat()),
    ));
    assert_eq!(code, 0, "{args:?}: {out} {err}");
    out
}

fn shown(daemon: &Daemon) -> Value {
    serde_json::from_str(&bus(daemon, &["queue", "show", QUEUE])).expect("JSON")
}

/// Messages that are neither done nor dead.
fn live(daemon: &Daemon) -> u64 {
    let queue = shown(daemon);
    let of = |what: &str| queue[what].as_u64().expect("a number");
    of("waiting") + of("delayed") + of("in_hand")
}

/// The numbers in messages that a verb prints, with the ids or offsets and why they are dead letters.
fn messages(daemon: &Daemon, args: &[&str]) -> Vec<(u64, u64, Option<String>)> {
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        let number = line["text"].as_str().and_then(|text| text.parse().ok());
        (
            line["id"].as_u64().expect("an id"),
            number.expect("a number as text"),
            line["dead"].as_str().map(str::to_owned),
        )
    };
    bus(daemon, args).lines().map(line).collect()
}

/// `bus trace --queue` of whatever happens next.
struct Trace(Child);

impl Trace {
    /// Follows the queue when this returns.
    fn start(daemon: &Daemon) -> Self {
        let mut command = daemon.agentctl(["--json", "-v", "bus", "trace", "--queue", QUEUE]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start agentctl");
        let stderr = BufReader::new(child.stderr.as_mut().expect("piped"));
        let mut lines = stderr.lines().map(|line| line.expect("readable"));
        assert!(lines.any(|line| line.ends_with("following")), "it follows");
        Self(child)
    }

    /// What became of the first message, to its end.
    fn steps(self) -> Vec<String> {
        let (code, out, err) = text(&self.0.wait_with_output().expect("it ends"));
        assert_eq!(code, 0, "{err}");
        let line = |line: &str| serde_json::from_str::<Value>(line).expect("JSON");
        let lines: Vec<Value> = out.lines().map(line).collect();
        assert!(
            lines
                .iter()
                .all(|line| line["message"] == lines[0]["message"]),
            "{out}"
        );
        let step = |line: &Value| line["step"].as_str().expect("a step").to_owned();
        lines.iter().map(step).collect()
    }
}

#[test]
fn a_durable_queue_survives_the_kill_of_agentd() {
    for mode in modes() {
        for store in ["segment", "sqlite"] {
            let config = format!("[bus.durable]\nstore = \"{store}\"\n");
            let mut daemon = Daemon::with_config(mode, &config);
            let (maker, first, second) =
                (daemon.workspace(), daemon.workspace(), daemon.workspace());
            start(&daemon, maker.path(), "maker", &["produce", QUEUE]);
            let (last, every) = ((SETTLED - 1).to_string(), REJECTED.to_string());
            let args = ["consume", QUEUE, "--last", &last, "--reject", &every];
            start(&daemon, first.path(), "first", &args);
            assert_eq!(ended(first.path()), "that was the last\n");
            wait_until("enough is stored", || {
                numbers(maker.path(), "stored").last() >= Some(&STORED)
            });
            let dead = ["queue", "dead", QUEUE, "-n", "256"];
            let before = messages(&daemon, &dead);

            daemon.kill();
            ended(maker.path());
            daemon.start_again();

            let rejected: Vec<u64> = (0..SETTLED).filter(|it| it % REJECTED == 0).collect();
            assert_eq!(numbers(first.path(), "rejected"), rejected);
            let stored = *numbers(maker.path(), "stored").last().expect("some");
            let tried = *numbers(maker.path(), "tried").last().expect("some");
            // What was acknowledged is there; of the batch that was not, as much as reached the disk.
            let end = SETTLED + live(&daemon);
            assert!(
                (stored..=tried).contains(&end),
                "{mode:?} {store}: {end} of {stored} to {tried}"
            );
            assert_eq!(shown(&daemon)["durable"], true);

            // Dead letters are what they were, for the same reason and under the same id.
            let after = messages(&daemon, &dead);
            assert_eq!(after, before, "{mode:?} {store}");
            let letters: Vec<u64> = after.iter().map(|it| it.1).collect();
            assert_eq!(letters, rejected);
            assert!(after.iter().all(|it| it.2.as_deref() == Some("rejected")));

            // A replay shows what is stored, in order: at an offset, always the same message.
            let offset = SETTLED.to_string();
            let replay = ["replay", QUEUE, "--queue", "--offset", &offset, "-n", "64"];
            let replayed = messages(&daemon, &replay);
            let expected = (SETTLED..end.min(SETTLED + 64)).map(|it| (it, it, None));
            assert_eq!(replayed, expected.collect::<Vec<_>>(), "{mode:?} {store}");

            start(&daemon, second.path(), "second", &["consume", QUEUE]);
            wait_until("the queue is worked off", || live(&daemon) == 0);
            let trace = Trace::start(&daemon);
            bus(&daemon, &["queue", "requeue", QUEUE]);
            assert_eq!(trace.steps(), ["requeued", "delivered", "acked"]);
            wait_until("the letters are too", || live(&daemon) == 0);
            let mut got = numbers(second.path(), "got");
            got.sort_unstable();
            // Each once: those that nobody had settled, and the dead letters that were put back.
            let expected: Vec<u64> = rejected.into_iter().chain(SETTLED..end).collect();
            assert_eq!(got, expected, "{mode:?} {store}");
            assert_eq!(shown(&daemon)["dead"], 0);

            // Nobody waited for those acknowledgements: an orderly end writes them down all the same.
            daemon.restart();
            assert_eq!(live(&daemon), 0, "{mode:?} {store}");
        }
    }
}
