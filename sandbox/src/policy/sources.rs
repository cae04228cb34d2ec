//! Where policies come from: the ones built in, folders of the operator, and text handed over by a caller.

use std::path::PathBuf;

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
