//! Orders to an agent over FIFOs of its workspace: it does what is written to `ask`, and writes
//! into `answer` what came of it, a line each. Neither is agentd's, so both work while agentd is
//! dead, and whatever has been taken from the agent.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use crate::harness::is_root;

/// The ends of whoever gives the orders.
pub struct Orders {
    ask: File,
    answer: BufReader<File>,
}

impl Orders {
    /// Makes the FIFOs in `work`, has `uid`'s agent started there, and waits until it has opened `ask` and then `answer`.
    pub fn start(work: &Path, uid: u32, start: impl FnOnce()) -> Self {
        for name in ["ask", "answer"] {
            fifo(&work.join(name), uid);
        }
        start();
        // In the agent's order: each waits for the other end.
        let ask = File::options()
            .write(true)
            .open(work.join("ask"))
            .expect("ask");
        let answer = File::open(work.join("answer")).expect("answer");
        Self {
            ask,
            answer: BufReader::new(answer),
        }
    }

    pub fn say(&mut self, line: &str) {
        writeln!(self.ask, "{line}").expect("ask");
    }

    pub fn hear(&mut self) -> String {
        let mut said = String::new();
        self.answer.read_line(&mut said).expect("an answer");
        said.trim_end().to_owned()
    }

    /// What came of this order.
    pub fn told(&mut self, line: &str) -> String {
        self.say(line);
        self.hear()
    }
}

/// A FIFO that is `uid`'s.
pub fn fifo(path: &Path, uid: u32) {
    let mode = rustix::fs::Mode::from(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("a fifo");
    if is_root() {
        std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("chown");
    }
}
