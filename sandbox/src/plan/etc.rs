//! The `/etc` files that are made, not shared: they name the agent and nobody else.

use super::LaunchInputs;
use crate::policy::NetMode;
use crate::runtime::RuntimeKind;
use std::path::Path;

/// (path, content), all mode 0644.
pub(crate) fn files(
    inputs: &LaunchInputs,
    home: &Path,
    net: NetMode,
    runtime: RuntimeKind,
) -> Vec<(&'static str, Vec<u8>)> {
    let (uid, gid) = runtime.runtime().ids(inputs);
    let user = user_name(&inputs.user_name);
    let host = host_name(&inputs.name);
    let home = home.display();
    // Under gVisor the agent's own id is 0, and files of the host's root are nobody's.
    let (root, root_group) = match uid {
        0 => ("", ""),
        _ => (
            "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n",
            "root:x:0:\n",
        ),
    };
    // Names are resolved outside, by the proxy: nothing inside could answer. In the host's network programs ask for themselves.
    let (hosts, resolver) = match (net, &inputs.resolver) {
        (NetMode::Host, Some(resolver)) => ("files dns", resolver.clone()),
        _ => (
            "files",
            b"# names are resolved outside, by the proxy at 127.0.0.1:3128\n".to_vec(),
        ),
    };
    let made = [
        (
            "/etc/passwd",
            format!(
                "{root}\
                 {user}:x:{uid}:{gid}:{user}:{home}:/bin/bash\n\
                 nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        (
            "/etc/group",
            format!("{root_group}{user}:x:{gid}:\nnogroup:x:65534:\n"),
        ),
        (
            "/etc/hosts",
            format!("127.0.0.1 localhost {host}\n::1 localhost\n"),
        ),
        ("/etc/hostname", format!("{host}\n")),
        (
            "/etc/nsswitch.conf",
            format!(
                "passwd: files\ngroup: files\nshadow: files\nhosts: {hosts}\nservices: files\nprotocols: files\n"
            ),
        ),
        ("/etc/shells", "/bin/sh\n/bin/bash\n".into()),
        // What dpkg-based tools look for before they ask for a terminal.
        ("/etc/machine-id", machine_id(&inputs.name)),
    ];
    let made = made
        .into_iter()
        .map(|(path, text)| (path, text.into_bytes()));
    made.chain([("/etc/resolv.conf", resolver)]).collect()
}

/// A stable id of the agent's name, so that nothing of the host's shows.
fn machine_id(name: &str) -> String {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest(format!("agentd machine id {name}"))
        .iter()
        .take(16)
        .map(|b| format!("{b:02x}"))
        .collect();
    hex + "\n"
}

/// The caller's name if it is a plain one, else `agent`.
pub(crate) fn user_name(name: &str) -> &str {
    let ok = !name.is_empty()
        && name.len() <= 32
        && name != "root"
        && name != "nobody"
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.".contains(&b));
    if ok { name } else { "agent" }
}

/// The agent's name as a host name: other characters become `-`.
pub(crate) fn host_name(name: &str) -> String {
    let plain: String = name
        .chars()
        .take(63)
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' {
                c
            } else {
                '-'
            }
        })
        .collect();
    let plain = plain.trim_matches('-');
    if plain.is_empty() {
        "agent".into()
    } else {
        plain.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_valid_ones() {
        assert_eq!(host_name("my agent_1"), "my-agent-1");
        assert_eq!(host_name("--"), "agent");
        assert_eq!(user_name("alice"), "alice");
        for odd in ["root", "a:b", "", "Alice", "x\n"] {
            assert_eq!(user_name(odd), "agent");
        }
    }
}
