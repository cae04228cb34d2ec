//! What is made once and kept below the target directory: QEMU, kernels, the guest's file system.
//!
//! Each thing has a name and a digest of the recipe that makes it, and is made in a directory beside its place that is
//! renamed when it is whole, so what is there is complete. Deleting `target/vm` makes everything anew, with what the
//! package sources have by then. Runs with the caller's rights.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::workspace::Metadata;

/// The directory of everything kept.
#[derive(Debug, Clone)]
pub struct Cache(PathBuf);

impl Cache {
    pub fn open() -> Result<Self> {
        Self::at(Metadata::of_members()?.target_directory.join("vm"))
    }

    pub fn at(directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        Ok(Self(directory))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory `NAME-DIGEST`, made by `make` if it isn't there. A recipe that changed leaves none of its old results.
    pub fn once(
        &self,
        name: &str,
        recipe: impl Hash,
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        // A key, not a proof: whoever can write here can also write the programs under test.
        let mut hasher = DefaultHasher::new();
        recipe.hash(&mut hasher);
        let at = self.0.join(format!("{name}-{:016x}", hasher.finish()));
        if at.is_dir() {
            return Ok(at);
        }
        self.forget(name)?;
        let draft = tempfile::Builder::new()
            .prefix(&format!(".{name}-"))
            .tempdir_in(&self.0)
            .with_context(|| format!("make a directory in {}", self.0.display()))?;
        make(draft.path())?;
        let whole = draft.keep();
        std::fs::rename(&whole, &at).with_context(|| format!("put {}", at.display()))?;
        Ok(at)
    }

    /// Removes what other recipes made under this name.
    fn forget(&self, name: &str) -> Result<()> {
        for entry in
            std::fs::read_dir(&self.0).with_context(|| format!("list {}", self.0.display()))?
        {
            let path = entry
                .with_context(|| format!("list {}", self.0.display()))?
                .path();
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let digest = file
                .strip_prefix(name)
                .and_then(|rest| rest.strip_prefix('-'));
            if digest.is_some_and(|d| d.len() == 16 && d.bytes().all(|b| b.is_ascii_hexdigit())) {
                std::fs::remove_dir_all(&path)
                    .with_context(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_followed_once_and_a_changed_one_replaces_it() {
        let scratch = tempfile::tempdir().expect("a directory");
        let cache = Cache::at(scratch.path().join("vm")).expect("made");
        let write = |text: &'static str| {
            move |at: &Path| std::fs::write(at.join("file"), text).context("write")
        };
        let first = cache.once("tree", 1, write("one")).expect("made");
        let again = cache.once("tree", 1, write("two")).expect("there");
        assert_eq!(first, again);
        assert_eq!(std::fs::read(first.join("file")).expect("read"), b"one");
        cache.once("tree-other", 1, write("x")).expect("made");
        let other = cache.once("tree", 2, write("three")).expect("made");
        assert!(!first.exists() && other.exists());
        assert_eq!(
            std::fs::read_dir(cache.path()).expect("listed").count(),
            2,
            "tree-other stays"
        );
    }

    #[test]
    fn what_failed_halfway_leaves_nothing() {
        let scratch = tempfile::tempdir().expect("a directory");
        let cache = Cache::at(scratch.path().to_owned()).expect("made");
        let failed = cache.once("tree", 1, |at| {
            std::fs::write(at.join("half"), "").context("write")?;
            anyhow::bail!("no network")
        });
        assert!(failed.is_err());
        assert_eq!(
            std::fs::read_dir(scratch.path()).expect("listed").count(),
            0
        );
    }
}
