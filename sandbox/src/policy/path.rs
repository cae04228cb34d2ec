//! Paths in a policy: absolute, below the caller's HOME (`~`), or below the workspace (`${workspace}`).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a path in a policy starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PathBase {
    Root,
    /// The HOME of the user who launches. Paths keep their place: `~/x` is the same path inside and outside.
    Home,
    Workspace,
}

/// A checked path: no `..`, no empty or `.` component, no wildcard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String")]
pub struct PathTemplate {
    pub base: PathBase,
    /// Below the base, without a leading slash; empty for the base itself.
    pub rest: String,
    /// Written with a last slash: what it names is a folder, also where it does not exist yet.
    pub folder: bool,
}

impl PathTemplate {
    /// `Err` is (what is wrong, what is allowed).
    pub fn parse(text: &str) -> Result<Self, (String, String)> {
        const FORMS: &str = "a path is absolute (/usr), below the caller's HOME (~/.cargo) or below the workspace (${workspace}/.git/hooks)";
        let fail = |what: &str| Err((what.to_owned(), FORMS.to_owned()));
        let (base, rest) = if let Some(rest) = text.strip_prefix("${workspace}") {
            (PathBase::Workspace, rest)
        } else if let Some(rest) = text.strip_prefix('~') {
            (PathBase::Home, rest)
        } else if text.starts_with('/') {
            (PathBase::Root, text)
        } else if text.starts_with("${") {
            return fail("the only variable is ${workspace}");
        } else {
            return fail("the path is relative");
        };
        let rest = match rest.strip_prefix('/') {
            Some(r) => r,
            None if rest.is_empty() => rest,
            None => return fail("a slash must follow"),
        };
        let (rest, folder) = match rest.strip_suffix('/') {
            Some(r) => (r, true),
            None => (rest, false),
        };
        if text.len() > 4000 {
            return fail("the path is longer than 4000 bytes");
        }
        if !rest.is_empty() {
            for part in rest.split('/') {
                match part {
                    "" => return fail("the path has an empty component"),
                    "." | ".." => return fail("the path has a . or .. component"),
                    p if p.len() > 255 => return fail("a component is longer than 255 bytes"),
                    p if p.chars().any(|c| c.is_control()) => {
                        return fail("the path has a control character");
                    }
                    p if p.contains(['*', '?', '[']) => {
                        return Err((
                            "the path has a wildcard".into(),
                            "file rules name files and folders; a folder covers everything below it".into(),
                        ));
                    }
                    _ => {}
                }
            }
        }
        Ok(Self {
            base,
            rest: rest.to_owned(),
            folder,
        })
    }

    /// The absolute path, or `None` when the launch has no HOME or no workspace for it to start from.
    pub fn resolve(&self, home: Option<&Path>, workspace: Option<&Path>) -> Option<PathBuf> {
        let base = match self.base {
            PathBase::Root => Path::new("/"),
            PathBase::Home => home?,
            PathBase::Workspace => workspace?,
        };
        Some(if self.rest.is_empty() {
            base.to_owned()
        } else {
            base.join(&self.rest)
        })
    }
}

impl fmt::Display for PathTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = match self.base {
            PathBase::Root => "",
            PathBase::Home => "~",
            PathBase::Workspace => "${workspace}",
        };
        match (base, self.rest.as_str()) {
            ("", "") => f.write_str("/"),
            (base, "") => f.write_str(base),
            (base, rest) => {
                let slash = if self.folder { "/" } else { "" };
                write!(f, "{base}/{rest}{slash}")
            }
        }
    }
}

impl From<PathTemplate> for String {
    fn from(path: PathTemplate) -> Self {
        path.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_bases_resolve() {
        let at = |t: &str| {
            PathTemplate::parse(t)
                .unwrap()
                .resolve(Some(Path::new("/home/a")), Some(Path::new("/home/a/w")))
        };
        assert_eq!(at("/usr/"), Some("/usr".into()));
        assert_eq!(at("~"), Some("/home/a".into()));
        assert_eq!(at("~/.cargo"), Some("/home/a/.cargo".into()));
        assert_eq!(
            at("${workspace}/.git/hooks"),
            Some("/home/a/w/.git/hooks".into())
        );
        assert_eq!(PathTemplate::parse("~").unwrap().resolve(None, None), None);
    }

    #[test]
    fn a_path_is_shown_as_written() {
        for text in [
            "/",
            "/usr/lib",
            "~",
            "~/.cargo",
            "${workspace}",
            "${workspace}/x",
            "${workspace}/x/",
        ] {
            assert_eq!(PathTemplate::parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn paths_that_could_lead_elsewhere_are_refused() {
        for text in [
            "",
            "usr",
            "~bob/x",
            "/a/../b",
            "/a//b",
            "/a/./b",
            "${home}/x",
            "${workspace}x",
            "/a/*",
            "/a\0b",
        ] {
            assert!(PathTemplate::parse(text).is_err(), "{text:?}");
        }
    }
}
