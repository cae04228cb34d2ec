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
            if !is_of_the_kernel(&text) {
                continue;
            }
            let alarm = ALARMS.iter().find(|alarm| text.contains(**alarm));
            assert!(alarm.is_none(), "the kernel says: {text}");
        }
    }
}

/// Whether a record (`PRIORITY,NUMBER,TIME,FLAGS;TEXT`, `Documentation/ABI/testing/dev-kmsg`) is
/// the kernel's word on itself: not what a program wrote into the log, nor what the kernel says of
/// a program that it ends for a fault of its own.
fn is_of_the_kernel(record: &str) -> bool {
    let (head, text) = record.split_once(';').unwrap_or(("", record));
    let priority = head.split(',').next().and_then(|word| word.parse().ok());
    // Facility 0, above the three bits of the level.
    priority.is_none_or(|priority: u32| priority >> 3 == 0) && !text.starts_with("traps: ")
}

#[test]
fn a_program_that_faults_or_writes_into_the_log_is_no_alarm() {
    assert!(is_of_the_kernel("4,1,2,-;WARNING: CPU: 0 PID: 1"));
    assert!(is_of_the_kernel("WARNING: without a head"));
    assert!(!is_of_the_kernel("12,1,2,-;WARNING: a service is late"));
    assert!(!is_of_the_kernel(
        "6,1,2,-;traps: fuzz[7] general protection fault ip:1 sp:2 error:0 in fuzz[3000+1000]"
    ));
}
