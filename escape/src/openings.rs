//! Which line of a policy opens a case, from the effective policy as `agentctl policy show --json` prints it.
//!
//! Pure. Reads its `shown`, one object per value with key, value as written, file and line. An escape that a policy opens
//! is not a hole of the sandbox; it is named together with the line.

use serde_json::Value;

use crate::case::Opening;

/// In user mode some properties can't be had, and the policy's `degrade` says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Root,
    User,
}

/// `file:line: key = value` of what opens it.
pub fn opened_by(opening: Opening, policy: &Value, mode: Mode) -> Option<String> {
    match opening {
        Opening::Never => None,
        Opening::Has(key, wanted) | Opening::Is(key, wanted) => values(policy, key)
            .find(|(value, _)| *value == wanted)
            .map(|(value, entry)| told(entry, key, value)),
        Opening::LetGo(property) => {
            let line = Opening::Has("degrade.allow", property);
            on_own_kernel(policy).then(|| opened_by(line, policy, mode))?
        }
        Opening::Above(key, amount, property) => {
            above(policy, key, amount).or_else(|| match mode {
                Mode::Root => None,
                Mode::User => {
                    let degrade = Opening::Any(&DEGRADE);
                    let own = Opening::Has("degrade.allow", property);
                    opened_by(own, policy, mode).or_else(|| {
                        DEGRADED
                            .contains(&property)
                            .then(|| opened_by(degrade, policy, mode))?
                    })
                }
            })
        }
        Opening::Any(openings) => openings
            .iter()
            .find_map(|opening| opened_by(*opening, policy, mode)),
    }
}

/// Whether the policy has programs run on a kernel in user space instead of the host's.
pub fn on_own_kernel(policy: &Value) -> bool {
    values(policy, "runtime.kind")
        .last()
        .is_some_and(|(kind, _)| kind == "gvisor")
}

/// What `cgroup-limits` stands for.
const DEGRADED: [&str; 3] = ["memory-limit", "cpu-limit", "process-limit"];
const DEGRADE: [Opening; 1] = [Opening::Has("degrade.allow", "cgroup-limits")];

fn above(policy: &Value, key: &str, amount: u64) -> Option<String> {
    let Some((value, entry)) = values(policy, key).last() else {
        // The absence has no line: the key itself is named.
        return Some(format!("no line sets {key}"));
    };
    match amount_of(value) {
        Some(limit) if limit < amount => None,
        _ => Some(told(entry, key, value)),
    }
}

/// What the policy says under this key, without the quotes of TOML.
fn values<'a>(policy: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let shown = policy["shown"].as_array().map_or(&[][..], Vec::as_slice);
    shown
        .iter()
        .filter(move |entry| entry["key"] == key)
        .filter_map(|entry| Some((entry["value"].as_str()?.trim_matches('"'), entry)))
}

/// `8GiB`, `200%` or `512`; nothing for no limit.
fn amount_of(value: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("%", 1),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
    ];
    let digits = value
        .find(|letter: char| !letter.is_ascii_digit() && letter != '_')
        .unwrap_or(value.len());
    let number: u64 = value[..digits].replace('_', "").parse().ok()?;
    let (_, unit) = UNITS
        .iter()
        .find(|(name, _)| *name == value[digits..].trim())?;
    number.checked_mul(*unit)
}

fn told(entry: &Value, key: &str, value: &str) -> String {
    match (
        entry["origin"]["file"].as_str(),
        entry["origin"]["line"].as_u64(),
    ) {
        (Some(file), Some(line)) => format!("{file}:{line}: {key} = {value}"),
        _ => format!("{key} = {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy() -> Value {
        let entry = |key: &str, value: &str, line: u64| json!({"key": key, "value": value, "origin": {"file": "coding (built in)", "line": line}});
        json!({"shown": [
            entry("syscalls.allow", "\"ipc\"", 84),
            entry("exec.write_exec", "true", 7),
            entry("limits.memory", "\"8GiB\"", 70),
            entry("degrade.allow", "\"cgroup-limits\"", 91),
        ]})
    }

    #[test]
    fn an_opening_names_file_and_line() {
        let opened = |opening| opened_by(opening, &policy(), Mode::Root);
        assert_eq!(
            opened(Opening::Has("syscalls.allow", "ipc")).as_deref(),
            Some("coding (built in):84: syscalls.allow = ipc")
        );
        assert_eq!(opened(Opening::Has("syscalls.allow", "debug")), None);
        assert_eq!(
            opened(Opening::Is("exec.write_exec", "true")).as_deref(),
            Some("coding (built in):7: exec.write_exec = true")
        );
        assert_eq!(opened(Opening::Is("exec.memfd", "any")), None);
    }

    #[test]
    fn a_limit_opens_what_stays_below_it() {
        let above = |amount| Opening::Above("limits.memory", amount, "memory-limit");
        let opened = |amount, mode| opened_by(above(amount), &policy(), mode);
        assert!(opened(3 << 30, Mode::Root).is_some());
        assert_eq!(opened(16 << 30, Mode::Root), None);
        assert!(opened(16 << 30, Mode::User).is_some_and(|line| line.contains(":91:")));
    }

    #[test]
    fn a_property_is_let_go_only_where_another_kernel_does_not_hold_it() {
        let opened =
            |policy: &Value| opened_by(Opening::LetGo("cgroup-limits"), policy, Mode::Root);
        let mut policy = policy();
        assert_eq!(opened(&policy), None);
        let kind = json!({"key": "runtime.kind", "value": "\"gvisor\"", "origin": {}});
        policy["shown"].as_array_mut().expect("a list").push(kind);
        assert!(opened(&policy).is_some_and(|line| line.contains(":91:")));
        assert_eq!(
            opened_by(Opening::LetGo("disk-limit"), &policy, Mode::Root),
            None
        );
    }

    #[test]
    fn amounts_are_read_as_policies_write_them() {
        assert_eq!(amount_of("8GiB"), Some(8 << 30));
        assert_eq!(amount_of("20_000_000"), Some(20_000_000));
        assert_eq!(amount_of("400%"), Some(400));
        assert_eq!(amount_of("none"), None);
    }
}
