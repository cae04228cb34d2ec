//! The environment of an agent, made from nothing.

use super::{LaunchInputs, StdioMode, etc};
use crate::policy::{EffectivePolicy, NetMode};
use crate::ports;
use std::collections::BTreeMap;
use std::path::Path;

/// Variables by which programs find TLS roots: OpenSSL, Node, Python's requests, pip, curl, git, cargo.
const TRUST_VARIABLES: [&str; 7] = [
    "SSL_CERT_FILE",
    "NODE_EXTRA_CA_CERTS",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];
/// Folders every PATH ends in.
const SYSTEM_PATH: [&str; 6] = [
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
];

/// What the agent starts with. Later sources win: defaults, what the policy passes on, what it
/// sets, what the sandbox says about itself, what the daemon adds. `program` is one that was
/// granted by itself; `visible` tells whether a path of the caller's shows in the view.
pub(crate) fn environment(
    policy: &EffectivePolicy,
    inputs: &LaunchInputs,
    home: &Path,
    program: Option<&Path>,
    visible: impl Fn(&Path) -> bool,
) -> BTreeMap<String, String> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let mut set = |name: &str, value: &str| {
        env.insert(name.to_owned(), value.to_owned());
    };
    set("LANG", "C.UTF-8");
    set("SHELL", "/bin/sh");
    let passed = |name: &str| {
        inputs
            .caller_env
            .get(name)
            .filter(|_| policy.env.passes(name))
    };
    for (name, value) in inputs
        .caller_env
        .iter()
        .filter(|(n, _)| policy.env.passes(n))
    {
        set(name, value);
    }
    set(
        "PATH",
        &search_path(
            program.and_then(Path::parent).and_then(Path::to_str),
            passed("PATH").map(String::as_str),
            &visible,
        ),
    );
    if let Some(shell) = passed("SHELL").filter(|s| !visible(Path::new(s))) {
        set(
            "SHELL",
            if shell.ends_with("bash") {
                "/bin/bash"
            } else {
                "/bin/sh"
            },
        );
    }
    for (name, value) in &policy.env.set {
        set(name, &value.value);
    }
    set("HOME", &home.to_string_lossy());
    let user = etc::user_name(&inputs.user_name);
    set("USER", user);
    set("LOGNAME", user);
    set("TMPDIR", "/tmp");
    set("AGENTD_NAME", &inputs.name);
    set("AGENTD_BUS", ports::BUS_SOCKET);
    if policy.net.mode != NetMode::Host {
        set("AGENTD_MCP_URL", ports::MCP_URL);
    }
    if policy.model.enabled {
        set("ANTHROPIC_BASE_URL", ports::GATEWAY_URL);
        set("ANTHROPIC_API_KEY", ports::PLACEHOLDER_KEY);
        set("OPENAI_BASE_URL", ports::GATEWAY_OPENAI_URL);
        set("OPENAI_API_KEY", ports::PLACEHOLDER_KEY);
    }
    if policy.egress.enabled {
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            set(name, ports::PROXY_URL);
        }
    }
    if policy.ssh.enabled {
        set("SSH_AUTH_SOCK", ports::SSH_AGENT_SOCKET);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set(name, "127.0.0.1,localhost");
    }
    if let Some(trust) = &inputs.trust {
        // What does not read the system's bundle is told where it is, each in its own way.
        for name in TRUST_VARIABLES {
            set(name, &trust.path.to_string_lossy());
        }
        set("NODE_USE_ENV_PROXY", "1");
    }
    match inputs.stdio {
        StdioMode::Pty { .. } => {
            let term = inputs
                .caller_env
                .get("TERM")
                .map_or("xterm-256color", String::as_str);
            set("TERM", term);
        }
        StdioMode::Pipes | StdioMode::Null => set("TERM", "dumb"),
    }
    for (name, value) in &inputs.extra_env {
        set(name, value);
    }
    env
}

/// The program's own folder, the caller's PATH without what the view does not show, then the system's folders.
fn search_path(
    program: Option<&str>,
    caller: Option<&str>,
    visible: &impl Fn(&Path) -> bool,
) -> String {
    let mut out: Vec<&str> = Vec::from_iter(program);
    let own = caller
        .unwrap_or_default()
        .split(':')
        .filter(|p| p.starts_with('/') && visible(Path::new(p)));
    for folder in own.chain(SYSTEM_PATH) {
        if !out.contains(&folder) {
            out.push(folder);
        }
    }
    out.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_keeps_what_is_visible_and_ends_in_the_system() {
        let visible = |p: &Path| p.starts_with("/home/a/.cargo");
        let path = search_path(
            None,
            Some("/home/a/.cargo/bin:/home/a/secret/bin:relative::/usr/bin"),
            &visible,
        );
        assert_eq!(
            path,
            "/home/a/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        );
    }
}
