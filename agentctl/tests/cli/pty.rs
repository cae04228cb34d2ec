//! A terminal for tests: a pseudo-terminal whose other end is read by a thread.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::{Arc, Condvar, Mutex};

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use crate::fake::WATCHDOG;

pub struct Terminal {
    keyboard: File,
    slave: OwnedFd,
    screen: Arc<Screen>,
}

#[derive(Default)]
struct Screen {
    bytes: Mutex<Vec<u8>>,
    grown: Condvar,
}

impl Terminal {
    pub fn open(rows: u16, cols: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let master = master.expect("a pseudo-terminal");
        grantpt(&master).expect("grantpt");
        unlockpt(&master).expect("unlockpt");
        let name = ptsname(&master, Vec::new()).expect("ptsname");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let slave = open(AsRef::<CStr>::as_ref(&name), flags, Mode::empty()).expect("its slave");
        let mut output = File::from(master.try_clone().expect("dup"));
        let screen = Arc::new(Screen::default());
        let for_thread = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                let mut bytes = for_thread.bytes.lock().expect("no panic");
                bytes.extend_from_slice(&buffer[..length]);
                for_thread.grown.notify_all();
            }
        });
        let terminal = Self {
            keyboard: File::from(master),
            slave,
            screen,
        };
        terminal.resize(rows, cols);
        terminal
    }

    /// Starts a program with this as its controlling terminal, in the foreground.
    pub fn spawn(&self, command: &Command) -> Child {
        let mut wrapped = Command::new("setsid");
        wrapped
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args());
        wrapped.env_clear();
        wrapped.envs(command.get_envs().filter_map(|(k, v)| Some((k, v?))));
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        let end = || self.slave.try_clone().expect("dup");
        wrapped.stdin(end()).stdout(end()).stderr(end());
        wrapped.spawn().expect("setsid runs")
    }

    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("typed");
    }

    pub fn resize(&self, rows: u16, cols: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.keyboard, size).expect("resize");
    }

    /// How the terminal is set now.
    pub fn settings(&self) -> Termios {
        tcgetattr(&self.slave).expect("tcgetattr")
    }

    /// Everything printed so far.
    pub fn text(&self) -> String {
        let bytes = self.screen.bytes.lock().expect("no panic");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns when `wanted` has been printed.
    pub fn wait_for(&self, wanted: &str) {
        self.wait_for_count(wanted, 1);
    }

    /// Returns when `wanted` has been printed `count` times.
    pub fn wait_for_count(&self, wanted: &str, count: usize) {
        let enough =
            |bytes: &mut Vec<u8>| String::from_utf8_lossy(bytes).matches(wanted).count() < count;
        let bytes = self.screen.bytes.lock().expect("no panic");
        let waited = self
            .screen
            .grown
            .wait_timeout_while(bytes, WATCHDOG, enough);
        let (bytes, timeout) = waited.expect("no panic");
        assert!(
            !timeout.timed_out(),
            "{wanted:?} never came {count} times; the screen has {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}
