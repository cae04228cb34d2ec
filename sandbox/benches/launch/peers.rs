//! Further sandboxes, named by whoever runs the benchmark: a JSON list of `{"name", "argv", "env", "cwd", "samples_per_round"}`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Deserialize;

/// A command that runs `true` in a sandbox.
#[derive(Debug, Deserialize)]
pub struct Peer {
    pub name: String,
    argv: Vec<String>,
    /// Besides the caller's own.
    env: BTreeMap<String, String>,
    cwd: String,
    /// Those that take long are sampled less often: at most ten.
    pub samples_per_round: usize,
}

pub fn read(file: &Path) -> Vec<Peer> {
    let text = std::fs::read_to_string(file).expect("the list of peers can be read");
    serde_json::from_str(&text).expect("the list of peers is JSON")
}

impl Peer {
    /// One launch, to its end.
    pub fn run(&self) {
        let (program, arguments) = self.argv.split_first().expect("a peer has a program");
        let ended = Command::new(program)
            .args(arguments)
            .envs(&self.env)
            .current_dir(&self.cwd)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.name));
        assert!(
            ended.status.success(),
            "{} failed: {}",
            self.name,
            String::from_utf8_lossy(&ended.stderr)
        );
    }
}
