//! Lines that load but may not do what they seem to, each with the reason.

use super::path::{PathBase, PathTemplate};
use super::{EffectivePolicy, NetMode, Origin, PolicyDiagnostic, Severity, ShownValue, Valued};
use crate::rules::egress::{EgressRule, HostPattern};
use crate::rules::tools::ToolRule;
use std::path::Path;

impl EffectivePolicy {
    /// Warnings in no order of importance; an empty list is a clean policy.
    pub fn lint(&self) -> Vec<PolicyDiagnostic> {
        let mut out = Vec::new();
        self.lint_files(&mut out);
        self.lint_host_objects(&mut out);
        self.lint_network(&mut out);
        self.lint_rest(&mut out);
        out
    }

    fn lint_files(&self, out: &mut Vec<PolicyDiagnostic>) {
        let fs = &self.fs;
        for entry in fs.read.iter().chain(&fs.write) {
            if entry.value.base == PathBase::Root && entry.value.rest.is_empty() {
                out.push(warn(
                    &entry.origin,
                    "fs.read",
                    &entry.value,
                    "this shows the whole host to the agent",
                    "name the folders it needs",
                ));
            }
            if let Some(secret) = secret_in(&entry.value) {
                out.push(warn(
                    &entry.origin,
                    "fs.read",
                    &entry.value,
                    &format!("this shows {secret} to the agent"),
                    "grant the one file or folder that is needed, or add it to fs.deny",
                ));
            }
        }
        for entry in &fs.write {
            if covers_any(&fs.exec, &entry.value)
                && entry.value.base != PathBase::Workspace
                && !is_private(&entry.value)
            {
                out.push(warn(
                    &entry.origin,
                    "fs.write",
                    &entry.value,
                    "programs here can be replaced by the agent and are run by you later",
                    "keep folders with programs read-only",
                ));
            }
            if crate::plan::is_system_path(&as_path(&entry.value)) {
                out.push(warn(
                    &entry.origin,
                    "fs.write",
                    &entry.value,
                    "system folders are always mounted read-only, so this only makes it readable",
                    "move it to fs.read",
                ));
            }
        }
        for entry in &fs.exec {
            if !self.is_shown(&entry.value) && !is_private(&entry.value) {
                out.push(warn(
                    &entry.origin,
                    "fs.exec",
                    &entry.value,
                    "nothing is visible there, so nothing can be executed",
                    "add it to fs.read",
                ));
            }
        }
        // Not those that came from [tools]: there they are no news to the driver.
        let written = |key: &str, line: &Valued<PathTemplate>| {
            let same = |s: &ShownValue| s.key == key && s.origin == line.origin;
            self.shown.iter().any(same)
        };
        for entry in fs.deny.iter().filter(|e| written("fs.deny", e)) {
            if !self.is_shown(&entry.value) {
                out.push(warn(
                    &entry.origin,
                    "fs.deny",
                    &entry.value,
                    "it is not visible anyway",
                    "deny hides something inside what is allowed; this line can go",
                ));
            }
        }
    }

    fn is_shown(&self, path: &PathTemplate) -> bool {
        let fs = &self.fs;
        [&fs.read, &fs.write, &fs.scratch]
            .iter()
            .any(|list| covers_any(list, path))
    }

    /// What is handed over of the host beside files, and what is taken away again inside files.
    fn lint_host_objects(&self, out: &mut Vec<PolicyDiagnostic>) {
        let fs = &self.fs;
        let written = |key: &str, line: &Valued<PathTemplate>| {
            let same = |s: &ShownValue| s.key == key && s.origin == line.origin;
            self.shown.iter().any(same)
        };
        for entry in &fs.copy {
            if entry.value.folder {
                out.push(warn(
                    &entry.origin,
                    "fs.copy",
                    &entry.value,
                    "only files are copied",
                    "leave the last / out; for a folder whose changes vanish see fs.scratch",
                ));
            }
            if covers_any(&fs.protect, &entry.value) {
                out.push(warn(
                    &entry.origin,
                    "fs.copy",
                    &entry.value,
                    "fs.protect covers it as well, so there is no copy",
                    "say which of the two is meant: a copy to change, or nothing to change",
                ));
            }
        }
        let kept = [("fs.protect", &fs.protect), ("fs.copy", &fs.copy)];
        let kept = kept
            .into_iter()
            .flat_map(|(key, list)| list.iter().map(move |e| (key, e)));
        for (key, entry) in kept.filter(|(key, entry)| written(key, entry)) {
            // A workspace that nobody may write yet is protected for the policies that extend this one.
            let for_later = entry.value.base == PathBase::Workspace
                && !fs.write.iter().any(|w| w.value.base == PathBase::Workspace);
            if !for_later && !covers_any(&fs.write, &entry.value) {
                out.push(warn(
                    &entry.origin,
                    key,
                    &entry.value,
                    "it is not inside fs.write, so it can't be changed anyway and is not shown either",
                    "it takes away inside what is writable; to show it, add it to fs.read",
                ));
            }
        }
        for entry in &fs.scratch {
            if covers_any(&fs.write, &entry.value) {
                out.push(warn(
                    &entry.origin,
                    "fs.scratch",
                    &entry.value,
                    "fs.write covers it as well",
                    "say which of the two is meant: changes that stay, or changes that vanish",
                ));
            }
        }
        for (list, key) in [
            (&self.sockets, "ipc.sockets"),
            (&self.devices, "devices.allow"),
        ] {
            for entry in list {
                let path = as_path(&entry.value);
                let known = WAYS_OUT.iter().find(|(place, _)| path.starts_with(place));
                if let Some((_, what)) = known {
                    out.push(warn(
                        &entry.origin,
                        key,
                        &entry.value,
                        &format!("this hands over {what}: no other line of the policy holds then"),
                        "leave it out, or name it only for programs that you trust as yourself",
                    ));
                }
            }
        }
        for (name, line) in &self.secrets {
            let key = format!("secrets.files.{name}");
            if self.is_shown(&line.value) && !covers_any(&fs.deny, &line.value) {
                out.push(warn(
                    &line.origin,
                    &key,
                    &line.value,
                    "the agent sees the file in its own place as well, and may be able to change it there",
                    "add it to fs.deny, or keep it elsewhere",
                ));
            }
        }
        if self.net.mode == NetMode::Host && self.model.enabled {
            out.push(warn(
                &self.origin_of("model.access"),
                "model.access",
                &"gateway",
                "the gateway is not offered in the host's network, so the launch is refused",
                "set model.access = \"none\", or net.mode = \"proxy\"",
            ));
        }
        if self.net.mode == NetMode::Host {
            out.push(warn(
                &self.origin_of("net.mode"),
                "net.mode",
                &"host",
                "what listens on the host's loopback, its neighbours and every address can be reached; nothing is metered, filtered or revoked, and there is no gateway and no MCP over HTTP",
                "set net.mode = \"proxy\" and name the hosts that are needed",
            ));
        }
    }

    fn lint_network(&self, out: &mut Vec<PolicyDiagnostic>) {
        let (problem, remedy) = match self.net.mode {
            NetMode::Host => (
                "in the host's network no rule of ours applies",
                "set net.mode = \"proxy\", or take the line out",
            ),
            _ => (
                "there is no network, so no rule applies",
                "set net.mode = \"proxy\"",
            ),
        };
        if !self.egress.enabled
            && let Some(rule) = self.egress.rules.first().or(self.egress.ask.first())
        {
            out.push(warn(&rule.origin, "net.allow", &rule.text, problem, remedy));
        }
        if !self.egress.enabled && !self.egress.credentials.is_empty() {
            let origin = self.origin_of("net.credentials");
            out.push(warn(
                &origin,
                "net.credentials",
                &self.egress.credentials.join(", "),
                "there is no network, so no credential is used",
                "set net.mode = \"proxy\" and allow the credential's host",
            ));
        }
        for rule in &self.egress.ask {
            let allowed = |a: &&EgressRule| a.host == rule.host && a.port == rule.port;
            if let Some(allow) = self.egress.rules.iter().find(allowed) {
                out.push(warn(
                    &allow.origin,
                    "net.allow",
                    &allow.text,
                    "a question is asked for it, and ask wins over allow",
                    "remove one of the two",
                ));
            }
        }
        if self.egress.enabled && self.egress.rules.is_empty() && self.egress.ask.is_empty() {
            let origin = self.origin_of("net.mode");
            out.push(warn(
                &origin,
                "net.mode",
                &"proxy",
                "the proxy refuses everything without rules",
                "add hosts to net.allow",
            ));
        }
        for rule in &self.egress.rules {
            if rule.host == HostPattern::Any {
                let problem = if rule.private {
                    "every host, those of private networks included, can be reached"
                } else {
                    "every public host can be reached, so data can go anywhere"
                };
                out.push(warn(
                    &rule.origin,
                    "net.allow",
                    &rule.text,
                    problem,
                    "name the hosts that are needed",
                ));
            }
            if let HostPattern::Below(name) = &rule.host
                && (!name.contains('.') || SHARED_HOSTING.contains(&name.as_str()))
            {
                out.push(warn(
                    &rule.origin,
                    "net.allow",
                    &rule.text,
                    "anybody can get a name below this one",
                    "name the host itself",
                ));
            }
        }
    }

    fn lint_rest(&self, out: &mut Vec<PolicyDiagnostic>) {
        for name in self.env.pass.iter().filter(|n| looks_secret(&n.value)) {
            out.push(warn(
                &name.origin,
                "env.pass",
                &name.value,
                "this hands a secret, or a way to run code, to the agent",
                "model keys stay with the gateway; name variables one by one",
            ));
        }
        let limits = &self.limits;
        if self.model.enabled && limits.tokens.is_none() && limits.cost_micro_usd.is_none() {
            let origin = self.origin_of("model.access");
            out.push(warn(
                &origin,
                "limits.tokens",
                &"",
                "there is no ceiling on what the agent spends",
                "set limits.tokens or limits.cost",
            ));
        }
        if !self.model.enabled && limits.cost_micro_usd.is_some() {
            out.push(warn(
                &self.origin_of("limits.cost"),
                "limits.cost",
                &"",
                "there is no model, and nothing else is counted in dollars",
                "set model.access = \"gateway\", or take the line out",
            ));
        }
        if self.limits.memory_bytes.is_none() {
            out.push(warn(
                &self.origin_of("limits.memory"),
                "limits.memory",
                &"",
                "the agent can use all of the host's memory",
                "set limits.memory",
            ));
        }
        if self.ssh.enabled && self.ssh.keys.is_empty() && !self.ssh.ask {
            out.push(warn(
                &self.origin_of("ssh.agent"),
                "ssh.agent",
                &"forward",
                "the agent may sign with every key of your ssh-agent, for any host",
                "name keys under ssh.keys, or set ssh.sign = \"ask\"",
            ));
        }
        let beaten = |list: &[ToolRule], rule: &ToolRule| {
            list.iter()
                .any(|d| d.tool == rule.tool && (d.pattern.is_none() || d.pattern == rule.pattern))
        };
        let tools = &self.tools;
        for (key, rules, stronger, problem) in [
            (
                "tools.allow",
                &tools.allow,
                &tools.deny,
                "a deny rule covers it, and deny wins",
            ),
            (
                "tools.ask",
                &tools.ask,
                &tools.deny,
                "a deny rule covers it, and deny wins",
            ),
            (
                "tools.allow",
                &tools.allow,
                &tools.ask,
                "a question is asked for it, and ask wins over allow",
            ),
        ] {
            for rule in rules.iter().filter(|r| beaten(stronger, r)) {
                out.push(warn(
                    &rule.origin,
                    key,
                    &rule.text,
                    problem,
                    "remove one of the two",
                ));
            }
        }
    }
}

/// Sockets and devices through which everything is to be had.
const WAYS_OUT: &[(&str, &str)] = &[
    ("/run/docker.sock", "a container engine"),
    ("/var/run/docker.sock", "a container engine"),
    ("/run/podman", "a container engine"),
    ("/run/containerd", "a container engine"),
    ("/run/dbus", "the system bus"),
    ("/run/systemd", "the service manager"),
    ("/run/agentd", "agentd itself"),
    ("/dev/mem", "the host's memory"),
    ("/dev/kmem", "the host's memory"),
    ("/dev/port", "the host's I/O ports"),
    ("/dev/kmsg", "the kernel's log"),
    ("/dev/cpu", "model-specific registers"),
    ("/dev/input", "keyboards and mice"),
    ("/dev/uinput", "keyboards and mice"),
    (
        "/dev/vhost-vsock",
        "sockets that leave the network namespace",
    ),
    ("/dev/fuse", "file systems made by programs"),
    ("/dev/net/tun", "network interfaces"),
];

/// Domains under which strangers get names.
const SHARED_HOSTING: &[&str] = &[
    "amazonaws.com",
    "appspot.com",
    "azurewebsites.net",
    "blob.core.windows.net",
    "cloudfront.net",
    "co.uk",
    "duckdns.org",
    "github.io",
    "gitlab.io",
    "herokuapp.com",
    "netlify.app",
    "ngrok.io",
    "pages.dev",
    "s3.amazonaws.com",
    "vercel.app",
    "web.app",
    "workers.dev",
];

fn warn(
    origin: &Origin,
    key: &str,
    value: &dyn std::fmt::Display,
    problem: &str,
    help: &str,
) -> PolicyDiagnostic {
    PolicyDiagnostic {
        severity: Severity::Warning,
        origin: origin.clone(),
        key: key.into(),
        value: value.to_string(),
        problem: problem.into(),
        help: help.into(),
    }
}

fn as_path(path: &PathTemplate) -> std::path::PathBuf {
    Path::new(match path.base {
        PathBase::Root => "/",
        PathBase::Home => "/~",
        PathBase::Workspace => "/${workspace}",
    })
    .join(&path.rest)
}

fn covers_any(list: &[Valued<PathTemplate>], path: &PathTemplate) -> bool {
    list.iter()
        .any(|e| as_path(path).starts_with(as_path(&e.value)))
}

/// Places that are the sandbox's own and hold nothing of the host.
fn is_private(path: &PathTemplate) -> bool {
    (path.base == PathBase::Home && path.rest.is_empty())
        || crate::plan::is_private_path(&as_path(path))
}

/// The well-known secret that a path would show, if any.
fn secret_in(path: &PathTemplate) -> Option<&'static str> {
    const SECRETS: [(&str, &str); 9] = [
        (".ssh", "SSH keys"),
        (".aws", "cloud credentials"),
        (".gnupg", "private keys"),
        (".kube", "cluster credentials"),
        (".config/gcloud", "cloud credentials"),
        (".docker", "registry credentials"),
        (".netrc", "passwords"),
        (".git-credentials", "passwords"),
        (".claude", "model credentials"),
    ];
    if path.base != PathBase::Home {
        return None;
    }
    SECRETS
        .iter()
        .find(|(place, _)| {
            Path::new(&path.rest).starts_with(place)
                || (!path.rest.is_empty() && Path::new(place).starts_with(&path.rest))
        })
        .map(|(_, what)| *what)
}

fn looks_secret(name: &str) -> bool {
    const WORDS: [&str; 6] = ["KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL"];
    const CODE: [&str; 8] = [
        "LD_",
        "NODE_OPTIONS",
        "BASH_ENV",
        "PYTHONSTARTUP",
        "GIT_SSH",
        "PERL5OPT",
        "RUBYOPT",
        "SSH_AUTH_SOCK",
    ];
    name == "*"
        || WORDS.iter().any(|w| name.contains(w))
        || CODE.iter().any(|c| name.starts_with(c))
}
