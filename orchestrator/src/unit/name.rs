//! Names of units: `coder`, the template `coder@`, its instance `coder@api`.

use std::fmt;

/// Longest name with its instance: room is left for the number of a pool's member in an agent's name.
const MAX: usize = 56;

/// A checked name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName {
    text: String,
    /// Where the `@` is.
    at: Option<usize>,
}

/// The text cannot name a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a unit; allowed are letters, digits, - and _, beginning with a letter or digit, \
     with one @ before an instance (coder@api), at most {MAX} bytes"
)]
pub struct NameError(pub String);

impl UnitName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NameError`] says what a name may have.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let word = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let (prefix, instance) = match text.split_once('@') {
            Some((prefix, instance)) => (prefix, Some(instance)),
            None => (text, None),
        };
        let fits = text.len() <= MAX
            && prefix.starts_with(|c: char| c.is_ascii_alphanumeric())
            && word(prefix)
            && instance.is_none_or(word);
        if !fits {
            return Err(NameError(text.to_owned()));
        }
        Ok(Self {
            text: text.to_owned(),
            at: text.find('@'),
        })
    }

    /// The whole name.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the `@`, or the whole name.
    pub fn prefix(&self) -> &str {
        self.at.map_or(&self.text, |at| &self.text[..at])
    }

    /// What stands behind the `@`; nothing for a template itself.
    pub fn instance(&self) -> Option<&str> {
        self.at
            .map(|at| &self.text[at + 1..])
            .filter(|i| !i.is_empty())
    }

    /// Whether this is a template, which cannot be started itself.
    pub fn is_template(&self) -> bool {
        self.at.is_some_and(|at| at + 1 == self.text.len())
    }

    /// Whether there is an `@` in it: a template, or an instance of one.
    pub(super) fn at_sign(&self) -> bool {
        self.at.is_some()
    }

    /// The template of an instance.
    pub fn template(&self) -> Option<Self> {
        self.instance()?;
        let at = self.at?;
        Some(Self {
            text: self.text[..=at].to_owned(),
            at: Some(at),
        })
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_and_instances_are_told_apart() {
        let plain = UnitName::parse("coder").unwrap();
        assert!(!plain.is_template() && plain.instance().is_none() && plain.template().is_none());
        let template = UnitName::parse("coder@").unwrap();
        assert!(template.is_template() && template.instance().is_none());
        let instance = UnitName::parse("coder@api").unwrap();
        assert_eq!(instance.instance(), Some("api"));
        assert_eq!(instance.prefix(), "coder");
        assert_eq!(instance.template(), Some(template));
    }

    #[test]
    fn what_could_leave_a_directory_or_a_host_name_is_refused() {
        for name in [
            "",
            "@x",
            "-x",
            "a/b",
            "../a",
            "a.b",
            "a@b@c",
            "ä",
            "a b",
            &"x".repeat(57),
        ] {
            let error = UnitName::parse(name).unwrap_err().to_string();
            assert!(error.contains("letters, digits"), "{name}: {error}");
        }
    }
}
