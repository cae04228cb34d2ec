//! Files of expectations: what a policy has to allow and to deny, for a check that runs whenever either changes.
//!
//! ```toml
//! allow = ["read ${workspace}/src/main.rs", "connect github.com:443"]
//! ask = ["tool Bash(git push)"]
//! deny = ["read ~/.ssh/id_ed25519", "write /usr/bin/git"]
//! ```

use super::question::{Question, Verdict};
use super::{Origin, PolicyDiagnostic, PolicyError, Severity};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One line of such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    pub question: Question,
    pub verdict: Verdict,
    pub origin: Origin,
}

impl Expectation {
    /// Reads a file; `Err` has every mistake in file order.
    pub fn read(file: &str, text: &str) -> Result<Vec<Self>, PolicyError> {
        let mut reader = Reader {
            file,
            text,
            found: Vec::new(),
            mistakes: Vec::new(),
        };
        reader.document();
        if reader.mistakes.is_empty() {
            reader.found.sort_by_key(|e| e.origin.line);
            Ok(reader.found)
        } else {
            reader.mistakes.sort_by_key(|m| m.origin.line);
            Err(PolicyError::Invalid(reader.mistakes))
        }
    }
}

struct Reader<'a> {
    file: &'a str,
    text: &'a str,
    found: Vec<Expectation>,
    mistakes: Vec<PolicyDiagnostic>,
}

impl Reader<'_> {
    fn origin(&self, at: usize) -> Origin {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        let lines = before.iter().filter(|b| **b == b'\n').count() + 1;
        Origin::new(self.file, u32::try_from(lines).unwrap_or(u32::MAX))
    }

    fn mistake(&mut self, at: usize, key: &str, value: &str, problem: String, help: &str) {
        self.mistakes.push(PolicyDiagnostic {
            severity: Severity::Error,
            origin: self.origin(at),
            key: key.to_owned(),
            value: value.to_owned(),
            problem,
            help: help.to_owned(),
        });
    }

    fn document(&mut self) {
        let (root, errors) = DeTable::parse_recoverable(self.text);
        for e in errors {
            let at = e.span().map_or(0, |s| s.start);
            let problem = format!("not valid TOML: {}", e.message().replace('\n', " "));
            self.mistake(at, "", "", problem, "");
        }
        if !self.mistakes.is_empty() {
            return;
        }
        for (name, value) in root.get_ref() {
            let verdict = match name.get_ref().as_ref() {
                "allow" => Verdict::Allow,
                "ask" => Verdict::Ask,
                "deny" => Verdict::Deny,
                other => {
                    const KNOWN: &str = "a file of expectations has the lists allow, ask and deny";
                    let problem = "there is no such key".to_owned();
                    self.mistake(name.span().start, other, "", problem, KNOWN);
                    continue;
                }
            };
            self.list(verdict, name.get_ref(), value);
        }
    }

    fn list(&mut self, verdict: Verdict, key: &str, value: &Spanned<DeValue<'_>>) {
        const FORM: &str = "write [\"read ~/.ssh\", \"connect example.org:443\"]";
        let DeValue::Array(items) = value.get_ref() else {
            let problem = "this is not a list of questions".to_owned();
            return self.mistake(value.span().start, key, "", problem, FORM);
        };
        for item in items {
            let at = item.span().start;
            match item.get_ref() {
                DeValue::String(text) => match text.parse() {
                    Ok(question) => self.found.push(Expectation {
                        question,
                        verdict,
                        origin: self.origin(at),
                    }),
                    Err(problem) => self.mistake(at, key, &format!("{text:?}"), problem, ""),
                },
                _ => self.mistake(at, key, "", "this is not a string".to_owned(), FORM),
            }
        }
    }
}
