//! What Claude Code needs to run inside a sandbox: its command line when it is driven, its environment, and the files
//! of its private HOME, with which it starts without first-run dialogs. Pure; written against version 2.1.329.
//!
//! No key is in any of them: the placeholder that stands where a key would is approved here, and the gateway puts the
//! real one in outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentd_sandbox::{HomeFile, ports};
use serde_json::json;

use super::ReservedOption;

/// The name of the program, by which an undriven one is recognised.
pub const PROGRAM: &str = "claude";

/// How the driver speaks with it. Tools that wait for a person are taken away: nobody is there.
const DRIVEN: [&str; 9] = [
    "--print",
    "--input-format",
    "stream-json",
    "--output-format",
    "stream-json",
    "--verbose",
    "--permission-prompt-tool",
    "stdio",
    "--disallowed-tools=AskUserQuestion",
];

/// Options that the driver sets itself.
const RESERVED: [&str; 6] = [
    "-p",
    "--print",
    "--input-format",
    "--output-format",
    "--permission-prompt-tool",
    "--dangerously-skip-permissions",
];

/// Claude keeps the last characters of a key that its user has approved.
const APPROVED_KEY_CHARS: usize = 20;

/// `argv` with the options of the stream-json protocol behind the program.
///
/// # Errors
/// [`ReservedOption`] when `argv` sets one of them.
pub fn command_line(argv: &[String]) -> Result<Vec<String>, ReservedOption> {
    super::driven_line("claude", argv, &DRIVEN, &RESERVED)
}

/// Whether `argv` runs Claude Code, driven or not.
pub fn is_program(argv: &[String]) -> bool {
    argv.first()
        .and_then(|program| Path::new(program).file_name())
        .is_some_and(|name| name == PROGRAM)
}

/// Nothing but the model's traffic leaves the sandbox, and nothing changes the pinned program.
pub fn environment() -> BTreeMap<String, String> {
    [
        "DISABLE_TELEMETRY",
        "DISABLE_ERROR_REPORTING",
        "DISABLE_AUTOUPDATER",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC",
    ]
    .into_iter()
    .map(|name| (name.to_owned(), "1".to_owned()))
    .collect()
}

/// The private HOME: onboarding done, the folders in `trusted` trusted, the placeholder key approved, no updates; and
/// Claude's own nested sandbox off, because it can't be built inside this one and a failed attempt would end in a
/// question.
pub fn home_files(trusted: &[&str]) -> Vec<HomeFile> {
    let key = ports::PLACEHOLDER_KEY;
    let approved = &key[key.len().saturating_sub(APPROVED_KEY_CHARS)..];
    let projects: BTreeMap<&str, _> = trusted
        .iter()
        .map(|folder| {
            let state =
                json!({"hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true});
            (*folder, state)
        })
        .collect();
    let state = json!({
        "hasCompletedOnboarding": true,
        // The offer of another permission mode, which comes before the first prompt.
        "hasSeenAutoDefaultNudge": true,
        "theme": "dark",
        "autoUpdates": false,
        "customApiKeyResponses": {"approved": [approved], "rejected": []},
        "projects": projects,
    });
    let settings = json!({
        "sandbox": {"enabled": false},
        "permissions": {"defaultMode": "default"},
    });
    let file = |path: &str, content: serde_json::Value| HomeFile {
        path: PathBuf::from(path),
        mode: 0o600,
        content: content.to_string().into_bytes(),
    };
    vec![
        file(".claude.json", state),
        file(".claude/settings.json", settings),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_protocol_options_come_before_the_callers() {
        let line = command_line(&words("/opt/claude --model x")).unwrap();
        assert_eq!(line[0], "/opt/claude");
        assert_eq!(line[line.len() - 2..], ["--model", "x"]);
        assert!(line.iter().any(|arg| arg == "--permission-prompt-tool"));
    }

    #[test]
    fn an_option_of_the_driver_is_refused_by_name() {
        for option in [
            "-p",
            "--output-format=text",
            "--dangerously-skip-permissions",
        ] {
            let error = command_line(&words(&format!("claude {option}"))).unwrap_err();
            assert_eq!(error.option, option);
        }
    }

    #[test]
    fn the_program_is_recognised_by_its_last_component() {
        assert!(is_program(&words("/usr/lib/node/bin/claude -c")));
        assert!(!is_program(&words("claude-like")));
        assert!(!is_program(&[]));
    }

    #[test]
    fn the_seeded_home_trusts_the_workspace_and_holds_no_key() {
        let files = home_files(&["/home/a/repo"]);
        let state: serde_json::Value = serde_json::from_slice(&files[0].content).unwrap();
        assert_eq!(
            state["projects"]["/home/a/repo"]["hasTrustDialogAccepted"],
            true
        );
        assert_eq!(
            state["customApiKeyResponses"]["approved"][0],
            ports::PLACEHOLDER_KEY
        );
        assert!(
            files
                .iter()
                .all(|file| file.mode == 0o600 && file.path.is_relative())
        );
    }
}
