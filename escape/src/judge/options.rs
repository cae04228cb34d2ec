//! What `agentd-escape judge` is asked for.
//!
//! A handful of options read by hand: the program is copied into guests and sandboxes, and stays small.

use std::path::PathBuf;

use serde_json::Value;

use super::JudgeError;
use crate::openings::Mode;

#[derive(Debug, Clone)]
pub struct Options {
    /// Whom the session runs as.
    pub uid: u32,
    pub place: PathBuf,
    /// The effective policy as JSON, for the lines that open cases.
    pub policy_file: Option<PathBuf>,
    pub mode: Mode,
    pub only: Vec<String>,
    pub runtime_dir: Option<PathBuf>,
    /// The sandbox's command line; empty for none.
    pub command: Vec<String>,
}

impl Options {
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        // SAFETY: asks for a number.
        let own_uid = unsafe { libc::geteuid() };
        let mut options = Self {
            uid: own_uid,
            place: std::env::current_dir().map_err(|error| error.to_string())?,
            policy_file: None,
            mode: Mode::Root,
            only: Vec::new(),
            runtime_dir: None,
            command: Vec::new(),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if *word == "--" {
                options.command = words.map(|word| (*word).to_owned()).collect();
                break;
            }
            let value = words
                .next()
                .ok_or_else(|| format!("{word} wants a value"))?;
            match *word {
                "--user" => {
                    options.uid = value
                        .parse()
                        .map_err(|_| format!("--user {value}: a uid is a number"))?;
                }
                "--place" => options.place = PathBuf::from(value),
                "--policy" => options.policy_file = Some(PathBuf::from(value)),
                "--mode" => {
                    options.mode = match *value {
                        "root" => Mode::Root,
                        "user" => Mode::User,
                        other => return Err(format!("--mode {other}: root or user")),
                    }
                }
                "--only" => options.only = value.split(',').map(str::to_owned).collect(),
                "--runtime-dir" => options.runtime_dir = Some(PathBuf::from(value)),
                other => {
                    return Err(format!(
                        "{other}: allowed are --user, --place, --policy, --mode, --only, --runtime-dir and --"
                    ));
                }
            }
        }
        Ok(options)
    }

    pub(super) fn policy(&self) -> Result<Option<Value>, JudgeError> {
        let Some(path) = &self.policy_file else {
            return Ok(None);
        };
        let input = |problem: String| JudgeError::Input {
            what: path.display().to_string(),
            problem,
        };
        let text = std::fs::read_to_string(path).map_err(|error| input(error.to_string()))?;
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| input(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_behind_the_dashes_is_the_command() {
        let options = Options::parse(&["--user", "7", "--mode", "user", "--", "bwrap", "--user"])
            .expect("parses");
        assert_eq!((options.uid, options.mode), (7, Mode::User));
        assert_eq!(options.command, ["bwrap", "--user"]);
    }

    #[test]
    fn an_unknown_option_is_told_what_is_allowed() {
        let error = Options::parse(&["--polcy", "x"]).expect_err("unknown");
        assert!(error.contains("--polcy") && error.contains("--policy"));
    }
}
