//! What agents of the Agent Client Protocol need to run inside a sandbox. The protocol itself says nothing about command
//! lines and configuration, so agents that are known get theirs here; any other is run as it is given. Pure; written
//! against opencode 1.18.33 and Gemini CLI 0.61.0.
//!
//! No key is in any of it: the placeholder stands where a key would, and the gateway puts the real one in outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentd_sandbox::{HomeFile, ports};
use serde_json::json;

use super::ReservedOption;

/// An agent whose ways are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Opencode,
    Gemini,
}

impl Known {
    fn of(argv: &[String]) -> Option<Self> {
        let program = Path::new(argv.first()?).file_name()?;
        match program.to_str()? {
            "opencode" => Some(Self::Opencode),
            "gemini" => Some(Self::Gemini),
            _ => None,
        }
    }

    /// How it is told to speak the protocol.
    fn driven(self) -> &'static str {
        match self {
            Self::Opencode => "acp",
            Self::Gemini => "--acp",
        }
    }
}

/// Words that the driver adds, or that would let the agent act without asking.
const RESERVED: [&str; 7] = [
    "acp",
    "--acp",
    "--experimental-acp",
    "--yolo",
    "-y",
    "--approval-mode",
    "serve",
];

/// `argv`, told to speak the protocol where it is known how.
///
/// # Errors
/// [`ReservedOption`] when `argv` says it itself, or switches its questions off.
pub fn command_line(argv: &[String]) -> Result<Vec<String>, ReservedOption> {
    match Known::of(argv) {
        Some(known) => super::driven_line("acp", argv, &[known.driven()], &RESERVED),
        None => Ok(argv.to_vec()),
    }
}

/// Nothing but the model's traffic leaves the sandbox. What the workspace says about opencode's configuration is not
/// read: it could switch the questions off.
pub fn environment(argv: &[String]) -> BTreeMap<String, String> {
    let names: &[&str] = match Known::of(argv) {
        Some(Known::Opencode) => &[
            "OPENCODE_DISABLE_PROJECT_CONFIG",
            "OPENCODE_DISABLE_AUTOUPDATE",
            "OPENCODE_DISABLE_MODELS_FETCH",
            "OPENCODE_DISABLE_LSP_DOWNLOAD",
            "OPENCODE_DISABLE_DEFAULT_PLUGINS",
            "OPENCODE_DISABLE_SHARE",
        ],
        Some(Known::Gemini) | None => &[],
    };
    let on = |name: &&str| ((*name).to_owned(), "1".to_owned());
    names.iter().map(on).collect()
}

/// The private HOME of opencode: models through the gateway, every tool asked about, a refusal told to the model, and
/// as much time for the bus's tools as a request to another agent may take.
pub fn home_files(argv: &[String]) -> Vec<HomeFile> {
    if Known::of(argv) != Some(Known::Opencode) {
        return Vec::new();
    }
    let gateway = json!({"options": {
        "baseURL": ports::GATEWAY_OPENAI_URL, "apiKey": ports::PLACEHOLDER_KEY,
    }});
    let config = json!({
        "autoupdate": false,
        "share": "disabled",
        "enabled_providers": ["anthropic", "openai"],
        "provider": {"anthropic": gateway, "openai": gateway},
        "permission": {"*": "ask"},
        "experimental": {"continue_loop_on_deny": true, "mcp_timeout": 3_600_000},
    });
    vec![HomeFile {
        path: PathBuf::from(".config/opencode/opencode.json"),
        mode: 0o600,
        content: config.to_string().into_bytes(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn known_agents_are_told_to_speak_the_protocol_and_others_left_alone() {
        for (given, run) in [
            ("opencode", "opencode acp"),
            (
                "/opt/opencode --log-level INFO",
                "/opt/opencode acp --log-level INFO",
            ),
            ("gemini -m x", "gemini --acp -m x"),
            ("my-agent --acp", "my-agent --acp"),
        ] {
            assert_eq!(command_line(&words(given)).unwrap(), words(run));
        }
    }

    #[test]
    fn an_option_that_would_stop_the_questions_is_refused() {
        for line in [
            "gemini --yolo",
            "gemini --approval-mode=yolo",
            "opencode acp",
        ] {
            assert!(command_line(&words(line)).is_err(), "{line}");
        }
    }

    #[test]
    fn opencode_asks_about_every_tool_and_reads_no_configuration_of_the_workspace() {
        let argv = words("opencode");
        let files = home_files(&argv);
        let config: serde_json::Value = serde_json::from_slice(&files[0].content).unwrap();
        assert_eq!(config["permission"]["*"], "ask");
        assert_eq!(
            config["provider"]["anthropic"]["options"]["apiKey"],
            ports::PLACEHOLDER_KEY
        );
        assert_eq!(environment(&argv)["OPENCODE_DISABLE_PROJECT_CONFIG"], "1");
        assert!(home_files(&words("my-agent")).is_empty());
    }
}
