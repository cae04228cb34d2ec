//! What the kernel's log says between two moments, and whether it tainted itself.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

/// How the kernel begins when something is wrong with it.
const ALARMS: [&str; 12] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "general protection",
    "divide error",
    "stack segment",
    "page fault",
    "lockup",
    "rcu: INFO",
    "hung_task",
    "KASAN",
    "UBSAN",
];

pub struct KernelLog {
    /// At the end of what was said before; `None` where the log can't be read.
    messages: Option<File>,
    tainted: String,
}

fn tainted() -> String {
    fs::read_to_string("/proc/sys/kernel/tainted").expect("tainted")
}

impl KernelLog {
    pub fn open() -> Self {
        let mut options = File::options();
        let messages = options.read(true).custom_flags(libc::O_NONBLOCK);
        let mut messages = messages.open("/dev/kmsg").ok();
        if let Some(messages) = &mut messages {
            messages.seek(SeekFrom::End(0)).expect("seek");
        }
        Self {
            messages,
            tainted: tainted(),
        }
    }

    /// # Panics
    /// The kernel complained.
    pub fn check(self) {
        assert_eq!(tainted(), self.tainted, "the kernel tainted itself");
        let Some(mut messages) = self.messages else {
            return;
        };
        let mut record = [0; 8192];
        loop {
            let text = match messages.read(&mut record) {
                Ok(len) => String::from_utf8_lossy(&record[..len]).into_owned(),
                // Some were overwritten before they were read.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("/dev/kmsg: {error}"),
            };
            let alarm = ALARMS.iter().find(|alarm| text.contains(**alarm));
            assert!(alarm.is_none(), "the kernel says: {text}");
        }
    }
}
