//! The policy language: any text, and any two of them as a policy and its ceiling.

use std::path::PathBuf;

use agentd_sandbox::policy::{PolicyError, Question, Verdict};
use agentd_sandbox::{CallerContext, EffectivePolicy, PolicyRef, Sources};

const FILE: &str = "fuzz.toml";
/// Between the two.
const SEPARATOR: char = '\0';

fn ada() -> CallerContext {
    CallerContext {
        home: Some(PathBuf::from("/home/ada")),
        workspace: Some(PathBuf::from("/home/ada/repo")),
        exe: None,
        keep: Vec::new(),
    }
}

/// Loads without any folder of policies: nothing but the text and what is built in.
pub fn load(text: &str) -> Result<EffectivePolicy, PolicyError> {
    let policy = PolicyRef::Text {
        origin: FILE.to_owned(),
        text: text.to_owned(),
    };
    EffectivePolicy::load(&policy, &Sources::default())
}

/// Whatever is written: it loads, always to the same, or each finding names a line of it and what is allowed.
pub fn parser(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (own, ceiling) = text.split_once(SEPARATOR).unwrap_or((text, ""));
    let Some(own) = loaded(own) else { return };
    let Some(ceiling) = loaded(ceiling) else {
        return;
    };
    if own.exceeds(&ada(), &ceiling, &ada()).is_empty() {
        within(&own, &ceiling);
    }
}

fn loaded(text: &str) -> Option<EffectivePolicy> {
    let policy = match load(text) {
        Ok(policy) => policy,
        Err(error) => {
            // How TOML and this crate count may differ for a last line that is empty.
            let lines = text.lines().count() + 1;
            assert!(!error.to_string().is_empty());
            if let PolicyError::Invalid(findings) = &error {
                assert!(!findings.is_empty(), "nothing is said to be wrong");
                for finding in findings {
                    assert_eq!(finding.origin.file, FILE, "{finding}");
                    assert!(finding.origin.line as usize <= lines, "{finding}");
                    assert!(!finding.problem.is_empty());
                }
            }
            return None;
        }
    };
    let again = load(text).expect("it loaded a moment ago");
    assert_eq!(policy.hash(), again.hash());
    assert!(
        policy.exceeds(&ada(), &again, &ada()).is_empty(),
        "it exceeds itself"
    );
    assert!(!policy.show().is_empty());
    policy.lint();
    for wanted in policy.wanted_grants(&ada()) {
        assert!(
            wanted.src.is_absolute() && wanted.dst.is_absolute(),
            "{wanted:?}"
        );
    }
    Some(policy)
}

/// What stays within a ceiling is allowed nothing that the ceiling doesn't allow.
fn within(own: &EffectivePolicy, ceiling: &EffectivePolicy) {
    let verdict = |policy: &EffectivePolicy, kind: &str, about: &str| {
        let question = Question::new(kind, about).expect("a question");
        policy.answer(&question, &ada()).verdict
    };
    for place in [
        "/usr/bin",
        "/srv/a",
        "~/.ssh/id",
        "${workspace}",
        "${workspace}/.git/hooks/x",
    ] {
        for kind in ["read", "write", "exec"] {
            // What is not shown is a place of the sandbox's own.
            if verdict(own, "read", place) != Verdict::Deny
                && verdict(own, kind, place) == Verdict::Allow
            {
                let above = verdict(ceiling, kind, place);
                assert_eq!(above, Verdict::Allow, "{kind} {place}");
            }
        }
    }
    for (kind, about) in [
        ("connect", "github.com:443"),
        ("connect", "a.example:22"),
        ("send", "a.b"),
    ] {
        if verdict(own, kind, about) == Verdict::Allow {
            assert_eq!(
                verdict(ceiling, kind, about),
                Verdict::Allow,
                "{kind} {about}"
            );
        }
    }
}
