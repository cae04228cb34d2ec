//! `agentctl run` on a terminal: raw mode and back, window sizes, detach keys, job control.

use std::process::{Child, Command};

use agentd_api::StdioMode;
use rustix::termios::LocalModes;

use crate::fake::FakeDaemon;
use crate::pty::Terminal;

/// The parts of a terminal's settings that a program can leave behind.
fn state(terminal: &Terminal) -> (u32, u32, u32) {
    let t = terminal.settings();
    (
        t.local_modes.bits(),
        t.input_modes.bits(),
        t.output_modes.bits(),
    )
}

fn code(mut child: Child) -> Option<i32> {
    child.wait().expect("it ends").code()
}

#[test]
fn a_terminal_means_a_pty_of_its_size_and_is_given_back() {
    let daemon = FakeDaemon::start();
    let terminal = Terminal::open(33, 101);
    let before = state(&terminal);
    let child = terminal.spawn(&daemon.agentctl(&["run", "exit", "3"]));
    assert_eq!(code(child), Some(3));
    assert_eq!(state(&terminal), before);
    let spec = daemon.last_launch();
    assert_eq!(spec.stdio, Some(StdioMode::Pty));
    assert_eq!((spec.rows, spec.cols), (Some(33), Some(101)));
}

#[test]
fn no_tty_means_pipes_even_on_a_terminal() {
    let daemon = FakeDaemon::start();
    let terminal = Terminal::open(24, 80);
    let child = terminal.spawn(&daemon.agentctl(&["run", "-T", "exit", "0"]));
    assert_eq!(code(child), Some(0));
    assert_eq!(daemon.last_launch().stdio, Some(StdioMode::Pipes));
}

#[test]
fn keys_reach_the_program_as_bytes_ctrl_c_included() {
    let daemon = FakeDaemon::start();
    let mut terminal = Terminal::open(24, 80);
    let mut child = terminal.spawn(&daemon.agentctl(&["run", "greets"]));
    // From here on every echo is the program's: the terminal itself is raw.
    terminal.wait_for("hello");
    assert!(!terminal.settings().local_modes.contains(LocalModes::ECHO));
    terminal.type_keys("\x03\x1a\x04é");
    terminal.wait_for("\x03\x1a\x04é");
    assert!(
        child.try_wait().expect("alive or not").is_none(),
        "Ctrl-C is the program's"
    );
    terminal.type_keys("\x10\x11");
    assert_eq!(code(child), Some(0));
}

#[test]
fn a_new_window_size_reaches_the_program() {
    let daemon = FakeDaemon::start();
    let mut terminal = Terminal::open(24, 80);
    let child = terminal.spawn(&daemon.agentctl(&["run", "sizes"]));
    terminal.wait_for("24x80");
    terminal.resize(50, 132);
    terminal.wait_for("50x132");
    terminal.type_keys("q");
    assert_eq!(code(child), Some(0));
}

#[test]
fn detach_keys_leave_with_0_and_say_how_to_come_back() {
    let daemon = FakeDaemon::start();
    let mut terminal = Terminal::open(24, 80);
    let before = state(&terminal);
    let child = terminal.spawn(&daemon.agentctl(&["run", "--detach-keys", "ctrl-a,d", "cat"]));
    terminal.type_keys("\x01x");
    terminal.wait_for("\x01x");
    terminal.type_keys("\x01d");
    assert_eq!(code(child), Some(0));
    terminal.wait_for("\r\nagentctl: bob runs on; come back with: agentctl attach bob");
    assert_eq!(state(&terminal), before);
}

#[test]
fn what_a_dead_program_left_switched_on_is_switched_off() {
    let daemon = FakeDaemon::start();
    let terminal = Terminal::open(24, 80);
    let before = state(&terminal);
    let child = terminal.spawn(&daemon.agentctl(&["run", "messy"]));
    assert_eq!(code(child), Some(124));
    terminal.wait_for("\x1b[?1000l\x1b[?1049l\x1b[?25h");
    terminal.wait_for("1s is over");
    assert_eq!(state(&terminal), before);
}

#[test]
fn losing_the_daemon_gives_the_terminal_back() {
    let daemon = FakeDaemon::start();
    let terminal = Terminal::open(24, 80);
    let before = state(&terminal);
    let child = terminal.spawn(&daemon.agentctl(&["run", "vanishes"]));
    assert_eq!(code(child), Some(125));
    terminal.wait_for("lost contact with bob");
    assert_eq!(state(&terminal), before);
}

#[test]
fn a_stopped_program_stops_the_job_and_fg_continues_it() {
    let daemon = FakeDaemon::start();
    let mut terminal = Terminal::open(24, 80);
    let mut shell = Command::new("bash");
    shell.args(["--norc", "--noprofile", "-i"]);
    shell
        .env("PS1", "prompt> ")
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", "/nonexistent");
    shell.env("AGENTD_RUNTIME_DIR", daemon.dir.path());
    shell.current_dir(env!("CARGO_TARGET_TMPDIR"));
    let child = terminal.spawn(&shell);
    terminal.wait_for("prompt> ");
    terminal.type_keys(concat!(env!("CARGO_BIN_EXE_agentctl"), " run stops\n"));
    terminal.wait_for("Stopped");
    terminal.type_keys("echo between; fg; echo code=$?\n");
    terminal.wait_for("\r\nbetween");
    terminal.wait_for("continued");
    terminal.wait_for("code=0");
    terminal.type_keys("exit\n");
    assert_eq!(code(child), Some(0), "{}", terminal.text());
}

#[test]
fn a_forced_tty_without_a_terminal_gets_the_usual_size() {
    let daemon = FakeDaemon::start();
    let output = daemon
        .agentctl(&["run", "-t", "exit", "0"])
        .stdin(std::process::Stdio::null())
        .output()
        .expect("agentctl runs");
    assert!(output.status.success(), "{output:?}");
    let spec = daemon.last_launch();
    assert_eq!(spec.stdio, Some(StdioMode::Pty));
    assert_eq!((spec.rows, spec.cols), (Some(24), Some(80)));
}
