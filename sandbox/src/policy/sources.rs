//! Where policies come from: the ones built in, folders of the operator, and text handed over by a caller.
//!
//! The only part of the crate that reads files. A name never leads outside the folders: it is one component of
//! letters, digits, `-` and `_`. A file that others than root and ourselves could have written is refused (`trust.rs`).

use super::layer::{self, Layer};
use super::{PolicyDiagnostic, PolicyError, Severity, settings, suggest, trust};
use std::io::ErrorKind;
use std::path::PathBuf;

/// The policies that are always there.
const BUILT_IN: [(&str, &str); 7] = [
    ("base", include_str!("../../../policy/base.toml")),
    ("toolchain", include_str!("../../../policy/toolchain.toml")),
    ("coding", include_str!("../../../policy/coding.toml")),
    ("review", include_str!("../../../policy/review.toml")),
    ("build", include_str!("../../../policy/build.toml")),
    (
        "python-task",
        include_str!("../../../policy/python-task.toml"),
    ),
    ("strict", include_str!("../../../policy/strict.toml")),
];

/// More than this is a mistake, if not a cycle.
const MAX_CHAIN: usize = 8;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyRef {
    /// A name such as `coding`, looked up in the folders of [`Sources`] and then among the built-in ones.
    Name(String),
    /// Text the caller has read, and the name to report it under (usually the file's path).
    Text { origin: String, text: String },
}

/// Where names are looked up.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Folders with `NAME.toml` files, the first one that has a name wins. Normally `/etc/agentd/policy`.
    pub folders: Vec<PathBuf>,
    /// `key=value` settings of one launch (`--set limits.memory=2GiB`), laid over the policy last.
    pub settings: Vec<(String, String)>,
}

/// The files a policy is made of, the most basic first.
pub(crate) struct Chain {
    pub name: String,
    /// (name of the file, what it says)
    pub layers: Vec<(String, Layer)>,
}

impl Sources {
    /// The names that [`PolicyRef::Name`] finds.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = BUILT_IN.iter().map(|(n, _)| (*n).to_owned()).collect();
        for folder in &self.folders {
            let Ok(entries) = std::fs::read_dir(folder) else {
                continue;
            };
            names.extend(entries.flatten().filter_map(|e| {
                let file = e.file_name().into_string().ok()?;
                file.strip_suffix(".toml")
                    .filter(|n| is_name(n))
                    .map(str::to_owned)
            }));
        }
        names.sort();
        names.dedup();
        names
    }

    pub(crate) fn chain(&self, policy: &PolicyRef) -> Result<Chain, PolicyError> {
        let mut seen: Vec<String> = Vec::new();
        let mut layers = Vec::new();
        let (name, mut file, mut text) = match policy {
            PolicyRef::Name(name) => {
                let (file, text) = self.find(name)?;
                seen.push(name.clone());
                (name.clone(), file, text)
            }
            PolicyRef::Text { origin, text } => {
                let stem = origin.rsplit('/').next().unwrap_or(origin);
                (
                    stem.strip_suffix(".toml").unwrap_or(stem).to_owned(),
                    origin.clone(),
                    text.clone(),
                )
            }
        };
        let mut findings = Vec::new();
        loop {
            let layer = match layer::read(&file, &text) {
                Ok(layer) => layer,
                Err(list) => {
                    // What a broken file extends can't be trusted to be what was meant.
                    findings.extend(list);
                    break;
                }
            };
            let parent = layer
                .single("", "extends")
                .map(|v| (v.value.clone(), v.origin.clone()));
            layers.push((file, layer));
            let Some((scalar, origin)) = parent else {
                break;
            };
            let super::value::Scalar::Text(parent) = scalar else {
                break;
            };
            if seen.contains(&parent) || seen.len() >= MAX_CHAIN {
                seen.push(parent);
                return Err(PolicyError::ExtendsCycle { name, chain: seen });
            }
            (file, text) = match self.find(&parent) {
                Ok(found) => found,
                Err(e @ PolicyError::NotFound { .. }) => {
                    findings.push(PolicyDiagnostic {
                        severity: Severity::Error,
                        origin,
                        key: "extends".into(),
                        value: format!("{parent:?}"),
                        problem: e.to_string(),
                        help: String::new(),
                    });
                    break;
                }
                Err(e) => return Err(e),
            };
            seen.push(parent);
        }
        layers.reverse();
        match settings::from_settings(&self.settings) {
            Ok(layer) => layers.push(("--set".into(), layer)),
            Err(list) => findings.extend(list),
        }
        if findings.is_empty() {
            Ok(Chain { name, layers })
        } else {
            Err(PolicyError::Invalid(findings))
        }
    }

    fn find(&self, name: &str) -> Result<(String, String), PolicyError> {
        if is_name(name) {
            for folder in &self.folders {
                let path = folder.join(format!("{name}.toml"));
                match trust::read_in_folder(folder, &path) {
                    Ok(text) => return Ok((path.display().to_string(), text)),
                    Err(PolicyError::Read { source, .. })
                        if source.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            if let Some((_, text)) = BUILT_IN.iter().find(|(n, _)| *n == name) {
                return Ok((format!("{name} (built in)"), (*text).to_owned()));
            }
        }
        let known = self.names();
        let near = suggest::nearest(name, known.iter().map(String::as_str)).map(str::to_owned);
        Err(PolicyError::NotFound {
            name: name.into(),
            near,
            known,
        })
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}
