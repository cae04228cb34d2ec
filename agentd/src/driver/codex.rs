//! What Codex needs to run inside a sandbox: its command line, its environment, and the configuration in its private
//! HOME. Pure; written against version 0.169.0.
//!
//! No key is in any of them: the placeholder stands where a key would, and the gateway puts the real one in outside.

use std::collections::BTreeMap;
use std::path::PathBuf;

use agentd_sandbox::{HomeFile, ports};

use super::ReservedOption;

/// How the driver speaks with it.
const DRIVEN: &str = "app-server";

/// Words that would make it speak in another way, or not at all. That it asks before it acts needs no list: the driver
/// sets it for the thread, and checks what Codex says it took.
const RESERVED: [&str; 6] = [
    DRIVEN,
    "exec",
    "daemon",
    "proxy",
    "--listen",
    "--code-mode-host",
];

/// `argv` as an app-server.
///
/// # Errors
/// [`ReservedOption`] when `argv` says how to speak with it.
pub fn command_line(argv: &[String]) -> Result<Vec<String>, ReservedOption> {
    super::driven_line("codex", argv, &[DRIVEN], &RESERVED)
}

/// Nothing of it concerns a driven Codex that its configuration doesn't say already.
pub fn environment() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// `~/.codex/config.toml`: models through the gateway, the bus as an MCP server whose every tool is asked about, and
/// nothing that needs a network, a browser or a person. Codex's own sandbox is off because it can't be built inside this
/// one. Its approval policy isn't here: this version refuses `untrusted` in a file, so the driver sets it.
pub fn home_files() -> Vec<HomeFile> {
    let (gateway, mcp) = (ports::GATEWAY_OPENAI_URL, ports::MCP_URL);
    let content = format!(
        r#"model_provider = "agentd"
sandbox_mode = "danger-full-access"
web_search = "disabled"
check_for_update_on_startup = false

[model_providers.agentd]
name = "agentd's model gateway"
base_url = "{gateway}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = false

[mcp_servers.agentd]
url = "{mcp}"
default_tools_approval_mode = "prompt"
required = true
# As long as a request to another agent may take.
tool_timeout_sec = 3600

[agents]
enabled = false

[analytics]
enabled = false

[features]
apps = false
browser_use = false
computer_use = false
enable_request_compression = false
goals = false
image_generation = false
plugins = false
skill_search = false
"#
    );
    vec![HomeFile {
        path: PathBuf::from(".codex/config.toml"),
        mode: 0o600,
        content: content.into_bytes(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_callers_options_come_behind_the_protocol() {
        let line = command_line(&words("/opt/codex -c model=x")).unwrap();
        assert_eq!(line, words("/opt/codex app-server -c model=x"));
    }

    #[test]
    fn another_way_to_speak_is_refused_by_name() {
        for option in ["exec", "--listen=ws://127.0.0.1:1", "app-server"] {
            let error = command_line(&words(&format!("codex {option}"))).unwrap_err();
            assert_eq!(error.option, option);
            assert!(error.to_string().contains("the codex driver"), "{error}");
        }
    }

    #[test]
    fn the_seeded_configuration_is_toml_and_holds_no_key() {
        let files = home_files();
        let text = String::from_utf8(files[0].content.clone()).unwrap();
        let config: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(
            config["model_providers"]["agentd"]["base_url"].as_str(),
            Some(ports::GATEWAY_OPENAI_URL)
        );
        assert_eq!(
            config["mcp_servers"]["agentd"]["default_tools_approval_mode"].as_str(),
            Some("prompt")
        );
        assert!(!text.contains("api_key ="), "{text}");
    }
}
