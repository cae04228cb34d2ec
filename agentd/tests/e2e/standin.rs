//! The test kit's stand-in model server, as a process.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::harness::program;

/// A stand-in model server on a port of its own.
pub struct Standin {
    child: Child,
    /// `127.0.0.1:PORT`.
    pub address: String,
}

impl Standin {
    /// Writes `script` into `dir` and starts on it; requests are logged to `dir/requests.jsonl`.
    pub fn start(dir: &Path, script: &str) -> Self {
        std::fs::write(dir.join("script.toml"), script).expect("write the script");
        let mut child = Command::new(program("model-standin"))
            .args(["--listen", "127.0.0.1:0", "--script"])
            .arg(dir.join("script.toml"))
            .arg("--log")
            .arg(dir.join("requests.jsonl"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the stand-in");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("its address");
        let address = line.trim().trim_start_matches("http://").to_owned();
        assert!(
            address.contains(':'),
            "the stand-in prints its address: {line:?}"
        );
        Self { child, address }
    }
}

impl Drop for Standin {
    fn drop(&mut self) {
        self.child.kill().expect("kill the stand-in");
        self.child.wait().expect("reap the stand-in");
    }
}
