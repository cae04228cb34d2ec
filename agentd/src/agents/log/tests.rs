//! The log's promises: no byte twice or missing whatever is killed, the newest is kept, gaps are told.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::agents::pump::Pump;
use crate::agents::stdio;

/// As long as it takes to be sure that something hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

fn temp_log(limit: u64) -> (tempfile::TempDir, Arc<OutputLog>) {
    let dir = tempfile::tempdir().unwrap();
    let log = OutputLog::create(&dir.path().join("a.log"), limit).unwrap();
    (dir, Arc::new(log))
}

/// Everything from `offset` on, with the stream of each piece and the gaps.
fn pieces(log: &Arc<OutputLog>, offset: u64) -> Vec<(Result<Stream, u64>, Vec<u8>)> {
    let mut cursor = Cursor::new(log, offset);
    let mut buffer = vec![0; 1 << 16];
    let mut found: Vec<(Result<Stream, u64>, Vec<u8>)> = Vec::new();
    loop {
        match cursor.read(&mut buffer, u64::MAX).unwrap() {
            Piece::Bytes { stream, len } => match found.last_mut() {
                Some((last, bytes)) if *last == Ok(stream) => bytes.extend(&buffer[..len]),
                _ => found.push((Ok(stream), buffer[..len].to_vec())),
            },
            Piece::Gap { bytes } => found.push((Err(bytes), Vec::new())),
            Piece::Nothing => return found,
        }
    }
}

/// Byte `n` of a stream in which a missing or repeated byte shows.
fn pattern(n: u64) -> u8 {
    (n.wrapping_mul(2_654_435_761) >> 16) as u8
}

fn text(fd: OwnedFd) -> String {
    let mut text = String::new();
    File::from(fd).read_to_string(&mut text).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_gets_what_comes_later_and_ends_with_the_agent() {
    let (_dir, log) = temp_log(1 << 20);
    log.append(Stream::Stdout, b"one\n");
    let fd = read(&log, Extent::All, Follow::Yes).unwrap();
    let reader = tokio::task::spawn_blocking(move || text(fd));
    log.append(Stream::Stderr, b"two\n");
    log.close();
    assert_eq!(reader.await.unwrap(), "one\ntwo\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_who_does_not_follow_gets_what_is_there() {
    let (_dir, log) = temp_log(1 << 20);
    log.append(Stream::Stdout, b"one\ntwo\nthree\n");
    let fd = read(&log, Extent::Tail(2), Follow::No).unwrap();
    let read = tokio::task::spawn_blocking(move || text(fd));
    assert_eq!(read.await.unwrap(), "two\nthree\n");
}

#[test]
fn the_newest_output_is_kept_and_what_is_missing_is_told() {
    let (dir, log) = temp_log(MIN_LIMIT_BYTES);
    let total = 3 * MIN_LIMIT_BYTES;
    let line = |n: u64| format!("{n:015}\n");
    for n in 0..total / 16 {
        log.append(Stream::Stdout, line(n).as_bytes());
    }
    let on_disk: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(on_disk <= MIN_LIMIT_BYTES, "{on_disk} bytes are kept");
    let found = pieces(&log, 0);
    let [(Err(gap), _), (Ok(Stream::Stdout), kept)] = &found[..] else {
        panic!("{} pieces", found.len())
    };
    assert_eq!(gap + kept.len() as u64, total);
    assert!(kept.len() as u64 >= MIN_LIMIT_BYTES / 2, "{}", kept.len());
    assert!(kept.ends_with(line(total / 16 - 1).as_bytes()));
    // The same for whoever opens the files later.
    log.close();
    let later = Arc::new(OutputLog::finished(&dir.path().join("a.log")).unwrap());
    assert_eq!(pieces(&later, 0), found);
}

#[test]
fn streams_are_told_apart_also_by_whoever_opens_the_files_later() {
    let (dir, log) = temp_log(1 << 20);
    for (stream, bytes) in [
        (Stream::Stderr, "e1"),
        (Stream::Stdout, "o1"),
        (Stream::Stdout, "o2"),
        (Stream::Stderr, "e2"),
    ] {
        log.append(stream, bytes.as_bytes());
    }
    let expected = vec![
        (Ok(Stream::Stderr), b"e1".to_vec()),
        (Ok(Stream::Stdout), b"o1o2".to_vec()),
        (Ok(Stream::Stderr), b"e2".to_vec()),
    ];
    assert_eq!(pieces(&log, 0), expected);
    drop(log);
    let path = dir.path().join("a.log");
    let again = Arc::new(OutputLog::reopen(&path, 1 << 20).unwrap());
    again.append(Stream::Stderr, b"e3");
    again.append(Stream::Stdout, b"o3");
    let mut longer = expected;
    longer[2].1.extend(b"e3");
    longer.push((Ok(Stream::Stdout), b"o3".to_vec()));
    assert_eq!(pieces(&again, 0), longer);
}

#[test]
fn the_last_lines_are_found_over_segments_and_without_a_final_newline() {
    let (_dir, log) = temp_log(MIN_LIMIT_BYTES);
    let long = "x".repeat(70_000);
    log.append(Stream::Stdout, format!("first\n{long}\nlast").as_bytes());
    let end = log.state().end;
    for (lines, expected) in [(0, end), (1, end - 4), (2, 6), (3, 0), (9, 0)] {
        assert_eq!(log.last_lines(lines, end).unwrap(), expected, "{lines}");
    }
}

#[test]
fn a_scroll_back_begins_where_nothing_is_cut_in_two() {
    let begin = |output: &[u8], bytes: u64| {
        let (_dir, log) = temp_log(1 << 20);
        log.append(Stream::Stdout, output);
        let at = log.scroll_back(bytes).unwrap();
        output[usize::try_from(at).unwrap()..].to_vec()
    };
    assert_eq!(begin(b"short", 100), b"short");
    assert_eq!(begin(b"one\ntwo\nthree", 8), b"three");
    assert_eq!(
        begin(b"one\ntwo\nthree", 9),
        b"two\nthree",
        "a whole line that just fits"
    );
    assert_eq!(
        begin(b"\x1b[1;31mred\x1b[0m", 9),
        b"\x1b[0m",
        "no newline: an escape"
    );
    assert_eq!(
        begin("aaéé".as_bytes(), 3),
        "é".as_bytes(),
        "a whole character"
    );
}

#[tokio::test]
async fn a_reader_who_may_not_miss_anything_holds_the_log_back_until_it_reads_or_leaves() {
    let (_dir, log) = temp_log(1 << 20);
    let mut slow = Cursor::lossless(&log, 0);
    let gone = Cursor::lossless(&log, 0);
    log.append(Stream::Stdout, &vec![b'x'; HELD_BYTES as usize]);
    let room = {
        let log = Arc::clone(&log);
        tokio::spawn(async move { log.room().await })
    };
    tokio::task::yield_now().await;
    assert!(!room.is_finished());
    slow.read(&mut [0; 100], u64::MAX).unwrap();
    tokio::task::yield_now().await;
    assert!(!room.is_finished(), "the other has read nothing");
    drop(gone);
    tokio::time::timeout(WATCHDOG, room).await.unwrap().unwrap();
}

#[test]
fn since_finds_what_was_written_after_a_moment() {
    let (_dir, log) = temp_log(1 << 20);
    log.append(Stream::Stdout, b"old\n");
    let past = u64::try_from(agentd_storage::unix_ms()).unwrap() - 60_000;
    assert_eq!(log.since(past).unwrap(), 0);
    assert_eq!(log.since(past + 3_600_000).unwrap(), 4);
}

/// Where the process that is killed finds the log, and for a terminal the held pipe.
const PUMP_LOG: &str = "AGENTD_TEST_PUMP_LOG";
const PUMP_HELD: &str = "AGENTD_TEST_PUMP_HELD";

/// A part of other tests: pumps fd 0, a terminal's master or a pipe, into the log until it is killed.
#[tokio::test]
#[ignore = "a part of other tests: the process that is killed"]
async fn pump_until_killed() {
    let Some(path) = std::env::var_os(PUMP_LOG) else {
        return;
    };
    let log = Arc::new(OutputLog::reopen(Path::new(&path), 64 << 20).unwrap());
    let source = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let (_input, output) = match std::env::var_os(PUMP_HELD) {
        Some(held) => {
            let end = |write: bool| {
                let file = File::options().read(!write).write(write).open(&held);
                OwnedFd::from(file.unwrap())
            };
            // The test holds both ends of the pipe, so neither opening waits.
            stdio::from_terminal(source, Some((end(false), end(true)))).unwrap()
        }
        None => {
            let (stderr, _) = std::io::pipe().unwrap();
            stdio::from_pipes(None, source, stderr.into()).unwrap()
        }
    };
    let pump = Pump {
        output,
        stdout_to: Arc::clone(&log),
        stderr_to: log,
    };
    pump.run().await.unwrap();
}

fn start_pump(source: &OwnedFd, log: &Path, held: Option<&OwnedFd>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "--ignored",
            "agents::log::tests::pump_until_killed",
        ])
        .env(PUMP_LOG, log)
        .stdin(Stdio::from(source.try_clone().unwrap()))
        .stdout(Stdio::null());
    if let Some(held) = held {
        let fd = std::os::fd::AsRawFd::as_raw_fd(held);
        command.env(PUMP_HELD, format!("/proc/{}/fd/{fd}", std::process::id()));
    }
    command.spawn().unwrap()
}

/// Writes `TOTAL` bytes of the pattern to `to`, pumps them from `source` with one process after the other, each killed
/// in the middle of its work, and compares the log.
fn killed_pumps_lose_and_repeat_nothing(source: &OwnedFd, to: OwnedFd, held: Option<&OwnedFd>) {
    const TOTAL: u64 = 12 << 20;
    const KILLS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.log");
    drop(OutputLog::create(&path, 64 << 20).unwrap());
    let writer = std::thread::spawn(move || {
        let bytes: Vec<u8> = (0..TOTAL).map(pattern).collect();
        File::from(to).write_all(&bytes).unwrap();
    });
    for kill in 1..=KILLS {
        let mut pump = start_pump(source, &path, held);
        let started = Instant::now();
        while std::fs::metadata(&path).unwrap().len() < kill * TOTAL / (KILLS + 1) {
            assert!(started.elapsed() < WATCHDOG, "the pump stands still");
            std::hint::spin_loop();
        }
        pump.kill().unwrap();
        pump.wait().unwrap();
    }
    let mut last = start_pump(source, &path, held);
    writer.join().unwrap();
    assert!(last.wait().unwrap().success());
    let bytes = std::fs::read(&path).unwrap();
    let wrong = (0..).zip(&bytes).find(|(n, byte)| pattern(*n) != **byte);
    assert_eq!((wrong, bytes.len() as u64), (None, TOTAL));
}

#[test]
fn killed_pumps_of_a_pipe_lose_and_repeat_nothing() {
    let (reader, writer) = std::io::pipe().unwrap();
    killed_pumps_lose_and_repeat_nothing(&reader.into(), writer.into(), None);
}

#[test]
fn killed_pumps_of_a_terminal_lose_and_repeat_nothing() {
    use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    // Or the pumps would hold the terminal open themselves.
    rustix::io::fcntl_setfd(&slave, rustix::io::FdFlags::CLOEXEC).unwrap();
    let mut modes = tcgetattr(&slave).unwrap();
    modes.make_raw();
    tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
    // Kept by the test, as the broker keeps it.
    let (held_out, _held_in) = std::io::pipe().unwrap();
    killed_pumps_lose_and_repeat_nothing(&master, slave, Some(&held_out.into()));
}
